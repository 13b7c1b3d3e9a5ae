"""Results that are not genuine: a caller learns that its request was refused, the key version is put away."""

from __future__ import annotations

import time

import pytest

from sealface.keys import lifecycle
from sealface.keys.judge import MOST_STRIKES
from sealface.protocol.audit import Entry
from sealface_protos.keys.v1 import decision_pb2, key_pb2, key_service_pb2
from tests.conftest import both_schemes, execute, person, refused, select
from tests.keys.conftest import BOX_BYTES, ask
from tests.keys.test_decide import _changed, _tampered

ME = person(0)
VERSION = "keys/door/versions/1"
ENABLED, QUARANTINED = key_pb2.KEY_VERSION_STATE_ENABLED, key_pb2.KEY_VERSION_STATE_QUARANTINED


async def state(client):
    return (await client.keys.GetKeyVersion(key_service_pb2.GetKeyVersionRequest(name=VERSION))).state


async def refusal(door, alice, results):
    sealed = await door.sealed(asked := ask(alice, door.probe), results)
    assert len(sealed.box) == BOX_BYTES
    return decision_pb2.Refusal.Name(asked.read(sealed).refusal).removeprefix("REFUSAL_")


@both_schemes
async def test_so_many_within_an_hour_put_the_version_into_quarantine(suite, client, door_key, alice):
    good = door_key.results({1: ME})
    bad = [_tampered(door_key, good[0])]
    for strike in range(1, MOST_STRIKES + 1):
        assert await state(client) == ENABLED
        assert await refusal(door_key, alice, bad) == "NOT_GENUINE"
        assert len(select(suite.keys / "keys.db", "SELECT * FROM strikes")) == strike % MOST_STRIKES
    assert await state(client) == QUARANTINED
    for sent in (good, bad):
        assert await refusal(door_key, alice, sent) == "QUARANTINE"
    await suite.restart("keys")
    assert await refusal(door_key, alice, good) == "QUARANTINE"
    # the operator sees it, and looks, and enables it: then it counts anew
    (alarm,) = await client.audit.alarms()
    assert (alarm.resource, alarm.detail["alarm"], alarm.detail["key_version"]) == (alice.caller, "quarantine", VERSION)
    noted = [Entry.parse(line) async for line in client.audit.lines(act="QuarantineKeyVersion")]
    assert [(entry.actor, entry.resource) for entry in noted] == [("service", VERSION)]
    enable = key_service_pb2.UpdateKeyVersionRequest(name=VERSION, state=ENABLED)
    await client.keys.UpdateKeyVersion(enable)
    assert await refusal(door_key, alice, bad) == "NOT_GENUINE"
    assert await refusal(door_key, alice, good) == "UNSPECIFIED"
    assert await state(client) == ENABLED


async def test_a_request_is_one_strike_however_many_results_are_wrong(client, door_key, alice):
    good = door_key.results({slot: person(slot) for slot in range(1, 200)})
    assert await refusal(door_key, alice, [_tampered(door_key, result) for result in good]) == "NOT_GENUINE"
    assert await state(client) == ENABLED


async def test_strikes_lapse(suite, client, door_key, alice, monkeypatch):
    bad = [_tampered(door_key, door_key.results({1: ME})[0])]
    for _ in range(3 * MOST_STRIKES):
        await refusal(door_key, alice, bad)
        ago = time.time() - lifecycle.STRIKES_COUNT_S * 0.6
        # two of three within an hour at most
        execute(suite.keys / "keys.db", "UPDATE strikes SET time = time - ?", time.time() - ago)
    assert await state(client) == ENABLED


@pytest.mark.parametrize("wrong", ["malformed", "slots"])
async def test_what_is_only_wrong_is_no_strike(client, door_key, alice, wrong):
    (good,) = door_key.results({1: ME})
    sent = [_changed(good, ciphertext=b"x")] if wrong == "malformed" else [good, good]
    for _ in range(2 * MOST_STRIKES):
        assert await refusal(door_key, alice, sent) == wrong.upper()
    assert await state(client) == ENABLED


async def test_in_quarantine_nothing_is_renewed_either(suite, client, door_key, alice):
    bad = [_tampered(door_key, door_key.results({1: ME})[0])]
    for _ in range(MOST_STRIKES):
        await refusal(door_key, alice, bad)
    shape = door_key.layout.sealed_shapes[0]
    header = key_service_pb2.RenewBlockHeader(key_version=VERSION, columns=shape.columns, cleared=bytes(64))
    with refused("FAILED_PRECONDITION", "KEY_VERSION_QUARANTINED"):
        async for _ in client.keys.RenewBlock(iter([key_service_pb2.RenewBlockRequest(header=header)])):
            pass
