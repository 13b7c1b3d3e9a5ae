"""Metrics of a server's calls, under the names of go-grpc-middleware, so that dashboards made for those fit.

Every server has a registry of its own. Metrics of what a service is for are in the service's module of this name: the
domain's code knows no metrics, it tells its steps to whoever made it, or its state is read at a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import grpc
import structlog
from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, that says when its process began

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets of durations."""

_TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
_OF_GO = {"OK": "OK", "CANCELLED": "Canceled"}  # as Go spells them
_METHOD = ("grpc_type", "grpc_service", "grpc_method")
_log = structlog.get_logger("sealface.metrics")


def _spelled(code: grpc.StatusCode) -> str:
    return _OF_GO.get(code.name) or code.name.title().replace("_", "")


@dataclass(frozen=True)
class MethodCalls:
    """What is counted of one method.

    Attributes:
        started: calls that reached it.
        received, sent: messages; those that a handler reads or writes by itself, as health's Watch does, are not there.
        handled: by code, calls that ended.
        seconds: what they took.
    """

    started: Counter
    received: Counter
    sent: Counter
    handled: Mapping[grpc.StatusCode, Counter]
    seconds: Histogram


class Calls:
    """What is counted of all methods of a server. Calls that gRPC itself refuses reach no method, and are not there.

    Args:
        registry: the server's.
        services: full protobuf names; every series of their methods is there, at 0, before the first call.
    """

    def __init__(self, registry: CollectorRegistry, services: Iterable[str]) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"grpc_server_{name}", text, (*_METHOD, *labels), registry=registry)

        self._started = counter("started", "Calls started.")
        self._handled = counter("handled", "Calls ended, by code.", "grpc_code")
        self._received = counter("msg_received", "Messages received.")
        self._sent = counter("msg_sent", "Messages sent.")
        self._seconds = Histogram(
            "grpc_server_handling_seconds", "What calls took.", _METHOD, registry=registry, buckets=SECONDS
        )
        self._methods: dict[str, MethodCalls] = {}
        pool = descriptor_pool.Default()
        for service in services:
            for method in pool.FindServiceByName(service).methods:
                self.of(f"/{service}/{method.name}", method.client_streaming, method.server_streaming)

    def of(self, method: str, client_streaming: bool, server_streaming: bool) -> MethodCalls:
        """Those of a method that is served, by its full name."""
        found = self._methods.get(method)
        if found is None:
            _, service, name = method.split("/")
            labels = _TYPES[client_streaming, server_streaming], service, name
            found = self._methods[method] = MethodCalls(
                self._started.labels(*labels),
                self._received.labels(*labels),
                self._sent.labels(*labels),
                {code: self._handled.labels(*labels, _spelled(code)) for code in grpc.StatusCode},
                self._seconds.labels(*labels),
            )
        return found


class Read(Collector):
    """Metrics that are read from the service's state at a scrape; `sealface_scrape_success` says whether they could be.

    Args:
        parts: by name, what reads some of them. It may fail: the rest of the scrape is there all the same.
    """

    def __init__(self, parts: Mapping[str, Callable[[], Iterable[Metric]]]) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """What is to be told now."""
        success = GaugeMetricFamily(
            "sealface_scrape_success", "1 if a part of these metrics could be read, else 0.", labels=("part",)
        )
        for name, read in self._parts.items():
            try:
                yield from list(read())
                success.add_metric((name,), 1)
            except Exception as error:  # what is away is so for a while: the service goes on, and its other metrics
                _log.warning("not scraped", work=name, error=type(error).__name__)
                success.add_metric((name,), 0)
        yield success
