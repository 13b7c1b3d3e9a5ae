"""A gallery's ciphertexts under another key version, stored beside those that are searched, and the move to it.

While a gallery is moved its ciphertexts gather under the target version; whatever is erased or replaced leaves both.
The move itself is one transaction that finds nothing missing. What is under no version in use is dropped in steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from sealface.enrollment.leases import Lease, check_fence
from sealface.enrollment.operations import (
    Kind,
    Operation,
    State,
    find_operation,
    insert_operation,
    known_operation,
    running_operations,
    update_operation,
)
from sealface.enrollment.rows import (
    advance,
    insert_block_ciphertext,
    insert_template_ciphertexts,
    insert_version,
    locked_gallery,
)
from sealface.errors import WrongState
from sealface.storage import record as tables
from sealface.storage.database import reading
from sealface.storage.galleries import Gallery
from sealface.storage.record import block_ciphertexts, blocks, galleries, template_ciphertexts, templates

_DROPPED_AT_ONCE = 200
_BLOCKS_AT_ONCE = 8


class RotationUnderWay(WrongState):
    """The gallery is being moved to another key version."""


class Versions:
    """Ciphertexts by key version.

    Args:
        engine: the record.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reading = reading(engine)

    def begin(
        self,
        gallery_id: str,
        operation_id: str,
        target: str,
        public_key: bytes,
        evaluation_keys: Mapping[int, bytes],
        parts: int,
    ) -> Operation:
        """Begin to move a gallery, or find the operation of that id, or the one that moves it there already.

        Args:
            gallery_id: the gallery.
            operation_id: the caller's.
            target: key version that it is moved to; if it is there the operation is done.
            public_key: of that version.
            evaluation_keys: of that version, by Galois element.
            parts: ciphertexts of a template.

        Raises:
            GalleryNotFound, OperationIdReused: see there.
            RotationUnderWay: it is being moved elsewhere.
        """
        with self._engine.begin() as transaction:
            row = locked_gallery(transaction, gallery_id)
            known = known_operation(transaction, gallery_id, operation_id, Kind.ROTATION)
            if known is not None:
                return known
            detail = {"key_version": target}
            if row.key_version == target:
                begun = insert_operation(transaction, gallery_id, operation_id, Kind.ROTATION, 0, detail, detail)
                update_operation(transaction, begun, state=State.DONE)
                return find_operation(transaction, gallery_id, operation_id) or begun
            for under_way in running_operations(transaction, gallery_id, Kind.ROTATION):
                if under_way.detail["key_version"] == target:
                    return under_way
                raise RotationUnderWay("the gallery is being moved to another key version: wait, or cancel that")
            of_version = (tables.versions.c.gallery == gallery_id, tables.versions.c.key_version == target)
            if not transaction.execute(sa.select(tables.versions.c.gallery).where(*of_version)).first():
                insert_version(transaction, gallery_id, target, public_key, evaluation_keys)
            total = _ciphertexts(transaction, gallery_id, row.key_version, parts)
            return insert_operation(transaction, gallery_id, operation_id, Kind.ROTATION, total, detail, detail)

    def missing_templates(self, gallery: Gallery, target: str, after: int, limit: int) -> list[int]:
        """Slots, after one, of templates that have a ciphertext under the gallery's version and none under another."""
        slot = template_ciphertexts.c.slot
        query = sa.select(slot).where(_missing(slot, gallery.id, gallery.key_version, target), slot > after)
        with self._reading.begin() as transaction:
            return list(transaction.scalars(query.order_by(slot).limit(limit)))

    def missing_block(self, gallery: Gallery, target: str) -> tuple[int, int] | None:
        """Number and columns of a block that has a ciphertext under the gallery's version and none under another."""
        number = block_ciphertexts.c.number
        query = sa.select(number, blocks.c["columns"]).where(
            _missing(number, gallery.id, gallery.key_version, target),
            blocks.c.gallery == gallery.id,
            blocks.c.number == number,
        )
        with self._reading.begin() as transaction:
            found = transaction.execute(query.order_by(number).limit(1)).first()
        return None if found is None else (found[0], found[1])

    def add_templates(self, gallery: Gallery, lease: Lease, target: str, ciphertexts: Mapping[int, bytes]) -> None:
        """Store templates under the target version, but those that were erased meanwhile.

        Raises:
            GalleryNotFound, LeaseLost: see there.
        """
        with self._engine.begin() as transaction:
            if not _same(locked_gallery(transaction, gallery.id), gallery):
                return
            check_fence(transaction, lease)
            where = (templates.c.gallery == gallery.id, templates.c.slot.in_(list(ciphertexts)))
            live = transaction.execute(sa.select(templates.c.slot).where(*where)).scalars()
            kept = {slot: ciphertexts[slot] for slot in live}
            insert_template_ciphertexts(transaction, gallery.id, target, kept)

    def add_block(
        self, gallery: Gallery, lease: Lease, target: str, number: int, columns: int, slots: bytes, ciphertext: bytes
    ) -> None:
        """Store a block under the target version, unless it was replaced meanwhile; errors as for `add_templates`."""
        with self._engine.begin() as transaction:
            if not _same(locked_gallery(transaction, gallery.id), gallery):
                return
            check_fence(transaction, lease)
            where = (blocks.c.gallery == gallery.id, blocks.c.number == number)
            if transaction.execute(sa.select(blocks.c.number).where(*where)).first():
                insert_block_ciphertext(transaction, gallery.id, target, number, columns, slots, ciphertext)

    def move(self, gallery: Gallery, lease: Lease, operation: Operation, done: int) -> bool:
        """Have the gallery under the target version from now on, and end the operation; False if something is missing.

        Raises:
            GalleryNotFound, LeaseLost: see there.
        """
        target = operation.detail["key_version"]
        with self._engine.begin() as transaction:
            row = locked_gallery(transaction, gallery.id)
            check_fence(transaction, lease)
            if not _same(row, gallery):
                return False
            for place in (template_ciphertexts.c.slot, block_ciphertexts.c.number):
                missing = sa.select(place).where(_missing(place, gallery.id, row.key_version, target))
                if transaction.execute(missing.limit(1)).first():
                    return False
            ended = {"state": State.DONE, "done": done, "total": done}
            if not update_operation(transaction, operation, **ended):
                return False  # it was cancelled
            transaction.execute(sa.update(galleries).where(galleries.c.id == gallery.id).values(key_version=target))
            advance(transaction, gallery.id, row.epoch + 1)
        return True

    def stale(self, gallery_id: str) -> list[str]:
        """Key versions that a gallery has ciphertexts or keys of, is not under, and is not moved to."""
        with self._reading.begin() as transaction:
            return _stale(transaction, gallery_id)

    def drop_stale(self, gallery_id: str, lease: Lease) -> bool:
        """Drop some of what is under such versions; whether there was anything.

        Raises:
            GalleryNotFound, LeaseLost: see there.
        """
        with self._engine.begin() as transaction:
            locked_gallery(transaction, gallery_id)
            check_fence(transaction, lease)
            found = _stale(transaction, gallery_id)
            if not found:
                return False
            of_version = {"gallery": gallery_id, "key_version": found[0]}
            for table, name, limit in (
                (template_ciphertexts, "slot", _DROPPED_AT_ONCE),
                (block_ciphertexts, "number", _BLOCKS_AT_ONCE),
            ):
                where = [table.c[column] == value for column, value in of_version.items()]
                some = transaction.execute(sa.select(table.c[name]).where(*where).limit(limit)).scalars().all()
                if some:
                    transaction.execute(sa.delete(table).where(*where, table.c[name].in_(some)))
                    return True
            for table in (tables.evaluation_keys, tables.versions):
                where = [table.c[column] == value for column, value in of_version.items()]
                transaction.execute(sa.delete(table).where(*where))
        return True


def _same(row: Any, gallery: Gallery) -> bool:
    """Whether a gallery is the one that was looked at, under the version that it was."""
    return (gallery.id, row.first_epoch, row.key_version) == gallery.identity


def _missing(place: sa.Column[int], gallery_id: str, version: str, target: str) -> sa.ColumnElement[bool]:
    """What has a ciphertext under one version and none under another; `place` tells it from others of its table."""
    table = place.table
    moved = table.alias("moved")
    there = sa.select(sa.literal(1)).where(
        moved.c.gallery == gallery_id, moved.c.key_version == target, moved.c[place.name] == place
    )
    held = sa.and_(table.c.gallery == gallery_id, table.c.key_version == version)
    return sa.and_(held, ~sa.exists(there.select_from(moved)))


def _ciphertexts(transaction: sa.Connection, gallery_id: str, version: str, parts: int) -> int:
    """How many a gallery has, of templates and of the columns of blocks."""
    own = sa.select(sa.func.count()).select_from(template_ciphertexts)
    where = (template_ciphertexts.c.gallery == gallery_id, template_ciphertexts.c.key_version == version)
    of_templates = transaction.execute(own.where(*where)).scalar_one() * parts
    sealed = sa.select(sa.func.coalesce(sa.func.sum(blocks.c["columns"] + parts - 1), 0))
    return of_templates + int(transaction.execute(sealed.where(blocks.c.gallery == gallery_id)).scalar_one())


def _stale(transaction: sa.Connection, gallery_id: str) -> list[str]:
    live = transaction.execute(sa.select(galleries.c.key_version).where(galleries.c.id == gallery_id)).scalars().all()
    moved_to = [o.detail["key_version"] for o in running_operations(transaction, gallery_id, Kind.ROTATION)]
    table = tables.versions
    query = sa.select(table.c.key_version).where(
        table.c.gallery == gallery_id, table.c.key_version.not_in([*live, *moved_to])
    )
    return list(transaction.execute(query.order_by(table.c.key_version)).scalars())
