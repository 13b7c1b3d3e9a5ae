"""One table over sizes and dimensions: this engine, CipherFace's way (TenSEAL dot products), numpy on plaintext.

CipherFace's way compares one pair at a time, so a search costs the pairs: it is run on as many as it manages within
some seconds, and that rate is carried on to the size of the gallery where the gallery is larger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .search import measure, unit_vectors
from .verify import CIPHERFACE, CipherFace

SIZES = ((1_000, 128), (10_000, 128), (100_000, 128), (1_000_000, 128), (100_000, 512), (10_000, 4096))
_SECONDS = 5.0

Tell = Callable[[str], None]


def cipherface_pair(dimension: int, seconds: float = _SECONDS) -> tuple[float, int]:
    """Milliseconds of one comparison as CipherFace's server and key holder make it, and how many were made."""
    way = CipherFace(CIPHERFACE)
    template, probe = (way.encrypt(vector.astype(float)) for vector in unit_vectors(2, dimension, seed=8))
    way.open(way.compare(template, probe))
    made, started = 0, time.perf_counter()
    while made < 3 or time.perf_counter() - started < seconds:
        way.open(way.compare(template, probe))
        made += 1
    return (time.perf_counter() - started) * 1e3 / made, made


async def compare(
    state: Path | None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    *,
    probes: int = 10,
    threads: int = 2,
    seconds: float = _SECONDS,
    tell: Tell = lambda line: None,
) -> list[dict[str, Any]]:
    """One row for each (templates, dimension): `search.measure`'s fields, and `cipherface_ms` with what it rests on."""
    rows = []
    pairs: dict[int, tuple[float, int]] = {}
    for templates, dimension in sizes:
        if dimension not in pairs:
            tell(f"CipherFace's way, {dimension} elements")
            pairs[dimension] = cipherface_pair(dimension, seconds)

        def say(line: str, templates: int = templates, dimension: int = dimension) -> None:
            tell(f"{templates:,} x {dimension}: {line}")

        row = await measure(state, templates=templates, dimension=dimension, probes=probes, threads=threads, tell=say)
        pair_ms, made = pairs[dimension]
        row |= {"cipherface_ms": pair_ms * templates, "cipherface_pairs_measured": made}
        rows.append(row)
    return rows
