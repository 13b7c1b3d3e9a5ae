from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sealface.runtime.scrapes import MetricsAddressUnavailable, Scrapes
from sealface.runtime.server import Server, ServerConfig
from tests.runtime.conftest import SERVICE


def get(address: str, path: str = "/metrics", **headers: str) -> tuple[str, str]:
    """Content type and text."""
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - of this test
        return answer.headers["Content-Type"], answer.read().decode()


@pytest.fixture
def scrapes():
    registry = CollectorRegistry()
    Counter("sealface_things", "Things.", registry=registry).inc(3)
    serving = Scrapes("127.0.0.1:0", registry)
    serving.start()
    yield serving
    serving.stop()


def test_both_formats_are_served(scrapes):
    kind, text = get(scrapes.address)
    assert kind.startswith("text/plain")
    assert [family.samples[0].value for family in parse_text(text)] == [3]
    kind, text = get(scrapes.address, Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert [family.samples[0].value for family in parse_openmetrics(text)] == [3]
    assert "_created" not in text


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_it_listens_on_ipv6_too():
    serving = Scrapes("[::1]:0", CollectorRegistry())
    serving.start()
    assert serving.address.startswith("[::1]:")
    assert get(serving.address)[1] == ""
    serving.stop()


def test_nothing_else_is_served(scrapes):
    for path in ("/", "/metrics/x", "/debug"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(scrapes.address, path)
        assert caught.value.code == 404
        caught.value.close()


def test_an_address_that_is_taken_is_told(scrapes):
    for address in (scrapes.address, "127.0.0.1:none", "127.0.0.1:99999", "203.0.113.1:0"):
        with pytest.raises(MetricsAddressUnavailable, match="--metrics"):
            Scrapes(address, CollectorRegistry()).start()


def test_who_breaks_off_or_asks_nonsense_stops_nobody(scrapes, capfd):
    for sent in (
        b"",
        b"GET",
        b"\0\xff\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=x",
    ):
        with socket.create_connection(scrapes.address.split(":")) as silent:
            silent.sendall(sent)
    with socket.create_connection(scrapes.address.split(":")) as broken:
        broken.sendall(b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=x.y\r\n\r\n")
        broken.recv(100)
    assert "sealface_things" in get(scrapes.address)[1]
    assert "Traceback" not in capfd.readouterr().err


def test_who_says_nothing_is_hung_up_on(scrapes, monkeypatch):
    monkeypatch.setattr("sealface.runtime.scrapes._LONGEST_S", 0.2)
    with socket.create_connection(scrapes.address.split(":")) as silent:
        assert "sealface_things" in get(scrapes.address)[1]
        assert silent.recv(1) == b""


def test_who_is_being_answered_holds_no_stop_up(monkeypatch):
    monkeypatch.setattr("sealface.runtime.scrapes._STOP_S", 0.05)
    begun, go_on = threading.Event(), threading.Event()

    class Endless:
        def collect(self):
            begun.set()
            go_on.wait(60)
            return ()

    registry = CollectorRegistry()
    registry.register(Endless())
    serving = Scrapes("127.0.0.1:0", registry)
    serving.start()
    with socket.create_connection(serving.address.split(":")) as asking:
        asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert begun.wait(30)
        serving.stop()  # or this test is out of time
        go_on.set()
        asking.settimeout(30)
        assert asking.recv(1) == b"H"


async def test_a_server_tells_what_it_counts_where_it_was_told_to():
    server = Server(ServerConfig(metrics="127.0.0.1:0"), [SERVICE])
    address = await server.start()
    assert int(server.metrics.rpartition(":")[2]) > 1023
    async with grpc.aio.insecure_channel(address) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    text = (await asyncio.to_thread(get, server.metrics))[1]
    labels = 'grpc_code="OK",grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary"'
    assert f"grpc_server_handled_total{{{labels}}} 1.0" in text
    assert "process_resident_memory_bytes" in text
    await server.stop()
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(get, server.metrics)


async def test_a_server_whose_address_for_metrics_is_taken_does_not_start(scrapes):
    server = Server(ServerConfig(metrics=scrapes.address), [SERVICE])
    with pytest.raises(MetricsAddressUnavailable):
        await server.start()


async def test_metrics_are_off_unless_asked_for():
    server = Server(ServerConfig(), [SERVICE])
    await server.start()
    assert server.metrics == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "scrapes"]
    await server.stop()
