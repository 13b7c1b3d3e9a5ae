"""A key service without its key-encryption key: it listens, tells the truth, and unseals by itself."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealface.keys.providers import FileKey
from sealface.keys.sealed import _WITHOUT_SECRETS, KEY_ENCRYPTION
from sealface.keys.server import SERVICE
from sealface.runtime.server import LIVENESS
from sealface_protos.keys.v1 import audit_pb2, caller_pb2, decision_pb2, key_service_pb2
from tests.conftest import both_schemes, person, refused
from tests.keys.conftest import ask, create_key, material, new_key

k = key_service_pb2
DOOR = "keys/door/versions/1"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health(suite):
    """Of the whole, of the service, of the process, of the provider."""
    async with grpc.aio.insecure_channel(suite.addresses["keys"]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        names = ("", SERVICE, LIVENESS, KEY_ENCRYPTION)
        return [(await check(health_pb2.HealthCheckRequest(service=name))).status for name in names]


async def until(suite, wanted):
    """Health is as wanted; the test's own time limit ends the wait."""
    while await health(suite) != wanted:
        await asyncio.sleep(0.05)


def needing_a_secret(client):
    """Every call that is refused while the service is sealed."""
    header = k.RenewBlockRequest(header=k.RenewBlockHeader(key_version=DOOR, columns=64))
    return {
        "CreateKey": lambda: client.keys.CreateKey(k.CreateKeyRequest(key_id="other", key=new_key())),
        "RotateKey": lambda: client.keys.RotateKey(k.RotateKeyRequest(name="keys/door", primary_version=DOOR)),
        "ExportKeyVersion": lambda: client.keys.ExportKeyVersion(
            k.ExportKeyVersionRequest(name=DOOR, hpke_public_key=bytes(32))
        ),
        "RewrapKeys": lambda: client.keys.RewrapKeys(k.RewrapKeysRequest()),
        "GetAuditHead": lambda: client.keys.GetAuditHead(audit_pb2.GetAuditHeadRequest()),
        "GetPseudonym": lambda: client.keys.GetPseudonym(
            audit_pb2.GetPseudonymRequest(gallery="galleries/door", slot=1)
        ),
        "GetServiceIdentity": lambda: client.keys.GetServiceIdentity(k.GetServiceIdentityRequest()),
        "Decide": lambda: client.keys.Decide(iter([k.DecideRequest()])),
        "RenewBlock": lambda: first(client.keys.RenewBlock(iter([header]))),
    }


async def first(call):
    return [part async for part in call]


@pytest.fixture
def key_file(suite):
    return suite.keys / "key-encryption.key"


async def test_every_method_is_either_refused_or_needs_no_secret(client):
    methods = {method.name for method in k.DESCRIPTOR.services_by_name["KeyService"].methods}
    assert set(needing_a_secret(client)) | {method.rpartition("/")[2] for method in _WITHOUT_SECRETS} == methods


@both_schemes
async def test_a_service_without_its_key_starts_sealed_and_unseals_by_itself(
    suite, client, door_key, alice, key_file, tmp_path
):
    results = door_key.results({5: person(0)})
    await suite.stop("keys")
    key_file.rename(tmp_path / "away")
    await suite.start("keys")
    assert not key_file.exists()  # none was made in its place
    assert await health(suite) == [NOT_SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    assert suite.metric("keys", "sealface_sealed") == 1
    for name, call in needing_a_secret(client).items():
        with refused("UNAVAILABLE", "KEYS_SEALED") as caught:
            await call()
        assert "put its file back" in caught.value.details(), name
        assert str(suite.folder) not in caught.value.details(), name
    asked = ask(alice, door_key.probe)
    with refused("UNAVAILABLE", "KEYS_SEALED"):
        await door_key.decide(asked, results)

    assert await client.list_keys() == [door_key.key]  # what needs no secret works
    assert await material(client, DOOR) == door_key.public
    await client.create_caller("bob", bytes(32))
    disabled = k.UpdateKeyVersionRequest(name=DOOR, state="KEY_VERSION_STATE_DISABLED")
    assert (await client.keys.UpdateKeyVersion(disabled)).state == 2
    await client.keys.UpdateKeyVersion(k.UpdateKeyVersionRequest(name=DOOR, state="KEY_VERSION_STATE_ENABLED"))

    (tmp_path / "away").rename(key_file)
    await until(suite, [SERVING] * 4)
    assert suite.metric("keys", "sealface_sealed") == 0
    decision = await door_key.decide(asked, results)  # its nonce was not consumed
    assert [candidate.slot for candidate in decision.candidates] == [5]
    assert (await create_key(client, "other")).name == "keys/other"


async def test_another_key_or_a_readable_one_does_not_unseal_it(suite, client, door_key, key_file, tmp_path):
    await suite.stop("keys")
    key_file.rename(tmp_path / "away")
    FileKey.create(key_file)
    await suite.start("keys")
    with refused("UNAVAILABLE", "KEYS_SEALED") as caught:
        await create_key(client, "other")
    assert "restore the key-encryption key" in caught.value.details()
    (tmp_path / "away").rename(key_file)
    key_file.chmod(0o644)
    while "0600" not in caught.value.details():
        with refused("UNAVAILABLE", "KEYS_SEALED") as caught:
            await create_key(client, "other")
    key_file.chmod(0o600)
    await until(suite, [SERVING] * 4)


@both_schemes
async def test_keys_in_use_stay_open_when_the_provider_goes_away(suite, client, door_key, alice, key_file, tmp_path):
    await suite.stop("keys")
    suite.key_encryption = {"look_s": 0.1}
    await suite.start("keys")
    await create_key(client, "rare")
    results = door_key.results({5: person(0)})
    before = await door_key.decide(ask(alice, door_key.probe), results)
    key_file.rename(tmp_path / "away")
    await until(suite, [SERVING, SERVING, SERVING, NOT_SERVING])
    assert await door_key.decide(ask(alice, door_key.probe), results) == before
    with refused("UNAVAILABLE", "KEY_ENCRYPTION_KEY_MISSING"):
        await create_key(client, "other")
    with refused("UNAVAILABLE", "KEY_ENCRYPTION_KEY_MISSING"):
        await client.keys.RotateKey(k.RotateKeyRequest(name="keys/door", primary_version=DOOR))
    for state in ("DISABLED", "ENABLED"):  # what becomes of another version closes no key that is in use
        name = "keys/rare/versions/1"
        await client.keys.UpdateKeyVersion(k.UpdateKeyVersionRequest(name=name, state=f"KEY_VERSION_STATE_{state}"))
    assert await door_key.decide(ask(alice, door_key.probe), results) == before
    rare = ask(alice, door_key.probe, key_version="keys/rare/versions/1")
    with refused("UNAVAILABLE", "KEY_ENCRYPTION_KEY_MISSING"):
        await door_key.decide(rare)
    assert [key.name for key in await client.list_keys()] == ["keys/door", "keys/rare"]  # nothing was made by half
    (tmp_path / "away").rename(key_file)
    await until(suite, [SERVING] * 4)
    assert (await door_key.decide(rare)).outcome == decision_pb2.OUTCOME_NO_MATCH  # its nonce was not consumed
    assert (await create_key(client, "other")).name == "keys/other"


async def test_a_service_that_never_had_its_key_makes_none(suite, client):
    """A new deployment whose volume is not there yet must not begin under a key that a restart forgets."""
    await suite.stop("keys")
    for path in suite.keys.glob("keys.db*"):
        path.unlink()
    path = suite.folder / "volume" / "key"
    suite.key_encryption = {"key_encryption": f"file:{path}"}
    await suite.start("keys")
    assert await health(suite) == [NOT_SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    assert not path.exists()
    path.parent.mkdir()
    FileKey.create(path)
    await until(suite, [SERVING] * 4)
    assert (await create_key(client)).name == "keys/door"
    assert caller_pb2.CALLER_ROLE_OPERATOR in {
        c.role for c in (await client.keys.ListCallers(k.ListCallersRequest())).callers
    }
