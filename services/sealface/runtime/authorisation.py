"""No handler of a service runs but for a caller with a right to it: the table of needs is `protocol.rights`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from sealface.errors import LimitExceeded
from sealface.protocol.rights import NEEDS, Need, NotAllowed, Right
from sealface.runtime.authentication import Authenticator

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Who calls, where nothing else keeps it."""
_OURS = "/sealface."
_CALLERS = 10_000


class TooManyCalls(LimitExceeded):
    """The caller calls more often than it may."""


@dataclass(frozen=True)
class Rate:
    """How often a caller may call.

    Attributes:
        per_second: calls, and messages of streams that ask for something each, on the average.
        burst: how many at once.
    """

    per_second: float = 500.0
    burst: float = 2000.0


class AuthorisationInterceptor(grpc.aio.ServerInterceptor):
    """Finds out who calls, and refuses what they may not do; every message of a stream is looked at.

    Args:
        authenticator: knows callers.
        actor: where it is said who calls, for as long as the call is handled.
        rate: of each caller.
    """

    def __init__(self, authenticator: Authenticator, actor: ContextVar[str], rate: Rate | None = None) -> None:
        self._authenticator = authenticator
        self._actor = actor
        self._limits = _Limits(rate or Rate())

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap every handler of a service of ours; health and reflection are for everybody."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        need = NEEDS.get(method)
        streaming = handler.request_streaming, handler.response_streaming
        kind = "_".join("stream" if streamed else "unary" for streamed in streaming)
        wrap = self._answers if handler.response_streaming else self._answer
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        handle = wrap(getattr(handler, kind), need, handler.request_streaming)
        return make(handle, handler.request_deserializer, handler.response_serializer)

    def _answer(self, behaviour: Any, need: Need | None, streamed: bool) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            return await behaviour(await self._admitted(request, context, need, streamed), context)

        return handle

    def _answers(self, behaviour: Any, need: Need | None, streamed: bool) -> Any:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            async for answer in behaviour(await self._admitted(request, context, need, streamed), context):
                yield answer

        return handle

    async def _admitted(self, request: Any, context: Any, need: Need | None, streamed: bool) -> Any:
        """The request, or the stream of them with each looked at."""
        right = await self._authenticator.right(dict(context.invocation_metadata() or ()))
        if need is None:
            raise NotAllowed("this method is for nobody")
        self._limits.take(right.caller)
        self._actor.set(right.caller)
        if streamed:
            return self._each(request, right, need)
        right.check(need, request)
        return request

    async def _each(self, requests: AsyncIterator[Any], right: Right, need: Need) -> AsyncIterator[Any]:
        first = True
        async for message in requests:
            if need.gallery(message):
                if not first:
                    self._limits.take(right.caller)
                right.check(need, message)
            first = False
            yield message


class _Limits:
    """A bucket of tokens for each caller that has called of late."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count a call.

        Raises:
            TooManyCalls: there are none left; the error says for how long.
        """
        now = time.monotonic()
        left, seen = self._buckets.pop(caller, (self._rate.burst, now))
        left = min(self._rate.burst, left + (now - seen) * self._rate.per_second)
        enough = left >= 1
        self._buckets[caller] = (left - 1 if enough else left, now)
        while len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if not enough:
            wait = (1 - left) / self._rate.per_second
            raise TooManyCalls(
                "this caller calls too often: wait, or ask the operator for more", retry_s=round(wait, 3)
            )
