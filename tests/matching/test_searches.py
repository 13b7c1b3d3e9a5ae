"""Verify and identify through the client, for managed and client-held galleries: the bodies are the same."""

import asyncio
import random

import pytest

from tests.conftest import POLICY, both_schemes, near, person, select

held = pytest.mark.parametrize("client_held", [False, True], ids=["managed", "client-held"])


@pytest.fixture
async def gallery(client, client_held):
    return await client.create_gallery("door", policy=POLICY, client_held=client_held)


def who(identification):
    return [candidate.subject for candidate in identification.candidates]


@both_schemes
@held
async def test_enrolled_faces_are_found_at_once_and_others_are_not(gallery):
    for name, number in (("ann", 1), ("bob", 2), ("cyd", 3)):
        await gallery.enroll(name, person(number))
        probe = near(person(number), 0.15)
        assert (await gallery.verify(name, probe)).match
        assert who(await gallery.identify(probe)) == [name]
    assert not (await gallery.verify("ann", person(2))).match
    stranger = await gallery.identify(person(9))
    assert (stranger.candidates, stranger.match, stranger.searched) == ((), False, 1.0)


@both_schemes
@held
async def test_several_templates_count_as_one_subject_by_the_nearest(gallery):
    probe = person(1)
    templates = (("ann", 0.25), ("bob", 0.2), ("ann", 0.9), ("ann", 0.1), ("cyd", 0.28))
    for i, (name, distance) in enumerate(templates):
        await gallery.enroll(name, near(probe, distance, i))
    assert who(await gallery.identify(probe)) == ["ann", "bob", "cyd"]
    assert who(await gallery.identify(probe, most=2)) == ["ann", "bob"]
    assert (await gallery.verify("ann", probe)).match


@both_schemes
@held
async def test_an_erased_subject_is_never_found(client, gallery):
    await gallery.enroll("ann", person(1))
    await gallery.enroll("bob", person(2))
    await gallery.enroll("ann", near(person(1), 0.1))
    assert await gallery.erase("ann") == 2
    assert who(await gallery.identify(person(1))) == []
    assert who(await gallery.identify(person(2))) == ["bob"]
    with pytest.raises(Exception, match="no such subject"):
        await gallery.verify("ann", person(1))
    # nor by somebody whose table is older
    await gallery.enroll("ann", person(3))
    assert who(await gallery.identify(person(1))) == []
    assert not (await gallery.verify("ann", person(1))).match


@both_schemes
@held
async def test_an_empty_gallery_has_nobody(gallery):
    answer = await gallery.identify(person(1))
    assert (answer.candidates, answer.searched) == ((), 1.0)


@held
async def test_more_than_a_group(gallery):
    capacity = gallery.layout.group.capacity
    for i in range(2 * capacity + 3):
        await gallery.enroll(f"s{i}", person(i))
    for i in (0, capacity - 1, capacity, 2 * capacity + 2):
        assert who(await gallery.identify(person(i))) == [f"s{i}"]
        assert (await gallery.verify(f"s{i}", person(i))).match


@both_schemes
@held
async def test_sealed_faces_are_found_as_before(suite, gallery):
    small = gallery.layout.sealed_shapes[0].capacity
    results = [result async for result in gallery.enroll_many((f"s{i}", person(i)) for i in range(small + 6))]
    assert len(results) == small + 6
    await suite.sealed(small)
    for i in (0, small - 1, small, small + 5):  # in the block, and in the open tail
        assert who(await gallery.identify(near(person(i), 0.1, i))) == [f"s{i}"]
        assert (await gallery.verify(f"s{i}", near(person(i), 0.1, i))).match
        assert not (await gallery.verify(f"s{i}", person(1000))).match
    assert who(await gallery.identify(person(1000))) == []
    # one in the block and one in the tail, of one subject
    probe = person(2000)
    await gallery.enroll("s3", near(probe, 0.2, 1))
    await gallery.enroll("new", near(probe, 0.1, 2))
    assert who(await gallery.identify(probe)) == ["new", "s3"]
    assert who(await gallery.identify(person(3))) == ["s3"]
    assert await gallery.erase("s3") == 2
    assert who(await gallery.identify(probe)) == ["new"]
    assert who(await gallery.identify(person(3))) == []
    await suite.sealed(small)  # made again, with one of the tail in its place
    assert who(await gallery.identify(person(3))) == []
    assert who(await gallery.identify(person(small))) == [f"s{small}"]


@both_schemes
@held
async def test_imported_faces_are_found_at_once(gallery):
    small = gallery.layout.sealed_shapes[0].capacity
    await gallery.enroll("s0", near(person(0), 0.2))
    blocks = [block async for block in gallery.import_many((f"s{i}", person(i)) for i in range(small + 2))]
    assert [(block.first_slot, block.templates, block.last_subject) for block in blocks] == [
        (2, small, f"s{small - 1}"),
        (small + 2, 2, f"s{small + 1}"),
    ]
    for i in (0, 1, small - 1, small, small + 1):
        assert who(await gallery.identify(near(person(i), 0.1, i))) == [f"s{i}"]
        assert (await gallery.verify(f"s{i}", near(person(i), 0.1, i))).match
        assert not (await gallery.verify(f"s{i}", person(1000))).match
    assert await gallery.erase("s0") == 2  # one by itself, one in a block
    assert who(await gallery.identify(person(0))) == []
    assert who(await gallery.identify(person(1))) == ["s1"]


@held
async def test_searches_at_once_do_not_disturb_each_other(gallery):
    for i in range(8):
        await gallery.enroll(f"s{i}", person(i))
    found = await asyncio.gather(*(gallery.identify(near(person(i), 0.1)) for i in range(8)))
    assert [who(answer) for answer in found] == [[f"s{i}"] for i in range(8)]
    matches = await asyncio.gather(*(gallery.verify(f"s{i}", person(i if i % 2 else i + 1)) for i in range(8)))
    assert [answer.match for answer in matches] == [bool(i % 2) for i in range(8)]


@both_schemes
async def test_searches_are_right_all_the_while_a_gallery_changes_and_is_sealed(suite, door):
    """Whoever is enrolled is found, whoever is erased is not, from the answer of the call on."""
    gallery = door
    count = 140
    enrolled: set[int] = set()
    erased: set[int] = set()
    writing = True

    async def write():
        nonlocal writing
        first = 0
        while first < count:
            numbers = range(first, first + 20)
            faces = ((f"s{number}", person(number)) for number in numbers)
            if first % 60 == 20:
                assert len([block async for block in gallery.import_many(faces)]) == 1
            else:
                assert len([result async for result in gallery.enroll_many(faces)]) == 20
            enrolled.update(numbers)
            for number in (first + 3, first // 2, first // 3 + 1):
                if number in enrolled:
                    enrolled.remove(number)  # neither is said of it until the answer is there
                    assert await gallery.erase(f"s{number}") == 1
                    erased.add(number)
            first += 20
        writing = False

    async def search(seed):
        rng = random.Random(seed)
        looks = 0
        while writing or looks < 5:
            await asyncio.sleep(0)
            for numbers, there in ((sorted(enrolled), True), (sorted(erased), False)):
                if numbers:
                    number = rng.choice(numbers)
                    found = who(await gallery.identify(near(person(number), 0.1, seed)))
                    if number in (enrolled if there else erased):
                        assert found == ([f"s{number}"] if there else []), (number, there)
                        looks += 1

    await asyncio.gather(write(), search(1), search(2))
    assert len(erased) > count // 10
    for _ in range(400):  # the last is sealed soon
        blocks = select(suite.compute / "record.db", "SELECT imported FROM blocks")
        if {bool(imported) for (imported,) in blocks} == {False, True}:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("nothing was sealed meanwhile")
    faces = [near(person(number), 0.1, 3) for number in range(count)]
    answers = [who(answer) async for answer in gallery.identify_many(faces)]
    assert answers == [[f"s{number}"] if number in enrolled else [] for number in range(count)]


@both_schemes
@held
async def test_a_gallery_made_anew_knows_nobody_of_the_old_one(suite, client, client_held, gallery):
    await gallery.enroll("ann", person(1))
    assert (await gallery.verify("ann", person(1))).match
    assert who(await gallery.identify(person(1))) == ["ann"]
    await client.delete_gallery("door")
    from sealface_protos.enrollment.v1 import gallery_pb2
    from tests.enrollment.conftest import create_gallery, description

    level = gallery_pb2.PRIVACY_LEVEL_CLIENT_KEY if client_held else gallery_pb2.PRIVACY_LEVEL_EMBEDDING
    await create_gallery(client, "door", description("keys/door", privacy_level=level))
    # a client that has not noticed is told right as well: slots are new, and so is its table
    assert who(await gallery.identify(person(1))) == []
    await gallery.enroll("bob", person(2))
    assert who(await gallery.identify(person(2))) == ["bob"]
    again = await client.gallery("door")
    await again.enroll("ann", near(person(1), 0.1))
    assert (await gallery.verify("ann", person(1))).match


@both_schemes
async def test_the_holder_of_a_key_may_know_exact_distances(safe):
    await safe.enroll("ann", near(person(1), 0.25))
    await safe.enroll("ann", near(person(1), 0.75))
    assert await safe.distance("ann", person(1)) == pytest.approx(0.25, abs=2e-4)
    assert (await safe.verify("ann", person(1))).match


@both_schemes
@pytest.mark.parametrize("metric", ["euclidean", "euclidean_l2", "angular"])
async def test_every_metric_from_end_to_end(client, metric):
    import numpy as np

    from sealface.protocol.policy import Policy

    scale = 0.6 if metric == "euclidean" else 1.0
    one, other = scale * person(1), scale * near(person(1), 0.2)
    distance = np.arccos(0.8) / np.pi if metric == "angular" else np.linalg.norm(one - other)
    rule = Policy(float(distance) * 1.01, float(distance) * 1.01)
    gallery = await client.create_gallery("door", metric=metric, policy=rule, client_held=True, largest_norm=2.0)
    await gallery.enroll("ann", one)
    await gallery.enroll("bob", scale * person(2))
    assert who(await gallery.identify(other)) == ["ann"]
    assert await gallery.distance("ann", other) == pytest.approx(distance, rel=2e-3)
    others = [("cyd", scale * person(3)), ("ann", one), ("dan", scale * person(4))]
    assert len([block async for block in gallery.import_many(others)]) == 1
    assert await gallery.erase("ann") == 2
    assert who(await gallery.identify(other)) == []
    assert len([block async for block in gallery.import_many(others)]) == 1
    assert who(await gallery.identify(other)) == ["ann"]
    assert await gallery.distance("ann", other) == pytest.approx(distance, rel=2e-3)
