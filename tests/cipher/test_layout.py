from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sealface.cipher.distance import Metric
from sealface.cipher.layout import (
    EmbeddingNotFinite,
    EmbeddingTooLong,
    Layout,
    WrongDimension,
    ZeroEmbedding,
)
from sealface.cipher.parameters import N4096, N8192
from tests.cipher.conftest import units

NORMALISED = [metric for metric in Metric if metric.normalised]


def negacyclic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Product modulo x^N + 1, over the non-zero coefficients of b only."""
    n = a.size
    out = np.zeros(2 * n)
    for i in np.flatnonzero(b):
        out[i : i + n] += a * b[i]
    return out[:n] - out[n:]


@given(st.integers(2, 4096), st.sampled_from(list(Metric)))
def test_shape_of_a_group(dimension: int, metric: Metric) -> None:
    for parameters in (N4096, N8192):
        if dimension > parameters.degree // 2:
            with pytest.raises(WrongDimension):
                Layout(parameters, dimension, metric)
            continue
        layout = Layout(parameters, dimension, metric)
        assert layout.stride >= max(16, dimension)
        assert layout.stride == 16 or layout.stride < 2 * dimension
        assert layout.stride * layout.positions == parameters.degree
        assert layout.capacity >= 1
        assert layout.checks >= 1
        assert layout.capacity + layout.checks == layout.positions
        assert layout.checks == (2 if layout.positions >= 32 else 1)


@pytest.mark.parametrize("dimension", [-1, 0, 1, 2049])
def test_dimension_out_of_range(dimension: int) -> None:
    with pytest.raises(WrongDimension):
        Layout(N4096, dimension, Metric.COSINE)


@pytest.mark.parametrize("norm", [0.0, -1.0, np.nan, np.inf])
def test_largest_norm_out_of_range(norm: float) -> None:
    with pytest.raises(EmbeddingTooLong):
        Layout(N4096, 128, Metric.EUCLIDEAN, norm)


@pytest.mark.parametrize("metric", list(Metric))
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_the_product_of_polynomials_holds_the_scores(metric: Metric, data: st.DataObject) -> None:
    dimension = data.draw(st.sampled_from([2, 16, 17, 100, 128, 300]))
    bound = 1.0 if metric.normalised else 3.0
    layout = Layout(N4096, dimension, metric, bound)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    here = data.draw(st.integers(0, layout.capacity - 1))
    vectors, q = 2.9 * units(rng, layout.capacity, dimension), 2.9 * units(rng, 1, dimension)[0]
    group, norms = np.zeros(4096), np.zeros(4096)
    for position, vector in enumerate(vectors):
        parts = layout.template(vector)
        assert len(parts) == layout.parts
        group += np.roll(parts[0].coefficients / parts[0].scale, position * layout.stride)
        if layout.parts == 2:
            assert parts[1].scale == layout.parameters.scale**2
            norms += np.roll(parts[1].coefficients / parts[1].scale, position * layout.stride)
    probe = layout.probe(q)
    product = negacyclic(group, probe[0].coefficients / probe[0].scale) + norms
    if layout.parts == 2:
        product += probe[1].coefficients / probe[1].scale
    at = product[:: layout.stride]
    if metric.normalised:
        expected = float(vectors[here] @ q) / 2.9**2
    else:
        expected = float(((vectors[here] - q) ** 2).sum()) / bound**2
    assert at[here] == pytest.approx(expected, abs=1e-6)
    assert np.abs(at[layout.capacity :]).max() < 1e-9  # check positions


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("side", ["template", "probe"])
@pytest.mark.parametrize(
    ("embedding", "error"),
    [
        (np.ones(127), WrongDimension),
        (np.ones(129), WrongDimension),
        (np.ones((1, 128)), WrongDimension),
        (np.ones((2, 64)), WrongDimension),
        (np.float64(1), WrongDimension),
        (np.array([]), WrongDimension),
        (np.r_[np.nan, np.ones(127)], EmbeddingNotFinite),
        (np.r_[np.ones(127), np.inf], EmbeddingNotFinite),
        (np.r_[-np.inf, np.ones(127)], EmbeddingNotFinite),
        (np.zeros(128), ZeroEmbedding),
        (-np.zeros(128), ZeroEmbedding),
    ],
)
def test_what_is_no_embedding(
    metric: Metric, side: str, embedding: NDArray[np.float64], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        getattr(Layout(N4096, 128, metric, 1.0 if metric.normalised else 100.0), side)(embedding)
    assert "nan" not in str(caught.value).replace("NaN", "")


@pytest.mark.parametrize("metric", NORMALISED)
@given(exponent=st.integers(-305, 305), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_magnitude_is_no_matter_when_normalised(metric: Metric, exponent: int, seed: int) -> None:
    layout = Layout(N4096, 16, metric)
    unit = units(np.random.default_rng(seed), 1, 16)[0]
    for side in (layout.template, layout.probe):
        far, near = side(unit * 10.0**exponent)[0], side(unit)[0]
        assert np.abs(far.coefficients - near.coefficients).max() <= 1
    assert np.linalg.norm(near.coefficients / near.scale) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("extreme", [1e-300, 1e300, 5e-324, 1.7e308])
def test_extreme_magnitudes(extreme: float) -> None:
    layout = Layout(N4096, 128, Metric.COSINE)
    (part,) = layout.template(np.full(128, extreme))
    assert np.abs(part.coefficients[:128] / part.scale - 128**-0.5).max() < 1e-8
    layout.template(np.r_[extreme, np.zeros(127)])
    with pytest.raises(EmbeddingTooLong) if extreme > 1 else nullcontext():
        Layout(N4096, 128, Metric.EUCLIDEAN, 10.0).template(np.full(128, extreme))


@given(st.floats(0.01, 3.0), st.floats(1e-3, 1e6))
def test_the_bound_of_the_euclidean_metric(share: float, bound: float) -> None:
    layout = Layout(N4096, 16, Metric.EUCLIDEAN, bound)
    vector = np.full(16, share * bound / 4)
    if share > 1 + 1e-12:
        with pytest.raises(EmbeddingTooLong) as caught:
            layout.probe(vector)
        assert float(caught.value.metadata["largest_norm"]) == bound
    elif share < 1 - 1e-12:
        first, second = layout.template(vector)
        assert (np.abs(first.coefficients) <= first.scale).all()
        assert second.coefficients[0] / second.scale == pytest.approx(share**2)
