"""A server of a service that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from sealface.runtime.server import Server, ServerConfig

SERVICE = "sealface.keys.v1.KeyService"  # reflection asks for a name that is registered


@dataclass
class Running:
    """The server, and what its four methods do: `UU`, `US`, `SU`, `SS`, by unary and streaming."""

    server: Server
    channel: grpc.aio.Channel
    raises: BaseException | None = None
    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, method: str, data: bytes = b"x", **options: Any) -> bytes:
        """One call; the bytes of the answer."""
        path = f"/{SERVICE}/{method}"

        async def stream() -> AsyncIterator[bytes]:
            yield data

        match method:
            case "UU" | "Slow":
                return await self.channel.unary_unary(path)(data, **options)
            case "US":
                return b"".join([part async for part in self.channel.unary_stream(path)(data, **options)])
            case "SU":
                return await self.channel.stream_unary(path)(stream(), **options)
        return b"".join([part async for part in self.channel.stream_stream(path)(stream(), **options)])


@pytest.fixture
async def running(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    config = ServerConfig(**{"grace_s": 5.0, "message_limit": 2000} | getattr(request, "param", {}))
    server = Server(config, [SERVICE])

    async def unary(request: Any, context: Any) -> bytes:
        data = request if isinstance(request, bytes) else b"".join([part async for part in request])
        if running.raises:
            raise running.raises
        return data

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield await unary(request, context)

    async def slow(request: bytes, context: Any) -> bytes:
        running.began.set()
        await running.may_finish.wait()
        return b"finished"

    handlers = {
        "UU": grpc.unary_unary_rpc_method_handler(unary),
        "US": grpc.unary_stream_rpc_method_handler(stream),
        "SU": grpc.stream_unary_rpc_method_handler(unary),
        "SS": grpc.stream_stream_rpc_method_handler(stream),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
    }
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = await server.start()
    running = Running(server, grpc.aio.insecure_channel(address))
    yield running
    running.may_finish.set()
    await running.channel.close()
    await server.stop()
