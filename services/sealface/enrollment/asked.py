"""What the key holder is asked to encrypt afresh."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_LOOK_UP_S = 0.2


@dataclass(frozen=True)
class Asked:
    """A blinded block, or some templates.

    Attributes:
        key_version: that they are encrypted under.
        columns: of the block; 1 for templates.
        blinded: as `Evaluator.blind` made it; used once.
        cleared: (capacity,) positions that are to hold nothing; None for no position.
        target_version: that they are to be encrypted under; empty for the same.
        templates: how many, where they are templates.
    """

    key_version: str
    columns: int
    blinded: bytes = field(repr=False)
    cleared: NDArray[np.bool_] | None = None
    target_version: str = ""
    templates: int = 0

    @property
    def cleared_bits(self) -> bytes:
        """A bit a position, as the contract has it; empty if none is cleared."""
        return b"" if self.cleared is None else np.packbits(self.cleared, bitorder="little").tobytes()


Ask = Callable[[Asked], Future[bytes]]
"""Asks the key holder, from any thread."""


def awaited(answer: Future[bytes], pause: Callable[[], None]) -> bytes:
    """What the key holder answers; what `pause` raises gives up waiting."""
    try:
        while not wait([answer], _LOOK_UP_S).done:
            pause()
        return answer.result()
    finally:
        answer.cancel()
