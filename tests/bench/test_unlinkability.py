from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from sealface.cli.evaluate import read_arrays
from sealface_bench import unlinkability
from tests.conftest import DATA


def test_linkability_is_one_where_scores_part_and_nothing_where_they_are_alike() -> None:
    rng = np.random.default_rng(1)
    low, high = rng.uniform(0, 0.4, 5000), rng.uniform(0.6, 1, 5000)
    assert unlinkability.linkability(high, low) == pytest.approx(1)
    assert unlinkability.linkability(low, low) == 0
    assert unlinkability.equal_error_rate(high, low) < 0.001
    assert unlinkability.equal_error_rate(low, low) == pytest.approx(0.5, abs=0.01)


def test_linkability_by_hand() -> None:
    """Two bins: 3/4 and 1/4 against 1/4 and 3/4. LR = 3 in one, local measure 1/2, and 3/4 of the mated lie there."""
    mated, non_mated = np.array([0.0, 1, 1, 1]), np.array([0.0, 0, 0, 1])
    assert unlinkability.linkability(mated, non_mated, bins=2) == pytest.approx(3 / 8)


def test_a_transform_each_parts_two_galleries() -> None:
    rng = np.random.default_rng(2)
    people = np.repeat(rng.standard_normal((500, 32)), 4, axis=0)
    names = [f"P{i // 4}_{i % 4:04d}" for i in range(2000)]
    found, scores = unlinkability.measure(names, people + 0.3 * rng.standard_normal(people.shape))
    assert found["mated_pairs"] == 500
    assert found["largest_score_difference"] < 1e-12
    assert found["decisions_changed"] == 0
    assert found["plain_d_sys"] > 0.95
    assert found["within_d_prime"] == pytest.approx(found["plain_d_prime"])
    assert found["across_d_sys"] < 0.25  # what is left is the noise of 500 pairs in 50 bins
    ElementTree.fromstring(unlinkability.picture(scores))  # noqa: S314 - our own


@pytest.mark.data
def test_faces_cannot_be_linked_across_galleries() -> None:
    found, _ = unlinkability.measure(*read_arrays(DATA / "lfw" / "embeddings.npz"))
    assert found["decisions_changed"] == 0
    assert found["largest_score_difference"] < 1e-12
    assert found["plain_d_sys"] > 0.8
    assert found["across_d_sys"] < 0.5 * found["plain_d_sys"]
    # what is not protected, and said not to be
    assert found["across_d_sys"] < found["known_16_d_sys"] < found["known_64_d_sys"] < found["known_256_d_sys"]
    assert found["known_256_d_sys"] > 0.7
    assert found["whole_galleries_d_sys"] > 0.1
