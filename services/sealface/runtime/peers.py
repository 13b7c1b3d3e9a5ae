"""Who calls, by the certificate of the connection, and methods that one zone alone has business with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc

from sealface.errors import Denied, Unauthenticated

Context = grpc.aio.ServicerContext[Any, Any]


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
        return preceded(handler, lambda context: _check(context, identity))


class ActorInterceptor(grpc.aio.ServerInterceptor):
    """Says who calls for as long as a call is handled.

    Args:
        actor: where that is said; what is called from the handler sees it, also in other threads.
    """

    def __init__(self, actor: ContextVar[str]) -> None:
        self._actor = actor

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap every handler."""
        handler = await continuation(handler_call_details)
        return handler and preceded(handler, lambda context: self._actor.set(_caller(context)))


def preceded(handler: Any, first: Callable[[Context], object]) -> Any:
    """A handler that does something else first, in the same task."""
    streaming = handler.request_streaming, handler.response_streaming
    kind = "_".join("stream" if streamed else "unary" for streamed in streaming)
    behaviour = getattr(handler, kind)

    def handle(request: Any, context: Any) -> Any:
        first(context)
        return behaviour(request, context)

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(handle, handler.request_deserializer, handler.response_serializer)


def _named(context: Context) -> list[str]:
    """URIs of the peer's certificate; only one that gRPC has verified is in there."""
    return [bytes(uri).decode(errors="replace") for uri in context.auth_context().get("peer_uri", ())]


def _caller(context: Context) -> str:
    """A service by its certificate, anybody else by the address that the connection came from, without its port."""
    return " ".join(_named(context)) or context.peer().rpartition(":")[0]


def _check(context: Context, identity: str) -> None:
    named = _named(context)
    if not named:
        raise PeerCertificateMissing(
            "this method is for services: call the address that is for them (`serve keys --listen-internal`), "
            "with a certificate of the zone"
        )
    if named != [identity]:
        raise PeerNotAllowed(f"this method is for {identity}: the certificate of this connection is another zone's")
