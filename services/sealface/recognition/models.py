"""What DeepFace knows of its recognition models: dimensions, tuned thresholds, distances, confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealface.errors import InvalidInput
from sealface.recognition import _deepface

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class UnknownModel(InvalidInput):
    """DeepFace has no recognition model of this name."""


class UnknownDetector(InvalidInput):
    """DeepFace has no face detector of this name."""


class UnknownMetric(InvalidInput):
    """DeepFace has no distance metric of this name."""


class UnknownNormalization(InvalidInput):
    """DeepFace has no input normalization of this name."""


# Numbers in an embedding. DeepFace tells only once a model's weights are loaded; a test compares.
DIMENSIONS = {
    "VGG-Face": 4096,
    "Facenet": 128,
    "Facenet512": 512,
    "ArcFace": 512,
    "Dlib": 128,
    "SFace": 128,
    "OpenFace": 128,
    "DeepFace": 4096,
    "DeepID": 160,
    "GhostFaceNet": 512,
    "Buffalo_L": 512,
}

METRICS = ("cosine", "euclidean", "euclidean_l2", "angular")

NORMALIZATIONS = ("base", "raw", "Facenet", "Facenet2018", "VGGFace", "VGGFace2", "ArcFace")


def model_names() -> tuple[str, ...]:
    """Return the name of every recognition model DeepFace offers."""
    return tuple(DIMENSIONS)


def detector_names() -> tuple[str, ...]:
    """Return the name of every face detector DeepFace offers; "skip" takes the whole image for one face.

    Raises:
        DeepfaceMissing: DeepFace is not installed.
    """
    return (*_deepface.load("deepface.modules.modeling").AVAILABLE_MODELS["face_detector"], "skip")


def dimension(model: str) -> int:
    """Return how many numbers one embedding of a model has.

    Raises:
        UnknownModel: no such model.
    """
    if model not in DIMENSIONS:
        raise UnknownModel(f"unknown model: choose one of {', '.join(DIMENSIONS)}", model=model)
    return DIMENSIONS[model]


def thresholds(model: str) -> dict[str, float]:
    """Return DeepFace's tuned thresholds of a model by metric; a distance at or below one is a match.

    Raises:
        UnknownModel: no such model.
        DeepfaceMissing: DeepFace is not installed.
    """
    dimension(model)
    return {
        metric: float(value) for metric, value in _deepface.load("deepface.config.threshold").thresholds[model].items()
    }


def threshold(model: str, metric: str = "cosine") -> float:
    """Return DeepFace's tuned threshold of a model under one metric.

    Raises:
        UnknownModel, UnknownMetric: no such model or metric.
        DeepfaceMissing: DeepFace is not installed.
    """
    _require_metric(metric)
    return thresholds(model)[metric]


def distance(metric: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the plaintext distance of two embeddings, rounded to 6 decimals as DeepFace rounds it.

    For reports that compare encrypted scores with plaintext ones.

    Args:
        metric: one of `METRICS`.
        a: an embedding, shape (d,).
        b: another of the same model, shape (d,).

    Raises:
        UnknownMetric: no such metric.
        InvalidInput: the embeddings are not two vectors of one length.
        DeepfaceMissing: DeepFace is not installed.
    """
    _require_metric(metric)
    if a.ndim != 1 or a.shape != b.shape:
        raise InvalidInput("two embeddings of one dimension are needed: embed both with the same model")
    return float(_deepface.load("deepface.modules.verification").find_distance(a, b, metric))


def confidence(model: str, metric: str, distance: float, threshold: float | None = None) -> float:
    """Return DeepFace's confidence in its decision on a distance, in percent.

    Args:
        model: the model both embeddings are of.
        metric: the metric of the distance.
        distance: what lies between the two embeddings.
        threshold: the largest distance that is a match; DeepFace's tuned one where none is given.

    Returns:
        51..100 for a match, 0..49 for none.

    Raises:
        UnknownModel, UnknownMetric: no such model or metric.
        DeepfaceMissing: DeepFace is not installed.
    """
    _require_metric(metric)
    limit = thresholds(model)[metric] if threshold is None else threshold
    find_confidence = _deepface.load("deepface.modules.verification").find_confidence
    return float(find_confidence(distance, model, verified=distance <= limit, distance_metric=metric))


def _require_metric(metric: str) -> None:
    if metric not in METRICS:
        raise UnknownMetric(f"unknown metric: choose one of {', '.join(METRICS)}", metric=metric)
