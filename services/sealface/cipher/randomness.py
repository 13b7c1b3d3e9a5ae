"""Masks, blinds and dither: AES-256-CTR keyed once by the operating system, rejection-sampled per prime.

Nothing else in the project draws randomness for ciphertexts, except SEAL's own generator (BLAKE2xb seeded by
the operating system) inside key generation and encryption. Each object is used for one result and then
dropped, so nothing is ever drawn twice (threat model, rule 3).

Where an auditor is to compute a search again, its randomness comes from a seed of its own (docs/adr/0022): 32 bytes of
the operating system's for each search, from which every use has a key of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from sealface.cipher.ring import Residues

_PART = 1 << 14


def derived(seed: bytes, *use: bytes) -> bytes:
    """A seed for one use of another seed (32 bytes): HMAC-SHA256, which is a pseudorandom function of the use."""
    return hmac.digest(seed, b"".join(hashlib.sha256(part).digest() for part in use), "sha256")


class Randomness:
    """A stream of single-use random polynomials.

    Args:
        seed: 32 secret bytes that are used for nothing else; the operating system's if there are none.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        key = os.urandom(32) if seed is None else seed
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._stream.update(bytes(count)), np.uint8)

    def uniform(self, n: int, p: int) -> Residues:
        """Residues (n,) uniform modulo p < 2^30: an element is rejected with probability 1 - p/2^30."""
        accepted = np.empty(0, np.uint64)
        while accepted.size < n:
            words = self._bytes(4 * (n - accepted.size) + 64).view("<u4") & np.uint32((1 << 30) - 1)
            accepted = np.concatenate([accepted, words[words < p].astype(np.uint64)])
        return accepted[:n]

    def ternary(self, n: int) -> NDArray[np.int64]:
        """Coefficients (n,) uniform in {-1, 0, 1}."""
        accepted = np.empty(0, np.uint8)
        while accepted.size < n:
            drawn = self._bytes(n - accepted.size + 64)
            accepted = np.concatenate([accepted, drawn[drawn < 255]])
        return (accepted[:n] % 3).astype(np.int64) - 1

    def error(self, n: int) -> NDArray[np.int64]:
        """Coefficients (n,), centred binomial of 2 x 21 bits, sigma = 3.24, as SEAL draws them."""
        words = self._bytes(8 * n).view("<u4").reshape(2, n) & np.uint32((1 << 21) - 1)
        ones: NDArray[np.int64] = np.bitwise_count(words).astype(np.int64)
        difference: NDArray[np.int64] = ones[0] - ones[1]
        return difference

    def gaussian(self, n: int) -> NDArray[np.float64]:
        """Independent normal values (n,), mean 0 and variance 1, by the transform of Box and Muller (1958).

        From 53 random bits for the radius and 53 for the angle of each pair, so up to 8.57 in absolute value, beyond
        which 1e-17 of the distribution lies. Nothing is rejected: the same work whatever is drawn. In parts that stay
        in the cache.
        """
        drawn = np.empty(n + n % 2)
        for part in np.split(drawn, range(_PART, drawn.size, _PART)):
            half = part.size // 2
            words = (self._bytes(16 * half).view("<u8") >> np.uint64(11)).reshape(2, half)
            radius = np.sqrt(-2 * np.log((words[0] + np.uint64(1)) * 2.0**-53))
            angle = words[1] * (2 * math.pi * 2.0**-53)
            np.multiply(radius, np.cos(angle), out=part[:half])
            np.multiply(radius, np.sin(angle), out=part[half:])
        return drawn[:n]
