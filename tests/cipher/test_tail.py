"""What compute hands out. The key holder of these tests knows the secret and every probe ciphertext."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import kernels, tail, wire
from sealface.cipher.distance import Metric
from sealface.cipher.kernels import integers_to_ntt
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.randomness import Randomness
from sealface.cipher.ring import Residues
from sealface.cipher.tail import Evaluator, Group, Probe, parse, result_size, template_size, transparent
from sealface.cipher.wire import MalformedCiphertext
from tests.cipher.conftest import Sides, assert_uniform, sides, units

DIMENSION = 128


def centred(residues: Residues, p: int) -> NDArray[np.int64]:
    """Coefficients of a polynomial in NTT form, around zero."""
    values = kernels.intt(residues, p).astype(np.int64)
    return np.where(values > p // 2, values - p, values)


def polynomials(made: Sides, result: bytes) -> Residues:
    """A result's three polynomials (3, N)."""
    degree = made.layout.parameters.degree
    return wire.unpack(result, 3, degree, made.primes[:1])[:, 0]


def coefficients(made: Sides, result: bytes) -> NDArray[np.int64]:
    """All coefficients that the key holder opens, scores or not."""
    p = made.primes[0]
    c, s = polynomials(made, result), made.secret[0]
    total = c[0] + c[1] * s % np.uint64(p) + c[2] * (s * s % np.uint64(p)) % np.uint64(p)
    return centred(total % np.uint64(p), p)


class Before(Evaluator):
    """Shows what `score` holds just before it switches to one prime."""

    seen: Residues

    def _switch(self, residues: Residues) -> Residues:
        self.seen = residues
        return super()._switch(residues)


@pytest.fixture(scope="module")
def full() -> tuple[Sides, NDArray[np.float64], Group]:
    made = sides(dimension=DIMENSION)
    vectors = units(np.random.default_rng(1), made.layout.capacity, DIMENSION)
    return made, vectors, made.evaluator.assemble(made.templates(vectors))


# --- rule 1: division


def divide(made: Sides, product: Residues, probe: Residues) -> NDArray[np.float64]:
    """Rule 1's attack: t1 = c2/q1, t0 = (c1 - t1 q0)/q1, and the secret opens (t0, t1): all templates.

    The first prime is enough: a template's coefficients are below 2^28.
    """
    p = made.primes[0]
    prime, q0, q1 = np.uint64(p), probe[0, 0], probe[1, 0]
    inverse = np.array([pow(int(v), -1, p) if v else 0 for v in q1], np.uint64)
    t1 = product[2] * inverse % prime
    t0 = (product[1] + prime - t1 * q0 % prime) * inverse % prime
    opened = centred((t0 + t1 * made.secret[0] % prime) % prime, p) / made.layout.parameters.scale
    return opened.reshape(-1, made.layout.stride)[: made.layout.capacity, :DIMENSION]


def test_the_division_attack_succeeds_on_a_raw_product(
    full: tuple[Sides, NDArray[np.float64], Group], rng: np.random.Generator
) -> None:
    made, vectors, group = full
    sent = parse(made.encryptor.probe(units(rng, 1, DIMENSION)[0]), made.layout)[0]
    product = kernels.multiply(group.residues[0], sent, made.primes)
    product[0] = 0  # whatever masks c0
    assert np.abs(divide(made, product[:, 0], sent) - vectors).max() < 1e-4


@pytest.mark.parametrize("known", ["as sent", "as admitted"])
@pytest.mark.parametrize("switched", [False, True], ids=["before the switch", "result"])
def test_the_division_attack_recovers_nothing_from_a_result(
    full: tuple[Sides, NDArray[np.float64], Group], rng: np.random.Generator, known: str, switched: bool
) -> None:
    made, vectors, group = full
    q = units(rng, 1, DIMENSION)[0]
    sent = made.encryptor.probe(q)
    evaluator = Before(made.layout, made.public)
    # "as sent" gives the attacker the probe that is multiplied: admission alone must not save us
    probe = Probe(parse(sent, made.layout)) if known == "as sent" else evaluator.admit_probe(sent)
    result = evaluator.score(group, probe, range(made.layout.capacity))
    assert np.abs(made.opener.open([result]).scores[0] - vectors @ q).max() < 2e-4
    if switched:
        p, dropped = made.primes
        product = polynomials(made, result) * np.uint64(dropped % p) % np.uint64(p)
    else:
        product = evaluator.seen[:, 0]
    opened = divide(made, product, probe.residues[0])
    # uniform modulo p, in units of 2^28: a standard deviation of p/sqrt(12)/2^28 = 1.15
    assert opened.std() == pytest.approx(made.primes[0] / 12**0.5 / 2**28, rel=0.05)
    assert abs(np.corrcoef(opened.ravel(), vectors.ravel())[0, 1]) < 6 / np.sqrt(vectors.size)


def test_two_results_of_the_same_input_share_nothing(full: tuple[Sides, NDArray[np.float64], Group]) -> None:
    made, _, group = full
    probe = made.evaluator.admit_probe(made.encryptor.probe(np.ones(DIMENSION)))
    evaluator = Before(made.layout, made.public)
    raw, results = [], []
    for _ in range(2):
        results.append(polynomials(made, evaluator.score(group, probe, range(made.layout.capacity))))
        raw.append(evaluator.seen)
    assert ((results[0] == results[1]).sum(axis=1) < 8).all()  # 4096 / 2^30 expected
    p = np.uint64(made.primes[0])
    for i in range(3):
        difference = (results[0][i] + p - results[1][i]) % p
        assert_uniform(difference, int(p), 32)
        assert_uniform(kernels.intt(difference, int(p)), int(p), 32)
        for limb, prime in enumerate(made.primes):
            difference = (raw[0][i, limb] + np.uint64(prime) - raw[1][i, limb]) % np.uint64(prime)
            assert_uniform(kernels.intt(difference, prime), prime, 32)


# --- the zero


@pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)
def test_the_zero_opens_to_little_and_looks_uniform(parameters: ParameterSet) -> None:
    made = sides(parameters)
    zeros = [made.evaluator._zero() for _ in range(6)]
    s = made.secret[:2]
    for zero in zeros:
        assert zero.shape == (3, 2, parameters.degree)
        total = zero[0] + zero[1] * s % made.moduli + zero[2] * (s * s % made.moduli) % made.moduli
        phases = [centred(limb, p) for limb, p in zip(total % made.moduli, made.primes, strict=True)]
        assert (phases[0] == phases[1]).all()  # one small integer polynomial modulo both primes
        assert 2**10 < phases[0].std() < 2**16
        assert np.abs(phases[0]).max() < 2**20
    for limb, p in enumerate(made.primes):
        for i in range(3):
            drawn = np.stack([zero[i, limb] for zero in zeros])
            assert_uniform(drawn, p)
            assert_uniform(kernels.intt(drawn, p), p)
    for i in range(3):
        assert len({zero[i].tobytes() for zero in zeros}) == len(zeros)


def test_the_zeros_secrets_are_independent() -> None:
    """x must not be y, nor one error another: with the secret, c1 and c2 would then cancel.

    For b = -(a s + e): c1 + s c2 = a x - e y + e1 + s e2. So c1 + (s - 1) c2, c1 + (s + 1) c2 and so on are
    small exactly when x = y, x = -y ...: the key holder tries the combinations that such a slip would leave.
    """
    made = sides()
    p = made.primes[0]
    prime, s = np.uint64(p), made.secret[0]
    zero = made.evaluator._zero()[:, 0]
    one = np.ones_like(s)
    combinations = [
        zero[1] + s * zero[2] % prime,  # small if x = 0
        zero[1] + (s + prime - one) % prime * zero[2] % prime,  # if x = y
        zero[1] + (s + one) % prime * zero[2] % prime,  # if x = -y
    ]
    for combination in combinations:
        assert_uniform(kernels.intt(combination % prime, p), p, 32)


class Recorder(Randomness):
    """Remembers what was drawn."""

    drawn: ClassVar[list[tuple[str, NDArray[np.int64]]]] = []

    def ternary(self, n: int) -> NDArray[np.int64]:
        self.drawn.append(("ternary", super().ternary(n)))
        return self.drawn[-1][1]

    def error(self, n: int) -> NDArray[np.int64]:
        self.drawn.append(("error", super().error(n)))
        return self.drawn[-1][1]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, NDArray[np.int64]]]:
    monkeypatch.setattr(tail, "Randomness", Recorder)
    monkeypatch.setattr(Recorder, "drawn", [])
    return Recorder.drawn


def test_every_polynomial_of_the_zero_has_its_own_draws(drawn: list[tuple[str, NDArray[np.int64]]]) -> None:
    made = sides()
    zero = made.evaluator._zero()
    assert sorted(kind for kind, _ in drawn) == ["error"] * 3 + ["ternary"] * 2
    assert len({values.tobytes() for _, values in drawn}) == 5
    x, y = (integers_to_ntt(values, made.primes) for kind, values in drawn if kind == "ternary")
    errors = [integers_to_ntt(values, made.primes) for kind, values in drawn if kind == "error"]
    b, a = made.public[:, :2]
    for x_, y_ in ((x, y), (y, x)):  # either may be drawn first
        rest = [zero[0] + made.moduli - b * x_ % made.moduli, zero[2] + made.moduli - a * y_ % made.moduli]
        rest.insert(1, zero[1] + 2 * made.moduli - a * x_ % made.moduli - b * y_ % made.moduli)
        left = [(r % made.moduli).tobytes() for r in rest]
        if sorted(left) == sorted(error.tobytes() for error in errors):
            return
    pytest.fail("the zero is not (b x + e0, a x + b y + e1, a y + e2)")


def test_every_ciphertext_admitted_has_its_own_draws(drawn: list[tuple[str, NDArray[np.int64]]]) -> None:
    made = sides(dimension=DIMENSION, metric=Metric.EUCLIDEAN)
    sent = made.encryptor.template(np.full(DIMENSION, 0.01))
    admitted = parse(made.evaluator.admit(sent), made.layout)
    difference = (admitted + made.moduli - parse(sent, made.layout)) % made.moduli
    assert sorted(kind for kind, _ in drawn) == ["error"] * 4 + ["ternary"] * 2
    assert len({values.tobytes() for _, values in drawn}) == 6
    errors = {integers_to_ntt(v, made.primes).tobytes() for kind, v in drawn if kind == "error"}
    secrets = [integers_to_ntt(v, made.primes) for kind, v in drawn if kind == "ternary"]
    found = set()
    for part, u in zip(difference, secrets, strict=True):
        for polynomial, key in zip(part, made.public[:, :2], strict=True):
            found.add(((polynomial + made.moduli - key * u % made.moduli) % made.moduli).tobytes())
    assert found == errors


# --- rule 2: masks


def test_only_requested_scores_and_check_positions_open(
    full: tuple[Sides, NDArray[np.float64], Group], rng: np.random.Generator
) -> None:
    made, vectors, group = full
    layout = made.layout
    q = units(rng, 1, DIMENSION)[0]
    probe = made.evaluator.admit_probe(made.encryptor.probe(q))
    requested = [0, 3, 17, layout.capacity - 1]
    results = [made.evaluator.score(group, probe, requested) for _ in range(150)]
    opened = np.stack([coefficients(made, result) for result in results])
    scale = layout.parameters.scale**2 / made.primes[1]
    kept = [layout.stride * i for i in (*requested, *range(layout.capacity, layout.positions))]
    scores = opened[:, kept[: len(requested)]] / scale
    assert np.abs(scores - vectors[requested] @ q).max() < 2e-4
    assert np.abs(opened[:, kept[len(requested) :]] / scale).max() < 2e-4
    others = np.delete(opened, kept, axis=1)
    p = made.primes[0]
    uniform = (others + p // 2).astype(np.uint64)
    assert_uniform(uniform, p, 256)
    for column in (0, 100, 500, 2000, others.shape[1] - 1):  # each by itself, across results
        assert_uniform(uniform[:, column], p, 4)
    # position by position, no correlation with the score that would stand there
    mean = others.mean(axis=0) / (p / 12**0.5) * np.sqrt(len(results))
    assert np.abs(mean).max() < 6
    for row in range(0, len(results), 2):  # and no coefficient is equal in two scorings of the same input
        assert (others[row] == others[row + 1]).sum() < 5


def test_nothing_requested_opens_nothing(full: tuple[Sides, NDArray[np.float64], Group]) -> None:
    made, vectors, group = full
    probe = made.evaluator.admit_probe(made.encryptor.probe(vectors[5]))
    opened = made.opener.open([made.evaluator.score(group, probe, ()) for _ in range(64)])
    p = made.primes[0]
    scale = 2.0**56 / made.primes[1]
    assert_uniform((opened.scores * scale + p // 2).astype(np.uint64), p, 32)
    assert np.abs(opened.checks).max() < 2e-4


def test_an_erased_position_opens_as_random(rng: np.random.Generator) -> None:
    made = sides(dimension=DIMENSION)
    vectors = units(rng, 4, DIMENSION)
    templates = made.templates(vectors)
    del templates[1]
    group = made.evaluator.assemble(templates)
    probe = made.evaluator.admit_probe(made.encryptor.probe(vectors[1]))
    opened = made.opener.open([made.evaluator.score(group, probe, templates) for _ in range(300)])
    live = [0, 2, 3]
    assert np.abs(opened.scores[:, live] - vectors[live] @ vectors[1]).max() < 2e-4
    p = made.primes[0]
    empty = np.delete(opened.scores, live, axis=1) * 2.0**56 / made.primes[1]
    assert_uniform((empty + p // 2).astype(np.uint64), p, 64)
    assert_uniform((empty[:, 0] + p // 2).astype(np.uint64), p, 8)


@pytest.mark.parametrize("position", [-1, -2, 30, 31, 32, 4096])
def test_positions_outside_the_group(full: tuple[Sides, NDArray[np.float64], Group], position: int) -> None:
    made, vectors, group = full
    probe = made.evaluator.admit_probe(made.encryptor.probe(vectors[0]))
    with pytest.raises(ValueError, match="outside"):
        made.evaluator.score(group, probe, [0, position])
    template = made.encryptor.template(vectors[0])
    with pytest.raises(ValueError, match="outside"):
        made.evaluator.assemble({position: template})


# --- admission


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_admission_randomises_and_keeps_the_meaning(metric: Metric, rng: np.random.Generator) -> None:
    made = sides(dimension=DIMENSION, metric=metric)
    sent = made.encryptor.template(0.9 * units(rng, 1, DIMENSION)[0])
    assert len(sent) == template_size(made.layout)
    before = parse(sent, made.layout)
    admitted = [parse(made.evaluator.admit(sent), made.layout) for _ in range(2)]
    admitted.append(made.evaluator.admit_probe(sent).residues)
    s = made.secret[:2]
    for after in admitted:
        for part in range(made.layout.parts):
            difference = (after[part] + made.moduli - before[part]) % made.moduli
            for limb, p in enumerate(made.primes):
                assert_uniform(difference[:, limb], p, 32)
                assert_uniform(kernels.intt(difference[:, limb], p), p, 32)
            total = (difference[0] + difference[1] * s % made.moduli) % made.moduli
            noise = centred(total[0], made.primes[0])
            # e u + e0 + e1 s, as Layout.noise has it
            assert noise.std() == pytest.approx(np.sqrt(10.5 * (1 + 2 * 4096 * 2 / 3)), rel=0.15)
            assert (noise == centred(total[1], made.primes[1])).all()
    assert (admitted[0] == admitted[1]).mean() < 0.001


def test_parts_are_not_randomised_alike() -> None:
    made = sides(dimension=DIMENSION, metric=Metric.EUCLIDEAN)
    sent = made.encryptor.template(np.full(DIMENSION, 0.01))
    difference = (parse(made.evaluator.admit(sent), made.layout) + made.moduli - parse(sent, made.layout)) % made.moduli
    assert (difference[0] == difference[1]).mean() < 0.001


# --- bytes from outside


def altered(made: Sides, data: bytes, part: int, polynomial: int, value: int) -> bytes:
    """Ciphertext bytes with one polynomial set to a constant."""
    residues = wire.unpack(data, 2 * made.layout.parts, 4096, made.primes).reshape(-1, 2, 2, 4096)
    residues[part, polynomial] = value
    return wire.pack(residues, made.primes)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_transparent_ciphertexts_are_refused(metric: Metric) -> None:
    made = sides(dimension=DIMENSION, metric=metric)
    good = made.encryptor.template(np.full(DIMENSION, 0.01))
    for part in range(made.layout.parts):
        bad = altered(made, good, part, 1, 0)
        for call in (
            made.evaluator.admit,
            made.evaluator.admit_probe,
            lambda data: made.evaluator.assemble({0: data}),
        ):
            with pytest.raises(MalformedCiphertext, match="hides nothing"):
                call(bad)
    for limb in range(2):  # half transparent is no better
        residues = wire.unpack(good, 2 * made.layout.parts, 4096, made.primes)
        residues[1, limb] = 0
        with pytest.raises(MalformedCiphertext, match="hides nothing"):
            made.evaluator.admit(wire.pack(residues, made.primes))


def test_a_uniform_polynomial_is_not_transparent(rng: np.random.Generator) -> None:
    a = rng.integers(0, N4096.primes[0], (200, 4096)).astype(np.uint64)
    assert not transparent(a)
    a[7, :9] = 0
    assert transparent(a)


def test_bytes_that_are_no_ciphertext() -> None:
    made = sides(dimension=DIMENSION)
    good = made.encryptor.template(np.ones(DIMENSION))
    residues = wire.unpack(good, 2, 4096, made.primes)
    residues[0, 1, 7] = made.primes[1]
    other_set = sides(N8192, DIMENSION).encryptor.template(np.ones(DIMENSION))
    other_metric = sides(dimension=DIMENSION, metric=Metric.EUCLIDEAN).encryptor.template(np.full(DIMENSION, 0.01))
    cases = [b"", good[:-1], good + b"\0", wire.pack(residues, made.primes), other_set, other_metric]
    for bad in cases:
        for call in (
            made.evaluator.admit,
            made.evaluator.admit_probe,
            lambda data: made.evaluator.assemble({0: data}),
        ):
            with pytest.raises(MalformedCiphertext):
                call(bad)


def test_random_bytes_in_range_are_admitted_and_open_as_random(rng: np.random.Generator) -> None:
    made = sides(dimension=DIMENSION)
    residues = np.stack([rng.integers(0, p, (2, 4096)) for p in made.primes], axis=1).astype(np.uint64)
    noise = made.evaluator.admit(wire.pack(residues, made.primes))
    probe = made.evaluator.admit_probe(made.encryptor.probe(np.ones(DIMENSION)))
    result = made.evaluator.score(made.evaluator.assemble({0: noise}), probe, [0])
    assert len(result) == result_size(made.layout)
    assert not made.opener.genuine(made.opener.open([result]).checks)
