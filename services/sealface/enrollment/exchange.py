"""Blocks that go to a client, and come back, over one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future

from sealface.enrollment.asked import Asked
from sealface.errors import InvalidInput, Unavailable
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages

_CHUNK_BYTES = 1 << 20


class KeyHolderGone(Unavailable):
    """The client ended the call while a block was with it."""


class WrongAnswer(InvalidInput):
    """What came back is longer than the block that was sent."""


class BlockExchange:
    """One call. Needs a running event loop; `ask` is for another thread.

    Args:
        requests: what the client sends after its first message.
    """

    def __init__(self, requests: AsyncIterator[messages.RenewBlocksRequest]) -> None:
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self._outgoing: asyncio.Queue[messages.RenewBlocksResponse | None] = asyncio.Queue()
        self.ended = False

    def ask(self, asked: Asked) -> Future[bytes]:
        """Send a blinded block, or templates; what comes back for them."""
        return asyncio.run_coroutine_threadsafe(self._ask(asked), self._loop)

    async def messages(self) -> AsyncIterator[messages.RenewBlocksResponse]:
        """What is to be sent to the client, until the end."""
        while (message := await self._outgoing.get()) is not None:
            yield message

    def end(self, work: asyncio.Future[int] | None = None) -> None:
        """Send nothing more: the call is over, or the work that asks."""
        if work is not None and not work.cancelled():
            work.exception()  # the call says it, if it is still there
        self.ended = True
        self._outgoing.put_nowait(None)

    async def _ask(self, asked: Asked) -> bytes:
        blinded = asked.blinded
        header = messages.RenewBlocksHeader(
            key_version=asked.key_version,
            columns=asked.columns,
            cleared=asked.cleared_bits,
            size=len(blinded),
            target_version=asked.target_version,
            templates=asked.templates,
        )
        self._outgoing.put_nowait(messages.RenewBlocksResponse(header=header))
        for at in range(0, len(blinded), _CHUNK_BYTES):
            self._outgoing.put_nowait(messages.RenewBlocksResponse(data=blinded[at : at + _CHUNK_BYTES]))
        renewed = bytearray()
        while len(renewed) < len(blinded):
            message = await anext(self._requests, None)
            if message is None:
                raise KeyHolderGone("the call ended before the block came back: renew again")
            renewed += message.data
        if len(renewed) > len(blinded):
            raise WrongAnswer("more came back than was sent: send each block as it was asked for", limit=len(blinded))
        return bytes(renewed)
