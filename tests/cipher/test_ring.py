from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealface.cipher import kernels, ring
from sealface.cipher.parameters import N4096, N8192

PRIMES = sorted({*N4096.data_primes, *N8192.data_primes})
SMALL_DEGREES = [2, 8, 64]


def naive_order(n: int) -> list[int]:
    """Exponents 2 bitrev(i) + 1, by string reversal."""
    bits = n.bit_length() - 1
    return [2 * int(f"{i:0{bits}b}"[::-1], 2) + 1 for i in range(n)]


def negacyclic(a: list[int], b: list[int], p: int) -> list[int]:
    """Product modulo x^n + 1 by one product of big integers (Kronecker substitution)."""
    n, width = len(a), 80
    packed = [sum(v << (width * i) for i, v in enumerate(x)) for x in (a, b)]
    product = packed[0] * packed[1]
    digits = product.to_bytes(width // 8 * 2 * n + 16, "little")
    c = [int.from_bytes(digits[i * 10 : i * 10 + 10], "little") for i in range(2 * n)]
    return [(c[i] - c[i + n]) % p for i in range(n)]


@pytest.mark.parametrize("n", SMALL_DEGREES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_transform_evaluates_at_the_roots_in_order(n: int, data: st.DataObject) -> None:
    p = data.draw(st.sampled_from(PRIMES))
    a = data.draw(st.lists(st.integers(0, p - 1), min_size=n, max_size=n))
    psi = min(r for g in range(2, 60) if pow(r := pow(g, (p - 1) // (2 * n), p), n, p) == p - 1)
    psi = min(pow(psi, k, p) for k in range(1, 2 * n, 2))  # the least primitive root
    expected = [sum(v * pow(psi, e * i, p) for i, v in enumerate(a)) % p for e in naive_order(n)]
    assert ring.ntt(np.array(a, np.uint64), p).tolist() == expected


@pytest.mark.parametrize(("n", "p"), [(4096, N4096.primes[0]), (8192, N8192.primes[1])])
def test_transform_at_full_degree(n: int, p: int, rng: np.random.Generator) -> None:
    a, b = (rng.integers(0, p, n).astype(np.uint64) for _ in range(2))
    values = ring.ntt(a, p)
    forward, _, _ = ring.roots(p, n)
    psi = int(forward[n // 2])  # bit-reversed index of 1
    assert pow(psi, n, p) == p - 1
    order = naive_order(n)
    for i in (0, 1, 2, n // 2, n - 1):
        root, value = pow(psi, order[i], p), 0
        for coefficient in reversed(a.tolist()):
            value = (value * root + coefficient) % p
        assert values[i] == value
    product = ring.intt(values * ring.ntt(b, p) % np.uint64(p), p)
    assert product.tolist() == negacyclic(a.tolist(), b.tolist(), p)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_inverse_undoes(data: st.DataObject) -> None:
    n, p = data.draw(st.sampled_from(SMALL_DEGREES)), data.draw(st.sampled_from(PRIMES))
    rows = data.draw(st.lists(st.lists(st.integers(0, p - 1), min_size=n, max_size=n), min_size=1, max_size=3))
    a = np.array(rows, np.uint64)
    before = a.copy()
    assert (ring.intt(ring.ntt(a, p), p) == a).all()
    assert (a == before).all()  # inputs are left alone


def test_signed_integers() -> None:
    values = np.zeros(64, np.int64)
    values[3], values[5] = -1, -(2**57)
    residues = kernels.integers_to_ntt(values, N4096.data_primes)
    for limb, p in zip(residues, N4096.data_primes, strict=True):
        assert ring.intt(limb, p).tolist() == [int(v) % p for v in values]
