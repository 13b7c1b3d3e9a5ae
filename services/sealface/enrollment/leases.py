"""One process at a time works on a gallery in the background, and what an earlier one still writes is refused.

A holder counts up a beat; another process takes over when it has watched the same beat for a while by its own clock, so
no clocks are compared. Each holder has a number of its own, the fence: a write of the background carries it, and is
refused in its transaction once another holder came (Kleppmann, Designing Data-Intensive Applications, ch. 8).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sealface.errors import WrongState
from sealface.storage.record import leases

EXPIRES_S = 15.0
"""How long a holder may be silent before another takes over."""
_BEAT_S = 3.0


class LeaseLost(WrongState):
    """Another process works on the gallery by now."""


@dataclass
class Lease:
    """The right to work on a gallery; see `Leases`."""

    gallery: str
    fence: int
    beaten: float


class Leases:
    """The leases of one process; for one thread.

    Args:
        engine: the record.
        expires_s: how long another holder may be silent.
    """

    def __init__(self, engine: sa.Engine, expires_s: float = EXPIRES_S) -> None:
        self._engine = engine
        self._expires_s = expires_s
        self._holder = secrets.token_hex(8)
        self._held: dict[str, Lease] = {}
        self._watched: dict[str, tuple[int, int, float]] = {}  # fence and beat of another, and since when

    def take(self, gallery_id: str) -> Lease | None:
        """The lease of a gallery, held already or taken now; None while another process has it, or if there is none."""
        held = self._held.get(gallery_id)
        if held is not None:
            try:
                self.keep(held)
            except LeaseLost:
                return self.take(gallery_id)
            return held
        with self._engine.begin() as transaction:
            row = transaction.execute(
                sa.select(leases).where(leases.c.gallery == gallery_id).with_for_update()
            ).one_or_none()
            if row is None:
                values = {"gallery": gallery_id, "holder": self._holder, "fence": 1, "beat": 0}
                try:
                    with transaction.begin_nested():
                        transaction.execute(sa.insert(leases).values(values))
                except sa.exc.IntegrityError:  # another process was first, or the gallery is gone
                    return None
                fence = 1
            elif row.holder and not self._silent(row):
                return None
            else:
                fence = row.fence + 1
                changed = {"holder": self._holder, "fence": fence, "beat": row.beat + 1}
                transaction.execute(sa.update(leases).where(leases.c.gallery == gallery_id).values(changed))
        self._watched.pop(gallery_id, None)
        lease = self._held[gallery_id] = Lease(gallery_id, fence, time.monotonic())
        return lease

    def keep(self, lease: Lease) -> None:
        """Say that the holder lives, if it has not just done so.

        Raises:
            LeaseLost: another has it.
        """
        if time.monotonic() - lease.beaten < _BEAT_S:
            return
        with self._engine.begin() as transaction:
            where = (leases.c.gallery == lease.gallery, leases.c.fence == lease.fence)
            if not transaction.execute(sa.update(leases).where(*where).values(beat=leases.c.beat + 1)).rowcount:
                self._held.pop(lease.gallery, None)
                raise LeaseLost("another process works on the gallery: leave it to that")
        lease.beaten = time.monotonic()

    def release(self, lease: Lease) -> None:
        """Leave the gallery to whoever comes."""
        self._held.pop(lease.gallery, None)
        with self._engine.begin() as transaction:
            where = (leases.c.gallery == lease.gallery, leases.c.fence == lease.fence)
            transaction.execute(sa.update(leases).where(*where).values(holder=""))

    def _silent(self, row: sa.Row[Any]) -> bool:
        """Whether a holder has not been heard of for long enough."""
        seen = self._watched.get(row.gallery)
        if seen is None or seen[:2] != (row.fence, row.beat):
            self._watched[row.gallery] = (row.fence, row.beat, time.monotonic())
            return False
        return time.monotonic() - seen[2] >= self._expires_s


def check_fence(transaction: sa.Connection, lease: Lease) -> None:
    """Refuse a transaction of a process that has lost its lease.

    Raises:
        LeaseLost: it has.
    """
    query = sa.select(leases.c.fence).where(leases.c.gallery == lease.gallery).with_for_update()
    if transaction.execute(query).scalar_one_or_none() != lease.fence:
        raise LeaseLost("another process works on the gallery: leave it to that")
