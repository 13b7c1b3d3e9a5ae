from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealface.cipher.distance import Metric, distances
from tests.cipher.conftest import units

DEEPFACE = {
    Metric.COSINE: lambda t, q: 1 - t @ q / np.sqrt(t @ t) / np.sqrt(q @ q),
    Metric.EUCLIDEAN: lambda t, q: np.sqrt(((t - q) ** 2).sum()),
    Metric.EUCLIDEAN_L2: lambda t, q: np.sqrt(((t / np.sqrt((t**2).sum()) - q / np.sqrt((q**2).sum())) ** 2).sum()),
    Metric.ANGULAR: lambda t, q: np.arccos(t @ q / np.sqrt(t @ t) / np.sqrt(q @ q)) / np.pi,
}


@pytest.mark.parametrize("metric", list(Metric))
def test_distances_are_deepfaces(metric: Metric, rng: np.random.Generator) -> None:
    bound = 25.0
    for t, q in zip(20 * units(rng, 50, 64), 11 * units(rng, 50, 64), strict=True):
        score = np.array([[t @ q / 220 if metric.normalised else ((t - q) ** 2).sum() / bound**2]])
        got = distances(score, metric, 1.0 if metric.normalised else bound)
        assert got.shape == (1, 1)
        assert got[0, 0] == pytest.approx(DEEPFACE[metric](t, q), abs=1e-9)


@pytest.mark.parametrize("metric", list(Metric))
@given(score=st.floats(-9, 9), step=st.floats(0, 1))
def test_noise_beyond_the_range_is_no_nan_and_order_is_kept(metric: Metric, score: float, step: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near, far = distances(np.array([score + step, score]), metric, 1.0)
    assert np.isfinite([near, far]).all()
    assert near <= far if metric.normalised else near >= far


def test_names_are_deepfaces() -> None:
    assert {metric.value for metric in Metric} == {"cosine", "euclidean", "euclidean_l2", "angular"}
