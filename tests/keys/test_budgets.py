"""What a caller may ask of a key: counted durably, by hour and key version, decisions apart from comparisons."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from sealface.keys import budgets
from sealface.keys.budgets import SLICE_S, Account
from sealface.protocol.policy import Budget
from sealface.protocol.signing import Credential
from sealface.storage.schema import KEYS
from sealface_protos.keys.v1 import decision_pb2, key_service_pb2
from tests.conftest import POLICY, both_schemes, near, person, refused
from tests.keys.conftest import BOX_BYTES, ask, create_key, keyed, new_key

ME = person(0)
MATCH, REFUSED = decision_pb2.OUTCOME_MATCH, decision_pb2.OUTCOME_REFUSED
ALICE = Account("alice", "door", 1)


def is_spent(decision):
    if decision.outcome != REFUSED:
        return False
    assert decision.refusal == decision_pb2.REFUSAL_BUDGET
    assert not decision.candidates
    return True


async def door_with(client, scheme, **budget):
    rule = replace(POLICY, budget=Budget(**budget))
    return await keyed(client, scheme, await create_key(client, key=new_key(rule)))


# --- by themselves


@pytest.fixture
def engine(tmp_path):
    engine = KEYS.open_file(tmp_path / "keys.db")
    yield engine
    engine.dispose()


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1_700_000_100.0

    monkeypatch.setattr(time, "time", lambda: Clock.now)
    return Clock


def decide(engine, account=ALICE, **budget):
    with engine.begin() as transaction:
        return budgets.charge_decisions(transaction, account, Budget(**budget))


def compare(engine, count, account=ALICE, **budget):
    with engine.begin() as transaction:
        return budgets.charge_comparisons(transaction, account, Budget(**budget), count)


def test_the_hour_slides(engine, clock):
    """Of no 3,600 seconds, wherever they begin, more than the budget is spent; it is free again five minutes later."""
    spent = []
    for _ in range(400):
        if decide(engine, decisions_per_hour=7):
            spent.append(clock.now)
        clock.now += 37.0
    assert len(spent) > 20
    for first, eighth in zip(spent, spent[7:], strict=False):
        assert 3600 < eighth - first <= 3600 + SLICE_S + 37


def test_a_caller_a_key_and_a_version_have_accounts_of_their_own(engine, clock):
    assert decide(engine, decisions_per_hour=1)
    assert not decide(engine, decisions_per_hour=1)
    assert not decide(engine, replace(ALICE, version=2), decisions_per_hour=1)  # the hour is of the key
    assert decide(engine, replace(ALICE, caller="bob"), decisions_per_hour=1)
    assert decide(engine, replace(ALICE, key="gate"), decisions_per_hour=1)


def test_decisions_of_a_version_do_not_come_back(engine, clock):
    for _ in range(3):
        assert decide(engine, decisions_per_version=3)
        clock.now += 10_000
    clock.now += 10**7
    assert not decide(engine, decisions_per_version=3)
    assert decide(engine, replace(ALICE, version=2), decisions_per_version=3)


def test_comparisons_are_counted_apart(engine, clock):
    assert compare(engine, 60, comparisons_per_hour=100)
    assert not compare(engine, 41, comparisons_per_hour=100)
    assert compare(engine, 40, comparisons_per_hour=100)
    assert not compare(engine, 1, comparisons_per_hour=100)
    assert compare(engine, 0, comparisons_per_hour=100)
    assert decide(engine, decisions_per_hour=1)
    clock.now += 3600 + SLICE_S
    assert compare(engine, 100, comparisons_per_hour=100)
    with engine.begin() as connection:
        (usage,) = budgets.usage(connection, "door")
    assert (usage.decisions, usage.comparisons) == (0, 100)
    assert (usage.decisions_of_version, usage.comparisons_of_version) == (1, 200)


def test_a_clock_that_is_set_back_gives_nothing_away(engine, clock):
    assert decide(engine, decisions_per_hour=1)
    clock.now -= 30 * 86_400
    assert not decide(engine, decisions_per_hour=1)


# --- in the box


@both_schemes
async def test_decisions_beyond_the_budget_are_refused_in_the_box(suite, client, scheme, alice):
    door = await door_with(client, scheme, decisions_per_hour=3)
    results = door.results({1: ME})
    answers = [await door.decide(ask(alice, door.probe, claimed_slots=[1]), results) for _ in range(5)]
    assert [is_spent(answer) for answer in answers] == [False] * 3 + [True] * 2
    assert [answer.outcome for answer in answers[:3]] == [MATCH] * 3
    await suite.restart("keys")
    sealed = await door.sealed(ask(alice, door.probe), results)
    assert len(sealed.box) == BOX_BYTES
    bob = Credential.generate("callers/bob")
    await client.create_caller("bob", bob.verifying_key)
    assert (await door.decide(ask(bob, door.probe), results)).outcome == MATCH


async def test_what_is_refused_for_the_budget_tells_nothing_else(client, scheme, alice):
    """Nor a replay, nor whether results were genuine: those would be bits beyond the budget."""
    door = await door_with(client, scheme, decisions_per_hour=1)
    (result,) = results = door.results({1: ME})
    await door.decide(ask(alice, door.probe), results)
    broken = decision_pb2.ScoreResult(columns=1, ciphertext=b"x", slots=result.slots)
    for sent in (results, [broken], results * 2, []):
        assert is_spent(await door.decide(ask(alice, door.probe), sent))
    version = await client.keys.GetKeyVersion(key_service_pb2.GetKeyVersionRequest(name="keys/door/versions/1"))
    assert version.state == 1  # nor does it count towards a quarantine


async def test_what_is_refused_is_opened_and_decided_all_the_same(client, scheme, alice, monkeypatch):
    from sealface.keys import judge

    door = await door_with(client, scheme, decisions_per_hour=1)
    results = door.results({slot: person(slot) for slot in range(1, 100)})
    done = []
    opening, deciding = judge.open_results, judge.decision.identify
    monkeypatch.setattr(judge, "open_results", lambda *a, **k: done.append(len(a[2])) or opening(*a, **k))
    monkeypatch.setattr(judge.decision, "identify", lambda *a: done.append(a[1].size) or deciding(*a))
    work = []
    for _ in range(2):
        done.clear()
        await door.decide(ask(alice, door.probe), results)
        work.append(list(done))
    assert work[0] == work[1]
    assert work[0][-1] == 99


async def test_comparisons_beyond_the_budget_are_refused_before_anything_is_told(client, scheme, alice):
    door = await door_with(client, scheme, comparisons_per_hour=100)
    gallery = {slot: person(slot) for slot in range(1, 41)} | {1: ME}
    results = door.results(gallery)
    answers = [await door.decide(ask(alice, door.probe), results) for _ in range(3)]
    assert [is_spent(answer) for answer in answers] == [False, False, True]
    assert not is_spent(await door.decide(ask(alice, door.probe, claimed_slots=[1]), door.results({1: ME})))
    spent = (await client.audit.usage("door")).spent
    assert [(one.decisions, one.comparisons) for one in spent] == [(4, 81)]


async def test_a_search_counts_for_each_subject_that_it_names(client, scheme, alice):
    door = await door_with(client, scheme, decisions_per_hour=7)
    results = door.results({slot: near(ME, 0.01 * slot) for slot in range(1, 4)})
    answers = [await door.decide(ask(alice, door.probe), results) for _ in range(3)]
    assert [is_spent(answer) for answer in answers] == [False, False, True]
    spent = (await client.audit.usage("door")).spent
    assert spent[0].decisions == 7  # of the third the first, and nothing was told
    assert len(answers[0].candidates) == 3


async def test_of_many_at_once_no_more_than_the_budget_are_decided(client, scheme, alice):
    door = await door_with(client, scheme, decisions_per_hour=5)
    results = door.results({1: ME})
    answers = await asyncio.gather(*(door.decide(ask(alice, door.probe), results) for _ in range(16)))
    assert sum(not is_spent(answer) for answer in answers) == 5


async def test_a_replay_costs_nothing(client, scheme, alice):
    door = await door_with(client, scheme, decisions_per_hour=2)
    asked = ask(alice, door.probe)
    await door.decide(asked)
    for _ in range(3):
        with refused("FAILED_PRECONDITION", "NONCE_USED"):
            await door.decide(asked)
    assert not is_spent(await door.decide(ask(alice, door.probe)))


async def test_a_new_version_begins_anew_and_a_larger_budget_counts_at_once(client, scheme, alice):
    door = await door_with(client, scheme, decisions_per_version=1)
    assert not is_spent(await door.decide(ask(alice, door.probe)))
    assert is_spent(await door.decide(ask(alice, door.probe)))
    first = door.key.primary_version
    await client.keys.RotateKey(key_service_pb2.RotateKeyRequest(name="keys/door", primary_version=first))
    assert not is_spent(await door.decide(ask(alice, door.probe, key_version="keys/door/versions/2")))
    policy = await client.policy("door")
    await client.update_policy("door", replace(policy, budget=Budget(decisions_per_version=2)))
    assert not is_spent(await door.decide(ask(alice, door.probe)))
    assert is_spent(await door.decide(ask(alice, door.probe)))


async def test_who_is_deleted_and_registered_again_has_spent_what_it_has(client, scheme, alice):
    door = await door_with(client, scheme, decisions_per_hour=1)
    await door.decide(ask(alice, door.probe))
    await client.keys.DeleteCaller(key_service_pb2.DeleteCallerRequest(name=alice.caller))
    again = Credential.generate(alice.caller)
    await client.create_caller("alice", again.verifying_key)
    assert is_spent(await door.decide(ask(again, door.probe)))
