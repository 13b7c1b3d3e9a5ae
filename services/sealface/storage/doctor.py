"""Looks at all that the record holds and says what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from sealface.storage import record
from sealface.storage.beside import examine_beside
from sealface.storage.contents import TABLES, read
from sealface.storage.database import RecordDamaged, reading
from sealface.storage.examination import Examination
from sealface.storage.findings import Damage, Finding
from sealface.storage.galleries import GalleryNotFound

Tell = Callable[[str, int], None]

Check = Callable[[Sequence[str], Counter[str]], Iterator[Finding]]
"""A further check: of a cache, or of keys. It gets the ids of the galleries that are examined, counts what it has
checked by kind, and tells what it finds."""


@dataclass
class Report:
    """What an examination found.

    Attributes:
        galleries: ids of those that were examined.
        checked: how much was looked at, by kind.
        findings: what is wrong.
    """

    galleries: list[str] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong any more."""
        return all(finding.repaired for finding in self.findings)


def examine(
    engine: sa.Engine,
    gallery_id: str | None = None,
    further: Sequence[Check] = (),
    tell: Tell = lambda gallery_id, rows: None,
) -> Report:
    """Check every digest, slot and counter, beside whatever goes on: each gallery as it is at one moment.

    Args:
        engine: the record.
        gallery_id: one gallery; all, and what lies between them, if none is named.
        further: what else is checked beside the record.
        tell: told which gallery, and how many of its rows are checked.

    Raises:
        GalleryNotFound, RecordUnavailable: see there.
    """
    report = Report()
    report.findings += _guarded("", lambda: _database(engine, report))
    found = _ids(engine)
    if gallery_id is not None and gallery_id not in found:
        raise GalleryNotFound("no such gallery: list the galleries there are")
    report.galleries = found if gallery_id is None else [gallery_id]
    for one in report.galleries:
        report.findings += _guarded(one, lambda one=one: _gallery(engine, one, report.checked, tell))  # type: ignore[misc]
    for check in further:
        report.findings += check(report.galleries, report.checked)
    return report


def _guarded(gallery_id: str, findings: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Findings, until the database itself cannot read on."""
    try:
        yield from findings()
    except RecordDamaged:
        yield Finding(Damage.DATABASE_DAMAGED, gallery_id, detail="the database cannot read its own files")


def _ids(engine: sa.Engine) -> list[str]:
    with reading(engine).begin() as transaction:
        return list(transaction.execute(sa.select(record.galleries.c.id).order_by(record.galleries.c.id)).scalars())


def _gallery(engine: sa.Engine, gallery_id: str, checked: Counter[str], tell: Tell) -> Iterator[Finding]:
    examination = Examination(gallery_id)
    with reading(engine).begin() as transaction:
        for table, rows in read(transaction, gallery_id):
            yield from examination.take(table, rows)
            tell(gallery_id, len(rows))
        if examination.checked:  # else it was deleted meanwhile
            yield from examination.finish()
            yield from _reborn(transaction, gallery_id)
            yield from examine_beside(transaction, gallery_id)
    checked.update(examination.checked)


def _reborn(transaction: sa.Connection, gallery_id: str) -> Iterator[Finding]:
    """Whether a gallery goes on where an earlier one of its name has ended."""
    now, then = record.galleries, record.retired
    behind = (now.c.first_epoch <= then.c.epoch) | (now.c.next_slot < then.c.next_slot)
    query = sa.select(now.c.id).join(then, then.c.id == now.c.id).where(now.c.id == gallery_id, behind)
    if transaction.execute(query).first():
        yield Finding(Damage.COUNTER_BEHIND, gallery_id, detail="an earlier gallery of that name")


def _database(engine: sa.Engine, report: Report) -> Iterator[Finding]:
    """What is no single gallery's."""
    with reading(engine).begin() as transaction:
        if transaction.dialect.name == "sqlite":
            for line in transaction.exec_driver_sql("PRAGMA integrity_check(10)").scalars():
                if line != "ok":
                    yield Finding(Damage.DATABASE_DAMAGED, "", detail=" ".join(str(line).split()))
        known = sa.select(record.galleries.c.id)
        for table in TABLES[1:]:
            orphans = sa.select(table.c.gallery).where(table.c.gallery.not_in(known)).distinct()
            for gallery_id in transaction.execute(orphans).scalars():
                yield Finding(Damage.ORPHANED_ROWS, str(gallery_id), detail=table.name)
        key = record.galleries.c.key_version
        for shared in transaction.execute(sa.select(key).group_by(key).having(sa.func.count() > 1)).scalars():
            yield Finding(Damage.KEY_SHARED, "", detail=str(shared))
    report.checked["databases"] += 1
