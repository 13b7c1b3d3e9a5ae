"""What stragglers and lost workers do to a search over many workers: a simulation, since this machine has two cores.

The costs are measured on one thread (`sealface bench engine`, `bench workers`; `relay_ms` and `open_ms` as the slope of
`matching_cpu_ms` and `keys_cpu_ms` of `bench search` over its `blocks`); how slow a worker is in one
search is drawn. It takes `expand_ms + blocks * block_ms` over its threads, times a factor of

- a lognormal body of median 1: what is shared on any machine (`sigma`; `bench workers` measures it as `spread`), and
- a rare slow mode: with probability `slow`, `slow_factor` on top (collection, throttling, a neighbour's noise).

That shape is Dean and Barroso's (The Tail at Scale, CACM 56(2), 2013), as is the remedy of hedging. Their table 1 (a
leaf answers in 1, 5 and 10 ms at the 50th, 95th and 99th percentile) is a lognormal of sigma 0.98, far wider than that
of one long pass over memory. A worker is lost in a search with probability `lost`, anywhere in its pass.

Three policies, on the same draws:

- `one_copy`: what a lost worker left is scored by all others, which load it from the record first;
- `two_copies`: they hold it already (`--replicas 2`). Both are what `workers/pool.py` does; a worker that is merely
  slow is waited for;
- `hedged`, which is *not* built: besides, what is not there after `hedge_ms` is asked for a second time, of those who
  hold the second copy, and the first answer counts.

What is done again is spread evenly over all others, as rendezvous hashing does it, who expand the probe again; one that
is still busy with its own part works at half speed. That those who take over are lost as well is left out. Results
stream while workers score, so when the work is planned and scattered, a search takes as long as the slower of two: the
pass, and what all results take at the narrowest place behind it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.distance import Metric
from sealface.cipher.evaluator import result_size
from sealface.cipher.layout import Layout
from sealface.workers.convert import task_to_proto
from sealface.workers.pool import placed
from sealface.workers.task import Part, Task

POLICIES = ("one_copy", "two_copies", "hedged")
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
_CHUNK = 5_000  # searches drawn at once

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """Measured, on one thread.

    Attributes:
        expand_ms: expanding a probe.
        block_ms: scoring a block and finishing its result with a zero drawn ahead.
        load_ms: reading a block from the record and arranging it.
        relay_ms: taking a result from a worker and passing it on, in the matching service.
        open_ms: taking a result and opening it, in the key service.
        plan_ms: naming all blocks to all workers, in the matching service; `planning` measures it.
    """

    expand_ms: float = 33.0
    block_ms: float = 1.55
    load_ms: float = 30.0
    relay_ms: float = 0.4
    open_ms: float = 0.4
    plan_ms: float = 0.0


@dataclass(frozen=True)
class Stragglers:
    """How workers differ from search to search; see the module.

    Attributes:
        sigma: of the logarithm of the body.
        slow: probability of the slow mode, a worker and search.
        slow_factor: how slow that is.
        lost: probability that a worker is lost, a worker and search.
        notice_ms: until a loss is noticed and acted upon.
        hedge_ms: after which a second answer is asked for; 0 for the 95th percentile of a worker's time.
    """

    sigma: float = 0.1
    slow: float = 0.01
    slow_factor: float = 5.0
    lost: float = 1e-4
    notice_ms: float = 50.0
    hedge_ms: float = 0.0


@dataclass(frozen=True)
class Plant:
    """What there is.

    Attributes:
        templates: in the gallery.
        dimension: of a template.
        workers: over which blocks are spread evenly.
        threads: of each.
        gbit: of the network at the matching service and at the record, each way, gigabits a second.
        matching: processes of the matching service that share a search; more than one is not built.
        opening: processes of the key service that share a decision; more than one is not built.
    """

    templates: int = 100_000_000
    dimension: int = 128
    workers: int = 64
    threads: int = 4
    gbit: float = 25.0
    matching: int = 1
    opening: int = 1


@dataclass(frozen=True)
class Load:
    """What one search moves; bytes without framing.

    Attributes:
        blocks: there are, and results.
        block_bytes: of a block in the record.
        scatter_bytes: probe and names of blocks, to all workers.
        gather_bytes: results, from all workers.
        decide_bytes: results with the slots at their positions, to the key service.
    """

    blocks: int
    block_bytes: int
    scatter_bytes: int
    gather_bytes: int
    decide_bytes: int

    @classmethod
    def of(cls, plant: Plant) -> Load:
        """That of a search for one probe."""
        layout = Layout.of("", plant.dimension, Metric.COSINE, 1.0)
        shape = layout.best_shape(plant.templates)
        blocks = math.ceil(plant.templates / shape.capacity)
        named = 32 + math.ceil(shape.capacity / 8)  # a digest, and a bit for each position
        result = result_size(layout)
        probe = 4 * layout.parameters.degree * 30 // 8
        return cls(
            blocks,
            shape.columns * 4 * layout.parameters.degree * 30 // 8,
            plant.workers * probe + blocks * named,
            blocks * result,
            blocks * (result + 4 * shape.capacity),
        )


def planning(plant: Plant) -> float:
    """Milliseconds of placing the blocks of a search and writing all workers' tasks, with the code that does it."""
    shape = Layout.of("", plant.dimension, Metric.COSINE, 1.0).best_shape(plant.templates)
    slots = np.arange(1, shape.capacity + 1, dtype=np.uint32)
    took = 0.0
    for _ in range(2):  # the first time weighs workers for every block, which is remembered
        started = time.process_time()
        numbers = range(1, Load.of(plant).blocks + 1)
        parts = tuple(Part(shape.columns, number, bytes(32), slots > 0) for number in numbers)
        task = Task("door", 1, "keys/door/versions/1", (b"",), parts, whole=True)
        places = defaultdict(list)
        for place, (taker, *_) in placed(task, range(len(parts)), [f"w{i}" for i in range(plant.workers)]).items():
            places[taker].append(parts[place])
        for of_worker in places.values():
            task_to_proto(replace(task, parts=tuple(of_worker))).SerializeToString()
        took = (time.process_time() - started) * 1e3
    return took


def factors(stragglers: Stragglers, rng: np.random.Generator, searches: int, workers: int) -> Times:
    """(searches, workers) how slow each worker is in each search."""
    body = np.exp(stragglers.sigma * rng.standard_normal((searches, workers)))
    slow = rng.random((searches, workers)) < stragglers.slow
    return np.where(slow, stragglers.slow_factor * body, body)


def slowest(times: Times) -> Times:
    """(searches,) when the last worker of each search is done: an answer needs them all."""
    last: Times = times.max(axis=1)
    return last


class Simulation:
    """Searches over the workers of a plant."""

    def __init__(self, plant: Plant, costs: Costs, stragglers: Stragglers) -> None:
        self.plant, self.costs, self.stragglers = plant, costs, stragglers
        self.load = Load.of(plant)
        self._blocks = self.load.blocks / plant.workers
        self._expand_ms = costs.expand_ms / plant.threads
        self._block_ms, self._load_ms = costs.block_ms / plant.threads, costs.load_ms / plant.threads
        self._per_ms = plant.gbit * 1e6 / 8  # bytes
        self.pass_ms = self._expand_ms + self._blocks * self._block_ms

    def hedge_ms(self, rng: np.random.Generator) -> float:
        """After which a second answer is asked for."""
        drawn = factors(self.stragglers, rng, 1_000, 100) * self.pass_ms
        return self.stragglers.hedge_ms or float(np.quantile(drawn, 0.95))

    def again(self, pace: Times, begin: Times, left: Times, block_ms: float, fetch_ms: float = 0.0) -> Times:
        """When what some workers leave is done by all others.

        Args:
            pace: (searches, workers) how slow each worker is.
            begin: (searches, workers) when it is asked for.
            left: (searches, workers) blocks that each leaves; 0 for none.
            block_ms: what a block takes of those who do it.
            fetch_ms: what a block takes of the record, which all of them ask.

        Returns:
            (searches, workers) when what this worker left is there; infinity where it left nothing.
        """
        done = np.full(left.shape, np.inf)
        search, worker = np.nonzero(left)
        share = left.sum(axis=1)[search] / max(1, self.plant.workers - 1)
        start = begin[search, worker]
        other = pace[search]
        took = other * (self._expand_ms + share * block_ms)[:, None]
        took = np.where(other * self.pass_ms > start[:, None], 2 * took, took)  # beside its own part
        took[np.arange(len(search)), worker] = -np.inf
        done[search, worker] = start + left[search, worker] * fetch_ms + took.max(axis=1, initial=-np.inf)
        return done

    def passes(self, rng: np.random.Generator, searches: int, hedge_ms: float) -> dict[str, Times]:
        """(searches,) milliseconds until the last result of each search, by policy."""
        shape = (searches, self.plant.workers)
        pace = factors(self.stragglers, rng, *shape)
        lost = rng.random(shape) < self.stragglers.lost
        point = rng.random(shape)
        alone = pace * self.pass_ms
        noticed = point * alone + self.stragglers.notice_ms
        rest = np.where(lost, (1 - point) * self._blocks, 0.0)
        late = (alone > hedge_ms) & ~lost
        unscored = np.where(late, np.minimum(1.0, (alone - hedge_ms) / (pace * self._blocks * self._block_ms)), 0.0)

        def after_losses(block_ms: float, fetch_ms: float = 0.0) -> Times:
            return np.where(lost, self.again(pace, noticed, rest, block_ms, fetch_ms), alone)

        kept = after_losses(self._block_ms)
        second = self.again(pace, np.full(shape, hedge_ms), unscored * self._blocks, self._block_ms)
        return {
            "one_copy": slowest(after_losses(self._block_ms + self._load_ms, self.load.block_bytes / self._per_ms)),
            "two_copies": slowest(kept),
            "hedged": slowest(np.minimum(kept, second)),
        }

    def streams_ms(self) -> dict[str, float]:
        """How long each stage takes for a whole search; those behind the workers overlap with the pass."""
        return {
            "scatter": self.load.scatter_bytes / self._per_ms,
            "gather": self.load.gather_bytes / self._per_ms,
            "matching": self.load.blocks * self.costs.relay_ms / self.plant.matching,
            "decide": self.load.decide_bytes / self._per_ms,
            "opening": self.load.blocks * self.costs.open_ms / self.plant.opening,
        }


def quantiles(times: Times) -> dict[str, float]:
    """Those that are reported."""
    return {name: float(np.quantile(times, share)) for name, share in QUANTILES.items()}


def simulate(plant: Plant, costs: Costs, stragglers: Stragglers, searches: int, seed: int) -> dict[str, Any]:
    """Quantiles by policy: of the pass, and of a search as the slower of the pass and the streams behind it."""
    rng = np.random.default_rng(seed)
    simulation = Simulation(plant, costs, stragglers)
    hedge_ms = simulation.hedge_ms(rng)
    drawn: dict[str, list[Times]] = {policy: [] for policy in POLICIES}
    for start in range(0, searches, _CHUNK):
        for policy, times in simulation.passes(rng, min(_CHUNK, searches - start), hedge_ms).items():
            drawn[policy].append(times)
    passes = {policy: np.concatenate(times) for policy, times in drawn.items()}
    streams = simulation.streams_ms()
    scatter_ms = streams.pop("scatter")
    found: dict[str, Any] = {"searches": searches, "seed": seed, **asdict(plant), **asdict(costs), **asdict(stragglers)}
    found |= {"hedge_ms": hedge_ms, **asdict(simulation.load), "undisturbed_ms": simulation.pass_ms}
    found |= {"scatter_ms": scatter_ms} | {f"{name}_ms": value for name, value in streams.items()}
    for policy, times in passes.items():
        found[policy] = {
            "pass": quantiles(times),
            "search": quantiles(costs.plan_ms + scatter_ms + np.maximum(times, max(streams.values()))),
        }
    return found
