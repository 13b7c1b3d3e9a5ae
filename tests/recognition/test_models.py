import inspect
import re

import numpy as np
import pytest

from sealface.errors import InvalidInput
from sealface.recognition import models

MODELS = models.model_names()


def test_dlib_has_128_dimensions() -> None:
    assert models.dimension("Dlib") == 128


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(models.UnknownModel, match="Dlib") as caught:
        models.dimension("Nobody")
    assert caught.value.reason == "UNKNOWN_MODEL"


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(models.UnknownMetric):
        models.threshold("Dlib", "manhattan")
    with pytest.raises(models.UnknownMetric):
        models.distance("manhattan", np.ones(3), np.ones(3))
    with pytest.raises(models.UnknownMetric):
        models.confidence("Dlib", "manhattan", 0.1)


@pytest.mark.faces
def test_the_names_are_those_of_deepface() -> None:
    from deepface.modules.modeling import AVAILABLE_MODELS

    assert set(MODELS) == set(AVAILABLE_MODELS["facial_recognition"])
    assert set(models.detector_names()) == {*AVAILABLE_MODELS["face_detector"], "skip"}


@pytest.mark.faces
@pytest.mark.parametrize("name", MODELS)
def test_the_dimension_is_that_of_deepface(name: str) -> None:
    from deepface.modules.modeling import get_model_class

    source = inspect.getsource(get_model_class("facial_recognition", name))
    (dimension,) = re.findall(r"self\.output_shape = (\d+)", source)
    assert models.dimension(name) == int(dimension)


@pytest.mark.faces
@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_threshold_for_every_metric(name: str) -> None:
    assert tuple(sorted(models.thresholds(name))) == tuple(sorted(models.METRICS))


@pytest.mark.faces
def test_the_thresholds_of_dlib() -> None:
    expected = {"cosine": 0.07, "euclidean": 0.6, "euclidean_l2": 0.4, "angular": 0.12}
    assert models.thresholds("Dlib") == expected
    assert models.threshold("Dlib") == 0.07


@pytest.mark.faces
@pytest.mark.parametrize(
    ("metric", "expected"),
    [("cosine", 0.2), ("euclidean", 2**0.5), ("euclidean_l2", 0.4**0.5), ("angular", np.arccos(0.8) / np.pi)],
)
def test_distances_worked_out_by_hand(metric: str, expected: float) -> None:
    a, b = np.array([2.0, 1.0]), np.array([1.0, 2.0])
    assert models.distance(metric, a, b) == pytest.approx(expected, abs=1e-6)


@pytest.mark.faces
def test_a_distance_needs_two_vectors_of_one_length() -> None:
    with pytest.raises(InvalidInput):
        models.distance("cosine", np.ones(3), np.ones(4))
    with pytest.raises(InvalidInput):
        models.distance("cosine", np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.faces
def test_confidence_follows_the_decision() -> None:
    assert models.confidence("Dlib", "cosine", 0.0) == 100
    assert models.confidence("Dlib", "cosine", 0.07) >= 51
    assert models.confidence("Dlib", "cosine", 0.0701) <= 49
    assert models.confidence("Dlib", "cosine", 0.0701, threshold=0.08) >= 51
    near, far = (models.confidence("Dlib", "cosine", value) for value in (0.02, 0.06))
    assert near > far
