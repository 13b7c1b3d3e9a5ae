"""An erasure seen through to the last byte, and what was looked at after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from sealface.enrollment.leases import Lease
from sealface.enrollment.operations import Operation, Operations
from sealface.enrollment.record import Record
from sealface.enrollment.sealer import Sealer
from sealface.storage.entries import CacheUnavailable
from sealface.storage.galleries import Galleries, Gallery
from sealface.storage.sweep import Sweep


@dataclass(frozen=True)
class Check:
    """A place where something could be left of erased templates.

    Attributes:
        place: `templates`, `blocks`, `log` or `cache`.
        checked: how many entries were looked at.
        found: how many of them hold something.
    """

    place: str
    checked: int
    found: int


class Eraser:
    """Follows erased templates until nothing of them is left.

    Args:
        galleries: the record, read.
        record: the record, written.
        operations: where it is noted how far an erasure is.
        sealer: makes blocks again without them.
        sweep: of the cache, if there is one.
    """

    def __init__(
        self, galleries: Galleries, record: Record, operations: Operations, sealer: Sealer, sweep: Sweep | None = None
    ) -> None:
        self._galleries = galleries
        self._record = record
        self._operations = operations
        self._sealer = sealer
        self._sweep = sweep

    def run(self, operation: Operation, gallery: Gallery, lease: Lease, pause: Callable[[], None]) -> bool:
        """Go on with an erasure, until it is done or something is waited for; whether to go on soon.

        That may be a reader of the database, soon, and for longer Redis, the key service, or the client with the key.

        Raises:
            LeaseLost: another process goes on with it.
        """
        slots = operation.detail["slots"]
        total = max(operation.total, len(self._galleries.blocks_of(gallery.id, slots)))
        while left := self._galleries.blocks_of(gallery.id, slots):
            self._operations.progress(operation, lease, total - len(left), total)
            if not self._sealer.step(gallery, lease, pause):
                break
        if left:
            return False
        if not self._record.forget(again=True):
            return True
        try:
            cached = self._cached(gallery, slots)
        except CacheUnavailable:  # it may come back with what it held
            return False
        checks = [
            Check("templates", self._galleries.count(gallery.id), len(self._galleries.homes(gallery.id, slots))),
            Check("blocks", len(self._galleries.blocks(gallery.id)), len(self._galleries.blocks_of(gallery.id, slots))),
            *([Check("log", 1, 0)] if self._record.keeps_log else []),  # emptied just now
            *cached,
        ]
        self._operations.finish(operation, lease, total, checks=[asdict(check) for check in checks])
        return False

    def _cached(self, gallery: Gallery, slots: list[int]) -> list[Check]:
        if self._sweep is None:
            return []
        self._sweep.drop_stale()
        gone = self._galleries.gone_blocks(gallery.id)
        return [Check("cache", len(slots) + len(gone), len(self._sweep.holds(gallery.id, slots, gone)))]
