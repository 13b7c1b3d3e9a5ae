"""The key service's audit log: what is in it, what is not, and that it can be trusted."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import grpc
import pytest
import sqlalchemy as sa

from sealface.protocol.audit import BEGUN, AuditLogBroken, Entry, check
from sealface.protocol.policy import Policy
from sealface.protocol.signing import Credential
from sealface.storage import chain, keys
from sealface.storage.database import open_database, reading
from sealface_client import ServiceError
from sealface_protos.keys.v1 import audit_pb2, key_service_pb2
from tests.conftest import POLICY, execute, near, person, refused, select
from tests.keys.conftest import ask
from tests.keys.test_operator import OPERATOR, REQUESTS, SERVICE, raw, signed  # noqa: F401 - a fixture among them

ME = person(0)
UNDO = "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete;"


def entries(suite):
    return [Entry.parse(line) for (line,) in select(suite.keys / "keys.db", "SELECT line FROM audit ORDER BY number")]


def of(suite, act):
    return [entry for entry in entries(suite) if entry.act == act]


# --- what is in it


async def test_a_decision_is_there_before_and_after(suite, door_key, alice):
    asked = ask(alice, door_key.probe, claimed_slots=[7])
    await door_key.decide(asked, door_key.results({7: near(ME, 0.2)}))
    before, after = of(suite, "Decide")
    assert (before.actor, before.resource, before.outcome) == (alice.caller, "keys/door/versions/1", BEGUN)
    assert before.detail["gallery"] == "galleries/door"
    assert (before.detail["operation"], before.detail["request_id"]) == ("verify", asked.request.request_id)
    assert (after.begun, after.outcome, after.actor) == (before.number, "match", alice.caller)
    assert before.detail["probe"] == asked.request.probe_digest.hex()
    results = after.detail["results"]
    assert isinstance(results, str)
    assert after.detail == {"policy_version": 1, "compared": 1, "results": results}
    assert len(bytes.fromhex(results)) == 32
    check([entry.line() for entry in entries(suite)])


async def test_whatever_is_decided_is_said(suite, client, door_key, alice):
    results = door_key.results({1: near(ME, 0.9)})
    await door_key.decide(ask(alice, door_key.probe), results)
    await door_key.decide(ask(alice, door_key.probe, claimed_slots=[2]), results)
    await door_key.decide(ask(alice, door_key.probe, key_version="keys/door/versions/9"), results)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_SCORES"):
        await door_key.decide(ask(alice, door_key.probe, claimed_slots=[1]), results * 17)
    outcomes = [entry.outcome for entry in of(suite, "Decide") if entry.outcome != BEGUN]
    assert outcomes == ["no match", "refused: slots", "refused: key_version", "TOO_MANY_SCORES"]


async def test_a_caller_that_gives_up_is_the_end_of_its_request(suite, client, door_key, alice):
    async def never():
        yield key_service_pb2.DecideRequest(request=ask(alice, door_key.probe).signed)
        await asyncio.sleep(60)

    with pytest.raises(grpc.aio.AioRpcError):
        await client.keys.Decide(never(), timeout=0.3)
    for _ in range(100):
        if len(found := of(suite, "Decide")) == 2:
            break
        await asyncio.sleep(0.05)
    assert found[0].outcome == BEGUN
    assert found[1].outcome in ("CANCELLED", "no match")  # gRPC may say that the stream ended, before that it broke


async def test_no_slot_score_or_subject_is_in_it(suite, client, door_key, alice):
    claimed = 1_234_567_891
    await door_key.decide(ask(alice, door_key.probe, claimed_slots=[claimed]), door_key.results({claimed: ME}))
    await door_key.decide(ask(alice, door_key.probe), door_key.results({claimed: ME}))
    text = b"\n".join(entry.line() for entry in entries(suite))
    assert str(claimed).encode() not in text
    assert {name for entry in entries(suite) for name in entry.detail} == {
        "verifying_key",
        "gallery",
        "operation",
        "request_id",
        "claimed",
        "policy_version",
        "compared",
        "probe",
        "results",
    }
    # whoever may ask finds the entries of a slot
    pseudonym = await client.audit.pseudonym("door", claimed)
    assert [entry.detail["claimed"] for entry in entries(suite) if "claimed" in entry.detail] == [[pseudonym]]
    assert pseudonym != await client.audit.pseudonym("other", claimed)
    await suite.restart("keys")
    assert await client.audit.pseudonym("door", claimed) == pseudonym


@pytest.mark.parametrize("method", OPERATOR)
async def test_every_operator_method_is_there_before_and_after(suite, raw, method):  # noqa: F811
    request = REQUESTS[method].SerializeToString()
    try:
        await raw(method, request, signed(suite.operator, method, request))
        failed = False
    except grpc.aio.AioRpcError as error:
        failed = error.code() is not grpc.StatusCode.INTERNAL
        assert failed, error.details()
    before, after = [entry for entry in entries(suite) if entry.act == method][-2:]
    assert (before.actor, before.outcome, after.begun) == ("callers/operator", BEGUN, before.number)
    assert (after.outcome == "ok") == (not failed or SERVICE.methods_by_name[method].server_streaming)
    assert len(before.request) == 64


async def test_a_change_of_policy_is_its_operators(suite, client, door_key):
    await client.update_policy("door", Policy(0.1, 0.1))
    with pytest.raises(ServiceError):
        await client.update_policy("door", Policy(0.2, 0.2))  # of a version that is gone
    found = [(e.actor, e.resource, e.outcome) for e in of(suite, "UpdatePolicy")]
    operator = ("callers/operator", "keys/door")
    assert found == [(*operator, BEGUN), (*operator, "ok"), (*operator, BEGUN), (*operator, "STALE_VERSION")]


async def test_the_operator_of_a_start_is_there_once(suite):
    await suite.restart("keys")
    await suite.restart("keys")
    assert [entry.actor for entry in of(suite, "EnsureOperator")] == ["service"]


async def test_who_proves_nothing_writes_nothing(suite, client, door_key, alice):
    before = entries(suite)
    with refused("UNAUTHENTICATED", "BAD_SIGNATURE"):
        await door_key.decide(ask(alice, door_key.probe, sign_with=Credential.generate("callers/x")))
    with pytest.raises(ServiceError):
        await suite.client(alice).update_policy("door", POLICY)
    assert entries(suite) == before


async def test_a_replay_writes_nothing(suite, door_key, alice):
    asked = ask(alice, door_key.probe)
    await door_key.decide(asked)
    before = entries(suite)
    with refused("FAILED_PRECONDITION", "NONCE_USED"):
        await door_key.decide(asked)
    assert entries(suite) == before


# --- that it can be trusted


async def test_writers_at_once_make_one_chain(suite, client, door_key, alice):
    results = door_key.results({1: ME})
    work = [door_key.decide(ask(alice, door_key.probe), results) for _ in range(20)]
    work += [client.create_caller(f"caller{i}", bytes(32)) for i in range(10)]
    await asyncio.gather(*work)
    found = await client.audit.verify()
    assert found.number >= 60
    assert set(found.unfinished.values()) == {"ExportAudit"}  # the export is in it itself, and not at its end


async def test_a_crash_between_before_and_after_is_an_act_without_an_end(suite, client, door_key, alice, monkeypatch):
    from sealface.keys.judge import Judge

    def crash(*_):
        raise SystemError

    monkeypatch.setattr(Judge, "conclude", crash)
    monkeypatch.setattr(Judge, "abandon", lambda *_: None)
    asked = ask(alice, door_key.probe)
    with refused("INTERNAL", "INTERNAL_ERROR"):
        await door_key.decide(asked)
    monkeypatch.undo()
    await suite.restart("keys")
    (unfinished,) = [n for n, act in (await client.audit.verify()).unfinished.items() if act == "Decide"]
    assert entries(suite)[unfinished - 1].detail["request_id"] == asked.request.request_id
    # its nonce and its decision are spent
    with refused("FAILED_PRECONDITION", "NONCE_USED"):
        await door_key.decide(asked)
    assert (await client.audit.usage("door")).spent[0].decisions == 1


async def test_what_cannot_be_logged_is_not_done(suite, client, door_key, alice):
    execute(
        suite.keys / "keys.db",
        "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no room'); END",
    )
    nonces = select(suite.keys / "keys.db", "SELECT * FROM nonces")
    with refused("INTERNAL", "INTERNAL_ERROR"):
        await door_key.decide(ask(alice, door_key.probe), door_key.results({1: ME}))
    with pytest.raises(ServiceError):
        await client.update_policy("door", Policy(0.9, 0.9))
    assert (await client.policy("door")).verification_threshold == POLICY.verification_threshold
    assert select(suite.keys / "keys.db", "SELECT * FROM nonces") == nonces


async def test_the_service_itself_cannot_change_what_is_written(suite, door_key):
    for statement in ("UPDATE audit SET act = 'x'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            execute(suite.keys / "keys.db", statement)


@pytest.fixture
async def grown(suite, client, door_key, alice):
    """A log with decisions in it, and its head from before the last of them."""
    for _ in range(3):
        await door_key.decide(ask(alice, door_key.probe, claimed_slots=[1]), door_key.results({1: ME}))
    head = await client.audit.head()
    await door_key.decide(ask(alice, door_key.probe), door_key.results({1: ME}))
    assert (await client.audit.verify(head)).number > head.number
    with sqlite3.connect(suite.keys / "keys.db") as connection:
        connection.executescript(UNDO)
    return head


def offline(suite, head=None):
    engine = open_database(f"sqlite:///{suite.keys / 'keys.db'}")
    try:
        with reading(engine).begin() as connection:
            return check(chain.lines(connection, keys.audit), head)
    finally:
        engine.dispose()


CHANGES = {
    "changed": "UPDATE audit SET line = replace(line, 'callers/alice', 'callers/malic') WHERE number = {last} - 4",
    "changed with its digest": "UPDATE audit SET line = x'7b7d', digest = x'00' WHERE number = {last} - 4",
    "act alone": "UPDATE audit SET act = 'Alarm' WHERE number = {last} - 4",
    "deleted": "DELETE FROM audit WHERE number = {last} - 4",
    "first deleted": "DELETE FROM audit WHERE number = 1",
    "deleted and closed up": "DELETE FROM audit WHERE number = {last} - 4; "
    "UPDATE audit SET number = number - 1 WHERE number > {last} - 4",
    "reordered": "UPDATE audit SET number = -1 WHERE number = {last} - 4; "
    "UPDATE audit SET number = {last} - 4 WHERE number = {last} - 5; "
    "UPDATE audit SET number = {last} - 5 WHERE number = -1",
    "inserted": "INSERT INTO audit SELECT number + 1000, act, line, digest FROM audit WHERE number = {last}",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_done_to_the_database_is_found(suite, client, grown, change):
    assert offline(suite, grown).number > grown.number
    ((last,),) = select(suite.keys / "keys.db", "SELECT max(number) FROM audit")
    with sqlite3.connect(suite.keys / "keys.db") as connection:
        connection.executescript(CHANGES[change].format(last=last))
    with pytest.raises(AuditLogBroken):
        offline(suite)
    if change != "act alone":
        with pytest.raises(AuditLogBroken):
            await client.audit.verify()


async def test_a_log_that_was_cut_short_is_found_against_the_head(suite, client, grown):
    execute(suite.keys / "keys.db", "DELETE FROM audit WHERE number >= ?", grown.number)
    assert offline(suite).number == grown.number - 1  # the chain alone cannot show it
    with pytest.raises(AuditLogBroken):
        offline(suite, grown)
    with pytest.raises(AuditLogBroken):
        await client.audit.verify(grown)


async def test_a_log_that_was_written_anew_is_found_against_the_head(suite, client, grown):
    """By somebody who may write the database, and knows the form."""
    path = suite.keys / "keys.db"
    lines = [line for (line,) in select(path, "SELECT line FROM audit ORDER BY number")]
    execute(path, "DELETE FROM audit")
    engine = open_database(f"sqlite:///{path}")
    with engine.begin() as transaction:
        for line in lines:
            fields = json.loads(line)
            fields |= {"actor": fields["actor"].replace("alice", "bob")}
            kept = {name: fields[name] for name in ("actor", "act", "resource", "outcome", "begun", "detail")}
            chain.append(transaction, keys.audit, **kept)
    engine.dispose()
    assert offline(suite).number == len(lines)
    with pytest.raises(AuditLogBroken):
        offline(suite, grown)


async def test_a_part_of_the_log_by_act(client, door_key, alice):
    await door_key.decide(ask(alice, door_key.probe))
    found = [Entry.parse(line) async for line in client.audit.lines(act="Decide")]
    assert [entry.act for entry in found] == ["Decide", "Decide"]
    first = found[0].number
    assert [Entry.parse(line).number async for line in client.audit.lines(after=first, act="Decide")] == [first + 1]


async def test_a_long_log_comes_in_parts(suite, client):
    engine = open_database(f"sqlite:///{suite.keys / 'keys.db'}")
    with engine.begin() as transaction:
        for _ in range(2500):
            chain.append(transaction, keys.audit, actor="service", act="Test", outcome="ok")
    engine.dispose()
    stub = client.keys.ExportAudit(
        audit_pb2.ExportAuditRequest(),
        metadata=client.audit._signer.metadata(
            "/sealface.keys.v1.KeyService/ExportAudit", audit_pb2.ExportAuditRequest().SerializeToString()
        ),
    )
    sizes = [len(part.lines) async for part in stub]
    assert sizes[:2] == [1000, 1000]
    assert (await client.audit.verify()).number > 2500


def test_an_entry_is_written_with_its_transaction_or_not_at_all(tmp_path):
    from sealface.storage.schema import KEYS

    engine = KEYS.open_file(tmp_path / "keys.db")
    with pytest.raises(RuntimeError), engine.begin() as transaction:
        chain.append(transaction, keys.audit, actor="service", act="Test", outcome="ok")
        raise RuntimeError
    with engine.begin() as transaction:
        assert chain.last(transaction, keys.audit)[0] == 0
        assert transaction.execute(sa.select(sa.func.count()).select_from(keys.audit)).scalar_one() == 0
    engine.dispose()
