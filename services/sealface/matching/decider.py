"""Encrypted scores to a sealed decision, by way of the key service. The decision is not readable here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from sealface.errors import Unavailable
from sealface.protocol.scores import Result
from sealface.runtime.request_ids import passed_on
from sealface.runtime.status import from_rpc_error
from sealface.runtime.timing import SERVER_TIMING
from sealface_protos.keys.v1 import decision_pb2, key_service_pb2, key_service_pb2_grpc

RESULTS_A_MESSAGE = 32
LINKS_A_MESSAGE = 50_000


class KeyServiceUnavailable(Unavailable):
    """The key service does not answer."""


@dataclass(frozen=True)
class Scores:
    """What a decision is asked for on.

    Attributes:
        epoch: the layout epoch that was searched.
        links: (n, 2) slot and first slot of its subject.
        results: as they are computed.
        share: how much of the gallery was searched, 0 to 1, when all results are there.
    """

    epoch: int
    links: NDArray[np.uint32]
    results: AsyncIterator[list[Result]]
    share: Callable[[], float] = lambda: 1.0


class Decider:
    """Asks the key service.

    Args:
        channel: to the key service.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: key_service_pb2_grpc.KeyServiceAsyncStub = key_service_pb2_grpc.KeyServiceStub(channel)

    async def decide(
        self, request: decision_pb2.SignedDecisionRequest, scores: Scores, timeout_s: float
    ) -> tuple[decision_pb2.SealedDecision, str]:
        """Have a search decided; scores are sent as they are computed. Also the key service's own timing.

        Raises:
            KeyServiceUnavailable: sign a new request and try again.
            SealfaceError: what the key service said, or what the search failed for.
        """
        failures: list[Exception] = []

        async def messages() -> AsyncIterator[key_service_pb2.DecideRequest]:
            try:
                async for message in _messages(request, scores):
                    yield message
            except Exception as error:
                failures.append(error)
                raise

        try:
            call = self._stub.Decide(messages(), timeout=timeout_s, metadata=passed_on())
            sealed = await call
            trailing = dict(await call.trailing_metadata())
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            if failures:  # gRPC cancels the call for it, and does not say why
                raise failures[0] from None
            if isinstance(error, asyncio.CancelledError):
                raise
            unavailable = KeyServiceUnavailable("the key service does not answer: sign a new request and try again")
            raise from_rpc_error(error, unavailable) from None
        return sealed, str(trailing.get(SERVER_TIMING, ""))


async def _messages(
    request: decision_pb2.SignedDecisionRequest, scores: Scores
) -> AsyncIterator[key_service_pb2.DecideRequest]:
    yield key_service_pb2.DecideRequest(request=request, layout_epoch=scores.epoch)
    for links in link_messages(scores.links):
        yield key_service_pb2.DecideRequest(links=links)
    async for results in result_messages(scores.results):
        yield key_service_pb2.DecideRequest(results=results)
    yield key_service_pb2.DecideRequest(share_searched=scores.share())


def link_messages(links: NDArray[np.uint32]) -> Iterator[list[decision_pb2.SlotLink]]:
    """A search's links, in parts that fit a message."""
    for start in range(0, len(links), LINKS_A_MESSAGE):
        part = links[start : start + LINKS_A_MESSAGE].tolist()
        yield [decision_pb2.SlotLink(slot=slot, lead=lead) for slot, lead in part]


async def result_messages(results: AsyncIterator[list[Result]]) -> AsyncIterator[list[decision_pb2.ScoreResult]]:
    """A search's results as they come, in parts that fit a message."""
    async for part in results:
        for start in range(0, len(part), RESULTS_A_MESSAGE):
            yield [_to_proto(result) for result in part[start : start + RESULTS_A_MESSAGE]]


def _to_proto(result: Result) -> decision_pb2.ScoreResult:
    return decision_pb2.ScoreResult(
        columns=result.columns, ciphertext=result.ciphertext, slots=result.slots.astype("<u4").tobytes()
    )
