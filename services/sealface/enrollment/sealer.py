"""Seals open templates into blocks, and makes blocks without erased templates anew: on ciphertexts, in the background.

One block at a time is made beside the serving path and committed in one transaction, so a process that dies in between
has lost the work on one block and nothing else. An erased template is masked in results at once; it is physically gone
when its block was made again. Blocks that were imported whole hold templates without ciphertexts of their own: the key
service renews them, blinded, without what is erased (docs/adr/0011). Where it does not hold the key they are dropped
when all of their templates are erased.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

import numpy as np
import structlog
from numpy.typing import NDArray

from sealface.cipher.layout import Shape
from sealface.cipher.scheme import Scheme
from sealface.enrollment.record import Record
from sealface.errors import SealfaceError
from sealface.storage.evaluators import Evaluators
from sealface.storage.galleries import BlockInfo, Galleries, Gallery

_log = structlog.get_logger("sealface.sealer")
_NICE = 10
_PAGE = 100
_RETRY_S = 30.0
_FORGET_S = 1.0
_LOOK_UP_S = 0.2

Renew = Callable[[str, int, NDArray[np.bool_], bytes], Future[bytes]]
"""Asks the key holder: key version, columns, positions to clear (capacity,), the blinded block."""


class _Stopped(Exception):
    """The service stops; what was begun is begun again when it runs."""


class Sealer:
    """Keeps galleries sealed.

    Args:
        galleries: the record, read.
        record: the record, written.
        scheme: the cipher.
        renew: the key service's part in renewing an imported block.
    """

    def __init__(self, galleries: Galleries, record: Record, scheme: Scheme, renew: Renew) -> None:
        self._galleries = galleries
        self._record = record
        self._ask = renew
        self._not_before: dict[str, float] = {}  # by gallery, when to ask again that could not be renewed
        self._evaluators = Evaluators(galleries, scheme)
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)

    def start(self) -> None:
        """Work in the background, on what is there and on what comes."""
        self._changed.set()
        self._thread.start()

    def wake(self) -> None:
        """Look again: the record has changed."""
        self._changed.set()

    def stop(self) -> None:
        """Stop; a block that is being made is given up."""
        self._stopping.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()

    def step(self, gallery: Gallery) -> bool:
        """Make, renew or drop one block of a gallery, if there is one; returns whether there was."""
        blocks = self._galleries.blocks(gallery.id)
        empty = next((block for block in blocks if not block.live), None)
        if empty is not None:
            self._record.drop_block(gallery, empty.number)
            return True
        shape = gallery.layout.best_shape(self._galleries.count(gallery.id))
        tail = self._galleries.unsealed(gallery.id, shape.capacity)
        replaced = [] if len(tail) == shape.capacity else _to_replace(blocks, shape)
        if not replaced and len(tail) < shape.capacity:
            return self._renew_worst(gallery, blocks)  # last, because it waits for another service
        live = sum(block.live for block in replaced)
        shape = next(s for s in (shape, *gallery.layout.sealed_shapes) if s.capacity >= live)
        slots = [slot for block in replaced for slot in self._galleries.sealed(gallery.id, block.number)]
        slots = (slots + tail)[: shape.capacity]
        return self._seal(gallery, shape, slots, [block.number for block in replaced])

    def _seal(self, gallery: Gallery, shape: Shape, slots: list[int], replaced: list[int]) -> bool:
        templates = dict(self._galleries.ciphertexts(gallery.id, slots))
        if not templates:  # all were erased since they were listed: look again
            return True
        placed = np.zeros(shape.capacity, np.uint32)
        placed[: len(templates)] = sorted(templates)  # those erased meanwhile are not there any more
        by_position = {position: templates[slot] for position, slot in enumerate(placed.tolist()) if slot}
        ciphertext = self._evaluators.of(gallery).seal(shape, by_position, self._pause)
        stored = self._record.seal(gallery, shape.columns, placed, ciphertext, replaced)
        _log.info("sealed", templates=len(templates), columns=shape.columns, replaced=len(replaced), stored=stored)
        return stored

    def _renew_worst(self, gallery: Gallery, blocks: list[BlockInfo]) -> bool:
        """Renew the imported block with most erased; what is erased meanwhile is taken together the next time."""
        worst = max((block for block in blocks if block.imported), key=lambda block: block.erased, default=None)
        if not gallery.managed or worst is None or not worst.erased:
            return False
        if time.monotonic() < self._not_before.get(gallery.id, 0.0):
            return False
        try:
            return self._renew(gallery, worst)
        except SealfaceError as error:  # the key service is away, or refuses: nothing is lost, all else goes on
            self._not_before[gallery.id] = time.monotonic() + _RETRY_S
            _log.error("not renewed", reason=error.reason)
            return False

    def _renew(self, gallery: Gallery, block: BlockInfo) -> bool:
        found, held = self._galleries.block(gallery.id, block.number), self._galleries.sealed(gallery.id, block.number)
        if found is None or not held:  # replaced, or all erased, since it was listed: look again
            return True
        slots, ciphertext = found
        live = np.isin(slots, held)
        cleared = (slots > 0) & ~live
        shape, evaluator = gallery.layout.shape(block.columns), self._evaluators.of(gallery)
        blinded, blinding = evaluator.blind(shape, ciphertext)
        answer = self._awaited(self._ask(gallery.key_version, block.columns, cleared, blinded))
        renewed = evaluator.unblind(shape, answer, blinding, cleared)
        placed = np.where(live, slots, 0)
        stored = self._record.seal(gallery, block.columns, placed, renewed, [block.number], imported=True)
        _log.info("renewed", templates=int(live.sum()), cleared=int(cleared.sum()), stored=stored)
        return stored

    def _awaited(self, answer: Future[bytes]) -> bytes:
        try:
            while not wait([answer], _LOOK_UP_S).done:
                self._pause()
            return answer.result()
        finally:
            answer.cancel()

    def _pause(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # on Linux a thread has its own
        while not self._stopping.is_set():
            self._changed.wait(_RETRY_S if self._not_before else None)
            self._changed.clear()
            now = time.monotonic()
            self._not_before = {gallery: at for gallery, at in self._not_before.items() if at > now}
            try:
                for gallery in self._all():
                    self._seal_all(gallery)
                if not self._record.forget() and not self._stopping.wait(_FORGET_S):
                    self._changed.set()
            except _Stopped:
                return
            except Exception as error:
                _log.error("not sealed", error=type(error).__name__)
                if not self._stopping.wait(_RETRY_S):
                    self._changed.set()

    def _seal_all(self, gallery: Gallery) -> None:
        try:
            while not self._stopping.is_set() and self.step(gallery):
                pass
        except SealfaceError as error:  # a damaged template, or deleted meanwhile; the others go on
            _log.error("not sealed", reason=error.reason)

    def _all(self) -> Iterator[Gallery]:
        after = ""
        while page := self._galleries.page(after, _PAGE):
            yield from page
            after = page[-1].id


def _to_replace(blocks: list[BlockInfo], shape: Shape) -> list[BlockInfo]:
    """Blocks to make again as one: the one with most erased, or smaller ones that together fill one of this shape."""
    own = [block for block in blocks if not block.imported]
    worst = max(own, key=lambda block: block.erased, default=None)
    if worst is not None and worst.erased:
        return [worst]
    chosen: list[BlockInfo] = []
    for block in own:
        if block.columns < shape.columns and sum(b.live for b in chosen) + block.live <= shape.capacity:
            chosen.append(block)
    return chosen if sum(block.live for block in chosen) > shape.capacity // 2 else []
