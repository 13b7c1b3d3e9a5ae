from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from sealface.cipher import kernels, seal, wire
from sealface.cipher.distance import Metric, distances
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.ring import Residues
from sealface.cipher.tail import Group, Probe
from sealface.cipher.wire import MalformedCiphertext
from tests.cipher.conftest import Sides, sides, units
from tests.cipher.test_tail import Before

SHAPES = [(N4096, 16), (N4096, 128), (N4096, 160), (N4096, 512), (N8192, 4096)]
PROBES = 25  # enough product noise for a steady ratio at d=16, where it dominates
BOUND = 20.0


@cache
def made_of(parameters: ParameterSet, dimension: int, metric: Metric) -> Sides:
    return sides(parameters, dimension, metric, 1.0 if metric.normalised else BOUND)


@cache
def gallery(
    parameters: ParameterSet, dimension: int, normalised: bool
) -> tuple[Group, NDArray[np.float64], list[Probe], NDArray[np.float64]]:
    """A full group and probes; the ciphertexts of the three normalised metrics are the same."""
    made = made_of(parameters, dimension, Metric.COSINE if normalised else Metric.EUCLIDEAN)
    rng = np.random.default_rng(dimension)
    vectors = 19.9 * units(rng, made.layout.capacity, dimension)
    probes = 19.9 * units(rng, PROBES, dimension)
    # one mate of each probe as well, so that scores near 1 are among them
    for i in range(min(PROBES, len(vectors) - 1)):
        vectors[i] = 19.9 * units(rng, 1, dimension)[0] * 0.05 + probes[i] * 0.9
    group = made.evaluator.assemble(made.templates(vectors))
    return group, vectors, [made.evaluator.admit_probe(made.encryptor.probe(q)) for q in probes], probes


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize(("parameters", "dimension"), SHAPES, ids=lambda v: getattr(v, "name", v))
def test_scores_are_those_of_numpy_and_the_noise_is_the_models(
    parameters: ParameterSet, dimension: int, metric: Metric
) -> None:
    group, vectors, probes, q = gallery(parameters, dimension, metric.normalised)
    made = made_of(parameters, dimension, metric)
    layout = made.layout
    opened = made.opener.open(
        [made.evaluator.score(group, probe, range(layout.capacity)) for probe in probes for _ in range(2)]
    )
    if metric.normalised:
        lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
        expected = q @ vectors.T / lengths
    else:
        expected = ((q[:, None] - vectors) ** 2).sum(axis=2) / BOUND**2
    error = np.abs(opened.scores - np.repeat(expected, 2, axis=0))
    ratio = np.sqrt((opened.checks**2).mean()) / layout.noise
    print(f"largest error {error.max():.2e}, noise {ratio:.2f} of the model")  # shown by pytest -rP
    # 6.5 standard deviations: only d=16 with the euclidean metric, of some 10,000 values, may pass 2e-4
    assert error.max() < max(2e-4, 6.5 * layout.noise)
    assert 0.5 < ratio < 1.5
    assert 0.5 < np.sqrt((error**2).mean()) / layout.noise < 1.5
    assert made.opener.genuine(opened.checks)
    got = distances(opened.scores, metric, layout.largest_norm)
    exact = distances(np.repeat(expected, 2, axis=0), metric, layout.largest_norm)
    away = exact > 0.05 * layout.largest_norm  # the root of a small number magnifies
    assert np.abs(got - exact)[away].max() < 5e-3 * layout.largest_norm


# --- against SEAL


def loaded(made: Sides, residues: Residues, parms_id: bytes, scale: float) -> object:
    members = seal._ciphertext_members(parms_id, residues, scale)
    return seal._load(made.layout.parameters, sealapi.Ciphertext(), members)


@pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)
def test_product_switch_and_opening_are_seals_bit_for_bit(parameters: ParameterSet) -> None:
    made = sides(parameters, 512)
    context = seal._context(parameters)
    first, last = (seal._parms_id(i) for i in (context.first_parms_id(), context.last_parms_id()))
    evaluator = Before(made.layout, made.public)
    template = evaluator.assemble({0: made.encryptor.template(np.ones(512))})
    probe = evaluator.admit_probe(made.encryptor.probe(np.arange(512.0)))
    n, p = parameters.degree, made.primes[0]

    theirs = sealapi.Ciphertext()
    seal_evaluator = sealapi.Evaluator(context)
    ours = kernels.multiply(template.residues[0], probe.residues[0], made.primes)
    seal_evaluator.multiply(
        loaded(made, template.residues[0], first, parameters.scale),
        loaded(made, probe.residues[0], first, parameters.scale),
        theirs,
    )
    product = seal._residues(seal._members(theirs), seal._CIPHERTEXT_PREFIX, (3, 2, n))
    assert np.array_equal(product, ours)

    switched = sealapi.Ciphertext()
    seal_evaluator.rescale_to_next(theirs, switched)
    residues = seal._residues(seal._members(switched), seal._CIPHERTEXT_PREFIX, (3, 1, n))
    assert np.array_equal(residues[:, 0], evaluator._switch(ours))

    result = evaluator.score(template, probe, range(made.layout.capacity))
    plain = sealapi.Plaintext()
    decryptor = sealapi.Decryptor(context, seal._secret_object(parameters, made.secret))
    received = wire.unpack(result, 3, n, (p,))
    decryptor.decrypt(loaded(made, received, last, 1.0), plain)
    phase = kernels.intt(seal._residues(seal._members(plain), seal._PLAINTEXT_PREFIX, (1, n))[0], p)
    values = phase[:: made.layout.stride].astype(np.int64)
    scores = np.where(values > p // 2, values - p, values) / (parameters.scale**2 / made.primes[1])
    opened = made.opener.open([result])
    assert np.array_equal(np.r_[opened.scores[0], opened.checks[0]], scores)

    # and SEAL's opening of what was not switched yet
    before = seal.decrypt(parameters, made.secret, evaluator.seen)
    wide = kernels.intt(before[0], p).astype(object)[:: made.layout.stride]
    low, q = kernels.intt(before[1], made.primes[1]).astype(object)[:: made.layout.stride], made.primes[1]
    combined = (wide + p * ((low - wide) * pow(p, -1, q) % q)) % (p * q)
    exact = np.array([int(v) - p * q if v > p * q // 2 else int(v) for v in combined]) / parameters.scale**2
    assert np.abs(exact - scores)[: made.layout.capacity].max() < 8 * made.layout.noise


# --- genuine


def results(made: Sides, count: int, live: int) -> tuple[list[bytes], NDArray[np.float64]]:
    vectors = 0.9 * units(np.random.default_rng(live), live, made.layout.dimension)
    group = made.evaluator.assemble(made.templates(vectors))
    probe = made.evaluator.admit_probe(made.encryptor.probe(vectors[0]))
    return [made.evaluator.score(group, probe, range(live)) for _ in range(count)], vectors


def tampered(made: Sides, result: bytes, polynomial: int, coefficients: dict[int, float]) -> bytes:
    """A result with K added to one of its polynomials (threat model, rule 4), K in units of a score."""
    p, n = made.primes[0], made.layout.parameters.degree
    added = np.zeros(n, np.int64)
    for exponent, value in coefficients.items():
        added[exponent] = round(value * made.layout.parameters.scale**2 / made.primes[1])
    c = wire.unpack(result, 3, n, (p,))
    c[polynomial, 0] = (c[polynomial, 0] + kernels.ntt((added % p).astype(np.uint64), p)) % np.uint64(p)
    return wire.pack(c, (p,))


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
@pytest.mark.parametrize("live", [1, 6])
def test_honest_results_are_genuine(metric: Metric, live: int) -> None:
    made = sides(dimension=512, metric=metric)
    opened = made.opener.open(results(made, 200, live)[0])
    assert all(made.opener.genuine(row[None]) for row in opened.checks)
    assert made.opener.genuine(opened.checks)
    assert made.opener.genuine(opened.checks[:0])


@pytest.mark.parametrize("dimension", [16, 128, 512])
def test_k_added_to_c1_is_seen(dimension: int) -> None:
    """K c1 opens to K s: each check position shows it unless the secret's coefficient there is zero."""
    made = sides(dimension=dimension)
    honest, _ = results(made, 300, 1)
    # compute does not know where s is zero: it moves K about with x^k
    moved = [tampered(made, r, 1, {k * 13: 0.01}) for k, r in enumerate(honest)]
    seen = np.array([not made.opener.genuine(made.opener.open([r]).checks) for r in moved])
    expected = 1 - (1 / 3) ** made.layout.checks
    assert abs(seen.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / len(seen))
    # the same K through c2, where s^2 is hardly ever zero, or as a dense polynomial, is always seen
    rng = np.random.default_rng(3)
    dense = dict(enumerate(0.01 * rng.choice([-1.0, 1.0], 4096)))
    for result in honest[:20]:
        assert not made.opener.genuine(made.opener.open([tampered(made, result, 1, dense)]).checks)
        assert not made.opener.genuine(made.opener.open([tampered(made, result, 2, dense)]).checks)


def test_one_tampered_result_among_many_is_seen() -> None:
    made = sides(dimension=128)
    opened = made.opener.open(results(made, 500, 1)[0])
    checks = np.tile(opened.checks, (20, 1))
    assert made.opener.genuine(checks)
    checks[777] += 12 * made.layout.noise  # the mean over all rises by 1 %, far below what chance allows
    assert not made.opener.genuine(checks)


def test_a_key_a_little_noisier_than_the_model_is_genuine_in_large_galleries(
    rng: np.random.Generator,
) -> None:
    """One key in 100 has 7 % more variance than the average key: it must not refuse every large search."""
    made = sides(dimension=128)
    assert made.opener.genuine(1.1 * made.layout.noise * rng.standard_normal((50_000, 2)))
    assert not made.opener.genuine(1.5 * made.layout.noise * rng.standard_normal((50_000, 2)))


def test_a_small_shift_of_every_result_is_seen() -> None:
    made = sides(dimension=128)
    opened = made.opener.open(results(made, 500, 1)[0])
    checks = np.tile(opened.checks, (20, 1))
    assert not made.opener.genuine(checks + 1.5 * made.layout.noise)


def test_results_under_another_key_are_refused() -> None:
    ours, other = sides(dimension=128), sides(dimension=128, number=1)
    assert ours.key != other.key
    for result in results(other, 50, 3)[0]:
        assert not ours.opener.genuine(ours.opener.open([result]).checks)
    # a template of another key in an honest group
    group = ours.evaluator.assemble({0: other.encryptor.template(np.ones(128))})
    probe = ours.evaluator.admit_probe(ours.encryptor.probe(np.ones(128)))
    assert not ours.opener.genuine(ours.opener.open([ours.evaluator.score(group, probe, [0])]).checks)


def test_random_polynomials_are_refused(rng: np.random.Generator) -> None:
    made = sides(dimension=128)
    p = made.primes[0]
    for _ in range(50):
        noise = wire.pack(rng.integers(0, p, (3, 1, 4096)).astype(np.uint64), (p,))
        assert not made.opener.genuine(made.opener.open([noise]).checks)


def test_bytes_that_are_no_result() -> None:
    made = sides(dimension=128)
    (good,), _ = results(made, 1, 1)
    c = wire.unpack(good, 3, 4096, made.primes[:1])
    c[2, 0, 4095] = made.primes[0]
    (other,), _ = results(sides(N8192, 128), 1, 1)
    for bad in (b"", good[:-1], good + b"\0", wire.pack(c, made.primes[:1]), other, b"\xff" * len(good)):
        with pytest.raises(MalformedCiphertext):
            made.opener.open([good, bad])
