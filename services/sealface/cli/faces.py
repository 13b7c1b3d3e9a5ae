"""`sealface enroll`, `verify`, `identify`, `erase`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sealface.cli.output import Exit, Json, State, console, fail, print_json, progress, reporting
from sealface.cli.passphrase import connect
from sealface_client import Erasure, Gallery, Identification, SealfaceError, ServiceError

GalleryId = Annotated[str, typer.Argument(help="Id of the gallery.")]
SubjectId = Annotated[str, typer.Argument(help="Opaque id of the subject, 1 to 64 of [A-Za-z0-9._-].")]
Image = Annotated[Path, typer.Argument(help="Picture of a face.")]


def _warm(gallery: Gallery) -> None:
    with progress.status("loading the recognition model"):
        gallery.warm()


@reporting
def enroll(
    gallery: GalleryId,
    subject: SubjectId,
    images: Annotated[list[Path], typer.Argument(help="Pictures; each becomes a template.")],
    unique: Annotated[
        bool, typer.Option("--unique", help="Search first; refuse somebody who is enrolled as another subject.")
    ] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Embed and encrypt pictures here, and enrol the ciphertexts."""
    with connect(state) as client:
        opened = client.gallery(gallery)
        _warm(opened)
        templates, sent, failed = [], 0, []
        for image in images:
            try:
                enrolled = opened.enroll(subject, image, unique=unique)
            except SealfaceError as error:
                if len(images) == 1 or (isinstance(error, ServiceError) and error.retryable):
                    raise
                failed.append({"image": str(image), "reason": error.reason, "message": error.message})
                continue
            templates.append(enrolled.template)
            sent += enrolled.bytes_sent
    if as_json:
        print_json({"templates": templates, "bytes_sent": sent, "failed": failed})
    else:
        console.print(f"{subject}: {len(templates)} templates enrolled, {sent:,} bytes of ciphertext sent")
        for failure in failed:
            progress.print(f"{failure['image']}: {failure['message']} [{failure['reason']}]", markup=False)
    if failed:
        raise typer.Exit(Exit.FAILED)


@reporting
def verify(gallery: GalleryId, subject: SubjectId, image: Image, state: State = None, as_json: Json = False) -> None:
    """Is the face in a picture the claimed subject? Exits 1 if not."""
    with connect(state) as client:
        opened = client.gallery(gallery)
        _warm(opened)
        result = opened.verify(subject, image)
    if as_json:
        print_json(
            {
                "decision": "MATCH" if result.match else "NO_MATCH",
                "candidates": [subject] if result.match else [],
                "searched": 1.0,
                "distance": result.distance,
                "confidence": result.confidence,
                "ms": round(result.ms, 2),
                "bytes_sent": result.bytes_sent,
            }
        )
    else:
        verdict = "[green]MATCH[/]" if result.match else "[red]NO MATCH[/]"
        console.print(f"{subject}: {verdict} in {result.ms:.0f} ms, {result.bytes_sent:,} bytes sent")
    raise typer.Exit(Exit.DONE if result.match else Exit.NO)


@reporting
def identify(
    gallery: GalleryId,
    image: Image,
    most: Annotated[int | None, typer.Option(min=1, max=10, help="Most subjects to name.")] = None,
    every_face: Annotated[bool, typer.Option("--every-face", help="Search for every face in the picture.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Who in the gallery is the face in a picture? Exits 1 if nobody."""
    with connect(state) as client:
        opened = client.gallery(gallery)
        _warm(opened)
        if every_face:
            results = []
            for found in opened.identify_many(opened.embed_all(image), most):
                if isinstance(found, SealfaceError):
                    raise found
                results.append(found)
        else:
            results = [opened.identify(image, most)]
    described = [_describe(result) for result in results]
    if as_json:
        print_json({"faces": described} if every_face else described[0])
    else:
        for number, result in enumerate(results, 1):
            _show(result, f"face {number} of {len(results)}: " if every_face else "")
    raise typer.Exit(Exit.DONE if any(result.match for result in results) else Exit.NO)


def _describe(result: Identification) -> dict[str, Any]:
    return {
        "decision": "MATCH" if result.match else "NO_MATCH",
        "candidates": [named.subject for named in result.candidates],
        "searched": result.searched,
        "ms": round(result.ms, 2),
        "bytes_sent": result.bytes_sent,
    }


def _show(result: Identification, which: str) -> None:
    table = Table("rank", "subject", "distance", "confidence", title=f"{which}searched {result.searched:.0%}")
    for rank, named in enumerate(result.candidates, 1):
        told = [f"{value:.3f}" if value is not None else "not told" for value in (named.distance, named.confidence)]
        table.add_row(str(rank), named.subject, *told)
    console.print(table if result.candidates else f"{which}[red]NO MATCH[/]: nobody in the gallery is near enough")
    console.print(f"{result.ms:.0f} ms, {result.bytes_sent:,} bytes sent")


@reporting
def erase(
    gallery: GalleryId,
    subject: SubjectId,
    proof: Annotated[
        bool, typer.Option("--proof", help="Wait until nothing of it is left anywhere, and say what was looked at.")
    ] = False,
    image: Annotated[Path | None, typer.Option(help="With --proof: another picture of it, to search for.")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Erase a subject: no search finds it from now on. With --proof, exits 1 if something of it is left."""
    if image is not None and not proof:
        fail("--image goes with --proof", Exit.USAGE)
    with connect(state) as client:
        opened = client.gallery(gallery)
        if not proof:
            templates = opened.erase(subject)
            if as_json:
                print_json({"templates": templates})
            else:
                console.print(f"{subject}: {templates} templates erased")
            return
        if image is not None:
            _warm(opened)
        with progress.status("erasing, and looking for what is left"):
            erasure = opened.erase_with_proof(subject, image)
    if as_json:
        print_json(asdict(erasure) | {"complete": erasure.complete})
    else:
        _show_erasure(subject, erasure)
    raise typer.Exit(Exit.DONE if erasure.complete else Exit.NO)


def _show_erasure(subject: str, erasure: Erasure) -> None:
    table = Table("looked at", "entries", "with something of it", title=f"{subject}: {erasure.templates} erased")
    for check in erasure.checks:
        table.add_row(check.place, f"{check.checked:,}", f"{check.found:,}")
    console.print(table)
    if erasure.complete:
        console.print("[green]nothing of it is left[/]")
    else:
        console.print(
            "[yellow]something of it is left[/], masked in every result: erase again, or see the services' logs"
        )
