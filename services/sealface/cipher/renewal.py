"""Ciphertexts made anew by a blinded round trip through the key holder: without some templates, or under another key.

Compute adds r, uniform modulo q, to c0 of every ciphertext; the key holder opens m + r, sets the coefficients of the
cleared templates to zero and encrypts what it holds again, under the same secret or the next version's; compute
subtracts r, but not where it was cleared. The key holder opens uniform values, compute gets a fresh encryption, and no
copy of the templates' ciphertext is needed (threat model, rule 7; docs/adr/0011, 0019).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels
from sealface.cipher.randomness import Randomness
from sealface.cipher.ring import Residues
from sealface.cipher.zeros import add


@dataclass(frozen=True)
class Blinding:
    """What blinds some ciphertexts once; it is held in memory only, and never used again.

    Attributes:
        coefficients: (limbs, ciphertexts, N) uniform modulo each prime.
    """

    coefficients: Residues = field(repr=False)


def blind(block: Residues, primes: tuple[int, ...]) -> tuple[Residues, Blinding]:
    """Ciphertexts (ciphertexts, 2, limbs, N) that open to uniform values, and what they are blinded with."""
    count, _, _, n = block.shape
    draw = Randomness()
    blinding = Blinding(np.stack([draw.uniform(count * n, p).reshape(count, n) for p in primes]))
    return _added(block, blinding.coefficients, primes), blinding


def unblind(renewed: Residues, blinding: Blinding, cleared: NDArray[np.int64], primes: tuple[int, ...]) -> Residues:
    """Renewed ciphertexts without their blinding, which a cleared coefficient has lost.

    Were one not cleared, it would keep its blinding for good: what is erased does not depend on the key holder.
    """
    negative = np.array(primes, np.uint64)[:, None, None] - blinding.coefficients
    negative[..., cleared] = 0
    return _added(renewed, negative, primes)


def renew(
    blinded: Residues, secret: Residues, target: Residues, cleared: NDArray[np.int64], primes: tuple[int, ...]
) -> Residues:
    """The key holder's part: fresh encryptions of what ciphertexts hold, zero at the cleared coefficients.

    They are made with a secret, (m + e - a s, a) for a uniform a: an error alone is added, 3.2 where an encryption
    under the public key adds 240. The work is the same whatever the values.

    Args:
        blinded: (ciphertexts, 2, limbs, N).
        secret: (limbs, N), data primes only, that opens them.
        target: the same, that they are encrypted under.
        cleared: coefficients, the same in each ciphertext.
        primes: the data primes.
    """
    n, draw = blinded.shape[-1], Randomness()
    negative = np.array(primes, np.uint64)[:, None] - target
    out = np.empty_like(blinded)
    for part, fresh in zip(blinded, out, strict=True):
        opened = kernels.multiply_add(part[1], secret, part[0], primes)
        error = draw.error(n)
        for limb, p in enumerate(primes):
            coefficients = kernels.intt(opened[limb], p).astype(np.int64)
            coefficients[cleared] = 0
            opened[limb] = kernels.ntt((coefficients + error) % p, p)
            fresh[1, limb] = draw.uniform(n, p)
        fresh[0] = kernels.multiply_add(fresh[1], negative, opened, primes)
    return out


def _added(block: Residues, coefficients: Residues, primes: tuple[int, ...]) -> Residues:
    """Ciphertexts with polynomials (limbs, ciphertexts, N), up to p in value, added to their c0."""
    out = block.copy()
    for limb, p in enumerate(primes):
        out[:, 0, limb] = add(block[:, 0, limb], kernels.ntt(coefficients[limb], p), np.array([p], np.uint64))
    return out
