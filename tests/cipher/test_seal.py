from __future__ import annotations

import numpy as np
import pytest

from sealface.cipher import ring, seal
from sealface.cipher.kernels import integers_to_ntt
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.ring import Residues
from tests.cipher.conftest import assert_uniform, key, sides

SETS = pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)


def centred(residues: Residues, p: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Coefficients in (-p/2, p/2] of a polynomial in NTT form."""
    if p < 1 << 30:
        values = ring.intt(residues, p).astype(np.int64)
    else:  # the special prime is over what ring can multiply: the same transform on Python integers
        n = residues.size
        _, w, n_inverse = ring.roots(p, n)
        out, roots = residues.astype(object), w.astype(object)
        m, t = n // 2, 1
        while m >= 1:
            pairs = out.reshape(m, 2, t)
            u, v = pairs[:, 0].copy(), pairs[:, 1].copy()
            pairs[:, 0], pairs[:, 1] = (u + v) % p, (u - v) * roots[m : 2 * m, None] % p
            m, t = m // 2, 2 * t
        values = (out * n_inverse % p).astype(np.int64)
    return np.where(values > p // 2, values - p, values)


def phase(c0: Residues, c1: Residues, s: Residues, p: int) -> Residues:
    """c0 + c1 s for any prime."""
    product = c1.astype(object) * s.astype(object)
    total: Residues = ((c0.astype(object) + product) % p).astype(np.uint64)
    return total


@SETS
def test_seal_orders_its_roots_as_we_do(parameters: ParameterSet) -> None:
    # SEAL encodes x^k as one number at every slot only for k = 0; all its own maps must agree on the rest
    secret, public = seal.generate(parameters)
    for exponent in (0, 1, parameters.degree - 1):
        coefficients = np.zeros(parameters.degree, np.int64)
        coefficients[exponent] = 1 << 27
        plain = integers_to_ntt(coefficients, parameters.data_primes)
        ciphertext = seal.Encryptor(parameters, public).encrypt(plain, parameters.template_scale)
        for limb, p in zip(seal.decrypt(parameters, secret, ciphertext), parameters.data_primes, strict=True):
            opened = centred(limb, p)
            assert abs(int(opened[exponent]) - (1 << 27)) < 1 << 12
            opened[exponent] = 0
            assert np.abs(opened).max() < 1 << 12


def test_seals_encoder_agrees_on_x(rng: np.random.Generator) -> None:
    """SEAL's CKKS encoder evaluates at zeta^(3^j): independent of our transform, both ways."""
    import tenseal.sealapi as sealapi

    n, primes = 4096, N4096.data_primes
    encoder = sealapi.CKKSEncoder(seal._context(N4096))
    slots = [np.exp(1j * np.pi * pow(3, j, 2 * n) / n) for j in range(n // 2)]  # x^1 at the slot roots
    plain = sealapi.Plaintext()
    encoder.encode(slots, float(1 << 20), plain)
    words = np.array([plain[i] for i in range(2 * n)], np.uint64).reshape(2, n)
    for limb, p in zip(words, primes, strict=True):
        opened = centred(limb, p)
        assert abs(int(opened[1]) - (1 << 20)) <= 1
        opened[1] = 0
        assert np.abs(opened).max() <= 1


@SETS
def test_keys_are_what_they_should_be(parameters: ParameterSet) -> None:
    secret, public = seal.generate(parameters)
    coefficients = [centred(limb, p) for limb, p in zip(secret, parameters.primes, strict=True)]
    assert all((c == coefficients[0]).all() for c in coefficients)
    counts = np.bincount(coefficients[0] + 1)
    n = parameters.degree
    assert counts.size == 3
    assert (np.abs(counts - n / 3) < 6 * np.sqrt(n * 2 / 9)).all()  # ternary, as Layout.noise assumes
    for i, p in enumerate(parameters.primes):
        error = centred(phase(public[0, i], public[1, i], secret[i], p), p)
        assert np.abs(error).max() <= 21
        assert abs(error.var() / 10.5 - 1) < 6 * np.sqrt(2 / n)
        assert_uniform(public[1, i], p, 32)
    other_secret, other_public = seal.generate(parameters)
    assert not (other_secret == secret).all()
    assert (other_public == public).mean() < 0.001


def test_encryption_is_fresh_each_time_and_hides() -> None:
    made = sides()
    plain = integers_to_ntt(np.zeros(4096, np.int64), made.primes)
    encryptor = seal.Encryptor(N4096, made.public)
    first, second = (encryptor.encrypt(plain, N4096.template_scale) for _ in range(2))
    assert (first == second).mean() < 0.001
    for i, p in enumerate(made.primes):
        assert_uniform(first[:, i], p, 32)


def test_galois_keys_switch_the_automorphism() -> None:
    made = sides()
    elements = [4097, 2049]
    keys = seal.galois_keys(N4096, made.secret, elements)
    assert sorted(keys) == sorted(elements)
    special = N4096.primes[-1]
    for element, digits in keys.items():
        assert digits.shape == (2, 2, 3, 4096)
        small = centred(made.secret[0], N4096.primes[0])
        moved = np.zeros(4096, np.int64)
        for i, value in enumerate(small):
            to = i * element % 8192
            moved[to % 4096] = value if to < 4096 else -value
        for digit, pair in enumerate(digits):
            for limb, p in enumerate(N4096.primes):
                opened = centred(phase(pair[0, limb], pair[1, limb], made.secret[limb], p), p)
                expected = moved * (special % p) if limb == digit else np.zeros(4096, np.int64)
                error = (opened - expected + p // 2) % p - p // 2
                assert np.abs(error).max() <= 21


def test_the_sets_shipped_by_name_load_and_a_wrong_one_does_not() -> None:
    broken = object.__new__(ParameterSet)
    for name, value in vars(N4096).items():
        object.__setattr__(broken, name, value)
    object.__setattr__(broken, "degree", 2048)  # past our own check: SEAL's is the second
    with pytest.raises(ValueError, match="ckks-n4096-v1"):
        seal._context(broken)


def test_no_file_is_left_behind() -> None:
    import os

    def count() -> int:
        return sum("sealface" in os.readlink(f"/proc/self/fd/{fd}") for fd in _open())

    def _open() -> list[str]:
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]

    key(N4096)
    sides().encryptor.template(np.ones(128))
    assert count() == 0
