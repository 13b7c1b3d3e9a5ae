"""A gallery moved to a new version of its key while it is searched: how long it takes, and what searches notice.

Services in processes of their own. Most templates are imported in blocks, some are enrolled singly, so that both kinds
of ciphertexts are moved. Every answer is checked: who is in the gallery is found, a stranger is not.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sealface.errors import SealfaceError
from sealface.protocol.policy import Budget, Policy
from sealface_client import AsyncClient, AsyncGallery

POLICY = Policy(0.4, 0.2, budget=Budget(10**9, 10**15, 10**9))
_DIMENSION = 128  # Dlib's
_SEARCHERS = 2
_BEFORE_S = 5.0

Tell = Callable[[str], None]


@dataclass
class _Load:
    """Searches, and what came of them."""

    gallery: AsyncGallery
    vectors: np.ndarray
    random: np.random.Generator
    ms: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    async def run(self, stop: asyncio.Event) -> None:
        """Search until told to stop, one after the other."""
        while not stop.is_set():
            number = int(self.random.integers(len(self.vectors)))
            stranger = bool(self.random.random() < 0.5)
            vector = self.random.normal(size=self.vectors.shape[1]) if stranger else self.vectors[number]
            started = time.perf_counter()
            try:
                found = await self.gallery.identify(vector)
            except SealfaceError as error:
                self.failed[error.reason] += 1
                continue
            self.ms.append((time.perf_counter() - started) * 1e3)
            named = [candidate.subject for candidate in found.candidates]
            self.wrong += named != ([] if stranger else [f"s{number}"])


async def _searched(load: list[_Load], until: Callable[[], Any]) -> dict[str, Any]:
    """What searches were like while something else was done."""
    for one in load:
        one.ms, one.wrong, one.failed = [], 0, Counter()
    stop = asyncio.Event()
    tasks = [asyncio.create_task(one.run(stop)) for one in load]
    await until()
    stop.set()
    await asyncio.gather(*tasks)
    ms = [value for one in load for value in one.ms]
    return {
        "searches": len(ms),
        "wrong": sum(one.wrong for one in load),
        "failed": dict(sum((one.failed for one in load), Counter())),
        "p50_ms": statistics.median(ms) if ms else None,
        "slowest_ms": max(ms, default=None),
    }


async def measure(
    state: Path | None, *, templates: int, enrolled: int, tell: Tell = lambda line: None
) -> dict[str, Any]:
    """Seconds of a rotation, and searches before and during it.

    Args:
        state: state folder of running services.
        templates: in the gallery.
        enrolled: of these, enrolled singly, with ciphertexts of their own.
        tell: told of progress.
    """
    random = np.random.default_rng(17)
    vectors = random.normal(size=(templates, _DIMENSION))
    async with AsyncClient.connect(state) as client:
        name = f"rotation-{int(time.time())}"
        gallery = await client.create_gallery(name, policy=POLICY)
        imported = templates - enrolled
        async for stored in gallery.import_many(((f"s{i}", vectors[i]) for i in range(imported)), imported):
            tell(f"importing: {stored.first_slot + stored.templates:,}")
        async for _ in gallery.enroll_many((f"s{i}", vectors[i]) for i in range(imported, templates)):
            pass
        await gallery.identify(vectors[0])
        load = [_Load(await client.gallery(name), vectors, np.random.default_rng(seed)) for seed in range(_SEARCHERS)]
        tell("searching before")
        before = await _searched(load, lambda: asyncio.sleep(_BEFORE_S))
        taken: dict[str, Any] = {}

        async def rotate() -> None:
            started = time.perf_counter()
            async for operation in gallery.operations.follow(await gallery.rotate()):
                tell(f"rotating: {operation.done:,} of {operation.total:,} ciphertexts")
            taken["seconds"] = time.perf_counter() - started
            taken["ciphertexts"] = operation.rotated.ciphertexts

        during = await _searched(load, rotate)
        after = await _searched(load, lambda: asyncio.sleep(_BEFORE_S))
        assert (await client.gallery(name)).info.key_version.endswith("/versions/2")
    return {
        "templates": templates,
        "enrolled": enrolled,
        **taken,
        "ms_a_ciphertext": taken["seconds"] * 1e3 / taken["ciphertexts"],
        "before": before,
        "during": during,
        "after": after,
    }
