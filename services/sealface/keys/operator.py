"""Operator methods run only for a caller who proved to be an operator.

Every method of the key service that is not listed as open needs the signature, so a method added later is closed
until somebody opens it. The signature covers the request's bytes as they arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from sealface.errors import Unauthenticated
from sealface.keys.callers import Callers
from sealface.runtime.interceptors import parsed

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
    )
)


class SignatureMissing(Unauthenticated):
    """An operator method was called without an operator's signature."""


class OperatorInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates operator methods before their requests are parsed."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

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
        parse, behaviour = handler.request_deserializer, handler.unary_unary

        async def handle(raw: bytes, context: Any) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            await asyncio.to_thread(self._authenticate, method, raw, metadata)
            return await behaviour(parsed(parse, raw), context)

        return grpc.unary_unary_rpc_method_handler(handle, response_serializer=handler.response_serializer)

    def _authenticate(self, method: str, raw: bytes, metadata: dict[str, Any]) -> None:
        try:
            caller, time_s = str(metadata["sealface-caller"]), int(metadata["sealface-time"])
            nonce, signature = metadata["sealface-nonce-bin"], metadata["sealface-signature-bin"]
            time_s.to_bytes(8, signed=True)  # what a signature covers
        except (KeyError, ValueError, OverflowError):
            raise SignatureMissing("this method needs an operator's signature: call it with a credential") from None
        self._callers.authenticate_operator(caller, method, raw, time_s, nonce, signature)
