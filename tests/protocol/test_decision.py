import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealface.protocol import decision
from sealface.protocol.decision import Candidate, Decision
from sealface.protocol.policy import Policy


def policy(**changed):
    return Policy(**{"verification_threshold": 0.4, "identification_threshold": 0.4, "max_candidates": 5} | changed)


def verify(distances, slots=None, **changed):
    slots = np.arange(1, len(distances) + 1) if slots is None else np.array(slots)
    return decision.verify(policy(**changed), slots, np.array(distances))


def identify(distances, slots=None, leads=None, most=10, **changed):
    slots = np.arange(1, len(distances) + 1) if slots is None else np.array(slots)
    return decision.identify(policy(**changed), slots, np.array(distances, float), leads or {}, most)


def slots_of(answer):
    return [candidate.slot for candidate in answer.candidates]


def test_the_nearest_template_decides():
    assert verify([0.9, 0.39, 0.7], [7, 3, 9]) == Decision((Candidate(3, None),))
    assert verify([0.9, 0.41, 0.7]) == Decision()


def test_a_distance_equal_to_the_threshold_matches():
    assert verify([0.4]).candidates
    assert identify([0.4]).candidates
    assert not verify([np.nextafter(0.4, 1)]).candidates
    assert not identify([np.nextafter(0.4, 1)]).candidates


def test_nothing_is_told_unless_the_policy_tells_it():
    assert verify([0.3]).candidates[0].distance is None
    assert verify([0.9]).distance is None
    assert identify([0.3]).candidates[0].distance is None


def test_what_is_told_is_rounded():
    assert verify([0.234], disclosure_step=0.1).candidates[0].distance == pytest.approx(0.2)
    assert verify([0.86], disclosure_step=0.1).distance == pytest.approx(0.9)
    assert verify([0.234], disclosure_step=0.1).distance is None
    assert identify([0.234], disclosure_step=0.05).candidates[0].distance == pytest.approx(0.25)


def test_of_an_impossible_score_there_is_nothing_to_tell():
    assert verify([np.inf], disclosure_step=0.1) == Decision()
    assert verify([np.inf, 0.7], disclosure_step=0.1).distance == pytest.approx(0.7)
    assert identify([np.inf], disclosure_step=0.1) == Decision()


def test_a_search_names_the_nearest_first():
    assert slots_of(identify([0.3, 0.9, 0.1, 0.2])) == [3, 4, 1]


def test_nobody_near_enough_is_an_answer():
    assert identify([0.5, 0.9]) == Decision()
    assert identify([]) == Decision()


def test_subjects_are_counted_not_templates():
    # slots 1, 3 and 5 are one subject's
    leads = {3: 1, 5: 1}
    answer = identify([0.30, 0.35, 0.10, 0.20, 0.15], leads=leads, max_candidates=3)
    assert slots_of(answer) == [3, 4, 2]
    assert slots_of(identify([0.30, 0.35, 0.10, 0.20, 0.15], leads=leads, most=2)) == [3, 4]


def test_k_is_bounded_by_the_request_and_by_the_policy():
    distances = [0.01 * i for i in range(20)]
    assert slots_of(identify(distances, most=3)) == [1, 2, 3]
    assert slots_of(identify(distances, most=10)) == [1, 2, 3, 4, 5]
    assert len(identify(distances, most=10, max_candidates=10).candidates) == 10


def test_ties_go_to_the_first_slot_every_time():
    assert slots_of(identify([0.2, 0.1, 0.2, 0.1, 0.2], most=3)) == [2, 4, 1]


def test_a_larger_search_names_fewer():
    curve = ((0.1, 1e-4), (0.3, 1e-2))
    ruled = {"target_fpir": 0.01, "curve": curve}
    assert slots_of(identify([0.25], **ruled)) == [1]
    assert slots_of(identify([0.25] + [1.5] * 99, **ruled)) == []
    assert slots_of(identify([0.1] + [1.5] * 99, **ruled)) == [1]
    # beyond the curve nothing is named, even a perfect match
    assert slots_of(identify([0.0] + [1.5] * 100, **ruled)) == []
    assert slots_of(identify([-1e-5] + [1.5] * 100, **ruled)) == []


@given(
    distances=st.lists(st.integers(0, 12).map(lambda i: i / 20), max_size=12),
    owners=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    most=st.integers(1, 10),
    largest=st.integers(1, 10),
)
def test_a_search_equals_the_plain_definition(distances, owners, most, largest):
    first: dict[int, int] = {}
    leads = {}
    for slot, owner in enumerate(owners[: len(distances)], 1):
        if first.setdefault(owner, slot) != slot:
            leads[slot] = first[owner]
    answer = identify(distances, leads=leads, most=most, max_candidates=largest)
    best: dict[int, tuple[float, int]] = {}
    for slot, (distance, owner) in enumerate(zip(distances, owners, strict=False), 1):
        if distance <= 0.4 and (distance, slot) < best.get(owner, (9, 0)):
            best[owner] = (distance, slot)
    assert slots_of(answer) == [slot for _, slot in sorted(best.values())][: min(most, largest)]


@pytest.mark.parametrize(
    ("slots", "claimed", "same"),
    [
        ([1, 2], [2, 1], True),
        ([1, 2], [1, 2, 2], True),
        ([1, 1], [1], False),
        ([1], [1, 2], False),
        ([1, 2, 3], [1, 2], False),
        ([], [1], False),
        ([4], [5], False),
        ([1, 1], [1, 2], False),
    ],
)
def test_exactly(slots, claimed, same):
    assert decision.exactly(np.array(slots, np.int64), claimed) is same


def test_a_search_does_the_same_work_whoever_matches():
    """Compute may send the same scores under many slots and link them as it likes."""
    policy = Policy(verification_threshold=0.4, identification_threshold=0.4, max_candidates=5)
    slots = np.arange(1, 20_001)
    leads = dict.fromkeys(range(2, 20_001), 1)

    def steps(distance: float) -> int:
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            count += event == "line"
            return trace

        sys.settrace(trace)
        try:
            decision.identify(policy, slots, np.full(slots.size, distance), leads, 5)
        finally:
            sys.settrace(None)
        return count

    assert abs(steps(0.1) - steps(0.9)) < 50
