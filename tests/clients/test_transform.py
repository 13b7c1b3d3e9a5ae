"""Secret transforms: everywhere the same matrix, the same answers, and no garbage from whoever lacks the seed."""

import dataclasses
import hashlib
import math
import struct

import numpy as np
import pytest

from sealface.cipher.layout import EmbeddingNotFinite, WrongDimension, ZeroEmbedding
from sealface.protocol.policy import Policy
from sealface_client import secret_file
from sealface_client.key_folder import KeyFolder
from sealface_client.transform import (
    Transform,
    TransformLeft,
    TransformMissing,
    WrongSeed,
    check_seed,
    export_transform,
)
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from tests.clients.test_aio import service_error
from tests.conftest import POLICY, both_schemes, execute, near, person, refused, select

SEED = bytes(range(32))
PASSPHRASE = "correct horse battery staple"


# --- the matrix


@pytest.mark.parametrize("dimension", [2, 3, 128, 160, 512])
def test_the_matrix_is_orthogonal(dimension):
    matrix = Transform("door", SEED).matrix(dimension)
    assert np.abs(matrix @ matrix.T - np.eye(dimension)).max() < 1e-12


def test_the_largest_dimension():
    matrix = Transform("door", SEED).matrix(4096)
    rows = matrix[::512]
    assert np.abs(rows @ matrix.T - np.eye(4096)[::512]).max() < 1e-11


def test_the_matrix_is_the_same_on_every_machine():
    """What another implementation must find (docs/adr/0020)."""
    transform = Transform("door", SEED)
    first = [-0.6472458885875845, 0.4742275010769217, -0.5968090456157702]
    last = [0.7596456966266278, 0.3362209048668654, -0.556681164336599]
    assert transform.matrix(3)[::2] == pytest.approx(np.array([first, last]), abs=1e-12)
    assert transform.digest.hex() == "cad43553401057279eb1acdac4aa493999b5e23ba874ce9659ddb90e88072ade"


def test_it_takes_no_more_to_make_than_a_hash_and_school_mathematics():
    d = 7
    stream = hashlib.shake_256(b"sealface transform matrix v1\0door\0" + struct.pack(">I", d) + SEED).digest(400)
    uniform = [((word >> 11) + 0.5) / 2**53 for (word,) in struct.iter_unpack("<Q", stream)]
    normal = []
    for u, v in zip(uniform[0::2], uniform[1::2], strict=True):
        radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * v
        normal += [radius * math.cos(angle), radius * math.sin(angle)]
    columns = [[normal[row * d + column] for row in range(d)] for column in range(d)]
    made = []
    for column in columns:  # Gram and Schmidt: the QR decomposition with a positive diagonal
        for other in made:
            along = sum(x * y for x, y in zip(column, other, strict=True))
            column = [x - along * y for x, y in zip(column, other, strict=True)]
        length = math.sqrt(sum(x * x for x in column))
        made.append([x / length for x in column])
    assert pytest.approx(np.array(made), abs=1e-12) == Transform("door", SEED).matrix(d).T


def test_seed_gallery_and_dimension_make_another_matrix():
    first = Transform("door", SEED).matrix(128)
    for other in (Transform("gate", SEED), Transform("door", SEED[::-1]), Transform.generate("door")):
        assert abs(np.trace(first @ other.matrix(128).T)) < 6  # of a random one: normal, variance 1; of the same: 128
        assert other.digest != Transform("door", SEED).digest
    assert np.abs(Transform("door", SEED).matrix(129)[:128, :128] - first).max() > 0.1


def test_it_is_drawn_uniformly():
    """The trace of a Haar matrix has mean 0 and variance 1; without R's signs it would have a mean far from that."""
    traces = np.array(
        [np.trace(Transform("door", bytes([i, j] * 16)).matrix(16)) for i in range(20) for j in range(20)]
    )
    assert abs(traces.mean()) < 4 / 20
    assert traces.var() == pytest.approx(1, abs=0.3)
    determinants = {round(float(np.linalg.det(Transform("door", bytes([i] * 32)).matrix(5)))) for i in range(20)}
    assert determinants == {1, -1}  # of all orthogonal matrices, not of rotations alone


def test_names_bind_a_seed_to_its_gallery():
    transform = Transform("door", SEED)
    check_seed(transform.name, SEED)
    for name, seed in ((transform.name, SEED[::-1]), (transform.name.replace("door", "gate"), SEED), ("door", SEED)):
        with pytest.raises(WrongSeed):
            check_seed(name, seed)


# --- in a gallery


async def made(client, name="door", **options):
    return await client.create_gallery(name, policy=POLICY, transform=True, **options)


@both_schemes
@pytest.mark.parametrize("client_held", [False, True])
async def test_answers_are_those_without_it(client, client_held):
    gallery = await made(client, client_held=client_held)
    for i in range(3):
        await gallery.enroll(f"s{i}", person(i))
    async for _ in gallery.import_many([(f"i{i}", person(100 + i)) for i in range(70)]):
        pass
    assert (await gallery.verify("s1", near(person(1), 0.39))).match
    assert not (await gallery.verify("s1", near(person(1), 0.41))).match
    found = await gallery.identify(near(person(2), 0.29))
    assert [named.subject for named in found.candidates] == ["s2"]
    assert not (await gallery.identify(near(person(2), 0.31))).match
    assert [named.subject for named in (await gallery.identify(person(140))).candidates] == ["i40"]
    if client_held:
        assert await gallery.distance("s1", near(person(1), 0.2)) == pytest.approx(0.2, abs=3e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "euclidean_l2", "angular"])
async def test_every_metric_keeps_its_distances(client, metric):
    policy = Policy(0.5, 0.5, max_candidates=3)
    plain = await client.create_gallery("plain", policy=policy, metric=metric, client_held=True)
    turned = await client.create_gallery("turned", policy=policy, metric=metric, client_held=True, transform=True)
    x, y = 0.7 * person(1), 0.7 * near(person(1), 0.2)
    distances = []
    for gallery in (plain, turned):
        await gallery.enroll("ann", x)
        distances.append(await gallery.distance("ann", y))
    assert distances[0] == pytest.approx(distances[1], abs=1e-6)
    assert distances[0] > 0.05


async def test_what_is_encrypted_is_not_the_embedding(client, suite):
    """With the scheme that encrypts nothing: what would be there if the key were broken."""
    gallery = await made(client)
    await gallery.enroll("ann", person(1))
    await (await client.create_gallery("bare", policy=POLICY)).enroll("ann", person(1))
    held = dict(select(suite.compute / "record.db", "SELECT gallery, ciphertext FROM template_ciphertexts"))
    bare, turned = (np.frombuffer(held[name][-8 * 129 : -8]) for name in ("bare", "door"))
    seed = client.key_folder.load(client.key_folder.names()[0])
    assert bare == pytest.approx(person(1))
    assert turned == pytest.approx(person(1) @ Transform("door", seed).matrix(128))
    assert abs(turned @ person(1)) < 0.5


async def test_whoever_lacks_the_seed_enrols_nobody_and_searches_for_nobody(suite, client, tmp_path):
    gallery = await made(client)
    await gallery.enroll("ann", person(1))
    other = suite.client()
    other.key_folder = KeyFolder(tmp_path / "other")
    there = await other.gallery("door")
    assert [subject.name for subject in await there.subjects()] == ["galleries/door/subjects/ann"]
    before = suite.record()
    for call in (
        lambda: there.enroll("bob", person(2)),
        lambda: there.verify("ann", person(1)),
        lambda: there.identify(person(1)),
        lambda: anext(there.import_many([("bob", person(2))])),
    ):
        with pytest.raises(TransformMissing):
            await call()
    assert suite.record() == before
    file = export_transform(client.key_folder, gallery.info, PASSPHRASE)
    assert await other.lifecycle.receive(file, PASSPHRASE) == other.key_folder.names()[0]
    assert (await (await other.gallery("door")).verify("ann", person(1))).match


async def test_another_seed_is_refused(suite, client, tmp_path):
    gallery = await made(client)
    folder = KeyFolder(tmp_path / "other")
    folder.save(f"galleries/door/transforms/{gallery.info.transform_digest.hex()[:16]}", bytes(32))
    other = suite.client()
    other.key_folder = folder
    with pytest.raises(WrongSeed):
        await (await other.gallery("door")).enroll("ann", person(1))
    wrong = secret_file.seal(folder.names()[0], bytes(32), PASSPHRASE)
    with pytest.raises(WrongSeed):
        await client.lifecycle.receive(wrong, PASSPHRASE)


async def test_compute_cannot_take_the_transform_away(suite, client):
    await made(client)
    assert execute(suite.compute / "record.db", "UPDATE galleries SET transform_digest = NULL") == 1
    gallery = await client.gallery("door")
    for call in (lambda: gallery.enroll("ann", person(1)), lambda: gallery.identify(person(1))):
        with pytest.raises(TransformLeft):
            await call()


async def test_a_gallery_is_not_made_anew_without_one_where_its_seed_is_left(client):
    await made(client)
    await client.delete_gallery("door")
    with pytest.raises(TransformLeft):
        await client.create_gallery("door", policy=POLICY)
    again = await made(client)  # with a fresh one
    await again.enroll("ann", person(1))
    assert (await again.verify("ann", person(1))).match
    assert len(client.key_folder.names()) == 2


async def test_a_gallery_that_was_refused_leaves_no_seed(client):
    await made(client)
    before = client.key_folder.names()
    with service_error("ALREADY_EXISTS", "GALLERY_EXISTS"):
        await made(client)
    assert client.key_folder.names() == before


async def test_the_digest_is_the_gallerys_for_good(client):
    gallery = await made(client)
    seed = client.key_folder.load(client.key_folder.names()[0])
    assert gallery.info.transform_digest == Transform("door", seed).digest
    assert seed not in gallery.info.SerializeToString()
    with pytest.raises(TransformMissing, match="nothing to export"):
        export_transform(client.key_folder, (await client.create_gallery("bare", policy=POLICY)).info, PASSPHRASE)


@pytest.mark.parametrize("length", [1, 31, 33])
async def test_a_digest_of_another_length_is_refused(client, door, length):
    await client.lifecycle.create("other", door.layout, dataclasses.replace(POLICY))
    request = enrollment.CreateGalleryRequest(gallery_id="other", gallery=door.info)
    request.gallery.key, request.gallery.transform_digest = "keys/other", bytes(length)
    with refused("INVALID_ARGUMENT", "WRONG_TRANSFORM_DIGEST"):
        await client.enrollment.CreateGallery(request)


@both_schemes
@pytest.mark.parametrize(
    ("face", "error"),
    [
        (person(1, 127), WrongDimension),
        (np.zeros(128), ZeroEmbedding),
        (np.full(128, np.nan), EmbeddingNotFinite),
        (np.full(128, np.inf), EmbeddingNotFinite),
    ],
)
async def test_a_face_that_is_none_is_refused_as_without_it(client, face, error):
    gallery = await made(client)
    with pytest.raises(error):
        await gallery.enroll("ann", face)
    with pytest.raises(error):
        await anext(gallery.import_many([("ann", face)]))
