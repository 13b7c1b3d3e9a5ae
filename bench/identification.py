"""FPIR and FNIR of a gallery under its policy, encrypted and in plaintext, rank by rank.

The population is LFW's: one real face of each person enrolled, filled up to the wanted size with draws from the mean
and covariance of the real embeddings; unit vectors where those are missing. Mated probes are other real faces of people
enrolled, non-mated ones faces of people who are not. The policy states a target FPIR; its threshold follows the
gallery's size (`Policy.search_threshold`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.distance import Metric
from sealface.errors import SealfaceError
from sealface.protocol.policy import AMPLE
from sealface_client import AsyncClient
from sealface_client.policies import default_policy

from .people import by_person

MODEL = "Dlib"
_DIMENSION = 128
_ROWS = 8192
_WITHIN = 2e-3  # beyond the threshold by more than any score error
_SPARE = 20  # ranks beyond the last that an error might bring forward
Vectors = NDArray[np.float32]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Population:
    """Unit vectors of who is enrolled (n, d), of probes (m, d), and whose each probe is: a row, or -1 for nobody."""

    enrolled: Vectors
    probes: Vectors
    owners: NDArray[np.int64]


def _unit(vectors: NDArray[Any]) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def population(
    embeddings: Mapping[str, NDArray[np.float64]] | None, size: int, probes: int, seed: int = 11
) -> Population:
    """A gallery and as many probes; half of them mated where there are enough people with two faces.

    Args:
        embeddings: real ones by name (Person_Name_0001), or none.
        size: of the gallery.
        probes: how many.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    if embeddings is None:
        enrolled = _unit(rng.standard_normal((size, _DIMENSION), dtype=np.float32))
        owners = np.where(np.arange(probes) % 2, rng.integers(size, size=probes), -1)
        noise = _unit(rng.standard_normal((probes, _DIMENSION)))
        return Population(
            enrolled, _unit(np.where(owners[:, None] >= 0, enrolled[owners] + 0.2 * noise, noise)), owners
        )
    people = list(by_person(embeddings).values())
    rng.shuffle(people)
    twice = [names for names in people if len(names) >= 2][: probes // 2]
    once = [names for names in people if len(names) == 1]
    strangers = once[: probes - len(twice)]
    known = twice + once[len(strangers) :]
    real = np.stack([embeddings[names[0]] for names in known])[:size]
    drawn = _drawn(np.stack(list(embeddings.values())), size - len(real), rng)
    asked = [embeddings[names[1]] for names in twice] + [embeddings[names[0]] for names in strangers]
    owners = np.array([i if i < len(real) else -1 for i in range(len(twice))] + [-1] * len(strangers))
    return Population(np.concatenate([_unit(real), drawn]), _unit(np.stack(asked)), owners)


def _drawn(real: NDArray[np.float64], count: int, rng: np.random.Generator) -> Vectors:
    """Embeddings with the mean and covariance of real ones."""
    mean, factor = real.mean(axis=0), np.linalg.cholesky(np.cov(real.T) + 1e-9 * np.eye(real.shape[1]))
    parts = [np.empty((0, real.shape[1]), np.float32)]
    for start in range(0, count, _ROWS):
        rows = min(_ROWS, count - start)
        parts.append(_unit(mean + rng.standard_normal((rows, real.shape[1])) @ factor.T))
    return np.concatenate(parts)


def plaintext(faces: Population, threshold: float, most: int) -> list[list[tuple[int, float]]]:
    """Row and distance of the nearest enrolled under a threshold, for each probe."""
    found = []
    for probe in faces.probes:
        distances = 1 - faces.enrolled.astype(np.float32) @ probe
        nearest = np.argpartition(distances, most + _SPARE)[: most + _SPARE]
        exact = 1 - faces.enrolled[nearest].astype(np.float64) @ probe.astype(np.float64)
        ranked = sorted(zip(exact.tolist(), nearest.tolist(), strict=True))
        found.append([(row, distance) for distance, row in ranked if distance <= threshold + _WITHIN])
    return found


def _agree(named: list[int], exact: list[tuple[int, float]], threshold: float, most: int, error: float) -> bool:
    """Whether an encrypted answer is the plaintext one, up to what lies within the error of a score."""
    distances = dict(exact)
    certain = [row for row, distance in exact[:most] if distance <= threshold - error]
    if any(row not in distances or distances[row] > threshold + error for row in named):
        return False
    if len(named) < min(len(certain), most):
        return False
    return all(distances[a] <= distances[b] + 2 * error for a, b in pairwise(named)) and all(
        row in named or distances[row] >= distances[named[-1]] - 2 * error for row in certain
    )


async def measure(
    state: Path | None,
    embeddings: Mapping[str, NDArray[np.float64]] | None,
    *,
    templates: int,
    probes: int,
    target_fpir: float = 0.01,
    threshold: float | None = None,
    error: float = 1e-3,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """FPIR and FNIR both ways; a gallery made for it is erased at the end, its key stays.

    Args:
        state: state folder of running services; None takes the environment's.
        embeddings: real ones of model Dlib by name, or none.
        templates: size of the gallery.
        probes: how many are searched.
        target_fpir: the policy's.
        threshold: a fixed one in its place.
        error: score error within which an answer may differ, dither included: 7.5 standard deviations of it.
        tell: what is being done.
    """
    faces = population(embeddings, templates, probes)
    policy = default_policy(
        MODEL, Metric.COSINE, target_fpir=target_fpir, identification_threshold=threshold, max_candidates=10
    )
    policy = replace(policy, budget=AMPLE)
    threshold = policy.search_threshold(templates)
    exact = plaintext(faces, threshold, policy.max_candidates)
    answers: list[list[int]] = []
    async with AsyncClient.connect(state) as client:
        client.timeout_s = 600.0
        gallery = await client.create_gallery(f"bench-{uuid.uuid4().hex[:12]}", model=MODEL, policy=policy)
        try:
            done = 0
            async for imported in gallery.import_many(_subjects(faces.enrolled), templates):
                done += imported.templates
                tell(f"imported {done:,} of {templates:,}")
            started = time.perf_counter()
            async for found in gallery.identify_many([probe.astype(np.float64) for probe in faces.probes]):
                if isinstance(found, SealfaceError):
                    raise found
                answers.append([int(named.subject) for named in found.candidates])
                tell(f"searched {len(answers):,} of {len(faces.probes):,}")
            seconds = time.perf_counter() - started
        finally:
            await client.delete_gallery(gallery.id)
    mated = faces.owners >= 0
    most = policy.max_candidates
    in_plain = [[row for row, distance in found if distance <= threshold][:most] for found in exact]
    agreeing = [
        _agree(named, found, threshold, policy.max_candidates, error)
        for named, found in zip(answers, exact, strict=True)
    ]
    return {
        "templates": templates,
        "real": embeddings is not None,
        "probes": len(answers),
        "mated": int(mated.sum()),
        "target_fpir": policy.target_fpir or None,
        "threshold": threshold,
        "fpir": _rate([bool(named) for named in answers], ~mated),
        "fpir_plaintext": _rate([bool(named) for named in in_plain], ~mated),
        "fnir": _rate([owner not in named for named, owner in zip(answers, faces.owners, strict=True)], mated),
        "fnir_plaintext": _rate(
            [owner not in named for named, owner in zip(in_plain, faces.owners, strict=True)], mated
        ),
        "answers_equal_to_plaintext": sum(named == plain for named, plain in zip(answers, in_plain, strict=True)),
        "answers_within_error": sum(agreeing),
        "search_ms": seconds / len(answers) * 1e3,
    }


def _subjects(vectors: Vectors) -> Iterator[tuple[str, NDArray[np.float64]]]:
    return ((str(row), vector.astype(np.float64)) for row, vector in enumerate(vectors))


def _rate(events: list[bool], among: NDArray[np.bool_]) -> float | None:
    return float(np.mean(np.array(events)[among])) if among.any() else None
