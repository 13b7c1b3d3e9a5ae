"""Calls are counted under the names, labels and codes of go-grpc-middleware."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from structlog.testing import capture_logs

from sealface.errors import DataCorrupted, NotFound, Unavailable
from sealface.runtime.metrics import Read
from sealface.runtime.server import Server, ServerConfig
from tests.runtime.conftest import SERVICE

TYPES = {"UU": "unary", "US": "server_stream", "SU": "client_stream", "SS": "bidi_stream"}
GO_CODES = {
    "OK": grpc.StatusCode.OK,
    "Canceled": grpc.StatusCode.CANCELLED,
    "Unknown": grpc.StatusCode.UNKNOWN,
    "InvalidArgument": grpc.StatusCode.INVALID_ARGUMENT,
    "DeadlineExceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "NotFound": grpc.StatusCode.NOT_FOUND,
    "AlreadyExists": grpc.StatusCode.ALREADY_EXISTS,
    "PermissionDenied": grpc.StatusCode.PERMISSION_DENIED,
    "ResourceExhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "FailedPrecondition": grpc.StatusCode.FAILED_PRECONDITION,
    "Aborted": grpc.StatusCode.ABORTED,
    "OutOfRange": grpc.StatusCode.OUT_OF_RANGE,
    "Unimplemented": grpc.StatusCode.UNIMPLEMENTED,
    "Internal": grpc.StatusCode.INTERNAL,
    "Unavailable": grpc.StatusCode.UNAVAILABLE,
    "DataLoss": grpc.StatusCode.DATA_LOSS,
    "Unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
}


def value(server: Server, name: str, method: str, kind: str, service: str = SERVICE, **labels: str) -> float | None:
    names = {"grpc_type": kind, "grpc_service": service, "grpc_method": method}
    return server.registry.get_sample_value(f"grpc_server_{name}", names | labels)


@pytest.mark.parametrize(("method", "kind"), TYPES.items())
async def test_a_call_is_counted_with_its_messages_and_its_time(running, method, kind):
    for _ in range(3):
        await running.call(method)
    found = running.server
    assert value(found, "started_total", method, kind) == 3
    assert value(found, "handled_total", method, kind, grpc_code="OK") == 3
    assert value(found, "msg_received_total", method, kind) == 3
    assert value(found, "msg_sent_total", method, kind) == 3
    assert value(found, "handling_seconds_count", method, kind) == 3
    assert value(found, "handling_seconds_sum", method, kind) > 0


@pytest.mark.parametrize(("method", "kind"), TYPES.items())
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("go there"), "NotFound"),
        (Unavailable("again"), "Unavailable"),
        (DataCorrupted("ask"), "DataLoss"),
        (ZeroDivisionError(), "Internal"),
    ],
)
async def test_an_error_is_counted_under_the_code_that_its_caller_gets(running, method, kind, error, code):
    running.raises = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.call(method)
    assert caught.value.code() is GO_CODES[code]
    assert value(running.server, "handled_total", method, kind, grpc_code=code) == 1
    assert value(running.server, "handled_total", method, kind, grpc_code="OK") == 0
    assert value(running.server, "handling_seconds_count", method, kind) == 1
    assert value(running.server, "msg_sent_total", method, kind) == 0


async def test_a_cancelled_call_is_counted_as_such(running):
    call = asyncio.ensure_future(running.call("Slow"))
    await running.began.wait()
    assert value(running.server, "started_total", "Slow", "unary") == 1
    assert value(running.server, "handling_seconds_count", "Slow", "unary") == 0
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    for _ in range(100):
        if value(running.server, "handled_total", "Slow", "unary", grpc_code="Canceled"):
            break
        await asyncio.sleep(0.02)
    assert value(running.server, "handled_total", "Slow", "unary", grpc_code="Canceled") == 1


async def test_what_grpc_itself_answers_is_counted_by_its_code(running):
    check = health_pb2_grpc.HealthStub(running.channel).Check
    await check(health_pb2.HealthCheckRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await check(health_pb2.HealthCheckRequest(service="no.such"))
    of = ("handled_total", "Check", "unary", "grpc.health.v1.Health")
    assert value(running.server, *of, grpc_code="OK") == 1
    assert value(running.server, *of, grpc_code="NotFound") == 1


async def test_every_method_is_there_at_0_with_every_code_before_the_first_call():
    server = Server(ServerConfig(), [SERVICE])
    methods = descriptor_pool.Default().FindServiceByName(SERVICE).methods
    assert len(methods) > 10
    for method in methods:
        kind = {
            (False, False): "unary",
            (True, False): "client_stream",
            (False, True): "server_stream",
            (True, True): "bidi_stream",
        }[method.client_streaming, method.server_streaming]
        for name in ("started_total", "msg_received_total", "msg_sent_total", "handling_seconds_count"):
            assert value(server, name, method.name, kind) == 0, method.name
        codes = {
            sample.labels["grpc_code"]
            for family in server.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_handled_total" and sample.labels["grpc_method"] == method.name
        }
        assert codes == GO_CODES.keys()
    assert value(server, "started_total", "Watch", "server_stream", "grpc.health.v1.Health") == 0


async def test_an_unknown_method_makes_no_series(running):
    before = [family.samples for family in running.server.registry.collect() if family.name.startswith("grpc")]
    with pytest.raises(grpc.aio.AioRpcError):
        await running.channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
    assert [f.samples for f in running.server.registry.collect() if f.name.startswith("grpc")] == before


async def test_servers_in_one_process_count_apart(running):
    other = Server(ServerConfig(), [SERVICE])
    await running.call("UU")
    assert value(running.server, "started_total", "UU", "unary") == 1
    assert value(other, "started_total", "UU", "unary") is None


def test_what_cannot_be_read_leaves_the_rest_of_a_scrape():
    def broken():
        raise Unavailable("0.123456 4711")

    registry = CollectorRegistry()
    registry.register(
        Read({"away": broken, "there": lambda: [GaugeMetricFamily("sealface_x", "Something.", value=7.0)]})
    )
    with capture_logs() as logs:
        families = list(registry.collect())
    assert registry.get_sample_value("sealface_x") == 7
    assert registry.get_sample_value("sealface_scrape_success", {"part": "away"}) == 0
    assert registry.get_sample_value("sealface_scrape_success", {"part": "there"}) == 1
    assert len({family.name for family in families}) == len(families) == 2
    assert [(line["work"], line["error"]) for line in logs] == [("away", "Unavailable")]
    assert "4711" not in str(logs)
