"""`sealface audit`: both zones' audit logs, exported and checked.

The key service shows its log to operators; the compute zone's is read from the record itself, by who runs that zone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from secrets import SystemRandom
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from sealface.cli.output import Exit, Json, State, console, fail, print_json, progress_bar, reporting
from sealface.cli.processes import ZONES
from sealface.cli.record import Database, NoRecord, StateFolder, opened
from sealface.enrollment.audit import AuditLog
from sealface.errors import InvalidInput
from sealface.protocol.audit import AuditLogBroken, Chain, Head, check
from sealface.storage import chain, keys
from sealface.storage.database import open_database, reading
from sealface.storage.schema import RECORD
from sealface_client import AsyncClient

app = typer.Typer(help="The audit logs of keys and decisions, and of galleries.", no_args_is_help=True)
_T = TypeVar("_T")


class LogOf(StrEnum):
    """Whose log."""

    KEYS = "keys"
    COMPUTE = "compute"


OfZone = Annotated[
    LogOf, typer.Option("--zone", help="keys: who used keys, and decisions; compute: who enrolled and erased whom.")
]


class NoSuchHead(InvalidInput):
    """What was named is no head of an audit log."""


def _asked(state: Path | None, ask: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
    async def run() -> _T:
        async with AsyncClient.connect(state) as client:
            return await ask(client)

    return asyncio.run(run())


@contextmanager
def _record_log(database: str, state: Path | None) -> Iterator[AuditLog]:
    """The compute zone's log."""
    engine = opened(database, state or Path(".state"))
    try:
        RECORD.check(engine)
        yield AuditLog(engine)
    finally:
        engine.dispose()


@app.command()
@reporting
def head(zone: OfZone = LogOf.KEYS, database: Database = "", state: State = None, as_json: Json = False) -> None:
    """Print the last entry's number and digest; keep it where whoever runs the zone cannot write."""
    if zone is LogOf.COMPUTE:
        with _record_log(database, state) as log:
            now = log.head()
    else:
        now = _asked(state, lambda client: client.audit.head())
    if as_json:
        signed = {"number": now.number, "digest": now.digest.hex(), "signature": now.signature.hex()}
        print_json(signed | {"time": int(time.time())})
    else:
        console.print(f"{now.number} {now.digest.hex()}")


@app.command()
@reporting
def verify(
    kept: Annotated[
        str, typer.Option("--head", help="A head that was kept: a file of `audit head --json`, or its digest.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option(help="Lines of `audit export`, in place of the running service's log.")
    ] = None,
    zone: OfZone = LogOf.KEYS,
    database: Annotated[
        str,
        typer.Option(help="Of keys the file keys.db, in place of the service; of compute the record, postgresql://…"),
    ] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Check that nothing in the log was changed, deleted or reordered. Exit code 0: nothing was, 1: something was.

    That its end is missing, or that all of it was written anew, shows against a head that was kept elsewhere.
    """
    known = _head(kept) if kept else None
    try:
        if file is not None:
            found = _check_file(file, known)
        elif zone is LogOf.COMPUTE:
            with _record_log(database or os.environ.get("SEALFACE_DATABASE", ""), state) as log:
                found = check(log.lines(), known)
        elif database:
            found = _check_database(Path(database), known)
        else:
            found = _asked(state, lambda client: client.audit.verify(known))
    except AuditLogBroken as error:
        if as_json:
            print_json({"intact": False, "problem": error.message})
        else:
            sys.stderr.write(f"sealface: {error.message}\n")
        raise typer.Exit(Exit.NO) from None
    if as_json:
        unfinished = {str(number): act for number, act in found.unfinished.items()}
        counted = {"entries": found.number, "digest": found.last.hex(), "unfinished": unfinished}
        print_json({"intact": True, "head_found": None if known is None else True} | counted)
    else:
        console.print(f"{found.number:,} entries, none changed; {len(found.unfinished)} acts without an end")


@app.command()
@reporting
def export(
    after: Annotated[int, typer.Option(min=0, help="Number of the entry that it begins behind.")] = 0,
    act: Annotated[str, typer.Option(help="Entries of this act alone; a part cannot be checked.")] = "",
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if left out.")] = None,
    zone: OfZone = LogOf.KEYS,
    database: Database = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Print the log, a line of JSON an entry. With --json one object: how many, and where they are."""
    if as_json and out is None:
        fail("name a file with --out: --json prints one object, and the log is many", Exit.USAGE)

    count = 0
    with out.open("wb") if out else nullcontext(sys.stdout.buffer) as target:

        def write(line: bytes) -> None:
            nonlocal count
            target.write(line + b"\n")
            count += 1

        async def copy(client: AsyncClient) -> None:
            async for line in client.audit.lines(after, act):
                write(line)

        if zone is LogOf.COMPUTE:
            with _record_log(database, state) as log:
                for line in log.lines(after, act):
                    write(line)
        else:
            _asked(state, copy)
        target.flush()
    if as_json:
        print_json({"entries": count, "file": str(out)})


@app.command()
@reporting
def pseudonym(
    gallery: Annotated[str, typer.Argument(help="Id of the gallery.")],
    whom: Annotated[str, typer.Argument(help="A slot of it; with --zone compute a subject.")],
    zone: OfZone = LogOf.KEYS,
    database: Database = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Print what stands in a log for somebody: in the key service's for a slot, in the compute zone's for a subject."""
    named: dict[str, str | int]
    if zone is LogOf.COMPUTE:
        named = {"subject": whom}
        with _record_log(database, state) as log:
            found = log.pseudonym(gallery, whom)
    else:
        slot = _slot(whom)
        named = {"slot": slot}
        found = _asked(state, lambda client: client.audit.pseudonym(gallery, slot))
    if as_json:
        print_json({"gallery": gallery, **named, "pseudonym": found})
    else:
        console.print(found)


@app.command()
@reporting
def recompute(
    log: Annotated[Path, typer.Argument(help="Lines of `audit export`, from the key zone.")],
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the decisions, drawn at random.")] = 0.05,
    database: Database = "",
    state: StateFolder = Path(".state"),
    as_json: Json = False,
) -> None:
    """Compute a random share of decided searches again, bit for bit, without any key (`serve --repeatable`).

    Run it in the compute zone, on its record. Exit code 0: all are right, 1: one was not computed from the record and
    the probe that its caller signed, or has no transcript. What was replaced or erased since cannot be said.
    """
    from sealface.cipher.scheme import Ckks
    from sealface.matching.reexecution import Finding, Reexecution, decisions
    from sealface.matching.transcripts import FILE, Transcripts
    from sealface.storage.galleries import Galleries

    _check_file(log, None)
    with log.open("rb") as file:
        made = list(decisions(line.rstrip(b"\n") for line in file))
    draw = SystemRandom()
    chosen = [one for one in made if draw.random() < share]
    path = state / ZONES["matching"] / FILE
    if not path.exists():
        raise NoRecord(f"{path}: no transcripts: run the matching service with --repeatable")
    auditor = Reexecution(Galleries(opened(database, state)), Ckks(), Transcripts(path), os.cpu_count() or 1)
    with progress_bar() as bar:
        found = Counter(auditor.check(one) for one in bar.track(chosen, description="computing again"))
    counts = {finding.value: found[finding] for finding in Finding}
    if as_json:
        print_json({"decisions": len(made), "drawn": len(chosen), **counts})
    else:
        table = Table("searches", "computed again", title=f"{len(chosen)} of {len(made)} decisions")
        for name, count in counts.items():
            table.add_row(name, str(count))
        console.print(table)
    if found[Finding.DIFFERENT] or found[Finding.MISSING]:
        raise typer.Exit(Exit.NO)


def _slot(named: str) -> int:
    if not (named.isascii() and named.isdigit() and 1 <= int(named) < 1 << 32):
        fail("name a slot, a number from 1 on; for a subject say --zone compute", Exit.USAGE)
    return int(named)


def _head(named: str) -> Head:
    """A head from a file, or from its digest alone.

    Raises:
        NoSuchHead: it is neither.
    """
    try:
        if len(named) == 64 and not Path(named).exists():
            return Head(0, bytes.fromhex(named))
        stored: dict[str, Any] = json.loads(Path(named).read_text())
        return Head(int(stored["number"]), bytes.fromhex(stored["digest"]), bytes.fromhex(stored["signature"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise NoSuchHead(f"{named}: neither a file of `sealface audit head --json` nor a digest of 64 digits") from None


def _check_file(path: Path, known: Head | None) -> Chain:
    try:
        with path.open("rb") as file:
            return check((line.rstrip(b"\n") for line in file), known)
    except OSError as error:
        fail(f"{path}: {error.strerror}: name a file of `sealface audit export`")


def _check_database(path: Path, known: Head | None) -> Chain:
    if not path.exists():
        raise NoRecord(f"{path}: no such file: name the key service's keys.db")
    engine = open_database(f"sqlite:///{path}")
    try:
        with reading(engine).begin() as connection:
            return check(chain.lines(connection, keys.audit), known)
    finally:
        engine.dispose()
