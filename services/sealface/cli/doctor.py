"""`sealface doctor`: checks all that the record holds, on the record itself, beside the services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
import typer
from rich.table import Table

from sealface.cli.output import Exit, Json, console, print_json, progress_bar, reporting
from sealface.cli.record import Database, StateFolder, opened
from sealface.enrollment.repair import repair as heal
from sealface.storage import doctor as doctors
from sealface.storage import record
from sealface.storage.database import reading
from sealface.storage.doctor import Check, Report
from sealface.storage.entries import Entries
from sealface.storage.findings import Damage, Finding
from sealface.storage.galleries import Galleries
from sealface.storage.redis_address import RedisAddress
from sealface.storage.schema import RECORD
from sealface.storage.sweep import Sweep
from sealface_client import Client
from sealface_protos.keys.v1 import key_pb2

_NO_LIMIT = 1 << 62  # it puts nothing there


@reporting
def doctor(
    gallery: Annotated[str | None, typer.Argument(help="One gallery; all if left out.", show_default=False)] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Heal what the record itself holds the means to heal.")
    ] = False,
    keys: Annotated[
        bool, typer.Option("--keys", help="Ask the key service, too, whether it has each gallery's key.")
    ] = False,
    redis: Annotated[
        str, typer.Option(envvar="SEALFACE_REDIS", help="The cache, whose every entry is then checked as well.")
    ] = "",
    database: Database = "",
    state: StateFolder = Path(".state"),
    as_json: Json = False,
) -> None:
    """Check every digest, slot and counter of the record, and the cache. Exit code 0: healthy, 1: not, 3: no look."""
    engine = opened(database, state)
    RECORD.check(engine)
    further = [_key_check(engine, state)] if keys else []
    further += [_cache_check(engine, redis, repair)] if redis else []
    with progress_bar() as bar:
        task = bar.add_task("examining", total=_total(engine, gallery))

        def tell(gallery_id: str, rows: int) -> None:
            bar.update(task, description=f"examining {gallery_id}", advance=rows)

        report = doctors.examine(engine, gallery, further, tell)
    if repair:
        report.findings = heal(engine, report.findings)
    if as_json:
        found = [finding.described() for finding in report.findings]
        print_json({"checked": dict(report.checked), "findings": found, "healthy": report.healthy})
    else:
        _show(report)
    raise typer.Exit(Exit.DONE if report.healthy else Exit.NO)


def _total(engine: sa.Engine, gallery_id: str | None) -> int:
    """How many templates and blocks there are to look at."""
    with reading(engine).begin() as transaction:
        total = 0
        for table in (record.templates, record.blocks, record.requests):
            query = sa.select(sa.func.count()).select_from(table)
            query = query if gallery_id is None else query.where(table.c.gallery == gallery_id)
            total += transaction.execute(query).scalar_one()
    return total


def _key_check(engine: sa.Engine, state: Path) -> Check:
    """Whether the key service knows each gallery's key version, and has the same public key."""

    def check(gallery_ids: Sequence[str], checked: Counter[str]) -> Iterator[Finding]:
        with Client.connect(state) as client:
            versions = [
                version
                for key in client.list_keys()
                for version in client.lifecycle.versions(key.name.removeprefix("keys/"))
            ]
        gone = (key_pb2.KEY_VERSION_STATE_DESTROYED, key_pb2.KEY_VERSION_STATE_DESTROY_SCHEDULED)
        known = {version.name: version.public_key_digest for version in versions if version.state not in gone}
        table, of_version = record.galleries, record.versions
        query = sa.select(table.c.id, table.c.key_version, of_version.c.public_key_digest).join(
            of_version, (of_version.c.gallery == table.c.id) & (of_version.c.key_version == table.c.key_version)
        )
        with reading(engine).begin() as transaction:
            for gallery_id, key_version, digest in transaction.execute(query.where(table.c.id.in_(gallery_ids))).all():
                checked["keys"] += 1
                if known.get(key_version) != digest:
                    yield Finding(Damage.KEY_UNKNOWN, gallery_id, detail=key_version)

    return check


def _cache_check(engine: sa.Engine, redis: str, repair: bool) -> Check:
    """Whether what Redis holds is what the record has; what is not, is dropped from it in a repair."""
    sweep = Sweep(Galleries(engine), Entries(RedisAddress.parse(redis), _NO_LIMIT))

    def check(gallery_ids: Sequence[str], checked: Counter[str]) -> Iterator[Finding]:
        for gallery_id in gallery_ids:
            holding = sweep.check(gallery_id, drop=repair)
            wrong = [*holding.damaged, *holding.stale]
            checked["cache entries"] += len(holding.right) + len(wrong)
            for name in wrong:
                detail = f"entry {name}, {'damaged' if name in holding.damaged else 'not in the record'}"
                yield Finding(Damage.CACHE_ENTRY_DAMAGED, gallery_id, detail=detail, repaired=repair)

    return check


def _show(report: Report) -> None:
    looked_at = ", ".join(f"{count:,} {kind}" for kind, count in report.checked.items())
    if not report.findings:
        console.print(f"healthy: {looked_at}")
        return
    table = Table("where", "what", "severity", "what to do")
    for finding in report.findings:
        what = f"{finding.what}: {finding.detail}" if finding.detail else finding.what
        table.add_row(finding.where, what, finding.severity, finding.advice)
    console.print(table)
    console.print(f"looked at {looked_at}")
