"""`sealface evaluate` on real faces: encrypted decisions are the plaintext ones."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sealface.cipher.distance import Metric
from sealface.cli import evaluate
from sealface.cli.processes import LocalServices
from sealface.protocol.policy import AMPLE, Policy
from sealface.recognition import models
from sealface_client import AsyncClient
from tests.system.conftest import DATA

LFW = DATA / "lfw"
SUBSET = 2837 if os.environ.get("SEALFACE_SOAK") else 700  # all of them in the long form
NEAREST = 100
"""Pairs nearest to the threshold that the subset holds: those a wrong score would turn."""
LARGEST_ERROR = 6e-4
"""Of what is compared with the threshold: 7.5 standard deviations of the dither, beside which the rest is small."""

pytestmark = [pytest.mark.faces, pytest.mark.data]


def evaluated(services: LocalServices, *words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "sealface.cli.main", "evaluate", "--state", services.state, *words, "--json"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=250, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_all_decisions_on_deepfaces_own_photographs(services: LocalServices) -> None:
    found = evaluated(services, "--pairs", DATA / "faces" / "pairs.csv", "--images", DATA / "faces")
    assert (found["pairs"], found["skipped"]) == (300, 0)
    assert found["decisions_equal_to_plaintext"] >= 300 - found["decisions_within_error"] >= 297
    assert 0 < found["max_abs_score_error"] < LARGEST_ERROR
    assert found["threshold"] == models.threshold("Dlib", "cosine")
    assert found["accuracy"] > 0.9
    assert found["verify_ms_p50"] > 0
    with_galleries = subprocess.run(
        [sys.executable, "-m", "sealface.cli.main", "gallery", "list", "--state", services.state, "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(with_galleries.stdout) == {"galleries": []}, "what evaluate made is erased"


def subset(metric: str, wanted: int, nearest: int) -> tuple[list[evaluate.Pair], dict[str, Any]]:
    """The pairs nearest to the threshold, and others from all over the list."""
    embeddings = evaluate.read_embeddings(LFW / "embeddings.npz")
    pairs = evaluate.read_pairs(LFW / "pairs.csv")
    assert len(pairs) >= 2000
    limit = models.threshold("Dlib", metric)
    by_nearness = sorted(pairs, key=lambda pair: abs(models.distance(metric, *_both(embeddings, pair)) - limit))
    rest = by_nearness[nearest:]
    step = len(rest) / (wanted - nearest)
    return by_nearness[:nearest] + [rest[int(number * step)] for number in range(wanted - nearest)], embeddings


def _both(embeddings: dict[str, Any], pair: evaluate.Pair) -> tuple[Any, Any]:
    return embeddings[pair.x], embeddings[pair.y]


async def test_decisions_on_lfw_differ_within_the_error_alone(services: LocalServices) -> None:
    pairs, embeddings = subset("cosine", SUBSET, NEAREST)
    limit = models.threshold("Dlib", "cosine")
    async with AsyncClient.connect(services.state) as client:
        galleries = [
            await client.create_gallery(name, policy=Policy(limit, limit, budget=AMPLE), client_held=name == "held")
            for name in ("managed", "held")
        ]
        outcomes = await evaluate._compare(*galleries, pairs, embeddings, Metric.COSINE)
        await asyncio.gather(*(client.delete_gallery(gallery.id) for gallery in galleries))
    found = evaluate.summarise(pairs, outcomes, limit, 0)
    error = found["max_abs_score_error"]
    print(json.dumps(found))
    assert found["pairs"] == SUBSET
    assert 0 < error < LARGEST_ERROR
    near = [outcome for outcome in outcomes if abs(outcome.plaintext - limit) <= error]
    differing = [outcome for outcome in outcomes if outcome.match != (outcome.plaintext <= limit)]
    assert all(outcome in near for outcome in differing)
    assert found["decisions_within_error"] == len(near)
    assert found["decisions_equal_to_plaintext"] == SUBSET - len(differing)
    assert len(differing) <= len(near) <= 40
    assert found["tar"] > 0.5 > 0.1 > found["far"]


def test_a_transform_changes_no_decision_on_photographs(services: LocalServices) -> None:
    found = evaluated(services, "--pairs", DATA / "faces" / "pairs.csv", "--images", DATA / "faces", "--transform")
    assert (found["pairs"], found["decisions_equal_to_plaintext"]) == (300, 300)
    assert 0 < found["max_abs_score_error"] < LARGEST_ERROR


async def test_a_transform_changes_no_decision_on_lfw(services: LocalServices) -> None:
    """Beyond the scores' error: the pairs nearest to the threshold are among them."""
    pairs, embeddings = subset("cosine", SUBSET // 2, NEAREST)
    limit = models.threshold("Dlib", "cosine")
    async with AsyncClient.connect(services.state) as client:
        galleries = [
            await client.create_gallery(
                f"turned-{name}", policy=Policy(limit, limit), client_held=name == "held", transform=True
            )
            for name in ("managed", "held")
        ]
        assert galleries[0].info.transform_digest != galleries[1].info.transform_digest
        outcomes = await evaluate._compare(*galleries, pairs, embeddings, Metric.COSINE)
    found = evaluate.summarise(pairs, outcomes, limit, 0)
    print(json.dumps(found))
    error = found["max_abs_score_error"]
    assert 0 < error < LARGEST_ERROR
    differing = [outcome for outcome in outcomes if outcome.match != (outcome.plaintext <= limit)]
    assert all(abs(outcome.plaintext - limit) <= error for outcome in differing)
    assert found["decisions_equal_to_plaintext"] == len(pairs) - len(differing) >= len(pairs) - 20


@pytest.mark.parametrize("metric", ["euclidean", "euclidean_l2", "angular"])
def test_the_other_metrics(services: LocalServices, tmp_path: Path, metric: str) -> None:
    pairs, _ = subset(metric, 60, 20)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = [(pair.x, pair.y, "Yes" if pair.same else "No") for pair in pairs]
        csv.writer(file).writerows([("file_x", "file_y", "Decision"), *rows])
    found = evaluated(
        services, "--pairs", tmp_path / "pairs.csv", "--embeddings", LFW / "embeddings.npz", "--metric", metric
    )
    assert (found["pairs"], found["skipped"]) == (60, 0)
    assert found["threshold"] == models.threshold("Dlib", metric)
    assert found["max_abs_score_error"] < 5e-3
    assert found["decisions_equal_to_plaintext"] >= 60 - found["decisions_within_error"]
    assert found["decisions_within_error"] <= 15
