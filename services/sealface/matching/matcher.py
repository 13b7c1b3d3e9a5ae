"""Probes to encrypted scores."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from sealface.cipher.scheme import Evaluator, Scheme
from sealface.errors import NotFound
from sealface.matching.shard import Block, Shard
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
    """What was searched.

    Attributes:
        gallery: the gallery.
        epoch: the layout epoch.
        leads: slot -> first slot of its subject, for the slots of subjects with several templates.
        results: computed as they are taken.
    """

    gallery: Gallery
    epoch: int
    leads: dict[int, int]
    results: Iterator[Result]


class Matcher:
    """Scores probes against galleries. Safe for several threads.

    Args:
        galleries: the record.
        scheme: the cipher.
        most_shards: galleries held in memory.
    """

    def __init__(self, galleries: Galleries, scheme: Scheme, most_shards: int = 64) -> None:
        self._galleries = galleries
        self._evaluators = Evaluators(galleries, scheme)
        self._most_shards = most_shards
        self._shards: OrderedDict[tuple[str, int], Shard] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, gallery_id: str, probe: Probe, claimed: Collection[int]) -> Search:
        """Scores of the claimed slots and of nothing else.

        They are read from the record and scored in groups of their own: no other template adds to the noise that
        the key holder sees, and a gallery need not be in memory for a verification.

        Raises:
            GalleryNotFound, WrongKeyVersion, WrongParameterSet, MalformedCiphertext, SlotNotFound,
            TemplateDamaged: see there.
        """
        gallery, evaluator = self._gallery(gallery_id, probe)
        templates = dict(self._galleries.ciphertexts(gallery.id, claimed))
        if len(templates) != len(set(claimed)):
            raise SlotNotFound("a claimed slot is not in the gallery: bring the slot table up to date")
        blocks = [
            Block(evaluator.assemble(dict(enumerate(templates[slot] for slot in part))), dict(enumerate(part)))
            for part in _batched(sorted(templates), gallery.layout.capacity)
        ]
        return Search(gallery, gallery.epoch, {}, _results(gallery, evaluator, blocks, probe))

    def identify(self, gallery_id: str, probe: Probe) -> Search:
        """Scores of all templates; errors as for `verify`."""
        gallery, evaluator = self._gallery(gallery_id, probe)
        snapshot = self._shard(gallery, evaluator).refresh()
        results = _results(gallery, evaluator, snapshot.blocks.values(), probe)
        return Search(gallery, snapshot.epoch, dict(snapshot.leads), results)

    def _gallery(self, gallery_id: str, probe: Probe) -> tuple[Gallery, Evaluator]:
        try:
            gallery = self._galleries.get(gallery_id)
        except GalleryNotFound:
            self._forget(gallery_id)
            raise
        check_encryption(gallery, probe.key_version, probe.parameter_set)
        return gallery, self._evaluators.of(gallery)

    def _forget(self, gallery_id: str) -> None:
        with self._lock:
            for name in [name for name in self._shards if name[0] == gallery_id]:
                del self._shards[name]

    def _shard(self, gallery: Gallery, evaluator: Evaluator) -> Shard:
        name = (gallery.id, gallery.first_epoch)
        with self._lock:
            shard = self._shards.get(name) or Shard(self._galleries, gallery, evaluator)
            self._shards[name] = shard
            self._shards.move_to_end(name)
            while len(self._shards) > self._most_shards:
                self._shards.popitem(last=False)
        return shard


def _results(gallery: Gallery, evaluator: Evaluator, blocks: Iterable[Block], probe: Probe) -> Iterator[Result]:
    admitted = evaluator.admit_probe(probe.ciphertext)

    def score() -> Iterator[Result]:
        for block in blocks:
            slots = [0] * gallery.layout.capacity
            for position, slot in block.slots.items():
                slots[position] = slot
            yield Result(evaluator.score(block.group, admitted, block.slots), slots)

    return score()


def _batched(slots: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    remaining = iter(slots)
    while part := tuple(islice(remaining, size)):
        yield part
