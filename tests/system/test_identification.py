"""Searches of large galleries beside plaintext, rank by rank."""

from __future__ import annotations

import asyncio
import os

import pytest

from sealface.cli.evaluate import read_embeddings
from sealface.cli.processes import LocalServices
from sealface_bench import identification
from tests.system.conftest import DATA

SOAK = bool(os.environ.get("SEALFACE_SOAK"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("templates", [100_000, 1_000_000] if SOAK else [100_000])
def test_a_search_answers_as_plaintext_does_rank_by_rank(services: LocalServices, templates: int) -> None:
    file = DATA / "lfw" / "embeddings.npz"
    real = read_embeddings(file) if file.exists() else None
    found = asyncio.run(identification.measure(services.state, real, templates=templates, probes=64, threshold=0.07))
    assert found["probes"] == 64
    assert found["answers_within_error"] == 64
    assert 0 < found["fnir_plaintext"] < 1 or real is None


def test_the_default_policy_keeps_false_alarms_near_its_target(services: LocalServices) -> None:
    file = DATA / "lfw" / "embeddings.npz"
    real = read_embeddings(file) if file.exists() else None
    found = asyncio.run(identification.measure(services.state, real, templates=10_000, probes=200, target_fpir=0.05))
    assert found["answers_within_error"] == 200
    assert found["fpir"] <= 0.15
    assert found["threshold"] < 0.06
