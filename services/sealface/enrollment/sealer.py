"""Seals open templates into blocks, and makes blocks without erased templates anew: on ciphertexts, in the background.

One block at a time is made beside the serving path and committed in one transaction, so a process that dies in between
has lost the work on one block and nothing else. An erased template is masked in results at once; it is physically gone
when its block was made again. Blocks that were imported whole hold templates without ciphertexts of their own: they
cannot be made again, and are dropped when all of theirs are erased.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import structlog

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


class _Stopped(Exception):
    """The service stops; what was begun is begun again when it runs."""


class Sealer:
    """Keeps galleries sealed.

    Args:
        galleries: the record, read.
        record: the record, written.
        scheme: the cipher.
    """

    def __init__(self, galleries: Galleries, record: Record, scheme: Scheme) -> None:
        self._galleries = galleries
        self._record = record
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
        """Make or drop one block of a gallery, if there is one to make or drop; returns whether there was."""
        blocks = self._galleries.blocks(gallery.id)
        empty = next((block for block in blocks if not block.live), None)
        if empty is not None:
            self._record.drop_block(gallery, empty.number)
            return True
        shape = gallery.layout.best_shape(self._galleries.count(gallery.id))
        tail = self._galleries.unsealed(gallery.id, shape.capacity)
        replaced = [] if len(tail) == shape.capacity else _to_replace(blocks, shape)
        if not replaced and len(tail) < shape.capacity:
            return False
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

    def _pause(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # on Linux a thread has its own
        while not self._stopping.is_set():
            self._changed.wait()
            self._changed.clear()
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
