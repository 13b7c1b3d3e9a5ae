from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from sealface.cipher import kernels, product, seal, wire
from sealface.cipher.distance import Metric, distances
from sealface.cipher.evaluator import Block, Probe
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.ring import Residues
from sealface.cipher.wire import MalformedCiphertext
from tests.cipher.conftest import Sides, asked, sides, units
from tests.cipher.test_evaluator import Before

SHAPES = [(N4096, 16), (N4096, 128), (N4096, 160), (N4096, 512), (N8192, 4096)]
PROBES = 25  # enough product noise for a steady ratio at d=16, where it dominates
BOUND = 20.0


@cache
def made_of(parameters: ParameterSet, dimension: int, metric: Metric) -> Sides:
    return sides(parameters, dimension, metric, 1.0 if metric.normalised else BOUND)


@cache
def gallery(
    parameters: ParameterSet, dimension: int, normalised: bool
) -> tuple[Block, NDArray[np.float64], list[Probe], NDArray[np.float64]]:
    """A full group and probes; the ciphertexts of the three normalised metrics are the same."""
    made = made_of(parameters, dimension, Metric.COSINE if normalised else Metric.EUCLIDEAN)
    rng = np.random.default_rng(dimension)
    vectors = 19.9 * units(rng, made.layout.group.capacity, dimension)
    probes = 19.9 * units(rng, PROBES, dimension)
    # one mate of each probe as well, so that scores near 1 are among them
    for i in range(min(PROBES, len(vectors) - 1)):
        vectors[i] = 19.9 * units(rng, 1, dimension)[0] * 0.05 + probes[i] * 0.9
    return made.group(vectors), vectors, [made.probe(q) for q in probes], probes


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize(("parameters", "dimension"), SHAPES, ids=lambda v: getattr(v, "name", v))
def test_scores_are_those_of_numpy_and_the_noise_is_the_models(
    parameters: ParameterSet, dimension: int, metric: Metric
) -> None:
    group, vectors, probes, q = gallery(parameters, dimension, metric.normalised)
    made = made_of(parameters, dimension, metric)
    layout = made.layout
    shape = group.shape
    opened = made.opener.open(shape, made.score(group, probes, times=2))
    if metric.normalised:
        lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
        expected = q @ vectors.T / lengths
    else:
        expected = ((q[:, None] - vectors) ** 2).sum(axis=2) / BOUND**2
    error = np.abs(opened.scores - np.tile(expected, (2, 1)))
    ratio = np.sqrt((opened.checks**2).mean()) / shape.noise
    print(f"largest error {error.max():.2e}, noise {ratio:.2f} of the model")  # shown by pytest -rP
    # 6.5 standard deviations: only d=16 with the euclidean metric, of some 10,000 values, may pass 2e-4
    assert error.max() < max(2e-4, 6.5 * shape.noise)
    assert 0.5 < ratio < 1.5
    assert 0.5 < np.sqrt((error**2).mean()) / shape.noise < 1.5
    assert made.opener.genuine(shape, opened.checks)
    got = distances(opened.scores, metric, layout.largest_norm)
    exact = distances(np.tile(expected, (2, 1)), metric, layout.largest_norm)
    away = exact > 0.05 * layout.largest_norm  # the root of a small number magnifies
    assert np.abs(got - exact)[away].max() < 5e-3 * layout.largest_norm


# --- against SEAL


def loaded(made: Sides, residues: Residues, parms_id: bytes, scale: float) -> object:
    members = seal._ciphertext_members(parms_id, residues, scale)
    return seal._load(made.layout.parameters, sealapi.Ciphertext(), members)


@pytest.mark.parametrize("columns", [1, 16])
@pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)
def test_product_switch_and_opening_are_seals_bit_for_bit(parameters: ParameterSet, columns: int) -> None:
    made = sides(parameters, 512)
    context = seal._context(parameters)
    first, last = (seal._parms_id(i) for i in (context.first_parms_id(), context.last_parms_id()))
    evaluator = Before(made)
    shape = made.layout.shape(columns)
    n, p = parameters.degree, made.primes[0]
    if columns == 1:
        template = made.evaluator.admit(made.encryptor.template(np.ones(512)))
        block = evaluator.assemble({0: template})
        stored = wire.unpack(template, 2, n, made.primes)[None]
    else:
        data = made.encryptor.block(shape, np.ones((1, 512)))
        block = evaluator.load(shape, data)
        stored = wire.unpack(data, 2 * columns, n, made.primes).reshape(columns, 2, 2, n)
    leaves = evaluator.expand([made.probe(np.arange(512.0))], [shape])[shape]
    q = leaves.words[0].transpose(2, 3, 0, 1, 4).reshape(columns, 2, 2, n).astype(np.uint64)

    seal_evaluator = sealapi.Evaluator(context)
    theirs = sealapi.Ciphertext()
    for number, (column, leaf) in enumerate(zip(stored, q, strict=True)):
        multiplied = sealapi.Ciphertext()
        seal_evaluator.multiply(
            loaded(made, column, first, parameters.template_scale),
            loaded(made, leaf, first, parameters.probe_scale),
            multiplied if number else theirs,
        )
        if number:
            seal_evaluator.add_inplace(theirs, multiplied)
    raw = seal._residues(seal._members(theirs), seal._CIPHERTEXT_PREFIX, (3, 2, n))
    ours = product.scores([block.columns], leaves.words, made.primes)[0, 0]
    assert np.array_equal(raw, ours)

    switched = sealapi.Ciphertext()
    seal_evaluator.rescale_to_next(theirs, switched)
    residues = seal._residues(seal._members(switched), seal._CIPHERTEXT_PREFIX, (3, 1, n))
    assert np.array_equal(residues[:, 0], kernels.switch(raw, made.primes))

    (result,) = evaluator.score([block], leaves, [asked(shape)])[0]
    plain = sealapi.Plaintext()
    decryptor = sealapi.Decryptor(context, seal._secret_object(parameters, made.secret))
    received = wire.unpack(result, 3, n, (p,))
    decryptor.decrypt(loaded(made, received, last, 1.0), plain)
    phase = kernels.intt(seal._residues(seal._members(plain), seal._PLAINTEXT_PREFIX, (1, n))[0], p)
    values = phase[shape.coefficients].astype(np.int64)
    scores = np.where(values > p // 2, values - p, values) / (parameters.product_scale / made.primes[1])
    opened = made.opener.open(shape, [result])
    assert np.array_equal(np.r_[opened.scores[0], opened.checks[0]], scores)

    # and SEAL's opening of what was not switched yet
    before = seal.decrypt(parameters, made.secret, evaluator.seen[-1])
    wide = kernels.intt(before[0], p).astype(object)[shape.coefficients]
    low, q_ = kernels.intt(before[1], made.primes[1]).astype(object)[shape.coefficients], made.primes[1]
    combined = (wide + p * ((low - wide) * pow(p, -1, q_) % q_)) % (p * q_)
    exact = np.array([int(v) - p * q_ if v > p * q_ // 2 else int(v) for v in combined]) / parameters.product_scale
    assert np.abs(exact - scores)[: shape.capacity].max() < 8 * shape.noise


# --- genuine


def results(made: Sides, count: int, live: int, columns: int = 1) -> tuple[list[bytes], NDArray[np.float64]]:
    vectors = 0.9 * units(np.random.default_rng(live), live, made.layout.dimension)
    block = made.group(vectors) if columns == 1 else made.imported(made.layout.shape(columns), vectors)
    return made.score(block, made.probe(vectors[0]), range(live), times=count), vectors


def tampered(made: Sides, result: bytes, polynomial: int, coefficients: dict[int, float]) -> bytes:
    """A result with K added to one of its polynomials (threat model, rule 4), K in units of a score."""
    p, n = made.primes[0], made.layout.parameters.degree
    added = np.zeros(n, np.int64)
    for exponent, value in coefficients.items():
        added[exponent] = round(value * made.layout.parameters.product_scale / made.primes[1])
    c = wire.unpack(result, 3, n, (p,))
    c[polynomial, 0] = (c[polynomial, 0] + kernels.ntt((added % p).astype(np.uint64), p)) % np.uint64(p)
    return wire.pack(c, (p,))


def refused(made: Sides, columns: int, result: bytes) -> bool:
    """Whether the key holder sees that something is wrong with one result."""
    shape = made.layout.shape(columns)
    return not made.opener.genuine(shape, made.opener.open(shape, [result]).checks)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
@pytest.mark.parametrize("live", [1, 6])
@pytest.mark.parametrize("columns", [1, 16])
def test_honest_results_are_genuine(metric: Metric, live: int, columns: int) -> None:
    made = sides(dimension=512, metric=metric)
    shape = made.layout.shape(columns)
    opened = made.opener.open(shape, results(made, 200, live, columns)[0])
    assert all(made.opener.genuine(shape, row[None]) for row in opened.checks)
    assert made.opener.genuine(shape, opened.checks)
    assert made.opener.genuine(shape, opened.checks[:0])


@pytest.mark.parametrize(("dimension", "columns"), [(16, 1), (128, 1), (512, 1), (16, 2), (128, 4), (128, 128)])
def test_k_added_to_c1_is_seen(dimension: int, columns: int) -> None:
    """K c1 opens to K s: each check position shows it unless the secret's coefficient there is zero."""
    made = sides(dimension=dimension)
    honest, _ = results(made, 300, 1, columns)
    # compute does not know where s is zero: it moves K about with x^k
    moved = [tampered(made, r, 1, {k * 13: 0.01}) for k, r in enumerate(honest)]
    seen = np.array([refused(made, columns, r) for r in moved])
    expected = 1 - (1 / 3) ** made.layout.shape(columns).checks
    assert abs(seen.mean() - expected) <= 5 * np.sqrt(expected * (1 - expected) / len(seen))
    # the same K through c2, where s^2 is hardly ever zero, or as a dense polynomial, is always seen
    rng = np.random.default_rng(3)
    dense = dict(enumerate(0.01 * rng.choice([-1.0, 1.0], 4096)))
    for result in honest[:20]:
        assert refused(made, columns, tampered(made, result, 1, dense))
        assert refused(made, columns, tampered(made, result, 2, dense))


@pytest.mark.parametrize("columns", [1, 8])
def test_one_tampered_result_among_many_is_seen(columns: int) -> None:
    made = sides(dimension=128)
    shape = made.layout.shape(columns)
    opened = made.opener.open(shape, results(made, 500, 1, columns)[0])
    checks = np.tile(opened.checks, (20, 1))
    assert made.opener.genuine(shape, checks)
    checks[777] += 12 * shape.noise  # the mean over all rises by 1 %, far below what chance allows
    assert not made.opener.genuine(shape, checks)


@pytest.mark.parametrize("columns", [1, 8])
def test_noise_that_all_positions_share_is_genuine_up_to_ten_times_the_model(
    columns: int, rng: np.random.Generator
) -> None:
    """Templates with a common mean turn the probe's noise into one value for all positions of all results."""
    made = sides()
    shape = made.layout.shape(columns)
    checks = 0.1 * shape.noise * rng.standard_normal((500, shape.checks))
    assert made.opener.genuine(shape, checks + 8 * shape.noise)
    assert not made.opener.genuine(shape, checks + 11 * shape.noise)
    checks[77] += 11 * shape.noise  # one among many
    assert not made.opener.genuine(shape, checks)


@pytest.mark.parametrize("seed", range(3))
def test_real_faces_resemble_each_other_and_their_results_are_genuine(seed: int) -> None:
    """A mean of 0.9 of a vector's length, as Dlib's have: the noise of a probe is then that of few values."""
    made = sides()
    shape = made.layout.shape(8)
    rng = np.random.default_rng(seed)
    vectors = units(rng, 1, 128) + 0.48 * units(rng, shape.capacity, 128)
    block = made.evaluator.load(shape, made.evaluator.admit_block(shape, made.encryptor.block(shape, vectors)))
    asked = np.ones(shape.capacity, bool)
    for _ in range(20):
        probe = made.evaluator.admit_probe(made.encryptor.probe(vectors[0]))
        leaves = made.evaluator.expand([probe], [shape, made.layout.sealed_shapes[-1]])[shape]
        opened = made.opener.open(shape, made.evaluator.score([block], leaves, [asked])[0])
        assert made.opener.genuine(shape, opened.checks)


@pytest.mark.parametrize("columns", [1, 8])
def test_results_under_another_key_are_refused(columns: int) -> None:
    ours, other = sides(dimension=128), sides(dimension=128, number=1)
    assert ours.key != other.key
    for result in results(other, 50, 3, columns)[0]:
        assert refused(ours, columns, result)
    # a template of another key in an honest block
    shape = ours.layout.shape(columns)
    foreign = other.encryptor.template(np.ones(128))
    if columns == 1:
        block = ours.evaluator.assemble({0: foreign})
    else:
        block = ours.evaluator.load(shape, ours.evaluator.seal(shape, {0: foreign}))
    assert refused(ours, columns, ours.score(block, ours.probe(np.ones(128)), [0])[0])


def test_a_result_is_not_taken_for_one_of_another_shape() -> None:
    """All results have one length; compute says which shape they are of.

    A group's check positions are among those of every block, so a block's result passes as a group's. Compute, which
    says what lies where, gains nothing by that: it gets the group's few check positions with a group as well.
    """
    made = sides(dimension=128)
    for columns in (1, 8, 32):
        found, _ = results(made, 20, 3, columns)
        assert not any(refused(made, columns, result) for result in found)
        for other in {8, 32} - {columns}:
            assert all(refused(made, other, result) for result in found)


@pytest.mark.parametrize("columns", [1, 8])
def test_random_polynomials_are_refused(columns: int, rng: np.random.Generator) -> None:
    made = sides(dimension=128)
    p = made.primes[0]
    for _ in range(50):
        noise = wire.pack(rng.integers(0, p, (3, 1, 4096)).astype(np.uint64), (p,))
        assert refused(made, columns, noise)


@pytest.mark.parametrize("columns", [1, 8])
def test_bytes_that_are_no_result(columns: int) -> None:
    made = sides(dimension=128)
    (good,), _ = results(made, 1, 1, columns)
    c = wire.unpack(good, 3, 4096, made.primes[:1])
    c[2, 0, 4095] = made.primes[0]
    (other,), _ = results(sides(N8192, 128), 1, 1, columns)
    for bad in (b"", good[:-1], good + b"\0", wire.pack(c, made.primes[:1]), other, b"\xff" * len(good)):
        with pytest.raises(MalformedCiphertext):
            made.opener.open(made.layout.shape(columns), [good, bad])
