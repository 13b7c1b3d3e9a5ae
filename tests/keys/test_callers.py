import time

import pytest

from sealface.keys.callers import CallerNotFound, Callers, NonceUsed, Role
from sealface.protocol.signing import Credential
from sealface.storage.database import open_sqlite
from sealface.storage.keys import metadata
from sealface_protos.keys.v1 import caller_pb2, key_service_pb2
from tests.conftest import dump, refused

VERIFIER, OPERATOR = caller_pb2.CALLER_ROLE_VERIFIER, caller_pb2.CALLER_ROLE_OPERATOR


async def create(client, caller_id="bob", key=bytes(32), role=VERIFIER):
    caller = caller_pb2.Caller(verifying_key=key, role=role)
    return await client.keys.CreateCaller(key_service_pb2.CreateCallerRequest(caller_id=caller_id, caller=caller))


async def test_a_caller_is_registered_listed_and_withdrawn(client):
    made = await create(client)
    assert (made.name, made.verifying_key, made.role) == ("callers/bob", bytes(32), VERIFIER)
    await create(client, "alice", role=OPERATOR)
    first = await client.keys.ListCallers(key_service_pb2.ListCallersRequest(page_size=2))
    assert [caller.name for caller in first.callers] == ["callers/alice", "callers/bob"]
    rest = await client.keys.ListCallers(
        key_service_pb2.ListCallersRequest(page_size=2, page_token=first.next_page_token)
    )
    assert ([caller.name for caller in rest.callers], rest.next_page_token) == (["callers/operator"], "")
    await client.keys.DeleteCaller(key_service_pb2.DeleteCallerRequest(name="callers/bob"))
    left = await client.keys.ListCallers(key_service_pb2.ListCallersRequest())
    assert [caller.name for caller in left.callers] == ["callers/alice", "callers/operator"]


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"caller_id": ""}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"caller_id": "Bob"}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"role": 0}, "INVALID_ARGUMENT", "MISSING_FIELD"),
        ({"role": 9}, "INVALID_ARGUMENT", "MISSING_FIELD"),
        ({"key": b""}, "INVALID_ARGUMENT", "INVALID_CALLER"),
        ({"key": bytes(33)}, "INVALID_ARGUMENT", "INVALID_VERIFYING_KEY"),
        ({"caller_id": "operator"}, "ALREADY_EXISTS", "CALLER_EXISTS"),
    ],
)
async def test_a_wrong_caller_is_refused(client, suite, fields, code, reason):
    with refused(code, reason):
        await create(client, **fields)
    assert len(dump(suite.keys / "keys.db")["callers"]) == 1


async def test_a_caller_that_is_not_there_cannot_be_withdrawn(client):
    with refused("NOT_FOUND", "CALLER_NOT_FOUND"):
        await client.keys.DeleteCaller(key_service_pb2.DeleteCallerRequest(name="callers/none"))


async def test_a_withdrawn_operator_may_nothing_more(client, suite):
    second = Credential.generate("callers/second")
    await create(client, "second", second.verifying_key, OPERATOR)
    other = suite.client(second)
    await create(other, "made-by-second")
    await client.keys.DeleteCaller(key_service_pb2.DeleteCallerRequest(name="callers/second"))
    with refused("UNAUTHENTICATED", "UNKNOWN_CALLER"):
        await create(other, "another")


@pytest.fixture
def callers(tmp_path):
    return Callers(open_sqlite(tmp_path / "keys.db", metadata))


def take(callers, nonce, expires):
    with callers.consume(nonce, expires):
        pass


def test_a_nonce_is_accepted_once_also_after_a_restart(callers, tmp_path):
    expires = time.time() + 60
    take(callers, bytes(32), expires)
    for held in (callers, Callers(open_sqlite(tmp_path / "keys.db", metadata))):
        with pytest.raises(NonceUsed):
            take(held, bytes(32), expires)
    take(callers, bytes([1]) * 32, expires)


def test_nonces_are_forgotten_only_after_they_would_be_refused_as_expired(callers, tmp_path, monkeypatch):
    now = time.time()
    take(callers, b"a" * 32, now + 10)
    monkeypatch.setattr(time, "time", lambda: now + 11)
    take(callers, b"b" * 32, now + 600)
    with pytest.raises(NonceUsed):
        take(callers, b"a" * 32, now + 10)
    monkeypatch.setattr(time, "time", lambda: now + 300)
    take(callers, b"c" * 32, now + 600)
    held = {row[0] for row in dump(tmp_path / "keys.db")["nonces"]}
    assert held == {b"b" * 32, b"c" * 32}


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_nonce_of_another_size_is_refused(callers, nonce):
    with pytest.raises(NonceUsed):
        take(callers, nonce, time.time())


def test_the_operator_of_the_start_replaces_the_one_before(callers):
    callers.ensure_operator("operator", b"a" * 32)
    callers.ensure_operator("operator", b"b" * 32)
    assert callers.get("callers/operator").verifying_key == b"b" * 32
    assert callers.get("callers/operator").role is Role.OPERATOR
    with pytest.raises(CallerNotFound):
        callers.get("callers/other")
