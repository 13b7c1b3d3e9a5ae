"""`sealface audit`: the key service's audit log, exported and checked."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from secrets import SystemRandom
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from sealface.cli.output import Exit, Json, State, console, fail, print_json, progress_bar, reporting
from sealface.cli.processes import ZONES
from sealface.cli.record import Database, NoRecord, StateFolder, opened
from sealface.errors import InvalidInput
from sealface.protocol.audit import AuditLogBroken, Chain, Head, check
from sealface.storage import chain, keys
from sealface.storage.database import open_database, reading
from sealface_client import AsyncClient

app = typer.Typer(help="The key service's audit log.", no_args_is_help=True)
_T = TypeVar("_T")


class NoSuchHead(InvalidInput):
    """What was named is no head of an audit log."""


def _asked(state: Path | None, ask: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
    async def run() -> _T:
        async with AsyncClient.connect(state) as client:
            return await ask(client)

    return asyncio.run(run())


@app.command()
@reporting
def head(state: State = None, as_json: Json = False) -> None:
    """Print the last entry's number and digest, signed: keep it where the key service's operator cannot write."""
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
    database: Annotated[
        Path | None, typer.Option(help="The key service's database file, keys.db, in place of the service.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Check that nothing in the log was changed, deleted or reordered. Exit code 0: nothing was, 1: something was.

    That its end is missing, or that all of it was written anew, shows against a head that was kept elsewhere.
    """
    known = _head(kept) if kept else None
    try:
        if database is not None:
            found = _check_database(database, known)
        elif file is not None:
            found = _check_file(file, known)
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
    state: State = None,
    as_json: Json = False,
) -> None:
    """Print the log, a line of JSON an entry. With --json one object: how many, and where they are."""
    if as_json and out is None:
        fail("name a file with --out: --json prints one object, and the log is many", Exit.USAGE)

    async def copy(client: AsyncClient) -> int:
        count = 0
        with out.open("wb") if out else sys.stdout.buffer as target:
            async for line in client.audit.lines(after, act):
                target.write(line + b"\n")
                count += 1
            target.flush()
        return count

    count = _asked(state, copy)
    if as_json:
        print_json({"entries": count, "file": str(out)})


@app.command()
@reporting
def pseudonym(
    gallery: Annotated[str, typer.Argument(help="Id of the gallery.")],
    slot: Annotated[int, typer.Argument(min=1, help="A slot of it.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Print what the log has in the place of a slot, to look for whom it was claimed to be."""
    found = _asked(state, lambda client: client.audit.pseudonym(gallery, slot))
    if as_json:
        print_json({"gallery": gallery, "slot": slot, "pseudonym": found})
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
