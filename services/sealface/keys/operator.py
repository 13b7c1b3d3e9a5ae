"""Operator methods run only for a caller who proved to be an operator.

Every method of the key service that is not listed as open needs the signature and is audited, so a method added later
is closed until somebody opens it. The signature covers the request's bytes as they arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc

from sealface.errors import Unauthenticated
from sealface.keys import audit
from sealface.keys.audit import AuditLog
from sealface.keys.callers import OPERATOR_WINDOW_S, Callers
from sealface.runtime.interceptors import MalformedMessage, parsed

_SERVICE = "/sealface.keys.v1.KeyService/"
_OPEN = frozenset(
    _SERVICE + method
    for method in (
        "GetKey",
        "ListKeys",
        "GetKeyVersion",
        "ListKeyVersions",
        "GetMaterial",
        "GetServiceIdentity",
        "Decide",
        "RenewBlock",
        "FindCaller",
    )
)

_RESOURCES = {"name": "", "key_version": "", "key": "", "parent": "", "key_id": "keys/", "caller_id": "callers/"}
_LONGEST_RESOURCE = 256

_Parse = Callable[[bytes], Any] | None


class SignatureMissing(Unauthenticated):
    """An operator method was called without an operator's signature."""


class OperatorInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates operator methods before their requests are parsed, and writes each into the audit log.

    The entry before the act is committed with the request's nonce, the one after it before the answer leaves. Where
    that cannot be written the caller is told that the call failed; the log then has an act without an end.
    """

    def __init__(self, callers: Callers, log: AuditLog) -> None:
        self._callers = callers
        self._log = log

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of an operator method."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_SERVICE) or method in _OPEN:
            return handler
        if handler.response_streaming:
            stream = self._stream(method, handler.request_deserializer, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, response_serializer=handler.response_serializer)
        unary = self._unary(method, handler.request_deserializer, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(unary, response_serializer=handler.response_serializer)

    def _unary(self, method: str, parse: _Parse, behaviour: Any) -> Any:
        async def handle(raw: bytes, context: Any) -> Any:
            act = await asyncio.to_thread(self._begin, method, raw, parse, context.invocation_metadata())
            try:
                answer = await behaviour(act.message(), context)
            except BaseException as error:
                await asyncio.shield(asyncio.to_thread(self._end, act, error))
                raise
            await asyncio.to_thread(self._end, act)
            return answer

        return handle

    def _stream(self, method: str, parse: _Parse, behaviour: Any) -> Any:
        async def handle(raw: bytes, context: Any) -> AsyncIterator[Any]:
            act = await asyncio.to_thread(self._begin, method, raw, parse, context.invocation_metadata())
            try:
                async for answer in behaviour(act.message(), context):
                    yield answer
            except BaseException as error:
                await asyncio.shield(asyncio.to_thread(self._end, act, error))
                raise
            await asyncio.to_thread(self._end, act)

        return handle

    def _begin(self, method: str, raw: bytes, parse: _Parse, metadata: Any) -> _Act:
        sent = dict(metadata or ())
        try:
            name, time_s = str(sent["sealface-caller"]), int(sent["sealface-time"])
            nonce, signature = sent["sealface-nonce-bin"], sent["sealface-signature-bin"]
            time_s.to_bytes(8, signed=True)  # what a signature covers
        except (KeyError, ValueError, OverflowError):
            raise SignatureMissing("this method needs an operator's signature: call it with a credential") from None
        caller = self._callers.authenticate_operator(name, method, raw, time_s, nonce, signature)
        message: Any
        try:
            message = parsed(parse, raw)
        except MalformedMessage as error:  # it is signed: that it came is worth an entry
            message = error
        act = _Act(f"callers/{caller.id}", method.removeprefix(_SERVICE), _resource(message), message)
        with self._callers.consume(nonce, time_s + OPERATOR_WINDOW_S) as transaction:
            return replace(act, begun=audit.begin(transaction, act.actor, act.name, act.resource, raw))

    def _end(self, act: _Act, error: BaseException | None = None) -> None:
        outcome = "ok" if error is None else audit.outcome_of(error)
        with self._log.transaction() as transaction:
            audit.end(transaction, act.begun, act.actor, act.name, act.resource, outcome)


@dataclass(frozen=True)
class _Act:
    """An operator's call, as the audit log has it."""

    actor: str
    name: str
    resource: str
    parsed: Any
    begun: int = 0

    def message(self) -> Any:
        """The request; raises if it is none."""
        if isinstance(self.parsed, MalformedMessage):
            raise self.parsed
        return self.parsed


def _resource(message: Any) -> str:
    """What a request is about, by the names that the contract has for it."""
    for field, prefix in _RESOURCES.items():
        value = getattr(message, field, "")
        if isinstance(value, str) and value:
            return f"{prefix}{value}"[:_LONGEST_RESOURCE]
    return ""
