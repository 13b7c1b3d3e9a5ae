"""A gallery from its backup: all of it, or nothing, in one transaction.

It comes back under epochs that no caller has seen, so that every slot table, worker and cache begins anew with it; its
slots keep their numbers, and those that were used since stay used. What the record knows to be erased stays erased.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from sealface.enrollment.audit import OPERATOR, note
from sealface.enrollment.record import GalleryExists, KeyTaken
from sealface.enrollment.rows import remove_gallery
from sealface.errors import LimitExceeded, WrongState
from sealface.storage import record as tables
from sealface.storage.backup import Backup, Tell, rows_of
from sealface.storage.contents import Row, stored
from sealface.storage.database import forget

_APART = 1 << 32  # epochs that a gallery may have seen since its backup, in a record that is lost
_LARGEST_EPOCH = (1 << 63) - 1


class RestoreConflict(WrongState):
    """A gallery of that id or key was made meanwhile, or the file was exchanged."""


class TooManyRestores(LimitExceeded):
    """A gallery's epochs are used up."""


@dataclass(frozen=True)
class Restored:
    """What came back.

    Attributes:
        templates: live ones.
        kept_erased: templates of the backup that the replaced gallery had erased since: they did not come back.
        lost: templates that the replaced gallery had enrolled since: they are gone.
    """

    templates: int
    kept_erased: int
    lost: int


def restore(
    engine: sa.Engine, path: Path, backup: Backup, *, replace: bool = False, tell: Tell = lambda read: None
) -> Restored:
    """Write a verified backup into the record.

    Args:
        engine: the record.
        path: of the backup.
        backup: what `storage.backup.verify` said of it.
        replace: whether it may take the place of a gallery of that id; searches see that one until all is there.
        tell: told how many bytes are read.

    Raises:
        GalleryExists: there is one, and it is not to be replaced.
        KeyTaken: another gallery uses the key.
        BackupDamaged, RestoreConflict, RecordUnavailable: see there. Nothing is changed then.
    """
    try:
        with engine.begin() as transaction:
            restored = _Restoring(transaction, backup, replace).write(path, tell)
    except sa.exc.IntegrityError:
        raise RestoreConflict("the gallery was made, or the backup changed, while it was restored: try again") from None
    if replace:
        forget(engine)
    return restored


class _Restoring:
    """One transaction."""

    def __init__(self, transaction: sa.Connection, backup: Backup, replace: bool) -> None:
        self._transaction = transaction
        self._backup = backup
        self._erased, self._lost = _make_way(transaction, backup, replace)
        retired = tables.retired
        query = sa.select(retired.c.epoch, retired.c.next_slot).where(retired.c.id == backup.gallery)
        before = transaction.execute(query).one_or_none()
        epoch, next_slot = (before.epoch, before.next_slot) if before else (0, 1)
        self._shift = max(epoch, backup.epoch) + _APART - backup.first_epoch
        self._epoch = backup.epoch + self._shift + 1
        if self._epoch > _LARGEST_EPOCH:
            raise TooManyRestores("the gallery's epochs are used up: make a new gallery and enrol anew")
        self._next_slot = max(next_slot, backup.next_slot)
        self._kept_erased: set[int] = set()
        self._templates = 0

    def write(self, path: Path, tell: Tell) -> Restored:
        for table, rows in rows_of(path, self._backup.digest, tell):
            changed = [row for row in map(self._changes[table], rows) if row is not None]
            for kept_in, kept in stored(table, changed, self._backup.gallery, self._backup.key_version):
                if kept:
                    self._transaction.execute(sa.insert(kept_in), kept)
        if self._kept_erased:
            buried = {"gallery": self._backup.gallery, "epoch": self._epoch}
            self._transaction.execute(
                sa.insert(tables.tombstones), [buried | {"slot": slot} for slot in sorted(self._kept_erased)]
            )
        restored = Restored(self._templates, len(self._kept_erased), self._lost)
        told = vars(restored) | {"backup": self._backup.digest.hex()}
        note(self._transaction, "Restore", self._backup.gallery, told, actor=OPERATOR)
        return restored

    @property
    def _changes(self) -> dict[sa.Table, Callable[[Row], Row | None]]:
        """What a row of each table is written as."""
        return {
            tables.galleries: self._gallery,
            tables.evaluation_keys: lambda row: row,
            tables.tombstones: self._later,
            tables.templates: self._template,
            tables.blocks: self._block,
            tables.requests: self._later,
        }

    def _later(self, row: Row) -> Row:
        return row | {"epoch": row["epoch"] + self._shift}

    def _gallery(self, row: Row) -> Row:
        first = row["first_epoch"] + self._shift
        return row | {"first_epoch": first, "epoch": self._epoch, "next_slot": self._next_slot}

    def _template(self, row: Row) -> Row | None:
        if row["slot"] in self._erased or row["lead"] in self._erased:  # a subject is erased with all its templates
            self._kept_erased.add(row["slot"])
            return None
        self._templates += 1
        return self._later(row)

    def _block(self, row: Row) -> Row:
        if not self._kept_erased:
            return row
        erased = sum(slot in self._kept_erased for slot in np.frombuffer(row["slots"], "<u4").tolist())
        return row | {"erased": row["erased"] + erased}


def _make_way(transaction: sa.Connection, backup: Backup, replace: bool) -> tuple[set[int], int]:
    """Remove the gallery that is replaced; returns its erased slots, and how many it has enrolled since the backup."""
    table = tables.galleries
    found = transaction.execute(sa.select(table.c.id).where(table.c.id == backup.gallery).with_for_update()).first()
    if found and not replace:
        raise GalleryExists(
            "there is a gallery of that id: --replace puts the backup there, and keeps erased what it has erased"
        )
    key, _, _ = backup.key_version.partition("/versions/")
    same = table.c.key_version.startswith(f"{key}/versions/", autoescape=True)
    of_key = sa.select(table.c.id).where(same, table.c.id != backup.gallery)
    if transaction.execute(of_key).first():
        raise KeyTaken("another gallery uses the backup's key: delete that one first")
    if not found:
        return set(), 0
    buried = sa.select(tables.tombstones.c.slot).where(tables.tombstones.c.gallery == backup.gallery)
    erased = set(transaction.execute(buried).scalars())
    newer = sa.select(sa.func.count()).select_from(tables.templates)
    newer = newer.where(tables.templates.c.gallery == backup.gallery, tables.templates.c.slot >= backup.next_slot)
    lost = transaction.execute(newer).scalar_one()
    remove_gallery(transaction, backup.gallery)
    return erased, lost
