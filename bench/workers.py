"""What more workers are worth, and what Ray costs: one task over homes of different sizes, in one run.

The pool alone is measured, without the services before and behind it: a batch of probes scattered, scored, randomised,
and every result back here. `multiply_ms` is the product of the probes with the blocks at the slowest worker, `pass_ms`
that and the finishing of the results. Every worker expands every probe for itself (`expand_ms`): more workers do not
make that shorter, more threads of a worker do. Two workers want both cores of a small machine: where others use it the
medians say so. `speedup_score_best` compares the fastest passes, `speedup_score_cpu` the processor time of a thread,
which grows where two wait for the same memory and not where others compute.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sealface.cipher import product
from sealface.cipher.parameters import for_dimension
from sealface.runtime.server import ServerConfig
from sealface.storage.schema import open_record
from sealface.workers.actors import RayActors, RayConfig, RayUnavailable
from sealface.workers.local import LocalProcesses
from sealface.workers.pool import Home, WorkerPool
from sealface.workers.server import WorkerConfig
from sealface.workers.task import Task, Timing
from sealface_bench.engine import Bench
from sealface_bench.filled import Filled
from sealface_deploy.servers import ServerMissing, ray_cluster

Tell = Callable[[str], None]
_STEPS = ("expand_ms", "multiply_ms", "pass_ms")
_ZERO_S = 0.0003  # longer than a worker takes to draw a zero for a result
_SINGLES = 4  # single probes for each batch
_WORKER = """
import asyncio, json, os, sys
from pathlib import Path
from sealface.cipher.scheme import Ckks
from sealface.runtime.server import ServerConfig, run
from sealface.storage.cache import CacheConfig
from sealface.storage.redis_address import RedisAddress
from sealface.workers.server import WorkerConfig, build

async def main():
    scheme = Ckks()
    scheme.warm()
    redis, database = os.environ.get("SEALFACE_REDIS"), os.environ.get("SEALFACE_DATABASE", "")
    cache = CacheConfig(RedisAddress.parse(redis)) if redis else None
    server = build(WorkerConfig(Path(sys.argv[1]), ServerConfig(), database=database, cache=cache), scheme)
    await run(server, lambda address: print(json.dumps({"address": address}), flush=True), with_stdin=True)

asyncio.run(main())
"""


def local(folder: Path, workers: int, **environment: str) -> Home:
    """Processes of one thread each; `SEALFACE_DATABASE` and `SEALFACE_REDIS` as `sealface serve` knows them."""
    return LocalProcesses([sys.executable, "-c", _WORKER, str(folder)], workers, environment)


def on_ray(address: str, folder: Path, workers: int) -> Home:
    """Actors of one thread each."""
    return RayActors(RayConfig(address, workers), WorkerConfig(folder, ServerConfig()))


@contextmanager
def running(home: Home, workers: int) -> Iterator[WorkerPool]:
    pool = WorkerPool(home)
    pool.start()
    try:
        while len(home.members()) < workers:
            time.sleep(0.1)
        yield pool
    finally:
        pool.stop()


def _one(pool: WorkerPool, task: Task) -> tuple[float, Timing]:
    """Milliseconds of a pass from scatter to the last result, once what is drawn ahead of a search is drawn."""
    time.sleep(len(task.parts) * len(task.probes) * _ZERO_S)
    started = time.perf_counter()
    gathering = pool.begin(task, 600)
    results = sum(len(of_probe) for tile in gathering for of_probe in tile.results)
    assert results == len(task.parts) * len(task.probes)
    return (time.perf_counter() - started) * 1e3, gathering.timing


def _load(pool: WorkerPool, task: Task) -> float:
    """Milliseconds a block until all are in memory."""
    held = replace(task, probes=(), parts=tuple(replace(part, requested=None) for part in task.parts))
    started = time.perf_counter()
    pool.begin(held, 600)
    return (time.perf_counter() - started) * 1e3 / len(held.parts)


def _in_turn(pools: Sequence[WorkerPool], task: Task, rounds: int) -> list[list[tuple[float, Timing]]]:
    """Passes of each pool, by pool."""
    for pool in pools:  # loads the blocks
        _one(pool, task)
    found = [[_one(pool, task) for pool in pools] for _ in range(rounds)]
    return [list(of_pool) for of_pool in zip(*found, strict=True)]


def _medians(passes: Sequence[tuple[float, Timing]]) -> dict[str, float]:
    found = {name: statistics.median(getattr(timing, name) for _, timing in passes) for name in _STEPS}
    return {"wall_ms": statistics.median(wall for wall, _ in passes)} | found


def _score_cpu_ms(dimension: int, blocks: int, batch: int, rounds: int) -> float:
    """Processor time of one thread for the product of a batch with some blocks, median."""
    bench = Bench(dimension)
    data = bench.encryptor.block(bench.shape, bench.vectors)
    held = [bench.evaluator.load(bench.shape, data).columns for _ in range(blocks)]
    leaves = bench.evaluator.expand([bench.probe] * batch, {bench.shape})[bench.shape]
    times = []
    for _ in range(rounds + 1):
        started = time.thread_time()
        product.scores(held, leaves.words, for_dimension(dimension).data_primes)
        times.append((time.thread_time() - started) * 1e3)
    return statistics.median(times[1:])


def scoring_cpu(dimension: int, blocks: int, batch: int, rounds: int) -> tuple[float, float]:
    """The same for one process, and of the slower of two at once that share the blocks: whatever else runs here."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        alone = pool.submit(_score_cpu_ms, dimension, blocks, batch, rounds).result()
        both = [pool.submit(_score_cpu_ms, dimension, -(-blocks // 2), batch, 2 * rounds) for _ in range(2)]
        return alone, max(half.result() for half in both)


@contextmanager
def cluster(wanted: bool, address: str = "") -> Iterator[str]:
    """The address of a Ray cluster: of one that runs, else of one that is begun and ended here; empty for none.

    Raises:
        RayUnavailable: Ray is not installed, or does not start.
    """
    if address or not wanted:
        yield address
        return
    with ExitStack() as held:
        try:
            own = held.enter_context(ray_cluster(cpus=2))
        except ServerMissing as missing:
            raise RayUnavailable(str(missing)) from None
        yield own.url


def measure(
    *,
    templates: int,
    dimension: int,
    batch: int,
    rounds: int,
    ray_address: str = "",
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """One and two local workers on a batch, twice each; with a Ray cluster also two actors, on single probes."""
    with TemporaryDirectory(prefix="sealface-") as name:
        folder = Path(name)
        filled = Filled(open_record(folder), templates, dimension, tell)
        together, single = filled.task(batch), filled.task(1)
        found: dict[str, Any] = {"templates": templates, "dim": dimension, "batch": batch, "rounds": rounds}
        # each by itself: workers that rest draw zeros for their next search, on a core that the others want
        passes: list[list[tuple[float, Timing]]] = [[], []]
        for count in (1, 2, 1, 2):
            with running(local(folder, count), count) as pool:
                tell(f"{count} local workers")
                found["load_ms_a_block"] = _load(pool, together)
                passes[count - 1] += _in_turn((pool,), together, -(-rounds // 2))[0]
        medians = [_medians(of_pool) for of_pool in passes]
        best = [min(timing.multiply_ms for _, timing in of_pool) for of_pool in passes]
        for count, of_pool in enumerate(medians, 1):
            found |= {f"local_{count}_{name}": value for name, value in of_pool.items()}
        for step, name in (("score", "multiply_ms"), ("pass", "pass_ms"), ("wall", "wall_ms")):
            found[f"speedup_{step}"] = medians[0][name] / medians[1][name]
        found["speedup_score_best"] = best[0] / best[1]
        tell("scoring alone, in processor time")
        alone, shared = scoring_cpu(dimension, len(together.parts), batch, rounds)
        found |= {"cpu_1_score_ms": alone, "cpu_2_score_ms": shared, "speedup_score_cpu": alone / shared}
        if ray_address:
            with running(local(folder, 2), 2) as two, running(on_ray(ray_address, folder, 2), 2) as actors:
                tell("two local workers and two Ray actors, in turns")
                here, there = _in_turn((two, actors), single, _SINGLES * rounds)
            found["spread"] = statistics.stdev(math.log(timing.pass_ms) for _, timing in here)
            found["local_single_ms"] = _medians(here)["wall_ms"]
            found["ray_single_ms"] = _medians(there)["wall_ms"]
            found["ray_adds_ms"] = statistics.median(
                far - near for (near, _), (far, _) in zip(here, there, strict=True)
            )
        return found
