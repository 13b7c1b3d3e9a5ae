"""The HTTP endpoint that Prometheus scrapes: one answer at a time, in a thread of its own, for seconds at most.

It has no access control: its address is to be reachable for whoever watches the service's zone, and for nobody else.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from http.server import HTTPServer
from typing import Any
from urllib.parse import urlparse

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from sealface.errors import Unavailable

_log = structlog.get_logger("sealface.metrics")
_LONGEST_S = 10.0  # Prometheus waits as long by itself
_LOOK_S = 0.1
_STOP_S = 1.0


class MetricsAddressUnavailable(Unavailable):
    """The address for metrics is taken, or none of this machine's."""


class Scrapes:
    """Serves `GET /metrics`, in the format that is asked for; runs beside the serving path (see `server.Background`).

    Args:
        address: `host:port`; port 0 takes a free one.
        registry: what is served.

    Attributes:
        address: with its real port, once it has started.
    """

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        self.address = address
        self._handler = type("_Handler", (_Handler,), {"registry": registry})
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrapes", daemon=True)
        self._http: HTTPServer

    def start(self) -> None:
        """Listen and serve.

        Raises:
            MetricsAddressUnavailable: see there.
        """
        host, _, port = self.address.rpartition(":")
        try:
            self._http = _Server((host.strip("[]"), int(port)), self._handler)
        except (OSError, ValueError, OverflowError):
            raise MetricsAddressUnavailable(
                f"cannot serve metrics at {self.address}: name another with --metrics"
            ) from None
        self.address = f"{host}:{self._http.server_address[1]}"
        self._thread.start()

    def stop(self) -> None:
        """Serve no more; whoever is being answered does not hold it up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
            self._http.server_close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._http.handle_request()


class _Server(HTTPServer):
    timeout = _LOOK_S  # of `handle_request`

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has hung up, or asked for what there is not; others are answered."""


class _Handler(MetricsHandler):
    server_version, sys_version = "sealface", ""  # whoever asks need not know the interpreter's
    timeout = _LONGEST_S  # of each read; of everything together:

    def setup(self) -> None:
        super().setup()
        self._end = threading.Timer(_LONGEST_S, self._hang_up)
        self._end.daemon = True
        self._end.start()

    def finish(self) -> None:
        self._end.cancel()
        super().finish()

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if urlparse(self.path).path != "/metrics":
            self.send_error(404)
            return
        super().do_GET()

    def _hang_up(self) -> None:
        with suppress(OSError):  # it has done so itself
            self.connection.shutdown(socket.SHUT_RDWR)
