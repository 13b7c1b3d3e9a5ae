import math

import pytest

from sealface.cipher.distance import Metric
from sealface.recognition.models import UnknownModel
from sealface_client.policies import IdentificationThresholdNeeded, default_policy, false_match_rates


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.faces
def test_a_measured_model_gets_a_target_and_deepfaces_threshold(metric):
    policy = default_policy("Dlib", metric)
    assert policy.target_fpir == 0.01
    assert policy.identification_threshold == policy.verification_threshold > 0
    thresholds = [policy.search_threshold(n) for n in (1, 100, 1000, 10**6, 10**7)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds[1:])) == 4  # beyond what was measured, too, it goes on falling
    assert thresholds[2] > 0
    assert policy.search_threshold(10**40) < 0


def test_the_curves_of_all_metrics_speak_of_the_same_pairs():
    """At one false match rate the metrics of unit vectors are the same angle."""
    cosine = {rate: distance for distance, rate in false_match_rates("Dlib", Metric.COSINE)}
    euclidean = {rate: distance for distance, rate in false_match_rates("Dlib", Metric.EUCLIDEAN_L2)}
    angular = {rate: distance for distance, rate in false_match_rates("Dlib", Metric.ANGULAR)}
    for rate, distance in cosine.items():
        assert euclidean[rate] == pytest.approx(math.sqrt(2 * distance))
        assert angular[rate] == pytest.approx(math.acos(1 - distance) / math.pi)


@pytest.mark.faces
def test_a_model_that_was_not_measured_needs_a_threshold():
    with pytest.raises(IdentificationThresholdNeeded):
        default_policy("ArcFace", Metric.COSINE)
    policy = default_policy("ArcFace", Metric.COSINE, identification_threshold=0.2)
    assert (policy.identification_threshold, policy.target_fpir, policy.curve) == (0.2, 0.0, ())


@pytest.mark.faces
def test_a_fixed_threshold_stays_whatever_the_size():
    policy = default_policy("Dlib", Metric.COSINE, identification_threshold=0.05)
    assert policy.search_threshold(10**6) == 0.05


@pytest.mark.faces
def test_an_unknown_model_needs_a_verification_threshold():
    with pytest.raises(UnknownModel):
        default_policy("Mine", Metric.COSINE, identification_threshold=0.1)
    mine = default_policy("Mine", Metric.COSINE, identification_threshold=0.1, verification_threshold=0.3)
    assert mine.verification_threshold == 0.3
