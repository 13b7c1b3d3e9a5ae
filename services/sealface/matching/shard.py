"""A gallery's templates in memory, as blocks that are scored together.

Sealed blocks are loaded as they are. An open template, slot n from 1, lies in group (n - 1) // capacity at position
(n - 1) % capacity. Before every search the record is asked for changes, so that an acknowledged enrolment is found and
an erased template is not.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.evaluator import block_memory
from sealface.cipher.layout import Shape
from sealface.cipher.scheme import Evaluator
from sealface.errors import LimitExceeded, Unavailable
from sealface.storage.galleries import Galleries, Gallery, GalleryNotFound, Placement

Slots = NDArray[np.uint32]
_ATTEMPTS = 5


class ShardTooLarge(LimitExceeded):
    """A gallery does not fit the memory that this service may use."""


class GalleryChanging(Unavailable):
    """A gallery changes faster than it can be loaded."""


@dataclass(frozen=True)
class Part:
    """A block and who lies in it.

    Attributes:
        shape: the block's shape.
        block: as the evaluator made it.
        slots: (capacity,) by position, 0 where there is no live template.
    """

    shape: Shape
    block: Any
    slots: Slots


@dataclass(frozen=True)
class Snapshot:
    """A gallery as it was at an epoch; never changed once made.

    Attributes:
        epoch: the layout epoch.
        parts: sealed blocks, then groups of the open tail.
        links: (n, 2) slot and the first slot of its subject, where it is another one.
    """

    epoch: int
    parts: tuple[Part, ...]
    links: NDArray[np.uint32]


@dataclass
class _State:
    first_epoch: int
    epoch: int
    leads: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(1, np.uint32))  # by slot, 0 if it is not live
    sealed: dict[int, Part] = field(default_factory=dict)
    groups: dict[int, Part] = field(default_factory=dict)


class Shard:
    """Keeps one gallery up to date. Safe for several threads: one refreshes, the others wait for it.

    Args:
        galleries: the record.
        gallery: which.
        evaluator: the gallery's.
        limit: most bytes its blocks may take.
        make_room: called with the bytes its blocks will take, before more are loaded.
    """

    def __init__(
        self,
        galleries: Galleries,
        gallery: Gallery,
        evaluator: Evaluator,
        limit: int = 1 << 62,
        make_room: Callable[[int], None] = lambda needed: None,
    ) -> None:
        self._galleries = galleries
        self._id = gallery.id
        self._layout = gallery.layout
        self._evaluator = evaluator
        self._limit = limit
        self._make_room = make_room
        self._lock = threading.Lock()
        self._begin(gallery.first_epoch)

    def refresh(self) -> Snapshot:
        """The gallery as it is now.

        Raises:
            GalleryNotFound: there is none of that id any more, or another one.
            TemplateDamaged: a stored template does not match its digest.
            ShardTooLarge: it does not fit the memory it may use.
            GalleryChanging: try again.
        """
        with self._lock:
            _, last = self._galleries.epochs(self._id)
            if last == self._state.epoch:
                return self._snapshot
            for _ in range(_ATTEMPTS):
                placement = self._galleries.placement(self._id, self._state.epoch)
                if placement.first_epoch != self._state.first_epoch:
                    raise GalleryNotFound("the gallery was made anew: fetch it again")
                try:
                    if self._apply(placement):
                        return self._snapshot
                except BaseException:
                    # half applied: start again from the record, adding a template twice would spoil its group
                    self._begin(placement.first_epoch)
                    raise
            raise GalleryChanging("the gallery changes faster than it is loaded: try again")

    def _begin(self, first_epoch: int) -> None:
        """Hold nothing."""
        self._state = _State(first_epoch, first_epoch)
        self._snapshot = Snapshot(first_epoch, (), np.empty((0, 2), np.uint32))
        self.nbytes = 0

    def _apply(self, placement: Placement) -> bool:
        """Take over what has changed; False if a block is gone from the record already."""
        state = self._state
        tail = _by_group(placement.tail, self._layout.group.capacity)
        self._check_memory(placement.blocks, tail)
        for number in state.sealed.keys() - placement.blocks.keys():
            del state.sealed[number]
        for number in sorted(placement.blocks.keys() - state.sealed.keys()):
            found = self._galleries.block(self._id, number)
            if found is None:
                return False
            shape = self._layout.shape(placement.blocks[number])
            state.sealed[number] = Part(shape, self._evaluator.load(shape, found[1]), found[0])
        for number in state.groups.keys() - tail.keys():
            del state.groups[number]
        for number, slots in tail.items():
            state.groups[number] = self._grown(slots, state.groups.get(number))
        state.leads = _updated(state.leads, placement)
        state.epoch = placement.epoch
        parts = (*state.sealed.values(), *state.groups.values())
        live = tuple(
            Part(part.shape, part.block, np.where(_live(state.leads, part.slots), part.slots, 0)) for part in parts
        )
        self._snapshot = Snapshot(placement.epoch, live, _links(state.leads))
        return True

    def _grown(self, slots: list[int], before: Part | None) -> Part:
        """A group of these slots, made from what is held of it."""
        group = self._layout.group
        held = set() if before is None else set(before.slots[before.slots > 0].tolist())
        if before is not None and not held <= set(slots):  # sealed or erased meanwhile: take nothing over
            before, held = None, set()
        missing = [slot for slot in slots if slot not in held]
        if before is not None and not missing:
            return before
        # a slot erased since the changes were read is not there any more: the next refresh drops it
        loaded = dict(self._galleries.ciphertexts(self._id, missing))
        placed = np.zeros(group.capacity, np.uint32) if before is None else before.slots.copy()
        for slot in loaded:
            placed[(slot - 1) % group.capacity] = slot
        templates = {(slot - 1) % group.capacity: data for slot, data in loaded.items()}
        return Part(group, self._evaluator.assemble(templates, None if before is None else before.block), placed)

    def _check_memory(self, blocks: Mapping[int, int], tail: Collection[int]) -> None:
        needed = sum(block_memory(self._layout.shape(columns)) for columns in blocks.values())
        needed += len(tail) * block_memory(self._layout.group)
        if needed > self._limit:
            raise ShardTooLarge(
                f"the gallery takes {needed >> 20:,} MiB of memory where {self._limit >> 20:,} MiB may be used: "
                "give the matching service more with --memory",
                needed_bytes=needed,
                limit_bytes=self._limit,
            )
        if needed > self.nbytes:
            self._make_room(needed)
        self.nbytes = needed


def _by_group(slots: NDArray[np.int64], capacity: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for slot in slots.tolist():
        found[(slot - 1) // capacity].append(slot)
    return found


def _updated(leads: NDArray[np.uint32], placement: Placement) -> NDArray[np.uint32]:
    slots = placement.taken[:, 0]
    size = int(max(slots.max(initial=0), placement.given.max(initial=0))) + 1
    grown = np.zeros(max(size, leads.size), np.uint32)
    grown[: leads.size] = leads
    grown[slots] = placement.taken[:, 1]
    grown[placement.given] = 0
    return grown


def _live(leads: NDArray[np.uint32], slots: Slots) -> NDArray[np.bool_]:
    known = slots < leads.size
    live: NDArray[np.bool_] = known & (leads[np.where(known, slots, 0)] > 0)
    return live


def _links(leads: NDArray[np.uint32]) -> NDArray[np.uint32]:
    slots = np.flatnonzero((leads > 0) & (leads != np.arange(leads.size)))
    return np.stack([slots.astype(np.uint32), leads[slots]], axis=1)
