"""Blocks of galleries in a worker's memory, loaded from the record, within a bound.

A sealed block is loaded as it is. An open template, slot n from 1, lies in group (n - 1) // capacity at position
(n - 1) % capacity; a group that has grown is added to, one that has lost a template is made anew. Nothing here knows
epochs: a task names the blocks it wants, and a block never changes under its name.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.evaluator import block_memory
from sealface.cipher.scheme import Evaluator
from sealface.errors import LimitExceeded
from sealface.storage.digests import TemplateDamaged
from sealface.storage.galleries import Gallery
from sealface.workers.scan import Loaded
from sealface.workers.task import BlockGone, Part, slots_digest
from sealface.workers.usage import Shard as Held

_Name = tuple[str, int, str]
"""Id of a gallery, the epoch it was made at, and the key version that its ciphertexts are under."""


class ShardTooLarge(LimitExceeded):
    """What a worker is to hold of a gallery does not fit the memory that it may use."""


class Templates(Protocol):
    """Where encrypted templates come from, each checked against its digest."""

    def block(
        self, gallery_id: str, number: int, key_version: str | None = None
    ) -> tuple[NDArray[np.uint32], bytes] | None:
        """Slots by position, and ciphertext under a key version, of a sealed block; None if it is not there."""

    def ciphertexts(
        self, gallery_id: str, slots: Iterable[int], key_version: str | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Slot and ciphertext, under a key version, of those of the slots that have one of their own."""


@dataclass(frozen=True)
class _Block:
    columns: int
    slots: bytes
    block: Any


@dataclass
class _Shard:
    """What is held of one gallery."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    blocks: dict[tuple[bool, int], _Block] = field(default_factory=dict)  # by whether it is a group, and number
    nbytes: int = 0


class Store:
    """Blocks in memory. Safe for several threads.

    Args:
        templates: the record, or a cache before it.
        limit: bytes that the blocks of all galleries may take.

    Attributes:
        limit: the same.
    """

    def __init__(self, templates: Templates, limit: int) -> None:
        self._templates = templates
        self.limit = limit
        self._shards: OrderedDict[_Name, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, gallery: Gallery, evaluator: Evaluator, parts: Sequence[Part], whole: bool) -> list[Loaded]:
        """The blocks that are to be scored. All are loaded that are not held; idle galleries make room.

        Args:
            gallery: whose.
            evaluator: the gallery's.
            parts: which.
            whole: whether these are all that is to be held of the gallery; others are dropped.

        Raises:
            BlockGone: one is not in the record any more.
            TemplateDamaged: one does not match its digest.
            ShardTooLarge: they do not fit; nothing was loaded.
        """
        name = gallery.identity
        with self._lock:
            for older in [other for other in self._shards if other[0] == gallery.id and other != name]:
                del self._shards[older]
            shard = self._shards.setdefault(name, _Shard())
            self._shards.move_to_end(name)
        loading = _Loading(self._templates, gallery, evaluator)
        with shard.lock:
            held = {part.name: part.columns for part in parts if part.number}
            if whole:
                for stale in shard.blocks.keys() - held.keys():
                    del shard.blocks[stale]
            held |= {block: shard.blocks[block].columns for block in shard.blocks.keys() - held.keys()}
            needed = sum(block_memory(gallery.layout.shape(columns)) for columns in held.values())
            self._make_room(name, shard, needed, any(part.requested is not None for part in parts))
            found = []
            for part in parts:
                before = shard.blocks.get(part.name) if part.number else None
                block = before if before is not None and before.slots == part.slots else loading.block(part, before)
                if part.number:
                    shard.blocks[part.name] = block
                if part.requested is not None:
                    found.append(Loaded(gallery.layout.shape(part.columns), block.block, part.requested))
            return found

    def forget(self, gallery_id: str) -> None:
        """Drop what is held of a gallery."""
        with self._lock:
            for name in [name for name in self._shards if name[0] == gallery_id]:
                del self._shards[name]

    def held(self, gallery_id: str) -> list[Part]:
        """What is in memory of a gallery."""
        with self._lock:
            shards = [shard for name, shard in self._shards.items() if name[0] == gallery_id]
        found = []
        for shard in shards:
            with shard.lock:
                found += [Part(held.columns, number, held.slots, None) for (_, number), held in shard.blocks.items()]
        return found

    def shards(self) -> list[Held]:
        """What is held of each gallery; waits for nothing that is loaded meanwhile."""
        with self._lock:
            return [Held(name[0], shard.nbytes, len(shard.blocks)) for name, shard in self._shards.items()]

    @property
    def nbytes(self) -> int:
        """Bytes that all blocks take."""
        with self._lock:
            return sum(shard.nbytes for shard in self._shards.values())

    def _make_room(self, name: _Name, shard: _Shard, needed: int, wanted: bool) -> None:
        """Drop other galleries, those not asked for longest first, until this one fits; if it is wanted now."""
        with self._lock:
            others = {other: held.nbytes for other, held in self._shards.items() if other != name}
            if needed > self.limit or (not wanted and sum(others.values()) + needed > self.limit):
                shard.blocks, shard.nbytes = {}, 0  # nothing of it is served, so nothing of it keeps others out
                raise ShardTooLarge(
                    f"the gallery takes {needed >> 20:,} MiB of memory where {self.limit >> 20:,} MiB may be used: "
                    "give the matching service more with --memory, or more workers",
                    needed_bytes=needed,
                    limit_bytes=self.limit,
                )
            shard.nbytes = needed
            for other in others:
                if sum(held.nbytes for held in self._shards.values()) <= self.limit:
                    return
                del self._shards[other]


@dataclass(frozen=True)
class _Loading:
    """Reads blocks of one gallery."""

    templates: Templates
    gallery: Gallery
    evaluator: Evaluator

    def block(self, part: Part, before: _Block | None) -> _Block:
        """A block as a part names it, made from what is held of it."""
        return self._group(part, before) if part.columns == 1 else self._sealed(part)

    def _sealed(self, part: Part) -> _Block:
        found = self.templates.block(self.gallery.id, part.number, self.gallery.key_version)
        if found is None:
            raise BlockGone("a sealed block was replaced meanwhile: try again")
        slots, data = found
        if slots_digest(slots) != part.slots:
            raise TemplateDamaged("a block's list of slots is damaged: restore the record from a backup")
        return _Block(part.columns, part.slots, self.evaluator.load(self.gallery.layout.shape(part.columns), data))

    def _group(self, part: Part, before: _Block | None) -> _Block:
        wanted = np.frombuffer(part.slots, "<u4")
        held = np.zeros_like(wanted) if before is None else np.frombuffer(before.slots, "<u4")
        if ((held > 0) & (held != wanted)).any():  # sealed or erased meanwhile: take nothing over
            before, held = None, np.zeros_like(wanted)
        missing = {int(slot): place for place, slot in enumerate(wanted) if slot and not held[place]}
        found = dict(self.templates.ciphertexts(self.gallery.id, missing, self.gallery.key_version))
        if len(found) != len(missing):
            raise BlockGone("a template was erased meanwhile: try again")
        templates = {missing[slot]: data for slot, data in found.items()}
        return _Block(
            part.columns, part.slots, self.evaluator.assemble(templates, None if before is None else before.block)
        )
