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


def links_of(leads):
    return np.array(list((leads or {}).items()), np.uint32).reshape(-1, 2)


def identify(distances, slots=None, leads=None, most=10, **changed):
    slots = np.arange(1, len(distances) + 1) if slots is None else np.array(slots)
    slots, distances = slots.astype(np.uint32), np.array(distances, float)
    before = slots.copy(), distances.copy()
    answer = decision.identify(policy(**changed), slots, distances, links_of(leads), most)
    assert (slots == before[0]).all() and (distances == before[1]).all()  # they are the caller's
    return answer


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
    # beyond the curve its line goes on, 0.1 a decade, until nothing is named, even a perfect match
    assert slots_of(identify([0.06] + [1.5] * 299, **ruled)) == []
    assert slots_of(identify([0.04] + [1.5] * 299, **ruled)) == [1]
    assert slots_of(identify([0.0] + [1.5] * 1999, **ruled)) == []


def test_of_equal_templates_of_a_subject_the_first_slot_is_named():
    assert slots_of(identify([0.2, 0.2, 0.2], [9, 4, 7], {4: 2, 7: 2, 9: 2})) == [4]
    assert slots_of(identify([0.2, 0.1, 0.1], [9, 7, 4], {7: 4, 9: 4})) == [4]


def test_a_subject_is_one_also_where_its_first_template_was_not_compared():
    # slot 2 was erased with nobody else, or the search did not get there
    assert slots_of(identify([0.3, 0.2, 0.25], [5, 6, 7], {5: 2, 6: 2})) == [6, 7]


def test_links_to_slots_that_were_not_compared_change_nothing():
    distances, slots = [0.3, 0.1, 0.2], [10, 20, 30]
    for leads in ({1: 2}, {2**32 - 1: 1}, {11: 10}, {9: 30, 31: 9}, {10: 10, 20: 20}):
        assert slots_of(identify(distances, slots, leads)) == [20, 30, 10], leads
    assert slots_of(identify([], [], {1: 2})) == []


def plainly(distances, slots, leads, limit):
    """Slots by the definition: each subject by its nearest template, of equal ones the lowest slot."""
    best: dict[int, tuple[float, int]] = {}
    for distance, slot in zip(distances, slots, strict=True):
        subject = leads.get(slot, slot)
        if distance <= 0.4:
            best[subject] = min(best.get(subject, (9.0, 0)), (distance, slot))
    return [slot for _, slot in sorted(best.values())][:limit]


@given(
    distances=st.lists(st.integers(0, 12).map(lambda i: i / 20), max_size=12),
    owners=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    slots=st.lists(st.integers(1, 40), min_size=12, max_size=12, unique=True),
    most=st.integers(1, 10),
    largest=st.integers(1, 10),
)
def test_a_search_equals_the_plain_definition(distances, owners, slots, most, largest):
    slots = slots[: len(distances)]
    by_owner: dict[int, list[int]] = {}
    for slot, owner in zip(slots, owners, strict=False):
        by_owner.setdefault(owner, []).append(slot)
    leads = {slot: min(own) for own in by_owner.values() for slot in own if slot != min(own)}
    answer = identify(distances, slots, leads, most, max_candidates=largest)
    assert slots_of(answer) == plainly(distances, slots, leads, min(most, largest))


@pytest.mark.parametrize("seed", range(20))
def test_a_large_search_equals_the_plain_definition(seed):
    """Many templates of many subjects, few different distances, slots in any order, some of them not searched."""
    rng = np.random.default_rng(seed)
    count = 3000
    slots = rng.permutation(np.arange(1, 2 * count))[:count]
    subjects = rng.integers(0, count // 3, 2 * count)  # by slot, also of those that were not searched
    first = {int(s): int(np.flatnonzero(subjects == s)[0]) + 1 for s in np.unique(subjects)}
    leads = {slot: first[int(subjects[slot - 1])] for slot in range(1, 2 * count + 1)}
    leads = {slot: lead for slot, lead in leads.items() if slot != lead}
    distances = rng.integers(0, 30, count) / 40
    answer = identify(distances, slots, leads, 10, max_candidates=10)
    assert slots_of(answer) == plainly(distances.tolist(), slots.tolist(), leads, 10)


@pytest.mark.parametrize(
    ("slots", "once"),
    [([], True), ([5], True), ([1, 2, 3], True), ([3, 1, 2], True), ([1, 1], False), ([4, 9, 1, 9], False)],
)
def test_each_once(slots, once):
    assert decision.each_once(np.array(slots, np.uint32)) is once


@given(st.lists(st.integers(0, 2**32 - 1), max_size=8))
def test_each_once_is_what_a_set_says(slots):
    assert decision.each_once(np.array(slots, np.uint32)) is (len(set(slots)) == len(slots))


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
    slots = np.arange(1, 20_001, dtype=np.uint32)
    links = links_of(dict.fromkeys(range(2, 20_001), 1))

    def steps(distance: float) -> int:
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            count += event == "line"
            return trace

        sys.settrace(trace)
        try:
            decision.identify(policy, slots, np.full(slots.size, distance), links, 5)
        finally:
            sys.settrace(None)
        return count

    assert abs(steps(0.1) - steps(0.9)) < 50
