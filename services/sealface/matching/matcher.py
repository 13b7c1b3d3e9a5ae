"""Probes to encrypted scores."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sealface.cipher.scheme import Evaluator, Scheme
from sealface.errors import NotFound
from sealface.matching.shard import Shard, Snapshot
from sealface.storage.evaluators import Evaluators, check_encryption
from sealface.storage.galleries import Galleries, Gallery


class SlotNotFound(NotFound):
    """A claimed slot is not, or no longer, in the gallery."""


@dataclass(frozen=True)
class Probe:
    """An encrypted probe; see `Probe` in the contract."""

    ciphertext: bytes
    key_version: str
    parameter_set: str


@dataclass(frozen=True)
class Scores:
    """Encrypted scores of a group: the result, and the slot at each position (0: none)."""

    ciphertext: bytes
    slots: list[int]


@dataclass(frozen=True)
class Search:
    """What was searched.

    Attributes:
        gallery: the gallery.
        epoch: the layout epoch.
        leads: slot -> first slot of its subject, for the slots of subjects with several templates.
        scores: computed as they are taken.
    """

    gallery: Gallery
    epoch: int
    leads: dict[int, int]
    scores: Iterator[Scores]


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

        Raises:
            GalleryNotFound, WrongKeyVersion, WrongParameterSet, MalformedCiphertext, SlotNotFound,
            TemplateDamaged: see there.
        """
        gallery, evaluator, snapshot = self._open(gallery_id, probe)
        capacity = gallery.layout.capacity
        wanted: dict[int, list[int]] = defaultdict(list)
        for slot in set(claimed):
            number, position = divmod(slot - 1, capacity)
            block = snapshot.blocks.get(number)
            if block is None or position not in block.slots:
                raise SlotNotFound("a claimed slot is not in the gallery: bring the slot table up to date")
            wanted[number].append(position)
        leads = {slot: snapshot.leads[slot] for slot in claimed if slot in snapshot.leads}
        return Search(gallery, snapshot.epoch, leads, _scores(gallery, evaluator, snapshot, wanted, probe))

    def identify(self, gallery_id: str, probe: Probe) -> Search:
        """Scores of all templates; errors as for `verify`."""
        gallery, evaluator, snapshot = self._open(gallery_id, probe)
        wanted = {number: list(block.slots) for number, block in snapshot.blocks.items()}
        scores = _scores(gallery, evaluator, snapshot, wanted, probe)
        return Search(gallery, snapshot.epoch, dict(snapshot.leads), scores)

    def _open(self, gallery_id: str, probe: Probe) -> tuple[Gallery, Evaluator, Snapshot]:
        gallery = self._galleries.get(gallery_id)
        check_encryption(gallery, probe.key_version, probe.parameter_set)
        evaluator = self._evaluators.of(gallery)
        name = (gallery.id, gallery.first_epoch)
        with self._lock:
            shard = self._shards.get(name) or Shard(self._galleries, gallery, evaluator)
            self._shards[name] = shard
            self._shards.move_to_end(name)
            while len(self._shards) > self._most_shards:
                self._shards.popitem(last=False)
        return gallery, evaluator, shard.refresh()


def _scores(
    gallery: Gallery, evaluator: Evaluator, snapshot: Snapshot, wanted: dict[int, list[int]], probe: Probe
) -> Iterator[Scores]:
    admitted = evaluator.admit_probe(probe.ciphertext)

    def score() -> Iterator[Scores]:
        for number, positions in wanted.items():
            block = snapshot.blocks[number]
            slots = [0] * gallery.layout.capacity
            for position in positions:
                slots[position] = block.slots[position]
            yield Scores(evaluator.score(block.group, admitted, positions), slots)

    return score()
