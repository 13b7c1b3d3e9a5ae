"""Public keys whose uniform half nobody chose: it comes from a seed by a hash, and the seed is part of the key.

A key holder who chooses the polynomial a of a public key (b, a) can hide a trapdoor in it: a = v / u for short u and
v, as in NTRU. From a u' + e1 and b u' + e0, which is what randomises every result (docs/adr/0003), it would then find
u', and take the randomisation off. So a = SHAKE256(context, parameter set, prime, seed), as in key generation of ML-KEM
(FIPS 203): whoever encrypts or randomises under a key checks that first (docs/adr/0023).

On the wire a public key is its two polynomials, packed, and then the seed.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np

from sealface.cipher import wire
from sealface.cipher.parameters import ParameterSet
from sealface.cipher.ring import Residues

SEED_BYTES = 32
_CONTEXT = b"sealface public key v1\0"


def uniform_half(parameters: ParameterSet, seed: bytes) -> Residues:
    """The polynomial a (limbs, N) of a seed, in NTT form.

    For each prime of b bits, N words are taken from a stream of its own, in order: b bits (30 or 40) of the lowest of 8
    bytes, least significant first, those below the prime.
    """
    rows = []
    for p in parameters.primes:
        named = b"\0".join((parameters.name.encode(), str(p).encode(), seed))
        # a word is refused with probability 2^-14 at most
        words = np.frombuffer(hashlib.shake_256(_CONTEXT + named).digest(8 * (parameters.degree + 128)), "<u8")
        words = words & np.uint64((1 << (30 if p < 1 << 30 else 40)) - 1)
        rows.append(words[words < p][: parameters.degree].astype(np.uint64))
    return np.stack(rows)


def draw(parameters: ParameterSet, secret: Residues, public: Residues) -> bytes:
    """A public key with a uniform half from a fresh seed, and the error of another public key.

    From (b', a') with b' = -(a' s + e) comes b = b' + (a' - a) s = -(a s + e).

    Args:
        parameters: the parameter set.
        secret: (limbs, N) in NTT form.
        public: (2, limbs, N), as SEAL made it for that secret.
    """
    seed = os.urandom(SEED_BYTES)
    a = uniform_half(parameters, seed)
    b = np.empty_like(a)
    for limb, p in enumerate(parameters.primes):
        difference = (public[1, limb].astype(object) - a[limb].astype(object)) * secret[limb].astype(object)
        b[limb] = ((public[0, limb].astype(object) + difference) % p).astype(np.uint64)
    return wire.pack(np.stack([b, a]), parameters.primes) + seed


def parse(parameters: ParameterSet, public: bytes) -> Residues:
    """The polynomials (2, limbs, N) of a public key that was checked when it was first seen.

    Keys from before there were seeds are taken as well.

    Raises:
        MalformedCiphertext: it is none of the parameter set.
    """
    size = wire.packed_size(2, parameters.degree, parameters.primes)
    data = public[:size] if len(public) == size + SEED_BYTES else public
    return wire.unpack(data, 2, parameters.degree, parameters.primes)


def check(parameters: ParameterSet, public: bytes) -> Residues:
    """The polynomials (2, limbs, N) of a public key whose uniform half comes from its seed.

    Raises:
        MalformedCiphertext: it is none of the parameter set, or its uniform half was chosen.
    """
    residues = parse(parameters, public)
    if not np.array_equal(residues[1], uniform_half(parameters, public[-SEED_BYTES:])):
        raise wire.MalformedCiphertext(
            "the public key's uniform half does not come from its seed: do not encrypt under it; make or rotate the key"
        )
    return residues
