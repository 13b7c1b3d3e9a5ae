"""The one interceptor of every server: errors become statuses, calls become log lines and are counted.

A log line holds the method, the code, the reason, the time and the request id; never a request or an answer.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import structlog

from sealface.errors import InvalidInput, SealfaceError
from sealface.runtime import request_ids
from sealface.runtime.metrics import Calls, MethodCalls
from sealface.runtime.request_ids import REQUEST_ID
from sealface.runtime.status import STATUS_DETAILS_KEY, InternalError, code_of, to_status

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger("sealface.rpc")


class MalformedMessage(InvalidInput):
    """The bytes of a request are no message of its method."""


def parsed(parse: Callable[[bytes], Any] | None, data: bytes) -> Any:
    """A request from its bytes; gRPC's own parsing would answer UNKNOWN and log a traceback.

    Raises:
        MalformedMessage: the bytes are no such message.
    """
    try:
        return parse(data) if parse else data
    except Exception:  # protobuf's DecodeError differs between its implementations
        raise MalformedMessage("the request is no message of this method: build it from the contract") from None


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a handler raises into a status; what it did not mean to raise into INTERNAL, without details.

    It is the outermost, so it also counts calls by the code that their callers get, and gives each its request id.

    Args:
        calls: what is counted.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.response_streaming:
            kind = "stream_stream" if handler.request_streaming else "unary_stream"
            wrap: Any = _stream
        else:
            kind = "stream_unary" if handler.request_streaming else "unary_unary"
            wrap = _unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        counted = self._calls.of(method, handler.request_streaming, handler.response_streaming)
        parse = _parser(handler.request_deserializer, handler.request_streaming, counted.received.inc)
        begin = partial(_Call, method, counted, handler_call_details.invocation_metadata)
        return make(wrap(getattr(handler, kind), parse, begin), response_serializer=handler.response_serializer)


def _parser(
    parse: Callable[[bytes], Any] | None, streaming: bool, received: Callable[[], None]
) -> Callable[[Any], Any]:
    def one(message: bytes) -> Any:
        received()
        return parsed(parse, message)

    async def each(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for message in messages:
            yield one(message)

    return each if streaming else one


def _unary(behaviour: Any, parse: Callable[[Any], Any], begin: Callable[[Context], _Call]) -> Any:
    async def handle(request: Any, context: Context) -> Any:
        call = begin(context)
        try:
            response = await behaviour(parse(request), context)
        except BaseException as error:
            await call.fail(error)
            raise  # aborting has raised already, except on cancellation
        call.sent()
        call.succeed()
        return response

    return handle


def _stream(behaviour: Any, parse: Callable[[Any], Any], begin: Callable[[Context], _Call]) -> Any:
    async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
        call = begin(context)
        try:
            responses = behaviour(parse(request), context)
            if inspect.isawaitable(responses):  # a handler that writes them itself, as health's Watch does
                await responses
            else:
                async for response in responses:
                    yield response
                    call.sent()
        except BaseException as error:
            await call.fail(error)
            raise
        call.succeed()

    return handle


class _Call:
    """One call, from the moment its handler is called: what is logged and counted of it."""

    def __init__(self, method: str, counted: MethodCalls, metadata: Any, context: Context) -> None:
        self._method, self._counted, self._context = method, counted, context
        self._id = request_ids.begin(metadata)
        self._started = time.perf_counter()
        self.sent = counted.sent.inc
        counted.started.inc()

    def succeed(self) -> None:
        """It has ended as it should."""
        self._context.set_trailing_metadata((*(self._context.trailing_metadata() or ()), (REQUEST_ID, self._id)))
        self._end(grpc.StatusCode.OK)

    async def fail(self, error: BaseException) -> None:
        """Tell the caller, unless nobody is there any more; then it raises."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._end(grpc.StatusCode.CANCELLED)
            return
        if isinstance(error, grpc.aio.AbortError):  # gRPC's own services do that
            self._end(self._context.code())
            return
        if not isinstance(error, SealfaceError):
            # the exception's own text may hold anything, so only its type and place are logged
            frame = _innermost(error)
            _log.error("unexpected", method=self._method, error=type(error).__name__, at=frame)
            error = InternalError("the service failed: try again, and tell its operator if it stays")
        status, code = to_status(error), code_of(error)
        self._end(code, error.reason)
        trailing = (STATUS_DETAILS_KEY, status.SerializeToString()), (REQUEST_ID, self._id)
        await self._context.abort(code, status.message, trailing)

    def _end(self, code: grpc.StatusCode, reason: str = "") -> None:
        seconds = time.perf_counter() - self._started
        self._counted.handled[code].inc()
        self._counted.seconds.observe(seconds)
        told = {"reason": reason} if reason else {}
        _log.info("call", method=self._method, code=code.name, ms=round(seconds * 1e3, 1), **told)


def _innermost(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_code.co_qualname}:{traceback.tb_lineno}" if traceback else "unknown"
