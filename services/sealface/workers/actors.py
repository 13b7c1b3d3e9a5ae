"""Workers as Ray actors, on as many machines as the cluster has. The only module that imports ray.

Ray does what it is for: it places actors by threads and memory, starts them again when they or their machines die, and
brings machines as they are asked for. What is searched does not pass through it: each actor serves the same gRPC as a
local worker, so a search costs no more than over processes.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from sealface.cipher.scheme import Ckks
from sealface.errors import Unavailable, WrongState
from sealface.runtime.server import Server
from sealface.runtime.tls import Tls
from sealface.workers.pool import Member
from sealface.workers.remote import RemoteWorker
from sealface.workers.server import WorkerConfig, build

_log = structlog.get_logger("sealface.workers")
NAMESPACE = "sealface"
_LOOK_S = 0.5
_ANSWER_S = 2.0  # an actor that takes longer to say where it is has no part in new searches
_START_S = 60.0


class RayMissing(WrongState):
    """Ray is not installed."""


class RayUnavailable(Unavailable):
    """The Ray cluster does not answer, or has no room for a single worker."""


@dataclass(frozen=True)
class RayConfig:
    """What is asked of a Ray cluster.

    Attributes:
        address: of the cluster: `host:port`, or `auto` for the one on this machine.
        workers: actors; 0 for as many as the cluster has threads for.
        threads: of each actor, a CPU of the cluster each.
        memory: bytes of each actor, as Ray's resource of that name.
    """

    address: str
    workers: int = 0
    threads: int = 1
    memory: int = 0


def _serving(config: WorkerConfig) -> type:
    """The class of actors: a worker's gRPC server, in the actor's own event loop."""

    class Serving:
        def __init__(self) -> None:
            self._server: Server | None = None
            self._place = ("", 0)

        async def place(self) -> tuple[str, int]:
            """Where it serves, and its process."""
            if self._server is None:
                from ray.util import get_node_ip_address

                scheme = Ckks()
                scheme.warm()
                # plaintext does not leave a machine: without TLS the cluster can be of this machine alone
                own: str = get_node_ip_address() if config.server.tls else "127.0.0.1"  # type: ignore[no-untyped-call]
                listen = replace(config.server, address=f"{own}:0")
                self._server = build(replace(config, server=listen), scheme)
                self._place = (await self._server.start(), os.getpid())
            return self._place

    return Serving


@dataclass
class _Actor:
    handle: Any
    asked: Any = None  # a reference to an answer that is waited for
    since: float = 0.0
    place: tuple[str, int] | None = None
    worker: RemoteWorker | None = None
    silent: bool = False


class RayActors:
    """A home of Ray actors; needs the extra `ray`.

    Args:
        ray_config: what is asked of the cluster.
        config: how each worker is made; it listens on its machine's own address, with a certificate that lies at the
            same path on every machine.
        tls: what they are called with; None for plaintext.
    """

    def __init__(self, ray_config: RayConfig, config: WorkerConfig, tls: Tls | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise RayMissing("Ray is not installed: pip install 'sealface[ray]'")
        self._ray_config = ray_config
        self._config = config
        self._tls = tls
        self._actors: dict[str, _Actor] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actors", daemon=True)

    def start(self) -> None:
        """Join the cluster and start actors; returns when the first one serves.

        Raises:
            RayUnavailable: there is no cluster at the address, or no room in it.
        """
        import ray

        address = self._ray_config.address
        try:
            if ":" in address:  # Ray itself would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), _ANSWER_S).close()
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError):
            raise RayUnavailable("no Ray cluster answers at that address: start one with `ray start --head`") from None
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self.members():
            if time.monotonic() > deadline:
                raise RayUnavailable("the Ray cluster has no room for a worker: ask for fewer threads or less memory")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the actors and leave the cluster."""
        import ray

        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            actors, self._actors = self._actors, {}
        for actor in actors.values():
            ray.kill(actor.handle)
            if actor.worker is not None:
                actor.worker.close()
        ray.shutdown()

    def members(self) -> Mapping[str, Member]:
        """Those that serve, as far as is known."""
        with self._lock:
            serving = {name: actor for name, actor in self._actors.items() if not actor.silent}
            return {name: actor.worker for name, actor in serving.items() if actor.worker is not None}

    def pids(self) -> dict[str, int]:
        """Process ids by name, on whichever machine."""
        with self._lock:
            return {name: actor.place[1] for name, actor in self._actors.items() if actor.place is not None}

    def _run(self) -> None:
        """Keep as many actors as are wanted, and know where they serve."""
        while not self._stopping.is_set():
            try:
                self._size()
                self._ask(list(self._actors.values()))
            except Exception as error:
                _log.error("the Ray cluster does not answer", error=type(error).__name__)
            self._stopping.wait(_LOOK_S)

    def _size(self) -> None:
        """As many actors as are asked for, or as the cluster has threads for.

        One without room waits for it: that is what an autoscaling cluster brings another machine for.
        """
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        wanted = self._ray_config.workers or int(resources.get("CPU", 0) // self._ray_config.threads)
        for number in range(len(self._actors), wanted):
            options: dict[str, Any] = {
                "num_cpus": self._ray_config.threads,
                "memory": self._ray_config.memory or None,
                "max_restarts": -1,
            }
            if cache := os.environ.get("NUMBA_CACHE_DIR"):
                options["runtime_env"] = {"env_vars": {"NUMBA_CACHE_DIR": cache}}
            handle: Any = ray.remote(_serving(self._config)).options(**options).remote()
            with self._lock:
                self._actors[f"actor-{number}"] = _Actor(handle)

    def _ask(self, actors: list[_Actor]) -> None:
        """Where actors serve: it is another address whenever one was started again."""
        import ray

        for actor in actors:
            if actor.asked is None:
                actor.asked, actor.since = actor.handle.place.remote(), time.monotonic()
        if not actors:
            return
        answered, _ = ray.wait([actor.asked for actor in actors], num_returns=len(actors), timeout=0.2)
        for actor in actors:
            if actor.asked not in answered:  # what it computes may still come; it gets nothing new
                actor.silent = time.monotonic() - actor.since > _ANSWER_S
                continue
            asked, actor.asked, actor.silent = actor.asked, None, False
            try:
                self._moved(actor, ray.get(asked))
            except ray.exceptions.RayError:
                self._moved(actor, None)

    def _moved(self, actor: _Actor, place: tuple[str, int] | None) -> None:
        if place == actor.place:
            return
        if actor.worker is not None:
            actor.worker.close()
        with self._lock:
            actor.place = place
            actor.worker = None if place is None else RemoteWorker(place[0], self._tls)
