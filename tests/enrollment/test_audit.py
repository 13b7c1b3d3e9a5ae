"""The compute zone's audit log: what is in it, what is not, and that it stands or falls with what was done."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
import sqlalchemy as sa

from sealface.enrollment.audit import SERVICE, AuditLog
from sealface.protocol.audit import BEGUN, Entry, check
from sealface.storage.database import open_database
from sealface.storage.record import operations
from sealface_client import ServiceError
from sealface_protos.enrollment.v1 import operation_pb2 as messages
from tests.conftest import POLICY, person, refused, select
from tests.enrollment.conftest import enroll_request


def entries(suite):
    return [
        Entry.parse(line) for (line,) in select(suite.compute / "record.db", "SELECT line FROM audit ORDER BY number")
    ]


def told(suite, *acts):
    found = [entry for entry in entries(suite) if entry.act in acts or not acts]
    return [(entry.act, entry.outcome, dict(entry.detail)) for entry in found]


@pytest.fixture
def whom(suite, door):
    """What stands in the log for a subject of the gallery."""
    engine = open_database(f"sqlite:///{suite.compute}/record.db")
    yield lambda subject: AuditLog(engine).pseudonym("door", subject)
    engine.dispose()


async def test_who_is_enrolled_and_erased_is_there(suite, client, door, whom):
    await door.enroll("ada", person(1))
    await door.enroll("ada", person(2))
    await door.enroll("bob", person(3))
    await door.erase("ada")
    await client.delete_gallery("door")
    assert [entry.resource for entry in entries(suite)] == ["galleries/door"] * 6
    assert told(suite) == [
        ("CreateGallery", "ok", {"key_version": "keys/door/versions/1"}),
        ("Enroll", "ok", {"subject": whom("ada"), "slot": 1}),
        ("Enroll", "ok", {"subject": whom("ada"), "slot": 2}),
        ("Enroll", "ok", {"subject": whom("bob"), "slot": 3}),
        ("EraseSubject", "ok", {"subject": whom("ada"), "slots": ["1", "2"]}),
        ("DeleteGallery", "ok", {"templates": 1}),
    ]
    check(entry.line() for entry in entries(suite))
    assert len({whom("ada"), whom("bob")}) == 2


async def test_no_subject_is_in_it(suite, client, door):
    name = "a-subject-with-a-long-name"
    await door.enroll(name, person(1))
    await anext(aiter(door.import_many([(f"{name}-{i}", person(i)) for i in range(2, 6)], 4)))
    await door.erase(name)
    assert len(entries(suite)) > 3
    assert name not in "".join(entry.line().decode() for entry in entries(suite))


async def test_who_calls_is_there_by_name(suite, door):
    await door.enroll("ada", person(1))
    assert {entry.actor for entry in entries(suite)} == {"callers/operator"}


async def test_what_changes_nothing_is_not_there(suite, client, door):
    request = enroll_request(door, "ada")
    await client.enrollment.Enroll(request)
    before = entries(suite)
    await client.enrollment.Enroll(request)  # again: it gets its first answer
    for call in (door.erase("nobody"), client.create_gallery("door", policy=POLICY)):
        with pytest.raises(ServiceError):
            await call
    assert entries(suite) == before


async def test_an_import_is_there_with_its_slots(suite, client, door, whom):
    subjects = ["ada", "bob", "ada"]
    await door.operations.begin_import(3, "all")
    [_ async for _ in door.import_many([(name, person(i)) for i, name in enumerate(subjects)], 3, "all")]
    (begun, imported, ended) = [entry for entry in entries(suite) if entry.act != "CreateGallery"]
    assert (begun.act, begun.outcome, imported.act, ended.act, ended.outcome) == (
        *("Import", BEGUN),
        "ImportBlock",
        *("Import", "done"),
    )
    assert (ended.begun, ended.detail["operation"]) == (begun.number, begun.detail["operation"])
    names = "\n".join(map(whom, subjects))
    assert imported.detail == {
        "operation": begun.detail["operation"],
        "slot": 1,
        "templates": 3,
        "subjects": hashlib.sha256(names.encode()).hexdigest(),
    }


async def test_what_takes_long_is_there_when_it_begins_and_when_it_ends(suite, client, door, whom):
    await door.enroll("ada", person(1))
    operation = await client.operations.BeginErasure(
        messages.BeginErasureRequest(name="galleries/door/subjects/ada", operation_id="gone")
    )
    while (await client.operations.GetOperation(messages.GetOperationRequest(name=operation.name))).state == (
        messages.OPERATION_STATE_RUNNING
    ):
        await asyncio.sleep(0.05)
    begun, ended = [entry for entry in entries(suite) if entry.act == "Erasure"]
    assert (begun.outcome, begun.actor) == (BEGUN, "callers/operator")
    assert begun.detail == {"operation": "gone", "subject": whom("ada"), "slots": ["1"]}
    assert (ended.outcome, ended.actor, ended.begun) == ("done", SERVICE, begun.number)
    assert check(entry.line() for entry in entries(suite)).unfinished == {}


async def test_what_is_under_way_is_unfinished(suite, client, door):
    begin = messages.BeginImportRequest(gallery="galleries/door", operation_id="long", templates=10)
    operation = await client.operations.BeginImport(begin)
    assert list(check(entry.line() for entry in entries(suite)).unfinished.values()) == ["Import"]
    await client.operations.CancelOperation(messages.CancelOperationRequest(name=operation.name))
    assert told(suite, "Import")[-1] == ("Import", "cancelled", {"operation": "long"})
    assert check(entry.line() for entry in entries(suite)).unfinished == {}


async def test_an_entry_is_in_its_acts_transaction(suite, client, door):
    """A log that takes no entry lets nothing happen."""
    engine = open_database(f"sqlite:///{suite.compute}/record.db")
    with engine.begin() as transaction:
        transaction.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    try:
        with pytest.raises(ServiceError):
            await door.enroll("ada", person(1))
        with pytest.raises(ServiceError):
            await client.delete_gallery("door")
        begin = messages.BeginImportRequest(gallery="galleries/door", operation_id="never", templates=1)
        with refused("INTERNAL", "INTERNAL_ERROR"):
            await client.operations.BeginImport(begin)
    finally:
        with engine.begin() as transaction:
            transaction.exec_driver_sql("DROP TRIGGER full")
            begun = transaction.execute(sa.select(sa.func.count()).select_from(operations)).scalar_one()
        engine.dispose()
    assert (await client.gallery("door")).info.templates == 0
    assert begun == 0
    assert len(entries(suite)) == 1
