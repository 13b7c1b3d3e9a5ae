from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealface.cipher import kernels, ring
from sealface.cipher.parameters import N4096, N8192, ParameterSet

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
