import numpy as np
import pytest

from sealface_bench import identification
from sealface_bench.identification import Population, _agree, plaintext, population


def embeddings(people: int, seed: int = 4) -> dict[str, np.ndarray]:
    """Every other person has two faces."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(people):
        face = rng.standard_normal(128)
        found[f"Person_{i:03}_0001"] = face
        if i % 2:
            found[f"Person_{i:03}_0002"] = face + 0.1 * rng.standard_normal(128)
    return found


@pytest.mark.parametrize("real", [True, False])
def test_mated_probes_are_of_who_is_enrolled_and_the_others_of_nobody(real):
    faces = population(embeddings(200) if real else None, 1000, 40)
    assert faces.enrolled.shape == (1000, 128)
    assert faces.probes.shape == (40, 128)
    assert np.allclose(np.linalg.norm(faces.enrolled, axis=1), 1, atol=1e-5)
    assert (faces.owners >= 0).sum() == 20
    distances = 1 - faces.enrolled @ faces.probes.T
    nearest = distances.argmin(axis=0)
    for probe, owner in enumerate(faces.owners):
        if owner >= 0:
            assert nearest[probe] == owner
        elif real:
            assert distances[:200, probe].min() > 0.4  # a stranger, though the drawn ones may be anything


def test_drawn_faces_have_the_mean_and_spread_of_real_ones():
    rng = np.random.default_rng(1)
    real = 3 + rng.standard_normal((3000, 8)) * np.arange(1, 9)
    drawn = identification._drawn(real, 20_000, rng)
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    assert np.allclose(drawn.mean(axis=0), unit.mean(axis=0), atol=0.03)
    assert np.allclose(np.cov(drawn.T), np.cov(unit.T), atol=0.03)


def test_plaintext_ranks_are_those_of_brute_force():
    faces = population(None, 300, 6)
    for probe, found in zip(faces.probes, plaintext(faces, 0.9, 5), strict=True):
        exact = 1 - faces.enrolled.astype(float) @ probe.astype(float)
        expected = [row for row in np.argsort(exact) if exact[row] <= 0.9]
        assert [row for row, distance in found if distance <= 0.9][:5] == expected[:5]


@pytest.mark.parametrize(
    ("named", "agrees"),
    [
        ([1, 2], True),
        ([2, 1], False),  # far apart
        ([1], False),  # 2 is certain
        ([1, 2, 3], True),  # 3 lies within the error of the threshold
        ([1, 2, 4], False),  # 4 is beyond it
        ([1, 2, 9], False),  # nobody near
        ([], False),
    ],
)
def test_an_answer_may_differ_within_the_error_alone(named, agrees):
    exact = [(1, 0.01), (2, 0.03), (3, 0.0701), (4, 0.0708)]
    assert _agree(named, exact, 0.07, 10, 2e-4) is agrees


def test_a_rate_of_nobody_is_none():
    faces = Population(np.eye(2, 128, dtype=np.float32), np.eye(1, 128, dtype=np.float32), np.array([-1]))
    assert identification._rate([True], faces.owners >= 0) is None
    assert identification._rate([True], faces.owners < 0) == 1.0
