"""The key zone's database to a file and back."""

import sqlite3
from contextlib import closing

import pytest

from sealface.errors import SealfaceError
from sealface.keys import wrapping
from sealface.keys.backup import KeyBackupDamaged, KeysThere, NoKeyBackup, NoKeyDatabase, back_up, restore, verify
from sealface.keys.occupancy import KeyZoneInUse
from sealface.keys.providers import FileKey
from sealface.storage.schema import SchemaOutOfDate
from sealface_protos.keys.v1 import key_service_pb2
from tests.conftest import both_schemes, person, refused
from tests.keys.conftest import ask, create_key, material
from tests.keys.test_rewrap import blobs, destroy, rotate
from tests.keys.test_server import identity

k = key_service_pb2


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.backup"


def database(suite):
    return suite.keys / "keys.db"


@both_schemes
async def test_a_backup_of_a_running_service_brings_everything_back(suite, client, door_key, alice, file):
    await rotate(client, 1)
    results = door_key.results({5: person(0)})
    before = await door_key.decide(ask(alice, door_key.probe), results)
    signs, keys, secrets = await identity(client), await client.list_keys(), blobs(suite)
    made = back_up(database(suite), file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert (made.keys, made.versions) == (1, 2)
    assert made.secrets == {FileKey(suite.keys / "key-encryption.key").id: 4}
    assert made.recovery_keys == {"": 4}
    assert verify(file) == made
    assert {path.name for path in file.parent.iterdir()} == {"keys", "keys.backup"}  # nothing is left over
    await rotate(client, 2)
    await create_key(client, "later")

    await suite.stop("keys")
    for path in suite.keys.glob("keys.db*"):
        path.unlink()
    assert restore(file, suite.keys).destroyed == 0
    await suite.start("keys")
    assert await client.list_keys() == keys
    assert blobs(suite) == secrets
    assert await identity(client) == signs
    assert await material(client, "keys/door/versions/1") == door_key.public
    assert await door_key.decide(ask(alice, door_key.probe), results) == before


async def test_neither_the_key_encryption_key_nor_a_secret_is_in_it(suite, door_key, file):
    back_up(database(suite), file)
    key_file = suite.keys / "key-encryption.key"
    stored = file.read_bytes()
    for name, blob in blobs(suite).items():
        secret = wrapping.unwrap(wrapping.KeyEncryption(FileKey(key_file)), blob, name)
        assert not any(secret[at : at + 16] in stored for at in range(0, min(len(secret), 4096) - 15, 16))
        assert blob in stored
    assert key_file.read_bytes() not in stored


async def test_what_is_there_is_replaced_on_request_and_not_under_a_service(suite, client, door_key, file):
    back_up(database(suite), file)
    await rotate(client, 1)
    for replace in (False, True):
        with pytest.raises(KeyZoneInUse):
            restore(file, suite.keys, replace=replace)
    await suite.stop("keys")
    with pytest.raises(KeysThere):
        restore(file, suite.keys)
    restore(file, suite.keys, replace=True)
    await suite.start("keys")
    assert (await client.list_keys())[0].primary_version == "keys/door/versions/1"


async def test_a_log_of_the_replaced_database_is_not_played_into_the_new_one(suite, client, door_key, file):
    """As it is left by a service that was killed."""
    back_up(database(suite), file)
    await rotate(client, 1)
    log = (suite.keys / "keys.db-wal").read_bytes()
    assert log
    await suite.stop("keys")
    (suite.keys / "keys.db-wal").write_bytes(log)
    restore(file, suite.keys, replace=True)
    assert not (suite.keys / "keys.db-wal").exists()
    await suite.start("keys")
    assert [
        v.name for v in (await client.keys.ListKeyVersions(k.ListKeyVersionsRequest(parent="keys/door"))).versions
    ] == ["keys/door/versions/1"]


async def test_what_was_destroyed_since_stays_destroyed(suite, client, door_key, file):
    await rotate(client, 1)
    await rotate(client, 2)
    back_up(database(suite), file)
    await destroy(client, "keys/door/versions/1")
    scheduled = await client.keys.DestroyKeyVersion(k.DestroyKeyVersionRequest(name="keys/door/versions/2"))
    await suite.stop("keys")
    assert restore(file, suite.keys, replace=True).destroyed == 2
    await suite.start("keys")
    own = {"audit pseudonym key", "decision signing key"}
    assert set(blobs(suite)) == own | {"keys/door/versions/2", "keys/door/versions/3"}
    assert await client.keys.GetKeyVersion(k.GetKeyVersionRequest(name="keys/door/versions/2")) == scheduled
    version = await client.keys.GetKeyVersion(k.GetKeyVersionRequest(name="keys/door/versions/1"))
    assert (version.state, version.HasField("destroy_time")) == (5, True)
    with refused("FAILED_PRECONDITION", "NOT_SCHEDULED"):
        await client.keys.RestoreKeyVersion(k.RestoreKeyVersionRequest(name="keys/door/versions/1"))
    assert verify(file).secrets  # the file still has it: it must expire


async def test_any_change_of_a_backup_is_found(suite, door_key, file):
    back_up(database(suite), file)
    whole = file.read_bytes()
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), len(whole) // 97)]
    cut = [whole[:at] for at in (0, 5, 40, 88, 100, len(whole) // 2, len(whole) - 1)] + [whole + b"\0"]
    for data in changed + cut:
        file.write_bytes(data)
        with pytest.raises((NoKeyBackup, KeyBackupDamaged)):
            verify(file)
    assert {path.name for path in file.parent.iterdir()} == {"keys", "keys.backup"}


async def test_nothing_damaged_is_backed_up_and_the_backup_before_stays(suite, client, door_key, file):
    back_up(database(suite), file)
    before = file.read_bytes()
    for broken in (
        "UPDATE key_versions SET public_key = zeroblob(5)",
        "UPDATE evaluation_keys SET material = zeroblob(5)",
        "UPDATE key_versions SET wrapped_secret = zeroblob(5)",
        "DELETE FROM key_versions",
    ):
        with closing(sqlite3.connect(database(suite))) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM key_versions")
            connection.execute("CREATE TABLE IF NOT EXISTS kept_keys AS SELECT * FROM evaluation_keys")
            connection.execute(broken)
            connection.commit()
            with pytest.raises(SealfaceError) as caught:
                back_up(database(suite), file)
            assert caught.value.reason in ("KEY_BACKUP_DAMAGED", "SECRET_DAMAGED"), broken
            connection.execute("PRAGMA foreign_keys=OFF")
            for table, kept in (("key_versions", "kept"), ("evaluation_keys", "kept_keys")):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
                connection.execute(f"INSERT INTO {table} SELECT * FROM {kept}")  # noqa: S608
            connection.commit()
    assert file.read_bytes() == before
    back_up(database(suite), file)


async def test_no_database_and_one_of_a_newer_version_are_refused(suite, door_key, file, tmp_path):
    with pytest.raises(NoKeyDatabase):
        back_up(tmp_path / "none.db", file)
    await suite.stop("keys")
    with closing(sqlite3.connect(database(suite))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(SchemaOutOfDate):
        back_up(database(suite), file)
    assert not file.exists()
    with pytest.raises(NoKeyBackup):
        verify(tmp_path / "none")
