"""A gRPC server as every service runs it: health, reflection, limits, and a stop that finishes what began."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, ProcessCollector

from sealface.errors import Unavailable
from sealface.runtime.interceptors import ErrorInterceptor
from sealface.runtime.metrics import Calls
from sealface.runtime.peers import PeerInterceptor
from sealface.runtime.scrapes import Scrapes
from sealface.runtime.tls import Certificate, Tls, check_plaintext, server_credentials

_log = structlog.get_logger("sealface.server")

LIVENESS = "liveness"
"""In health, the process itself: SERVING as long as it takes calls, whether or not its services can do their work."""

MESSAGE_LIMIT = 4 * 1024 * 1024
"""Largest message either way, bytes; what is larger is streamed."""

_PROBES_AT_ONCE = 16
_PROBE_LIMIT = 4096
"""Largest message of a health probe, bytes: it is the name of a service."""

_CONNECTION_S = 3600
"""A peer shows its certificate again as often as that; what is under way is finished."""


class AddressUnavailable(Unavailable):
    """The address is taken, or none of this machine's."""


@dataclass(frozen=True)
class ServerConfig:
    """How a server listens and stops.

    Attributes:
        address: `host:port`; port 0 takes a free one.
        message_limit: largest message it receives, bytes.
        calls_at_once: calls under way; more are refused as RESOURCE_EXHAUSTED.
        grace_s: seconds that calls under way have to finish when it is asked to stop.
        tls: its certificate; None for plaintext, on loopback.
        mutual: whether a client must show a certificate of the same authority; nobody has one in plaintext.
        internal: a second address, for clients that show one; not listened at in plaintext.
        metrics: address of an HTTP endpoint for Prometheus; none if it is not named.
        health: a further address, where health alone is served, and in plaintext: probes of a cluster know no TLS.
    """

    address: str = "127.0.0.1:0"
    message_limit: int = MESSAGE_LIMIT
    grace_s: float = 20.0
    calls_at_once: int = 256
    tls: Tls | None = None
    mutual: bool = False
    internal: str | None = None
    metrics: str | None = None
    health: str | None = None


class Background(Protocol):
    """Work beside the serving path, for as long as the server runs."""

    def start(self) -> None:
        """Begin, in threads of its own; the server is not ready before it returns."""

    def stop(self) -> None:
        """Finish or give up what was begun, if anything; returns when that is done."""


class Server:
    """One service's server.

    Args:
        config: how it listens.
        services: full protobuf names of its services, for health and reflection.
        interceptors: the service's own, inside the one that reports errors.
        background: started and stopped with the server.
        peers: full method -> the zone's URI that a client's certificate must carry; in plaintext nobody has one, and
            everybody on this machine may call.
        registry: with the metrics of what the service is for.

    Attributes:
        grpc: to add servicers to.
        registry: all its metrics.
        internal: the second address with its real port, once it has started; the only one if there is no second.
        health: the address of health alone with its real port, once it has started; empty if there is none.
    """

    def __init__(
        self,
        config: ServerConfig,
        services: Sequence[str],
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        background: Sequence[Background] = (),
        peers: Mapping[str, str] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._config = config
        own = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._scrapes = Scrapes(config.metrics, self.registry) if config.metrics else None
        self._certificate = None if config.tls is None else Certificate(config.tls)
        by_peer = [PeerInterceptor(peers)] if peers and config.tls else []
        self.internal = self.health = ""
        self._background = [*([self._scrapes] if self._scrapes else []), *background]
        self._services = services
        self._health = health.aio.HealthServicer()
        self._serving = dict.fromkeys(("", *services), True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.grpc = grpc.aio.server(
            interceptors=[ErrorInterceptor(Calls(self.registry, own)), *by_peer, *interceptors],
            maximum_concurrent_rpcs=config.calls_at_once,
            options=[
                ("grpc.max_receive_message_length", config.message_limit),
                ("grpc.max_send_message_length", config.message_limit),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),  # channels.KEEPALIVE
                *([("grpc.max_connection_age_ms", _CONNECTION_S * 1000)] if config.tls else []),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection(own, self.grpc)
        self._probed = None if config.health is None else _for_probes(self._health)

    async def start(self) -> str:
        """Listen and serve; returns the address with its real port.

        Calls are taken before the work in the background has begun. If it cannot begin, they end as UNAVAILABLE, and
        what has begun is stopped.

        Raises:
            AddressUnavailable, MetricsAddressUnavailable, PlaintextRefused: see there; or what the work in the
            background raises.
        """
        address = self.internal = self._listen(self._config.address, self._config.mutual)
        if self._config.internal is not None and self._certificate is not None:
            self.internal = self._listen(self._config.internal, mutual=True)
        if self._probed is not None and self._config.health is not None:
            self.health = _bound(self._config.health, "--health", self._probed.add_insecure_port)
        await self._none_serving()
        await self.grpc.start()
        if self._probed is not None:
            await self._probed.start()
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        try:
            for work in self._background:
                await asyncio.to_thread(work.start)
        except BaseException:
            await self._stop(None)
            raise
        self._loop = asyncio.get_running_loop()
        await self._report()
        return address

    def _listen(self, address: str, mutual: bool) -> str:
        if self._certificate is None:
            check_plaintext(address)
            return _bound(address, "--listen", self.grpc.add_insecure_port)
        credentials = server_credentials(self._certificate, mutual=mutual)
        return _bound(address, "--listen", lambda named: self.grpc.add_secure_port(named, credentials))

    async def stop(self) -> None:
        """Refuse new calls, finish those under way."""
        self._loop = None
        await self._none_serving()
        await self._stop(self._config.grace_s)

    @property
    def serving(self) -> bool:
        """Whether it can do its work."""
        return self._serving[""]

    @property
    def metrics(self) -> str:
        """Address of its metrics, with its real port once it has started; empty without."""
        return self._scrapes.address if self._scrapes else ""

    def report(self, serving: bool, *names: str) -> None:
        """Say in health whether it can do its work; from any thread, and also before it starts.

        Args:
            serving: whether it can.
            names: of which parts; the whole of it, and all its services, if none is named.
        """
        self._serving |= dict.fromkeys(names or ("", *self._services), serving)
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._report(), self._loop)

    async def _stop(self, grace_s: float | None) -> None:
        await self.grpc.stop(grace_s)
        for work in reversed(self._background):
            await asyncio.to_thread(work.stop)
        if self._probed is not None:  # last: until then it is alive
            await self._probed.stop(None)

    async def _report(self) -> None:
        if self._loop is None:  # it stops
            return
        status = health_pb2.HealthCheckResponse
        for name, serving in list(self._serving.items()):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def _none_serving(self) -> None:
        for name in list(self._serving):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)


def _for_probes(servicer: health.aio.HealthServicer) -> grpc.aio.Server:
    """A server of health alone, without reflection."""
    limit = ("grpc.max_receive_message_length", _PROBE_LIMIT)
    server = grpc.aio.server(maximum_concurrent_rpcs=_PROBES_AT_ONCE, options=[limit, ("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return server


def _bound(address: str, option: str, listen: Callable[[str], int]) -> str:
    """The address with its real port.

    Raises:
        AddressUnavailable: see there.
    """
    try:
        return f"{address.rpartition(':')[0]}:{listen(address)}"
    except RuntimeError:
        raise AddressUnavailable(f"cannot listen at {address}: name another with {option}") from None


def announce(confined: bool) -> None:
    """Say in the log whether the kernel keeps this process to its own zone's files."""
    if confined:
        _log.info("confined", message="the kernel keeps this process to its own zone's files")
    else:
        advice = "no Landlock here, or every process may read where the state lies: part the zones by containers"
        _log.warning("not confined", message=advice)


async def run(server: Server, ready: Callable[[str], None], with_stdin: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then finish what began.

    Args:
        server: the server.
        ready: called with the address when calls are accepted.
        with_stdin: stop also when standard input ends, as it does when the process at its other end is gone.
    """
    # the event loop waits this long for a thread that computes in Python: 5 ms, the default, is most of a call
    sys.setswitchinterval(0.0002)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if with_stdin:
        loop.add_reader(sys.stdin.fileno(), stopping.set)
    ready(await server.start())
    await stopping.wait()
    _log.info("stopping", message="finishing calls under way")
    await server.stop()
    _log.info("stopped", message="everything acknowledged is stored")
