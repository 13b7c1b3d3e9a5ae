"""A gallery is moved to the next version of its key while it is used; what is decided stays right throughout."""

import asyncio
from dataclasses import replace

import grpc
import numpy as np
import pytest

from sealface.enrollment import housekeeper, key_source, rotation
from sealface.enrollment.asked import Asked
from sealface.enrollment.leases import Leases
from sealface.enrollment.operations import Kind, Operations, State
from sealface.enrollment.record import Record
from sealface.enrollment.renewals import GalleryBusy
from sealface.enrollment.versions import RotationUnderWay, Versions
from sealface.storage.galleries import Galleries
from sealface_client import ServiceError
from sealface_protos.enrollment.v1 import enrollment_service_pb2, operation_pb2
from sealface_protos.keys.v1 import key_pb2, key_service_pb2
from tests.conftest import both_schemes, person, refused, select
from tests.storage.conftest import engine, new_gallery, path, postgresql_server, postgresql_url  # noqa: F401

e, k, o = enrollment_service_pb2, key_service_pb2, operation_pb2
FIRST, SECOND, THIRD = (f"keys/door/versions/{number}" for number in (1, 2, 3))
TABLES = ("template_ciphertexts", "block_ciphertexts", "gallery_versions", "gallery_evaluation_keys")


# --- the record


@pytest.fixture
def record(engine):  # noqa: F811
    record = Record(engine)
    record.create_gallery(new_gallery())
    return record


@pytest.fixture
def versions(engine, record):  # noqa: F811
    return Versions(engine)


@pytest.fixture
def lease(engine, record):  # noqa: F811
    return Leases(engine).take("door")


@pytest.fixture
def galleries(engine):  # noqa: F811
    return Galleries(engine)


def begin(versions, name="r", target=SECOND):
    return versions.begin("door", name, target, b"public 2", {3: b"g3", 5: b"g5"}, 1)


def held(engine, galleries, version):  # noqa: F811
    return dict(Galleries(engine).ciphertexts("door", range(1, 100), version))


def test_a_rotation_is_begun_once(versions, record, engine):  # noqa: F811
    begun = begin(versions)
    assert (begun.kind, begun.state, begun.detail) == (Kind.ROTATION, State.RUNNING, {"key_version": SECOND})
    assert begin(versions) == begun
    assert begin(versions, "another") == begun  # it goes there already
    with pytest.raises(RotationUnderWay):
        begin(versions, "third", THIRD)
    Operations(engine).cancel("door", "r")
    assert begin(versions, "third", THIRD).state is State.RUNNING
    assert versions.stale("door") == [SECOND]


def test_a_gallery_that_is_there_is_done(versions):
    done = begin(versions, target=FIRST)
    assert (done.state, done.done, done.total) == (State.DONE, 0, 0)


def test_ciphertexts_gather_and_the_gallery_moves_when_none_is_missing(versions, record, galleries, lease, engine):  # noqa: F811
    for slot in (1, 2, 3):
        record.enroll("door", FIRST, f"s{slot}", b"old %d" % slot, f"r{slot}")
    operation, gallery = begin(versions), galleries.get("door")
    assert operation.total == 3
    assert versions.missing_templates(gallery, SECOND, 0, 2) == [1, 2]
    assert versions.missing_templates(gallery, SECOND, 2, 2) == [3]
    versions.add_templates(gallery, lease, SECOND, {1: b"new 1", 2: b"new 2"})
    assert not versions.move(gallery, lease, operation, 2)
    assert galleries.get("door").key_version == FIRST
    record.erase_subject("door", "s1")  # leaves both
    versions.add_templates(gallery, lease, SECOND, {1: b"too late", 3: b"new 3"})
    record.enroll("door", FIRST, "s4", b"old 4", "r4")  # came meanwhile
    assert versions.missing_templates(gallery, SECOND, 0, 9) == [4]
    assert not versions.move(gallery, lease, operation, 3)
    versions.add_templates(gallery, lease, SECOND, {4: b"new 4"})
    assert held(engine, galleries, None) == {2: b"old 2", 3: b"old 3", 4: b"old 4"}
    before = galleries.get("door").epoch
    assert versions.move(gallery, lease, operation, 4)
    moved = galleries.get("door")
    assert (moved.key_version, moved.epoch) == (SECOND, before + 1)
    assert held(engine, galleries, None) == {2: b"new 2", 3: b"new 3", 4: b"new 4"}
    assert galleries.public_key("door") == b"public 2"
    assert galleries.evaluation_keys("door") == {3: b"g3", 5: b"g5"}
    assert Operations(engine).get("door", "r").state is State.DONE
    assert versions.stale("door") == [FIRST]
    while versions.drop_stale("door", lease):
        pass
    assert held(engine, galleries, FIRST) == {}
    assert versions.stale("door") == []


def test_what_a_cancelled_rotation_gathered_is_dropped(versions, record, galleries, lease, engine):  # noqa: F811
    record.enroll("door", FIRST, "s1", b"old 1", "r1")
    operation, gallery = begin(versions), galleries.get("door")
    versions.add_templates(gallery, lease, SECOND, {1: b"new 1"})
    Operations(engine).cancel("door", "r")
    assert not versions.move(gallery, lease, operation, 1)
    assert galleries.get("door").key_version == FIRST
    while versions.drop_stale("door", lease):
        pass
    assert held(engine, galleries, SECOND) == {}
    assert held(engine, galleries, FIRST) == {1: b"old 1"}


def test_a_key_serves_one_gallery_whichever_version_it_is_under(versions, record, galleries, lease):
    from sealface.enrollment.record import KeyTaken

    assert versions.move(galleries.get("door"), lease, begin(versions), 0)
    with pytest.raises(KeyTaken):
        record.create_gallery(new_gallery("hall", key="door"))


# --- the services


def left(suite) -> dict[str, set[tuple[str]]]:
    """Key versions that the record has anything of, by table."""
    database = suite.compute / "record.db"
    return {name: set(select(database, f"SELECT key_version FROM {name}")) for name in TABLES}  # noqa: S608


def only(version: str) -> dict[str, set[tuple[str]]]:
    return {name: {(version,)} for name in TABLES}


async def rotated(door):
    return await door.operations.wait(await door.rotate())


async def everybody(client, count):
    """A gallery with single templates, some sealed, and an imported block."""
    door = await client.create_gallery("door")
    for number in range(count):
        await door.enroll(f"s{number}", person(number))
    async for _ in door.import_many([(f"b{number}", person(100 + number)) for number in range(5)]):
        pass
    return door


async def all_right(door, count):
    for number in (0, count - 1):
        assert (await door.verify(f"s{number}", person(number))).match
        assert not (await door.verify(f"s{number}", person(900))).match
    found = await door.identify(person(102))
    assert [named.subject for named in found.candidates] == ["b2"]
    assert not (await door.identify(person(900))).match


@both_schemes
async def test_a_gallery_is_moved_and_the_old_version_destroyed(suite, client):
    door = await everybody(client, 3)
    operation = await rotated(door)
    assert operation.kind == o.OPERATION_KIND_ROTATION
    assert operation.rotated.key_version == SECOND
    assert operation.rotated.ciphertexts == operation.done == 3 + door.layout.best_shape(5).columns
    assert (await client.gallery("door")).info.key_version == SECOND
    await all_right(door, 3)  # its client did not know
    assert door.info.key_version == SECOND
    await door.erase("s1")
    await door.enroll("s9", person(9))
    old = k.DestroyKeyVersionRequest(name=FIRST)
    old.undo_window.SetInParent()
    destroyed = await client.keys.DestroyKeyVersion(old)
    assert destroyed.state == key_pb2.KEY_VERSION_STATE_DESTROYED
    await all_right(await client.gallery("door"), 1)
    assert (await door.verify("s9", person(9))).match
    assert left(suite) == only(SECOND)
    await rotated(door)  # and again
    await all_right(door, 1)
    assert left(suite) == only(THIRD)


@both_schemes
async def test_what_is_done_while_a_gallery_is_moved_is_right(suite, client, monkeypatch):
    monkeypatch.setattr(rotation, "_TEMPLATES_AT_ONCE", 2)
    door = await everybody(client, 12)
    other = await client.gallery("door")
    operation = await door.rotate()
    number, decided = 12, 0
    while operation.state == o.OPERATION_STATE_RUNNING or number < 16:
        await other.enroll(f"s{number}", person(number))
        await other.erase(f"s{number - 10}")
        assert (await other.verify(f"s{number}", person(number))).match
        found = await other.identify(person(number - 10))
        assert found.candidates == ()
        assert [c.subject for c in (await other.identify(person(number))).candidates] == [f"s{number}"]
        number, decided = number + 1, decided + 3
        operation = await door.operations.get(operation.name.rpartition("/")[2])
    assert operation.state == o.OPERATION_STATE_DONE
    assert other.info.key_version == SECOND
    assert decided >= 12
    assert {subject.name.rpartition("/")[2] for subject in await other.subjects()} >= {f"s{number - 1}", "b4"}


@both_schemes
async def test_a_rotation_goes_on_where_it_was_when_either_side_comes_back(suite, client, monkeypatch):
    monkeypatch.setattr(rotation, "_TEMPLATES_AT_ONCE", 1)
    door = await everybody(client, 6)
    operation = await door.rotate()
    await suite.restart("enrollment")
    await suite.stop("keys")
    await asyncio.sleep(0.3)
    await suite.start("keys")
    await suite.restart("enrollment")
    ended = await door.operations.wait(operation)
    assert ended.rotated.key_version == SECOND
    await all_right(door, 6)


async def test_what_waits_for_no_key_service_goes_on_while_a_rotation_does(suite, client, monkeypatch):
    monkeypatch.setattr(housekeeper, "_AWAY_S", 0.2)
    monkeypatch.setattr(rotation, "_TEMPLATES_AT_ONCE", 1)
    door = await everybody(client, 40)
    operation = await door.rotate()
    await suite.stop("keys")
    if (await door.operations.get(operation.name.rpartition("/")[2])).state == o.OPERATION_STATE_RUNNING:
        compacted = await asyncio.wait_for(door.operations.wait(await door.operations.begin_compaction()), 20)
        assert compacted.compacted.blocks >= 1
        erased = await asyncio.wait_for(door.operations.wait(await door.operations.begin_erasure("s7")), 20)
        assert erased.erased.complete
    await suite.start("keys")
    assert (await door.operations.wait(operation)).rotated.key_version == SECOND
    assert (await door.verify("s8", person(8))).match
    with refused("NOT_FOUND", "SUBJECT_NOT_FOUND"):
        await client.enrollment.GetSubject(e.GetSubjectRequest(name="galleries/door/subjects/s7"))


@pytest.mark.parametrize("state", ["another primary version", "away", "sealed"])
async def test_what_the_key_service_says_is_waited_for_or_ends_a_rotation(suite, client, state):
    """That it is away, or sealed: later. That a version is not the one to move to: an operator has to look."""
    shape = (await client.create_gallery("door")).layout.group
    asked = Asked(FIRST, 1, bytes(shape.ciphertexts), target_version=SECOND, templates=1)
    if state == "away":
        await suite.stop("keys")
    if state == "sealed":
        key = suite.keys / "key-encryption.key"
        key.rename(key.with_suffix(".away"))
        await suite.restart("keys")
        asked = replace(asked, target_version="")
    async with grpc.aio.insecure_channel(suite.addresses["keys"]) as channel:
        source = key_source.KeySource(channel, suite.scheme)
        if state == "another primary version":
            with pytest.raises(key_source.KeyServiceRefused) as caught:
                await source.renew(asked)
            assert caught.value.reason == "NOT_THE_PRIMARY_VERSION"
        else:
            with pytest.raises(key_source.KeyServiceUnavailable):
                await source.renew(asked)


async def test_a_cancelled_rotation_leaves_nothing(suite, client, monkeypatch):
    monkeypatch.setattr(rotation, "_TEMPLATES_AT_ONCE", 1)
    door = await everybody(client, 8)
    operation = await door.rotate()
    cancelled = await door.operations.cancel(operation.name.rpartition("/")[2])
    if cancelled.state == o.OPERATION_STATE_CANCELLED:
        for _ in range(100):
            if left(suite) == only(FIRST):
                break
            await asyncio.sleep(0.2)
        assert left(suite) == only(FIRST)
    await all_right(door, 8)
    assert (await rotated(door)).rotated.key_version == SECOND  # the version that was made is used
    await all_right(door, 8)


async def test_a_rotation_ends_when_its_version_is_no_more_the_one_to_move_to(suite, client, monkeypatch):
    monkeypatch.setattr(rotation, "_TEMPLATES_AT_ONCE", 1)
    door = await everybody(client, 6)
    await suite.stop("keys")  # so that nothing is done before the next version is there
    await suite.start("keys")
    operation = await door.rotate()
    disabled = k.UpdateKeyVersionRequest(name=SECOND, state=key_pb2.KEY_VERSION_STATE_DISABLED)
    await client.keys.UpdateKeyVersion(disabled)
    try:
        ended = await door.operations.wait(operation)
    except ServiceError as error:
        assert error.reason == "KEY_VERSION_INACTIVE"
        await client.keys.UpdateKeyVersion(
            k.UpdateKeyVersionRequest(name=SECOND, state=key_pb2.KEY_VERSION_STATE_ENABLED)
        )
        ended = await rotated(door)
    assert ended.rotated.key_version == SECOND
    await client.keys.UpdateKeyVersion(k.UpdateKeyVersionRequest(name=SECOND, state=key_pb2.KEY_VERSION_STATE_ENABLED))
    await all_right(door, 6)


async def test_wrong_requests_are_refused(suite, client):
    await everybody(client, 1)
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await client.operations.BeginRotation(o.BeginRotationRequest(gallery="galleries/none", operation_id="x"))
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await client.operations.BeginRotation(o.BeginRotationRequest(gallery="galleries/door", operation_id=""))
    begun = await client.operations.BeginRotation(o.BeginRotationRequest(gallery="galleries/door", operation_id="x"))
    assert begun.state == o.OPERATION_STATE_DONE  # it is under the primary version
    with refused("INVALID_ARGUMENT", "OPERATION_ID_REUSED"):
        await client.operations.BeginCompaction(o.BeginCompactionRequest(gallery="galleries/door", operation_id="x"))
    held_gallery = await client.create_gallery("held", client_held=True)
    with refused("FAILED_PRECONDITION", "ROTATED_BY_CLIENT"):
        await client.operations.BeginRotation(o.BeginRotationRequest(gallery="galleries/held", operation_id="x"))
    assert held_gallery.info.key_version.endswith("/1")


async def test_a_rotation_by_the_holder_that_was_cancelled_can_be_begun_again(suite, client, monkeypatch):
    safe = await client.create_gallery("safe", client_held=True)
    for number in range(3):
        await safe.enroll(f"s{number}", person(number))

    def gone(*_):
        raise GalleryBusy("the client is gone")

    with monkeypatch.context() as broken:
        broken.setattr(rotation.Rotator, "_templates", gone)
        with pytest.raises(ServiceError) as caught:
            await safe.rotate()
        assert caught.value.reason == "GALLERY_BUSY"
    (begun,) = await safe.operations.list()
    assert begun.state == o.OPERATION_STATE_RUNNING
    await safe.operations.cancel(begun.name.rpartition("/")[2])
    await safe.operations.begin_compaction()  # something newer than the rotation
    done = await safe.rotate()
    assert (done.kind, done.state) == (o.OPERATION_KIND_ROTATION, o.OPERATION_STATE_DONE)
    assert safe.info.key_version == "keys/safe/versions/2"
    assert (await safe.verify("s2", person(2))).match


@both_schemes
async def test_the_holder_of_a_key_moves_its_gallery(suite, client):
    safe = await client.create_gallery("safe", client_held=True)
    for number in range(4):
        await safe.enroll(f"s{number}", person(number))
    async for _ in safe.import_many([(f"b{number}", person(100 + number)) for number in range(3)]):
        pass
    before = await safe.distances(person(1))
    done = await safe.rotate()
    assert done.state == o.OPERATION_STATE_DONE
    assert safe.info.key_version == "keys/safe/versions/2"
    assert client.key_folder.load("keys/safe/versions/1") != client.key_folder.load("keys/safe/versions/2")
    after = await safe.distances(person(1))
    order = np.argsort(before[0]), np.argsort(after[0])
    assert np.array_equal(before[0][order[0]], after[0][order[1]])
    assert np.allclose(before[1][order[0]], after[1][order[1]], atol=1e-3)
    client.key_folder.remove("keys/safe/versions/1")
    assert (await safe.verify("s2", person(2))).match
    assert [c.subject for c in (await safe.identify(person(101))).candidates] == ["b1"]
    assert not (await safe.identify(person(900))).match


# --- clients that do not know


async def moved_behind(client, gallery_id="door"):
    """Move a gallery by another client than those that have it open."""
    operator = await client.gallery(gallery_id)
    await operator.operations.wait(await operator.rotate())


async def test_many_calls_that_meet_a_moved_gallery_fetch_it_once(suite, client, monkeypatch):
    door = await everybody(client, 3)
    await moved_behind(client)
    fetched, fetch = [], client.gallery

    async def noted(gallery_id):
        fetched.append(gallery_id)
        return await fetch(gallery_id)

    monkeypatch.setattr(client, "gallery", noted)
    answers = await asyncio.gather(
        *(door.verify(f"s{i % 3}", person(i % 3)) for i in range(8)),
        *(door.identify(person(i % 3)) for i in range(8)),
        *(door.enroll(f"t{i}", person(20 + i)) for i in range(8)),
    )
    assert all(answer.match for answer in answers[:16])
    assert fetched == ["door"]
    assert (await door.verify("t7", person(27))).match


async def test_what_was_encrypted_before_a_gallery_was_fetched_again_is_not_taken_for_the_new_versions(
    suite, client, monkeypatch
):
    """Another call notices, and fetches the gallery, between the encryption of a template and its sending."""
    door = await everybody(client, 1)
    await moved_behind(client)
    encrypt = door._encrypt

    async def overtaken(*arguments):
        encrypted = await encrypt(*arguments)
        await door.refresh()
        return encrypted

    monkeypatch.setattr(door, "_encrypt", overtaken)
    await door.enroll("late", person(50))
    monkeypatch.undo()
    await moved_behind(client)
    monkeypatch.setattr(door, "_encrypt", overtaken)
    assert (await door.verify("late", person(50))).match
    monkeypatch.undo()
    await moved_behind(client)
    monkeypatch.setattr(door, "_encrypt", overtaken)
    assert [c.subject for c in (await door.identify(person(50))).candidates] == ["late"]


async def test_a_changed_retention_does_not_hide_that_the_gallery_was_moved(suite, client):
    door = await everybody(client, 1)
    await moved_behind(client)
    await door.keep_for(None)
    await door.enroll("late", person(50))
    assert (await door.verify("late", person(50))).match


async def test_bulk_calls_go_on_under_the_new_version(suite, client):
    door = await everybody(client, 1)
    await moved_behind(client)
    stored = [one async for one in door.enroll_many([(f"m{i}", person(60 + i)) for i in range(3)])]
    assert [one.slot for one in stored] == [7, 8, 9]
    await moved_behind(client)
    found = [one async for one in door.identify_many([person(60), person(900)])]
    assert [[c.subject for c in one.candidates] for one in found] == [["m0"], []]
    await moved_behind(client)
    people = [(f"n{i}", person(70 + i)) for i in range(3)]
    assert [one.templates async for one in door.import_many(people)] == [3]
    assert (await door.verify("n2", person(72))).match


async def test_a_holder_opens_what_was_asked_under_the_version_that_it_was_asked_under(suite, client, monkeypatch):
    safe = await client.create_gallery("safe", client_held=True)
    await safe.enroll("s0", person(0))
    update = safe._update_slots

    async def overtaken():  # the last thing before an answer is opened
        await update()
        if safe.info.key_version == "keys/safe/versions/1":
            await moved(safe)

    async def moved(gallery):
        other = await client.gallery(gallery.id)
        await other.rotate()
        await gallery.refresh()

    await safe.enroll("s1", person(1))  # so that the table is behind
    monkeypatch.setattr(safe, "_update_slots", overtaken)
    assert [c.subject for c in (await safe.identify(person(0))).candidates] == ["s0"]
    assert safe.info.key_version == "keys/safe/versions/2"
