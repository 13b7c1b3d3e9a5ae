"""The schemas of both zones' databases, brought up to date by migrations (Alembic)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from sealface.errors import WrongState
from sealface.storage import keys, record
from sealface.storage.database import open_database, reading

_FIRST = "0001"  # what databases were made with before there were migrations


class SchemaOutOfDate(WrongState):
    """The database has another schema than this version of the program."""


@dataclass(frozen=True)
class Schema:
    """The tables of a database.

    Attributes:
        folder: of its migrations, beside this module.
        metadata: the tables as they are to be.
        first_table: one that was there before migrations were.
    """

    folder: str
    metadata: sa.MetaData
    first_table: str

    def newest(self) -> str:
        """The revision that this version of the program needs."""
        head = ScriptDirectory.from_config(self._config()).get_current_head()
        assert head is not None  # noqa: S101 - there is a first one
        return head

    def revision(self, engine: sa.Engine) -> str | None:
        """The revision of a database; None if it is empty."""
        with reading(engine).begin() as connection:
            return self._revision(connection)

    def migrate(self, engine: sa.Engine) -> tuple[str | None, str]:
        """Bring a database up to date in one transaction; returns the revision before and after."""
        with engine.begin() as connection:  # SQLite locks out other writers here
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5349)")
            before = self._revision(connection)
            config = self._config(connection)
            if before == _FIRST:
                command.stamp(config, _FIRST)  # does nothing where it is stamped
            command.upgrade(config, "head")
        return before, self.newest()

    def check(self, engine: sa.Engine) -> None:
        """Refuse a database of another schema.

        Raises:
            SchemaOutOfDate: it has one.
        """
        found = self.revision(engine)
        if found != self.newest():
            raise SchemaOutOfDate(
                "the record has another schema than this version: run `sealface migrate`, or install the newer version",
                found=found or "none",
                needed=self.newest(),
            )

    def check_readable(self, engine: sa.Engine) -> None:
        """Refuse a database that this version can neither read nor bring up to date.

        Raises:
            SchemaOutOfDate: it is empty, or newer.
        """
        found = self.revision(engine)
        known = {script.revision for script in ScriptDirectory.from_config(self._config()).walk_revisions()}
        if found not in known:
            raise SchemaOutOfDate(
                "the database is of a newer version of this program, or of another: install that version",
                found=found or "none",
                needed=self.newest(),
            )

    def open_file(self, path: Path) -> sa.Engine:
        """An SQLite file, brought up to date; made with mode 0600, in a folder of mode 0700, if it is not there."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = open_database(f"sqlite:///{path}")
        if self.revision(engine) != self.newest():
            self.migrate(engine)
        return engine

    def _config(self, connection: sa.Connection | None = None) -> Config:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / self.folder))
        config.attributes.update(connection=connection, metadata=self.metadata)
        return config

    def _revision(self, connection: sa.Connection) -> str | None:
        found = MigrationContext.configure(connection).get_current_revision()
        if found is None and sa.inspect(connection).has_table(self.first_table):
            return _FIRST
        return found


RECORD = Schema("migrations", record.metadata, "galleries")
KEYS = Schema("key_migrations", keys.metadata, "keys")


def open_record(folder: Path, database: str = "") -> sa.Engine:
    """The record of a service.

    Args:
        folder: the compute zone's state; holds the record if no database is named, migrated here.
        database: its address; migrated by `sealface migrate` alone.

    Raises:
        WrongDatabase, SchemaOutOfDate: see there.
    """
    if not database:
        return RECORD.open_file(folder / "record.db")
    engine = open_database(database)
    try:
        RECORD.check(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine
