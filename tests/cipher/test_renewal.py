"""Renewed blocks, as the key holder and compute see them. The tests know the secret."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import kernels, product, wire
from sealface.cipher.distance import Metric
from sealface.cipher.evaluator import parse
from sealface.cipher.layout import Layout, Shape
from sealface.cipher.opening import Opener
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.renewal import Blinding
from sealface.cipher.ring import Residues
from sealface.cipher.wire import MalformedCiphertext
from tests.cipher.conftest import Sides, asked, assert_uniform, sides, units
from tests.cipher.test_evaluator import Before, as_sent, divide, expected_scores, polynomials

DIMENSION = 128
CLEARED = [0, 3, 64, 120]
ZERO = np.sqrt(10.5 * (1 + 2 * 4096 * 2 / 3))  # standard deviation of a fresh encryption of zero, as Shape.noise has it

Vectors = NDArray[np.float64]

SHAPES = pytest.mark.parametrize("columns", [8, 128])
METRICS = pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])


@cache
def imported(
    columns: int, metric: Metric = Metric.COSINE, parameters: ParameterSet = N4096, dimension: int = DIMENSION
) -> tuple[Sides, Shape, Vectors, bytes]:
    """A full block as it is stored; 8 columns of 128 elements have 16 rows, 128 have one."""
    made = sides(parameters, dimension, metric)
    shape = made.layout.shape(columns)
    vectors = 0.9 * units(np.random.default_rng(5), shape.capacity, dimension)
    return made, shape, vectors, made.evaluator.admit_block(shape, made.encryptor.block(shape, vectors))


def renewed(made: Sides, shape: Shape, block: bytes, positions: list[int]) -> bytes:
    """The whole round trip."""
    cleared = asked(shape, positions)
    blinded, blinding = made.evaluator.blind(shape, block)
    return made.evaluator.unblind(shape, made.opener.renew(shape, blinded, cleared), blinding, cleared)


def opened(made: Sides, shape: Shape, block: bytes) -> Residues:
    """What the key holder can read of a block: coefficients (ciphertexts, limbs, N)."""
    parts = parse(block, made.layout, shape.ciphertexts)
    limbs = len(made.primes)
    phase = (parts[:, 0] + parts[:, 1] * made.secret[:limbs] % made.moduli) % made.moduli
    return np.stack([kernels.intt(phase[:, limb], p) for limb, p in enumerate(made.primes)], axis=1)


def small(made: Sides, values: Residues) -> NDArray[np.int64]:
    """Residues (..., limbs, N) of numbers that are small, the same modulo both primes."""
    found = [
        np.where(values[..., limb, :] > p // 2, values[..., limb, :].astype(np.int64) - p, values[..., limb, :])
        for limb, p in enumerate(made.primes)
    ]
    assert (found[0] == found[1]).all()
    return found[0].astype(np.int64)


def kept(shape: Shape, positions: list[int]) -> NDArray[np.bool_]:
    """(N,) the coefficients that are not cleared."""
    mask = np.ones(shape.layout.parameters.degree, bool)
    mask[shape.taken(asked(shape, positions))] = False
    return mask


# --- the meaning


@METRICS
@pytest.mark.parametrize(
    ("parameters", "dimension", "columns"), [(N4096, 128, 8), (N4096, 128, 128), (N4096, 16, 16), (N8192, 4096, 64)]
)
def test_the_others_score_as_before_and_the_cleared_are_nothing(
    parameters: ParameterSet, dimension: int, columns: int, metric: Metric
) -> None:
    made, shape, vectors, block = imported(columns, metric, parameters, dimension)
    cleared = [0, 5, shape.capacity - 1]
    probes = 0.9 * units(np.random.default_rng(6), 2, dimension)
    probes[0] = vectors[1]
    left = vectors.copy()
    left[cleared] = 0
    exact = expected_scores(left, probes, metric, 1.0) if metric is Metric.EUCLIDEAN else probes @ left.T / 0.81
    loaded = made.evaluator.load(shape, renewed(made, shape, block, cleared))
    found = made.opener.open(shape, made.score(loaded, [made.probe(q) for q in probes]))
    # a cleared template scores as none: 0, or |q|^2
    assert np.abs(found.scores - exact).max() < max(2e-4, 6.5 * shape.noise)
    assert made.opener.genuine(shape, found.checks)


@METRICS
@SHAPES
def test_a_cleared_coefficient_is_zero_in_every_column_and_all_others_are_what_they_were(
    columns: int, metric: Metric
) -> None:
    made, shape, _, block = imported(columns, metric)
    before, after = (opened(made, shape, data) for data in (block, renewed(made, shape, block, CLEARED)))
    others = kept(shape, CLEARED)
    difference = small(made, ((after + made.moduli - before) % made.moduli)[..., others])
    at_cleared = small(made, after[..., ~others])
    was = small(made, before[: shape.columns, :, ~others])
    assert np.sqrt((was.astype(float) ** 2).mean()) > 1000 * ZERO  # or the test would see nothing go
    # two zeros under the public key, one each time that compute randomises, and the key holder's error
    assert difference.std() == pytest.approx(np.sqrt(2) * ZERO, rel=0.1)
    assert at_cleared.std() == pytest.approx(ZERO, rel=0.1)
    assert max(np.abs(difference).max() / np.sqrt(2), np.abs(at_cleared).max()) < 7 * ZERO
    taken = others.size - others.sum()
    assert taken == len(CLEARED) * shape.rows


@METRICS
def test_a_block_may_be_renewed_again_and_again(metric: Metric) -> None:
    made, shape, vectors, block = imported(8, metric)
    for position in range(10):
        block = renewed(made, shape, block, [position])
    values = small(made, opened(made, shape, block)[: shape.columns])
    plain = made.layout.block(shape, np.where(np.arange(len(vectors))[:, None] < 10, 1e-9, vectors))
    error = values - np.stack([plaintext.coefficients for plaintext in plain[: shape.columns]])
    gone = ~kept(shape, list(range(10)))
    assert error[:, ~gone].std() == pytest.approx(np.sqrt(21) * ZERO, rel=0.1)  # one of admission, twenty since
    assert np.abs(values[:, gone]).max() < 7 * np.sqrt(20) * ZERO


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_a_block_that_was_renewed_for_each_of_its_templates_is_still_genuine(metric: Metric) -> None:
    """Of every shape: honest results of it are not refused for the noise that has gathered."""
    for parameters in (N4096, N8192):
        for dimension in (16, 64, 128, 512, 2048, 4096):
            if 2 * dimension > parameters.degree:
                continue
            layout = Layout(parameters, dimension, metric)
            opener = Opener(layout, np.zeros((3, parameters.degree), np.uint64))
            for shape in layout.sealed_shapes:
                zero = 10.5 * (1 + 2 * parameters.degree * 2 / 3)
                once = (2 * zero + 10.5) * (1 if metric.normalised else 4) / parameters.template_scale**2
                noise = np.sqrt(shape.noise**2 + shape.capacity * once)
                assert opener.genuine(shape, np.full((1, shape.checks), noise))


# --- what the key holder sees


@METRICS
@SHAPES
def test_what_the_key_holder_opens_is_uniform_and_knows_no_template(columns: int, metric: Metric) -> None:
    made, shape, _, block = imported(columns, metric)
    blinded, _ = made.evaluator.blind(shape, block)
    plain, seen = opened(made, shape, block), opened(made, shape, blinded)
    for limb, p in enumerate(made.primes):
        for part in seen[:, limb]:
            assert_uniform(part, p)
        assert_uniform(kernels.ntt(seen[:, limb], p), p)
        assert_uniform((seen[:, limb] + np.uint64(p) - plain[:, limb]) % np.uint64(p), p)
        values, templates = seen[: shape.columns, limb].ravel(), small(made, plain[: shape.columns]).ravel()
        assert abs(np.corrcoef(values.astype(float), templates)[0, 1]) < 6 / np.sqrt(values.size)
    if shape.columns == 128:  # not even added up over the columns, as a common blinding would be
        assert_uniform(seen[:, 0].sum(axis=0) % np.uint64(made.primes[0]), made.primes[0])
    # nor does it see a polynomial of what is stored
    before, sent = (parse(data, made.layout, shape.ciphertexts) for data in (block, blinded))
    for limb, p in enumerate(made.primes):
        for half in range(2):
            assert_uniform((sent[:, half, limb] + np.uint64(p) - before[:, half, limb]) % np.uint64(p), p)


@SHAPES
def test_every_blinding_is_another(columns: int) -> None:
    made, shape, _, block = imported(columns)
    (first, one), (second, other) = (made.evaluator.blind(shape, block) for _ in range(2))
    seen = [opened(made, shape, data) for data in (first, second)]
    sent = [parse(data, made.layout, shape.ciphertexts) for data in (first, second)]
    for limb, p in enumerate(made.primes):
        assert_uniform((seen[0][:, limb] + np.uint64(p) - seen[1][:, limb]) % np.uint64(p), p)
        assert_uniform((sent[0][:, 1, limb] + np.uint64(p) - sent[1][:, 1, limb]) % np.uint64(p), p)
        every = np.concatenate([blinding.coefficients[limb] for blinding in (one, other)])
        assert_uniform(every, p)
        assert len({row.tobytes() for row in every}) == len(every)


# --- what compute gets


@METRICS
def test_the_answer_is_a_fresh_encryption(metric: Metric) -> None:
    """Of the same values but for an error, with a c1 that nobody has seen: compute learns nothing from it."""
    made, shape, _, block = imported(8, metric)
    blinded, _ = made.evaluator.blind(shape, block)
    cleared = asked(shape, CLEARED)
    answers = [made.opener.renew(shape, blinded, cleared) for _ in range(2)]
    before = opened(made, shape, blinded)
    before[..., ~kept(shape, CLEARED)] = 0
    errors = [small(made, (opened(made, shape, a) + made.moduli - before) % made.moduli) for a in answers]
    for error in errors:
        assert np.abs(error).max() <= 21
        assert error.std() == pytest.approx(3.24, rel=0.05)
        assert len({row.tobytes() for row in error}) == shape.ciphertexts
    assert (errors[0] != errors[1]).mean() > 0.8
    parts = [parse(data, made.layout, shape.ciphertexts)[:, 1] for data in (*answers, blinded)]
    for limb, p in enumerate(made.primes):
        assert_uniform(parts[0][:, limb], p)
        for other in parts[1:]:
            assert_uniform((parts[0][:, limb] + np.uint64(p) - other[:, limb]) % np.uint64(p), p)
    assert len({row.tobytes() for row in parts[0]}) == shape.ciphertexts


def test_whoever_sends_the_secret_times_something_gets_it_encrypted_and_nothing_else() -> None:
    """(0, K) opens to K s. The answer is the sum of that and a pair that does not depend on it."""
    made, shape, _, _ = imported(8)
    n, rng = made.layout.parameters.degree, np.random.default_rng(1)
    sent = np.stack([rng.integers(1, p, (8, 2, n), np.uint64) for p in made.primes], axis=2)
    sent[:, 0] = 0
    answer = made.opener.renew(shape, wire.pack(sent, made.primes), asked(shape, []))
    got = parse(answer, made.layout, shape.ciphertexts)
    for limb, p in enumerate(made.primes):
        for half in range(2):
            assert_uniform(got[:, half, limb], p)
            assert_uniform((got[:, half, limb] + np.uint64(p) - sent[:, 1, limb]) % np.uint64(p), p)
            known = got[:, half, limb].astype(float).ravel()
            for secret in (made.secret[limb], kernels.intt(made.secret[limb], p)):
                assert abs(np.corrcoef(known, np.tile(secret.astype(float), 8))[0, 1]) < 6 / np.sqrt(known.size)


def test_what_is_erased_does_not_depend_on_the_key_holder() -> None:
    """Who clears nothing gives back what stays blinded for good."""
    made, shape, _, block = imported(8)
    blinded, blinding = made.evaluator.blind(shape, block)
    answer = made.opener.renew(shape, blinded, asked(shape, []))
    found = opened(made, shape, made.evaluator.unblind(shape, answer, blinding, asked(shape, CLEARED)))
    gone = ~kept(shape, CLEARED)
    for limb, p in enumerate(made.primes):
        assert_uniform(found[:, limb, gone], p, 16)


@pytest.mark.parametrize("columns", [8, 16])
@pytest.mark.parametrize("raw", [True, False], ids=["raw products", "results"])
def test_the_division_attack_on_a_renewed_block(columns: int, raw: bool) -> None:
    """It finds the templates in raw products, not the cleared ones, and nothing in results."""
    dimension = 16 if columns == 16 else DIMENSION
    made, shape, vectors, data = imported(columns, dimension=dimension)
    units_ = vectors / 0.9
    block = made.evaluator.load(shape, renewed(made, shape, data, CLEARED))
    sent = [made.encryptor.probe(q) for q in units(np.random.default_rng(3), columns, dimension)]
    evaluator = Before(made)
    leaves = evaluator.expand(as_sent(made, sent), [shape])[shape]
    if raw:
        products = product.scores([block.columns], leaves.words, made.primes)[:, 0].astype(np.uint64)
        found = divide(made, shape, list(products[:, :, 0]), leaves)
        expected = units_.copy()
        expected[CLEARED] = 0
        assert np.abs(found - expected).max() < 1e-4
        return
    results = [result for (result,) in evaluator.score([block], leaves, [asked(shape)])]
    p, dropped = made.primes
    products = [polynomials(made, result) * np.uint64(dropped % p) % np.uint64(p) for result in results]
    for seen in (products, [before[:, 0] for before in evaluator.seen]):
        found = divide(made, shape, seen, leaves)
        assert found.std() == pytest.approx(p / 12**0.5 / 2**27, rel=0.05)
        assert abs(np.corrcoef(found.ravel(), units_.ravel())[0, 1]) < 6 / np.sqrt(units_.size)


def test_nothing_is_left_of_the_key_holders_pair_in_what_is_stored() -> None:
    made, shape, _, block = imported(8)
    blinded, blinding = made.evaluator.blind(shape, block)
    cleared = asked(shape, CLEARED)
    answer = made.opener.renew(shape, blinded, cleared)
    stored = [parse(made.evaluator.unblind(shape, answer, blinding, cleared), made.layout, 8) for _ in range(2)]
    given = parse(answer, made.layout, 8)
    for limb, p in enumerate(made.primes):
        for half in range(2):
            for other in (given, stored[1]):
                assert_uniform((stored[0][:, half, limb] + np.uint64(p) - other[:, half, limb]) % np.uint64(p), p)


# --- bytes from outside


def test_what_is_no_block_is_neither_renewed_nor_stored() -> None:
    made, shape, _, block = imported(8)
    nobody = asked(shape, [])
    blinded, blinding = made.evaluator.blind(shape, block)
    residues = wire.unpack(blinded, 16, 4096, made.primes).reshape(8, 2, 2, 4096)
    transparent, too_large = residues.copy(), bytearray(blinded)
    transparent[3, 1] = 0
    too_large[:4] = b"\xff" * 4
    bad = [b"", blinded[:-1], blinded + b"\0", bytes(too_large), wire.pack(transparent, made.primes)]
    for data in bad:
        with pytest.raises(MalformedCiphertext):
            made.opener.renew(shape, data, nobody)
        with pytest.raises(MalformedCiphertext):
            made.evaluator.blind(shape, data)
        with pytest.raises(MalformedCiphertext):
            made.evaluator.unblind(shape, data, blinding, nobody)
    for wrong in (asked(made.layout.shape(4), []), np.zeros(shape.positions, bool)):
        with pytest.raises(ValueError, match="positions"):
            made.opener.renew(shape, blinded, wrong)
        with pytest.raises(ValueError, match="positions"):
            made.evaluator.unblind(shape, blinded, blinding, wrong)


def test_a_blinding_does_not_show_its_values() -> None:
    assert repr(Blinding(np.full((2, 1, 4), 77, np.uint64))) == "Blinding()"
