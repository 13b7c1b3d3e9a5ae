"""The short form of the chaos test; and its model, which must find what is wrong."""

from __future__ import annotations

import os
import random

import pytest

from tests.system.chaos.model import Before, Findings, Person, State
from tests.system.chaos.scenario import SCENARIOS, Scenario, run
from tests.system.conftest import People

SOAK = bool(os.environ.get("SEALFACE_SOAK"))
KILLS = {"embedded": 4, "deployed": 6, "cluster": 6}  # each component once
QUICK = [scenario for scenario in SCENARIOS if SOAK or not scenario.ray]


@pytest.mark.servers
@pytest.mark.timeout(3000 if SOAK else 600)
@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
async def test_killed_components_lose_nothing_and_every_failure_may_be_repeated(scenario: Scenario) -> None:
    seed = int(os.environ.get("SEALFACE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    print(f"SEALFACE_SEED={seed}")
    kills = 34 if SOAK else KILLS[scenario.name]
    findings = await run(scenario, kills, seed)
    assert findings.details == []
    assert len(findings.kills) == KILLS[scenario.name]
    assert findings.kills.total() >= kills
    assert findings.counts["retryable_errors"], "no call noticed a kill: the load is too small"
    assert findings.calls["rotate"], "no gallery was moved"
    assert all(findings.calls[kind] > 3 for kind in ("enroll", "erase", "verify", "identify")), findings.calls


@pytest.fixture
def ann(people: People) -> Person:
    return Person("ann", people.somebody(), "once")


@pytest.mark.parametrize(
    ("state", "named", "fault"),
    [
        (State.ENROLLED, ["ann"], None),
        (State.ENROLLED, [], "lost"),
        (State.ENROLLED, ["ann", "bob"], "wrong"),
        (State.ERASED, [], None),
        (State.ERASED, ["ann"], "resurrected"),
        (State.OPEN, ["ann"], None),
        (State.OPEN, [], None),
        (State.OPEN, ["bob"], "wrong"),
    ],
)
def test_whom_a_search_names(ann: Person, state: State, named: list[str], fault: str | None) -> None:
    findings = Findings()
    ann.settle(state)
    findings.named(Before.of(ann), named)
    assert findings.counts == ({fault: 1} if fault else {})
    assert findings.clean is (fault is None)
    assert len(findings.details) == (fault is not None)


@pytest.mark.parametrize(
    ("state", "genuine", "match", "fault"),
    [
        (State.ENROLLED, True, True, None),
        (State.ENROLLED, False, False, None),
        (State.ENROLLED, True, False, "wrong"),
        (State.ENROLLED, False, True, "wrong"),
        (State.ENROLLED, True, None, "lost"),
        (State.ERASED, True, None, None),
        (State.ERASED, True, True, "resurrected"),
        (State.ERASED, False, False, "resurrected"),
        (State.OPEN, True, None, None),
        (State.OPEN, True, True, None),
        (State.OPEN, True, False, "wrong"),
    ],
)
def test_what_a_verification_says(
    ann: Person, state: State, genuine: bool, match: bool | None, fault: str | None
) -> None:
    findings = Findings()
    ann.settle(state)
    findings.verified(Before.of(ann), genuine, match)
    assert findings.counts == ({fault: 1} if fault else {})


@pytest.mark.parametrize("named", [[], ["ann"]])
def test_a_call_that_overlaps_a_change_may_see_either(ann: Person, named: list[str]) -> None:
    findings = Findings()
    ann.settle(State.ENROLLED)
    before = Before.of(ann)
    ann.begin()
    findings.named(before, named)
    ann.settle(State.ERASED)
    findings.named(before, named)
    assert findings.clean
