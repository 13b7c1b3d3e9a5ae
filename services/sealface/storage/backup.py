"""A gallery to a file, and back to rows: nothing is written that is damaged, nothing is read that is not whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa

from sealface.errors import DataCorrupted
from sealface.protocol import names
from sealface.storage import record
from sealface.storage.archive import BackupDamaged, Reader, Writer, existing_file, new_file
from sealface.storage.contents import Row, decode, encode, read
from sealface.storage.database import reading
from sealface.storage.examination import Examination
from sealface.storage.galleries import GalleryNotFound

Tell = Callable[[int], None]


class GalleryDamaged(DataCorrupted):
    """A gallery is not backed up as long as something of it is damaged."""


@dataclass(frozen=True)
class Backup:
    """What a backup holds.

    Attributes:
        gallery: id of the gallery.
        created: when it was made: erased and enrolled since is not in it.
        rows: how many of each table.
        nbytes: of the file.
        digest: SHA-256 that stands for all of it.
        key_version: name of the key version of its templates; the key itself is not in it.
        first_epoch, epoch, next_slot: counters of the gallery.
    """

    gallery: str
    created: datetime
    rows: Mapping[str, int]
    nbytes: int
    digest: bytes
    key_version: str
    first_epoch: int
    epoch: int
    next_slot: int


def back_up(engine: sa.Engine, gallery_id: str, path: Path, tell: Tell = lambda rows: None) -> Backup:
    """Write one moment of a gallery to a file, beside whatever goes on.

    Args:
        engine: the record.
        gallery_id: the gallery.
        path: of the file; an older one is replaced when the new one is whole.
        tell: told of each number of templates that are written.

    Raises:
        GalleryNotFound, GalleryDamaged, BackupNotWritten, RecordUnavailable: see there; the file is as it was.
    """
    created = datetime.now(UTC)
    examination = Examination(gallery_id)
    gallery: Row = {}
    with reading(engine).begin() as transaction, new_file(path) as file:
        writer = Writer(file)
        writer.add({"gallery": gallery_id, "created": created.isoformat()})
        for table, rows in read(transaction, gallery_id):
            gallery = gallery or rows[0]
            _refuse_damage(gallery_id, examination.take(table, rows))
            writer.add(*encode(table, rows))
            tell(len(rows) if table is record.templates else 0)
        if not gallery:
            raise GalleryNotFound("no such gallery: list the galleries there are")
        _refuse_damage(gallery_id, examination.finish())
        digest = writer.close()
        nbytes = file.tell()
    return _described(gallery, created, examination, nbytes, digest)


def _refuse_damage(gallery_id: str, findings: Iterator[Any]) -> None:
    for finding in findings:
        raise GalleryDamaged(
            f"{finding.where}: {finding.what}: run `sealface doctor {gallery_id}`, which says what to do"
        )


def verify(path: Path, tell: Tell = lambda read: None) -> Backup:
    """Read all of a backup, and check all that can be checked of it.

    Args:
        path: of the file.
        tell: told how many bytes are read.

    Raises:
        NotABackup: there is none.
        BackupDamaged: it is not as it was written, or does not fit itself.
    """
    with existing_file(path) as file:
        return _verify(file, tell)


def _verify(file: BinaryIO, tell: Tell) -> Backup:
    reader = Reader(file)
    entries = iter(reader)
    gallery_id, created = _first(next(entries, ({}, memoryview(b""))))
    examination = Examination(gallery_id)
    gallery: Row = {}
    for header, data in entries:
        table, rows = decode(header, data)
        gallery = gallery or rows[0]
        _refuse_nonsense(examination.take(table, rows))
        tell(file.tell())
    _refuse_nonsense(examination.finish())
    return _described(gallery, created, examination, file.tell(), reader.digest)


def _described(row: Row, created: datetime, examination: Examination, nbytes: int, digest: bytes) -> Backup:
    counters = {name: row[name] for name in ("key_version", "first_epoch", "epoch", "next_slot")}
    return Backup(row["id"], created, examination.checked, nbytes, digest, **counters)


def rows_of(path: Path, expected: bytes, tell: Tell = lambda read: None) -> Iterator[tuple[sa.Table, list[Row]]]:
    """The rows of a backup that was verified.

    Args:
        path: of the file.
        expected: the digest that was found then.
        tell: told how many bytes are read.

    Raises:
        BackupDamaged: at the latest at the end, if it is not the file that was verified.
    """
    with existing_file(path) as file:
        reader = Reader(file)
        for header, data in reader:
            if "table" in header:
                yield decode(header, data)
            tell(file.tell())
        if reader.digest != expected:
            raise BackupDamaged("the backup was changed while it was read: restore again")


def _first(entry: tuple[dict[str, Any], memoryview]) -> tuple[str, datetime]:
    header, data = entry
    try:
        created = datetime.fromisoformat(header["created"])
        if data or header.keys() != {"gallery", "created"} or created.tzinfo is None:
            raise ValueError("another header")
        return names.check_id(header["gallery"], "gallery"), created
    except (KeyError, TypeError, ValueError, names.InvalidName):
        raise BackupDamaged("the backup does not say what it holds: use another copy") from None


def _refuse_nonsense(findings: Iterator[Any]) -> None:
    for finding in findings:
        raise BackupDamaged(f"the backup does not fit itself ({finding.where}: {finding.what}): use another copy")
