"""Encrypted scores to distances by slot, for whoever holds the key: the key service, or a client."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Layout, UnknownShape
from sealface.cipher.randomness import Randomness
from sealface.cipher.scheme import Opener
from sealface.errors import SealfaceError


class ScoresNotGenuine(SealfaceError):
    """Check positions do not open to zero: other results than compute makes, or under another key."""


class ScoresMisplaced(SealfaceError):
    """Results do not name a slot, or none, for each position."""


@dataclass(frozen=True)
class Result:
    """Encrypted scores of a block.

    Attributes:
        columns: of the block's shape.
        ciphertext: as `Evaluator.score` made it.
        slots: (capacity,) the slot at each position, 0 where nothing was scored.
    """

    columns: int
    ciphertext: bytes
    slots: NDArray[np.uint32]


def result_digest(result: Result) -> bytes:
    """What names a result: SHA-256 of its columns, its slots and its ciphertext."""
    slots = result.slots.astype("<u4").tobytes()
    parts = (str(result.columns).encode(), slots, result.ciphertext)
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def results_digest(digests: Iterable[bytes]) -> bytes:
    """What names all results of a search, in whatever order they came: SHA-256 of their digests in order."""
    return hashlib.sha256(b"".join(sorted(digests))).digest()


def result_from_wire(columns: int, ciphertext: bytes, slots: bytes) -> Result:
    """A result as a message carries it; slots that are no whole words count as none."""
    words = np.frombuffer(slots if len(slots) % 4 == 0 else b"", "<u4").astype(np.uint32)
    return Result(columns, ciphertext, words)


DITHER = 4.0
"""Standard deviation of what is added to a score before it is compared, over that of the noise it comes with."""


def open_results(
    opener: Opener, layout: Layout, results: Sequence[Result], *, dithered: bool
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Slots that were scored, and their distances: (n,) each.

    Args:
        opener: of the key version.
        layout: of the gallery.
        results: as they came.
        dithered: whether fresh Gaussian noise is added to each score, as it is wherever somebody else sees what is
            decided: the noise of the ciphertexts, and what was slipped into them below what the check positions show,
            then move a decision by chance only (threat model, rule 4).

    Raises:
        MalformedCiphertext: a result is no polynomials of the parameter set.
        ScoresNotGenuine, ScoresMisplaced: see there.
    """
    by_columns: dict[int, list[Result]] = {}
    for result in results:
        by_columns.setdefault(result.columns, []).append(result)
    slots, distances, genuine = [np.empty(0, np.uint32)], [np.empty(0)], True
    for columns, same in by_columns.items():
        try:
            shape = layout.shape(columns)
        except UnknownShape:
            raise ScoresMisplaced("the scores are of a shape that the gallery does not have: ask again") from None
        if any(result.slots.size != shape.capacity for result in same):
            raise ScoresMisplaced("the scores do not name a slot for each position: ask again")
        opened = opener.open(shape, [result.ciphertext for result in same])
        genuine &= opener.genuine(shape, opened.checks)
        named = np.stack([result.slots for result in same])
        scored = named > 0
        slots.append(named[scored])
        scores = opened.scores[scored]
        dither = DITHER * shape.noise * Randomness().gaussian(scores.size) if dithered else None
        distances.append(layout.distances(scores, dither))
    if not genuine:  # said when all are opened: which ones are not must not show in the time it takes
        raise ScoresNotGenuine("the scores are not genuine: encrypt under the gallery's key and ask again")
    return np.concatenate(slots), np.concatenate(distances)
