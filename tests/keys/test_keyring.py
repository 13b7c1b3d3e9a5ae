import hashlib

import pytest

from sealface.cipher.parameters import N4096, N8192
from sealface.protocol import convert
from sealface.protocol.policy import Policy
from sealface_protos.keys.v1 import key_pb2, key_service_pb2
from tests.conftest import POLICY, both_schemes, dump, execute, refused
from tests.keys.conftest import create_key, material, new_key

PUBLIC, GALOIS = key_pb2.MATERIAL_KIND_PUBLIC_KEY, key_pb2.MATERIAL_KIND_GALOIS_KEY


async def register(client, key_id, public, **changed):
    key = new_key(custody=key_pb2.CUSTODY_CLIENT_HELD, **changed)
    request = key_service_pb2.RegisterKeyRequest(key_id=key_id, key=key, public_key=public)
    return await client.keys.RegisterKey(request)


async def upload(client, version, element, data):
    await client.keys.UploadEvaluationKey(
        key_service_pb2.UploadEvaluationKeyRequest(key_version=version, galois_element=element, evaluation_key=data)
    )


async def chunks(client, version, *kinds):
    request = key_service_pb2.GetMaterialRequest(key_version=version, kinds=kinds)
    return [chunk async for chunk in client.keys.GetMaterial(request)]


@both_schemes
async def test_a_managed_key_is_made_and_its_material_streams_whole(client):
    key = await create_key(client)
    assert (key.name, key.primary_version) == ("keys/door", "keys/door/versions/1")
    assert (key.custody, key.parameter_set) == (key_pb2.CUSTODY_MANAGED, N4096.name)
    assert key.policy.version == 1
    assert convert.policy_from_proto(key.policy) == POLICY
    assert await client.keys.GetKey(key_service_pb2.GetKeyRequest(name="keys/door")) == key
    public = await material(client, key.primary_version)
    assert hashlib.sha256(public).digest() == key.public_key_digest
    client.scheme.check_public(N4096, public)
    found = await chunks(client, key.primary_version, GALOIS)
    by_element = {}
    for chunk in found:
        assert chunk.kind == GALOIS
        assert 0 < len(chunk.data) <= 1 << 20
        by_element[chunk.galois_element] = by_element.get(chunk.galois_element, b"") + chunk.data
    for element, data in by_element.items():
        assert element % 2 == 1
        assert {chunk.total_bytes for chunk in found if chunk.galois_element == element} == {len(data)}
        client.scheme.check_evaluation(N4096, data)
    assert sorted(by_element) == list(by_element)
    assert len(by_element) == 7
    both = await chunks(client, key.primary_version, GALOIS, PUBLIC)
    assert len(both) == len(found) + len(await chunks(client, key.primary_version, PUBLIC))


async def test_large_material_comes_in_pieces(client, suite):
    key = await create_key(client)
    data = bytes(range(256)) * 10_000
    digest = hashlib.sha256(data).digest()
    execute(suite.keys / "keys.db", "DELETE FROM evaluation_keys WHERE galois_element < 4097")
    assert execute(suite.keys / "keys.db", "UPDATE evaluation_keys SET material = ?, digest = ?", data, digest) == 1
    found = await chunks(client, key.primary_version, GALOIS)
    assert [len(chunk.data) for chunk in found] == [1 << 20, 1 << 20, len(data) - (2 << 20)]
    assert b"".join(chunk.data for chunk in found) == data


@pytest.mark.parametrize("scheme", ["ckks"], indirect=True)
async def test_the_secret_is_nowhere_in_the_record(client, suite, monkeypatch):
    made = []
    generate = client.scheme.generate
    monkeypatch.setattr(client.scheme, "generate", lambda p: made.append(generate(p)) or made[-1], raising=False)
    await create_key(client)
    (secret,) = [key.secret for key in made]
    await suite.stop("keys")
    stored = b"".join(path.read_bytes() for path in suite.keys.rglob("*") if path.is_file())
    assert made[0].public[5000:5012] in stored  # or the search sees nothing
    assert not any(secret[at : at + 12] in stored for at in range(0, len(secret) - 12, 997))


@both_schemes
async def test_a_client_held_key_holds_no_secret(client, suite):
    made = client.scheme.generate(N4096)
    key = await register(client, "safe", made.public)
    assert key.custody == key_pb2.CUSTODY_CLIENT_HELD
    assert key.public_key_digest == hashlib.sha256(made.public).digest()
    assert await material(client, key.primary_version) == made.public
    for element, data in made.evaluation.items():
        await upload(client, key.primary_version, element, data)
        await upload(client, key.primary_version, element, data)  # again is harmless
    assert {c.galois_element for c in await chunks(client, key.primary_version, GALOIS)} == set(made.evaluation)
    rows = dump(suite.keys / "keys.db")["key_versions"]
    assert [row[4] for row in rows] == [None]


@both_schemes
async def test_a_public_key_of_another_parameter_set_is_refused(client, suite):
    before = dump(suite.keys / "keys.db")
    other = client.scheme.generate(N8192).public
    own = client.scheme.generate(N4096).public
    cases = [other, b"", own[:-1], own + b"\0", bytes(len(own)), b"\xff" * len(own)]
    for public in cases:
        with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
            await register(client, "safe", public)
    after = dump(suite.keys / "keys.db")
    for rows in (before, after):
        del rows["nonces"], rows["audit"]
    assert after == before


async def test_an_id_is_taken_once(client):
    await create_key(client)
    with refused("ALREADY_EXISTS", "KEY_EXISTS"):
        await create_key(client)
    with refused("ALREADY_EXISTS", "KEY_EXISTS"):
        await register(client, "door", client.scheme.generate(N4096).public)


@pytest.mark.parametrize(
    ("key_id", "changed", "reason"),
    [
        ("", {}, "INVALID_NAME"),
        ("Door", {}, "INVALID_NAME"),
        ("door", {"custody": key_pb2.CUSTODY_UNSPECIFIED}, "MISSING_FIELD"),
        ("door", {"custody": key_pb2.CUSTODY_CLIENT_HELD}, "MISSING_FIELD"),
        ("door", {"score_format": None}, "MISSING_FIELD"),
        ("door", {"score_format": key_pb2.ScoreFormat(metric=1)}, "WRONG_DIMENSION"),
        ("door", {"score_format": key_pb2.ScoreFormat(metric=1, dimension=5000)}, "UNKNOWN_PARAMETERS"),
        ("door", {"score_format": key_pb2.ScoreFormat(metric=2, dimension=128)}, "EMBEDDING_TOO_LONG"),
        ("door", {"parameter_set": "ckks-n1"}, "UNKNOWN_PARAMETERS"),
        ("door", {"policy": None}, "MISSING_FIELD"),
        ("door", {"policy": key_pb2.Policy(identification={"threshold": 0.1}, disclosure=1)}, "INVALID_POLICY"),
        ("door", {"policy": key_pb2.Policy(identification={"threshold": 0.1}, max_candidates=1)}, "MISSING_FIELD"),
    ],
)
async def test_what_is_missing_or_wrong_is_refused_and_nothing_is_made(client, key_id, changed, reason):
    with refused("INVALID_ARGUMENT", reason):
        await create_key(client, key_id, new_key(**changed))
    assert await client.list_keys() == []


async def test_the_smallest_parameter_set_that_fits_is_chosen(client):
    wide = key_pb2.ScoreFormat(dimension=4096, metric=key_pb2.METRIC_COSINE)
    assert (await create_key(client, "wide", new_key(score_format=wide))).parameter_set == N8192.name


async def test_pages_of_keys(client):
    for name in ("c", "a", "b"):
        await create_key(client, name)
    first = await client.keys.ListKeys(key_service_pb2.ListKeysRequest(page_size=2))
    assert [key.name for key in first.keys] == ["keys/a", "keys/b"]
    second = await client.keys.ListKeys(key_service_pb2.ListKeysRequest(page_size=2, page_token=first.next_page_token))
    assert ([key.name for key in second.keys], second.next_page_token) == (["keys/c"], "")


async def test_what_is_not_there(client):
    with refused("NOT_FOUND", "KEY_NOT_FOUND"):
        await client.keys.GetKey(key_service_pb2.GetKeyRequest(name="keys/none"))
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await client.keys.GetKey(key_service_pb2.GetKeyRequest(name="galleries/none"))
    await create_key(client)
    for version in ("keys/none/versions/1", "keys/door/versions/2"):
        for kinds in ((), (PUBLIC,), (GALOIS,), (PUBLIC, GALOIS)):
            with refused("NOT_FOUND", "KEY_NOT_FOUND"):
                await chunks(client, version, *kinds)
    with refused("NOT_FOUND", "KEY_NOT_FOUND"):
        await update(client, POLICY, "keys/none")


async def test_evaluation_keys_are_checked(client):
    made = client.scheme.generate(N4096)
    element, data = next(iter(made.evaluation.items()))
    held = await register(client, "safe", made.public)
    managed = await create_key(client)
    with refused("FAILED_PRECONDITION", "KEY_MANAGED"):
        await upload(client, managed.primary_version, element, data)
    for version in ("keys/none/versions/1", "keys/safe/versions/2"):
        with refused("NOT_FOUND", "KEY_NOT_FOUND"):
            await upload(client, version, element, data)
    for wrong in (0, 1, 2, 4096, 8192, 8193, 2**32 - 1):
        with refused("INVALID_ARGUMENT", "INVALID_GALOIS_ELEMENT"):
            await upload(client, held.primary_version, wrong, data)
    for wrong in (b"", data[:-1], made.public):
        with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
            await upload(client, held.primary_version, element, wrong)
    assert await chunks(client, held.primary_version, GALOIS) == []


async def update(client, policy, name="keys/door"):
    return await client.keys.UpdatePolicy(
        key_service_pb2.UpdatePolicyRequest(name=name, policy=convert.policy_to_proto(policy))
    )


async def test_a_policy_is_replaced_once_for_each_version(client):
    await create_key(client)
    stricter = Policy(0.1, 0.05, target_fpir=0.01, curve=((0.01, 1e-3), (0.02, 1e-2)), disclosure_step=0.01)
    changed = await update(client, stricter)
    assert changed.policy.version == 2
    stored = convert.policy_from_proto(changed.policy)
    assert (stored.verification_threshold, stored.curve, stored.disclosure_step) == (0.1, stricter.curve, 0.01)
    for stale in (1, 3, 0):
        with refused("FAILED_PRECONDITION", "STALE_VERSION"):
            await update(client, Policy(0.9, 0.9, version=stale))
    assert await client.policy("door") == stored
    with refused("INVALID_ARGUMENT", "INVALID_POLICY"):
        await update(client, _unchecked(Policy(0.1, 0.1, version=2)))
    assert await client.policy("door") == stored


def _unchecked(policy):
    object.__setattr__(policy, "max_candidates", 11)
    return policy


async def test_damaged_public_material_is_not_given_out(client, suite):
    key = await create_key(client)
    execute(suite.keys / "keys.db", "UPDATE key_versions SET public_key = substr(public_key, 2)")
    with refused("DATA_LOSS", "PUBLIC_MATERIAL_DAMAGED"):
        await material(client, key.primary_version)
    execute(suite.keys / "keys.db", "UPDATE evaluation_keys SET material = substr(material, 2)")
    with refused("DATA_LOSS", "PUBLIC_MATERIAL_DAMAGED"):
        await chunks(client, key.primary_version, GALOIS)
