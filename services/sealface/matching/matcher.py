"""Probes to encrypted scores."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from sealface.cipher.scheme import Scheme
from sealface.errors import NotFound, SealfaceError
from sealface.matching.shard import Block, GalleryChanging, Part, Shard, Snapshot
from sealface.protocol.scores import Result
from sealface.storage.evaluators import check_encryption
from sealface.storage.galleries import Galleries, Gallery, GalleryNotFound
from sealface.workers.pool import Gathering, WorkerPool
from sealface.workers.task import BlockGone, Task, Timing

LONGEST_S = 60.0
"""How long a search may take whose caller names no deadline."""
_ATTEMPTS = 5
_FORGET_S = 1.0
_NO_LINKS = np.empty((0, 2), np.uint32)


class SlotNotFound(NotFound):
    """A claimed slot is not, or no longer, in the gallery."""


@dataclass(frozen=True)
class Probe:
    """An encrypted probe; see `Probe` in the contract."""

    ciphertext: bytes
    key_version: str
    parameter_set: str


@dataclass(frozen=True)
class Residue:
    """What workers hold of erased templates.

    Attributes:
        workers: how many were asked.
        blocks: how many they hold of the gallery.
        found: how many of these hold an erased template, or are not in the record.
    """

    workers: int
    blocks: int
    found: int


class Search:
    """What is searched, for one or more probes: all blocks are in memory, and their scores under way.

    Attributes:
        gallery: the gallery.
        epoch: the layout epoch.
        links: (n, 2) slot and first slot of its subject, for subjects with several templates.
    """

    def __init__(
        self, gallery: Gallery, found: Snapshot, task: Task, gathering: Gathering, done: Callable[[Search], None]
    ) -> None:
        self.gallery, self.epoch, self.links = gallery, found.epoch, found.links
        self._parts, self._task, self._gathering, self._done = found.parts, task, gathering, done

    def results(self) -> Generator[list[list[Result]]]:
        """Results of some blocks, by probe, and so on until all are there. May be taken once."""
        try:
            for tile in self._gathering:
                parts = [self._parts[place] for place in tile.places]
                yield [
                    [Result(part.shape.columns, data, part.slots) for data, part in zip(of_probe, parts, strict=True)]
                    for of_probe in tile.results
                ]
            self._done(self)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Want no more of it."""
        self._gathering.cancel()

    def of(self, number: int) -> Task | None:
        """What the results of one probe are computed from, but for what is given up; None if it cannot be repeated."""
        if not self._task.seed:
            return None
        parts = tuple(part for place, part in enumerate(self._task.parts) if place not in self._gathering.given_up)
        return replace(self._task, probes=self._task.probes[number : number + 1], parts=parts)

    @property
    def whole(self) -> bool:
        """Whether all of the gallery is searched, and not a claim verified."""
        return self._task.whole

    @property
    def scored(self) -> int:
        """Templates that were compared with probes so far, counted for each probe."""
        return self._gathering.scored

    @property
    def share(self) -> float:
        """How much of the gallery was searched, 0 to 1, when all results are taken."""
        return self._gathering.share

    @property
    def timing(self) -> Timing:
        """What it took, when all results are taken."""
        return self._gathering.timing


class Matcher:
    """Scores probes against galleries. Safe for several threads.

    Args:
        galleries: the record.
        scheme: the cipher.
        pool: the workers.
        repeatable: whether the randomness of searches comes from a seed, so that an auditor can compute them again.
        done: told of a search when all its results were taken.
    """

    def __init__(
        self,
        galleries: Galleries,
        scheme: Scheme,
        pool: WorkerPool,
        repeatable: bool = False,
        done: Callable[[Search], None] = lambda search: None,
    ) -> None:
        self._galleries = galleries
        self._scheme = scheme
        self._pool = pool
        self._repeatable = repeatable
        self._done = done
        self._shards: dict[tuple[str, int], Shard] = {}
        self._lock = threading.Lock()

    def verify(self, gallery_id: str, probe: Probe, claimed: Collection[int], timeout_s: float = LONGEST_S) -> Search:
        """Scores of the claimed slots and of nothing else.

        They are read from the record and scored in groups of their own: no other template adds to the noise that
        the key holder sees, and a gallery need not be in memory for a verification. Only a template that was imported
        with a whole block is scored there, and all others of the block are masked.

        Raises:
            GalleryNotFound, WrongKeyVersion, WrongParameterSet, MalformedCiphertext, SlotNotFound,
            TemplateDamaged, ShardTooLarge, SearchIncomplete: see there.
        """
        gallery = self._gallery(gallery_id, probe)
        return self._search(gallery, lambda found: self._claimed(found, set(claimed)), [probe], timeout_s)

    def identify(
        self, gallery_id: str, probes: Sequence[Probe], timeout_s: float = LONGEST_S, partial: bool = False
    ) -> Search:
        """Scores of all templates in one pass; errors as for `verify`.

        Args:
            gallery_id: the gallery.
            probes: at least one.
            timeout_s: how long it may take.
            partial: whether to go on without blocks that cannot be scored in time.
        """
        gallery = self._gallery(gallery_id, *probes)
        return self._search(gallery, self._whole, probes, timeout_s, whole=True, partial=partial)

    def hold(self, gallery_id: str, timeout_s: float = LONGEST_S) -> None:
        """Have a gallery in memory as it is now, and nothing of it that is erased; errors as for `identify`."""
        gallery = self._gallery(gallery_id)
        self._search(gallery, self._whole, [], timeout_s, whole=True)

    def check_erasure(self, gallery_id: str, slots: Sequence[int], timeout_s: float = LONGEST_S) -> Residue:
        """Whether workers hold some slots in memory, when all have caught up with the record; errors as for `hold`."""
        gallery = self._gallery(gallery_id)
        try:
            self.hold(gallery_id, timeout_s)
        except SealfaceError as error:
            if error.reason != "SHARD_TOO_LARGE":  # then they hold none of it
                raise
        current = {part.block.identity: part.block for part in self._whole(gallery).parts}
        held = self._pool.held(gallery_id, timeout_s)
        identities = [part.slots for parts in held for part in parts]
        found = sum(
            identity not in current or bool(np.isin(current[identity].slots, slots).any()) for identity in identities
        )
        return Residue(len(held), len(identities), found)

    def stale(self) -> list[str]:
        """Ids of galleries that were searched, and have changed or are deleted since."""
        with self._lock:
            held = dict(self._shards)
        return [name for (name, first), shard in held.items() if self._epochs(name) != (first, shard.epoch)]

    def _epochs(self, gallery_id: str) -> tuple[int, int]:
        try:
            return self._galleries.epochs(gallery_id)
        except GalleryNotFound:
            return -1, -1

    def _search(
        self,
        gallery: Gallery,
        look: Callable[[Gallery], Snapshot],
        probes: Sequence[Probe],
        timeout_s: float,
        whole: bool = False,
        partial: bool = False,
    ) -> Search:
        deadline = time.monotonic() + timeout_s
        for _ in range(_ATTEMPTS):
            try:
                found = look(gallery)
                task = self._task(gallery, found, probes, whole)
                gathering = self._pool.begin(task, deadline - time.monotonic(), partial)
                return Search(gallery, found, task, gathering, self._done)
            except BlockGone:  # replaced since it was looked for: its templates lie elsewhere, or under another key
                gallery = self._gallery(gallery.id, *probes)
        raise GalleryChanging("the gallery changes faster than it is searched: try again")

    def _task(self, gallery: Gallery, found: Snapshot, probes: Sequence[Probe], whole: bool) -> Task:
        task = Task(
            gallery.id,
            gallery.first_epoch,
            gallery.key_version,
            tuple(probe.ciphertext for probe in probes),
            tuple(part.wanted if probes else replace(part.wanted, requested=None) for part in found.parts),
            whole,
        )
        if not (self._repeatable and probes):
            return task
        deepest = max((part.columns for part in task.parts), default=1)
        return replace(task, seed=os.urandom(32), deepest=deepest)

    def _claimed(self, gallery: Gallery, claimed: set[int]) -> Snapshot:
        """Groups of the claimed slots alone, and of those without ciphertexts of their own the blocks."""
        homes = self._galleries.homes(gallery.id, claimed)
        if len(homes) != len(claimed):
            raise SlotNotFound("a claimed slot is not in the gallery: bring the slot table up to date")
        group = gallery.layout.group
        own = sorted(slot for slot, block in homes.items() if block is None)
        parts = []
        for start in range(0, len(own), group.capacity):
            slots = np.zeros(group.capacity, np.uint32)
            batch = own[start : start + group.capacity]
            slots[: len(batch)] = batch
            parts.append(Part(Block(group, 0, slots), slots))
        if len(own) < len(homes):
            parts += _only(self._whole(gallery), sorted(homes.keys() - set(own)))
        return Snapshot(gallery.epoch, tuple(parts), _NO_LINKS)

    def _whole(self, gallery: Gallery) -> Snapshot:
        return self._shard(gallery).refresh()

    def _gallery(self, gallery_id: str, *probes: Probe) -> Gallery:
        try:
            gallery = self._galleries.get(gallery_id)
        except GalleryNotFound:
            self._forget(gallery_id)
            raise
        for probe in probes:
            check_encryption(gallery, probe.key_version, probe.parameter_set)
            self._scheme.check_probe(gallery.layout, probe.ciphertext)
        return gallery

    def _forget(self, gallery_id: str) -> None:
        with self._lock:
            held = [name for name in self._shards if name[0] == gallery_id]
            for name in held:
                del self._shards[name]
        if held:
            with suppress(SealfaceError):  # a worker that does not find it drops it
                self._pool.begin(Task(gallery_id, held[0][1], "", (), (), whole=True), _FORGET_S)

    def _shard(self, gallery: Gallery) -> Shard:
        name = (gallery.id, gallery.first_epoch)
        with self._lock:
            for older in [other for other in self._shards if other[0] == gallery.id and other != name]:
                del self._shards[older]
            return self._shards.setdefault(name, Shard(self._galleries, gallery))


def _only(snapshot: Snapshot, slots: Sequence[int]) -> list[Part]:
    """The parts in which some slots lie, with no others asked for.

    Raises:
        SlotNotFound: one is in none.
    """
    found = []
    for part in snapshot.parts:
        asked = np.isin(part.slots, slots)
        if asked.any():
            found.append(Part(part.block, np.where(asked, part.slots, 0)))
    if sum(np.count_nonzero(part.slots) for part in found) != len(slots):
        raise SlotNotFound("a claimed slot is not in the gallery: bring the slot table up to date")
    return found
