"""Workers as processes of this machine: started, watched, started again when they die."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from sealface.errors import Unavailable
from sealface.runtime.tls import Tls
from sealface.workers.pool import Member
from sealface.workers.remote import RemoteWorker

_log = structlog.get_logger("sealface.workers")
_START_S = 60.0
_STOP_S = 30.0
_LOOK_S = 0.1


class WorkerDidNotStart(Unavailable):
    """A worker process did not get ready."""


@dataclass
class _Process:
    popen: subprocess.Popen[str]
    worker: RemoteWorker


class LocalProcesses:
    """A home of worker processes.

    Args:
        command: starts one; it prints a JSON line with its `address` when it is ready, and stops when its standard
            input ends.
        count: how many.
        environment: added to that of this process.
        tls: what they are called with; None for plaintext.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        environment: Mapping[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._command = list(command)
        self._tls = tls
        self._environment = os.environ | (environment or {})
        self._names = [f"worker-{number}" for number in range(count)]
        self._processes: dict[str, _Process] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._run, name="workers", daemon=True)

    def start(self) -> None:
        """Start them all; returns when they are ready.

        Raises:
            WorkerDidNotStart: one is not, and none runs on; the log says why.
        """
        begun: dict[str, subprocess.Popen[str]] = {}
        try:
            for name in self._names:
                begun[name] = self._begin()
            for name, popen in begun.items():
                self._ready(name, popen)
        except WorkerDidNotStart:
            for popen in begun.values():
                popen.kill()
                popen.communicate()
            self.stop()
            raise
        self._watch.start()

    def stop(self) -> None:
        """Stop them; what they compute is given up."""
        self._stopping.set()
        if self._watch.is_alive():
            self._watch.join()
        with self._lock:
            processes, self._processes = self._processes, {}
        for process in processes.values():
            process.popen.terminate()
        for process in processes.values():
            try:
                process.popen.communicate(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.communicate()
            process.worker.close()

    def members(self) -> Mapping[str, Member]:
        """Those that run."""
        with self._lock:
            return {name: held.worker for name, held in self._processes.items() if held.popen.poll() is None}

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        with self._lock:
            return {name: process.popen.pid for name, process in self._processes.items()}

    def _begin(self) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(  # noqa: S603 - our own program, no shell
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
            )
        except OSError as error:  # no memory, too many processes: it is tried again
            raise WorkerDidNotStart(f"no process can be started: {error.strerror}") from None

    def _ready(self, name: str, popen: subprocess.Popen[str]) -> None:
        assert popen.stdout is not None  # noqa: S101 - it is a pipe
        readable, _, _ = select.select([popen.stdout], [], [], _START_S)
        try:
            address = json.loads(popen.stdout.readline() if readable else "")["address"]
        except (ValueError, KeyError):
            popen.kill()
            popen.communicate()
            raise WorkerDidNotStart(f"{name} did not start: see the log of the matching service") from None
        with self._lock:
            self._processes[name] = _Process(popen, RemoteWorker(address, self._tls))

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            with self._lock:
                dead = {name: held for name, held in self._processes.items() if held.popen.poll() is not None}
            for name, process in dead.items():
                _log.warning("a worker died", worker=name, message="starting it again")
                process.worker.close()
                process.popen.communicate()
                try:
                    self._ready(name, self._begin())
                except WorkerDidNotStart as error:
                    _log.error("a worker did not start", worker=name, reason=error.reason)
