"""Methods that only peers of one zone have business with, by the certificate that the connection was made with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from sealface.errors import Denied, Unauthenticated


class PeerCertificateMissing(Unauthenticated):
    """A method between services was called over a connection without a certificate of the caller."""


class PeerNotAllowed(Denied):
    """The peer's certificate names another zone than the method is for."""


class PeerInterceptor(grpc.aio.ServerInterceptor):
    """Refuses everybody else before a byte of the request is parsed.

    Args:
        allowed: full method -> the URI that the peer's verified certificate must carry, and no other.
    """

    def __init__(self, allowed: Mapping[str, str]) -> None:
        self._allowed = allowed

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method between services."""
        handler = await continuation(handler_call_details)
        identity = self._allowed.get(handler_call_details.method)
        if handler is None or identity is None:
            return handler
        streaming = handler.request_streaming, handler.response_streaming
        kind = "_".join("stream" if streamed else "unary" for streamed in streaming)
        behaviour = getattr(handler, kind)

        def handle(request: Any, context: Any) -> Any:
            _check(context, identity)
            return behaviour(request, context)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(handle, handler.request_deserializer, handler.response_serializer)


def _check(context: grpc.aio.ServicerContext[Any, Any], identity: str) -> None:
    # only a certificate that gRPC has verified is in there
    named = [bytes(uri).decode(errors="replace") for uri in context.auth_context().get("peer_uri", ())]
    if not named:
        raise PeerCertificateMissing(
            "this method is for services: call the address that is for them (`serve keys --listen-internal`), "
            "with a certificate of the zone"
        )
    if named != [identity]:
        raise PeerNotAllowed(f"this method is for {identity}: the certificate of this connection is another zone's")
