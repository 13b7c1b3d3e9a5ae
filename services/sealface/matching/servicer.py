"""gRPC to the matching service's domain: validate, convert, call, convert."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import grpc

from sealface.errors import InvalidInput, SealfaceError
from sealface.matching.decider import Decider, Scores, link_messages, result_messages
from sealface.matching.feed import Eager, Feed, together
from sealface.matching.matcher import LONGEST_S, Matcher, Probe, Search
from sealface.matching.transcripts import Transcripts
from sealface.protocol import convert, names
from sealface.protocol.scores import Result
from sealface.runtime.status import to_status
from sealface.runtime.timing import SERVER_TIMING, format_timing, parse_timing
from sealface_protos.keys.v1 import decision_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as messages
from sealface_protos.matching.v1 import matching_service_pb2_grpc

LARGEST_CLAIM = 16
MOST_CHECKED = 1000
MOST_TOGETHER = 16
"""Searches that share a pass."""
_DECIDE_DEADLINE_S = 60.0

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Eager[messages.IdentifyResponse] | SealfaceError


class RequestMismatch(InvalidInput):
    """The signed request is not about this call's gallery, probe or slots."""


class MatchingServicer(matching_service_pb2_grpc.MatchingServiceServicer):
    """See `MatchingService` in the contract."""

    def __init__(self, matcher: Matcher, decider: Decider, transcripts: Transcripts | None = None) -> None:
        self._matcher = matcher
        self._decider = decider
        self._transcripts = transcripts

    async def Verify(self, request: messages.VerifyRequest, context: Context) -> messages.VerifyResponse:
        """See the contract."""
        gallery_id = names.id_of(request.gallery, "galleries")
        if not 1 <= len(set(request.claimed_slots)) == len(request.claimed_slots) <= LARGEST_CLAIM:
            raise convert.missing(f"claimed_slots (1 to {LARGEST_CLAIM}, each once)")
        claimed = set(request.claimed_slots)
        search = await asyncio.to_thread(
            self._matcher.verify, gallery_id, _probe(request.probe), claimed, _timeout(context)
        )
        response = messages.VerifyResponse(layout_epoch=search.epoch)
        if search.gallery.managed:
            _check_signed(search, request.decision_request, request.gallery, request.probe, claimed)
            scores = Feed(search.results(), 1).of(0)
            decision, _ = await self._decide(request.decision_request, search, 0, scores, context)
            response.decision.CopyFrom(decision)
            return response
        async for results in result_messages(Feed(search.results(), 1).of(0)):
            response.scores.results.extend(results)
        return response

    async def Identify(
        self, request: messages.IdentifyRequest, context: Context
    ) -> AsyncIterator[messages.IdentifyResponse]:
        """See the contract."""
        gallery_id = _check_request(request)
        search = await asyncio.to_thread(
            self._matcher.identify, gallery_id, [_probe(request.probe)], _timeout(context), request.allow_partial
        )
        if search.gallery.managed:
            _check_signed(search, request.decision_request, request.gallery, request.probe, set())
        timing: list[str] = []
        async for response in self._answer(request, search, 0, Feed(search.results(), 1).of(0), timing, context):
            yield response
        context.set_trailing_metadata(((SERVER_TIMING, _timing(search, timing)),))

    async def BatchIdentify(
        self, request_iterator: AsyncIterator[messages.BatchIdentifyRequest], context: Context
    ) -> AsyncIterator[messages.BatchIdentifyResponse]:
        """See the contract. Searches of one gallery that arrive together share a pass over it."""
        spent: dict[str, float] = defaultdict(float)
        async for batch in together(request_iterator, MOST_TOGETHER):
            timings: list[Callable[[], str]] = []
            requests = [item.request for item in batch]
            answers: dict[int, Answer] = {}
            try:
                await self._shared(dict(enumerate(requests)), answers, timings, context)
                for request, answer in zip(requests, (answers[i] for i in range(len(requests))), strict=True):
                    async for response in _items(request.request_id, answer):
                        yield response
            finally:  # a call that is given up wants no more decisions
                for answer in answers.values():
                    if isinstance(answer, Eager):
                        answer.close()
            for timing in timings:
                for name, milliseconds in parse_timing(timing()).items():
                    spent[name] += milliseconds
        context.set_trailing_metadata(((SERVER_TIMING, format_timing(spent)),))

    async def CheckErasure(
        self, request: messages.CheckErasureRequest, context: Context
    ) -> messages.CheckErasureResponse:
        """See the contract."""
        gallery_id = names.id_of(request.gallery, "galleries")
        if not 1 <= len(request.slots) <= MOST_CHECKED:
            raise convert.missing(f"slots (1 to {MOST_CHECKED})")
        found = await asyncio.to_thread(self._matcher.check_erasure, gallery_id, list(request.slots), _timeout(context))
        return messages.CheckErasureResponse(workers=found.workers, blocks=found.blocks, found=found.found)

    async def _shared(
        self,
        requests: Mapping[int, messages.IdentifyRequest],
        answers: dict[int, Answer],
        timings: list[Callable[[], str]],
        context: Context,
    ) -> None:
        """Add an answer for each request, under way already; one that fails does not stop the others."""
        by_gallery: dict[str, list[int]] = defaultdict(list)
        for number, request in requests.items():
            try:
                by_gallery[_check_request(request)].append(number)
            except SealfaceError as error:
                answers[number] = error
        for gallery_id, numbers in by_gallery.items():
            try:
                probes = [_probe(requests[number].probe) for number in numbers]
                allowed = all(requests[number].allow_partial for number in numbers)
                search = await asyncio.to_thread(self._matcher.identify, gallery_id, probes, _timeout(context), allowed)
            except SealfaceError as error:
                if len(numbers) == 1:
                    answers[numbers[0]] = error
                    continue
                for number in numbers:  # one of them is to blame: each by itself
                    await self._shared({number: requests[number]}, answers, timings, context)
                continue
            timing: list[str] = []
            feed = Feed(search.results(), len(numbers))
            for place, number in enumerate(numbers):
                answer = self._answer(requests[number], search, place, feed.of(place), timing, context)
                answers[number] = Eager(answer)
            timings.append(partial(_timing, search, timing))

    async def _answer(
        self,
        request: messages.IdentifyRequest,
        search: Search,
        place: int,
        results: AsyncIterator[list[Result]],
        timing: list[str],
        context: Context,
    ) -> AsyncIterator[messages.IdentifyResponse]:
        if search.gallery.managed:
            _check_signed(None, request.decision_request, request.gallery, request.probe, set())
            decision, of_keys = await self._decide(request.decision_request, search, place, results, context)
            timing.append(of_keys)
            yield messages.IdentifyResponse(decision=decision, layout_epoch=search.epoch, share_searched=search.share)
            return
        for links in link_messages(search.links):
            yield _scores_response(search, links=links)
        async for part in result_messages(results):
            yield _scores_response(search, results=part)
        last = _scores_response(search)
        last.share_searched = search.share  # known when all are there
        yield last

    async def _decide(
        self,
        request: decision_pb2.SignedDecisionRequest,
        search: Search,
        place: int,
        results: AsyncIterator[list[Result]],
        context: Context,
    ) -> tuple[decision_pb2.SealedDecision, str]:
        await self._keep(request, search, place)
        remaining = context.time_remaining()
        timeout_s = _DECIDE_DEADLINE_S if remaining is None else min(_DECIDE_DEADLINE_S, remaining)
        scores = Scores(search.epoch, search.links, results, lambda: search.share)
        decided = await self._decider.decide(request, scores, timeout_s)
        if search.share < 1:  # known only now
            await self._keep(request, search, place)
        return decided

    async def _keep(self, request: decision_pb2.SignedDecisionRequest, search: Search, place: int) -> None:
        """Keep what is decided on for an auditor, where that is wanted."""
        task = search.of(place)
        if self._transcripts is not None and task is not None:
            request_id = decision_pb2.DecisionRequest.FromString(request.decision_request).request_id
            await asyncio.to_thread(self._transcripts.keep, request_id, task)


async def _items(request_id: str, answer: Answer) -> AsyncIterator[messages.BatchIdentifyResponse]:
    try:
        if isinstance(answer, SealfaceError):
            raise answer
        async for response in answer:
            yield messages.BatchIdentifyResponse(request_id=request_id, response=response)
        yield messages.BatchIdentifyResponse(request_id=request_id, last=True)
    except SealfaceError as error:
        yield messages.BatchIdentifyResponse(request_id=request_id, error=to_status(error), last=True)


def _check_request(request: messages.IdentifyRequest) -> str:
    names.check_opaque(request.request_id, "request_id")
    return names.id_of(request.gallery, "galleries")


def _timing(search: Search, of_keys: Sequence[str]) -> str:
    timing = search.timing
    own = {"expand": timing.expand_ms, "multiply": timing.multiply_ms, "pass": timing.pass_ms}
    return ", ".join([format_timing(own), *filter(None, of_keys)])


def _probe(message: messages.Probe) -> Probe:
    return Probe(message.ciphertext, message.key_version, message.parameter_set)


def _scores_response(
    search: Search,
    results: Sequence[decision_pb2.ScoreResult] = (),
    links: Sequence[decision_pb2.SlotLink] = (),
) -> messages.IdentifyResponse:
    scores = messages.EncryptedScores(results=results, links=links)
    return messages.IdentifyResponse(scores=scores, layout_epoch=search.epoch)


def _timeout(context: Context) -> float:
    """Seconds that a search may take: most of what the caller gives, so that it can still be decided."""
    remaining = context.time_remaining()
    return LONGEST_S if remaining is None else min(LONGEST_S, 0.8 * remaining)


def _check_signed(
    search: Search | None,
    signed: decision_pb2.SignedDecisionRequest,
    gallery: str,
    probe: messages.Probe,
    claimed: set[int],
) -> None:
    """Whether the signed request is about this call, so that a mistake costs no nonce; else the search ends.

    The key service checks the signature; what is found here binds nobody.
    """
    try:
        _check_request_signed(signed, gallery, probe, claimed)
    except SealfaceError:
        if search is not None:
            search.cancel()
        raise


def _check_request_signed(
    signed: decision_pb2.SignedDecisionRequest, gallery: str, probe: messages.Probe, claimed: set[int]
) -> None:
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
