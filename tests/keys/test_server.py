"""What a restart keeps, and what a start refuses."""

import pytest

from sealface.keys.occupancy import KeyZoneInUse
from sealface.keys.server import KeyConfig, build
from sealface.runtime.server import ServerConfig
from sealface_protos.keys.v1 import key_service_pb2
from tests.conftest import both_schemes, person, refused
from tests.keys.conftest import ask, material


async def identity(client):
    return (await client.keys.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest())).verifying_key


@both_schemes
async def test_a_restart_keeps_keys_nonces_and_who_signs(suite, client, door_key, alice):
    signs = await identity(client)
    assert len(signs) == 32
    results = door_key.results({5: person(0)})
    asked = ask(alice, door_key.probe)
    before = await door_key.decide(asked, results)
    await suite.restart("keys")
    with refused("FAILED_PRECONDITION", "NONCE_USED"):
        await door_key.decide(asked, results)
    assert await identity(client) == signs
    assert await client.list_keys() == [door_key.key]
    assert await material(client, door_key.key.primary_version) == door_key.public
    again = await door_key.decide(ask(alice, door_key.probe), results)
    assert again == before
    assert [candidate.slot for candidate in again.candidates] == [5]


async def test_the_folder_is_its_owners_alone(tmp_path, scheme):
    build(KeyConfig(tmp_path / "keys", ServerConfig()), scheme)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
    assert modes["key-encryption.key"] == 0o600
    assert modes["keys.db"] == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


async def test_one_service_at_a_time_has_a_folder(suite):
    second = build(KeyConfig(suite.keys, ServerConfig()), suite.scheme)
    with pytest.raises(KeyZoneInUse):
        await second.start()
    await suite.stop("keys")
    third = build(KeyConfig(suite.keys, ServerConfig()), suite.scheme)
    await third.start()
    await third.stop()
