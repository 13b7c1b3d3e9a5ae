"""Single-use zeros. The key holder of these tests knows the secret and sees every zero, not what was drawn for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import kernels
from sealface.cipher.kernels import integers_to_ntt
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.ring import Residues
from sealface.cipher.zeros import Zeros, add
from tests.cipher.conftest import Sides, asked, assert_uniform, centred, sides, units


def pool(made: Sides) -> Zeros:
    return Zeros(np.ascontiguousarray(made.public[:, :2]), made.primes)


def from_the_pool(made: Sides) -> Residues:
    filled = pool(made)
    filled.add_one()
    return filled.take().residues(made.primes)


def drawn_now(made: Sides) -> Residues:
    return pool(made).take().residues(made.primes)


EITHER = pytest.mark.parametrize("zero_of", [from_the_pool, drawn_now])


@EITHER
@pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)
def test_the_zero_opens_to_little_and_looks_uniform(parameters: ParameterSet, zero_of) -> None:
    made = sides(parameters)
    zeros = [zero_of(made) for _ in range(6)]
    s = made.secret[:2]
    for zero in zeros:
        assert zero.shape == (3, 2, parameters.degree)
        assert zero.dtype == np.uint64
        total = zero[0] + zero[1] * s % made.moduli + zero[2] * (s * s % made.moduli) % made.moduli
        phases = [centred(limb, p) for limb, p in zip(total % made.moduli, made.primes, strict=True)]
        assert (phases[0] == phases[1]).all()  # one small integer polynomial modulo both primes
        assert 2**10 < phases[0].std() < 2**16
        assert np.abs(phases[0]).max() < 2**20
    for limb, p in enumerate(made.primes):
        for i in range(3):
            values = np.stack([zero[i, limb] for zero in zeros])
            assert_uniform(values, p)
            assert_uniform(kernels.intt(values, p), p)
    for i in range(3):
        assert len({zero[i].tobytes() for zero in zeros}) == len(zeros)


@EITHER
def test_the_zeros_secrets_are_independent(zero_of) -> None:
    """x must not be y, nor one error another: with the secret, c1 and c2 would then cancel.

    For b = -(a s + e): c1 + s c2 = a x - e y + e1 + s e2. So c1 + (s - 1) c2, c1 + (s + 1) c2 and so on are
    small exactly when x = y, x = -y ...: the key holder tries the combinations that such a slip would leave.
    """
    made = sides()
    p = made.primes[0]
    prime, s = np.uint64(p), made.secret[0]
    zero = zero_of(made)[:, 0]
    one = np.ones_like(s)
    combinations = [
        zero[1] + s * zero[2] % prime,  # small if x = 0
        zero[1] + (s + prime - one) % prime * zero[2] % prime,  # if x = y
        zero[1] + (s + one) % prime * zero[2] % prime,  # if x = -y
    ]
    for combination in combinations:
        assert_uniform(kernels.intt(combination % prime, p), p, 32)


def matches(made: Sides, zero: Residues, drawn: list[tuple[str, NDArray[np.int64]]]) -> bool:
    """Whether the zero is (b x + e0, a x + b y + e1, a y + e2) for exactly what was drawn."""
    x, y = (integers_to_ntt(values, made.primes) for kind, values in drawn if kind == "ternary")
    errors = [integers_to_ntt(values, made.primes) for kind, values in drawn if kind == "error"]
    b, a = made.public[:, :2]
    for x_, y_ in ((x, y), (y, x)):  # either may be drawn first
        rest = [zero[0] + made.moduli - b * x_ % made.moduli, zero[2] + made.moduli - a * y_ % made.moduli]
        rest.insert(1, zero[1] + 2 * made.moduli - a * x_ % made.moduli - b * y_ % made.moduli)
        left = [(r % made.moduli).tobytes() for r in rest]
        if sorted(left) == sorted(error.tobytes() for error in errors):
            return True
    return False


@EITHER
def test_every_polynomial_of_the_zero_has_its_own_draws(drawn: list[tuple[str, NDArray[np.int64]]], zero_of) -> None:
    made = sides()
    zero = zero_of(made)
    assert sorted(kind for kind, _ in drawn) == ["error"] * 3 + ["ternary"] * 2
    assert len({values.tobytes() for _, values in drawn}) == 5
    assert matches(made, zero, drawn)


def test_every_zero_has_its_own_draws(drawn: list[tuple[str, NDArray[np.int64]]]) -> None:
    made = sides()
    filled = pool(made)
    for _ in range(3):
        filled.add_one()
    zeros = [filled.take().residues(made.primes) for _ in range(5)]  # the last two are drawn when they are taken
    assert len(drawn) == 5 * 5
    assert len({values.tobytes() for _, values in drawn}) == len(drawn)
    for number, zero in enumerate(zeros):
        assert matches(made, zero, drawn[5 * number : 5 * number + 5])


def test_an_empty_pool_draws_and_a_filled_one_does_not(drawn: list[tuple[str, NDArray[np.int64]]]) -> None:
    filled = pool(sides())
    assert len(filled) == 0
    filled.take()
    assert len(drawn) == 5
    assert len(filled) == 0  # what was drawn now is not kept
    for count in range(1, 4):
        filled.add_one()
        assert len(filled) == count
    ahead = len(drawn)
    taken = {filled.take().product.tobytes() for _ in range(3)}
    assert len(drawn) == ahead
    assert len(taken) == 3
    assert len(filled) == 0
    assert filled.take().product.tobytes() not in taken
    assert len(drawn) == ahead + 5


def test_each_is_handed_out_once_among_threads() -> None:
    """Some fill, some take; nobody ever gets what another got, and nothing is lost."""
    filled = pool(sides())
    for _ in range(60):
        filled.add_one()
    barrier = threading.Barrier(6)
    taken: list[list[bytes]] = [[] for _ in range(4)]

    def fill() -> None:
        barrier.wait()
        for _ in range(20):
            filled.add_one()

    def take(mine: list[bytes]) -> None:
        barrier.wait()
        mine += [filled.take().product[2].tobytes() for _ in range(40)]

    with ThreadPoolExecutor(6) as threads:
        work = [threads.submit(fill) for _ in range(2)] + [threads.submit(take, mine) for mine in taken]
        for one in work:
            one.result()
    rest = [filled.take().product[2].tobytes() for _ in range(len(filled))]
    everything = [zero for mine in taken for zero in mine] + rest
    assert len(set(everything)) == len(everything) >= 160


def test_a_result_takes_one_zero_each(rng: np.random.Generator) -> None:
    made = sides()
    evaluator = made.fresh_evaluator()
    vectors = units(rng, 3, 128)
    groups = [evaluator.assemble(made.templates(vectors)) for _ in range(2)]
    leaves = evaluator.expand([made.probe(q) for q in vectors], [made.layout.group])[made.layout.group]
    for _ in range(8):
        evaluator.zeros.add_one()
    requested = [asked(made.layout.group)] * 2
    evaluator.score(groups, leaves, requested)
    assert len(evaluator.zeros) == 2  # six results
    results = [result for of_probe in evaluator.score(groups, leaves, requested) for result in of_probe]
    assert len(evaluator.zeros) == 0
    assert made.opener.genuine(made.layout.group, made.opener.open(made.layout.group, results).checks)


def test_the_sum_of_residues() -> None:
    p = N4096.primes[0]
    moduli = np.array([[p]], np.uint64)
    x = np.array([[0, 0, 1, p - 1, p - 1, p // 2]], np.uint64)
    y = np.array([[0, p - 1, p - 1, p - 1, 1, p // 2]], np.uint64)
    assert add(x, y, moduli).tolist() == [[(int(a) + int(b)) % p for a, b in zip(x[0], y[0], strict=True)]]
