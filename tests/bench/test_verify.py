from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sealface.cli import main
from sealface.cli.processes import local_services
from sealface_bench import verify
from sealface_bench.people import by_person

CONTRACT = {"server_ms_p50", "cipherface_ms_p50", "bytes", "cipherface_bytes"}
# residues of a fresh ciphertext are uniform: no compression takes them below their entropy
_RESIDUES_8192 = 2 * 8192 * (60 + 40 + 40) // 8


@pytest.fixture(scope="module")
def baseline() -> verify.CipherFace:
    return verify.CipherFace(verify.CIPHERFACE)


@pytest.fixture(scope="module")
def services() -> Iterator[Path]:
    with local_services() as running:
        yield running.state


def test_cipherfaces_way_computes_the_cosine(baseline: verify.CipherFace) -> None:
    faces = verify.synthetic(2)
    for template, probe, score in zip(faces.templates, faces.probes, faces.scores, strict=True):
        result = baseline.compare(baseline.encrypt(template), baseline.encrypt(probe))
        assert abs(baseline.open(result) - score) < 1e-4


def test_its_server_has_no_secret_key(baseline: verify.CipherFace) -> None:
    assert baseline._context.is_public()
    assert not baseline._context.has_secret_key()


def test_its_evaluation_keys_are_counted_from_one(baseline: verify.CipherFace) -> None:
    whole = baseline._context.serialize(save_public_key=False, save_galois_keys=True, save_relin_keys=True)
    assert baseline.evaluation_key_bytes() == pytest.approx(len(whole), rel=0.01)


@pytest.mark.parametrize("count", [2, 31])
def test_synthetic_faces_are_of_the_same_person_every_other_time(count: int) -> None:
    faces = verify.synthetic(count)
    assert np.allclose(np.linalg.norm(faces.templates, axis=1), 1)
    assert np.allclose(np.linalg.norm(faces.probes, axis=1), 1)
    assert ((1 - faces.scores <= verify.THRESHOLD) == (np.arange(count) % 2 == 0)).all()
    assert np.array_equal(faces.probes, verify.synthetic(count).probes)


def test_real_faces_are_paired_by_person() -> None:
    rng = np.random.default_rng(1)
    names = ["Ann_B_0001", "Ann_B_0002", "Ann_B_0003", "Cy_0001", "Di_0001", "Di_0002"]
    embeddings = {name: rng.standard_normal(verify.DIMENSION) for name in names}
    faces = verify.real(embeddings, 10)

    def unit(name: str) -> verify.Vectors:
        vector: verify.Vectors = embeddings[name] / np.linalg.norm(embeddings[name])
        return vector

    assert np.allclose(faces.templates, [unit("Ann_B_0001"), unit("Di_0001")])
    assert np.allclose(faces.probes, [unit("Ann_B_0002"), unit("Ann_B_0002")])  # the second is an impostor's


@pytest.mark.parametrize(
    "embeddings",
    [{}, {"A_0001": np.ones(128)}, {name: np.ones(64) for name in ("A_0001", "A_0002", "B_0001", "B_0002")}],
    ids=["none", "one", "another dimension"],
)
def test_unusable_embeddings(embeddings: dict[str, verify.Vectors]) -> None:
    with pytest.raises(verify.EmbeddingsUnusable):
        verify.real(embeddings, 5)


def test_people_of_names_with_underscores() -> None:
    assert by_person(["A_B_0002", "A_B_0001", "A_0001"]) == {"A_B": ["A_B_0001", "A_B_0002"], "A": ["A_0001"]}


def test_one_run_against_real_services(services: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # without N=16384, whose keys take longer than everything else
    monkeypatch.setattr(verify.compare, "__defaults__", ((verify.CIPHERFACE,), lambda line: None))
    result = CliRunner().invoke(
        main.app, ["bench", "verify", "--json", "--rounds", "4", "--state", str(services)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.keys() >= CONTRACT
    assert found["rounds"] == found["decisions_equal_to_plaintext"] == 4
    assert found["template_bytes"] == 61_440
    assert 61_440 < found["bytes"] < 61_440 + 1024
    assert found["cipherface_bytes"] >= _RESIDUES_8192
    assert found["cipherface_template_bytes"] >= _RESIDUES_8192
    assert found["ratio_bytes"] == found["cipherface_bytes"] / found["bytes"]
    assert found["ratio_ms"] == found["cipherface_ms_p50"] / found["server_ms_p50"]
    assert 0 < found["max_abs_score_error"] < 2e-4
    assert 0 < found["cipherface_max_abs_score_error"] < 1e-4
    assert all(value > 0 for name, value in found.items() if name.endswith("_ms_p50"))


def test_every_field_of_both_baselines() -> None:
    names = ["cipherface", "cipherface_16384"]
    samples = verify.Samples()
    for at, name in enumerate(("server", "compute", "encrypt", "open", *names)):
        samples.ms[name] = [at + 1.0, at + 2.0, 50.0]
    samples.erred("ours", -1e-5)
    samples.erred("ours", 1e-6)
    samples.erred("cipherface", 2e-6)
    sizes = {"bytes": 10, "template_bytes": 5}
    sizes |= {f"{name}_{kind}": 100 for name in names for kind in ("bytes", "template_bytes")}
    found = verify.summarise(samples, sizes, names)
    assert found.keys() >= CONTRACT | {"compute_ms_p50", "ratio_ms", "ratio_ms_16384", "cipherface_16384_ms_p50"}
    assert found["server_ms_p50"] == 2.0
    assert found["ratio_ms"] == 6.0 / 2.0
    assert found["ratio_ms_16384"] == 7.0 / 2.0
    assert found["ratio_bytes_16384"] == 10
    assert found["max_abs_score_error"] == 1e-5
    assert found["cipherface_max_abs_score_error"] == 2e-6


def test_a_bad_embeddings_file_is_a_matter_of_usage(tmp_path: Path) -> None:
    path = tmp_path / "no.npz"
    path.write_bytes(b"no")
    result = CliRunner().invoke(main.app, ["bench", "verify", "--json", "--embeddings", str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
