from __future__ import annotations

from contextlib import nullcontext
from typing import Any

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
    UnknownShape,
    WrongDimension,
    ZeroEmbedding,
)
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from tests.cipher.conftest import units

NORMALISED = [metric for metric in Metric if metric.normalised]


def negacyclic(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Product modulo x^N + 1, over the non-zero coefficients of b only."""
    n = a.size
    out = np.zeros(2 * n, a.dtype)
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
        group = layout.group
        assert not group.sealed
        assert (group.columns, group.rows, group.ciphertexts) == (1, layout.stride, layout.parts)
        assert layout.stride * group.positions == parameters.degree
        assert group.capacity >= 1
        assert group.checks >= 1
        assert group.capacity + group.checks == group.positions
        assert group.checks == (2 if group.positions >= 32 else 1)
        assert (group.coefficients == layout.stride * np.arange(group.positions)).all()


@given(st.integers(2, 4096), st.sampled_from(list(Metric)))
def test_shapes_of_sealed_blocks(dimension: int, metric: Metric) -> None:
    for parameters in (N4096, N8192):
        if dimension > parameters.degree // 2:
            continue
        layout = Layout(parameters, dimension, metric)
        n, shapes = parameters.degree, layout.sealed_shapes
        assert shapes
        assert [shape.columns for shape in shapes] == sorted({shape.columns for shape in shapes})
        # all powers of two that leave room for as many templates as check positions, and have Galois keys
        assert [shape.columns for shape in shapes] == [
            columns
            for columns in (1 << i for i in range(1, 8))
            if columns <= layout.stride and n * columns // layout.stride >= 128
        ]
        for shape in shapes:
            assert shape.sealed
            assert layout.shape(shape.columns) is shape
            assert shape.columns * shape.rows == layout.stride
            assert shape.positions * shape.rows == n
            assert shape.checks == 64
            assert shape.capacity == shape.positions - 64 >= 64
            assert shape.ciphertexts == shape.columns + (0 if metric.normalised else 1)
            # each coefficient of a column belongs to one row of one template, and none wraps round
            taken = shape.coefficients[:, None] + shape.columns * np.arange(shape.rows)
            assert np.array_equal(np.sort(taken.ravel()), np.arange(n))
            assert 0 < shape.noise <= layout.noise
        assert layout.noise == max(shape.noise for shape in (layout.group, *shapes))


@pytest.mark.parametrize(("dimension", "least", "most"), [(2, 2, 16), (16, 2, 16), (128, 4, 128), (512, 16, 128)])
def test_unknown_shapes_are_refused(dimension: int, least: int, most: int) -> None:
    layout = Layout(N4096, dimension, Metric.COSINE)
    assert [layout.sealed_shapes[i].columns for i in (0, -1)] == [least, most]
    for columns in {-1, 0, 3, least // 2, least + 1, 2 * most, most + 1, 256, 1 << 40} - {1}:
        with pytest.raises(UnknownShape) as caught:
            layout.shape(columns)
        assert caught.value.metadata == {"columns": str(columns)}
    assert layout.shape(1) is layout.group


@given(st.integers(2, 4096), st.sampled_from(list(Metric)))
@settings(max_examples=30, deadline=None)
def test_the_best_shape_grows_with_the_gallery(dimension: int, metric: Metric) -> None:
    layout = Layout.of("", dimension, metric, 1.0)
    columns = 0
    for templates in np.unique(np.geomspace(1, 1e9, 200).astype(int)).tolist():
        shape = layout.best_shape(templates)
        assert shape in layout.sealed_shapes
        assert shape.columns >= columns
        columns = shape.columns
    assert layout.best_shape(1) is layout.sealed_shapes[0]
    assert layout.best_shape(10**9) is layout.sealed_shapes[-1]


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
    here = data.draw(st.integers(0, layout.group.capacity - 1))
    vectors, q = 2.9 * units(rng, layout.group.capacity, dimension), 2.9 * units(rng, 1, dimension)[0]
    group, norms = np.zeros(4096), np.zeros(4096)
    for position, vector in enumerate(vectors):
        parts = layout.template(vector)
        assert len(parts) == layout.parts
        group += np.roll(parts[0].coefficients / parts[0].scale, position * layout.stride)
        if layout.parts == 2:
            assert parts[1].scale == layout.parameters.product_scale
            norms += np.roll(parts[1].coefficients / parts[1].scale, position * layout.stride)
    probe = layout.probe(q)
    product = negacyclic(group, probe[0].coefficients / probe[0].scale) + norms
    if layout.parts == 2:
        # |q|^2 is in coefficient 0 alone: compute multiplies it to every score
        assert not probe[1].coefficients[1:].any()
        assert probe[1].scale == layout.parameters.product_scale
        indicator = np.zeros(4096)
        indicator[layout.group.coefficients[: layout.group.capacity]] = 1
        product += negacyclic(indicator, probe[1].coefficients / probe[1].scale)
    at = product[:: layout.stride]
    if metric.normalised:
        expected = float(vectors[here] @ q) / 2.9**2
    else:
        expected = float(((vectors[here] - q) ** 2).sum()) / bound**2
    assert at[here] == pytest.approx(expected, abs=1e-6)
    assert np.abs(at[layout.group.capacity :]).max() < 1e-9  # check positions


def leaf(probe: NDArray[np.int64], number: int, columns: int) -> NDArray[np.int64]:
    """Q_i: the probe's exponents -i modulo the columns, times x^i."""
    part = np.zeros_like(probe)
    part[-number % columns :: columns] = probe[-number % columns :: columns]
    rolled = np.roll(part, number)
    rolled[:number] *= -1  # x^N is -1
    return rolled


SHAPES = [
    *((N4096, dimension, columns) for dimension, columns in ((2, 2), (16, 16), (100, 8), (128, 4), (128, 128))),
    *((N4096, dimension, columns) for dimension, columns in ((300, 16), (512, 64), (2048, 64), (2048, 128))),
    (N8192, 4096, 64),
    (N8192, 16, 2),
]


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
@pytest.mark.parametrize(("parameters", "dimension", "columns"), SHAPES, ids=lambda v: getattr(v, "name", v))
def test_columns_times_leaves_hold_the_scores(
    parameters: ParameterSet, dimension: int, columns: int, metric: Metric, rng: np.random.Generator
) -> None:
    """In whole numbers, so exactly: <t, q> at each position's coefficient, and nothing at the check positions."""
    layout = Layout(parameters, dimension, metric)
    shape = layout.shape(columns)
    vectors, q = 0.9 * units(rng, shape.capacity, dimension), 0.9 * units(rng, 1, dimension)[0]
    plaintexts = layout.block(shape, vectors)
    assert len(plaintexts) == shape.ciphertexts
    probe = layout.probe(q)[0]
    assert (plaintexts[0].scale, probe.scale) == (parameters.template_scale, parameters.probe_scale)
    assert plaintexts[0].scale * probe.scale == parameters.product_scale
    total = np.zeros(parameters.degree, np.int64)
    for number, column in enumerate(plaintexts[:columns]):
        total += negacyclic(column.coefficients, leaf(probe.coefficients, number, columns))
    scale = 1.0 if metric.normalised else 0.9
    t = np.rint(vectors / 0.9 * scale * parameters.template_scale).astype(np.int64)
    weights = q / 0.9 if metric.normalised else -2 * q
    expected = t @ np.rint(weights * parameters.probe_scale).astype(np.int64)
    # the layout normalises by itself: its last bit may be rounded the other way
    tolerance = 4 * dimension * parameters.probe_scale
    assert np.abs(total[shape.coefficients[: shape.capacity]] - expected).max() <= tolerance
    checks = shape.coefficients[shape.capacity :]
    assert checks.size == 64
    assert not total[checks].any()
    for plaintext in plaintexts:
        assert not plaintext.coefficients[checks].any()
    if not metric.normalised:
        norms = plaintexts[-1].coefficients / plaintexts[-1].scale
        assert np.abs(norms[shape.coefficients[: shape.capacity]] - 0.81).max() < 1e-9
        assert np.count_nonzero(norms) == shape.capacity


@pytest.mark.parametrize(("dimension", "columns"), [(16, 2), (16, 16), (100, 8), (128, 32), (512, 16), (2048, 64)])
def test_groups_split_and_shifted_are_the_block(dimension: int, columns: int, rng: np.random.Generator) -> None:
    """Sealing in plaintext: leaf i of group a, times x^a, goes to column i."""
    layout = Layout(N4096, dimension, Metric.EUCLIDEAN)
    shape = layout.shape(columns)
    vectors = 0.9 * units(rng, shape.capacity, dimension)
    made = np.zeros((columns, 4096), np.int64)
    norms = np.zeros(4096, np.int64)
    for a in range(columns):
        group, of_group = np.zeros(4096, np.int64), np.zeros(4096, np.int64)
        for b, vector in enumerate(vectors[a::columns]):  # position a + columns b
            template, norm = layout.template(vector)
            group += np.roll(template.coefficients, layout.stride * b)  # none reaches x^N
            of_group += np.roll(norm.coefficients, layout.stride * b)
        for i in range(columns):
            part = np.zeros(4096, np.int64)
            part[::columns] = group[i::columns]  # divided by x^i
            made[i] += np.roll(part, a)
        norms += np.roll(of_group, a)
    whole = layout.block(shape, vectors)
    assert all(np.array_equal(plaintext.coefficients, column) for plaintext, column in zip(whole, made, strict=False))
    assert np.abs(whole[-1].coefficients - norms).max() <= 64  # of 2^56: the sum of squares in another order


def test_a_block_is_filled_from_its_first_position(rng: np.random.Generator) -> None:
    layout = Layout(N4096, 128, Metric.COSINE)
    shape = layout.shape(8)
    vectors = units(rng, 3, 128)
    few, full = layout.block(shape, vectors), layout.block(shape, np.resize(vectors, (shape.capacity, 128)))
    occupied = shape.coefficients[:3, None] + 8 * np.arange(shape.rows)
    for some, every in zip(few, full, strict=True):
        assert np.array_equal(some.coefficients[occupied], every.coefficients[occupied])
        assert np.count_nonzero(some.coefficients) <= occupied.size
    for count in (0, shape.capacity + 1):
        with pytest.raises(ValueError, match="holds 1 to 192"):
            layout.block(shape, np.ones((count, 128)))


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("side", ["template", "probe", "block"])
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
    layout = Layout(N4096, 128, metric, 1.0 if metric.normalised else 100.0)
    with pytest.raises(error) as caught:
        if side == "block":
            layout.block(layout.shape(8), [np.ones(128), embedding])
        else:
            getattr(layout, side)(embedding)
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


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
@pytest.mark.parametrize("dimension", [16, 100, 128, 2048])
def test_each_coefficient_belongs_to_one_position(dimension: int, metric: Metric) -> None:
    layout = Layout(N4096, dimension, metric)
    rng = np.random.default_rng(1)
    for shape in layout.sealed_shapes:
        everybody = np.ones(shape.capacity, bool)
        taken = shape.taken(everybody)
        checks = shape.coefficients[shape.capacity :, None] + shape.columns * np.arange(shape.rows)
        assert sorted([*taken, *checks.ravel()]) == list(range(4096))
        # what a template at one position puts into a block lies there and nowhere else
        vectors = units(rng, 7, dimension)
        whole = layout.block(shape, vectors)
        vectors[3] = vectors[2]
        changed = layout.block(shape, vectors)
        third = np.arange(shape.capacity) == 3
        for one, other in zip(whole, changed, strict=True):
            assert set(np.flatnonzero(one.coefficients != other.coefficients)) <= set(shape.taken(third))
        assert any((one.coefficients != other.coefficients).any() for one, other in zip(whole, changed, strict=True))
        assert shape.taken(~everybody).size == 0
        with pytest.raises(ValueError, match="positions"):
            shape.taken(everybody[1:])
