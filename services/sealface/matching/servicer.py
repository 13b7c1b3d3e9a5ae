"""gRPC to the matching service's domain: validate, convert, call, convert."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from sealface.errors import InvalidInput, SealfaceError
from sealface.matching.decider import Decider, link_messages, result_messages
from sealface.matching.matcher import Matcher, Probe, Search
from sealface.protocol import convert, names
from sealface.runtime.status import to_status
from sealface_protos.keys.v1 import decision_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as messages
from sealface_protos.matching.v1 import matching_service_pb2_grpc

LARGEST_CLAIM = 16
_DECIDE_DEADLINE_S = 60.0

Context = grpc.aio.ServicerContext[Any, Any]


class RequestMismatch(InvalidInput):
    """The signed request is not about this call's gallery, probe or slots."""


class MatchingServicer(matching_service_pb2_grpc.MatchingServiceServicer):
    """See `MatchingService` in the contract."""

    def __init__(self, matcher: Matcher, decider: Decider) -> None:
        self._matcher = matcher
        self._decider = decider

    async def Verify(self, request: messages.VerifyRequest, context: Context) -> messages.VerifyResponse:
        """See the contract."""
        gallery_id = names.id_of(request.gallery, "galleries")
        if not 1 <= len(set(request.claimed_slots)) == len(request.claimed_slots) <= LARGEST_CLAIM:
            raise convert.missing(f"claimed_slots (1 to {LARGEST_CLAIM}, each once)")
        search = await asyncio.to_thread(self._matcher.verify, gallery_id, _probe(request.probe), request.claimed_slots)
        response = messages.VerifyResponse(layout_epoch=search.epoch)
        if search.gallery.managed:
            _check_signed(request.decision_request, request.gallery, request.probe, set(request.claimed_slots))
            response.decision.CopyFrom(await self._decide(request.decision_request, search, context))
            return response
        async for results in result_messages(search):
            response.scores.results.extend(results)
        return response

    async def Identify(
        self, request: messages.IdentifyRequest, context: Context
    ) -> AsyncIterator[messages.IdentifyResponse]:
        """See the contract."""
        gallery_id = names.id_of(request.gallery, "galleries")
        names.check_opaque(request.request_id, "request_id")
        search = await asyncio.to_thread(self._matcher.identify, gallery_id, _probe(request.probe))
        if search.gallery.managed:
            _check_signed(request.decision_request, request.gallery, request.probe, set())
            yield messages.IdentifyResponse(
                decision=await self._decide(request.decision_request, search, context),
                layout_epoch=search.epoch,
                share_searched=1.0,
            )
            return
        yield _scores_response(search)
        for links in link_messages(search):
            yield _scores_response(search, links=links)
        async for results in result_messages(search):
            yield _scores_response(search, results=results)

    async def BatchIdentify(
        self, request_iterator: AsyncIterator[messages.BatchIdentifyRequest], context: Context
    ) -> AsyncIterator[messages.BatchIdentifyResponse]:
        """See the contract."""
        async for item in request_iterator:
            request_id = item.request.request_id
            try:
                async for response in self.Identify(item.request, context):
                    yield messages.BatchIdentifyResponse(request_id=request_id, response=response)
                yield messages.BatchIdentifyResponse(request_id=request_id, last=True)
            except SealfaceError as error:
                yield messages.BatchIdentifyResponse(request_id=request_id, error=to_status(error), last=True)

    async def _decide(
        self, request: decision_pb2.SignedDecisionRequest, search: Search, context: Context
    ) -> decision_pb2.SealedDecision:
        remaining = context.time_remaining()
        timeout_s = _DECIDE_DEADLINE_S if remaining is None else min(_DECIDE_DEADLINE_S, remaining)
        return await self._decider.decide(request, search, timeout_s)


def _probe(message: messages.Probe) -> Probe:
    return Probe(message.ciphertext, message.key_version, message.parameter_set)


def _scores_response(
    search: Search,
    results: Sequence[decision_pb2.ScoreResult] = (),
    links: Sequence[decision_pb2.SlotLink] = (),
) -> messages.IdentifyResponse:
    scores = messages.EncryptedScores(results=results, links=links)
    return messages.IdentifyResponse(scores=scores, layout_epoch=search.epoch, share_searched=1.0)


def _check_signed(
    signed: decision_pb2.SignedDecisionRequest, gallery: str, probe: messages.Probe, claimed: set[int]
) -> None:
    """Whether the signed request is about this call, so that a mistake costs no nonce.

    The key service checks the signature; what is found here binds nobody.
    """
    try:
        request = decision_pb2.DecisionRequest.FromString(signed.decision_request)
    except Exception:  # protobuf's DecodeError differs between its implementations
        raise RequestMismatch("decision_request is no serialised DecisionRequest: sign one") from None
    if not signed.decision_request:
        raise convert.missing("decision_request (the gallery's key is managed)")
    operation = decision_pb2.OPERATION_VERIFY if claimed else decision_pb2.OPERATION_IDENTIFY
    if (request.gallery, request.key_version, request.operation) != (gallery, probe.key_version, operation):
        raise RequestMismatch("the signed request names another gallery, key version or operation: sign a new one")
    if request.probe_digest != hashlib.sha256(probe.ciphertext).digest():
        raise RequestMismatch("the signed request is for another probe: sign a new one")
    if set(request.claimed_slots) != claimed:
        raise RequestMismatch("the signed request claims other slots: sign a new one")
