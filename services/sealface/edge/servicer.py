"""gRPC to the client library: validate, convert, call, convert."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from sealface.edge.client import on_behalf, passed_on, time_limit
from sealface.edge.galleries import OpenGalleries
from sealface.errors import InvalidInput
from sealface.protocol import convert, names
from sealface.protocol.policy import LARGEST_MAX_CANDIDATES
from sealface.runtime.authentication import bearer
from sealface_client import AsyncGallery
from sealface_protos.edge.v1 import edge_service_pb2 as messages
from sealface_protos.edge.v1 import edge_service_pb2_grpc

_T = TypeVar("_T")

Context = grpc.aio.ServicerContext[Any, Any]


class InvalidMaxCandidates(InvalidInput):
    """More candidates are asked for than any policy allows."""


class EdgeServicer(edge_service_pb2_grpc.EdgeServiceServicer):
    """See `EdgeService` in the contract."""

    def __init__(self, galleries: OpenGalleries) -> None:
        self._galleries = galleries

    async def Enroll(self, request: messages.EnrollRequest, context: Context) -> messages.EnrollResponse:
        """See the contract."""
        subject = names.check_opaque(request.subject_id, "subject_id")
        request_id = names.check_opaque(request.request_id, "request_id")
        face = _face(request.face)
        enrolled = await self._use(
            request.gallery, context, lambda gallery: gallery.enroll(subject, face, request_id=request_id)
        )
        return messages.EnrollResponse(template=enrolled.template)

    async def Verify(self, request: messages.VerifyRequest, context: Context) -> messages.VerifyResponse:
        """See the contract."""
        subject = names.check_opaque(request.subject_id, "subject_id")
        face = _face(request.face)
        verified = await self._use(request.gallery, context, lambda gallery: gallery.verify(subject, face))
        return messages.VerifyResponse(decision=_decision(verified.match))

    async def Identify(self, request: messages.IdentifyRequest, context: Context) -> messages.IdentifyResponse:
        """See the contract."""
        if request.max_candidates > LARGEST_MAX_CANDIDATES:
            raise InvalidMaxCandidates(
                f"max_candidates is 1 to {LARGEST_MAX_CANDIDATES}: leave it out for as many as the policy allows"
            )
        face = _face(request.face)
        most = request.max_candidates or None
        found = await self._use(request.gallery, context, lambda gallery: gallery.identify(face, most))
        return messages.IdentifyResponse(
            decision=_decision(found.match),
            subject_ids=[named.subject for named in found.candidates],
            share_searched=found.searched,
        )

    async def _use(self, name: str, context: Context, act: Callable[[AsyncGallery], Awaitable[_T]]) -> _T:
        gallery_id = names.id_of(name, "galleries")
        token = bearer(dict(context.invocation_metadata() or ()))
        with time_limit(context.time_remaining()), on_behalf(token), passed_on():
            await self._galleries.admit(gallery_id)
            return await self._galleries.use(gallery_id, act)


def _face(face: messages.Face) -> bytes | NDArray[np.float64]:
    source = face.WhichOneof("source")
    if source is None:
        raise convert.missing("face.image or face.embedding")
    return face.image if source == "image" else np.array(face.embedding.values, np.float64)


def _decision(match: bool) -> messages.Decision.ValueType:
    return messages.DECISION_MATCH if match else messages.DECISION_NO_MATCH
