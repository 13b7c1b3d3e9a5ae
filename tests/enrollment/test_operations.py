"""Long work that is stored: begun once, followed, cancelled, gone on with after a restart."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest

from sealface.enrollment import housekeeper, sealer
from sealface.enrollment.erasure import Eraser
from sealface.enrollment.housekeeper import Housekeeper
from sealface.enrollment.leases import Leases
from sealface.enrollment.operations import (
    Kind,
    NotCancellable,
    OperationEnded,
    OperationIdReused,
    OperationNotFound,
    Operations,
    State,
)
from sealface.enrollment.record import Record, SubjectNotFound
from sealface.enrollment.sealer import Sealer
from sealface.errors import SealfaceError
from sealface.storage.digests import TemplateDamaged
from sealface.storage.galleries import Galleries, GalleryNotFound
from sealface_client import ServiceError
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from sealface_protos.enrollment.v1 import gallery_pb2, operation_pb2
from tests.conftest import both_schemes, execute, person, refused, select
from tests.storage.conftest import engine, new_gallery, path, postgresql_server, postgresql_url  # noqa: F401

KEY = "keys/door/versions/1"
RUNNING, DONE = operation_pb2.OPERATION_STATE_RUNNING, operation_pb2.OPERATION_STATE_DONE
FAILED, CANCELLED = operation_pb2.OPERATION_STATE_FAILED, operation_pb2.OPERATION_STATE_CANCELLED


@pytest.fixture
def record(engine):  # noqa: F811
    record = Record(engine)
    record.create_gallery(new_gallery())
    return record


@pytest.fixture
def operations(engine, record):  # noqa: F811
    return Operations(engine)


@pytest.fixture
def lease(engine, record):  # noqa: F811
    return Leases(engine).take("door")


# --- the stored queue


def test_an_operation_is_begun_once_for_an_id(operations):
    begun = operations.begin("door", "one", Kind.COMPACTION)
    assert (begun.state, begun.done, begun.total) == (State.RUNNING, 0, 0)
    assert operations.begin("door", "one", Kind.COMPACTION) == begun == operations.get("door", "one")
    with pytest.raises(OperationIdReused, match="draw a new one"):
        operations.begin("door", "one", Kind.IMPORT, 5)
    with pytest.raises(GalleryNotFound):
        operations.begin("hall", "one", Kind.COMPACTION)
    with pytest.raises(OperationNotFound):
        operations.get("door", "two")
    with pytest.raises(OperationNotFound):
        operations.cancel("door", "two")


def test_it_gets_on_and_ends_with_a_result(operations, lease):
    begun = operations.begin("door", "one", Kind.COMPACTION)
    assert [waiting.id for waiting in operations.waiting("door")] == ["one"]
    assert operations.progress(begun, lease, 2, 5)
    now = operations.get("door", "one")
    assert (now.done, now.total, now.updated >= begun.updated) == (2, 5, True)
    assert operations.finish(begun, lease, 5, what="done")
    ended = operations.get("door", "one")
    assert (ended.state, ended.done, ended.total, ended.detail) == (State.DONE, 5, 5, {"what": "done"})
    assert operations.waiting("door") == []
    assert not operations.progress(begun, lease, 9, 9)  # nothing ends twice
    assert not operations.fail(begun, lease, TemplateDamaged("x"))
    assert operations.cancel("door", "one") == ended


def test_a_failure_says_what_of(operations, lease):
    begun = operations.begin("door", "one", Kind.COMPACTION)
    assert operations.fail(begun, lease, TemplateDamaged("restore it"))
    ended = operations.get("door", "one")
    assert ended.state is State.FAILED
    assert ended.detail == {"reason": "TEMPLATE_DAMAGED", "message": "restore it", "kind": "DataCorrupted"}


def test_what_is_cancelled_ends_where_it_is(operations, lease):
    begun = operations.begin("door", "one", Kind.COMPACTION)
    operations.progress(begun, lease, 2, 5)
    cancelled = operations.cancel("door", "one")
    assert (cancelled.state, cancelled.done) == (State.CANCELLED, 2)
    assert not operations.progress(begun, lease, 3, 5)
    assert not operations.finish(begun, lease, 5)
    assert operations.get("door", "one").state is State.CANCELLED


def test_operations_are_listed_newest_first_a_page_at_a_time(operations):
    for number in range(5):
        operations.begin("door", f"o{number}", Kind.COMPACTION)
    assert [one.id for one in operations.page("door", 0, 3)] == ["o4", "o3", "o2"]
    assert [one.id for one in operations.page("door", 3, 3)] == ["o1", "o0"]
    assert operations.page("hall", 0, 3) == []


def test_what_ended_long_ago_is_forgotten(operations, lease, engine):  # noqa: F811
    old = operations.begin("door", "old", Kind.COMPACTION)
    operations.finish(old, lease, 0)
    operations.begin("door", "waits", Kind.COMPACTION)
    from tests.storage.conftest import execute as change

    change(engine, "UPDATE operations SET updated = ?", datetime.now(UTC).replace(tzinfo=None) - timedelta(days=31))
    operations.begin("door", "new", Kind.COMPACTION)
    assert {one.id for one in operations.page("door", 0, 9)} == {"waits", "new"}


def test_a_deleted_gallery_takes_its_operations_along(operations, lease, record):
    operations.begin("door", "one", Kind.COMPACTION)
    record.delete_gallery("door")
    assert operations.waiting("door") == []
    with pytest.raises(OperationNotFound):
        operations.get("door", "one")


# --- imports


def import_block(record, count, request_id, operation_id):
    subjects = [f"{request_id}-{number}" for number in range(count)]
    return record.import_block("door", KEY, subjects, 8, 12, b"imported", request_id, operation_id)


def test_an_import_counts_its_blocks_and_is_done_with_the_last(operations, record):
    operations.begin("door", "import", Kind.IMPORT, 5)
    assert operations.waiting("door") == []  # the importer goes on with it
    import_block(record, 3, "a", "import")
    import_block(record, 3, "a", "import")  # the same request again counts once
    now = operations.get("door", "import")
    assert (now.state, now.done) == (State.RUNNING, 3)
    import_block(record, 2, "b", "import")
    now = operations.get("door", "import")
    assert (now.state, now.done) == (State.DONE, 5)
    with pytest.raises(OperationEnded, match="begin another"):
        import_block(record, 1, "c", "import")
    assert Galleries(record._engine).count("door") == 5


def test_a_cancelled_import_takes_nothing_more_and_keeps_what_it_has(operations, record):
    operations.begin("door", "import", Kind.IMPORT, 5)
    import_block(record, 3, "a", "import")
    assert operations.cancel("door", "import").state is State.CANCELLED
    with pytest.raises(OperationEnded):
        import_block(record, 2, "b", "import")
    assert Galleries(record._engine).count("door") == 3


def test_a_block_of_no_import_is_refused(operations, record):
    operations.begin("door", "compaction", Kind.COMPACTION)
    with pytest.raises(OperationNotFound):
        import_block(record, 2, "b", "import")
    with pytest.raises(OperationIdReused):
        import_block(record, 2, "b", "compaction")
    assert Galleries(record._engine).count("door") == 0


# --- erasures and expiry in the record


def test_an_erasure_is_one_operation_and_takes_effect_when_it_begins(operations, record):
    for number in range(3):
        record.enroll("door", KEY, "ann" if number < 2 else "bob", b"x", f"r{number}")
    begun = record.begin_erasure("door", "ann", "erasure")
    assert begun.detail == {"slots": [1, 2], "epoch": 4}
    assert record.begin_erasure("door", "ann", "erasure") == operations.get("door", "erasure")
    assert Galleries(record._engine).count("door") == 1
    assert b"ann" not in repr(operations.get("door", "erasure")).encode()  # no subject's id outlives its erasure
    with pytest.raises(SubjectNotFound):
        record.begin_erasure("door", "ann", "another")
    with pytest.raises(NotCancellable):
        operations.cancel("door", "erasure")


def test_what_is_too_old_is_erased_and_the_rest_of_a_subject_leads_anew(record, lease, engine):  # noqa: F811
    from tests.storage.conftest import execute as change

    galleries = Galleries(engine)
    for number, subject in enumerate(["ann", "bob", "ann", "cyd"]):
        record.enroll("door", KEY, subject, b"x", f"r{number}")
    before = datetime.now(UTC) - timedelta(days=1)
    change(
        engine, "UPDATE templates SET created = ? WHERE slot < 3", (before - timedelta(hours=1)).replace(tzinfo=None)
    )
    assert galleries.older("door", before) == 2
    assert record.expire("door", lease, before) == 2
    assert record.expire("door", lease, before) == 0
    placement = galleries.placement("door", 0)
    assert placement.taken.tolist() == [[3, 3], [4, 4]]
    assert placement.given.tolist() == [1, 2]
    changed = galleries.placement("door", 4)  # who saw the gallery before gets the new lead, too
    assert changed.taken.tolist() == [[3, 3]]
    assert galleries.older("door", before) == 0


def test_an_erasure_claims_nothing_of_a_log_that_it_does_not_see(operations, record, lease, engine, scheme):  # noqa: F811
    record.enroll("door", KEY, "ann", b"x", "r")
    record.enroll("door", KEY, "bob", b"x", "s")
    galleries = Galleries(engine)

    def renew(*_):
        raise AssertionError("nothing is to be renewed")

    eraser = Eraser(galleries, record, operations, Sealer(galleries, record, scheme, renew))
    begun = record.begin_erasure("door", "ann", "erasure")
    assert not eraser.run(begun, galleries.get("door"), lease, lambda: None)
    ended = operations.get("door", "erasure")
    assert ended.state is State.DONE
    found = {check["place"]: (check["checked"], check["found"]) for check in ended.detail["checks"]}
    log = {"log": (1, 0)} if engine.dialect.name == "sqlite" else {}
    assert found == {"templates": (1, 0), "blocks": (0, 0)} | log


# --- the service


async def sealable(gallery, extra=0):
    capacity = gallery.layout.sealed_shapes[0].capacity
    faces = ((f"s{number}", person(number)) for number in range(capacity + extra))
    assert not [one for one in [stored async for stored in gallery.enroll_many(faces)] if isinstance(one, Exception)]
    return capacity


@both_schemes
async def test_an_erased_subject_is_proved_gone_from_blocks_log_and_memory(suite, client, door):
    capacity = await sealable(door)
    await suite.sealed(capacity)
    assert (await door.identify(person(7))).candidates[0].subject == "s7"
    ((slot,),) = select(suite.compute / "record.db", "SELECT slot FROM templates WHERE subject = 's7'")
    proof = await door.erase_with_proof("s7", person(7))
    assert proof.complete
    assert proof.templates == 1
    places = {check.place: check for check in proof.checks}
    assert set(places) == {"templates", "blocks", "log", "memory of 1 workers", "search"}
    assert places["blocks"].checked == 1
    assert places["memory of 1 workers"].checked == 1
    ((slots,),) = select(suite.compute / "record.db", "SELECT slots FROM blocks")
    assert slot not in np.frombuffer(slots, "<u4")
    ended = await door.operations.get(proof.operation_id)
    assert (ended.state, list(ended.erased.slots), ended.erased.complete) == (DONE, [slot], True)
    assert ended.kind == operation_pb2.OPERATION_KIND_ERASURE


async def test_an_erasure_from_an_imported_block_waits_for_the_key_service(suite, door, monkeypatch):
    monkeypatch.setattr(sealer, "_RETRY_S", 0.2)
    monkeypatch.setattr(housekeeper, "_LOOK_S", 0.5)
    assert len([block async for block in door.import_many((f"i{n}", person(n)) for n in range(9))]) == 1
    await suite.stop("keys")
    begun = await door.operations.begin_erasure("i4")
    assert not (await door.operations.get(begun.name.rpartition("/")[2])).HasField("erased")
    await asyncio.sleep(1)
    assert (await door.operations.get(begun.name.rpartition("/")[2])).state == RUNNING
    await suite.start("keys")
    ended = await asyncio.wait_for(door.operations.wait(begun), 30)
    assert ended.erased.complete


# --- blocks that the client renews


async def imported(gallery, count):
    assert len([block async for block in gallery.import_many((f"i{n}", person(n)) for n in range(count))]) == 1


@both_schemes
async def test_the_client_that_holds_the_key_renews_its_blocks(suite, safe):
    await imported(safe, 9)
    ((old,),) = select(suite.compute / "record.db", "SELECT ciphertext FROM block_ciphertexts")
    proof = await safe.erase_with_proof("i4", person(4))
    assert proof.complete
    ((new, slots),) = select(
        suite.compute / "record.db", "SELECT ciphertext, slots FROM block_ciphertexts NATURAL JOIN blocks"
    )
    assert new != old
    assert np.frombuffer(slots, "<u4")[:9].tolist() == [1, 2, 3, 4, 0, 6, 7, 8, 9]
    for number in (0, 3, 5, 8):
        assert [one.subject for one in (await safe.identify(person(number))).candidates] == [f"i{number}"]
        assert (await safe.verify(f"i{number}", person(number))).match
    assert (await safe.identify(person(4))).candidates == ()
    assert await safe.renew_blocks() == 0


async def test_an_erasure_waits_for_the_client_that_holds_the_key(suite, safe):
    await imported(safe, 9)
    begun = await safe.operations.begin_erasure("i4")
    await asyncio.sleep(1)
    assert (await safe.operations.get(begun.name.rpartition("/")[2])).state == RUNNING
    await safe.erase("i5")
    assert await safe.renew_blocks() == 1  # both at once
    ended = await asyncio.wait_for(safe.operations.wait(begun), 30)
    assert ended.erased.complete


async def test_a_client_without_the_key_renews_nothing(suite, safe):
    await imported(safe, 3)
    await safe.erase("i1")
    before = select(suite.compute / "record.db", "SELECT number, ciphertext FROM block_ciphertexts")
    for secret in (suite.folder / "edge").glob("*.secret"):
        secret.unlink()
    other = await suite.client().gallery("safe")
    with pytest.raises(SealfaceError, match="secret key"):
        await other.renew_blocks()
    assert select(suite.compute / "record.db", "SELECT number, ciphertext FROM block_ciphertexts") == before


async def test_a_block_of_a_managed_gallery_is_not_the_clients_to_renew(client, door):
    call = client.enrollment.RenewBlocks(iter([messages.RenewBlocksRequest(gallery="galleries/door")]))
    with refused("FAILED_PRECONDITION", "RENEWED_BY_ITSELF"):
        assert [message async for message in call]


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (None, "UNAVAILABLE", "KEY_HOLDER_GONE"),
        (lambda size: bytes(size + 1), "INVALID_ARGUMENT", "WRONG_ANSWER"),
        (lambda size: bytes(size), "INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"),
    ],
    ids=["ends the call", "too long", "no block"],
)
async def test_what_comes_back_wrong_is_not_stored(suite, client, safe, answer, code, reason):
    await imported(safe, 3)
    await safe.erase("i1")
    before = select(suite.compute / "record.db", "SELECT number, ciphertext FROM block_ciphertexts")
    call = client.enrollment.RenewBlocks()
    await call.write(messages.RenewBlocksRequest(gallery="galleries/safe"))
    header = (await call.read()).header
    assert header.key_version == safe.info.key_version
    assert np.unpackbits(np.frombuffer(header.cleared, np.uint8), bitorder="little")[:4].tolist() == [0, 1, 0, 0]
    with refused(code, reason):
        if answer is not None:
            data = answer(header.size)
            for at in range(0, len(data), 1 << 20):
                await call.write(messages.RenewBlocksRequest(data=data[at : at + (1 << 20)]))
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
    assert select(suite.compute / "record.db", "SELECT number, ciphertext FROM block_ciphertexts") == before
    assert await safe.renew_blocks() == 1  # and then rightly


async def test_what_is_asked_wrongly_is_refused(client, safe):
    for first in ([], [messages.RenewBlocksRequest(data=b"x")]):
        with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
            assert [message async for message in client.enrollment.RenewBlocks(iter(first))]
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        first = messages.RenewBlocksRequest(gallery="galleries/none")
        assert [message async for message in client.enrollment.RenewBlocks(iter([first]))]


@both_schemes
async def test_a_compaction_seals_what_does_not_fill_a_block(suite, door):
    capacity = await sealable(door, extra=-1)
    await asyncio.sleep(0.5)
    assert select(suite.compute / "record.db", "SELECT number FROM blocks") == []
    ended = await door.operations.wait(await door.operations.begin_compaction())
    assert (ended.state, ended.compacted.blocks) == (DONE, 1)
    await suite.sealed(capacity - 1)
    assert (await door.identify(person(7))).candidates[0].subject == "s7"
    again = await door.operations.wait(await door.operations.begin_compaction())
    assert again.compacted.blocks == 0


async def test_an_operation_that_fails_says_so(suite, door):
    await sealable(door, extra=-1)
    execute(suite.compute / "record.db", "UPDATE template_ciphertexts SET ciphertext = x'00' WHERE slot = 5")
    with pytest.raises(ServiceError) as caught:
        await door.operations.wait(await door.operations.begin_compaction("broken"))
    assert (caught.value.code.name, caught.value.reason) == ("DATA_LOSS", "TEMPLATE_DAMAGED")
    assert (await door.operations.get("broken")).state == FAILED


async def test_an_erasure_waits_where_another_template_is_damaged(suite, door):
    capacity = await sealable(door)
    await suite.sealed(capacity)
    execute(suite.compute / "record.db", "UPDATE template_ciphertexts SET ciphertext = x'00' WHERE slot = 5")
    begun = await door.operations.begin_erasure("s7")
    await asyncio.sleep(1)
    assert (await door.operations.get(begun.name.rpartition("/")[2])).state == RUNNING
    assert await door.erase("s4") == 1  # who has slot 5
    ended = await asyncio.wait_for(door.operations.wait(begun), 30)
    assert ended.erased.complete


async def test_what_was_begun_goes_on_after_a_restart(suite, door, monkeypatch):
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)
    await suite.restart("enrollment")
    await sealable(door, extra=-1)
    begun = [await door.operations.begin_compaction("compaction"), await door.operations.begin_erasure("s3")]
    await suite.restart("enrollment")
    assert [(await door.operations.get(one.name.rpartition("/")[2])).state for one in begun] == [RUNNING] * 2
    monkeypatch.undo()
    await suite.restart("enrollment")
    for one in begun:
        assert (await asyncio.wait_for(door.operations.wait(one), 30)).state == DONE


async def test_an_import_that_was_broken_off_goes_on_where_it_was(suite, door):
    faces = [(f"i{number}", person(number)) for number in range(150)]
    shape = door.layout.best_shape(150)
    assert shape.capacity < 150
    await door.operations.begin_import(150, "import")
    blocks = door.import_many(faces, 150, "import")
    first = await anext(blocks)
    await blocks.aclose()
    done = (await door.operations.get("import")).done
    assert first.templates <= done < 150
    again = await door.operations.begin_import(150, "import")
    assert (again.done, again.state) == (done, RUNNING)
    assert [block async for block in door.import_many(faces[again.done :], 150, "import")]
    ended = await door.operations.get("import")
    assert (ended.state, ended.imported.templates) == (DONE, 150)
    assert {subject.name.rpartition("/")[2] for subject in await door.subjects()} == {who for who, _ in faces}
    with pytest.raises(ServiceError, match="begin another"):
        assert [block async for block in door.import_many(faces[:1], 1, "import")]


async def test_templates_expire(suite, client, door):
    await door.enroll("old", person(1))
    await door.enroll("new", person(2))
    execute(suite.compute / "record.db", "UPDATE templates SET created = '2020-01-01 00:00:00.000000' WHERE slot = 1")
    await door.keep_for(timedelta(days=365))
    for _ in range(200):
        if [one for one in await door.operations.list() if one.state == DONE]:
            break
        await asyncio.sleep(0.05)
    (expiry,) = await door.operations.list()
    assert (expiry.kind, expiry.expired.templates) == (operation_pb2.OPERATION_KIND_EXPIRY, 1)
    assert (await door.identify(person(1))).candidates == ()
    assert (await door.identify(person(2))).candidates[0].subject == "new"
    assert (await client.gallery("door")).info.retention.seconds == 365 * 86_400
    await door.keep_for(None)
    assert not (await client.gallery("door")).info.HasField("retention")


async def test_a_gallery_is_made_with_a_retention(client):
    gallery = await client.create_gallery("brief", retention=timedelta(days=30))
    assert gallery.info.retention.seconds == 30 * 86_400


# --- bad input


@pytest.mark.parametrize(("seconds", "nanos"), [(0, 0), (-5, 0), (1, 1), (10**12, 0)])
async def test_a_retention_of_no_time_or_of_ages_is_refused(client, door, seconds, nanos):
    gallery = gallery_pb2.Gallery(name="galleries/door")
    gallery.retention.seconds, gallery.retention.nanos = seconds, nanos
    request = messages.UpdateGalleryRequest(gallery=gallery)
    request.update_mask.paths.append("retention")
    with refused("INVALID_ARGUMENT", "WRONG_RETENTION"):
        await client.enrollment.UpdateGallery(request)


@pytest.mark.parametrize("paths", [[], ["key"], ["retention", "key"]])
async def test_nothing_but_the_retention_can_be_changed(client, door, paths):
    request = messages.UpdateGalleryRequest(gallery=gallery_pb2.Gallery(name="galleries/door"))
    request.update_mask.paths.extend(paths)
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await client.enrollment.UpdateGallery(request)


async def test_calls_about_operations_are_checked(client, door):
    stub, o = client.operations, operation_pb2
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await stub.BeginImport(o.BeginImportRequest(gallery="galleries/door", operation_id="a"))
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await stub.BeginCompaction(o.BeginCompactionRequest(gallery="door", operation_id="a"))
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await stub.BeginCompaction(o.BeginCompactionRequest(gallery="galleries/door", operation_id="a/b"))
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await stub.BeginCompaction(o.BeginCompactionRequest(gallery="galleries/hall", operation_id="a"))
    with refused("NOT_FOUND", "SUBJECT_NOT_FOUND"):
        await stub.BeginErasure(o.BeginErasureRequest(name="galleries/door/subjects/ann", operation_id="a"))
    with refused("NOT_FOUND", "OPERATION_NOT_FOUND"):
        await stub.GetOperation(o.GetOperationRequest(name="galleries/door/operations/a"))
    with refused("NOT_FOUND", "OPERATION_NOT_FOUND"):
        await stub.CancelOperation(o.CancelOperationRequest(name="galleries/door/operations/a"))
    for token in ("x", "-1", "１", "9" * 40):
        with refused("INVALID_ARGUMENT", "WRONG_PAGE_TOKEN"):
            await stub.ListOperations(o.ListOperationsRequest(parent="galleries/door", page_token=token))


async def test_lists_come_in_pages(client, door):
    for number in range(5):
        await door.operations.begin_import(5, f"o{number}")
    request = operation_pb2.ListOperationsRequest(parent="galleries/door", page_size=2)
    found = []
    while True:
        page = await client.operations.ListOperations(request)
        assert len(page.operations) <= 2
        found += [one.name.rpartition("/")[2] for one in page.operations]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert found == ["o4", "o3", "o2", "o1", "o0"]
    assert (await door.operations.cancel("o2")).state == CANCELLED
