"""Whoever calls the edge service is known to compute by a token of their own, before a picture is looked at."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from sealface.protocol import tokens
from sealface.protocol.rights import Grant, Role
from sealface_protos.edge.v1 import edge_service_pb2 as messages
from sealface_protos.edge.v1 import edge_service_pb2_grpc
from tests.conftest import select
from tests.edge.zones import Zones, embedding, face, refused

NO_PICTURE = b"no picture"


class Kiosk:
    """A caller with a token, or with none."""

    def __init__(self, zones: Zones, token: str | None) -> None:
        self._stub: Any = edge_service_pb2_grpc.EdgeServiceStub(zones.channel)
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def enroll(self, what: Any) -> Any:
        request = messages.EnrollRequest(gallery="galleries/door", subject_id="ada", face=face(what), request_id="r")
        return self._stub.Enroll(request, metadata=self._metadata)

    def verify(self, what: Any) -> Any:
        request = messages.VerifyRequest(gallery="galleries/door", subject_id="ada", face=face(what))
        return self._stub.Verify(request, metadata=self._metadata)

    def identify(self, what: Any) -> Any:
        return self._stub.Identify(
            messages.IdentifyRequest(gallery="galleries/door", face=face(what)), metadata=self._metadata
        )


async def kiosk(zones: Zones, name: str, *grants: Grant) -> Kiosk:
    token, digest = tokens.new_static()
    await zones.client.create_caller(name, grants=grants, token_digest=digest)
    return Kiosk(zones, token)


@pytest.mark.parametrize("what", [NO_PICTURE, embedding(0)], ids=["picture", "embedding"])
async def test_no_picture_of_a_stranger_is_looked_at(zones: Zones, what: Any) -> None:
    await zones.enroll("p0", embedding(1))  # from now on the service holds the gallery open
    elsewhere = await kiosk(zones, "elsewhere", Grant(Role.ADMIN, "hall"))
    for caller, reason in (
        (Kiosk(zones, None), "TOKEN_MISSING"),
        (Kiosk(zones, tokens.new_static()[0]), "CALLER_UNKNOWN"),
        (elsewhere, "NOT_ALLOWED"),
    ):
        for call in (caller.enroll, caller.verify, caller.identify):
            refusal = await refused(call(what))
            assert refusal.reason == reason
            denied = {"NOT_ALLOWED": grpc.StatusCode.PERMISSION_DENIED}
            assert refusal.code == denied.get(reason, grpc.StatusCode.UNAUTHENTICATED)


async def test_what_a_caller_may_is_its_own_and_not_the_services(zones: Zones) -> None:
    clerk = await kiosk(zones, "clerk", Grant(Role.ENROLLER, "door"))
    guard = await kiosk(zones, "guard", Grant(Role.VERIFIER, "door"))
    assert (await refused(guard.enroll(embedding(0)))).reason == "NOT_ALLOWED"
    await clerk.enroll(embedding(0))
    for call in (clerk.verify, clerk.identify):
        assert (await refused(call(embedding(0, 1)))).reason == "NOT_ALLOWED"
    assert (await guard.verify(embedding(0, 1))).decision == messages.DECISION_MATCH
    assert list((await guard.identify(embedding(0, 1))).subject_ids) == ["ada"]
    actors = select(zones.state / "compute" / "record.db", "SELECT line FROM audit WHERE act = 'Enroll'")
    assert [b'"actor":"callers/clerk"' in line for (line,) in actors] == [True]
