"""Seals open templates into blocks, and makes blocks without erased templates anew: on ciphertexts, in the background.

One block at a time is made beside the serving path and committed in one transaction, so a process that dies in between
has lost the work on one block and nothing else. An erased template is masked in results at once; it is physically gone
when its block was made again. Blocks that were imported whole hold templates without ciphertexts of their own: the key
service renews them, blinded, without what is erased (docs/adr/0011), or the client where that holds the key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog

from sealface.cipher.layout import Layout, Shape
from sealface.cipher.scheme import Scheme
from sealface.enrollment.asked import Ask, Asked, awaited
from sealface.enrollment.leases import Lease, LeaseLost
from sealface.enrollment.record import Record
from sealface.errors import SealfaceError
from sealface.storage.evaluators import Evaluators
from sealface.storage.galleries import BlockInfo, Census, Galleries, Gallery

_log = structlog.get_logger("sealface.sealer")
_RETRY_S = 30.0


@dataclass(frozen=True)
class _Plan:
    """The next block: made of some blocks and of the open tail; without a shape one block is renewed, or dropped."""

    replaced: tuple[BlockInfo, ...]
    tail: tuple[int, ...] = ()
    shape: Shape | None = None


class Sealer:
    """Makes blocks.

    Args:
        galleries: the record, read.
        record: the record, written.
        scheme: the cipher.
        ask: for the key service's part in renewing an imported block.
    """

    def __init__(self, galleries: Galleries, record: Record, scheme: Scheme, ask: Ask) -> None:
        self._galleries = galleries
        self._record = record
        self._ask = ask
        self._not_before: dict[str, float] = {}  # by gallery, when to ask again that could not be renewed
        self._evaluators = Evaluators(galleries, scheme)

    def due(self, gallery: Gallery) -> bool:
        """Whether there is a block to make, renew or drop."""
        return self._plan(gallery, whole=False) is not None

    def renew(self, gallery: Gallery, lease: Lease, pause: Callable[[], None], ask: Ask) -> bool:
        """Renew one imported block with the client's part; returns whether there was one to renew.

        Raises:
            LeaseLost, TemplateDamaged, MalformedCiphertext, GalleryNotFound: see there.
        """
        worst = _worst([block for block in self._galleries.blocks(gallery.id) if block.imported and block.live])
        return worst is not None and self._renew(gallery, lease, pause, worst, ask)

    def step(self, gallery: Gallery, lease: Lease, pause: Callable[[], None], whole: bool = False) -> bool:
        """Make, renew or drop one block of a gallery, if there is one; returns whether there was.

        Args:
            gallery: which.
            lease: the right to.
            pause: called now and then; what it raises gives up the block.
            whole: whether to seal an open tail that does not fill a block.

        Raises:
            LeaseLost, TemplateDamaged, GalleryNotFound: see there.
        """
        plan = self._plan(gallery, whole)
        if plan is None:
            return False
        if plan.shape is not None:
            slots = [slot for block in plan.replaced for slot in self._galleries.sealed(gallery.id, block.number)]
            slots = [*slots, *plan.tail][: plan.shape.capacity]
            return self._seal(gallery, lease, pause, plan.shape, slots, [block.number for block in plan.replaced])
        (block,) = plan.replaced
        if not block.live:
            self._record.drop_block(gallery, lease, block.number)
            return True
        try:
            return self._renew(gallery, lease, pause, block, self._ask)
        except LeaseLost:
            raise
        except SealfaceError as error:  # the key service is away, or refuses: nothing is lost, all else goes on
            self._not_before[gallery.id] = time.monotonic() + _RETRY_S
            _log.error("not renewed", reason=error.reason)
            return False

    def _plan(self, gallery: Gallery, whole: bool) -> _Plan | None:
        blocks = self._galleries.blocks(gallery.id)
        empty = next((block for block in blocks if not block.live), None)
        if empty is not None:
            return _Plan((empty,))
        count = sum(block.live for block in blocks) + self._galleries.open_count(gallery.id)
        shape = gallery.layout.best_shape(count)
        tail = self._galleries.unsealed(gallery.id, shape.capacity)
        replaced = [] if len(tail) == shape.capacity else _to_replace(blocks, shape)
        live = sum(block.live for block in replaced)
        if replaced or len(tail) == shape.capacity:
            shape = next(s for s in (shape, *gallery.layout.sealed_shapes) if s.capacity >= live)
            return _Plan(tuple(replaced), tuple(tail), shape)
        if whole and len(tail) >= gallery.layout.group.capacity:
            shape = next(s for s in gallery.layout.sealed_shapes if s.capacity >= len(tail))
            return _Plan((), tuple(tail), shape)
        return self._to_renew(gallery, blocks)  # last, because it waits for another service

    def _to_renew(self, gallery: Gallery, blocks: list[BlockInfo]) -> _Plan | None:
        """The imported block with most erased; what is erased meanwhile is taken together the next time."""
        worst = _worst([block for block in blocks if block.imported])
        if not gallery.managed or worst is None:
            return None
        if time.monotonic() < self._not_before.get(gallery.id, 0.0):
            return None
        return _Plan((worst,))

    def _seal(
        self,
        gallery: Gallery,
        lease: Lease,
        pause: Callable[[], None],
        shape: Shape,
        slots: list[int],
        replaced: list[int],
    ) -> bool:
        templates = dict(self._galleries.ciphertexts(gallery.id, slots, gallery.key_version))
        if not templates:  # all were erased since they were listed: look again
            return True
        placed = np.zeros(shape.capacity, np.uint32)
        placed[: len(templates)] = sorted(templates)  # those erased meanwhile are not there any more
        by_position = {position: templates[slot] for position, slot in enumerate(placed.tolist()) if slot}
        ciphertext = self._evaluators.of(gallery).seal(shape, by_position, pause)
        stored = self._record.seal(gallery, lease, shape.columns, placed, ciphertext, replaced)
        _log.info("sealed", templates=len(templates), columns=shape.columns, replaced=len(replaced), stored=stored)
        return stored

    def _renew(self, gallery: Gallery, lease: Lease, pause: Callable[[], None], block: BlockInfo, ask: Ask) -> bool:
        found = self._galleries.block(gallery.id, block.number, gallery.key_version)
        held = self._galleries.sealed(gallery.id, block.number)
        if found is None or not held:  # replaced, or all erased, since it was listed: look again
            return True
        slots, ciphertext = found
        live = np.isin(slots, held)
        cleared = (slots > 0) & ~live
        shape, evaluator = gallery.layout.shape(block.columns), self._evaluators.of(gallery)
        blinded, blinding = evaluator.blind(shape, ciphertext)
        answer = awaited(ask(Asked(gallery.key_version, block.columns, blinded, cleared)), pause)
        renewed = evaluator.unblind(shape, answer, blinding, cleared)
        placed = np.where(live, slots, 0)
        stored = self._record.seal(gallery, lease, block.columns, placed, renewed, [block.number], imported=True)
        _log.info("renewed", templates=int(live.sum()), cleared=int(cleared.sum()), stored=stored)
        return stored


def backlog(layout: Layout, census: Census) -> int:
    """How many open templates fill blocks that are to be made."""
    capacity = layout.best_shape(census.sealed + census.open).capacity
    return census.open - census.open % capacity


def _worst(blocks: list[BlockInfo]) -> BlockInfo | None:
    """The one with most erased, if any has."""
    worst = max(blocks, key=lambda block: block.erased, default=None)
    return worst if worst is not None and worst.erased else None


def _to_replace(blocks: list[BlockInfo], shape: Shape) -> list[BlockInfo]:
    """Blocks to make again as one: the one with most erased, or smaller ones that together fill one of this shape."""
    own = [block for block in blocks if not block.imported]
    worst = _worst(own)
    if worst is not None:
        return [worst]
    chosen: list[BlockInfo] = []
    for block in own:
        if block.columns < shape.columns and sum(b.live for b in chosen) + block.live <= shape.capacity:
            chosen.append(block)
    return chosen if sum(block.live for block in chosen) > shape.capacity // 2 else []
