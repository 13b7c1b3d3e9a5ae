"""The one interceptor of every server: errors become statuses, calls become log lines.

A log line holds the method, the code, the reason and the time; never a request or an answer.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from sealface.errors import InvalidInput, SealfaceError
from sealface.runtime.status import STATUS_DETAILS_KEY, InternalError, code_of, to_status

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
    """Turns what a handler raises into a status; what it did not mean to raise into INTERNAL, without details."""

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
        parse = _parser(handler.request_deserializer, handler.request_streaming)
        return make(wrap(getattr(handler, kind), method, parse), response_serializer=handler.response_serializer)


def _parser(parse: Callable[[bytes], Any] | None, streaming: bool) -> Callable[[Any], Any]:
    async def each(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for message in messages:
            yield parsed(parse, message)

    return each if streaming else lambda message: parsed(parse, message)


def _unary(behaviour: Any, method: str, parse: Callable[[Any], Any]) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.perf_counter()
        try:
            response = await behaviour(parse(request), context)
        except BaseException as error:
            await _fail(error, method, started, context)
            raise  # aborting has raised already, except on cancellation
        _report(method, "OK", started)
        return response

    return handle


def _stream(behaviour: Any, method: str, parse: Callable[[Any], Any]) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        started = time.perf_counter()
        try:
            responses = behaviour(parse(request), context)
            if inspect.isawaitable(responses):  # a handler that writes them itself, as health's Watch does
                await responses
            else:
                async for response in responses:
                    yield response
        except BaseException as error:
            await _fail(error, method, started, context)
            raise
        _report(method, "OK", started)

    return handle


async def _fail(error: BaseException, method: str, started: float, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        _report(method, "CANCELLED", started)
        return
    if isinstance(error, grpc.aio.AbortError):
        return
    if not isinstance(error, SealfaceError):
        # the exception's own text may hold anything, so only its type and place are logged
        frame = _innermost(error)
        _log.error("unexpected", method=method, error=type(error).__name__, at=frame)
        error = InternalError("the service failed: try again, and tell its operator if it stays")
    status = to_status(error)
    _report(method, code_of(error).name, started, error.reason)
    await context.abort(code_of(error), status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))


def _innermost(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_code.co_qualname}:{traceback.tb_lineno}" if traceback else "unknown"


def _report(method: str, code: str, started: float, reason: str = "") -> None:
    milliseconds = round((time.perf_counter() - started) * 1e3, 1)
    _log.info("call", method=method, code=code, ms=milliseconds, **({"reason": reason} if reason else {}))
