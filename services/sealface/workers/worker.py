"""A task to encrypted scores."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from sealface.cipher.scheme import Scheme
from sealface.storage.cache import Cache
from sealface.storage.evaluators import Evaluators
from sealface.storage.galleries import Galleries, GalleryNotFound
from sealface.workers.reserve import Reserve
from sealface.workers.scan import Scanner
from sealface.workers.store import Store, Templates
from sealface.workers.task import BlockGone, Task, Tile, Timing
from sealface.workers.usage import Cached, Usage


@dataclass(frozen=True)
class Pass:
    """A task whose blocks are in memory.

    Attributes:
        tiles: scores, computed as they are taken.
        timing: filled in when all are taken.
    """

    tiles: Generator[Tile]
    timing: Timing = field(default_factory=Timing)


class Worker:
    """Holds blocks of galleries and scores probes on them. Safe for several threads.

    Args:
        galleries: the record.
        scheme: the cipher.
        threads: how many score at once.
        memory: bytes that the blocks of all galleries may take.
        templates: where ciphertexts are loaded from; the record if none is named.
    """

    def __init__(
        self,
        galleries: Galleries,
        scheme: Scheme,
        threads: int = 1,
        memory: int = 1 << 62,
        templates: Templates | None = None,
    ) -> None:
        self._galleries = galleries
        self._evaluators = Evaluators(galleries, scheme, threads)
        self._scanner = Scanner(threads)
        self._cache = templates if isinstance(templates, Cache) else None
        self.store = Store(templates or galleries, memory)
        self.reserve = Reserve()

    def usage(self) -> Usage:
        """What it holds, and what it has had from its cache."""
        cache = self._cache
        cached = None if cache is None else Cached(cache.hits, cache.misses, cache.healed, cache.errors)
        return Usage(self.store.limit, tuple(self.store.shards()), cached)

    def begin(self, task: Task) -> Pass:
        """Load what a task needs.

        Raises:
            GalleryNotFound, BlockGone, TemplateDamaged, ShardTooLarge, MalformedCiphertext: see there.
        """
        try:
            gallery = self._galleries.get(task.gallery)
        except GalleryNotFound:
            self.store.forget(task.gallery)
            raise
        if (gallery.first_epoch, gallery.key_version) != (task.first_epoch, task.key_version):
            raise BlockGone("the gallery was made anew, or moved to another key version, meanwhile: try again")
        evaluator = self._evaluators.of(gallery)
        blocks = self.store.load(gallery, evaluator, task.parts, task.whole)
        if not task.probes or not blocks:
            return Pass(_nothing())
        probes = [evaluator.admit_probe(probe, task.probe_seed(i)) for i, probe in enumerate(task.probes)]
        timing, seeds = Timing(), _seeds(task)

        def tiles() -> Generator[Tile]:
            with self.reserve.waiting():
                yield from self._scanner.scan(evaluator, blocks, probes, timing, seeds, task.deepest)

        if seeds is None:
            self.reserve.want(evaluator, len(blocks) * len(probes))
        return Pass(tiles(), timing)


def _seeds(task: Task) -> list[list[bytes]] | None:
    """Of each probe's result on each part that is scored, where it is to be repeated."""
    if not task.seed:
        return None
    scored = [part for part in task.parts if part.requested is not None]
    found = [[task.result_seed(number, part) for part in scored] for number in range(len(task.probes))]
    return [[seed for seed in of_probe if seed is not None] for of_probe in found]


def _nothing() -> Generator[Tile]:
    yield from ()
