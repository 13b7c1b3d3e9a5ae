"""Whole blocks, encrypted as they are by whoever holds the embeddings."""

from __future__ import annotations

import asyncio
import threading

import grpc
import numpy as np
import pytest

from sealface.cipher.evaluator import block_size
from sealface.cipher.parameters import N8192
from sealface.enrollment.record import Record
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from tests.conftest import POLICY, both_schemes, near, person, refused, status_of
from tests.enrollment.conftest import (
    create_gallery,
    description,
    enroll_request,
    import_data,
    import_header,
    import_messages,
)


async def send(client, parts, **options):
    return await client.enrollment.ImportBlock(iter(parts), **options)


async def import_block(client, to, people, *, data=None, size=1 << 20, **changed):
    """People by number; subject 's3' is person 3."""
    header = import_header(to, [f"s{number}" for number in people], **changed)
    if data is None:
        data = import_data(to, [person(number) for number in people])
    return await send(client, import_messages(header, data, size))


def who(found):
    return [named.subject for named in found.candidates]


def rows(suite):
    """Slot, subject, first slot and block of each template."""
    return [row[1:5] for row in suite.record()["templates"]]


# --- what it stores


@both_schemes
@pytest.mark.parametrize("client_held", [False, True], ids=["managed", "client-held"])
async def test_a_block_is_searchable_at_once(suite, client, client_held):
    gallery = await client.create_gallery("door", policy=POLICY, client_held=client_held)
    await gallery.enroll("s1", near(person(1), 0.25))
    answer = await import_block(client, gallery, [5, 1, 9])
    assert (answer.first_slot, answer.layout_epoch) == (2, 2)
    assert rows(suite) == [(1, "s1", 1, None), (2, "s5", 2, 1), (3, "s1", 1, 1), (4, "s9", 4, 1)]
    for number in (5, 1, 9):
        assert who(await gallery.identify(near(person(number), 0.1))) == [f"s{number}"]
        assert (await gallery.verify(f"s{number}", near(person(number), 0.1))).match
        assert not (await gallery.verify(f"s{number}", person(7))).match
    assert who(await gallery.identify(person(7))) == []
    assert (await gallery.enroll("s7", person(7))).slot == 5
    assert who(await gallery.identify(person(7))) == ["s7"]


@both_schemes
async def test_it_is_stored_and_not_as_it_was_sent(suite, client, door):
    data = import_data(door, [person(1), person(2)])
    await import_block(client, door, [1, 2], data=data)
    ((_, number, columns, slots, imported, erased, _),) = suite.record()["blocks"]
    ((*_, stored, _),) = suite.record()["block_ciphertexts"]
    assert (number, columns, imported, erased) == (1, door.layout.sealed_shapes[0].columns, 1, 0)
    assert np.frombuffer(slots, "<u4").tolist() == [1, 2] + [0] * (door.layout.sealed_shapes[0].capacity - 2)
    assert len(stored) == len(data)
    assert stored != data
    if len(data) == block_size(door.layout.sealed_shapes[0]):  # CKKS: nothing of it is left where it was
        assert (np.frombuffer(stored, np.uint8) == np.frombuffer(data, np.uint8)).mean() < 0.01


@both_schemes
@pytest.mark.parametrize("shape", [0, 1])
async def test_a_full_block_of_a_shape(client, door, shape):
    shape = door.layout.sealed_shapes[shape]
    people = range(shape.capacity)
    data = import_data(door, [person(number) for number in people], shape)
    answer = await import_block(client, door, people, data=data, columns=shape.columns)
    assert answer.first_slot == 1
    info = await client.enrollment.GetGallery(messages.GetGalleryRequest(name="galleries/door"))
    assert (info.subjects, info.templates) == (shape.capacity, shape.capacity)
    for number in (0, 1, shape.columns, shape.capacity - 1):
        assert who(await door.identify(near(person(number), 0.1))) == [f"s{number}"]


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
async def test_however_the_data_is_cut(client, door, size):
    data = import_data(door, [person(1)])
    if size == 1:  # one byte a message at both ends
        header, *_ = import_messages(import_header(door, ["s1"]), b"")
        pieces = [data[:1], data[1:-1], b"", data[-1:]]
        await send(client, [header, *(messages.ImportBlockRequest(data=piece) for piece in pieces)])
    else:
        await import_block(client, door, [1], data=data, size=size)
    assert (await door.verify("s1", person(1))).match


@both_schemes
async def test_several_blocks_and_single_templates_live_beside_each_other(client, door):
    for first in (0, 10, 20):
        await import_block(client, door, range(first, first + 5))
        await door.enroll(f"s{first + 5}", person(first + 5))
    for number in (0, 4, 5, 12, 15, 24, 25):
        assert who(await door.identify(near(person(number), 0.1))) == [f"s{number}"]
    # templates of one subject, in two blocks and by itself
    await import_block(client, door, [99, 12])
    await door.enroll("s12", near(person(12), 0.1))
    (found,) = [subject for subject in await door.subjects() if subject.name.endswith("/s12")]
    assert [template.slot for template in found.templates] == [9, 20, 21]
    assert (await door.verify("s12", near(person(12), 0.15))).match
    assert await door.erase("s12") == 3
    assert who(await door.identify(person(12))) == []


async def test_a_subject_may_be_in_a_block_more_than_once(client, door):
    header = import_header(door, ["ann", "bob", "ann"])
    data = import_data(door, [near(person(1), 0.5), person(2), person(1)])
    await send(client, import_messages(header, data))
    assert (await door.verify("ann", person(1))).match
    assert who(await door.identify(person(1))) == ["ann"]
    assert await door.erase("ann") == 2


async def test_slot_tables_follow(client, door):
    await import_block(client, door, [3, 1, 2])
    parts = client.enrollment.ListSlotChanges(messages.ListSlotChangesRequest(gallery="galleries/door"))
    (part,) = [part async for part in parts]
    changes = [(change.slot, change.subject, change.layout_epoch) for change in part.changes]
    assert changes == [(1, "s3", 1), (2, "s1", 1), (3, "s2", 1)]


# --- again


@both_schemes
async def test_the_same_request_gets_the_same_answer_and_no_second_block(suite, client, door):
    first = await import_block(client, door, [1, 2], request_id="once")
    before = suite.record()
    assert await import_block(client, door, [1, 2], request_id="once") == first
    # a retry encrypts anew; what it carries is not even looked at
    assert await import_block(client, door, [1, 2], request_id="once", data=b"x") == first
    assert suite.record() == before
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await import_block(client, door, [2, 1], request_id="once")
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await import_block(client, door, [1], request_id="once")
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await client.enrollment.Enroll(enroll_request(door, "s9", request_id="once"))
    assert suite.record() == before


async def test_the_same_request_in_parallel_is_stored_once(suite, client, door):
    parts = import_messages(import_header(door, ["a", "b"], request_id="once"), import_data(door, [person(1)] * 2))
    answers = await asyncio.gather(*(send(client, parts) for _ in range(6)))
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert len(suite.record()["blocks"]) == 1
    assert len(suite.record()["templates"]) == 2


async def test_a_request_id_outlives_its_subjects(suite, client, door):
    first = await import_block(client, door, [1, 2], request_id="once")
    await door.erase("s1")
    await door.erase("s2")
    assert await import_block(client, door, [1, 2], request_id="once") == first
    assert suite.record()["templates"] == []
    assert not [row for row in suite.record()["requests"] if "s1" in row or "s2" in row]


# --- what is refused


@pytest.mark.parametrize(
    ("changed", "code", "reason"),
    [
        ({"gallery": "galleries/none"}, "NOT_FOUND", "GALLERY_NOT_FOUND"),
        ({"gallery": "none"}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"gallery": ""}, "INVALID_ARGUMENT", "MISSING_FIELD"),
        ({"key_version": ""}, "INVALID_ARGUMENT", "WRONG_KEY_VERSION"),
        ({"key_version": "keys/door/versions/2"}, "INVALID_ARGUMENT", "WRONG_KEY_VERSION"),
        ({"parameter_set": ""}, "INVALID_ARGUMENT", "WRONG_PARAMETER_SET"),
        ({"parameter_set": N8192.name}, "INVALID_ARGUMENT", "WRONG_PARAMETER_SET"),
        ({"columns": 0}, "INVALID_ARGUMENT", "UNKNOWN_SHAPE"),
        ({"columns": 1}, "INVALID_ARGUMENT", "UNKNOWN_SHAPE"),  # a group of the open tail
        ({"columns": 2}, "INVALID_ARGUMENT", "UNKNOWN_SHAPE"),
        ({"columns": 12}, "INVALID_ARGUMENT", "UNKNOWN_SHAPE"),
        ({"columns": 256}, "INVALID_ARGUMENT", "UNKNOWN_SHAPE"),
        ({"columns": 2**32 - 1}, "INVALID_ARGUMENT", "UNKNOWN_SHAPE"),
        ({"subject_ids": []}, "INVALID_ARGUMENT", "WRONG_SUBJECTS"),
        ({"subject_ids": ["s"] * 65}, "INVALID_ARGUMENT", "WRONG_SUBJECTS"),
        ({"subject_ids": [""]}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"subject_ids": ["a", "a/b"]}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"subject_ids": ["s" * 65]}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"subject_ids": ["a\nb"]}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"request_id": ""}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"request_id": "r r"}, "INVALID_ARGUMENT", "INVALID_NAME"),
    ],
)
async def test_a_wrong_header_is_refused_and_changes_nothing(suite, client, door, changed, code, reason):
    assert door.layout.sealed_shapes[0].capacity == 64
    before = suite.record()
    with refused(code, reason):
        await import_block(client, door, [1], **changed)

    async def without_data():
        yield messages.ImportBlockRequest(header=import_header(door, ["s1"], **changed))
        await asyncio.sleep(60)

    with refused(code, reason):  # before any data is taken
        await client.enrollment.ImportBlock(without_data(), timeout=20)
    assert suite.record() == before


@both_schemes
async def test_a_block_that_is_none_is_refused(suite, client, door):
    shape = door.layout.sealed_shapes[0]
    good = import_data(door, [person(1)])
    template = door._keyed.encryptor.template(person(1))
    larger = import_data(door, [person(1)], door.layout.sealed_shapes[1])
    before = suite.record()
    for data in (b"", b"x", good[:-1], good[:100], b"\xff" * len(good), bytes(len(good)), template):
        with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
            await import_block(client, door, [1], data=data)
    for data in (larger + bytes(block_size(shape)), bytes(block_size(shape) + 1)):
        for size in (1 << 20, 100_000):
            with refused("INVALID_ARGUMENT", "BLOCK_TOO_LONG") as caught:
                await import_block(client, door, [1], data=data, size=size)
            assert status_of(caught.value)[1].metadata == {"limit": str(block_size(shape))}
    assert suite.record() == before


@both_schemes
async def test_a_block_that_hides_nothing_is_refused(suite, client, door):
    good = bytearray(import_data(door, [person(1)]))
    if len(good) < block_size(door.layout.sealed_shapes[0]):
        return  # nothing is hidden without encryption
    of_polynomial = len(good) // (2 * door.layout.sealed_shapes[0].columns)
    good[-of_polynomial:] = bytes(of_polynomial)  # the last column's c1
    before = suite.record()
    with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
        await import_block(client, door, [1], data=bytes(good))
    assert suite.record() == before


async def test_one_header_first_and_then_data(suite, client, door):
    header, *data = import_messages(import_header(door, ["s1"]), import_data(door, [person(1)]))
    empty = messages.ImportBlockRequest()
    before = suite.record()
    for parts in (
        [],
        [empty],
        [empty, header, *data],
        [*data, header],
        data,
        [header, header, *data],
        [header, *data, header],
        [header, empty, *data],
        [messages.ImportBlockRequest(header=messages.ImportBlockHeader()), *data],
    ):
        with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
            await send(client, parts)
    with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
        await send(client, [header])
    assert suite.record() == before
    assert (await send(client, [header, *data])).first_slot == 1


async def test_too_much_is_refused_before_it_is_all_there(suite, client, door):
    """What a caller sends is not held without bound."""
    header = import_header(door, ["s1"])
    sent = 0

    async def parts():
        nonlocal sent
        yield messages.ImportBlockRequest(header=header)
        while sent < 1000:
            sent += 1
            yield messages.ImportBlockRequest(data=bytes(100_000))

    with refused("INVALID_ARGUMENT", "BLOCK_TOO_LONG"):
        await client.enrollment.ImportBlock(parts())
    assert sent < 1000


@pytest.mark.parametrize("held", [0, 10, 16])
async def test_a_subject_has_at_most_so_many_templates(suite, client, door, held):
    for i in range(held):
        await door.enroll("ann", near(person(1), 0.01 * i, i))
    room = 16 - held
    vectors = [near(person(1), 0.01 * i, 50 + i) for i in range(room + 1)]
    before = suite.record()
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_TEMPLATES"):
        header = import_header(door, ["bob", *["ann"] * (room + 1)])
        await send(client, import_messages(header, import_data(door, [person(2), *vectors])))
    assert suite.record() == before
    header = import_header(door, ["bob", *["ann"] * room])
    await send(client, import_messages(header, import_data(door, [person(2), *vectors[:room]])))
    # all of them can be claimed at once
    assert (await door.verify("ann", person(1))).match
    assert await door.erase("ann") == 16


async def test_a_block_of_a_gallery_made_anew_meanwhile_is_not_stored_under_the_new_key(
    suite, client, door, monkeypatch
):
    from tests.keys.conftest import create_key

    reached, go, store = threading.Event(), threading.Event(), Record.import_block

    def slow(*arguments, **named):
        reached.set()
        go.wait(10)
        return store(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Record, "import_block", slow)
        importing = asyncio.ensure_future(import_block(client, door, [1]))
        await asyncio.to_thread(reached.wait, 10)
        await client.delete_gallery("door")
        await create_key(client, "fresh")
        await create_gallery(client, "door", description("keys/fresh"))
        go.set()
        with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
            await importing
    assert suite.record()["templates"] == suite.record()["blocks"] == []


async def test_a_gallery_deleted_before_the_data_has_arrived(suite, client, door):
    go = asyncio.Event()

    async def parts():
        header, *data = import_messages(import_header(door, ["s1"]), import_data(door, [person(1)]))
        yield header
        await go.wait()
        for part in data:
            yield part

    importing = client.enrollment.ImportBlock(parts())
    await asyncio.sleep(0.05)
    await client.delete_gallery("door")
    go.set()
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await importing
    left = {table for table, held in suite.record().items() if held}
    assert left == {"retired_galleries", "audit", "pseudonym_key"}


async def test_a_caller_that_gives_up_leaves_nothing(suite, client, door):
    before = suite.record()
    began = asyncio.Event()

    async def parts():
        header, *_ = import_messages(import_header(door, ["s1"]), b"")
        yield header
        yield messages.ImportBlockRequest(data=bytes(1000))
        began.set()
        await asyncio.sleep(60)

    call = client.enrollment.ImportBlock(parts(), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert began.is_set()
    assert suite.record() == before


# --- erased


@both_schemes
async def test_an_erased_subject_of_a_block_is_never_found(suite, client, door):
    await import_block(client, door, [1, 2, 3])
    assert await door.erase("s2") == 1
    assert who(await door.identify(person(2))) == []
    assert who(await door.identify(person(3))) == ["s3"]
    with pytest.raises(Exception, match="no such subject"):
        await door.verify("s2", person(2))
    await door.erase("s1")
    await door.erase("s3")
    await suite.sealed()  # no block is left
    assert who(await door.identify(person(3))) == []
