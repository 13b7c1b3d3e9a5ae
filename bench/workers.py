"""What more workers are worth, and what Ray costs: one task over homes of different sizes, in one run.

The pool alone is measured, without the services before and behind it: a batch of probes scattered, scored, randomised,
and every result back here. `score_ms` is the product of the probes with the blocks at the slowest worker.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Ckks
from sealface.enrollment.record import NewGallery, Record
from sealface.runtime.server import ServerConfig
from sealface.storage.database import open_sqlite
from sealface.storage.galleries import Galleries, Gallery
from sealface.storage.record import metadata
from sealface.workers.local import LocalProcesses
from sealface.workers.pool import Home, WorkerPool
from sealface.workers.server import WorkerConfig
from sealface.workers.task import Part, Task, Timing, slots_digest
from sealface_bench.search import unit_vectors

Tell = Callable[[str], None]
_WORKER = """
import asyncio, json, sys
from pathlib import Path
from sealface.cipher.scheme import Ckks
from sealface.runtime.server import ServerConfig, run
from sealface.workers.server import WorkerConfig, build

async def main():
    scheme = Ckks()
    scheme.warm()
    server = build(WorkerConfig(Path(sys.argv[1]), ServerConfig()), scheme)
    await run(server, lambda address: print(json.dumps({"address": address}), flush=True), with_stdin=True)

asyncio.run(main())
"""


def local(folder: Path, workers: int) -> Home:
    """Processes of one thread each."""
    return LocalProcesses([sys.executable, "-c", _WORKER, str(folder)], workers)


def on_ray(address: str, folder: Path, workers: int) -> Home:
    """Actors of one thread each."""
    from sealface.workers.actors import RayActors, RayConfig

    return RayActors(RayConfig(address, workers), WorkerConfig(folder, ServerConfig()))


@contextmanager
def _running(home: Home, workers: int) -> Iterator[WorkerPool]:
    pool = WorkerPool(home)
    pool.start()
    try:
        while len(home.members()) < workers:
            time.sleep(0.1)
        yield pool
    finally:
        pool.stop()


class Filled:
    """A record with one imported gallery of unit vectors."""

    def __init__(self, folder: Path, templates: int, dimension: int, tell: Tell) -> None:
        scheme, self.layout = Ckks(), Layout.of("", dimension, Metric.COSINE, 1.0)
        material = scheme.generate(self.layout.parameters)
        engine = open_sqlite(folder / "record.db", metadata)
        record, self.galleries = Record(engine), Galleries(engine)
        version = "keys/bench/versions/1"
        new = NewGallery("bench", version, True, material.public, material.evaluation, self.layout, 2, 1, b"")
        record.create_gallery(new)
        self.encryptor = scheme.encryptor(self.layout, material.public)
        shape = self.layout.best_shape(templates)
        vectors = unit_vectors(templates, dimension, 1).astype(np.float64)
        for start in range(0, templates, shape.capacity):
            part = vectors[start : start + shape.capacity]
            subjects = [f"s{start + i}" for i in range(len(part))]
            data = self.encryptor.block(shape, part)
            record.import_block("bench", version, subjects, shape.columns, shape.capacity, data, f"r{start}")
            tell(f"imported {start + len(part):,} of {templates:,}")
        self.gallery: Gallery = self.galleries.get("bench")

    def task(self, probes: int) -> Task:
        """A search for random probes over all of it."""
        faces = unit_vectors(probes, self.layout.dimension, 2).astype(np.float64)
        parts = []
        for block in self.galleries.blocks("bench"):
            slots = self.galleries.block_slots("bench", block.number)
            assert slots is not None
            parts.append(Part(block.columns, block.number, slots_digest(slots), slots > 0))
        encrypted = tuple(self.encryptor.probe(face) for face in faces)
        return Task("bench", self.gallery.first_epoch, encrypted, tuple(parts), whole=True)


def _times(pool: WorkerPool, task: Task, rounds: int) -> tuple[list[float], list[Timing]]:
    walls, timings = [], []
    for number in range(rounds + 1):
        started = time.perf_counter()
        gathering = pool.begin(task, 600)
        results = sum(len(of_probe) for tile in gathering for of_probe in tile.results)
        assert results == len(task.parts) * len(task.probes)
        if number:  # the first loads
            walls.append((time.perf_counter() - started) * 1e3)
            timings.append(gathering.timing)
    return walls, timings


def measure(
    *,
    templates: int,
    dimension: int,
    batch: int,
    rounds: int,
    ray_address: str = "",
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """One and two local workers on a batch; with a Ray cluster also two actors, and single probes on both."""
    with TemporaryDirectory(prefix="sealface-") as name:
        folder = Path(name)
        filled = Filled(folder, templates, dimension, tell)
        together, single = filled.task(batch), filled.task(1)
        found: dict[str, Any] = {"templates": templates, "dim": dimension, "batch": batch, "rounds": rounds}
        for workers in (1, 2):
            with _running(local(folder, workers), workers) as pool:
                tell(f"{workers} local workers")
                walls, timings = _times(pool, together, rounds)
                found[f"local_{workers}_ms"] = statistics.median(walls)
                found[f"local_{workers}_score_ms"] = statistics.median(timing.multiply_ms for timing in timings)
                found[f"local_{workers}_pass_ms"] = statistics.median(timing.pass_ms for timing in timings)
                if ray_address and workers == 2:
                    with _running(on_ray(ray_address, folder, 2), 2) as actors:
                        tell("2 Ray actors, in turn with 2 local workers")
                        pairs = [
                            (_times(pool, single, 1)[0][0], _times(actors, single, 1)[0][0]) for _ in range(rounds)
                        ]
                    found["local_single_ms"] = statistics.median(pair[0] for pair in pairs)
                    found["ray_single_ms"] = statistics.median(pair[1] for pair in pairs)
                    found["ray_adds_ms"] = statistics.median(there - here for here, there in pairs)
        found["speedup_score"] = found["local_1_score_ms"] / found["local_2_score_ms"]
        found["speedup_pass"] = found["local_1_pass_ms"] / found["local_2_pass_ms"]
        found["speedup_wall"] = found["local_1_ms"] / found["local_2_ms"]
        return found
