import math

import pytest

from sealface.protocol.policy import InvalidPolicy, Policy

CURVE = ((0.1, 1e-6), (0.2, 1e-4), (0.3, 1e-2))


def policy(**changed):
    return Policy(**{"verification_threshold": 0.4, "identification_threshold": 0.3} | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"verification_threshold": math.nan},
        {"verification_threshold": math.inf},
        {"verification_threshold": -0.1},
        {"identification_threshold": math.nan},
        {"identification_threshold": -1.0},
        {"max_candidates": 0},
        {"max_candidates": 11},
        {"disclosure_step": 1e-4},
        {"disclosure_step": -0.1},
        {"disclosure_step": math.nan},
        {"disclosure_step": math.inf},
        {"target_fpir": -0.1, "curve": CURVE},
        {"target_fpir": 1.1, "curve": CURVE},
        {"target_fpir": math.nan, "curve": CURVE},
        {"target_fpir": 0.1},
        {"target_fpir": 0.1, "curve": CURVE[:1]},
        {"curve": ((0.1, 0.0), (0.2, 0.1))},
        {"curve": ((0.1, 0.1), (0.2, 1.1))},
        {"curve": ((0.1, math.nan), (0.2, 0.1))},
        {"curve": ((math.inf, 0.1), (0.2, 0.1))},
        {"curve": ((0.2, 0.1), (0.1, 0.2))},
        {"curve": ((0.1, 0.1), (0.1, 0.2))},
        {"curve": ((0.1, 0.2), (0.2, 0.1))},
        {"curve": tuple((i / 100, (i + 1) / 100) for i in range(65))},
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(changed):
    with pytest.raises(InvalidPolicy):
        policy(**changed)


def test_the_bounds_themselves_are_allowed():
    policy(verification_threshold=0.0, identification_threshold=0.0, max_candidates=10, disclosure_step=1e-3)
    policy(target_fpir=1.0, curve=tuple((i / 100, (i + 1) / 100) for i in range(64)))


@pytest.mark.parametrize("compared", [0, 1, 1000, 10**7])
def test_without_a_target_the_threshold_stays(compared):
    assert policy(curve=CURVE).search_threshold(compared) == 0.3


def test_the_threshold_falls_as_the_gallery_grows():
    ruled = policy(identification_threshold=1.0, target_fpir=0.01, curve=CURVE)
    thresholds = [ruled.search_threshold(n) for n in (1, 2, 10, 100, 1000, 10_000)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == len(thresholds)
    # at the points of the curve exactly, between them in log(rate)
    assert thresholds[0] == pytest.approx(0.3)
    assert ruled.search_threshold(10) == pytest.approx(0.25)
    assert ruled.search_threshold(100) == pytest.approx(0.2)
    assert ruled.search_threshold(10_000) == pytest.approx(0.1)


def test_below_the_curve_its_first_line_goes_on_until_nothing_is_named():
    ruled = policy(identification_threshold=1.0, target_fpir=0.01, curve=CURVE)
    # from (0.1, 1e-6) and (0.2, 1e-4): 0.05 a decade
    assert ruled.search_threshold(100_000) == pytest.approx(0.05)
    assert ruled.search_threshold(1_000_000) == pytest.approx(0.0)
    assert ruled.search_threshold(10_000_000) < 0
    flat = policy(identification_threshold=1.0, target_fpir=0.01, curve=((0.1, 1e-6), (0.2, 1e-6)))
    assert flat.search_threshold(10_001) < 0


def test_above_the_curve_its_last_distance_holds_and_the_threshold_bounds_it():
    assert policy(identification_threshold=1.0, target_fpir=1.0, curve=CURVE).search_threshold(1) == pytest.approx(0.3)
    assert policy(identification_threshold=0.15, target_fpir=1.0, curve=CURVE).search_threshold(1) == 0.15


def test_the_rule_keeps_the_promised_rate():
    """With that threshold a search of n non-mated templates names somebody with at most the target."""
    ruled = policy(identification_threshold=1.0, target_fpir=0.02, curve=CURVE)
    for n in (2, 7, 50, 900, 20_000):
        distance = ruled.search_threshold(n)
        logs = [math.log(rate) for _, rate in CURVE]
        points = [d for d, _ in CURVE]
        i = max(j for j in range(2) if points[j] <= distance + 1e-12)
        share = (distance - points[i]) / (points[i + 1] - points[i])
        rate = math.exp(logs[i] + share * (logs[i + 1] - logs[i]))
        assert 1 - (1 - rate) ** n <= 0.02 + 1e-9
