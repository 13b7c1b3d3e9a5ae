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

from sealface.cipher.layout import Shape
from sealface.cipher.scheme import Evaluator
from sealface.matching.shard import Part
from sealface.protocol.scores import Result

_SEALED_A_TILE, _GROUPS_A_TILE, _SHARED_A_TILE = 2, 16, 32


@dataclass
class Timing:
    """What a search took, in milliseconds.

    Attributes:
        expand_ms: expanding its probes, wall time.
        multiply_ms: multiplying them with all blocks: the time of all threads divided by their number.
        pass_ms: that, and finishing the results, wall time.
    """

    expand_ms: float = 0.0
    multiply_ms: float = 0.0
    pass_ms: float = 0.0


class Scanner:
    """Scores probes against parts.

    Args:
        threads: how many score at once.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "score")

    def scan(
        self, evaluator: Evaluator, parts: Sequence[Part], probes: Sequence[Any], timing: Timing
    ) -> Iterator[list[list[Result]]]:
        """Results of some parts, by probe, and so on until all parts are done.

        Args:
            evaluator: the gallery's.
            parts: what is searched.
            probes: as the evaluator admitted them.
            timing: filled in.
        """
        started = time.perf_counter()
        leaves = evaluator.expand(probes, {part.shape for part in parts})
        expanded = time.perf_counter()
        timing.expand_ms = (expanded - started) * 1e3

        multiplied: list[float] = []

        def score(tile: Sequence[Part]) -> list[list[Result]]:
            return _score(evaluator, leaves, tile, multiplied)

        ahead: deque[Future[list[list[Result]]]] = deque()
        for tile in _tiles(parts, len(probes)):
            ahead.append(self._pool.submit(score, tile))
            if len(ahead) > 2 * self._threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
        timing.multiply_ms = sum(multiplied) / self._threads * 1e3
        timing.pass_ms = (time.perf_counter() - expanded) * 1e3


def _score(
    evaluator: Evaluator, leaves: Mapping[Shape, Any], tile: Sequence[Part], multiplied: list[float]
) -> list[list[Result]]:
    shape = tile[0].shape
    blocks, requested = [part.block for part in tile], [part.slots > 0 for part in tile]
    scored = evaluator.score(blocks, leaves[shape], requested, multiplied)
    return [
        [Result(shape.columns, data, part.slots) for data, part in zip(of_probe, tile, strict=True)]
        for of_probe in scored
    ]


def _tiles(parts: Sequence[Part], probes: int) -> Iterator[Sequence[Part]]:
    for shape, of_shape in groupby(sorted(parts, key=lambda part: -part.shape.columns), key=lambda part: part.shape):
        same = list(of_shape)
        size = _GROUPS_A_TILE if not shape.sealed else _SEALED_A_TILE if probes == 1 else _SHARED_A_TILE
        for start in range(0, len(same), size):
            yield same[start : start + size]
