"""RenewBlock, called as compute calls it: rightly, wrongly, and by somebody who has broken into compute."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from sealface.cipher.distance import Metric
from sealface.cipher.evaluator import block_size
from sealface.cipher.layout import Layout
from sealface.cipher.parameters import N4096
from sealface_protos.keys.v1 import key_pb2, key_service_pb2
from tests.conftest import DIMENSION, both_schemes, dump, person, refused
from tests.keys.conftest import ask, create_key, keyed, new_key

CHUNK = 1 << 20
PEOPLE = (1, 2, 3, 4)


def header(shape, positions, **changed):
    cleared = np.zeros(shape.capacity, bool)
    cleared[list(positions)] = True
    fields = {
        "key_version": "keys/door/versions/1",
        "columns": shape.columns,
        "cleared": np.packbits(cleared, bitorder="little").tobytes(),
    }
    return key_service_pb2.RenewBlockHeader(**fields | changed)


def requests(first, data, size=CHUNK):
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [
        key_service_pb2.RenewBlockRequest(header=first),
        *(key_service_pb2.RenewBlockRequest(data=part) for part in parts),
    ]


async def call(client, messages):
    """The answer's parts."""
    return [part.data async for part in client.keys.RenewBlock(iter(messages), timeout=20)]


@pytest.fixture
def shape(door_key):
    return door_key.layout.sealed_shapes[0]


@pytest.fixture
def block(door_key, shape):
    """Four people, as they are stored."""
    vectors = np.stack([person(number) for number in PEOPLE])
    return door_key.evaluator.admit_block(shape, door_key.encryptor.block(shape, vectors))


@pytest.fixture
def blinded(door_key, shape, block):
    return door_key.evaluator.blind(shape, block)[0]


# --- renewals


@both_schemes
@pytest.mark.parametrize("metric", [key_pb2.METRIC_COSINE, key_pb2.METRIC_EUCLIDEAN])
@pytest.mark.parametrize("which", [0, -1], ids=["smallest", "largest"])
async def test_a_renewed_block_decides_as_before_without_who_was_cleared(client, scheme, alice, metric, which):
    form = key_pb2.ScoreFormat(dimension=DIMENSION, metric=metric, largest_norm=2.0)
    made = await keyed(client, scheme, await create_key(client, "door", new_key(score_format=form)))
    shape = made.layout.sealed_shapes[which]
    people = {slot: person(slot) for slot in PEOPLE}
    vectors = np.stack(list(people.values()))
    block = made.evaluator.admit_block(shape, made.encryptor.block(shape, vectors))
    blinded, blinding = made.evaluator.blind(shape, block)
    cleared = np.zeros(shape.capacity, bool)
    cleared[[0, 2]] = True
    parts = await call(client, requests(header(shape, [0, 2]), blinded))
    assert all(0 < len(part) <= CHUNK for part in parts)
    answer = b"".join(parts)
    assert len(answer) == len(blinded)
    assert answer != blinded
    renewed = made.evaluator.load(shape, made.evaluator.unblind(shape, answer, blinding, cleared))
    for slot, vector in people.items():
        probe = made.encryptor.probe(vector)
        leaves = made.evaluator.expand([made.evaluator.admit_probe(probe)], {shape})[shape]
        # who was cleared is asked for as well here: nobody is there
        result = made.score(shape, renewed, leaves, list(people))
        decision = await made.decide(ask(alice, probe), [result])
        assert [candidate.slot for candidate in decision.candidates] == ([slot] if slot in (2, 4) else [])


@pytest.mark.parametrize("size", [1000, CHUNK])
async def test_however_the_data_is_cut(client, shape, blinded, size):
    assert len(b"".join(await call(client, requests(header(shape, [1]), blinded, size)))) == len(blinded)


async def test_an_answer_is_another_each_time_and_nothing_is_kept(suite, client, shape, blinded):
    before = dump(suite.keys / "keys.db")
    answers = [b"".join(await call(client, requests(header(shape, [1]), blinded))) for _ in range(2)]
    assert answers[0] != answers[1]
    assert dump(suite.keys / "keys.db") == before


async def test_a_restart_changes_nothing(suite, client, door_key, shape, block):
    blinded, blinding = door_key.evaluator.blind(shape, block)
    await suite.restart("keys")
    answer = b"".join(await call(client, requests(header(shape, []), blinded)))
    nobody = np.zeros(shape.capacity, bool)
    renewed = door_key.evaluator.load(shape, door_key.evaluator.unblind(shape, answer, blinding, nobody))
    assert np.allclose(renewed.vectors, door_key.evaluator.load(shape, block).vectors)


# --- refusals


@both_schemes
async def test_data_of_the_wrong_size_is_refused(client, shape, blinded):
    first = header(shape, [1])
    for short in (b"", blinded[:-1], blinded[: len(blinded) // 2]):
        with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
            await call(client, requests(first, short))


async def test_more_than_a_block_is_refused_before_it_is_all_there(client, shape):
    size = block_size(shape)
    sent = 0

    async def endless():
        nonlocal sent
        yield key_service_pb2.RenewBlockRequest(header=header(shape, [1]))
        while sent < 100:
            sent += 1
            yield key_service_pb2.RenewBlockRequest(data=bytes(CHUNK))
            await asyncio.sleep(0.1)  # a status that meets a message under way is lost to the client

    with refused("INVALID_ARGUMENT", "BLOCK_TOO_LONG") as caught:
        async for _ in client.keys.RenewBlock(endless(), timeout=20):
            raise AssertionError("it was answered")
    assert f"{size} bytes" in caught.value.details()
    assert sent < 60


@both_schemes
async def test_bytes_that_are_no_ciphertext_are_refused(client, scheme, door_key, shape, blinded):
    first = header(shape, [1])
    bad = [b"\xff" * len(blinded)]  # residues out of range
    if len(blinded) == block_size(shape):  # CKKS: c1 = 0 hides nothing
        bad.append(bytes(len(blinded)))
    for data in bad:
        with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
            await call(client, requests(first, data))
    other = door_key.layout.sealed_shapes[1]
    data = door_key.encryptor.block(other, np.stack([person(1)]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(client, requests(first, data))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("columns", [0, 3, 256, 2**32 - 1])
async def test_columns_that_no_block_has_are_refused(client, shape, blinded, columns):
    with refused("INVALID_ARGUMENT", "UNKNOWN_SHAPE"):
        await call(client, requests(header(shape, [1], columns=columns), blinded))


async def test_a_group_is_no_block(client, shape, blinded):
    with refused("INVALID_ARGUMENT", "UNKNOWN_SHAPE"):
        await call(client, requests(header(shape, [1], columns=1), blinded))


async def test_positions_that_are_not_the_shapes_are_refused(client, door_key, blinded):
    shape = door_key.layout.sealed_shapes[0]
    right = header(shape, [1]).cleared
    assert len(right) * 8 == shape.capacity  # so a check position takes a byte more
    for cleared in (right[:-1], right + b"\0", right + b"\1"):
        with refused("INVALID_ARGUMENT", "INVALID_POSITIONS") as caught:
            await call(client, requests(header(shape, [1], cleared=cleared), blinded))
        assert str(shape.capacity) in caught.value.details()


@pytest.mark.parametrize(
    ("version", "code", "reason"),
    [
        ("keys/door/versions/2", "NOT_FOUND", "KEY_NOT_FOUND"),
        ("keys/nobody/versions/1", "NOT_FOUND", "KEY_NOT_FOUND"),
        ("keys/door", "INVALID_ARGUMENT", "INVALID_NAME"),
        ("", "INVALID_ARGUMENT", "INVALID_NAME"),
    ],
)
async def test_a_version_that_is_not_there_is_refused(client, shape, blinded, version, code, reason):
    with refused(code, reason):
        await call(client, requests(header(shape, [1], key_version=version), blinded))


async def test_a_key_that_the_client_holds_is_refused(client, scheme, shape, blinded):
    public = scheme.generate(N4096).public
    held = new_key(custody=key_pb2.CUSTODY_CLIENT_HELD)
    await client.keys.RegisterKey(key_service_pb2.RegisterKeyRequest(key_id="safe", key=held, public_key=public))
    with refused("FAILED_PRECONDITION", "KEY_CLIENT_HELD"):
        await call(client, requests(header(shape, [1], key_version="keys/safe/versions/1"), blinded))


async def test_parts_in_the_wrong_order_are_refused(client, shape, blinded):
    first, *rest = requests(header(shape, [1]), blinded)
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await call(client, [])
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await call(client, rest)
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await call(client, [first, first, *rest])
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await call(client, [first, key_service_pb2.RenewBlockRequest()])


async def test_what_is_refused_of_the_header_is_refused_before_the_data(client, shape):
    async def waiting():
        yield key_service_pb2.RenewBlockRequest(header=header(shape, [1], columns=3))
        await asyncio.sleep(60)

    with refused("INVALID_ARGUMENT", "UNKNOWN_SHAPE"):
        async for _ in client.keys.RenewBlock(waiting(), timeout=20):
            pass


@both_schemes
async def test_a_block_of_another_key_comes_back_as_noise(client, scheme, door_key, alice, shape):
    """Nobody is told; it is seen where its results are opened."""
    foreign = scheme.generate(N4096)
    layout = Layout(N4096, DIMENSION, Metric.COSINE)
    block = scheme.encryptor(layout, foreign.public).block(shape, np.stack([person(1)]))
    blinded, blinding = door_key.evaluator.blind(shape, block)
    answer = b"".join(await call(client, requests(header(shape, []), blinded)))
    nobody = np.zeros(shape.capacity, bool)
    renewed = door_key.evaluator.load(shape, door_key.evaluator.unblind(shape, answer, blinding, nobody))
    probe = door_key.encryptor.probe(person(1))
    leaves = door_key.evaluator.expand([door_key.evaluator.admit_probe(probe)], {shape})[shape]
    decision = await door_key.decide(ask(alice, probe), [door_key.score(shape, renewed, leaves, [1])])
    assert not decision.candidates


# --- to the primary version


async def rotated(client):
    rotate = key_service_pb2.RotateKeyRequest(name="keys/door", primary_version="keys/door/versions/1")
    return (await client.keys.RotateKey(rotate)).primary_version


@both_schemes
async def test_a_block_and_templates_are_moved_to_the_primary_version(client, door_key, shape, blinded):
    target = await rotated(client)
    answer = await call(client, requests(header(shape, [], cleared=b"", target_version=target), blinded))
    assert len(b"".join(answer)) == len(blinded)
    group, evaluator = door_key.layout.group, door_key.evaluator
    stored = [evaluator.admit(door_key.encryptor.template(person(number))) for number in range(3)]
    sent, _ = evaluator.blind(group, b"".join(stored), 3)
    announced = header(group, [], cleared=b"", target_version=target, templates=3)
    assert len(b"".join(await call(client, requests(announced, sent)))) == len(sent)


async def test_ciphertexts_are_moved_nowhere_else(client, shape, blinded, door_key):
    second = await rotated(client)
    await client.keys.RotateKey(key_service_pb2.RotateKeyRequest(name="keys/door", primary_version=second))
    for target in (second, "keys/door/versions/4", "keys/hall/versions/3"):
        with refused("FAILED_PRECONDITION", "NOT_THE_PRIMARY_VERSION"):
            await call(client, requests(header(shape, [], target_version=target), blinded))
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await call(client, requests(header(shape, [], target_version="x"), blinded))
    third, group = "keys/door/versions/3", door_key.layout.group
    for count in (0, 257, 2**32 - 1):
        with refused("INVALID_ARGUMENT", "INVALID_COUNT"):
            await call(client, requests(header(group, [], cleared=b"", target_version=third, templates=count), blinded))
    with refused("INVALID_ARGUMENT", "INVALID_COUNT"):
        await call(client, requests(header(shape, [], target_version=third, templates=1), blinded))
    with refused("INVALID_ARGUMENT", "INVALID_POSITIONS"):
        await call(client, requests(header(group, [], target_version=third, templates=1, cleared=b"\1"), blinded))
    off = key_service_pb2.UpdateKeyVersionRequest(name="keys/door/versions/1", state=2)
    await client.keys.UpdateKeyVersion(off)
    with refused("FAILED_PRECONDITION", "KEY_VERSION_INACTIVE"):
        await call(client, requests(header(shape, [], target_version=third), blinded))
