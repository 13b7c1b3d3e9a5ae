"""What is killed, and comes back."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from deploy.servers import LocalServer

from sealface.cli.processes import LocalServices

BACK_S = 180.0
_T = TypeVar("_T")


class DoesNotComeBack(Exception):
    """A component is not there a good while after it was killed."""


class Component(Protocol):
    """Something that dies and comes back."""

    name: str

    def kill(self) -> None:
        """With -9, at once."""

    def back(self) -> None:
        """Have it back; returns when its process runs."""


class Watching:
    """Starts dead services again, as `sealface serve` does."""

    def __init__(self, services: LocalServices) -> None:
        self._services = services
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watching", daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._services.watch(self._stopping.is_set, lambda name: None)
        except BaseException as error:
            self.failure = error


def _found(look: Callable[[], _T | None], what: str) -> _T:
    deadline = time.monotonic() + BACK_S
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise DoesNotComeBack(f"{what} does not come back within {BACK_S:.0f} s")
        time.sleep(0.05)
    return found


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass
class Service:
    """One of the three, which `watch` starts again."""

    services: LocalServices
    name: str

    def kill(self) -> None:
        os.kill(_found(self._pid, self.name), signal.SIGKILL)

    def back(self) -> None:
        _found(self._pid, self.name)

    def _pid(self) -> int | None:
        try:
            pid = self.services.pid(self.name)
        except KeyError:  # it is being started again
            return None
        return pid if _runs(pid) else None


@dataclass
class Worker:
    """One of several workers, which are started again by what placed them.

    Attributes:
        name: what they are.
        look: their process ids, as far as they run.
        count: how many there are to be.
        chance: which is killed.
    """

    name: str
    look: Callable[[], list[int]]
    count: int
    chance: random.Random

    def kill(self) -> None:
        os.kill(self.chance.choice(_found(lambda: self._pids(1), self.name)), signal.SIGKILL)

    def back(self) -> None:
        _found(lambda: self._pids(self.count), self.name)

    def _pids(self, least: int) -> list[int] | None:
        try:
            pids = [pid for pid in self.look() if _runs(pid)]
        except (KeyError, FileNotFoundError, ProcessLookupError):  # they went with what placed them
            return None
        return pids if len(pids) >= least else None


def actors(cluster: LocalServer) -> list[int]:
    """Process ids of the actors of a Ray cluster on this machine."""
    parents, named = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if (process / "cmdline").read_bytes().startswith(b"ray::Serving"):
                named.append(int(process.name))
    return [pid for pid in named if cluster.pid in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


@dataclass
class Server:
    """A server that others depend on; it is started again with what it had on disk."""

    name: str
    server: LocalServer

    def kill(self) -> None:
        self.server.kill()

    def back(self) -> None:
        self.server.start()
