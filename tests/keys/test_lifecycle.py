"""The life of key versions: each state opens what it should, and destroyed is gone."""

import sqlite3
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.duration_pb2 import Duration

from sealface.cipher.parameters import N4096
from sealface.keys import lifecycle, wrapping
from sealface.keys.keyring import Keyring, KeyVersionInactive, KeyVersionQuarantined, State
from sealface.keys.lifecycle import Destroyer, Lifecycle
from sealface.keys.providers import FileKey
from sealface.protocol import convert, sealing
from sealface.protocol.sealing import SecretNotForUs
from sealface.storage.schema import KEYS
from sealface_protos.keys.v1 import decision_pb2, key_pb2, key_service_pb2
from tests.conftest import POLICY, both_schemes, person, refused
from tests.keys.conftest import ask, create_key, new_key
from tests.plain import Plain

k = key_service_pb2
ENABLED, DISABLED, QUARANTINED, SCHEDULED, DESTROYED = range(1, 6)
FIRST, SECOND = "keys/door/versions/1", "keys/door/versions/2"


@pytest.fixture
def engine(tmp_path):
    engine = KEYS.open_file(tmp_path / "keys.db")
    yield engine
    engine.dispose()


@pytest.fixture
def provider(tmp_path):
    FileKey.create(tmp_path / "key")
    return wrapping.KeyEncryption(FileKey(tmp_path / "key"))


@pytest.fixture
def keyring(engine, provider):
    keyring = Keyring(engine, Plain(), provider)
    keyring.create("door", LAYOUT, POLICY)
    return keyring


LAYOUT = convert.layout_from_proto(N4096.name, new_key().score_format)


@pytest.fixture
def life(engine, keyring):
    return Lifecycle(engine, keyring)


def test_a_rotated_key_has_another_secret_and_numbers_go_on(keyring):
    rotated = keyring.rotate("door", 1)
    assert (rotated.version, rotated.oldest_version) == (2, 1)
    assert keyring.secret("door", 1) != keyring.secret("door", 2)
    assert rotated.public_key_digest == keyring.version("door", 2).public_key_digest
    assert keyring.rotate("door", 1) == rotated  # a repeated call makes nothing
    assert [version.number for version in keyring.versions("door", 1 << 31, 10)] == [2, 1]
    assert keyring.opener("door", 1) is not keyring.opener("door", 2)


@pytest.mark.parametrize("change", ["disable", "schedule_destruction"])
def test_a_version_that_is_not_enabled_opens_nothing(keyring, life, change):
    keyring.opener("door", 1)
    getattr(life, change)("door", 1)
    with pytest.raises(KeyVersionInactive):
        keyring.opener("door", 1)
    assert not keyring._openers  # nor is its secret held


def test_a_version_in_quarantine_opens_nothing_until_it_is_enabled(keyring, life):
    life.quarantine("door", 1)
    assert keyring.version("door", 1).state is State.QUARANTINED
    with pytest.raises(KeyVersionQuarantined):
        keyring.opener("door", 1)
    assert life.enable("door", 1).state is State.ENABLED
    keyring.opener("door", 1)
    life.disable("door", 1)
    life.quarantine("door", 1)  # what opens nothing stays as it is
    assert keyring.version("door", 1).state is State.DISABLED


def test_the_oldest_version_that_opens_only_rises(keyring, life):
    for current in (1, 2):
        keyring.rotate("door", current)
    assert life.set_oldest("door", 2).oldest_version == 2
    with pytest.raises(KeyVersionInactive):
        keyring.opener("door", 1)
    keyring.opener("door", 2)
    for wrong in (1, 4, 0):
        with pytest.raises(lifecycle.InvalidOldestVersion) as caught:
            life.set_oldest("door", wrong)
        assert caught.value.metadata == {"oldest": "2", "primary": "3"}
    assert life.set_oldest("door", 2).oldest_version == 2


def test_a_destruction_can_be_undone_until_its_time(keyring, life):
    scheduled = life.schedule_destruction("door", 1, timedelta(hours=1))
    assert scheduled.state is State.DESTROY_SCHEDULED
    assert life.destroy_due() == 0
    restored = life.restore("door", 1)
    assert (restored.state, restored.destroyed) == (State.DISABLED, None)
    with pytest.raises(lifecycle.NotScheduled):
        life.restore("door", 1)
    life.enable("door", 1)
    keyring.opener("door", 1)


def test_a_destroyed_secret_is_gone_for_good(keyring, life, engine, tmp_path):
    opener = keyring.opener("door", 1)
    assert opener is keyring.opener("door", 1)
    with engine.connect() as connection:
        wrapped = connection.exec_driver_sql("SELECT wrapped_secret FROM key_versions").scalar_one()
    part = bytes(wrapped[100:132])
    life.schedule_destruction("door", 1, timedelta(milliseconds=1))
    Destroyer(life, engine).look()
    version = keyring.version("door", 1)
    assert version.state is State.DESTROYED
    with pytest.raises(KeyVersionInactive):
        keyring.secret("door", 1)
    with pytest.raises(KeyVersionInactive):
        keyring.opener("door", 1)
    for change in (life.enable, life.disable, life.schedule_destruction):
        with pytest.raises(lifecycle.KeyVersionDestroyed):
            change("door", 1)
    assert keyring.public_key("door", 1)
    for file in tmp_path.glob("keys.db*"):
        assert part not in file.read_bytes(), file.name
    assert list(keyring.evaluation_keys("door", 1)) == []


def test_what_was_due_while_the_service_was_away_is_destroyed_when_it_is_back(keyring, life, engine, provider):
    life.schedule_destruction("door", 1, timedelta(milliseconds=1))
    again = Keyring(engine, Plain(), provider)
    Destroyer(Lifecycle(engine, again), engine).look()
    assert again.version("door", 1).state is State.DESTROYED


@pytest.mark.parametrize("undo", [timedelta(seconds=-1), timedelta(days=121)])
def test_an_undo_window_has_bounds(life, undo):
    with pytest.raises(lifecycle.InvalidUndoWindow):
        life.schedule_destruction("door", 1, undo)


def test_a_key_is_made_anew_when_all_its_versions_are_destroyed(keyring, life):
    life.schedule_destruction("door", 1, timedelta())
    made = keyring.create("door", LAYOUT, POLICY, exportable=True)
    assert (made.version, made.oldest_version, made.exportable, made.policy.version) == (2, 2, True, 2)
    keyring.opener("door", 2)
    with pytest.raises(KeyVersionInactive):
        keyring.opener("door", 1)


def test_exportability_is_taken_back_and_never_given(keyring, life):
    receiver = X25519PrivateKey.generate()
    public = receiver.public_key().public_bytes_raw()
    with pytest.raises(lifecycle.NotExportable):
        life.export("door", 1, public)
    keyring.create("lent", LAYOUT, POLICY, exportable=True)
    assert not keyring.version("lent", 1).exported
    box = life.export("lent", 1, public)
    assert sealing.open_secret(box, "keys/lent/versions/1", receiver) == keyring.secret("lent", 1)
    with pytest.raises(SecretNotForUs):
        sealing.open_secret(box, "keys/lent/versions/2", receiver)
    with pytest.raises(SecretNotForUs):
        sealing.open_secret(box, "keys/lent/versions/1", X25519PrivateKey.generate())
    assert keyring.version("lent", 1).exported
    assert not life.forbid_export("lent").exportable
    with pytest.raises(lifecycle.NotExportable):
        life.export("lent", 1, public)
    assert keyring.version("lent", 1).exported  # that it once left is not forgotten


async def state(client, name=FIRST):
    return (await client.keys.GetKeyVersion(k.GetKeyVersionRequest(name=name))).state


@both_schemes
async def test_decisions_follow_the_state_of_their_key_version(client, door_key, alice):
    results = door_key.results({1: person(0)})

    async def outcome():
        return await door_key.decide(ask(alice, door_key.probe), results)

    assert (await outcome()).outcome == decision_pb2.OUTCOME_MATCH
    changes = {DISABLED: decision_pb2.REFUSAL_KEY_VERSION, ENABLED: 0}
    for wanted, refusal in changes.items():
        await client.keys.UpdateKeyVersion(k.UpdateKeyVersionRequest(name=FIRST, state=wanted))
        assert (await outcome()).refusal == refusal
    await client.keys.DestroyKeyVersion(k.DestroyKeyVersionRequest(name=FIRST, undo_window=Duration(seconds=60)))
    assert (await outcome()).refusal == decision_pb2.REFUSAL_KEY_VERSION
    await client.keys.RestoreKeyVersion(k.RestoreKeyVersionRequest(name=FIRST))
    await client.keys.UpdateKeyVersion(k.UpdateKeyVersionRequest(name=FIRST, state=ENABLED))
    assert (await outcome()).outcome == decision_pb2.OUTCOME_MATCH
    await client.keys.RotateKey(k.RotateKeyRequest(name="keys/door", primary_version=FIRST))
    assert (await outcome()).outcome == decision_pb2.OUTCOME_MATCH  # the gallery is still under it
    await client.keys.UpdateKey(k.UpdateKeyRequest(name="keys/door", oldest_version=2))
    assert (await outcome()).refusal == decision_pb2.REFUSAL_KEY_VERSION


async def test_wrong_requests_are_refused_precisely(client, suite):
    await create_key(client)
    with refused("NOT_FOUND", "KEY_NOT_FOUND"):
        await client.keys.DestroyKeyVersion(k.DestroyKeyVersionRequest(name=SECOND))
    with refused("NOT_FOUND", "KEY_NOT_FOUND"):
        await client.keys.ListKeyVersions(k.ListKeyVersionsRequest(parent="keys/none"))
    for wanted in (key_pb2.KEY_VERSION_STATE_UNSPECIFIED, QUARANTINED, SCHEDULED, DESTROYED, 77):
        with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
            await client.keys.UpdateKeyVersion(k.UpdateKeyVersionRequest(name=FIRST, state=wanted))
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await client.keys.RotateKey(k.RotateKeyRequest(name="keys/other", primary_version=FIRST))
    with refused("FAILED_PRECONDITION", "KEY_MANAGED"):
        register = k.RegisterKeyVersionRequest(name="keys/door", primary_version=FIRST, public_key=b"x")
        await client.keys.RegisterKeyVersion(register)
    with refused("FAILED_PRECONDITION", "NOT_EXPORTABLE"):
        await client.keys.ExportKeyVersion(k.ExportKeyVersionRequest(name=FIRST, hpke_public_key=bytes(range(32))))
    with refused("INVALID_ARGUMENT", "INVALID_UNDO_WINDOW"):
        window = Duration(seconds=121 * 86_400)
        await client.keys.DestroyKeyVersion(k.DestroyKeyVersionRequest(name=FIRST, undo_window=window))
    for seconds in (2**63 - 1, -(2**63)):  # more than Python's timedelta holds
        with refused("INVALID_ARGUMENT", "INVALID_UNDO_WINDOW"):
            window = Duration(seconds=seconds)
            await client.keys.DestroyKeyVersion(k.DestroyKeyVersionRequest(name=FIRST, undo_window=window))
    assert await state(client) == ENABLED
    await client.keys.CreateKey(k.CreateKeyRequest(key_id="lent", key=new_key(exportable=True)))
    with refused("INVALID_ARGUMENT", "INVALID_RECIPIENT"):
        export = k.ExportKeyVersionRequest(name="keys/lent/versions/1", hpke_public_key=bytes(32))
        await client.keys.ExportKeyVersion(export)
    rows = sqlite3.connect(suite.keys / "keys.db").execute("SELECT number, exported FROM key_versions").fetchall()
    assert rows == [(1, 0), (1, 0)]


async def test_versions_are_listed_in_pages(client):
    await create_key(client)
    for number in (1, 2):
        name = f"keys/door/versions/{number}"
        await client.keys.RotateKey(k.RotateKeyRequest(name="keys/door", primary_version=name))
    first = await client.keys.ListKeyVersions(k.ListKeyVersionsRequest(parent="keys/door", page_size=2))
    assert [version.name[-1] for version in first.versions] == ["3", "2"]
    rest = k.ListKeyVersionsRequest(parent="keys/door", page_size=2, page_token=first.next_page_token)
    second = await client.keys.ListKeyVersions(rest)
    assert ([version.name[-1] for version in second.versions], second.next_page_token) == (["1"], "")
