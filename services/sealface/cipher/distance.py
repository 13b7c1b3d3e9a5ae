"""From an opened score to a distance.

The score of a template t and a probe q is what the ciphertexts compute; the distance is what DeepFace's tuned
thresholds speak of (deepface.modules.verification). For the first three metrics t and q are unit vectors and
the score is <t, q>; for euclidean they are divided by the gallery's largest norm B and the score is |t -
q|^2.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Metric(StrEnum):
    """The distances of DeepFace."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    EUCLIDEAN_L2 = "euclidean_l2"
    ANGULAR = "angular"

    @property
    def normalised(self) -> bool:
        """Whether vectors are scaled to unit length before they are encrypted."""
        return self is not Metric.EUCLIDEAN


def distances(scores: NDArray[np.float64], metric: Metric, largest_norm: float) -> NDArray[np.float64]:
    """Distances for opened scores, elementwise.

    Args:
        scores: any shape.
        metric: the gallery's metric.
        largest_norm: B, the length that euclidean vectors were divided by; 1 for the other metrics.
    """
    match metric:
        case Metric.COSINE:
            return 1.0 - scores
        case Metric.EUCLIDEAN_L2:
            return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * scores))
        case Metric.ANGULAR:
            return np.arccos(np.clip(scores, -1.0, 1.0)) / np.pi
        case Metric.EUCLIDEAN:
            return np.sqrt(np.maximum(0.0, scores)) * largest_norm
