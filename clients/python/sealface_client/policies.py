"""Default policies: DeepFace's tuned thresholds for 1:1, a rate of false alarms for 1:N.

A threshold tuned for pairs makes false matches in proportion to a gallery's size: over all LFW pairs of different
people Dlib at its 0.07 has a false match rate of 1.1e-3, so most searches of a gallery of thousands name somebody
wrong. Where a model's false match rate is known, searches get a target instead (default 1%).
"""

from __future__ import annotations

import numpy as np

from sealface.cipher.distance import Metric, distances
from sealface.cipher.layout import Layout
from sealface.cipher.parameters import for_dimension
from sealface.errors import InvalidInput
from sealface.protocol.policy import Policy

DEFAULT_FPIR = 0.01

# Cosine and euclidean distance below which that share of 33.8 million pairs of different people of LFW lies
# (8,253 faces, DeepFace 0.0.103, model Dlib, detector dlib). Reproduce: bench/false_match_rate.py.
_RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_DLIB = {
    Metric.COSINE: (0.03712, 0.04205, 0.04680, 0.05165, 0.05712, 0.06258, 0.06952, 0.07673, 0.08625),
    Metric.EUCLIDEAN: (0.37364, 0.40028, 0.42377, 0.44754, 0.47535, 0.50056, 0.52925, 0.55739, 0.59143),
}


class IdentificationThresholdNeeded(InvalidInput):
    """Nothing is known of the model's false match rate."""


def false_match_rates(model: str, metric: Metric) -> tuple[tuple[float, float], ...]:
    """(distance, false match rate) of a model, rising; empty where it was not measured."""
    if model != "Dlib":
        return ()
    if metric is Metric.EUCLIDEAN:
        return tuple(zip(_DLIB[Metric.EUCLIDEAN], _RATES, strict=True))
    similarities = 1 - np.array(_DLIB[Metric.COSINE])
    return tuple(zip(distances(similarities, metric, 1.0).tolist(), _RATES, strict=True))


def default_policy(
    model: str,
    metric: Metric,
    *,
    verification_threshold: float | None = None,
    identification_threshold: float | None = None,
    target_fpir: float = DEFAULT_FPIR,
    max_candidates: int = 5,
    disclosure_step: float = 0.0,
) -> Policy:
    """A policy for a model.

    Args:
        model: DeepFace's name of it.
        metric: the gallery's metric.
        verification_threshold: largest distance that verifies; default DeepFace's for the model and metric.
        identification_threshold: largest distance a search names, whatever the gallery's size.
        target_fpir: wanted share of non-mated searches that name somebody; used where no fixed threshold is given.
        max_candidates: most subjects a search names.
        disclosure_step: step that disclosed distances are rounded to; 0 discloses none.

    Raises:
        UnknownModel: DeepFace has no threshold for it; give one.
        IdentificationThresholdNeeded: no false match rate is known for it; give a threshold.
        InvalidPolicy: see `Policy`.
    """
    if verification_threshold is None:
        from sealface.recognition import models

        verification_threshold = models.threshold(model, metric.value)
    curve: tuple[tuple[float, float], ...] = ()
    if identification_threshold is None:
        curve = false_match_rates(model, metric)
        if not curve:
            raise IdentificationThresholdNeeded(
                f"the false match rate of {model} is not known: give the largest distance a search may name "
                "(identification_threshold), well below the verification threshold"
            )
        identification_threshold = verification_threshold
    return Policy(
        verification_threshold=verification_threshold,
        identification_threshold=identification_threshold,
        target_fpir=target_fpir if curve else 0.0,
        curve=curve,
        max_candidates=max_candidates,
        disclosure_step=disclosure_step,
    )


def default_layout(
    model: str, metric: Metric, policy: Policy, largest_norm: float | None = None, security_bits: int = 128
) -> Layout:
    """How a gallery's embeddings are packed.

    Args:
        model: DeepFace's name of the recognition model.
        metric: the gallery's metric.
        policy: the rule of decisions.
        largest_norm: bound on an embedding's length, for the euclidean metric only; default four times the verification
            threshold.
        security_bits: of the parameter set, at least, against quantum computers.

    Raises:
        UnknownModel, UnknownParameters, WrongDimension, EmbeddingTooLong: see there.
    """
    from sealface.recognition import models

    norm = largest_norm or 4 * policy.verification_threshold if metric is Metric.EUCLIDEAN else 1.0
    dimension = models.dimension(model)
    return Layout.of(for_dimension(dimension, security_bits).name, dimension, metric, norm)
