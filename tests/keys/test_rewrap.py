"""Secrets move to another key-encryption key, and are not touched."""

import sqlite3
from contextlib import closing

import pytest

from sealface.keys import rewrap as module
from sealface.keys import wrapping
from sealface.keys.providers import FileKey, KeyEncryptionKeyMissing
from sealface.keys.recovery import PUBLIC_FILE, RecoveryKey
from sealface.keys.rewrap import rewrap_all
from sealface.keys.server import KeyConfig
from sealface.keys.wrapping import Envelope
from sealface.runtime.server import ServerConfig
from sealface.storage.schema import KEYS
from sealface_protos.keys.v1 import key_service_pb2
from tests.conftest import both_schemes, person, refused
from tests.keys.conftest import ask, create_key

k = key_service_pb2


def blobs(suite):
    """Every wrapped secret by its name."""
    with closing(sqlite3.connect(suite.keys / "keys.db")) as connection:
        identity = connection.execute("SELECT name, wrapped_secret FROM identity").fetchall()
        query = "SELECT 'keys/' || key || '/versions/' || number, wrapped_secret FROM key_versions"
        return dict(identity) | {name: blob for name, blob in connection.execute(query) if blob is not None}


def rotate(client, number):
    name = f"keys/door/versions/{number}"
    return client.keys.RotateKey(k.RotateKeyRequest(name="keys/door", primary_version=name))


async def destroy(client, name):
    await client.keys.DestroyKeyVersion(k.DestroyKeyVersionRequest(name=name, undo_window={"seconds": 0}))


@pytest.fixture
def new_key(suite):
    """Address of another key-encryption key."""
    FileKey.create(suite.folder / "new.key")
    return f"file:{suite.folder / 'new.key'}"


@both_schemes
async def test_every_secret_moves_and_nothing_else_changes(suite, client, door_key, alice, new_key):
    await rotate(client, 1)
    await create_key(client, "safe")
    await destroy(client, "keys/safe/versions/1")
    results = door_key.results({5: person(0)})
    old = FileKey(suite.keys / "key-encryption.key").id
    before = blobs(suite)
    assert len(before) == 4 and {Envelope.parse(blob).key for blob in before.values()} == {old}

    await suite.stop("keys")
    suite.key_encryption = {"key_encryption": new_key, "key_encryption_old": f"file:{suite.keys}/key-encryption.key"}
    await suite.start("keys")
    await rotate(client, 2)  # both open, and what is new is under the new one
    assert (await door_key.decide(ask(alice, door_key.probe), results)).candidates[0].slot == 5
    counted = await client.rewrap_keys(only_count=True)
    assert (counted.current, counted.rewrapped, counted.unrecoverable, list(counted.failed)) == (1, 4, 5, [])
    assert before.items() <= blobs(suite).items()
    done = await client.rewrap_keys()
    new = FileKey(suite.folder / "new.key").id
    assert (done.key_encryption_key, done.current, done.rewrapped, list(done.failed)) == (new, 1, 4, [])
    after = blobs(suite)
    assert {Envelope.parse(blob).key for blob in after.values()} == {new}
    assert all(Envelope.parse(after[name]).body == Envelope.parse(blob).body for name, blob in before.items())
    again = await client.rewrap_keys()
    assert (again.current, again.rewrapped) == (5, 0)
    assert blobs(suite) == after

    await suite.stop("keys")
    (suite.keys / "key-encryption.key").unlink()
    suite.key_encryption = {"key_encryption": new_key}
    await suite.start("keys")
    assert (await door_key.decide(ask(alice, door_key.probe), results)).candidates[0].slot == 5


async def test_only_an_operator_rewraps(suite, alice):
    async with suite.client(alice) as verifier:
        with refused("PERMISSION_DENIED", "OPERATOR_REQUIRED"):
            await verifier.keys.RewrapKeys(k.RewrapKeysRequest())


async def test_what_the_old_key_opened_is_not_left_in_the_files(suite, client, door_key, new_key):
    wrapped = [Envelope.parse(blob).wrapped for blob in blobs(suite).values()]

    def left():
        stored = b"".join(path.read_bytes() for path in suite.keys.glob("keys.db*"))
        return [data for data in wrapped if data in stored]

    assert left() == wrapped
    await suite.stop("keys")
    suite.key_encryption = {"key_encryption": new_key, "key_encryption_old": f"file:{suite.keys}/key-encryption.key"}
    await suite.start("keys")
    await client.rewrap_keys()
    assert left() == []


async def test_it_stops_half_way_and_is_begun_again(suite, client, door_key, new_key, monkeypatch):
    """Each secret opens whatever became of the others, and those that moved are not moved again."""
    for number in range(1, 4):
        await rotate(client, number)
    await suite.stop("keys")
    config = KeyConfig(suite.keys, ServerConfig(), None, new_key, f"file:{suite.keys / 'key-encryption.key'}")
    engine, before = KEYS.open_file(config.database), blobs(suite)
    replace = module._replace

    def twice(*arguments):
        if len(moved := [n for n, blob in blobs(suite).items() if blob != before[n]]) == 2:
            raise KeyEncryptionKeyMissing(f"after {len(moved)}")
        replace(*arguments)

    monkeypatch.setattr(module, "_replace", twice)
    with pytest.raises(KeyEncryptionKeyMissing, match="after 2"):
        rewrap_all(engine, config.encryption())
    half = blobs(suite)
    assert sum(half[name] != blob for name, blob in before.items()) == 2
    suite.key_encryption = {"key_encryption": new_key, "key_encryption_old": config.key_encryption_old}
    await suite.start("keys")
    for name, blob in half.items():
        assert wrapping.unwrap(config.encryption(), blob, name)
    monkeypatch.undo()
    done = await client.rewrap_keys()
    assert (done.current, done.rewrapped) == (2, 4)
    engine.dispose()


async def test_a_secret_that_is_destroyed_meanwhile_stays_destroyed(suite, client, door_key, new_key, monkeypatch):
    await rotate(client, 1)
    await suite.stop("keys")
    suite.key_encryption = {"key_encryption": new_key, "key_encryption_old": f"file:{suite.keys}/key-encryption.key"}
    await suite.start("keys")
    real = wrapping.rewrap

    def destroyed_first(keys, blob, name):
        if name == "keys/door/versions/1":
            with closing(sqlite3.connect(suite.keys / "keys.db")) as connection:
                update = "UPDATE key_versions SET state = 'destroyed', wrapped_secret = NULL WHERE number = 1"
                connection.execute(update)
                connection.commit()
        return real(keys, blob, name)

    monkeypatch.setattr(wrapping, "rewrap", destroyed_first)
    await client.rewrap_keys()
    assert set(blobs(suite)) == {"audit pseudonym key", "decision signing key", "keys/door/versions/2"}


async def test_what_does_not_open_is_named_and_the_rest_moves(suite, client, door_key, new_key):
    await rotate(client, 1)
    await suite.stop("keys")
    with closing(sqlite3.connect(suite.keys / "keys.db")) as connection:
        broken = "UPDATE key_versions SET wrapped_secret = CAST(wrapped_secret || x'00' AS BLOB) WHERE number = 1"
        connection.execute(broken)
        connection.commit()
    suite.key_encryption = {"key_encryption": new_key, "key_encryption_old": f"file:{suite.keys}/key-encryption.key"}
    await suite.start("keys")
    done = await client.rewrap_keys()
    assert (done.rewrapped, list(done.failed)) == (3, ["keys/door/versions/1"])


async def test_a_recovery_key_comes_later_and_goes(suite, client, door_key):
    recovery = RecoveryKey.generate()
    await suite.stop("keys")
    recovery.save(suite.folder, "")
    (suite.folder / PUBLIC_FILE).rename(suite.keys / PUBLIC_FILE)
    await suite.start("keys")
    await rotate(client, 1)
    done = await client.rewrap_keys()
    assert (done.current, done.rewrapped, done.unrecoverable) == (1, 3, 3)
    assert {Envelope.parse(blob).recovery_key for blob in blobs(suite).values()} == {recovery.id}
    assert (await client.rewrap_keys()).unrecoverable == 0
    await suite.stop("keys")
    (suite.keys / PUBLIC_FILE).unlink()
    await suite.start("keys")
    assert (await client.rewrap_keys()).rewrapped == 4
    assert {Envelope.parse(blob).recovery for blob in blobs(suite).values()} == {b""}
