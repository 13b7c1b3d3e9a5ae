"""Faces that callers embedded themselves: no DeepFace needed."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from sealface_protos.edge.v1 import edge_service_pb2 as messages
from tests.edge.zones import DIMENSION, Zones, embedding, refused


async def test_enrolled_faces_are_recognised(zones: Zones) -> None:
    for person in range(3):
        template = await zones.enroll(f"p{person}", embedding(person))
        assert template == f"galleries/door/subjects/p{person}/templates/{person + 1}"
    assert await zones.verify("p1", embedding(1, 1)) == "DECISION_MATCH"
    found = await zones.identify(embedding(2, 1))
    assert found == messages.IdentifyResponse(decision=messages.DECISION_MATCH, subject_ids=["p2"], share_searched=1.0)


async def test_impostors_are_not(zones: Zones) -> None:
    for person in range(3):
        await zones.enroll(f"p{person}", embedding(person))
    assert await zones.verify("p1", embedding(2, 1)) == "DECISION_NO_MATCH"
    found = await zones.identify(embedding(9))
    assert found == messages.IdentifyResponse(decision=messages.DECISION_NO_MATCH, share_searched=1.0)


async def test_with_the_real_cipher(real_zones: Zones) -> None:
    await real_zones.enroll("p0", embedding(0))
    await real_zones.enroll("p1", embedding(1))
    assert await real_zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"
    assert await real_zones.verify("p0", embedding(1, 1)) == "DECISION_NO_MATCH"
    assert list((await real_zones.identify(embedding(1, 1))).subject_ids) == ["p1"]
    assert list((await real_zones.identify(embedding(7))).subject_ids) == []


async def test_no_more_candidates_than_asked_for(zones: Zones) -> None:
    await zones.enroll("near", embedding(0))
    await zones.enroll("twin", embedding(0, 5))
    assert list((await zones.identify(embedding(0))).subject_ids) == ["near", "twin"]
    assert list((await zones.identify(embedding(0), most=1)).subject_ids) == ["near"]
    refusal = await refused(zones.identify(embedding(0), most=11))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MAX_CANDIDATES")


async def test_many_callers_at_once(zones: Zones) -> None:
    people = range(8)
    await asyncio.gather(*(zones.enroll(f"p{person}", embedding(person)) for person in people))
    verified = await asyncio.gather(*(zones.verify(f"p{person}", embedding(person, 1)) for person in people))
    assert set(verified) == {"DECISION_MATCH"}
    found = await asyncio.gather(*(zones.identify(embedding(person, 2)) for person in people))
    assert [list(each.subject_ids) for each in found] == [[f"p{person}"] for person in people]


_BAD = {
    "too short": (np.ones(DIMENSION - 1), "WRONG_DIMENSION"),
    "too long": (np.ones(DIMENSION + 1), "WRONG_DIMENSION"),
    "empty": (np.ones(0), "WRONG_DIMENSION"),
    "NaN": (np.r_[np.ones(DIMENSION - 1), np.nan], "EMBEDDING_NOT_FINITE"),
    "infinity": (np.r_[np.ones(DIMENSION - 1), -np.inf], "EMBEDDING_NOT_FINITE"),
    "zero": (np.zeros(DIMENSION), "ZERO_EMBEDDING"),
}


@pytest.mark.parametrize("name", _BAD)
async def test_bad_embeddings_are_refused(zones: Zones, name: str) -> None:
    bad, reason = _BAD[name]
    await zones.enroll("p0", embedding(0))
    for call in (zones.enroll("p1", bad), zones.verify("p0", bad), zones.identify(bad)):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [subject.name for subject in await (await zones.client.gallery("door")).subjects()] == [
        "galleries/door/subjects/p0"
    ]


@pytest.mark.parametrize("empty", [None, messages.Face()])
async def test_a_face_is_required(zones: Zones, empty: messages.Face | None) -> None:
    door = {"gallery": "galleries/door", "face": empty}
    for call in (
        zones.edge.Enroll(messages.EnrollRequest(**door, subject_id="p0", request_id="r")),
        zones.edge.Verify(messages.VerifyRequest(**door, subject_id="p0")),
        zones.edge.Identify(messages.IdentifyRequest(**door)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MISSING_FIELD")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "../p0", "p/0", "é"])
async def test_ids_are_checked(zones: Zones, name: str) -> None:
    request = messages.EnrollRequest(
        gallery="galleries/door", subject_id="p0", face={"embedding": {"values": embedding(0)}}, request_id=name
    )
    for call in (
        zones.edge.Enroll(request),
        zones.enroll(name, embedding(0)),
        zones.verify(name, embedding(0)),
        zones.identify(embedding(0), gallery=name),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")


async def test_an_unknown_subject(zones: Zones) -> None:
    refusal = await refused(zones.verify("nobody", embedding(0)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SUBJECT_NOT_FOUND")


async def test_a_repeated_request_stores_one_template(zones: Zones) -> None:
    first = await zones.enroll("p0", embedding(0), request_id="r1")
    await zones.start_edge()  # what it knew is forgotten
    assert await zones.enroll("p0", embedding(0), request_id="r1") == first
    gallery = await zones.client.gallery("door")
    assert gallery.info.templates == 1
    assert await zones.enroll("p0", embedding(0), request_id="r2") != first
    assert (await zones.client.gallery("door")).info.templates == 2


async def test_a_request_id_belongs_to_one_subject(zones: Zones) -> None:
    await zones.enroll("p0", embedding(0), request_id="r1")
    refusal = await refused(zones.enroll("p1", embedding(1), request_id="r1"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
