"""What goes on beside the serving path: operations, expiry and sealing, one process at a time for each gallery."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from sealface.enrollment.asked import Ask
from sealface.enrollment.erasure import Eraser
from sealface.enrollment.leases import Lease, LeaseLost, Leases
from sealface.enrollment.operations import Kind, Operation, Operations
from sealface.enrollment.record import Record
from sealface.enrollment.rotation import Rotator
from sealface.enrollment.sealer import Sealer
from sealface.enrollment.versions import Versions
from sealface.errors import SealfaceError, Unavailable
from sealface.storage.database import RecordUnavailable
from sealface.storage.galleries import Galleries, Gallery

_log = structlog.get_logger("sealface.housekeeper")
_NICE = 10
_PAGE = 100
_LOOK_S = 15.0  # what other servers have left to do, and what has expired
_SOON_S = 1.0
_AWAY_S = 3.0  # a rotation asks a key service that is away no more often


class _Stopped(Exception):
    """The service stops; what was begun is begun again when it runs."""


class Housekeeper:
    """Works on all galleries in the background.

    Args:
        galleries: the record, read.
        record: the record, written.
        operations: what was begun.
        leases: of this process.
        sealer: makes blocks.
        eraser: follows erased templates.
        rotator: moves galleries to other key versions.
        versions: ciphertexts by key version.
        ask: for the key service's part in that.
    """

    def __init__(
        self,
        galleries: Galleries,
        record: Record,
        operations: Operations,
        leases: Leases,
        sealer: Sealer,
        eraser: Eraser,
        rotator: Rotator,
        versions: Versions,
        ask: Ask,
    ) -> None:
        self._galleries = galleries
        self._record = record
        self._operations = operations
        self._leases = leases
        self._sealer = sealer
        self._eraser = eraser
        self._rotator = rotator
        self._versions = versions
        self._ask = ask
        self._not_before: dict[str, float] = {}  # by gallery, when its rotation asks the key service again
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Work in the background, on what is there and on what comes."""
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

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # on Linux a thread has its own
        while not self._stopping.is_set():
            self._changed.clear()
            try:
                finished = True
                for gallery in self._all():
                    finished &= self._see_to(gallery)
                finished &= self._record.forget()
            except _Stopped:
                return
            except Exception as error:
                _log.error("not finished", error=type(error).__name__)
                finished = False
            if finished:
                self._changed.wait(_LOOK_S)
            else:
                self._stopping.wait(_SOON_S)

    def _see_to(self, gallery: Gallery) -> bool:
        """Do what there is to do for a gallery; whether nothing is left."""
        try:
            if not self._due(gallery):
                return True
            lease = self._leases.take(gallery.id)
            if lease is None:
                return False
            try:
                return self._work(gallery, lease, partial(self._pause, lease))
            finally:
                self._leases.release(lease)
        except LeaseLost:
            return False
        except SealfaceError as error:  # a damaged template, or deleted meanwhile; the others go on
            _log.error("not finished", gallery=gallery.id, reason=error.reason)
            return not isinstance(error, Unavailable)
        except _Stopped:
            raise
        except Exception as error:
            _log.error("not finished", gallery=gallery.id, error=type(error).__name__)
            return False

    def _due(self, gallery: Gallery) -> bool:
        return (
            bool(self._waiting(gallery))
            or self._expired(gallery) > 0
            or self._sealer.due(gallery)
            or bool(self._versions.stale(gallery.id))
        )

    def _waiting(self, gallery: Gallery) -> list[Operation]:
        """What is to be seen to here; a gallery whose key the client holds is moved by the client."""
        waiting = self._operations.waiting(gallery.id)
        here = [one for one in waiting if gallery.managed or one.kind is not Kind.ROTATION]
        # a rotation last: it takes long, and may wait for the key service
        return sorted(here, key=lambda one: one.kind is Kind.ROTATION)

    def _work(self, gallery: Gallery, lease: Lease, pause: Callable[[], None]) -> bool:
        """Do all that can be done now; whether there is nothing to go on with soon."""
        waiting = self._waiting(gallery)
        expired = self._expired(gallery)
        if expired and not any(operation.kind is Kind.EXPIRY for operation in waiting):
            waiting.append(self._operations.begin(gallery.id, f"expiry-{uuid.uuid4().hex}", Kind.EXPIRY, expired))
        again = [self._carry_out(operation, gallery, lease, pause) for operation in waiting]
        gallery = self._galleries.get(gallery.id)  # it may be under another key version by now
        while self._sealer.step(gallery, lease, pause):
            pass
        if self._versions.stale(gallery.id):
            while self._versions.drop_stale(gallery.id, lease):
                pause()
            again.append(not self._record.forget(again=True))
        return not any(again)

    def _carry_out(self, operation: Operation, gallery: Gallery, lease: Lease, pause: Callable[[], None]) -> bool:
        """Go on with an operation; whether to do so again soon."""
        try:
            if operation.kind is Kind.ERASURE:
                return self._eraser.run(operation, gallery, lease, pause)
            if operation.kind is Kind.ROTATION:
                return self._rotate(operation, gallery, lease, pause)
            if operation.kind is Kind.EXPIRY:
                self._expire(operation, gallery, lease, pause)
            else:
                self._compact(operation, gallery, lease, pause)
        except (LeaseLost, Unavailable):
            raise
        except SealfaceError as error:
            _log.error("operation failed", operation=operation.id, reason=error.reason)
            if operation.kind is not Kind.ERASURE:  # it cannot be begun again: it waits until that is mended
                self._operations.fail(operation, lease, error)
        return False

    def _rotate(self, operation: Operation, gallery: Gallery, lease: Lease, pause: Callable[[], None]) -> bool:
        """Go on with a rotation; where the key service is away all else goes on, and it is asked again."""
        if time.monotonic() < self._not_before.get(gallery.id, 0.0):
            return True
        try:
            return self._rotator.run(operation, gallery, lease, pause, self._ask)
        except RecordUnavailable:
            raise
        except Unavailable as error:
            self._not_before[gallery.id] = time.monotonic() + _AWAY_S
            _log.warning("rotation waits", operation=operation.id, reason=error.reason)
            return True

    def _compact(self, operation: Operation, gallery: Gallery, lease: Lease, pause: Callable[[], None]) -> None:
        done = operation.done
        while self._sealer.step(gallery, lease, pause, whole=True):
            done += 1
            if not self._operations.progress(operation, lease, done, done):
                return
        self._operations.finish(operation, lease, done)

    def _expire(self, operation: Operation, gallery: Gallery, lease: Lease, pause: Callable[[], None]) -> None:
        done, before = operation.done, _oldest_kept(gallery)
        while erased := 0 if before is None else self._record.expire(gallery.id, lease, before):
            done += erased
            self._operations.progress(operation, lease, done, max(done, operation.total))
            pause()
        self._operations.finish(operation, lease, done)

    def _expired(self, gallery: Gallery) -> int:
        """How many templates are older than they may be."""
        before = _oldest_kept(gallery)
        return 0 if before is None else self._galleries.older(gallery.id, before)

    def _pause(self, lease: Lease) -> None:
        """Called now and then by what takes long."""
        if self._stopping.is_set():
            raise _Stopped
        self._leases.keep(lease)

    def _all(self) -> Iterator[Gallery]:
        after = ""
        while page := self._galleries.page(after, _PAGE):
            yield from page
            after = page[-1].id


def _oldest_kept(gallery: Gallery) -> datetime | None:
    return None if gallery.retention_s is None else datetime.now(UTC) - timedelta(seconds=gallery.retention_s)
