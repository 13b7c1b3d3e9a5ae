"""`sealface migrate`: for whoever runs the compute zone, on the record itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
import typer

from sealface.cli.output import Json, console, print_json, reporting
from sealface.cli.processes import ZONES
from sealface.errors import InvalidInput
from sealface.storage.database import open_database
from sealface.storage.schema import RECORD

Database = Annotated[
    str,
    typer.Option(envvar="SEALFACE_DATABASE", help="The record, postgresql://…; default the one in the state folder."),
]
StateFolder = Annotated[
    Path, typer.Option("--state", envvar="SEALFACE_STATE", help="State folder of `sealface serve`.")
]


class NoRecord(InvalidInput):
    """The state folder holds no record."""


def opened(database: str, state: Path) -> sa.Engine:
    """The record that a command was told of.

    Raises:
        NoRecord, WrongDatabase, RecordUnavailable: see there.
    """
    if database:
        return open_database(database)
    path = state.resolve() / ZONES["enrollment"] / "record.db"
    if not path.exists():
        raise NoRecord("no record here: name the state folder with --state, or the database with --database")
    return open_database(f"sqlite:///{path}")


@reporting
def migrate(database: Database = "", state: StateFolder = Path(".state"), as_json: Json = False) -> None:
    """Bring the record's schema up to date. Services refuse a database of another schema than theirs."""
    before, after = RECORD.migrate(opened(database, state))
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        console.print(f"the record is up to date: {after}")
    else:
        console.print(f"the record's schema is now {after}; it was {before or 'empty'}")
