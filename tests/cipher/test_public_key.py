"""Public keys: right, fresh, and of a uniform half that nobody chose."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from sealface.cipher import public_key, seal, wire
from sealface.cipher.kernels import intt
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.ring import Residues
from sealface.cipher.scheme import Ckks
from sealface.cipher.wire import MalformedCiphertext

SETS = pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)


def errors(parameters: ParameterSet, secret: Residues, public: Residues) -> list[np.ndarray]:
    """b + a s modulo each data prime, centred."""
    found = []
    for limb, p in enumerate(parameters.data_primes):
        product = public[1, limb].astype(object) * secret[limb].astype(object)
        phase = intt(((public[0, limb].astype(object) + product) % p).astype(np.uint64), p).astype(np.int64)
        found.append(np.where(phase > p // 2, phase - p, phase))
    return found


@SETS
def test_a_public_key_has_a_small_error_and_its_half_comes_from_its_seed(parameters: ParameterSet) -> None:
    secret, public = seal.generate(parameters)
    data = public_key.draw(parameters, secret, public)
    residues = public_key.check(parameters, data)
    one, other = errors(parameters, secret, residues)
    assert np.array_equal(one, other)  # one polynomial, seen modulo both primes
    assert abs(one.var() / 10.5 - 1) < 6 * np.sqrt(2 / parameters.degree)
    assert np.abs(one).max() <= 21
    assert np.array_equal(residues[1], public_key.uniform_half(parameters, data[-32:]))
    for limb, p in enumerate(parameters.primes):
        assert abs(residues[1, limb].mean() / p - 0.5) < 6 * np.sqrt(1 / 12 / parameters.degree)
        assert len(set(residues[1, limb].tolist())) > 0.99 * parameters.degree
    again = public_key.draw(parameters, secret, public)
    assert again[-32:] != data[-32:]


def test_the_uniform_half_is_what_the_contract_says_in_plain_python() -> None:
    seed = bytes(range(32))
    for limb, p in zip(public_key.uniform_half(N4096, seed), N4096.primes, strict=True):
        stream = hashlib.shake_256(b"sealface public key v1\0ckks-n4096-v1\0" + str(p).encode() + b"\0" + seed)
        data = stream.digest(8 * 4200)
        bits = 30 if p < 1 << 30 else 40
        words = [int.from_bytes(data[i : i + 8], "little") % (1 << bits) for i in range(0, len(data), 8)]
        assert limb.tolist() == [word for word in words if word < p][:4096]


def test_a_half_that_was_chosen_is_refused() -> None:
    """With a trapdoor: a = v / u for short u and v, by which u' can be found from a u' + e."""
    secret, public = seal.generate(N4096)
    honest = public_key.draw(N4096, secret, public)
    public_key.check(N4096, honest)
    planted = wire.pack(public, N4096.primes)  # any other half will do
    for wrong in (planted + honest[-32:], planted + bytes(32), planted, honest[:-1], honest[:-1] + b"\0"):
        with pytest.raises(MalformedCiphertext):
            Ckks().check_public(N4096, wrong)


def test_a_key_from_before_there_were_seeds_still_encrypts_and_is_not_trusted_anew() -> None:
    _, public = seal.generate(N4096)
    old = wire.pack(public, N4096.primes)
    assert np.array_equal(public_key.parse(N4096, old), public)
    with pytest.raises(MalformedCiphertext, match="seed"):
        public_key.check(N4096, old)


def test_a_generated_key_is_checked() -> None:
    Ckks().check_public(N4096, Ckks().generate(N4096).public)
