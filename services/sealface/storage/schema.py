"""The record's schema, brought up to date by migrations (Alembic)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from sealface.errors import WrongState
from sealface.storage.database import open_database, reading

_FIRST = "0001"  # what records were made with before there were migrations


class SchemaOutOfDate(WrongState):
    """The database has another schema than this version of the program."""


def open_record(folder: Path, database: str = "") -> sa.Engine:
    """The record of a service.

    Args:
        folder: the compute zone's state; holds the record if no database is named, migrated here.
        database: its address; migrated by `sealface migrate` alone.

    Raises:
        WrongDatabase, SchemaOutOfDate: see there.
    """
    if database:
        engine = open_database(database)
        try:
            check(engine)
        except BaseException:
            engine.dispose()
            raise
        return engine
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = open_database(f"sqlite:///{folder / 'record.db'}")
    if revision(engine) != newest():
        migrate(engine)
    return engine


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def newest() -> str:
    """The revision that this version of the program needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # noqa: S101 - there is a first one
    return head


def revision(engine: sa.Engine) -> str | None:
    """The revision of a database; None if it is empty."""
    with reading(engine).begin() as connection:
        return _revision(connection)


def _revision(connection: sa.Connection) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None and sa.inspect(connection).has_table("galleries"):
        return _FIRST
    return found


def migrate(engine: sa.Engine) -> tuple[str | None, str]:
    """Bring a database up to date in one transaction; returns the revision before and after."""
    with engine.begin() as connection:  # SQLite locks out other writers here
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5349)")
        before = _revision(connection)
        config = _config(connection)
        if before == _FIRST:
            command.stamp(config, _FIRST)  # does nothing where it is stamped
        command.upgrade(config, "head")
    return before, newest()


def check(engine: sa.Engine) -> None:
    """Refuse a database of another schema.

    Raises:
        SchemaOutOfDate: it has one.
    """
    found = revision(engine)
    if found != newest():
        raise SchemaOutOfDate(
            "the record has another schema than this version: run `sealface migrate`, or install the newer version",
            found=found or "none",
            needed=newest(),
        )
