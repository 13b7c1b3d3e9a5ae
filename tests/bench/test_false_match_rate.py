from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from sealface.cipher.distance import Metric
from sealface_bench import false_match_rate

LFW = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "lfw" / "embeddings.npz"
NAMES = [f"P{person}_{face:04d}" for person in range(300) for face in (1, 2)]


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(false_match_rate.main)
    return made


@pytest.mark.parametrize("metric", false_match_rate.METRICS)
def test_all_pairs_of_different_people_once(metric: Metric) -> None:
    vectors = np.random.default_rng(3).standard_normal((len(NAMES), 8))
    found = false_match_rate.different_people(NAMES, vectors, metric)

    def distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        if metric is Metric.EUCLIDEAN:
            return float(np.linalg.norm(x - y))
        return float(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    expected = [
        distance(vectors[i], vectors[j])
        for i, j in combinations(range(len(NAMES)), 2)
        if NAMES[i].split("_")[0] != NAMES[j].split("_")[0]
    ]
    assert np.allclose(np.sort(found), np.sort(expected), atol=1e-5)


def test_other_embeddings_do_not_reproduce_the_constants(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.npz"
    vectors = np.random.default_rng(3).standard_normal((len(NAMES), 8))
    np.savez(path, names=np.array(NAMES), emb=vectors.astype(np.float32))
    result = CliRunner().invoke(app(), ["--embeddings", str(path)])
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["equal_to_constants"] is False
    assert found["pairs"] == 600 * 599 // 2 - 300
    assert found["faces"] == 600


@pytest.mark.data
@pytest.mark.skipif(not LFW.exists(), reason="needs ../shared/data/lfw")
def test_lfw_reproduces_the_constants() -> None:
    result = CliRunner().invoke(app(), ["--embeddings", str(LFW)])
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["equal_to_constants"] is True
    for metric in false_match_rate.METRICS:
        assert found[metric.value]["largest_difference"] < 1e-5
