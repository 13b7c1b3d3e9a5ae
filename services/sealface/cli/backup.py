"""`sealface backup` and `sealface restore`: a gallery to a file and back, on the record itself, beside the services."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sealface.cli.gallery import GalleryId
from sealface.cli.output import Json, console, print_json, progress_bar, reporting
from sealface.cli.record import Database, StateFolder, opened
from sealface.enrollment import restore as restoring
from sealface.protocol import names
from sealface.storage import backup as backups
from sealface.storage.backup import Backup
from sealface.storage.galleries import Galleries
from sealface.storage.schema import RECORD


def _describe(made: Backup) -> dict[str, Any]:
    return {
        "gallery": made.gallery,
        "key_version": made.key_version,
        "created": made.created.isoformat(),
        "templates": made.rows.get("templates", 0),
        "blocks": made.rows.get("blocks", 0),
        "erased": made.rows.get("tombstones", 0),
        "bytes": made.nbytes,
        "sha256": made.digest.hex(),
    }


@reporting
def backup(
    gallery: GalleryId,
    file: Annotated[Path, typer.Argument(help="Where it is written; an older backup there is replaced.")],
    database: Database = "",
    state: StateFolder = Path(".state"),
    as_json: Json = False,
) -> None:
    """Write a gallery to one file: ciphertexts, subject ids, the name of its key. The key itself is not in it.

    Nothing that is damaged is backed up: `sealface doctor` says what is.
    """
    engine = opened(database, state)
    RECORD.check(engine)
    total = Galleries(engine).count(names.check_id(gallery, "gallery"))
    with progress_bar() as bar:
        task = bar.add_task("backing up", total=total)
        made = backups.back_up(engine, gallery, file, lambda templates: bar.advance(task, templates))
    if as_json:
        print_json(_describe(made) | {"file": str(file)})
    else:
        held = f"{made.rows.get('templates', 0):,} templates, {made.nbytes:,} bytes"
        console.print(f"{gallery}: {held} in {file}\nSHA-256 {made.digest.hex()}")


@reporting
def restore(
    file: Annotated[Path, typer.Argument(help="What `sealface backup` wrote.")],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="In the place of the gallery that is there; what that has erased stays erased."),
    ] = False,
    only_verify: Annotated[bool, typer.Option("--verify", help="Check the file, and restore nothing.")] = False,
    database: Database = "",
    state: StateFolder = Path(".state"),
    as_json: Json = False,
) -> None:
    """Bring a gallery back from its backup, all of it or nothing, under the same id and the same key.

    Who was enrolled after the backup is not in it. Who was erased after it comes back, unless the gallery is still
    there and is replaced: erase them again.
    """
    with progress_bar() as bar:
        task = bar.add_task("verifying", total=file.stat().st_size if file.is_file() else None)
        found = backups.verify(file, lambda at: bar.update(task, completed=at))
        if only_verify:
            restored = None
        else:
            engine = opened(database, state)
            RECORD.check(engine)
            bar.update(task, description="restoring")
            restored = restoring.restore(
                engine, file, found, replace=replace, tell=lambda at: bar.update(task, completed=at)
            )
    if as_json:
        print_json(_describe(found) | {"restored": vars(restored) if restored else None})
    elif restored is None:
        console.print(f"{file} is whole: {found.gallery}, {found.rows.get('templates', 0):,} templates")
    else:
        _tell(found, restored)


def _tell(found: Backup, restored: restoring.Restored) -> None:
    made = found.created.astimezone().isoformat(" ", "minutes")
    console.print(f"{found.gallery}: {restored.templates:,} templates restored as they were {made}")
    if restored.lost:
        console.print(f"{restored.lost:,} templates that were enrolled since are gone: enrol them again")
    if restored.kept_erased:
        console.print(f"{restored.kept_erased:,} templates that were erased since stayed erased")
    else:
        console.print(f"whoever was erased after {made} is back: erase them again")
    console.print(f"its key is {found.key_version}, at the key service or its holder's: `sealface doctor --keys` looks")
