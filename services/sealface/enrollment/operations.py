"""Long work on galleries, stored: what was begun goes on after a restart, where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from sealface import errors
from sealface.enrollment.audit import note
from sealface.enrollment.leases import Lease, check_fence
from sealface.enrollment.rows import locked_gallery
from sealface.errors import InvalidInput, NotFound, SealfaceError, WrongState
from sealface.protocol.audit import BEGUN, Detail
from sealface.storage.database import in_utc, reading
from sealface.storage.record import operations

_KEPT = timedelta(days=30)


class OperationNotFound(NotFound):
    """The gallery has no operation of that id."""


class OperationIdReused(InvalidInput):
    """An operation id was used before for something else."""


class OperationEnded(WrongState):
    """The operation takes nothing more: it is done, failed or cancelled."""


class NotCancellable(WrongState):
    """Operations of this kind cannot be cancelled."""


class Kind(StrEnum):
    """What an operation does."""

    IMPORT = "import"
    COMPACTION = "compaction"
    ERASURE = "erasure"
    EXPIRY = "expiry"
    ROTATION = "rotation"


class State(StrEnum):
    """Where an operation is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Operation:
    """Long work on a gallery.

    Attributes:
        gallery, id: its name.
        kind, state: see there.
        done, total: how much of how much, in the kind's unit.
        detail: what it works on, and then what came of it.
        entry: number of the audit log's entry of its beginning; 0 if it is older than the log.
        created, updated: when it was begun, and last got on.
    """

    gallery: str
    id: str
    kind: Kind
    state: State
    done: int
    total: int
    detail: Mapping[str, Any]
    entry: int
    created: datetime
    updated: datetime


class Operations:
    """The stored operations.

    Args:
        engine: the record.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reading = reading(engine)

    def begin(self, gallery_id: str, operation_id: str, kind: Kind, total: int = 0) -> Operation:
        """Begin an operation, or find the one of that id.

        Raises:
            GalleryNotFound, OperationIdReused: see there.
        """
        with self._engine.begin() as transaction:
            locked_gallery(transaction, gallery_id)  # first: an equal request may be under way
            known = known_operation(transaction, gallery_id, operation_id, kind)
            return known or insert_operation(transaction, gallery_id, operation_id, kind, total, {})

    def get(self, gallery_id: str, operation_id: str) -> Operation:
        """An operation.

        Raises:
            OperationNotFound: there is none of that id.
        """
        with self._reading.begin() as transaction:
            found = find_operation(transaction, gallery_id, operation_id)
        if found is None:
            raise OperationNotFound("the gallery has no such operation: list its operations")
        return found

    def page(self, gallery_id: str, skip: int, limit: int) -> list[Operation]:
        """A gallery's operations, the newest first."""
        query = sa.select(operations).where(operations.c.gallery == gallery_id)
        query = query.order_by(operations.c.created.desc(), operations.c.id).offset(skip).limit(limit)
        with self._reading.begin() as transaction:
            return [_operation(row) for row in transaction.execute(query)]

    def waiting(self, gallery_id: str) -> list[Operation]:
        """Those that the background has to see to, the oldest first."""
        query = sa.select(operations).where(
            operations.c.gallery == gallery_id,
            operations.c.state == State.RUNNING,
            operations.c.kind != Kind.IMPORT,  # the importer's to go on with
        )
        with self._reading.begin() as transaction:
            return [_operation(row) for row in transaction.execute(query.order_by(operations.c.created))]

    def progress(self, operation: Operation, lease: Lease, done: int, total: int) -> bool:
        """Store how far it is; False if it was cancelled meanwhile.

        Raises:
            LeaseLost: another process goes on with it.
        """
        return self._update(operation, lease, done=done, total=total)

    def finish(self, operation: Operation, lease: Lease, done: int, **result: Any) -> bool:
        """End it with what came of it; False if it was cancelled meanwhile."""
        detail = {**operation.detail, **result}
        return self._update(operation, lease, state=State.DONE, done=done, total=done, detail=detail)

    def fail(self, operation: Operation, lease: Lease, error: SealfaceError) -> bool:
        """End it with an error."""
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        told = {"reason": error.reason, "message": error.message, "kind": kind}
        detail = {**operation.detail, **told}
        return self._update(operation, lease, state=State.FAILED, detail=detail)

    def _update(self, operation: Operation, lease: Lease, **values: Any) -> bool:
        with self._engine.begin() as transaction:
            check_fence(transaction, lease)
            return update_operation(transaction, operation, **values)

    def cancel(self, gallery_id: str, operation_id: str) -> Operation:
        """End an operation where it is; one that has ended stays as it is.

        Raises:
            OperationNotFound, NotCancellable: see there.
        """
        with self._engine.begin() as transaction:
            found = find_operation(transaction, gallery_id, operation_id)
            if found is None:
                raise OperationNotFound("the gallery has no such operation: list its operations")
            if found.kind in (Kind.ERASURE, Kind.EXPIRY):
                raise NotCancellable("what is erased is not brought back: wait until the operation is done")
            update_operation(transaction, found, state=State.CANCELLED)
        return self.get(gallery_id, operation_id)


def insert_operation(
    transaction: sa.Connection,
    gallery_id: str,
    operation_id: str,
    kind: Kind,
    total: int,
    detail: Mapping[str, Any],
    told: Mapping[str, Detail] | None = None,
) -> Operation:
    """Store a new operation, with what the audit log is told of it, and forget those that ended long ago."""
    now = datetime.now(UTC)
    ended = (operations.c.gallery == gallery_id, operations.c.state != State.RUNNING)
    transaction.execute(sa.delete(operations).where(*ended, operations.c.updated < now - _KEPT))
    told = {"operation": operation_id} | dict(told or {})
    entry = note(transaction, kind.capitalize(), gallery_id, told, outcome=BEGUN)
    begun = Operation(gallery_id, operation_id, kind, State.RUNNING, 0, total, detail, entry, now, now)
    transaction.execute(sa.insert(operations).values(vars(begun)))
    return begun


def known_operation(transaction: sa.Connection, gallery_id: str, operation_id: str, kind: Kind) -> Operation | None:
    """The operation that was begun with an id.

    Raises:
        OperationIdReused: it is of another kind.
    """
    known = find_operation(transaction, gallery_id, operation_id)
    if known is not None and known.kind != kind:
        raise OperationIdReused("this operation id was used for something else: draw a new one")
    return known


def update_operation(transaction: sa.Connection, operation: Operation, **values: Any) -> bool:
    """Change an operation that has not ended; False if it has."""
    where = (
        operations.c.gallery == operation.gallery,
        operations.c.id == operation.id,
        operations.c.state == State.RUNNING,
    )
    change = sa.update(operations).where(*where).values(updated=datetime.now(UTC), **values)
    if not transaction.execute(change).rowcount:
        return False
    if "state" in values:
        act, told = operation.kind.capitalize(), {"operation": operation.id}
        note(transaction, act, operation.gallery, told, outcome=values["state"], begun=operation.entry)
    return True


def count_imported(transaction: sa.Connection, gallery_id: str, operation_id: str, templates: int) -> None:
    """Add templates to what an import has stored; it is done when all announced ones are.

    Raises:
        OperationNotFound, OperationIdReused, OperationEnded: see there.
    """
    found = known_operation(transaction, gallery_id, operation_id, Kind.IMPORT)
    if found is None:
        raise OperationNotFound("the gallery has no such operation: begin the import")
    done = found.done + templates
    ended = {"state": State.DONE} if done >= found.total else {}
    if not update_operation(transaction, found, done=done, **ended):
        raise OperationEnded("the import has ended: begin another for more templates", state=found.state)


def running_operations(transaction: sa.Connection, gallery_id: str, kind: Kind) -> list[Operation]:
    """A gallery's operations of a kind that have not ended."""
    where = (operations.c.gallery == gallery_id, operations.c.state == State.RUNNING, operations.c.kind == kind)
    return [_operation(row) for row in transaction.execute(sa.select(operations).where(*where))]


def find_operation(transaction: sa.Connection, gallery_id: str, operation_id: str) -> Operation | None:
    """An operation by its id."""
    query = sa.select(operations).where(operations.c.gallery == gallery_id, operations.c.id == operation_id)
    row = transaction.execute(query).one_or_none()
    return None if row is None else _operation(row)


def _operation(row: sa.Row[Any]) -> Operation:
    values = dict(row._mapping)
    values |= {"kind": Kind(row.kind), "state": State(row.state)}
    values |= {"created": in_utc(row.created), "updated": in_utc(row.updated)}
    return Operation(**values)
