"""`sealface evaluate`: encrypted decisions beside plaintext ones, on pairs of photographs or embeddings."""

from __future__ import annotations

import asyncio
import csv
import statistics
import uuid
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import Progress
from rich.table import Table

from sealface.cipher.distance import Metric
from sealface.cli.output import Exit, Json, State, console, fail, print_json, progress, reporting
from sealface.cli.processes import services_at
from sealface.errors import InvalidInput, SealfaceError
from sealface.protocol.policy import AMPLE, Policy
from sealface.recognition import FaceRule, Pipeline, models
from sealface_client import AsyncClient, AsyncGallery
from sealface_client.faces import Faces

_AT_ONCE = 4
_T = TypeVar("_T")


class PairsUnreadable(InvalidInput):
    """The list of pairs, or the embeddings, cannot be read."""


@dataclass(frozen=True)
class Pair:
    """Two faces by name, and whether they are the same person's."""

    x: str
    y: str
    same: bool


@dataclass(frozen=True)
class Outcome:
    """One pair, both ways."""

    plaintext: float
    encrypted: float
    match: bool
    ms: float


def read_pairs(path: Path) -> list[Pair]:
    """A CSV file with columns file_x, file_y, Decision (Yes or No).

    Raises:
        PairsUnreadable: it is none.
    """
    try:
        with path.open(newline="") as file:
            rows = [(row["file_x"], row["file_y"], row["Decision"]) for row in csv.DictReader(file)]
        if not all(x and y and decision in ("Yes", "No") for x, y, decision in rows):
            raise ValueError("a row is incomplete")
        return [Pair(x, y, decision == "Yes") for x, y, decision in rows]
    except (OSError, KeyError, ValueError, csv.Error):
        raise PairsUnreadable(f"{path.name}: no readable CSV with the columns file_x, file_y and Decision") from None


def read_embeddings(path: Path) -> dict[str, NDArray[np.float64]]:
    """Embeddings by name; see `read_arrays`."""
    return dict(zip(*read_arrays(path), strict=True))


def read_arrays(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Names and embeddings (n, d) of an NPZ file with `names` and `emb`.

    Raises:
        PairsUnreadable: it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, vectors = stored["names"].astype(str).tolist(), stored["emb"].astype(np.float64)
        if vectors.ndim != 2 or len(names) != len(vectors):
            raise ValueError("not one row a name")
        return names, vectors
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile):  # numpy raises any of them
        raise PairsUnreadable(f"{path.name}: no NPZ file with arrays `names` and `emb`") from None


async def embed_images(folder: Path, wanted: Iterable[str], pipeline: Pipeline) -> dict[str, NDArray[np.float64]]:
    """Embeddings of the pictures in which a face is found."""
    faces, found = Faces(), {}
    with Progress(console=progress, transient=True) as bar:
        names = sorted(set(wanted))
        task = bar.add_task("embedding pictures", total=len(names))
        for name in names:
            try:
                found[name] = await faces.embed(folder / name, pipeline)
            except SealfaceError as error:
                progress.print(f"{name} skipped: {error.message}", markup=False)
            bar.advance(task)
    return found


async def _all(work: Iterable[Awaitable[_T]], what: str, total: int) -> list[_T]:
    """Run with bounded concurrency, progress shown; results in order."""
    limit = asyncio.Semaphore(_AT_ONCE)
    with Progress(console=progress, transient=True) as bar:
        task = bar.add_task(what, total=total)

        async def one(item: Awaitable[_T]) -> _T:
            async with limit:
                result = await item
                bar.advance(task)
                return result

        return list(await asyncio.gather(*(one(item) for item in work)))


async def _compare(
    managed: AsyncGallery,
    held: AsyncGallery,
    pairs: list[Pair],
    embeddings: dict[str, NDArray[np.float64]],
    metric: Metric,
) -> list[Outcome]:
    subjects = {name: f"s{number}" for number, name in enumerate(sorted({pair.x for pair in pairs}))}
    for gallery in (managed, held):
        enrolments = (gallery.enroll(subject, embeddings[name]) for name, subject in subjects.items())
        await _all(enrolments, "enrolling", len(subjects))

    async def compare(pair: Pair) -> Outcome:
        decided = await managed.verify(subjects[pair.x], embeddings[pair.y])
        # as decisions are made on them; another draw than the decision's own
        score = await held.distance(subjects[pair.x], embeddings[pair.y], dithered=True)
        plaintext = models.distance(metric.value, embeddings[pair.x], embeddings[pair.y])
        return Outcome(plaintext, score, decided.match, decided.ms)

    return await _all((compare(pair) for pair in pairs), "verifying", len(pairs))


def summarise(pairs: list[Pair], outcomes: list[Outcome], threshold: float, skipped: int) -> dict[str, Any]:
    """The contract's fields."""
    same = np.array([pair.same for pair in pairs])
    match = np.array([outcome.match for outcome in outcomes])
    plaintext = np.array([outcome.plaintext for outcome in outcomes])
    error = float(np.abs(plaintext - [outcome.encrypted for outcome in outcomes]).max())
    return {
        "pairs": len(pairs),
        "skipped": skipped,
        "decisions_equal_to_plaintext": int((match == (plaintext <= threshold)).sum()),
        "decisions_within_error": int((np.abs(plaintext - threshold) <= error).sum()),
        "max_abs_score_error": error,
        "accuracy": float((match == same).mean()),
        "tar": float(match[same].mean()) if same.any() else None,
        "far": float(match[~same].mean()) if (~same).any() else None,
        "threshold": threshold,
        "verify_ms_p50": statistics.median(outcome.ms for outcome in outcomes),
    }


async def run(
    state: Path | None,
    pairs: list[Pair],
    embeddings: dict[str, NDArray[np.float64]],
    pipeline: Pipeline,
    metric: Metric,
    threshold: float,
    transform: bool = False,
) -> dict[str, Any]:
    """Evaluate; galleries made for it are erased at the end, and their keys destroyed."""
    usable = [pair for pair in pairs if pair.x in embeddings and pair.y in embeddings]
    if not usable:
        raise PairsUnreadable("no pair has both faces: nothing to evaluate")
    policy = Policy(verification_threshold=threshold, identification_threshold=threshold, budget=AMPLE)
    suffix = uuid.uuid4().hex[:12]
    async with AsyncClient.connect(state) as client:
        galleries = []
        for kind in ("managed", "held"):
            gallery = await client.create_gallery(
                f"evaluate-{kind}-{suffix}",
                model=pipeline.model,
                detector=pipeline.detector,
                metric=metric,
                policy=policy,
                client_held=kind == "held",
                transform=transform,
            )
            galleries.append(gallery)
        try:
            outcomes = await _compare(galleries[0], galleries[1], usable, embeddings, metric)
        finally:
            for gallery in galleries:
                await client.delete_gallery(gallery.id)
                await client.lifecycle.destroy(gallery.id, 1, timedelta())
                for name in client.key_folder.names():
                    if name.split("/")[1] == gallery.id:
                        client.key_folder.remove(name)
    return summarise(usable, outcomes, threshold, len(pairs) - len(usable))


@reporting
def evaluate(
    pairs: Annotated[Path, typer.Option(help="CSV: file_x,file_y,Decision (Yes/No).")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="NPZ with `names` and `emb`, in place of pictures.")] = None,
    model: Annotated[str, typer.Option(help="Recognition model, as DeepFace names it.")] = "Dlib",
    detector: Annotated[str, typer.Option(help="Face detector, as DeepFace names it.")] = "dlib",
    metric: Annotated[Metric, typer.Option(help="Distance.")] = Metric.COSINE,
    threshold: Annotated[float | None, typer.Option(help="Verification threshold; default DeepFace's.")] = None,
    transform: Annotated[
        bool, typer.Option("--transform", help="Galleries whose embeddings are transformed by a secret matrix.")
    ] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Compare encrypted decisions and scores with plaintext ones, pair by pair.

    The score error is that of what is compared with the threshold, dither included. Decisions come through a managed
    gallery, scores through a client-held one; both are made for it and erased.
    """
    if (images is None) == (embeddings is None):
        fail("name either --images or --embeddings", Exit.USAGE)
    listed = read_pairs(pairs)
    pipeline = Pipeline(model=model, detector=detector, several=FaceRule.LARGEST)
    chosen = models.threshold(model, metric.value) if threshold is None else threshold
    with services_at(state, lambda line: progress.print(line)) as where:
        if embeddings is not None:
            found = read_embeddings(embeddings)
        else:
            wanted = (name for pair in listed for name in (pair.x, pair.y))
            assert images is not None  # noqa: S101 - one of the two is named
            found = asyncio.run(embed_images(images, wanted, pipeline))
        summary = asyncio.run(run(where, listed, found, pipeline, metric, chosen, transform))
    if as_json:
        print_json(summary)
        return
    table = Table(show_header=False, title="encrypted against plaintext")
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
    console.print(table)
