import asyncio
import time

import grpc
import pytest

from sealface.cipher.parameters import N4096
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from sealface_protos.enrollment.v1 import gallery_pb2
from sealface_protos.keys.v1 import key_pb2, key_service_pb2
from tests.conftest import both_schemes, person, refused, status_of
from tests.enrollment.conftest import create_gallery, description, enroll_request
from tests.keys.conftest import create_key, new_key

EDGE, EMBEDDING, CLIENT_KEY, IMAGE = (
    gallery_pb2.PRIVACY_LEVEL_EDGE,
    gallery_pb2.PRIVACY_LEVEL_EMBEDDING,
    gallery_pb2.PRIVACY_LEVEL_CLIENT_KEY,
    gallery_pb2.PRIVACY_LEVEL_IMAGE,
)


async def get(client, name="galleries/door"):
    return await client.enrollment.GetGallery(messages.GetGalleryRequest(name=name))


async def delete(client, name="galleries/door"):
    return await client.enrollment.DeleteGallery(messages.DeleteGalleryRequest(name=name))


@both_schemes
async def test_a_gallery_takes_over_what_its_key_says(client, door_key):
    made = await create_gallery(client)
    assert (made.name, made.key, made.key_version) == ("galleries/door", "keys/door", "keys/door/versions/1")
    assert made.parameter_set == N4096.name
    assert made.score_format == key_pb2.ScoreFormat(dimension=128, metric=key_pb2.METRIC_COSINE)
    assert made.custody == key_pb2.CUSTODY_MANAGED
    assert made.recognition == description().recognition
    assert (made.layout_epoch, made.subjects, made.templates) == (0, 0, 0)
    assert made.create_time.seconds > 1.7e9
    assert await get(client) == made


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key": ""}, "INVALID_NAME"),
        ({"key": "door"}, "INVALID_NAME"),
        ({"recognition": None}, "MISSING_FIELD"),
        ({"recognition": gallery_pb2.Recognition(model="Dlib", face_rule=1)}, "MISSING_FIELD"),
        ({"recognition": gallery_pb2.Recognition(model="m" * 65, detector="d", face_rule=1)}, "MISSING_FIELD"),
        ({"recognition": gallery_pb2.Recognition(model="Dlib", detector="dlib")}, "MISSING_FIELD"),
        ({"recognition": gallery_pb2.Recognition(model="Dlib", detector="dlib", face_rule=3)}, "MISSING_FIELD"),
        ({"fusion": 0}, "MISSING_FIELD"),
        ({"fusion": 5}, "MISSING_FIELD"),
        ({"privacy_level": 0}, "WRONG_PRIVACY_LEVEL"),
        ({"privacy_level": IMAGE}, "WRONG_PRIVACY_LEVEL"),
        ({"privacy_level": CLIENT_KEY}, "WRONG_PRIVACY_LEVEL"),
        ({"privacy_level": 99}, "WRONG_PRIVACY_LEVEL"),
    ],
)
async def test_a_description_that_is_wrong_makes_nothing(suite, client, door_key, changed, reason):
    before = suite.record()
    with refused("INVALID_ARGUMENT", reason):
        await create_gallery(client, gallery=description(**changed))
    assert suite.record() == before


@pytest.mark.parametrize("gallery_id", ["", "Door", "1door", "a/b", "d" * 65])
async def test_an_id_is_of_the_form(client, door_key, gallery_id):
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await create_gallery(client, gallery_id)


async def test_the_privacy_level_goes_with_the_custody(client, scheme):
    await create_key(client, "managed")
    held = new_key(custody=key_pb2.CUSTODY_CLIENT_HELD)
    public = scheme.generate(N4096).public
    await client.keys.RegisterKey(key_service_pb2.RegisterKeyRequest(key_id="held", key=held, public_key=public))
    for level in (EDGE, EMBEDDING):
        with refused("INVALID_ARGUMENT", "WRONG_PRIVACY_LEVEL"):
            await create_gallery(client, "g", description("keys/held", privacy_level=level))
    with refused("INVALID_ARGUMENT", "WRONG_PRIVACY_LEVEL"):
        await create_gallery(client, "g", description("keys/managed", privacy_level=CLIENT_KEY))
    made = await create_gallery(client, "g", description("keys/held", privacy_level=CLIENT_KEY))
    assert (made.custody, made.privacy_level) == (key_pb2.CUSTODY_CLIENT_HELD, CLIENT_KEY)
    assert (await create_gallery(client, "h", description("keys/managed", privacy_level=EDGE))).privacy_level == EDGE


async def test_an_unknown_key_is_what_the_key_service_says(suite, client):
    before = suite.record()
    with refused("NOT_FOUND", "KEY_NOT_FOUND"):
        await create_gallery(client)
    assert suite.record() == before


async def test_an_id_is_taken_once_and_a_key_serves_one_gallery(suite, client, door_key):
    await create_gallery(client)
    await create_key(client, "other")
    before = suite.record()
    with refused("ALREADY_EXISTS", "GALLERY_EXISTS"):
        await create_gallery(client, "door", description("keys/other"))
    with refused("ALREADY_EXISTS", "KEY_TAKEN"):
        await create_gallery(client, "second")
    assert suite.record() == before


async def test_pages_of_galleries(client):
    for name in ("b", "a", "c"):
        await create_key(client, name)
        await create_gallery(client, name, description(f"keys/{name}"))
    first = await client.enrollment.ListGalleries(messages.ListGalleriesRequest(page_size=2))
    assert [gallery.name for gallery in first.galleries] == ["galleries/a", "galleries/b"]
    second = await client.enrollment.ListGalleries(
        messages.ListGalleriesRequest(page_size=2, page_token=first.next_page_token)
    )
    assert ([gallery.name for gallery in second.galleries], second.next_page_token) == (["galleries/c"], "")


async def test_an_erased_gallery_is_gone_with_all_that_was_in_it(suite, client, door):
    for i in range(3):
        await door.enroll(f"s{i}", person(i))
    assert (await get(client)).subjects == 3
    assert (await delete(client)).templates == 3
    for call in (get, delete):
        with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
            await call(client)
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await client.enrollment.Enroll(enroll_request(door))
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await client.enrollment.ListSubjects(messages.ListSubjectsRequest(parent="galleries/door"))
    rows = suite.record()
    assert {table for table, held in rows.items() if held} == {"retired_galleries", "audit", "pseudonym_key"}


async def test_the_key_of_an_erased_gallery_may_serve_again_and_slots_go_on(client, door):
    await door.enroll("s", person(1))
    await delete(client)
    again = await create_gallery(client)
    assert again.layout_epoch > 1
    enrolled = await client.enrollment.Enroll(enroll_request(door))
    assert enrolled.template.slot == 2
    assert enrolled.layout_epoch > again.layout_epoch


async def test_wrong_names(client, door):
    for call in (get, delete):
        for name in ("", "door", "keys/door", "galleries/door/subjects/x"):
            with refused("INVALID_ARGUMENT", "INVALID_NAME"):
                await call(client, name)


async def test_key_service_away_is_unavailable_and_nothing_is_half_made(suite, client, door_key):
    await suite.stop("keys")
    before = suite.record()
    with refused("UNAVAILABLE", "KEY_SERVICE_UNAVAILABLE"):
        await create_gallery(client)
    assert suite.record() == before
    for _ in range(15):  # asked again and again meanwhile, it must not pause for long before it looks once more
        await asyncio.sleep(0.2)
        with refused("UNAVAILABLE", "KEY_SERVICE_UNAVAILABLE"):
            await create_gallery(client)
    await suite.start("keys")
    started = time.monotonic()
    while True:
        try:
            made = await create_gallery(client)
            break
        except grpc.aio.AioRpcError as error:
            assert status_of(error)[1].reason == "KEY_SERVICE_UNAVAILABLE"
            assert time.monotonic() - started < 1.6
            await asyncio.sleep(0.05)
    assert made.custody == key_pb2.CUSTODY_MANAGED


async def test_without_the_key_service_templates_are_still_enrolled(suite, client, door):
    await suite.stop("keys")
    await door.enroll("s", person(1))
    assert (await get(client)).templates == 1


async def test_what_was_acknowledged_is_there_after_a_restart(suite, client, door):
    await door.enroll("s", person(1))
    before = await get(client)
    await suite.restart("enrollment")
    assert await get(client) == before
    assert (await door.verify("s", person(1))).match
