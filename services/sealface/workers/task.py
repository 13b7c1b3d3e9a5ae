"""What is to be scored, and what comes of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.randomness import derived
from sealface.errors import Unavailable


class BlockGone(Unavailable):
    """A block, or a template of a group, is not in the record any more: look again where templates lie."""


@dataclass(frozen=True)
class Part:
    """A block to score; it never changes under its number.

    Attributes:
        columns: of its shape; 1 for a group of open templates.
        number: of the block in its gallery, or of the group from 1; 0 for a group made for one task alone.
        slots: for a group the slots by position, 32 bits each; for a sealed block the SHA-256 of that.
        requested: (capacity,) positions whose scores are wanted, all others are masked; None to have the block in
            memory and score nothing.
    """

    columns: int
    number: int
    slots: bytes
    requested: NDArray[np.bool_] | None

    @property
    def name(self) -> tuple[bool, int]:
        """What tells it from other parts of its gallery: whether it is a group, and its number."""
        return self.columns == 1, self.number


def slots_bytes(slots: NDArray[np.uint32]) -> bytes:
    """Slots by position, 32 bits each."""
    return slots.astype("<u4").tobytes()


def slots_digest(slots: NDArray[np.uint32]) -> bytes:
    """What names who lies where in a sealed block."""
    return hashlib.sha256(slots_bytes(slots)).digest()


@dataclass(frozen=True)
class Task:
    """Probes and what they are scored on.

    Attributes:
        gallery: id of the gallery.
        first_epoch: at which the gallery of that id was made.
        key_version: that the probes are encrypted under, and the gallery was when it was looked at.
        probes: as clients sent them.
        parts: what is scored, or held.
        whole: whether these are all parts of the gallery that a worker is to hold.
        seed: of all its randomness, 32 bytes, where an auditor is to compute it again; else empty.
        deepest: columns of the deepest block of the whole search, of which a worker may have a part; else 1.
    """

    gallery: str
    first_epoch: int
    key_version: str
    probes: tuple[bytes, ...]
    parts: tuple[Part, ...]
    whole: bool = False
    seed: bytes = b""
    deepest: int = 1

    def probe_seed(self, number: int) -> bytes | None:
        """Of admitting a probe; the same whichever others share its task."""
        return derived(self.seed, self.probes[number]) if self.seed else None

    def result_seed(self, number: int, part: Part) -> bytes | None:
        """Of the result of a probe and a part; another for every part, and for whoever else of it is asked for."""
        seed = self.probe_seed(number)
        if seed is None or part.requested is None:
            return None
        named = f"{part.columns} {part.number}".encode()
        return derived(seed, named, part.slots, np.packbits(part.requested).tobytes())


@dataclass(frozen=True)
class Tile:
    """Scores of some parts.

    Attributes:
        places: of the parts in their task.
        results: by probe, then by part: as `Evaluator.score` made them.
    """

    places: tuple[int, ...]
    results: list[list[bytes]]


@dataclass
class Timing:
    """What a task took, in milliseconds; of several workers the slowest.

    Attributes:
        expand_ms: expanding its probes, wall time.
        multiply_ms: multiplying them with all blocks: the time of all threads divided by their number.
        pass_ms: that, and finishing the results, wall time.
    """

    expand_ms: float = 0.0
    multiply_ms: float = 0.0
    pass_ms: float = 0.0

    def slowest(self, other: Timing) -> None:
        """Take over what took longer."""
        self.expand_ms = max(self.expand_ms, other.expand_ms)
        self.multiply_ms = max(self.multiply_ms, other.multiply_ms)
        self.pass_ms = max(self.pass_ms, other.pass_ms)
