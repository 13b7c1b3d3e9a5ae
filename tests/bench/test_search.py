import json

import pytest

from sealface.cli.processes import local_services
from sealface_bench import compare, search
from sealface_bench.search import NoModelOfDimension, model_of

# `sealface bench search --json` in the outside contract
CONTRACT = {
    "templates",
    "dim",
    "threads",
    "expand_ms",
    "score_ms",
    "open_ms",
    "total_ms",
    "plain_ms",
    "ratio_to_plain",
    "max_abs_error",
    "bytes_per_template",
    "rss_mb",
}


@pytest.fixture(scope="module")
def state():
    with local_services() as services:
        yield services.state


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_search_is_measured_and_every_answer_right(state, batch):
    found = await search.measure(state, templates=700, dimension=128, probes=8, threads=2, batch=batch)
    assert set(found) >= CONTRACT
    json.dumps(found)
    assert (found["templates"], found["dim"], found["threads"], found["batch"]) == (700, 128, 2, batch)
    assert found["right"] == found["probes"] == 8
    assert found["max_abs_error"] < 2e-4
    assert found["error_templates"] == 700
    assert found["ratio_to_plain"] == found["score_ms"] / found["plain_ms"]
    assert 61_440 < found["probe_bytes"] < 62_500
    assert 2_048 < found["bytes_per_template"] < 3_000
    assert all(found[name] > 0 for name in CONTRACT)
    assert found["rss_all_mb"] > found["rss_mb"] > 50


async def test_a_comparison_has_a_row_for_every_size(state):
    said = []
    rows = await compare.compare(state, ((300, 128), (300, 512)), probes=2, seconds=0.2, tell=said.append)
    assert [(row["templates"], row["dim"]) for row in rows] == [(300, 128), (300, 512)]
    for row in rows:
        assert row["right"] == row["probes"]
        assert row["cipherface_pairs_measured"] >= 3
        assert row["cipherface_ms"] > 300 * 0.1
    assert any("300 x 512" in line for line in said)


def test_dimensions_are_those_of_models():
    assert model_of(128)
    with pytest.raises(NoModelOfDimension, match="128"):
        model_of(131)
