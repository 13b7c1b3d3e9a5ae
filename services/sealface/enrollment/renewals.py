"""Renewals of imported blocks by the client that holds the key; those of managed galleries are the key service's."""

from __future__ import annotations

import time
from collections.abc import Callable

from sealface.enrollment.asked import Ask
from sealface.enrollment.leases import Lease, Leases
from sealface.enrollment.operations import Operation
from sealface.enrollment.rotation import Rotator
from sealface.enrollment.sealer import Sealer
from sealface.errors import Unavailable, WrongState
from sealface.storage.galleries import Galleries

_WAIT_S = 20.0
_LOOK_S = 0.1
_NO_TURNS = 1e9


class RenewedByItself(WrongState):
    """The key service renews the gallery's blocks."""


class GalleryBusy(Unavailable):
    """Another process works on the gallery."""


class Renewals:
    """Renews what has erased templates.

    Args:
        galleries: the record.
        sealer: makes blocks.
        rotator: moves galleries to other key versions.
        leases: makes leases for one call.
    """

    def __init__(self, galleries: Galleries, sealer: Sealer, rotator: Rotator, leases: Callable[[], Leases]) -> None:
        self._galleries = galleries
        self._sealer = sealer
        self._rotator = rotator
        self._leases = leases

    def run(self, gallery_id: str, ask: Ask, stopped: Callable[[], bool], rotation: Operation | None = None) -> int:
        """Renew block by block until none has an erased template; returns how many that were.

        Args:
            gallery_id: the gallery.
            ask: the client's part.
            stopped: whether the client is gone.
            rotation: moves the gallery to another key version instead, if it is given.

        Raises:
            GalleryNotFound, RenewedByItself, GalleryBusy, LeaseLost, MalformedCiphertext: see there. What was renewed
            before stays.
        """
        gallery = self._galleries.get(gallery_id)
        if gallery.managed:
            raise RenewedByItself("the key service renews this gallery's blocks by itself: wait for that")
        leases = self._leases()
        lease = _taken(leases, gallery_id, stopped)

        def pause() -> None:
            if stopped():
                raise GalleryBusy("the client is gone: renew again")
            leases.keep(lease)

        renewed = 0
        try:
            if rotation is not None:
                self._rotator.run(rotation, gallery, lease, pause, ask, _NO_TURNS)
                return 0
            while self._sealer.renew(gallery, lease, pause, ask):
                renewed += 1
        finally:
            leases.release(lease)
        return renewed


def _taken(leases: Leases, gallery_id: str, stopped: Callable[[], bool]) -> Lease:
    deadline = time.monotonic() + _WAIT_S
    while (lease := leases.take(gallery_id)) is None:
        if stopped() or time.monotonic() > deadline:
            raise GalleryBusy("another process works on the gallery: try again")
        time.sleep(_LOOK_S)
    return lease
