"""One way to open a database: SQLite for one machine, PostgreSQL for a deployment."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sealface.errors import DataCorrupted, InvalidInput, Unavailable

_WAIT_S = 30  # for another writer
_FORGET_MS = 200  # for readers of older snapshots
_CONNECT_S = 3
_STATEMENT_S = 120
_OPERATIONAL = {"OperationalError", "ReadOnlySqlTransaction"}
_DAMAGED = {"DataCorrupted", "IndexCorrupted"}
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}


class RecordUnavailable(Unavailable):
    """The database is away, full, or may not be written now."""


class RecordDamaged(DataCorrupted):
    """The database finds its own files damaged."""


class WrongDatabase(InvalidInput):
    """The address is none of a database that is supported."""


def open_database(url: str) -> sa.Engine:
    """A database by its address.

    Args:
        url: `sqlite:///path` or `postgresql://user:password@host:port/name`.

    Raises:
        WrongDatabase: it is neither.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return _sqlite(Path(rest.removeprefix("/")))  # sqlite:///relative, sqlite:////absolute
    if scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        return _postgresql(rest)
    raise WrongDatabase("no such database: use sqlite:///path or postgresql://user:password@host:port/name")


def open_sqlite(path: Path, metadata: sa.MetaData) -> sa.Engine:
    """An SQLite file with its tables made.

    Args:
        path: the file; made with mode 0600 if it is not there.
        metadata: the tables.
    """
    engine = _sqlite(path)
    metadata.create_all(engine)
    return engine


def _sqlite(path: Path) -> sa.Engine:
    """Durable once committed, erased rows overwritten."""
    path.touch(mode=0o600)
    # one writer at a time: BEGIN IMMEDIATE waits for the lock instead of failing on the first write
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": _WAIT_S})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        immediate = not connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    sa.event.listen(engine, "handle_error", _translate)
    return engine


def _postgresql(rest: str) -> sa.Engine:
    """Writers lock the gallery's row; readers see one snapshot (`reading`); nobody waits for ever."""
    from psycopg import Cursor  # where it is used only: it loads libpq
    from psycopg.pq import Format

    class Binary(Cursor[Any]):
        """Asks for binary results: ciphertexts in hexadecimal digits take five times as long to read."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.format = Format.BINARY

    limits = f"-c statement_timeout={_STATEMENT_S}s -c lock_timeout={_WAIT_S}s -c timezone=UTC"
    engine = sa.create_engine(
        f"postgresql+psycopg://{rest}",
        pool_size=16,
        max_overflow=32,
        pool_timeout=_WAIT_S,
        pool_pre_ping=True,
        hide_parameters=True,  # ciphertexts and subject ids stay out of messages
        connect_args={"connect_timeout": _CONNECT_S, "options": limits, "cursor_factory": Binary},
    )

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("read_only", False):
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    sa.event.listen(engine, "handle_error", _translate)
    return engine


def _translate(context: sa.ExceptionContext) -> None:
    """What a caller may try again, as one error; anything else stays what it is."""
    if context.is_pre_ping:  # the pool connects anew
        return
    error = context.original_exception
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # SQLite's own kinds; psycopg's have names
    # away, shut down, full, locked for too long, cancelled by a limit, or two writers that met
    if context.is_disconnect or code in _SQLITE_AWAY or (not code and _is(error, _OPERATIONAL)):
        raise RecordUnavailable("the record cannot be read or written now: try again") from None
    if code in _SQLITE_DAMAGED or _is(error, _DAMAGED):
        raise RecordDamaged("the record's database is damaged: restore it from a backup") from None


def _is(error: BaseException | None, names: set[str]) -> bool:
    """Whether it is a psycopg error of a kind; psycopg itself is imported where it is used only."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


def forget(engine: sa.Engine) -> bool:
    """Have erased rows out of the database's files as far as it can; false if it has to be tried again.

    SQLite overwrites rows as it deletes them. What is left in its write-ahead log goes when that is emptied, which a
    reader of an old snapshot can prevent for a while. PostgreSQL frees their pages, to be written over some time.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM templates, blocks, template_ciphertexts, block_ciphertexts")
        return True
    raw = engine.raw_connection()  # outside any transaction
    try:
        cursor = raw.cursor()
        # it keeps writers waiting while it waits for readers, and a backup reads for minutes
        cursor.execute(f"PRAGMA busy_timeout={_FORGET_MS}")
        busy, _, _ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        cursor.execute(f"PRAGMA busy_timeout={_WAIT_S * 1000}")
    finally:
        raw.close()
    return not busy


def reading(engine: sa.Engine) -> sa.Engine:
    """The same database for transactions that only read: they see one snapshot and wait for no writer."""
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    return engine.execution_options(read_only=True)


def in_utc(stored: datetime) -> datetime:
    """A stored time with its zone: SQLite keeps none, and all are stored in UTC."""
    return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored.astimezone(UTC)
