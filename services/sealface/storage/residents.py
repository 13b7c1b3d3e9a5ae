"""Who lives where in a gallery, in arrays: some 40 bytes a template."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sealface.storage.contents import Row

Slots = NDArray[np.int64]
_OPEN = 0  # instead of a block's number, which is at least 1
_DIGEST = 16  # bytes of a subject's digest that are kept


@dataclass(frozen=True)
class Stored:
    """A live template; `own` if it has a ciphertext of its own."""

    subject: bytes
    epoch: int
    own: bool


@dataclass(frozen=True)
class Place:
    """What a block's list of slots says, beside the templates that name the block.

    Attributes:
        consistent: whether both name the same live templates, each once.
        all_own, none_own: whether all, or none, of those that name the block have a ciphertext of their own.
        intact: whether all have one, and it is not damaged: the block can be made again.
        erased: how many slots of the list are erased.
        unknown: slots of the list that were never taken or are lost.
    """

    consistent: bool
    all_own: bool
    none_own: bool
    intact: bool
    erased: int
    unknown: Slots


class Residents:
    """Live and erased slots. First all are added, in the order of their slots; then it can be asked."""

    def __init__(self) -> None:
        self._buried = array("q")
        self._numbers = array("q")  # slot, lead, block, epoch of each
        self._flags = bytearray()  # own, intact of each
        self._digests = bytearray()
        self._placed: list[Slots] = []
        self._blocks: set[int] = set()

    def bury(self, slot: int) -> None:
        """A slot that is erased."""
        self._buried.append(slot)

    def add(self, row: Row, subject: bytes, intact: bool) -> None:
        """A live template.

        Args:
            row: of the table of templates.
            subject: digest of its subject.
            intact: whether its own ciphertext is there and as it was stored.
        """
        self._numbers.extend((row["slot"], row["lead"], row["block"] or _OPEN, row["epoch"]))
        self._flags += bytes((row["ciphertext"] is not None, intact))
        self._digests += subject[:_DIGEST]

    def place(self, number: int, slots: Slots) -> Place:
        """How a block's list of slots, those that are taken, fits."""
        self._placed.append(slots)
        self._blocks.add(number)
        members = self._block == number
        live = _among(self._slot, slots)
        erased = _among(self._tombs, slots) & ~live
        own, intact = self._flag[members, 0], self._flag[members, 1]
        return Place(
            consistent=len(np.unique(slots)) == len(slots)
            and np.array_equal(np.sort(slots[live]), self._slot[members]),
            all_own=bool(own.all()),
            none_own=not own.any(),
            intact=bool(intact.all()),
            erased=int(np.count_nonzero(erased)),
            unknown=slots[~live & ~erased],
        )

    def stored(self, slot: int) -> Stored | None:
        """The live template of a slot, if there is one."""
        at = int(np.searchsorted(self._slot, slot))
        if at == len(self._slot) or self._slot[at] != slot:
            return None
        digest = bytes(self._digests[at * _DIGEST : (at + 1) * _DIGEST])
        return Stored(digest, int(self._table[at, 3]), bool(self._flag[at, 0]))

    def erased(self, slot: int) -> bool:
        """Whether a slot is erased."""
        return bool(_among(self._tombs, np.array([slot]))[0])

    def present_but_erased(self) -> list[int]:
        """Slots that are both."""
        return [int(slot) for slot in self._slot[_among(self._tombs, self._slot)]]

    def placed_twice(self) -> list[int]:
        """Slots that are in the lists of two blocks."""
        if not self._placed:
            return []
        slots, times = np.unique(np.concatenate(self._placed), return_counts=True)
        return [int(slot) for slot in slots[times > 1]]

    def homeless(self) -> Iterator[tuple[int, bool]]:
        """Blocks that templates name and that are not there, and whether all of those have intact ciphertexts."""
        for number in np.unique(self._block):
            if number != _OPEN and int(number) not in self._blocks:
                yield int(number), bool(self._flag[self._block == number, 1].all())

    def wrong_leads(self, most: int) -> list[int]:
        """Slots whose lead is not the first of their subject's, or whose subject has more than `most` templates."""
        subjects = np.frombuffer(self._digests, f"S{_DIGEST}")
        order, first, group = np.unique(subjects, return_index=True, return_inverse=True)
        lead = self._table[:, 1]
        of_group = np.bincount(group, minlength=len(order))
        wrong = (lead != self._slot[first][group]) | (of_group[group] > most)
        return [int(slot) for slot in self._slot[wrong]]

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        return np.frombuffer(self._numbers, np.int64).reshape(-1, 4)

    @cached_property
    def _slot(self) -> Slots:
        return np.ascontiguousarray(self._table[:, 0])

    @cached_property
    def _block(self) -> Slots:
        return np.ascontiguousarray(self._table[:, 2])

    @cached_property
    def _flag(self) -> NDArray[np.bool_]:
        return np.frombuffer(self._flags, np.bool_).reshape(-1, 2)

    @cached_property
    def _tombs(self) -> Slots:
        return np.frombuffer(self._buried, np.int64)


def _among(known: Slots, slots: Slots) -> NDArray[np.bool_]:
    """Which slots are known, of which there are many, in order."""
    if not len(known):
        return np.zeros(len(slots), np.bool_)
    at = np.minimum(np.searchsorted(known, slots), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == slots
    return found
