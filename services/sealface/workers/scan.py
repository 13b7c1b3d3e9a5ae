"""One pass over blocks for the searches that share it: scored by a pool of threads, handed out in order.

Tiles of blocks are scored and finished (randomised, switched, masked, packed) by one thread each, so that results leave
while others are computed. What a pass takes depends on the number of blocks and probes, not on what they hold.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Shape
from sealface.cipher.scheme import Evaluator
from sealface.workers.task import Tile, Timing

_SEALED_A_TILE, _GROUPS_A_TILE, _SHARED_A_TILE = 2, 16, 32


@dataclass(frozen=True)
class Loaded:
    """A block in memory and what is wanted of it.

    Attributes:
        shape: the block's shape.
        block: as the evaluator made it.
        requested: (capacity,) positions whose scores are wanted.
    """

    shape: Shape
    block: Any
    requested: NDArray[np.bool_]


class Scanner:
    """Scores probes against blocks.

    Args:
        threads: how many score at once.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "score")

    def scan(
        self,
        evaluator: Evaluator,
        blocks: Sequence[Loaded],
        probes: Sequence[Any],
        timing: Timing,
        seeds: Sequence[Sequence[bytes]] | None = None,
        deepest: int = 1,
    ) -> Iterator[Tile]:
        """Scores of some blocks, and so on until all are done.

        Args:
            evaluator: the gallery's.
            blocks: what is searched.
            probes: as the evaluator admitted them, at least one.
            timing: filled in.
            seeds: by probe and block, where the results are to be repeated.
            deepest: of the whole search, see `Task`.
        """
        started = time.perf_counter()
        leaves = evaluator.expand(probes, {block.shape for block in blocks}, deepest)
        expanded = time.perf_counter()
        timing.expand_ms = (expanded - started) * 1e3

        multiplied: list[float] = []

        def score(places: tuple[int, ...]) -> Tile:
            chosen = None if seeds is None else [[of_probe[place] for place in places] for of_probe in seeds]
            return Tile(places, _score(evaluator, leaves, [blocks[place] for place in places], multiplied, chosen))

        ahead: deque[Future[Tile]] = deque()
        for places in _tiles(blocks, len(probes)):
            ahead.append(self._pool.submit(score, places))
            if len(ahead) > 2 * self._threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
        timing.multiply_ms = sum(multiplied) / self._threads * 1e3
        timing.pass_ms = (time.perf_counter() - expanded) * 1e3


def _score(
    evaluator: Evaluator,
    leaves: Mapping[Shape, Any],
    tile: Sequence[Loaded],
    multiplied: list[float],
    seeds: Sequence[Sequence[bytes]] | None,
) -> list[list[bytes]]:
    blocks, requested = [part.block for part in tile], [part.requested for part in tile]
    return evaluator.score(blocks, leaves[tile[0].shape], requested, multiplied, seeds)


def _tiles(blocks: Sequence[Loaded], probes: int) -> Iterator[tuple[int, ...]]:
    """Places of blocks of one shape, the largest shape first."""
    order = sorted(range(len(blocks)), key=lambda place: -blocks[place].shape.columns)
    for shape, of_shape in groupby(order, key=lambda place: blocks[place].shape):
        same = tuple(of_shape)
        size = _GROUPS_A_TILE if not shape.sealed else _SEALED_A_TILE if probes == 1 else _SHARED_A_TILE
        for start in range(0, len(same), size):
            yield same[start : start + size]
