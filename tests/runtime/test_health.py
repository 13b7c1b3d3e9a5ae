"""Health alone, in plaintext, at an address of its own: what a cluster's probes can ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import sealface_protos
from sealface.cli.authority import Authority
from sealface.protocol.zones import Zone
from sealface.runtime.server import LIVENESS, AddressUnavailable, Server, ServerConfig
from sealface.runtime.tls import Tls
from tests.runtime.conftest import SERVICE

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def every_method() -> list[str]:
    """Of all our contracts."""
    modules = (import_module(found.name) for found in walk_packages(sealface_protos.__path__, "sealface_protos."))
    services = {
        service.full_name: service
        for module in modules
        if module.__name__.endswith("_pb2")
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    return sorted(f"/{name}/{method.name}" for name, service in services.items() for method in service.methods)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """TLS at its address; it echoes whatever is called."""
    tls = Tls(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    Authority.create().certify(tls, Zone.KEYS)
    server = Server(ServerConfig(tls=tls, health="127.0.0.1:0", grace_s=5), [SERVICE])

    async def echo(request, context):
        return request

    for path in every_method():
        service, method = path[1:].split("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(echo)}
        server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.address = await server.start()
    yield server
    await server.stop()


async def status(channel: grpc.aio.Channel, name: str) -> int:
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))).status


async def test_health_is_served_in_plaintext_where_the_rest_is_not(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.health) as channel:
        assert [await status(channel, name) for name in ("", SERVICE, LIVENESS)] == [SERVING] * 3
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        watch.cancel()
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status(channel, "")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_nothing_else_is_served_there(server: Server) -> None:
    assert len(every_method()) > 40
    async with grpc.aio.insecure_channel(server.health) as channel:
        for path in every_method():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, path
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_probe_of_more_than_a_name_is_refused(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.health) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status(channel, "a" * 5000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_it_says_what_the_server_says(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.health) as channel:
        server.report(False)
        while await status(channel, "") == SERVING:
            await asyncio.sleep(0.01)
        assert await status(channel, SERVICE) == NOT_SERVING
        assert await status(channel, LIVENESS) == SERVING


async def test_who_drains_is_alive_and_not_ready_until_the_last_call_has_ended() -> None:
    server = Server(ServerConfig(health="127.0.0.1:0", grace_s=10), [SERVICE])
    began, may_finish = asyncio.Event(), asyncio.Event()

    async def slow(request, context):
        began.set()
        await may_finish.wait()
        return b"finished"

    handlers = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel, grpc.aio.insecure_channel(server.health) as probes:
        under_way = asyncio.ensure_future(channel.unary_unary(f"/{SERVICE}/Slow")(b""))
        await began.wait()
        stopping = asyncio.create_task(server.stop())
        while await status(probes, "") == SERVING:
            await asyncio.sleep(0.01)
        assert await status(probes, LIVENESS) == SERVING
        may_finish.set()
        assert await under_way == b"finished"
        await stopping
        with pytest.raises(grpc.aio.AioRpcError):
            await status(probes, LIVENESS)


async def test_an_address_that_is_taken_is_said() -> None:
    first = Server(ServerConfig(), [SERVICE])
    address = await first.start()
    with pytest.raises(AddressUnavailable, match="--health"):
        await Server(ServerConfig(health=address), [SERVICE]).start()
    await first.stop()
    assert first.health == ""
