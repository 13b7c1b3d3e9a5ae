"""The key zone's database to one file, and back; secrets stay wrapped, the key-encryption key is not in it.

The file is the line `sealface keys backup 1 SHA-256`, then an SQLite database that the digest is of. It is copied while
the service runs (SQLite's online backup), in one snapshot. The digest shows damage, not forgery.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from sealface.errors import DataCorrupted, InvalidInput, WrongState
from sealface.keys.occupancy import Occupancy
from sealface.keys.rewrap import stored_secrets
from sealface.keys.wrapping import Envelope
from sealface.storage import keys as tables
from sealface.storage.database import reading
from sealface.storage.schema import KEYS

_LINE = b"sealface keys backup 1 "
_CHUNK = 1 << 20


class NoKeyDatabase(InvalidInput):
    """The folder holds no key zone's database."""


class NoKeyBackup(InvalidInput):
    """The file is no backup of a key zone."""


class KeyBackupDamaged(DataCorrupted):
    """A backup, or what was to be backed up, is not as it was written."""


class KeysThere(WrongState):
    """There is a database where one is to be restored."""


@dataclass(frozen=True)
class KeyBackup:
    """What is in a backup.

    Attributes:
        digest: SHA-256 of the database in it.
        nbytes: of that.
        keys, versions: how many.
        secrets: wrapped secrets, by the id of the key-encryption key that opens them; empty if that is not said.
        recovery_keys: how many secrets each recovery key opens, by its id; empty for those that none does.
    """

    digest: bytes
    nbytes: int
    keys: int
    versions: int
    secrets: dict[str, int]
    recovery_keys: dict[str, int]


@dataclass(frozen=True)
class RestoredKeys:
    """What a restore did.

    Attributes:
        backup: what was in the file.
        destroyed: versions that were destroyed since, or are to be, and stayed so.
    """

    backup: KeyBackup
    destroyed: int


def back_up(database: Path, file: Path) -> KeyBackup:
    """Write a key zone's database to a file of mode 0600, whole or not at all; an older one there is replaced.

    Raises:
        NoKeyDatabase, KeyBackupDamaged: see there.
    """
    if not database.is_file():
        raise NoKeyDatabase("no key service's database here: name its state folder with --state")
    with TemporaryDirectory(prefix=".keys-backup-", dir=file.parent) as folder:  # mode 0700
        copy, written = Path(folder) / "keys.db", Path(folder) / "backup"
        with closing(_opened(database)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file holds all of it
        found = _examine(copy)
        with open(written, "wb", opener=_private) as target_file, copy.open("rb") as source_file:
            target_file.write(_LINE + found.digest.hex().encode() + b"\n")
            shutil.copyfileobj(source_file, target_file, _CHUNK)
            target_file.flush()
            os.fsync(target_file.fileno())
        written.replace(file)
        _sync(file.parent)
    return found


def verify(file: Path) -> KeyBackup:
    """Look through a backup.

    Raises:
        NoKeyBackup, KeyBackupDamaged, SchemaOutOfDate: see there.
    """
    with _taken_out(file, None) as copy:
        return _examine(copy)


def restore(file: Path, folder: Path, *, replace: bool = False) -> RestoredKeys:
    """Put a backup where a key service that is stopped finds it; all of it or nothing.

    Args:
        file: the backup.
        folder: the key zone's state.
        replace: in the place of a database that is there. What that knows to be destroyed stays destroyed.

    Raises:
        NoKeyBackup, KeyBackupDamaged, KeysThere, KeyZoneInUse: see there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    occupancy, database = Occupancy(folder), folder / "keys.db"
    occupancy.start()
    try:
        if database.exists() and not replace:
            raise KeysThere("there are keys here: stop the service and say --replace, or name another state folder")
        with _taken_out(file, folder) as copy:
            found = _examine(copy)
            destroyed = _destroy_again(copy, database) if database.exists() else 0
            _fold(database)
            copy.chmod(0o600)
            with copy.open("rb") as written:
                os.fsync(written.fileno())
            copy.replace(database)
            _sync(folder)
    finally:
        occupancy.stop()
    return RestoredKeys(found, destroyed)


@contextmanager
def _taken_out(file: Path, beside: Path | None) -> Iterator[Path]:
    """The database in a backup as a file of its own, whose digest was right."""
    try:
        source = file.open("rb")
    except OSError:
        raise NoKeyBackup("the file cannot be read: name what `sealface keys backup` wrote") from None
    with source, TemporaryDirectory(prefix=".keys-restore-", dir=beside) as folder:
        line = source.readline(len(_LINE) + 65)
        if not line.startswith(_LINE):
            raise NoKeyBackup("this is no backup of keys: name what `sealface keys backup` wrote")
        copy, digest = Path(folder) / "keys.db", hashlib.sha256()
        with open(copy, "wb", opener=_private) as target:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
        if line != _LINE + digest.hexdigest().encode() + b"\n":
            raise KeyBackupDamaged("the backup is damaged: take another")
        yield copy


def _examine(copy: Path) -> KeyBackup:
    """Look through a database that nobody else has: its pages, its digests, its secrets' wrappings."""
    with copy.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    nbytes = copy.stat().st_size
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(f"{copy.as_uri()}?immutable=1", uri=True))
    try:
        with reading(engine).begin() as transaction:
            intact = transaction.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
            linked = not transaction.exec_driver_sql("PRAGMA foreign_key_check").all()
        KEYS.check_readable(engine)
        if not (intact and linked and _digests_hold(engine)):
            raise KeyBackupDamaged("the keys' database is damaged: restore it from a backup, or take another one")
        wrapped = [Envelope.parse(blob) for secret in stored_secrets(engine) if (blob := secret.read(engine))]
        with reading(engine).begin() as transaction:
            keys, versions = (
                transaction.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (tables.keys, tables.versions)
            )
    except sa.exc.DatabaseError:
        raise KeyBackupDamaged("this is no database of keys: take another backup") from None
    finally:
        engine.dispose()
    return KeyBackup(
        digest,
        nbytes,
        keys,
        versions,
        dict(Counter(envelope.key for envelope in wrapped)),
        dict(Counter(envelope.recovery_key for envelope in wrapped)),
    )


def _digests_hold(engine: sa.Engine) -> bool:
    versions, evaluation = tables.versions.c, tables.evaluation_keys.c
    stored = (
        sa.select(versions.public_key, versions.public_key_digest),
        sa.select(evaluation.material, evaluation.digest),
    )
    with reading(engine).begin() as transaction:
        for query in stored:
            for material, digest in transaction.execute(query.execution_options(yield_per=16)):
                if hashlib.sha256(material).digest() != digest:
                    return False
    return True


def _destroy_again(copy: Path, database: Path) -> int:
    """Destroy in a copy what the database that it replaces has destroyed, or will; a damaged one knows nothing."""
    query = "SELECT state, destroyed, key, number FROM key_versions WHERE state IN ('destroyed', 'destroy_scheduled')"
    try:
        with closing(_opened(database)) as there:
            rows = there.execute(query).fetchall()
    except sqlite3.Error:
        return 0
    update = "UPDATE key_versions SET state = ?, destroyed = ? WHERE key = ? AND number = ? AND state != 'destroyed'"
    gone = "(SELECT key, number FROM key_versions WHERE state = 'destroyed')"
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA secure_delete=ON")
        done = sum(connection.execute(update, row).rowcount for row in rows)
        connection.execute("UPDATE key_versions SET wrapped_secret = NULL WHERE state = 'destroyed'")
        connection.execute(f"DELETE FROM evaluation_keys WHERE (key, version) IN {gone}")  # noqa: S608 - our own words
        connection.commit()
    return done


def _fold(database: Path) -> None:
    """Leave no write-ahead log of a database that is replaced: SQLite would play it into the new one."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error:
        pass  # it is damaged
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _opened(database: Path) -> sqlite3.Connection:
    """To read, and never to make one that is not there."""
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=30)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
