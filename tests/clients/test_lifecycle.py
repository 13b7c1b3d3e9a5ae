"""Keys from an operator's side: made here or there, rotated, disabled, destroyed, exported, taken in."""

from datetime import timedelta

import grpc
import pytest

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.parameters import UnknownParameters
from sealface.protocol.signing import Credential
from sealface_client import ServiceError, secret_file
from sealface_client.aio import CredentialMissing, KeyNotTrusted
from sealface_client.decisions import DecisionRefused
from sealface_client.key_folder import KeyFolder, SecretKeyExists, SecretKeyMissing
from sealface_client.lifecycle import SecretKeyMismatch
from sealface_client.secret_file import SecretFile, SecretFileDamaged, WrongPassphrase
from sealface_protos.keys.v1 import key_pb2
from sealface_protos.keys.v1 import key_service_pb2 as messages
from tests.clients.test_aio import service_error
from tests.conftest import POLICY, both_schemes, person, select

LAYOUT = Layout.of("", 128, Metric.COSINE, 1.0)
PASSPHRASE = "correct horse battery staple"


def states(versions):
    return {v.name.rpartition("/")[2]: key_pb2.KeyVersionState.Name(v.state)[18:] for v in versions}


async def material(client, version, kind):
    request = messages.GetMaterialRequest(key_version=version, kinds=[kind])
    return [chunk async for chunk in client.keys.GetMaterial(request)]


# --- made, and made to the end


@both_schemes
async def test_a_key_is_generated_first_and_a_gallery_made_of_it_later(client):
    key = await client.lifecycle.create("safe", LAYOUT, POLICY, client_held=True)
    assert (key.name, key.custody) == ("keys/safe", key_pb2.CUSTODY_CLIENT_HELD)
    secret = client.key_folder.load("keys/safe/versions/1")
    safe = await client.create_gallery("safe", policy=POLICY, client_held=True)
    assert client.key_folder.load("keys/safe/versions/1") == secret
    await safe.enroll("ann", person(1))
    assert (await safe.verify("ann", person(1))).match


@both_schemes
async def test_a_key_whose_evaluation_keys_never_arrived_gets_them(suite, client, monkeypatch):
    upload, sent = client.keys.UploadEvaluationKey, []

    async def broken(request, **options):
        sent.append(request.galois_element)
        if len(sent) > 3:
            raise ConnectionResetError
        return await upload(request, **options)

    monkeypatch.setattr(client.keys, "UploadEvaluationKey", broken)
    with pytest.raises(ConnectionResetError):
        await client.lifecycle.create("safe", LAYOUT, POLICY, client_held=True)
    version, galois = "keys/safe/versions/1", key_pb2.MATERIAL_KIND_GALOIS_KEY
    assert len({c.galois_element for c in await material(client, version, galois)}) == 3
    monkeypatch.undo()
    await client.lifecycle.create("safe", LAYOUT, POLICY, client_held=True)
    assert len({c.galois_element for c in await material(client, version, galois)}) == 7


async def test_a_secret_that_is_not_the_registered_one_is_not_gone_on_with(client):
    await client.lifecycle.create("safe", LAYOUT, POLICY, client_held=True)
    client.key_folder.remove("keys/safe/versions/1")
    client.key_folder.save("keys/safe/versions/1", client.scheme.generate(LAYOUT.parameters).secret)
    with pytest.raises(SecretKeyMismatch):
        await client.create_gallery("safe", policy=POLICY, client_held=True)


@pytest.mark.parametrize("answered", [True, False])
async def test_a_registration_whose_answer_was_lost_is_not_made_twice(client, monkeypatch, answered):
    register, calls = client.keys.RegisterKey, []

    class Lost(grpc.aio.AioRpcError):
        def __init__(self):
            super().__init__(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "away")

    async def lost(request, **options):
        calls.append(request)
        if len(calls) > 1:
            return await register(request, **options)
        if answered:
            await register(request, **options)
        raise Lost

    monkeypatch.setattr(client.keys, "RegisterKey", lost)
    key = await client.lifecycle.create("safe", LAYOUT, POLICY, client_held=True)
    assert key.primary_version == "keys/safe/versions/1"
    assert len(calls) == 2
    assert (await client.lifecycle.versions("safe"))[0].public_key_digest == key.public_key_digest
    await client.create_gallery("safe", policy=POLICY, client_held=True)


# --- versions


@pytest.mark.parametrize(("wanted", "name", "recorded"), [(128, "ckks-n4096-v1", 128), (192, "ckks-n8192-v1", 256)])
async def test_security_is_chosen_and_recorded(client, wanted, name, recorded):
    door = await client.create_gallery("door", policy=POLICY, security_bits=wanted)
    assert door.info.parameter_set == name
    (version,) = await client.lifecycle.versions("door")
    assert (version.security_bits, version.quantum_secure) == (recorded, True)
    await door.enroll("ann", person(1))
    assert (await door.verify("ann", person(1))).match
    with pytest.raises(UnknownParameters):
        await client.create_gallery("hall", policy=POLICY, security_bits=512)


async def test_the_life_of_a_managed_key(suite, client, door):
    await door.enroll("ann", person(1))
    life = client.lifecycle
    assert (await life.rotate("door")).primary_version == "keys/door/versions/2"
    assert states(await life.versions("door")) == {"2": "ENABLED", "1": "ENABLED"}
    assert (await door.verify("ann", person(1))).match

    await life.disable("door", 1)
    with pytest.raises((DecisionRefused, KeyNotTrusted)):  # looked at anew, it is not enabled
        await door.verify("ann", person(1))
    await life.enable("door", 1)
    assert (await door.verify("ann", person(1))).match

    scheduled = await life.destroy("door", 1, timedelta(hours=2))
    assert states([scheduled]) == {"1": "DESTROY_SCHEDULED"}
    assert 7000 < scheduled.destroy_time.seconds - scheduled.create_time.seconds < 8000
    with pytest.raises((DecisionRefused, KeyNotTrusted)):  # looked at anew, it is not enabled
        await door.verify("ann", person(1))
    assert states([await life.restore("door", 1)]) == {"1": "DISABLED"}
    assert states([await life.destroy("door", 1)]) == {"1": "DESTROY_SCHEDULED"}
    await life.restore("door", 1)
    assert states([await life.destroy("door", 1, timedelta())]) == {"1": "DESTROYED"}
    with service_error("FAILED_PRECONDITION", "NOT_SCHEDULED"):
        await life.restore("door", 1)
    assert (await life.set_oldest("door", 2)).oldest_version == 2
    assert select(suite.keys / "keys.db", "SELECT wrapped_secret FROM key_versions WHERE number = 1") == [(None,)]


@both_schemes
async def test_the_owner_of_a_held_key_makes_its_next_version(suite, client, safe):
    key = await client.lifecycle.rotate("safe")
    assert key.primary_version == "keys/safe/versions/2"
    assert len(await material(client, key.primary_version, key_pb2.MATERIAL_KIND_GALOIS_KEY)) >= 7
    held = [client.key_folder.load(f"keys/safe/versions/{number}") for number in (1, 2)]
    assert held[0] != held[1]
    assert await client.lifecycle._check(key.primary_version) == held[1]
    assert select(suite.keys / "keys.db", "SELECT count(wrapped_secret) FROM key_versions") == [(0,)]


async def test_a_rotation_that_never_arrived_is_in_the_way_of_none(suite, client, safe):
    client.key_folder.save("keys/safe/versions/2", b"of a rotation that broke off")
    await client.lifecycle.rotate("safe")
    assert client.key_folder.load("keys/safe/versions/2") != b"of a rotation that broke off"
    assert b"of a rotation that broke off" in [path.read_bytes() for path in (suite.folder / "edge").iterdir()]


async def test_a_refused_rotation_leaves_no_secret(suite, client, safe):
    verifier = Credential.generate("callers/verifier")
    await client.create_caller("verifier", verifier.verifying_key)
    with pytest.raises(ServiceError):
        await suite.client(verifier).lifecycle.rotate("safe")
    assert client.key_folder.names() == ["keys/safe/versions/1"]
    with pytest.raises(CredentialMissing):
        await suite.client(anonymous=True).lifecycle.create("other", LAYOUT, POLICY)


async def test_versions_are_those_of_all_pages(client, door, monkeypatch):
    await client.lifecycle.rotate("door")
    listing = client.keys.ListKeyVersions
    sizes = []

    async def small(request, **options):
        sizes.append(request.page_size)
        request.page_size = 1
        return await listing(request, **options)

    monkeypatch.setattr(client.keys, "ListKeyVersions", small)
    assert [version.name[-1] for version in await client.lifecycle.versions("door")] == ["2", "1"]
    assert len(sizes) == 2


# --- out of the folder, into another


@both_schemes
async def test_a_held_key_moves_to_another_machine(suite, client, safe, tmp_path):
    await safe.enroll("ann", person(1))
    file = await client.lifecycle.export("safe", 1, PASSPHRASE)
    other = suite.client()
    other.key_folder = KeyFolder(tmp_path / "other")
    with pytest.raises(SecretKeyMissing):
        await (await other.gallery("safe")).verify("ann", person(1))
    with pytest.raises(WrongPassphrase):
        await other.lifecycle.receive(file, "something else")
    with pytest.raises(SecretFileDamaged):
        await other.lifecycle.receive(file[:-90] + b"A" + file[-89:], PASSPHRASE)
    assert other.key_folder.names() == []
    assert await other.lifecycle.receive(file, PASSPHRASE) == "keys/safe/versions/1"
    assert (await (await other.gallery("safe")).verify("ann", person(1))).match
    with pytest.raises(SecretKeyExists):
        await other.lifecycle.receive(file, PASSPHRASE)


@both_schemes
async def test_a_secret_that_is_none_of_its_version_is_refused(client, safe, suite, tmp_path):
    foreign = secret_file.seal("keys/safe/versions/1", client.scheme.generate(LAYOUT.parameters).secret, PASSPHRASE)
    other = suite.client()
    other.key_folder = KeyFolder(tmp_path / "other")
    with pytest.raises(SecretKeyMismatch):
        await other.lifecycle.receive(foreign, PASSPHRASE)
    assert other.key_folder.names() == []
    await other.lifecycle.receive(foreign, PASSPHRASE, check=False)


@both_schemes
async def test_the_secret_of_an_exportable_managed_key_comes_out_sealed(suite, client):
    gallery = await client.create_gallery("escrow", policy=POLICY, exportable=True)
    file = await client.lifecycle.export("escrow", 1, PASSPHRASE)
    secret = SecretFile.read(file).open(PASSPHRASE)
    assert await client.lifecycle._check("keys/escrow/versions/1", secret) == secret
    assert (await client.lifecycle.versions("escrow"))[0].exported
    assert client.key_folder.names() == []
    assert gallery.managed
    assert not (await client.lifecycle.forbid_export("escrow")).exportable
    with service_error("FAILED_PRECONDITION", "NOT_EXPORTABLE"):
        await client.lifecycle.export("escrow", 1, PASSPHRASE)


async def test_the_secret_of_another_managed_key_does_not(suite, client, door):
    with service_error("FAILED_PRECONDITION", "NOT_EXPORTABLE"):
        await client.lifecycle.export("door", 1, PASSPHRASE)
    assert not (await client.lifecycle.versions("door"))[0].exported


async def test_a_gallery_is_not_gone_on_with_where_export_was_to_be_something_else(suite, client):
    await client.lifecycle.create("half", LAYOUT, POLICY, exportable=True)
    with service_error("ALREADY_EXISTS", "KEY_EXISTS"):
        await client.create_gallery("half", policy=POLICY)
    await client.create_gallery("half", policy=POLICY, exportable=True)
