import asyncio
import os
import signal
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from sealface.runtime.channels import KEEPALIVE
from sealface.runtime.server import LIVENESS, AddressUnavailable, Server, ServerConfig, announce, run
from tests.conftest import Suite
from tests.runtime.conftest import SERVICE

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_free_port_is_taken_and_told(running):
    other = Server(ServerConfig(), [SERVICE])
    address = await other.start()
    assert address.startswith("127.0.0.1:")
    assert int(address.split(":")[1]) > 1023
    async with grpc.aio.insecure_channel(address) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    await other.stop()


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_health_is_served(running, name):
    check = health_pb2_grpc.HealthStub(running.channel).Check
    assert (await check(health_pb2.HealthCheckRequest(service=name))).status == SERVING


async def test_the_health_of_an_unknown_service_is_not_found(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(service="no.such"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_health_says_so_when_the_server_stops(running, name):
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=name))
    assert (await watch.read()).status == SERVING
    stopping = asyncio.create_task(running.server.stop())
    assert (await asyncio.wait_for(watch.read(), 2)).status == NOT_SERVING
    watch.cancel()
    await stopping


async def test_a_server_may_listen_and_say_that_it_cannot_serve():
    """Told from any thread, before it starts and after; that the process lives is another matter."""
    server = Server(ServerConfig(), [SERVICE])
    server.report(False)
    server.report(True, "a part")
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(name):
            return (await health.Check(health_pb2.HealthCheckRequest(service=name))).status

        assert [await status(name) for name in ("", SERVICE, LIVENESS, "a part")] == [
            NOT_SERVING,
            NOT_SERVING,
            SERVING,
            SERVING,
        ]
        assert not server.serving
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == NOT_SERVING
        threading.Thread(target=server.report, args=(True,)).start()
        assert (await asyncio.wait_for(watch.read(), 5)).status == SERVING
        assert server.serving
        await asyncio.to_thread(server.report, False, "a part")
        while await status("a part") == SERVING:
            await asyncio.sleep(0.01)
        assert await status(SERVICE) == SERVING
        watch.cancel()
        await server.stop()


async def test_who_waits_long_for_an_answer_is_not_hung_up_on_for_looking_whether_the_server_lives():
    """A few pings without data are too many for a server as gRPC makes it."""
    released = asyncio.Event()

    async def slow(request, context):
        await released.wait()
        return b"finished"

    server = Server(ServerConfig(), [SERVICE])
    handlers = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    often = tuple((dict(KEEPALIVE) | {"grpc.keepalive_time_ms": 1100}).items())
    async with grpc.aio.insecure_channel(await server.start(), options=often) as channel:
        under_way = asyncio.ensure_future(channel.unary_unary(f"/{SERVICE}/Slow")(b""))
        done, _ = await asyncio.wait({under_way}, timeout=8)
        assert not done
        released.set()
        assert await under_way == b"finished"
    await server.stop()


async def test_stopping_finishes_calls_under_way_and_takes_no_new_ones(running):
    under_way = asyncio.ensure_future(running.call("Slow"))
    await running.began.wait()
    stopping = asyncio.create_task(running.server.stop())
    await asyncio.sleep(0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.call("UU", timeout=1)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not stopping.done()
    running.may_finish.set()
    assert await under_way == b"finished"
    await asyncio.wait_for(stopping, 2)


@pytest.mark.parametrize("running", [{"grace_s": 0.2}], indirect=True)
async def test_a_call_that_never_ends_does_not_keep_the_server(running):
    under_way = asyncio.ensure_future(running.call("Slow"))
    await running.began.wait()
    await asyncio.wait_for(running.server.stop(), 3)
    with pytest.raises(grpc.aio.AioRpcError):
        await under_way


class WorkNotBegun(Exception):
    pass


class Work:
    """Says when it is started and stopped, and by whom."""

    def __init__(self, said: list[str], name: str) -> None:
        self.said, self.name = said, name
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        self.said.append(f"{self.name} started")

    def stop(self) -> None:
        self.threads.append(threading.current_thread())
        self.said.append(f"{self.name} stopped")


async def test_work_in_the_background_runs_as_long_as_calls_do():
    said: list[str] = []
    work = [Work(said, "one"), Work(said, "two")]
    server = Server(ServerConfig(grace_s=5), [SERVICE], background=work)
    began, may_finish = asyncio.Event(), asyncio.Event()

    async def slow(request, context):
        began.set()
        await may_finish.wait()
        said.append("call finished")
        return b""

    handlers = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    assert said == []
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        assert said == ["one started", "two started"]
        call = asyncio.ensure_future(channel.unary_unary(f"/{SERVICE}/Slow")(b""))
        await began.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        assert said == ["one started", "two started"]
        may_finish.set()
        await call
        await stopping
    assert said[2:] == ["call finished", "two stopped", "one stopped"]
    assert threading.current_thread() not in work[0].threads  # it may wait for threads of its own


async def test_who_calls_a_server_that_cannot_begin_its_work_may_try_again():
    said: list[str] = []
    first, second = Work(said, "one"), Work(said, "two")
    server = Server(ServerConfig(), [SERVICE], background=[first, second])
    called = threading.Event()

    async def slow(request, context):
        called.set()
        await asyncio.sleep(100)

    def fails():
        called.wait()
        raise WorkNotBegun("there is no database")

    second.start = fails
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    handlers = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    starting = asyncio.create_task(server.start())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/Slow")(b"")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(WorkNotBegun):
        await starting
    assert said == ["one started", "two stopped", "one stopped"]


async def test_a_server_that_cannot_listen_begins_no_work():
    first = Server(ServerConfig(), [SERVICE])
    address = await first.start()
    said: list[str] = []
    with pytest.raises(AddressUnavailable):
        await Server(ServerConfig(address), [SERVICE], background=[Work(said, "one")]).start()
    assert said == []
    await first.stop()


async def test_a_message_over_the_limit_is_refused(running):
    assert len(await running.call("UU", bytes(1900))) == 1900
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.call("UU", bytes(2001))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await running.call("UU") == b"x"  # the server goes on


async def test_a_signal_ends_it_after_the_call_under_way(running):
    ready = []
    with capture_logs() as logs:
        serving = asyncio.create_task(run(Server(ServerConfig(grace_s=1), [SERVICE]), ready.append))
        while not ready:
            await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(ready[0]) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 5)
    assert [line["event"] for line in logs if line["event"] in {"stopping", "stopped"}] == ["stopping", "stopped"]


async def reflected(address: str) -> set[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            return {service.name for service in answer.list_services_response.service}
    raise AssertionError("no answer")


async def test_every_service_lists_itself_health_and_reflection(suite: Suite):
    names = {
        "keys": ["sealface.keys.v1.KeyService"],
        "enrollment": ["sealface.enrollment.v1.EnrollmentService", "sealface.enrollment.v1.OperationService"],
        "matching": ["sealface.matching.v1.MatchingService"],
    }
    for service, own in names.items():
        assert await reflected(suite.addresses[service]) == {
            *own,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        async with grpc.aio.insecure_channel(suite.addresses[service]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            for name in own:
                assert (await check(health_pb2.HealthCheckRequest(service=name))).status == SERVING


@pytest.mark.parametrize(("confined", "level"), [(True, "info"), (False, "warning")])
def test_confinement_is_announced(confined, level):
    with capture_logs() as logs:
        announce(confined)
    assert [line["log_level"] for line in logs] == [level]
