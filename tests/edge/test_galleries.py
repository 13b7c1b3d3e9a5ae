"""Which galleries are served, and that what is held open is not held for ever."""

from __future__ import annotations

import grpc
import pytest

from sealface.cipher.distance import Metric
from sealface.edge.client import EdgeClient
from sealface.edge.faces import OneAtATime
from sealface.edge.galleries import OpenGalleries
from sealface_client import AsyncGallery, Endpoints
from sealface_client.policies import default_policy
from sealface_protos.enrollment.v1 import enrollment_service_pb2, gallery_pb2
from tests.edge.zones import Zones, embedding, refused


async def make_anew(zones: Zones, key: str, level: gallery_pb2.PrivacyLevel.ValueType) -> None:
    """The gallery `door` again, under another key."""
    await zones.client.delete_gallery("door")
    gallery = gallery_pb2.Gallery(
        key=f"keys/{key}",
        recognition=gallery_pb2.Recognition(model="Dlib", detector="dlib", face_rule=gallery_pb2.FACE_RULE_REFUSE),
        privacy_level=level,
        fusion=gallery_pb2.FUSION_NEAREST,
    )
    await zones.client.enrollment.CreateGallery(
        enrollment_service_pb2.CreateGalleryRequest(gallery_id="door", gallery=gallery)
    )


async def new_key(zones: Zones, key: str) -> None:
    await zones.create_gallery(key, edge=True)
    await zones.client.delete_gallery(key)  # a key serves one gallery


async def test_an_unknown_gallery(zones: Zones) -> None:
    for call in (
        zones.enroll("p0", embedding(0), gallery="attic"),
        zones.verify("p0", embedding(0), gallery="attic"),
        zones.identify(embedding(0), gallery="attic"),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "GALLERY_NOT_FOUND")


async def test_that_it_is_unknown_is_not_remembered(zones: Zones) -> None:
    await refused(zones.identify(embedding(0), gallery="attic"))
    await zones.create_gallery("attic", edge=True)
    await zones.enroll("p0", embedding(0), gallery="attic")
    assert await zones.verify("p0", embedding(0, 1), gallery="attic") == "DECISION_MATCH"


@pytest.mark.parametrize("options", [{}, {"client_held": True}])
async def test_other_privacy_levels_are_refused(zones: Zones, options: dict[str, bool]) -> None:
    await zones.create_gallery("attic", **options)
    for call in (
        zones.enroll("p0", embedding(0), gallery="attic"),
        zones.verify("p0", embedding(0), gallery="attic"),
        zones.identify(embedding(0), gallery="attic"),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_AN_EDGE_GALLERY")
        assert "sealface gallery create --edge" in refusal.message
    assert (await zones.client.gallery("attic")).info.templates == 0


async def test_a_deleted_gallery_is_gone_at_once(zones: Zones) -> None:
    await zones.enroll("p0", embedding(0))
    assert await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"
    await zones.client.delete_gallery("door")
    for call in (
        zones.enroll("p0", embedding(0)),
        zones.verify("p0", embedding(0)),
        zones.identify(embedding(0)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "GALLERY_NOT_FOUND")


async def test_an_erased_subject_is_gone_at_once(zones: Zones) -> None:
    await zones.enroll("p0", embedding(0))
    assert await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"
    await (await zones.client.gallery("door")).erase("p0")
    assert (await refused(zones.verify("p0", embedding(0, 1)))).reason == "SUBJECT_NOT_FOUND"
    assert list((await zones.identify(embedding(0, 1))).subject_ids) == []


@pytest.mark.parametrize("level", [gallery_pb2.PRIVACY_LEVEL_EDGE, gallery_pb2.PRIVACY_LEVEL_EMBEDDING])
async def test_a_gallery_made_anew_under_a_key_of_another_name_is_not_trusted(zones: Zones, level: int) -> None:
    await zones.enroll("old", embedding(0))
    assert await zones.verify("old", embedding(0, 1)) == "DECISION_MATCH"
    await new_key(zones, "second")
    await make_anew(zones, "second", level)
    refusal = await refused(zones.enroll("new", embedding(1)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_NOT_TRUSTED")


# --- the galleries held open, by themselves


@pytest.fixture
async def client(zones: Zones):  # type: ignore[no-untyped-def]
    endpoints = Endpoints.discover(zones.state)
    async with EdgeClient(endpoints, zones.client.credential, OneAtATime(), zones.scheme, zones.state / "none") as made:
        yield made


async def itself(gallery: AsyncGallery) -> AsyncGallery:
    return gallery


async def test_a_gallery_is_opened_once(client: EdgeClient) -> None:
    held = OpenGalleries(client)
    assert await held.use("door", itself) is await held.use("door", itself)


async def test_a_gallery_looked_at_again_keeps_its_slots(client: EdgeClient) -> None:
    held = OpenGalleries(client, fresh_s=0)
    first = await held.use("door", itself)
    await first.enroll("p0", embedding(0))
    assert await held.use("door", itself) is first


async def test_a_changed_policy_is_seen(zones: Zones, client: EdgeClient) -> None:
    held = OpenGalleries(client, fresh_s=0)
    assert (await held.use("door", itself)).policy.max_candidates == 5
    await zones.client.update_policy(
        "door", default_policy("Dlib", Metric.COSINE, verification_threshold=0.07, max_candidates=2)
    )
    assert (await held.use("door", itself)).policy.max_candidates == 2


async def test_a_new_privacy_level_is_seen(zones: Zones, client: EdgeClient) -> None:
    held = OpenGalleries(client, fresh_s=0)
    await held.use("door", itself)
    await make_anew(zones, "door", gallery_pb2.PRIVACY_LEVEL_EMBEDDING)
    with pytest.raises(Exception, match="embed and encrypt themselves"):
        await held.use("door", itself)


async def test_few_are_held_open(zones: Zones, client: EdgeClient) -> None:
    held = OpenGalleries(client, most=2)
    for gallery_id in ("hall", "attic"):
        await zones.create_gallery(gallery_id, edge=True)
    door, hall = await held.use("door", itself), await held.use("hall", itself)
    assert await held.use("door", itself) is door
    await held.use("attic", itself)
    assert await held.use("door", itself) is door  # the hall was used longest ago
    assert await held.use("hall", itself) is not hall
