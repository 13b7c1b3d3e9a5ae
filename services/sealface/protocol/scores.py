"""Encrypted scores to distances by slot, for whoever holds the key: the key service, or a client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Opener
from sealface.errors import SealfaceError


class ScoresNotGenuine(SealfaceError):
    """Check positions do not open to zero: other results than compute makes, or under another key."""


class ScoresMisplaced(SealfaceError):
    """Results do not name a slot, or none, for each position."""


@dataclass(frozen=True)
class Result:
    """Encrypted scores of a group.

    Attributes:
        ciphertext: as `Evaluator.score` made it.
        slots: the slot at each position, 0 where nothing was scored.
    """

    ciphertext: bytes
    slots: Sequence[int]


def open_results(
    opener: Opener, layout: Layout, results: Sequence[Result]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Slots that were scored, and their distances: (n,) each.

    Raises:
        MalformedCiphertext: a result is no polynomials of the parameter set.
        ScoresNotGenuine, ScoresMisplaced: see there.
    """
    if any(len(result.slots) != layout.capacity for result in results):
        raise ScoresMisplaced("the scores do not name a slot for each position: ask again")
    opened = opener.open([result.ciphertext for result in results])
    if not opener.genuine(opened.checks):
        raise ScoresNotGenuine("the scores are not genuine: encrypt under the gallery's key and ask again")
    slots = np.array([result.slots for result in results], np.int64).reshape(opened.scores.shape)
    scored = slots > 0
    return slots[scored], layout.distances(opened.scores[scored])
