"""`sealface gallery`: make, show, list and delete galleries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from sealface.cipher.distance import Metric
from sealface.cli.evaluate import read_arrays
from sealface.cli.output import Json, State, console, print_json, progress, reporting
from sealface_client import Client
from sealface_client.policies import DEFAULT_FPIR, default_policy
from sealface_protos.enrollment.v1 import gallery_pb2
from sealface_protos.keys.v1 import key_pb2

app = typer.Typer(help="Make, show, list and delete galleries.", no_args_is_help=True)
GalleryId = Annotated[str, typer.Argument(help="Id of the gallery: 1 to 64 of [a-z0-9-], a letter first.")]


def _describe(gallery: gallery_pb2.Gallery) -> dict[str, Any]:
    return {
        "gallery": gallery.name.removeprefix("galleries/"),
        "key_version": gallery.key_version,
        "custody": key_pb2.Custody.Name(gallery.custody).removeprefix("CUSTODY_").lower(),
        "privacy_level": gallery_pb2.PrivacyLevel.Name(gallery.privacy_level).removeprefix("PRIVACY_LEVEL_").lower(),
        "model": gallery.recognition.model,
        "detector": gallery.recognition.detector,
        "metric": key_pb2.Metric.Name(gallery.score_format.metric).removeprefix("METRIC_").lower(),
        "dimension": gallery.score_format.dimension,
        "subjects": gallery.subjects,
        "templates": gallery.templates,
        "created": gallery.create_time.ToJsonString(),
    }


@app.command()
@reporting
def create(
    gallery: GalleryId,
    model: Annotated[str, typer.Option(help="Recognition model, as DeepFace names it.")] = "Dlib",
    detector: Annotated[str, typer.Option(help="Face detector, as DeepFace names it.")] = "dlib",
    metric: Annotated[Metric, typer.Option(help="Distance.")] = Metric.COSINE,
    threshold: Annotated[float | None, typer.Option(help="Verification threshold; default DeepFace's.")] = None,
    identification_threshold: Annotated[
        float | None, typer.Option(help="Largest distance a search names; default from --fpir.")
    ] = None,
    fpir: Annotated[float, typer.Option(help="Wanted share of non-mated searches that name anybody.")] = DEFAULT_FPIR,
    max_candidates: Annotated[int, typer.Option(min=1, max=10, help="Most subjects a search names.")] = 5,
    disclose: Annotated[float, typer.Option(help="Tell distances, rounded to this step; 0 tells none.")] = 0.0,
    client_held: Annotated[bool, typer.Option("--client-held", help="Make and keep the secret key here.")] = False,
    edge: Annotated[bool, typer.Option("--edge", help="An edge service embeds and encrypts.")] = False,
    largest_face: Annotated[
        bool, typer.Option("--largest-face", help="Of several faces take the largest, instead of refusing.")
    ] = False,
    no_align: Annotated[bool, typer.Option("--no-align", help="Do not align faces.")] = False,
    anti_spoofing: Annotated[bool, typer.Option("--anti-spoofing", help="Refuse pictures of pictures.")] = False,
    largest_norm: Annotated[float | None, typer.Option(help="Bound on an embedding's length (euclidean only).")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a key and an empty gallery of the same id."""
    policy = default_policy(
        model,
        metric,
        verification_threshold=threshold,
        identification_threshold=identification_threshold,
        target_fpir=fpir,
        max_candidates=max_candidates,
        disclosure_step=disclose,
    )
    with Client.connect(state) as client:
        made = client.create_gallery(
            gallery,
            model=model,
            detector=detector,
            metric=metric,
            policy=policy,
            client_held=client_held,
            edge=edge,
            largest_face=largest_face,
            align=not no_align,
            anti_spoofing=anti_spoofing,
            largest_norm=largest_norm,
        )
    _show(made.info, as_json)


@app.command()
@reporting
def show(gallery: GalleryId, state: State = None, as_json: Json = False) -> None:
    """Show a gallery."""
    with Client.connect(state) as client:
        _show(client.gallery(gallery).info, as_json)


@app.command(name="list")
@reporting
def list_(state: State = None, as_json: Json = False) -> None:
    """List all galleries."""
    with Client.connect(state) as client:
        found = [_describe(gallery) for gallery in client.galleries()]
    if as_json:
        print_json({"galleries": found})
        return
    columns = ("gallery", "model", "metric", "custody", "subjects", "templates")
    table = Table(*columns)
    for described in found:
        table.add_row(*(str(described[column]) for column in columns))
    console.print(table)


@app.command()
@reporting
def subjects(gallery: GalleryId, state: State = None, as_json: Json = False) -> None:
    """List a gallery's subjects."""
    with Client.connect(state) as client:
        found = {s.name.rpartition("/")[2]: len(s.templates) for s in client.gallery(gallery).subjects()}
    if as_json:
        print_json({"subjects": found})
        return
    table = Table("subject", "templates")
    for subject, templates in found.items():
        table.add_row(subject, str(templates))
    console.print(table)


@app.command(name="import")
@reporting
def import_(
    gallery: GalleryId,
    embeddings: Annotated[Path, typer.Argument(help="NPZ with `names` (subject ids) and `emb` (one row each).")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Encrypt embeddings here as whole sealed blocks, and import them: much faster than enrolling one by one.

    An imported template that is erased is masked at once, and physically gone when all of its block are.
    """
    names, vectors = read_arrays(embeddings)
    with Client.connect(state) as client, Progress(console=progress, transient=True) as bar:
        opened = client.gallery(gallery)
        task = bar.add_task("importing", total=len(names))
        done = sent = 0
        for block in opened.import_many(zip(names, vectors, strict=True), len(names)):
            done, sent = done + block.templates, sent + block.bytes_sent
            bar.update(task, completed=done)
    if as_json:
        print_json({"templates": done, "bytes_sent": sent})
    else:
        console.print(f"{gallery}: {done:,} templates imported, {sent:,} bytes of ciphertext sent")


@app.command()
@reporting
def delete(
    gallery: GalleryId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Erase a gallery with all that is in it. Its key stays."""
    if not yes and not as_json:
        typer.confirm(f"erase gallery {gallery} with all its templates?", abort=True)
    with Client.connect(state) as client:
        templates = client.delete_gallery(gallery)
    if as_json:
        print_json({"templates": templates})
    else:
        console.print(f"{gallery}: erased, {templates} templates")


def _show(gallery: gallery_pb2.Gallery, as_json: bool) -> None:
    described = _describe(gallery)
    if as_json:
        print_json(described)
        return
    table = Table(show_header=False)
    for name, value in described.items():
        table.add_row(name, str(value))
    console.print(table)
