"""One way to open a database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa


def open_sqlite(path: Path, metadata: sa.MetaData) -> sa.Engine:
    """An SQLite file with its tables made: durable once committed, erased rows overwritten.

    Args:
        path: the file; made with mode 0600 if it is not there.
        metadata: the tables.
    """
    path.touch(mode=0o600)
    # one writer at a time: BEGIN IMMEDIATE waits for the lock instead of failing on the first write
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

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

    metadata.create_all(engine)
    return engine


def forget(engine: sa.Engine) -> bool:
    """Move the write-ahead log into the database and empty it, so that erased rows are not left there.

    Returns:
        Whether it was emptied; a reader of an old snapshot can prevent it, until the next time.
    """
    connection = engine.raw_connection()  # outside any transaction
    try:
        busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.close()
    return not busy


def reading(engine: sa.Engine) -> sa.Engine:
    """The same database for transactions that only read: they see one snapshot and wait for no writer."""
    return engine.execution_options(read_only=True)
