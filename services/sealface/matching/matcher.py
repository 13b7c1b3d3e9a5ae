"""Probes to encrypted scores."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.scheme import Evaluator, Scheme
from sealface.errors import NotFound
from sealface.matching.reserve import Reserve
from sealface.matching.scan import Scanner, Timing
from sealface.matching.shard import Part, Shard, Snapshot
from sealface.protocol.scores import Result
from sealface.storage.evaluators import Evaluators, check_encryption
from sealface.storage.galleries import Galleries, Gallery, GalleryNotFound


class SlotNotFound(NotFound):
    """A claimed slot is not, or no longer, in the gallery."""


@dataclass(frozen=True)
class Probe:
    """An encrypted probe; see `Probe` in the contract."""

    ciphertext: bytes
    key_version: str
    parameter_set: str


@dataclass(frozen=True)
class Search:
    """What is searched, for one or more probes.

    Attributes:
        gallery: the gallery.
        epoch: the layout epoch.
        links: (n, 2) slot and first slot of its subject, for subjects with several templates.
        results: by probe, computed as they are taken.
        timing: filled in when all are taken.
    """

    gallery: Gallery
    epoch: int
    links: NDArray[np.uint32]
    results: Generator[list[list[Result]]]
    timing: Timing = field(default_factory=Timing)


class Matcher:
    """Scores probes against galleries. Safe for several threads.

    Args:
        galleries: the record.
        scheme: the cipher.
        threads: how many score at once.
        memory: bytes that the blocks of all galleries may take.
    """

    def __init__(self, galleries: Galleries, scheme: Scheme, threads: int = 1, memory: int = 1 << 62) -> None:
        self._galleries = galleries
        self._evaluators = Evaluators(galleries, scheme, threads)
        self._scanner = Scanner(threads)
        self._memory = memory
        self._shards: OrderedDict[tuple[str, int], Shard] = OrderedDict()
        self._lock = threading.Lock()
        self.reserve = Reserve()

    def verify(self, gallery_id: str, probe: Probe, claimed: Collection[int]) -> Search:
        """Scores of the claimed slots and of nothing else.

        They are read from the record and scored in groups of their own: no other template adds to the noise that
        the key holder sees, and a gallery need not be in memory for a verification. Only a template that was imported
        with a whole block is scored there, and all others of the block are masked.

        Raises:
            GalleryNotFound, WrongKeyVersion, WrongParameterSet, MalformedCiphertext, SlotNotFound,
            TemplateDamaged, ShardTooLarge: see there.
        """
        gallery, evaluator = self._gallery(gallery_id, probe)
        templates = dict(self._galleries.ciphertexts(gallery.id, claimed))
        elsewhere = self._galleries.homes(gallery.id, set(claimed) - templates.keys())
        if len(templates) + len(elsewhere) != len(set(claimed)):
            raise SlotNotFound("a claimed slot is not in the gallery: bring the slot table up to date")
        group = gallery.layout.group
        parts = []
        for batch in _batched(sorted(templates), group.capacity):
            slots = np.zeros(group.capacity, np.uint32)
            slots[: len(batch)] = batch
            parts.append(Part(group, evaluator.assemble({i: templates[slot] for i, slot in enumerate(batch)}), slots))
        if elsewhere:
            parts += _only(self._shard(gallery, evaluator), list(elsewhere))
        return self._search(gallery, evaluator, Snapshot(gallery.epoch, tuple(parts), _NO_LINKS), [probe])

    def identify(self, gallery_id: str, probes: Sequence[Probe]) -> Search:
        """Scores of all templates in one pass; errors as for `verify`."""
        gallery, evaluator = self._gallery(gallery_id, *probes)
        return self._search(gallery, evaluator, self._shard(gallery, evaluator), probes)

    def _search(self, gallery: Gallery, evaluator: Evaluator, found: Snapshot, probes: Sequence[Probe]) -> Search:
        admitted = [evaluator.admit_probe(probe.ciphertext) for probe in probes]
        timing = Timing()

        def results() -> Generator[list[list[Result]]]:
            with self.reserve.waiting():
                yield from self._scanner.scan(evaluator, found.parts, admitted, timing)

        self.reserve.want(evaluator, len(found.parts) * len(probes))
        return Search(gallery, found.epoch, found.links, results(), timing)

    def _gallery(self, gallery_id: str, *probes: Probe) -> tuple[Gallery, Evaluator]:
        try:
            gallery = self._galleries.get(gallery_id)
        except GalleryNotFound:
            self._forget(gallery_id)
            raise
        for probe in probes:
            check_encryption(gallery, probe.key_version, probe.parameter_set)
        return gallery, self._evaluators.of(gallery)

    def _forget(self, gallery_id: str) -> None:
        with self._lock:
            for name in [name for name in self._shards if name[0] == gallery_id]:
                del self._shards[name]

    def _shard(self, gallery: Gallery, evaluator: Evaluator) -> Snapshot:
        """The gallery as it is now; galleries that were not searched for longest make room for it."""
        name = (gallery.id, gallery.first_epoch)
        with self._lock:
            if name not in self._shards:
                room = partial(self._make_room, name)
                self._shards[name] = Shard(self._galleries, gallery, evaluator, self._memory, room)
            self._shards.move_to_end(name)
            shard = self._shards[name]
        return shard.refresh()

    def _exists(self, gallery_id: str, first_epoch: int) -> bool:
        try:
            return self._galleries.epochs(gallery_id)[0] == first_epoch
        except GalleryNotFound:
            return False

    def _make_room(self, name: tuple[str, int], needed: int) -> None:
        """Drop galleries that are deleted, then those that were not searched for longest, until the rest fits."""
        with self._lock:
            held = list(self._shards)
        gone = [other for other in held if not self._exists(*other)]
        with self._lock:
            for other in gone:
                self._shards.pop(other, None)
            for other in list(self._shards):
                others = sum(shard.nbytes for key, shard in self._shards.items() if key != name)
                if others + needed <= self._memory:
                    return
                if other != name:
                    del self._shards[other]


_NO_LINKS = np.empty((0, 2), np.uint32)


def _only(snapshot: Snapshot, slots: Sequence[int]) -> list[Part]:
    """The parts in which some slots lie, with no others asked for.

    Raises:
        SlotNotFound: one is in none.
    """
    found = []
    for part in snapshot.parts:
        asked = np.isin(part.slots, slots)
        if asked.any():
            found.append(Part(part.shape, part.block, np.where(asked, part.slots, 0)))
    if sum(np.count_nonzero(part.slots) for part in found) != len(slots):
        raise SlotNotFound("a claimed slot is not in the gallery: bring the slot table up to date")
    return found


def _batched(slots: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    remaining = iter(slots)
    while part := tuple(islice(remaining, size)):
        yield part
