"""Where the templates of a gallery lie: the blocks that a search is scattered over.

Nothing of a ciphertext is here; workers hold those. Before every search the record is asked for changes, so that an
acknowledged enrolment is found and an erased template is not. An open template, slot n from 1, lies in group
(n - 1) // capacity at position (n - 1) % capacity.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Shape
from sealface.errors import Unavailable
from sealface.storage.galleries import Galleries, Gallery, Placement
from sealface.workers.task import BlockGone, slots_bytes, slots_digest
from sealface.workers.task import Part as Wanted

Slots = NDArray[np.uint32]
_ATTEMPTS = 5


class GalleryChanging(Unavailable):
    """A gallery changes faster than it can be loaded."""


@dataclass(frozen=True)
class Block:
    """A sealed block, or a group of the open tail; never changed once made.

    Attributes:
        shape: its shape.
        number: in its gallery; of a group from 1, and 0 for one that is made for a single search.
        slots: (capacity,) who lies where, 0 where nothing does.
    """

    shape: Shape
    number: int
    slots: Slots

    @cached_property
    def identity(self) -> bytes:
        """What names its slots to a worker."""
        return slots_digest(self.slots) if self.shape.sealed else slots_bytes(self.slots)


@dataclass(frozen=True)
class Part:
    """A block and who of it is searched.

    Attributes:
        block: the block.
        slots: (capacity,) by position, 0 where there is no live template.
    """

    block: Block
    slots: Slots

    @property
    def shape(self) -> Shape:
        """The block's."""
        return self.block.shape

    @property
    def wanted(self) -> Wanted:
        """What a worker is asked for."""
        return Wanted(self.shape.columns, self.block.number, self.block.identity, self.slots > 0)


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
    sealed: dict[int, Block] = field(default_factory=dict)
    groups: dict[int, Block] = field(default_factory=dict)


class Shard:
    """Keeps one gallery up to date. Safe for several threads: one refreshes, the others wait for it.

    Args:
        galleries: the record.
        gallery: which.
    """

    def __init__(self, galleries: Galleries, gallery: Gallery) -> None:
        self._galleries = galleries
        self._id = gallery.id
        self._layout = gallery.layout
        self._lock = threading.Lock()
        self._begin(gallery.first_epoch)

    def refresh(self) -> Snapshot:
        """The gallery as it is now.

        Raises:
            GalleryNotFound: there is none of that id any more.
            BlockGone: there is another one of that id.
            GalleryChanging: try again.
        """
        with self._lock:
            _, last = self._galleries.epochs(self._id)
            if last == self._state.epoch:
                return self._snapshot
            for _ in range(_ATTEMPTS):
                placement = self._galleries.placement(self._id, self._state.epoch)
                if placement.first_epoch != self._state.first_epoch:
                    raise BlockGone("the gallery was made anew meanwhile: try again")
                try:
                    if self._apply(placement):
                        return self._snapshot
                except BaseException:
                    self._begin(placement.first_epoch)  # half applied: start again from the record
                    raise
            raise GalleryChanging("the gallery changes faster than it is searched: try again")

    @property
    def epoch(self) -> int:
        """The epoch of the last look."""
        return self._snapshot.epoch

    def _begin(self, first_epoch: int) -> None:
        """Know nothing."""
        self._state = _State(first_epoch, first_epoch)
        self._snapshot = Snapshot(first_epoch, (), np.empty((0, 2), np.uint32))

    def _apply(self, placement: Placement) -> bool:
        """Take over what has changed; False if a block is gone from the record already."""
        state, layout = self._state, self._layout
        for number in state.sealed.keys() - placement.blocks.keys():
            del state.sealed[number]
        for number in sorted(placement.blocks.keys() - state.sealed.keys()):
            slots = self._galleries.block_slots(self._id, number)
            if slots is None:
                return False
            state.sealed[number] = Block(layout.shape(placement.blocks[number]), number, slots)
        tail = _by_group(placement.tail, layout.group.capacity)
        for number in state.groups.keys() - tail.keys():
            del state.groups[number]
        for number, held in tail.items():
            if number not in state.groups or not np.array_equal(held, state.groups[number].slots):
                state.groups[number] = Block(layout.group, number, held)
        state.leads = _updated(state.leads, placement)
        state.epoch = placement.epoch
        blocks = (*state.sealed.values(), *state.groups.values())
        parts = tuple(Part(block, np.where(_live(state.leads, block.slots), block.slots, 0)) for block in blocks)
        self._snapshot = Snapshot(placement.epoch, parts, _links(state.leads))
        return True


def _by_group(slots: NDArray[np.int64], capacity: int) -> dict[int, Slots]:
    """Open slots by position, by group from 1."""
    found: dict[int, Slots] = defaultdict(lambda: np.zeros(capacity, np.uint32))
    for slot in slots.tolist():
        found[(slot - 1) // capacity + 1][(slot - 1) % capacity] = slot
    return dict(found)


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
