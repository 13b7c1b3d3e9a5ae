"""A gallery's templates in memory, as groups that are scored together.

The template of slot n (from 1) lies in group (n - 1) // capacity at position (n - 1) % capacity. Before every search
the record is asked for changes, so that an acknowledged enrolment is found and an erased template is not.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Evaluator
from sealface.storage.galleries import Change, Galleries, Gallery, GalleryNotFound


@dataclass(frozen=True)
class Block:
    """A group and the slots that live in it, by position."""

    group: Any
    slots: Mapping[int, int]


@dataclass(frozen=True)
class Snapshot:
    """A gallery as it was at an epoch; never changed once made.

    Attributes:
        epoch: the layout epoch.
        blocks: by group number.
        leads: slot -> first slot of its subject, where it is another one.
    """

    epoch: int
    blocks: Mapping[int, Block]
    leads: Mapping[int, int]


@dataclass
class _State:
    first_epoch: int
    epoch: int
    blocks: dict[int, Block] = field(default_factory=dict)
    subjects: dict[int, str] = field(default_factory=dict)


class Shard:
    """Keeps one gallery up to date. Safe for several threads: one refreshes, the others wait for it.

    Args:
        galleries: the record.
        gallery: which.
        evaluator: the gallery's.
    """

    def __init__(self, galleries: Galleries, gallery: Gallery, evaluator: Evaluator) -> None:
        self._galleries = galleries
        self._id = gallery.id
        self._layout: Layout = gallery.layout
        self._evaluator = evaluator
        self._lock = threading.Lock()
        self._state = _State(gallery.first_epoch, gallery.first_epoch)
        self._snapshot = Snapshot(gallery.first_epoch, {}, {})

    def refresh(self) -> Snapshot:
        """The gallery as it is now.

        Raises:
            GalleryNotFound: there is none of that id any more, or another one.
            TemplateDamaged: a stored template does not match its digest.
        """
        with self._lock:
            state = self._state
            _, last = self._galleries.epochs(self._id)
            if last != state.epoch:
                first, last, changes = self._galleries.changes(self._id, state.epoch)
                if first != state.first_epoch:
                    raise GalleryNotFound("the gallery was made anew: fetch it again")
                try:
                    self._apply(changes)
                except BaseException:
                    # half applied: start again from the record, adding a template twice would spoil its group
                    self._state = _State(state.first_epoch, state.first_epoch)
                    raise
                state.epoch = last
                self._snapshot = Snapshot(last, dict(state.blocks), _leads(state.subjects))
            return self._snapshot

    def _apply(self, changes: list[Change]) -> None:
        state, capacity = self._state, self._layout.capacity
        added: dict[int, list[int]] = defaultdict(list)
        rebuilt: set[int] = set()
        for change in changes:
            number = (change.slot - 1) // capacity
            if change.subject is not None:
                state.subjects[change.slot] = change.subject
                added[number].append(change.slot)
            elif state.subjects.pop(change.slot, None) is not None:
                rebuilt.add(number)
        for number in added.keys() | rebuilt:
            before = None if number in rebuilt else state.blocks.get(number)
            if number in rebuilt:
                wanted = range(number * capacity + 1, (number + 1) * capacity + 1)
                slots = [slot for slot in wanted if slot in state.subjects]
            else:
                slots = added[number]
            block = self._build(slots, before)
            if block.slots:
                state.blocks[number] = block
            else:
                state.blocks.pop(number, None)

    def _build(self, slots: list[int], before: Block | None) -> Block:
        capacity = self._layout.capacity
        # a slot erased since the changes were read is not there any more: the next refresh drops it
        loaded = {(slot - 1) % capacity: data for slot, data in self._galleries.ciphertexts(self._id, slots)}
        known = {(slot - 1) % capacity: slot for slot in slots}
        group = self._evaluator.assemble(loaded, before.group if before else None)
        held = dict(before.slots) if before else {}
        return Block(group, held | {position: known[position] for position in loaded})


def _leads(subjects: Mapping[int, str]) -> dict[int, int]:
    first: dict[str, int] = {}
    leads = {}
    for slot in sorted(subjects):
        lead = first.setdefault(subjects[slot], slot)
        if lead != slot:
            leads[slot] = lead
    return leads
