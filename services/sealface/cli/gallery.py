"""`sealface gallery`: make, show, list and delete galleries."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from sealface.cipher.distance import Metric
from sealface.cli import transforms
from sealface.cli.evaluate import read_arrays
from sealface.cli.output import Json, State, console, fail, print_json, progress, reporting
from sealface.cli.passphrase import connect
from sealface_client import Client
from sealface_client.policies import DEFAULT_FPIR, default_policy
from sealface_protos.enrollment.v1 import gallery_pb2, operation_pb2
from sealface_protos.keys.v1 import key_pb2

app = typer.Typer(help="Make, show, list and delete galleries.", no_args_is_help=True)
for command in transforms.COMMANDS:
    app.command(name=command.__name__.replace("_", "-"))(command)
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
        "transform_digest": gallery.transform_digest.hex() or None,
        "retention_s": gallery.retention.seconds if gallery.HasField("retention") else None,
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
    retention_days: Annotated[
        int | None, typer.Option(min=1, help="Days that a template is kept after it was enrolled; default for ever.")
    ] = None,
    largest_norm: Annotated[float | None, typer.Option(help="Bound on an embedding's length (euclidean only).")] = None,
    exportable: Annotated[
        bool, typer.Option("--exportable", help="Let an operator export the secret of a managed key.")
    ] = False,
    transform: Annotated[
        bool,
        typer.Option("--transform", help="Embeddings by a secret matrix, so that they match in no other gallery."),
    ] = False,
    security_bits: Annotated[
        int, typer.Option(help="128, 192 or 256, against quantum computers; above 128 all is twice as large.")
    ] = 128,
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
    with connect(state) as client:
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
            retention=None if retention_days is None else timedelta(days=retention_days),
            exportable=exportable,
            transform=transform,
            security_bits=security_bits,
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
    operation: Annotated[
        str,
        typer.Option(help="Id of the import; default the file's digest. The same one goes on where it was."),
    ] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Encrypt embeddings here as whole sealed blocks, and import them: much faster than enrolling one by one.

    An imported template that is erased is masked at once, and physically gone when the key service has renewed its
    block, soon after; of a client-held key, with `erase --proof` or `gallery compact`.
    """
    names, vectors = read_arrays(embeddings)
    with connect(state) as client:
        opened = client.gallery(gallery)
        operation = operation or f"import-{hashlib.sha256(embeddings.read_bytes()).hexdigest()[:16]}"
        before = opened.operations.begin_import(len(names), operation)
        if before.state == operation_pb2.OPERATION_STATE_CANCELLED or before.total != len(names):
            fail(f"the import {operation} was cancelled, or is of another file: name another with --operation")
        done, sent, rest = before.done, 0, slice(before.done, None)
        with Progress(console=progress, transient=True) as bar:
            task = bar.add_task("importing", total=len(names), completed=done)
            for block in opened.import_many(zip(names[rest], vectors[rest], strict=True), len(names), operation):
                done, sent = done + block.templates, sent + block.bytes_sent
                bar.update(task, completed=done)
    if as_json:
        print_json({"operation": operation, "templates": done, "before": before.done, "bytes_sent": sent})
        return
    console.print(f"{gallery}: {done:,} templates imported, {sent:,} bytes of ciphertext sent")
    if before.done:
        console.print(f"{before.done:,} of them by an earlier call of this import, {operation}")


@app.command()
@reporting
def retain(
    gallery: GalleryId,
    days: Annotated[int, typer.Argument(min=0, help="Days that a template is kept; 0 for ever.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Set how long templates are kept after they were enrolled. Those that are older are erased, soon."""
    with Client.connect(state) as client:
        opened = client.gallery(gallery)
        opened.keep_for(timedelta(days=days) if days else None)
        _show(opened.info, as_json)


@app.command()
@reporting
def compact(gallery: GalleryId, state: State = None, as_json: Json = False) -> None:
    """Seal all open templates, and make blocks with erased ones again; returns when that is done."""
    with connect(state) as client, Progress(console=progress, transient=True) as bar:
        opened = client.gallery(gallery)
        operations = opened.operations
        if opened.info.custody == key_pb2.CUSTODY_CLIENT_HELD:
            opened.renew_blocks()
        task = bar.add_task("making blocks", total=None)
        for operation in operations.follow(operations.begin_compaction()):
            bar.update(task, completed=operation.done)
    if as_json:
        print_json(_describe_operation(operation))
    else:
        console.print(f"{gallery}: {operation.compacted.blocks} blocks made or dropped")


@app.command()
@reporting
def rotate(gallery: GalleryId, state: State = None, as_json: Json = False) -> None:
    """Move a gallery to a new version of its key while it is searched; repeated, it goes on where it was."""
    with Client.connect(state) as client, Progress(console=progress, transient=True) as bar:
        opened = client.gallery(gallery)
        task = bar.add_task("re-encrypting", total=None)
        for operation in opened.operations.follow(opened.rotate()):
            bar.update(task, completed=operation.done, total=operation.total or None)
    if as_json:
        print_json(_describe_operation(operation) | {"key_version": operation.rotated.key_version})
    else:
        moved = operation.rotated
        console.print(f"{gallery}: under {moved.key_version} now, {moved.ciphertexts:,} ciphertexts re-encrypted")


@app.command()
@reporting
def operations(gallery: GalleryId, state: State = None, as_json: Json = False) -> None:
    """List long work on a gallery, the newest first."""
    with Client.connect(state) as client:
        found = [_describe_operation(operation) for operation in client.gallery(gallery).operations.list()]
    if as_json:
        print_json({"operations": found})
        return
    table = Table("operation", "kind", "state", "done", "total", "begun")
    for described in found:
        table.add_row(*(str(value) for value in list(described.values())[:6]))
    console.print(table)


@app.command()
@reporting
def cancel(
    gallery: GalleryId,
    operation: Annotated[str, typer.Argument(help="Id of the operation.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """End an import or a compaction where it is; what is stored stays."""
    with Client.connect(state) as client:
        described = _describe_operation(client.gallery(gallery).operations.cancel(operation))
    if as_json:
        print_json(described)
    else:
        console.print(f"{operation}: {described['state']} at {described['done']} of {described['total']}")


def _describe_operation(operation: operation_pb2.Operation) -> dict[str, Any]:
    kind, state = operation_pb2.OperationKind.Name(operation.kind), operation_pb2.OperationState.Name(operation.state)
    return {
        "operation": operation.name.rpartition("/")[2],
        "kind": kind.removeprefix("OPERATION_KIND_").lower(),
        "state": state.removeprefix("OPERATION_STATE_").lower(),
        "done": operation.done,
        "total": operation.total,
        "created": operation.create_time.ToJsonString(),
        "error": operation.error.message,
    }


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
