from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealface.cipher import kernels, ring
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.ring import Residues
from tests.cipher import portable

SETS = pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)


@SETS
def test_the_twins_give_the_same_bits(parameters: ParameterSet, rng: np.random.Generator) -> None:
    for p in parameters.data_primes:
        a = rng.integers(0, p, (2, 3, parameters.degree)).astype(np.uint64)
        a[0, 0], a[0, 1], a[0, 2] = 0, p - 1, np.resize([0, p - 1], parameters.degree)
        before = a.copy()
        for twin, reference in ((kernels.ntt, ring.ntt), (kernels.intt, ring.intt)):
            got = twin(a, p)
            assert got.dtype == np.uint64
            assert np.array_equal(got, reference(a, p))
            assert (got < p).all()
        assert (a == before).all()


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_twins_on_extreme_values(data: st.DataObject) -> None:
    p = data.draw(st.sampled_from([*N4096.data_primes, *N8192.data_primes]))
    n = data.draw(st.sampled_from([2, 4, 32]))
    values = st.one_of(st.sampled_from([0, 1, p - 1, p // 2]), st.integers(0, p - 1))
    a = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), np.uint64)
    assert np.array_equal(kernels.ntt(a, p), ring.ntt(a, p))
    assert np.array_equal(kernels.intt(a, p), ring.intt(a, p))


def test_a_strided_array_is_read_as_it_looks(rng: np.random.Generator) -> None:
    p = N4096.primes[0]
    a = rng.integers(0, p, (64, 4)).astype(np.uint64).T
    assert np.array_equal(kernels.ntt(a, p), ring.ntt(a, p))


@SETS
def test_product_of_ciphertexts(parameters: ParameterSet, rng: np.random.Generator) -> None:
    primes = parameters.data_primes
    x, y = (
        np.stack([rng.integers(0, p, (2, parameters.degree)) for p in primes], axis=1).astype(np.uint64)
        for _ in range(2)
    )
    x[:, :, :8] = y[:, :, :8] = np.array(primes, np.uint64)[:, None] - np.uint64(1)  # largest products
    got = kernels.multiply(x, y, primes)
    a, b, moduli = x.astype(object), y.astype(object), np.array(primes, object)[:, None]
    expected = np.stack([a[0] * b[0], a[0] * b[1] + a[1] * b[0], a[1] * b[1]]) % moduli
    assert np.array_equal(got, expected.astype(np.uint64))


def residues(rng: np.random.Generator, count: int, n: int, primes: tuple[int, ...]) -> Residues:
    """Random (count, limbs, N), the first eight coefficients 0 and p - 1 in turn."""
    drawn = np.stack([rng.integers(0, p, (count, n)) for p in primes], axis=1).astype(np.uint64)
    largest = np.array(primes, np.uint64)[:, None] - np.uint64(1)
    drawn[:, :, :8] = largest * np.resize(np.array([0, 1], np.uint64), 8)
    return drawn


@SETS
def test_sums_of_words(parameters: ParameterSet, rng: np.random.Generator) -> None:
    primes = parameters.data_primes
    x, y = residues(rng, 3, parameters.degree, primes), residues(rng, 3, parameters.degree, primes)
    got = kernels.add_words(x.astype(np.uint32), y.astype(np.uint32), primes)
    assert got.dtype == np.uint64
    assert np.array_equal(got, (x + y) % np.array(primes, np.uint64)[:, None])


def switched(value: int, p: int, q: int) -> int:
    """A number modulo p q, divided by q and rounded, modulo p."""
    rest = value % q
    return (value - (rest - q if rest > q // 2 else rest)) // q % p


@SETS
@pytest.mark.parametrize("with_errors", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_switching_to_one_prime(
    parameters: ParameterSet, with_errors: bool, with_mask: bool, rng: np.random.Generator
) -> None:
    """Against whole numbers: errors are added before the division, a mask to the first polynomial after it."""
    (p, q), n = parameters.data_primes, parameters.degree
    coefficients = residues(rng, 3, n, (p, q))
    # what is left modulo q at both ends of its range, and one beside them, with the largest errors either way
    edges = np.array([0, 1, q - 1, q // 2 - 21, q // 2, q // 2 + 1, q // 2 + 22, q - 21], np.uint64)
    coefficients[:, 1, 8 : 8 + 3 * edges.size] = np.tile(edges, 3)
    errors = rng.integers(-21, 22, (3, n))
    errors[:, 8 : 8 + 3 * edges.size] = np.repeat([-21, 0, 21], edges.size)
    mask = residues(rng, 1, n, (p,))[0, 0]
    form = np.stack([kernels.ntt(coefficients[:, limb], prime) for limb, prime in enumerate((p, q))], axis=1)
    got = kernels.switch(form, (p, q), errors if with_errors else None, mask if with_mask else None)
    assert got.shape == (3, n)
    combined = coefficients[:, 0].astype(object)
    combined = combined + p * ((coefficients[:, 1].astype(object) - combined) * pow(p, -1, q) % q)
    if with_errors:
        combined = combined + errors
    expected = np.frompyfunc(lambda value: switched(value, p, q), 1, 1)(combined)
    if with_mask:
        expected[0] = (expected[0] + mask.astype(object)) % p
    assert np.array_equal(kernels.intt(got, p), expected.astype(np.uint64))


def test_the_bits_are_those_of_the_least_processor(plain_processor: dict[str, Any]) -> None:
    assert plain_processor["kernels"] == portable.digests()["kernels"]
