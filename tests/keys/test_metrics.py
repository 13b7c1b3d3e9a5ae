"""What Prometheus is told of decisions: how many, later, and nothing of whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from sealface.keys.metrics import TOGETHER
from sealface.protocol.policy import Budget
from sealface_protos.keys.v1 import decision_pb2, key_pb2, key_service_pb2
from tests.conftest import POLICY, near, person
from tests.keys.conftest import ask, create_key, keyed, new_key
from tests.keys.test_decide import _tampered

ME = person(0)
MATCH, NO_MATCH, REFUSED = decision_pb2.OUTCOME_MATCH, decision_pb2.OUTCOME_NO_MATCH, decision_pb2.OUTCOME_REFUSED
STATES = ("enabled", "disabled", "quarantined", "destroy_scheduled", "destroyed")


def decisions(suite, key="door", operation="identify"):
    """Matches, others, refusals as they are told."""
    outcomes = ("match", "no_match", "refused")
    labels = {"key": key, "operation": operation}
    return [suite.metric("keys", "sealface_decisions_total", outcome=outcome, **labels) for outcome in outcomes]


def refusals(suite, reason, key="door"):
    return suite.metric("keys", "sealface_refusals_total", key=key, reason=reason)


@pytest.fixture
def search(door_key, alice):
    """Asks whether somebody is found; the outcome."""
    results = {found: door_key.results({1: ME if found else near(ME, 0.9)}) for found in (True, False)}

    async def ask_once(found=True, **changed):
        return (await door_key.decide(ask(alice, door_key.probe, **changed), results[found])).outcome

    return ask_once


async def test_decisions_are_told_so_many_at_once(suite, search):
    for number in range(TOGETHER - 1):
        assert await search(number % 4 == 0) == (MATCH if number % 4 == 0 else NO_MATCH)
        assert decisions(suite) == [0, 0, 0]
    assert await search() == MATCH
    matches = TOGETHER // 4 + 1
    assert decisions(suite) == [matches, TOGETHER - matches, 0]
    await search()
    assert decisions(suite) == [matches, TOGETHER - matches, 0]
    assert suite.metric("keys", "sealface_opening_seconds_count", operation="identify") == TOGETHER + 1
    assert suite.metric("keys", "sealface_opening_seconds_sum", operation="identify") > 0


async def test_no_metric_tells_a_match_from_another_decision(suite, search):
    """Whatever a single decision is, what can be scraped before and after it differs by its time alone."""

    def told():
        return {name: n for name, n in suite.metrics("keys").items() if not name[0].endswith(("_sum", "_bucket"))}

    await search()
    moved = []
    for found in (True, False, True):
        before = told()
        await search(found)
        after = told()
        assert after.keys() == before.keys()
        moved.append({name: after[name] - before[name] for name in after if after[name] != before[name]})
    assert moved == [{("sealface_opening_seconds_count", "identify"): 1}] * 3


async def test_verifications_and_searches_are_told_apart_and_not_by_each_other(suite, door_key, alice, search):
    verified = door_key.results({1: ME})
    for _ in range(TOGETHER - 1):
        await search()
    for _ in range(TOGETHER - 1):
        await door_key.decide(ask(alice, door_key.probe, claimed_slots=[1]), verified)
    assert decisions(suite) == decisions(suite, operation="verify") == [0, 0, 0]
    await door_key.decide(ask(alice, door_key.probe, claimed_slots=[1]), verified)
    assert decisions(suite, operation="verify") == [TOGETHER, 0, 0]
    assert decisions(suite) == [0, 0, 0]


async def test_refusals_are_told_by_reason_with_their_decisions(suite, client, scheme, alice):
    rule = replace(POLICY, budget=Budget(decisions_per_hour=5))
    door = await keyed(client, scheme, await create_key(client, key=new_key(rule)))
    results = door.results({1: ME})
    found = [(await door.decide(ask(alice, door.probe), results)).outcome for _ in range(TOGETHER - 1)]
    assert found == [MATCH] * 5 + [REFUSED] * (TOGETHER - 6)
    assert (refusals(suite, "budget"), refusals(suite, "malformed")) == (0, 0)
    await door.decide(ask(alice, door.probe), results)
    assert decisions(suite) == [5, 0, TOGETHER - 5]
    assert (refusals(suite, "budget"), refusals(suite, "malformed")) == (TOGETHER - 5, 0)


async def test_alarms_are_told_with_their_decisions(suite, door_key, alice, search):
    def told():
        return suite.metric("keys", "sealface_alarms_total", key="door", alarm="quarantine")

    bad = [_tampered(door_key, door_key.results({1: ME})[0])]
    for _ in range(3):
        await door_key.decide(ask(alice, door_key.probe), bad)
    assert told() == 0
    states = {state: suite.metric("keys", "sealface_key_versions", key="door", state=state) for state in STATES}
    assert states == dict.fromkeys(STATES) | {"quarantined": 1}
    state = key_pb2.KEY_VERSION_STATE_ENABLED
    enable = key_service_pb2.UpdateKeyVersionRequest(name="keys/door/versions/1", state=state)
    await door_key.client.keys.UpdateKeyVersion(enable)
    for _ in range(TOGETHER - 3):
        await search()
    assert told() == 1
    assert refusals(suite, "not_genuine") == 3


async def test_a_key_that_is_none_has_no_name(suite, search):
    """Whoever asks chose it: it would make as many series as somebody likes, and say what somebody likes."""
    for number in range(TOGETHER):
        assert await search(key_version=f"keys/subject-{number}/versions/1") == REFUSED
    assert decisions(suite, "") == [0, 0, TOGETHER]
    assert refusals(suite, "key_version", "") == TOGETHER
    assert "subject-" not in generate_latest(suite._servers["keys"].registry).decode()


async def test_key_versions_are_told_by_state(suite, client, door_key, search):
    def told(state):
        return suite.metric("keys", "sealface_key_versions", key="door", state=state)

    assert (told("enabled"), told("destroyed")) == (1, None)
    assert suite.metric("keys", "sealface_key_versions_in_memory") == 0
    assert suite.metric("keys", "sealface_sealed") == 0
    await search()
    assert suite.metric("keys", "sealface_key_versions_in_memory") == 1
    rotate = key_service_pb2.RotateKeyRequest(name="keys/door", primary_version="keys/door/versions/1")
    await client.keys.RotateKey(rotate)
    assert told("enabled") == 2
    await client.keys.DestroyKeyVersion(key_service_pb2.DestroyKeyVersionRequest(name="keys/door/versions/1"))
    assert (told("enabled"), told("destroy_scheduled")) == (1, 1)
    assert suite.metric("keys", "sealface_key_versions_in_memory") == 0
