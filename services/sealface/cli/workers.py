"""What `sealface serve` is told of workers."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sealface.runtime.tls import Tls
    from sealface.storage.cache import CacheConfig
    from sealface.workers.pool import Home

_THREADS_A_WORKER = 4


class Pool(StrEnum):
    """Where workers run."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True)
class Workers:
    """The workers of the matching service; threads and memory are of all of them on one machine.

    Attributes:
        pool: where they run.
        asked: how many; 0 for one for four threads on this machine, or for as many as a Ray cluster has room for.
        threads: how many score at once.
        memory: bytes that the blocks of all galleries may take.
        replicas: how many workers hold each block.
        ray_address: of the Ray cluster.
    """

    pool: Pool
    asked: int
    threads: int
    memory: int
    replicas: int
    ray_address: str

    def environment(self) -> dict[str, str]:
        """The same for the process of a service."""
        told = {
            "POOL": self.pool.value,
            "WORKERS": self.asked,
            "THREADS": self.threads,
            "MEMORY": self.memory / (1 << 30),
            "REPLICAS": self.replicas,
            "RAY_ADDRESS": self.ray_address,
        }
        return {f"SEALFACE_{name}": str(value) for name, value in told.items()}

    def folders(self) -> list[Path]:
        """Where the matching service writes beside its own folder: to the sockets of the Ray cluster."""
        if self.pool is Pool.LOCAL:
            return []
        needed = [Path(os.environ.get("RAY_TMPDIR", "/tmp/ray")), Path.home() / ".ray"]  # noqa: S108 - Ray's own
        for folder in needed:
            folder.mkdir(exist_ok=True)
        return needed

    def home(self, state: Path, zone: Path, database: str, cache: CacheConfig | None, tls: Tls | None) -> Home:
        """Where they run.

        Args:
            state: the state folder.
            zone: the compute zone's part of it.
            database: address of the record; a file in the zone if none is named.
            cache: of the record's ciphertexts.
            tls: the matching service's; actors show the same.

        Local ones read both from the environment.

        Raises:
            RayMissing: it is not installed.
        """
        count = self.asked or max(1, self.threads // _THREADS_A_WORKER)
        threads, memory = max(1, self.threads // count), self.memory // count
        if self.pool is Pool.RAY:
            from sealface.runtime.server import ServerConfig
            from sealface.workers.actors import RayActors, RayConfig
            from sealface.workers.server import WorkerConfig

            config = WorkerConfig(zone, ServerConfig(tls=tls), threads, memory, database, cache)
            return RayActors(RayConfig(self.ray_address, self.asked, threads, memory), config, tls)
        from sealface.workers.local import LocalProcesses

        command = [sys.executable, "-m", "sealface.cli.main", "serve", "worker", "--with-parent", "--state", str(state)]
        return LocalProcesses(
            [*command, "--threads", str(threads), "--memory", str(memory / (1 << 30))], count, tls=tls
        )
