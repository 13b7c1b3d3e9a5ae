"""Ciphertexts moved to another key, as the key holder and compute see them. The tests know the secrets."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import kernels
from sealface.cipher.distance import Metric
from sealface.cipher.evaluator import parse
from sealface.cipher.layout import Shape
from sealface.cipher.opening import Opener
from sealface.cipher.parameters import N4096
from sealface.cipher.wire import MalformedCiphertext
from tests.cipher.conftest import Sides, asked, assert_uniform, sides, units
from tests.cipher.test_renewal import ZERO, opened, small

METRICS = pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
SHAPES = pytest.mark.parametrize("columns", [8, 128])

Vectors = NDArray[np.float64]


def moved(old: Sides, new: Sides, shape: Shape, data: bytes, count: int = 1) -> bytes:
    """The whole round trip to another key."""
    nobody = asked(shape, [])
    blinded, blinding = old.evaluator.blind(shape, data, count)
    return new.evaluator.unblind(
        shape, old.opener.renew(shape, blinded, nobody, new.opener, count), blinding, nobody, count
    )


def scored(made: Sides, shape: Shape, block: bytes, probes: Vectors) -> Vectors:
    found = made.opener.open(shape, made.score(made.evaluator.load(shape, block), [made.probe(q) for q in probes]))
    assert made.opener.genuine(shape, found.checks)
    return found.scores


@METRICS
@SHAPES
def test_a_block_scores_under_the_new_key_as_it_did_under_the_old(columns: int, metric: Metric) -> None:
    old, new = sides(metric=metric), sides(metric=metric, number=1)
    shape = old.layout.shape(columns)
    vectors = 0.9 * units(np.random.default_rng(1), shape.capacity, 128)
    probes = 0.9 * units(np.random.default_rng(2), 2, 128)
    block = old.evaluator.admit_block(shape, old.encryptor.block(shape, vectors))
    before = scored(old, shape, block, probes)
    after = scored(new, shape, moved(old, new, shape, block), probes)
    assert np.abs(before - after).max() < max(4e-4, 13 * shape.noise)
    with pytest.raises(AssertionError):  # the old key opens noise
        scored(old, shape, moved(old, new, shape, block), probes)


@METRICS
def test_templates_move_in_batches_and_meet_those_enrolled_later(metric: Metric) -> None:
    old, new = sides(metric=metric), sides(metric=metric, number=1)
    group, vectors = old.layout.group, 0.9 * units(np.random.default_rng(3), 5, 128)
    stored = [old.evaluator.admit(old.encryptor.template(vector)) for vector in vectors[:4]]
    fresh = moved(old, new, group, b"".join(stored), 4)
    size = len(fresh) // 4
    assert size == len(stored[0])
    templates = {i: fresh[i * size : (i + 1) * size] for i in range(4)}
    templates[4] = new.evaluator.admit(new.encryptor.template(vectors[4]))
    block = new.evaluator.assemble(templates)
    found = new.opener.open(group, new.score(block, [new.probe(vectors[2])]))
    exact = vectors @ vectors[2] / 0.81 if metric is Metric.COSINE else ((vectors - vectors[2]) ** 2).sum(axis=1)
    assert np.abs(found.scores[0, :5] - exact).max() < 4e-4
    assert new.opener.genuine(group, found.checks)


def test_the_noise_of_rotations_adds_up_as_it_should() -> None:
    """Two zeros and an error each time: 1.8e-6 sqrt(1 + 2 k) of a template's elements after k."""
    made = [sides(number=number) for number in range(2)]
    shape = made[0].layout.shape(8)
    vectors = units(np.random.default_rng(4), shape.capacity, 128)
    plain = np.stack([p.coefficients for p in made[0].layout.block(shape, vectors)])
    block = made[0].evaluator.admit_block(shape, made[0].encryptor.block(shape, vectors))
    for rotation in range(1, 6):
        old, new = made[(rotation - 1) % 2], made[rotation % 2]
        block = moved(old, new, shape, block)
        error = small(new, opened(new, shape, block)) - plain
        assert error.std() == pytest.approx(np.sqrt(1 + 2 * rotation) * ZERO, rel=0.1)
    probes = units(np.random.default_rng(5), 2, 128)
    assert np.abs(scored(made[1], shape, block, probes) - probes @ vectors.T).max() < 2e-4


@pytest.mark.parametrize("dimension", [128, 512])
def test_the_noise_of_moved_templates_is_the_models(dimension: int) -> None:
    """Of a verification: a group has nothing but templates' own noise, and the probe's."""
    made, rotations, rng = [sides(N4096, dimension, number=number) for number in range(2)], 5, np.random.default_rng(7)
    layout = made[0].layout.under(1 + rotations)
    group, vectors = layout.group, units(rng, layout.group.capacity, dimension)
    templates = b"".join(made[0].evaluator.admit(made[0].encryptor.template(vector)) for vector in vectors)
    for rotation in range(rotations):
        old, new = made[rotation % 2], made[(rotation + 1) % 2]
        templates = moved(old, new, group, templates, group.capacity)
    size, new = len(templates) // group.capacity, made[rotations % 2]
    block = new.evaluator.assemble({i: templates[i * size : (i + 1) * size] for i in range(group.capacity)})
    probes = units(rng, 25, dimension)
    opener = Opener(layout, new.secret)
    found = opener.open(group, new.score(block, [new.probe(q) for q in probes], times=2))
    error = found.scores - np.tile(probes @ vectors.T, (2, 1))
    print(f"noise {error.std() / group.noise:.2f} of the model")  # shown by pytest -rP
    assert 0.75 < error.std() / group.noise < 1.25
    assert opener.genuine(group, found.checks)
    assert group.noise > 1.3 * new.layout.group.noise  # or the model would not be seen here


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_honest_results_are_refused_no_more_often_after_many_rotations(metric: Metric) -> None:
    """Check positions are compared with the noise that the number of a key version allows for.

    By the bound for none, 50 rotations have percents of honest verifications refused, and the version quarantined.
    """
    rng, made = np.random.default_rng(8), sides(metric=metric)
    for rotations in (1, 5, 50, 1000):
        layout = made.layout.under(1 + rotations)
        knows, knows_not = Opener(layout, made.secret), made.opener
        for shape in (layout.group, *layout.sealed_shapes):
            assert knows.genuine(shape, np.full((1, shape.checks), 10 * shape.noise))
            assert not knows.genuine(shape, np.full((1, shape.checks), 11 * shape.noise))
        honest = layout.group.noise * rng.standard_normal((20_000, layout.group.checks))
        assert knows.genuine(layout.group, honest)
        refused = sum(not knows_not.genuine(made.layout.group, one[None]) for one in honest)
        if rotations == 50:
            print(f"{refused / len(honest):.1%} of honest results would be refused")
            assert refused > 0.01 * len(honest)


def test_an_embedding_that_is_enrolled_bit_for_bit_is_found_after_many_rotations() -> None:
    """Its score may be above 1 by the noise that has gathered; beyond eight times that nobody is matched."""
    layout = sides().layout.under(51)
    above = 1 + 6 * layout.noise
    assert np.isfinite(layout.distances(np.array([above]))[0])
    assert np.isinf(sides().layout.distances(np.array([above]))[0])


@pytest.mark.parametrize("kind", ["zeros", "one element", "all the same", "face"])
def test_what_the_key_holder_opens_of_templates_is_uniform_whatever_they_are(kind: str) -> None:
    old = sides()
    group = old.layout.group
    vector = {
        "zeros": np.full(128, 1e-12),
        "one element": np.eye(1, 128)[0],
        "all the same": np.ones(128),
        "face": units(np.random.default_rng(6), 1, 128)[0],
    }[kind]
    stored = b"".join(old.evaluator.admit(old.encryptor.template(vector)) for _ in range(8))
    blinded, _ = old.evaluator.blind(group, stored, 8)
    parts = parse(blinded, old.layout, 8)
    phase = (parts[:, 0] + parts[:, 1] * old.secret[:2] % old.moduli) % old.moduli
    for limb, p in enumerate(old.primes):
        seen = kernels.intt(phase[:, limb], p)
        assert_uniform(seen, p)
        assert_uniform(seen[:, :128], p, 32)  # where a template's elements lie
        assert_uniform(parts[:, 1, limb], p)
    # before the defence: without blinding the key holder reads the template to 1e-5
    shown = parse(stored, old.layout, 8)
    phase = (shown[:, 0] + shown[:, 1] * old.secret[:2] % old.moduli) % old.moduli
    read = kernels.intt(phase[0, 0], old.primes[0]).astype(np.int64)
    read = np.where(read > old.primes[0] // 2, read - old.primes[0], read)[:128] / old.layout.parameters.template_scale
    assert np.abs(read - vector / np.linalg.norm(vector)).max() < 2e-5


def test_what_is_no_ciphertext_is_refused() -> None:
    old, new = sides(), sides(number=1)
    group, nobody = old.layout.group, asked(old.layout.group, [])
    stored = old.evaluator.admit(old.encryptor.template(np.ones(128)))
    blinded, _ = old.evaluator.blind(group, stored)
    for data, count in ((blinded, 2), (blinded[:-1], 1), (blinded + blinded, 1), (bytes(len(blinded)), 1), (b"", 1)):
        with pytest.raises(MalformedCiphertext):
            old.opener.renew(group, data, nobody, new.opener, count)
