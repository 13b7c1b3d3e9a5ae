"""Distances at which Dlib takes a given share of pairs of different people for one person.

Reproduces the constants in `sealface_client.policies`, from all pairs of different people among some embeddings:

    python -m sealface_bench.false_match_rate --embeddings ../shared/data/lfw/embeddings.npz
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from sealface.cipher.distance import Metric
from sealface.cli.evaluate import read_embeddings
from sealface.cli.output import Exit, reporting
from sealface_client.policies import false_match_rates

from .people import person

MODEL = "Dlib"
METRICS = (Metric.COSINE, Metric.EUCLIDEAN)
_TOLERANCE = 1e-5  # the constants have five decimals
_ROWS = 512


def different_people(names: list[str], vectors: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    """Distances of all pairs of different people, each pair once."""
    people = np.unique([person(name) for name in names], return_inverse=True)[1]
    return np.concatenate(list(_blocks(people, vectors, metric)))


def _blocks(people: NDArray[np.intp], vectors: NDArray[np.float64], metric: Metric) -> Iterator[NDArray[np.float32]]:
    norms = np.linalg.norm(vectors, axis=1)
    if metric is Metric.COSINE:
        vectors = vectors / norms[:, None]
    for start in range(0, len(people), _ROWS):
        rows = slice(start, start + _ROWS)
        products = vectors[rows] @ vectors[start:].T
        if metric is Metric.COSINE:
            distances = 1 - products
        else:
            distances = np.sqrt(np.maximum(0, norms[rows, None] ** 2 + norms[start:] ** 2 - 2 * products))
        once = np.triu(people[rows, None] != people[start:], 1)
        yield distances[once].astype(np.float32)


def measure(embeddings: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Measured distances beside the constants, by metric."""
    names = sorted(embeddings)
    vectors = np.array([embeddings[name] for name in names])
    found: dict[str, Any] = {"model": MODEL, "faces": len(names), "equal_to_constants": True}
    for metric in METRICS:
        constants = false_match_rates(MODEL, metric)
        rates = [rate for _, rate in constants]
        distances = np.sort(different_people(names, vectors, metric))
        measured = distances[[int(rate * distances.size) for rate in rates]].tolist()
        difference = float(np.abs(np.subtract(measured, [distance for distance, _ in constants])).max())
        found["pairs"] = distances.size
        found[metric.value] = {
            "rates": rates,
            "measured": [round(distance, 6) for distance in measured],
            "constants": [round(distance, 6) for distance, _ in constants],
            "largest_difference": difference,
        }
        found["equal_to_constants"] &= difference <= _TOLERANCE
    return found


@reporting
def main(
    embeddings: Annotated[Path, typer.Option(help="NPZ with `names` (Person_Name_0001) and `emb`, model Dlib.")],
) -> None:
    """Print the measured distances; exit code 1 if the constants are others."""
    found = measure(read_embeddings(embeddings))
    typer.echo(json.dumps(found))
    if not found["equal_to_constants"]:
        raise typer.Exit(Exit.NO)


if __name__ == "__main__":
    typer.run(main)
