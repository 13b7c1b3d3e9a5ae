"""Encrypted scores to a sealed decision, by way of the key service. The decision is not readable here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc

from sealface.errors import Unavailable
from sealface.matching.matcher import Search
from sealface.protocol.scores import Result
from sealface.runtime.status import from_rpc_error
from sealface_protos.keys.v1 import decision_pb2, key_service_pb2, key_service_pb2_grpc

RESULTS_A_MESSAGE = 32
LINKS_A_MESSAGE = 50_000


class KeyServiceUnavailable(Unavailable):
    """The key service does not answer."""


class Decider:
    """Asks the key service.

    Args:
        channel: to the key service.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = key_service_pb2_grpc.KeyServiceStub(channel)

    async def decide(
        self, request: decision_pb2.SignedDecisionRequest, search: Search, timeout_s: float
    ) -> decision_pb2.SealedDecision:
        """Have a search decided; scores are sent as they are computed.

        Raises:
            KeyServiceUnavailable: sign a new request and try again.
            SealfaceError: what the key service said.
        """
        try:
            return await self._stub.Decide(_messages(request, search), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            unavailable = KeyServiceUnavailable("the key service does not answer: sign a new request and try again")
            raise from_rpc_error(error, unavailable) from None


async def _messages(
    request: decision_pb2.SignedDecisionRequest, search: Search
) -> AsyncIterator[key_service_pb2.DecideRequest]:
    yield key_service_pb2.DecideRequest(
        request=request,
        layout_epoch=search.epoch,
        share_searched=1.0,
    )
    for links in link_messages(search):
        yield key_service_pb2.DecideRequest(links=links)
    async for results in result_messages(search):
        yield key_service_pb2.DecideRequest(results=results)


def link_messages(search: Search) -> Iterator[list[decision_pb2.SlotLink]]:
    """The search's links, in parts that fit a message."""
    links = [decision_pb2.SlotLink(slot=slot, lead=lead) for slot, lead in search.leads.items()]
    for start in range(0, len(links), LINKS_A_MESSAGE):
        yield links[start : start + LINKS_A_MESSAGE]


async def result_messages(search: Search) -> AsyncIterator[list[decision_pb2.ScoreResult]]:
    """The search's results, in parts that fit a message; scored off the event loop."""
    while part := await asyncio.to_thread(_take, search):
        yield part
        if len(part) < RESULTS_A_MESSAGE:
            return


def _take(search: Search) -> list[decision_pb2.ScoreResult]:
    part = []
    for result in search.results:
        part.append(_to_proto(result))
        if len(part) == RESULTS_A_MESSAGE:
            break
    return part


def _to_proto(result: Result) -> decision_pb2.ScoreResult:
    return decision_pb2.ScoreResult(
        shape=decision_pb2.RESULT_SHAPE_GROUP, ciphertext=result.ciphertext, slots=result.slots
    )
