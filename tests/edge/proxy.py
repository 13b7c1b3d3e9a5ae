"""A wire-tap: passes every call on to a service, and keeps what went by and how long callers were ready to wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc


class Tap(grpc.GenericRpcHandler):
    """Start it in front of a service.

    Attributes:
        requests: bytes of the messages to the service.
        seen: (method, direction, bytes) of every message and of every call's end, in order.
        waits: (method, seconds its caller gave it), in order.
        held: methods that get no answer.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.requests: list[bytes] = []
        self.seen: list[tuple[str, str, int]] = []
        self.waits: list[tuple[str, float | None]] = []
        self.ended: list[str] = []
        self.held: set[str] = set()

    async def start(self) -> str:
        self._channel = grpc.aio.insecure_channel(self._target)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers([self])
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self._server.stop(None)
        await self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        metadata = [
            pair
            for pair in handler_call_details.invocation_metadata or ()
            if not pair[0].startswith(("grpc-", ":")) and pair[0] not in ("user-agent", "te", "content-type")
        ]

        async def pass_on(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            name = method.rsplit("/", 1)[-1]
            self.waits.append((name, context.time_remaining()))
            try:
                if name in self.held:
                    await asyncio.sleep(60)

                async def tapped() -> AsyncIterator[bytes]:
                    async for request in requests:
                        self.requests.append(request)
                        self.seen.append((name, "request", len(request)))
                        yield request

                call = self._channel.stream_stream(method)(tapped(), metadata=metadata)
                async for response in call:
                    self.seen.append((name, "response", len(response)))
                    yield response
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata()))
            finally:
                self.ended.append(name)
                self.seen.append((name, "end", 0))

        return grpc.stream_stream_rpc_method_handler(pass_on)
