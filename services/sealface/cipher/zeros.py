"""Single-use encryptions of zero of three polynomials, drawn ahead (threat model, rule 1; docs/adr/0003).

A zero is (b x + e0, a x + b y + e1, a y + e2) for the public key (b, a), ternary x, y and errors e: it opens to
e x + e y s + e0 + e1 s + e2 s^2 (about 2^14, at a scale of 2^56), and to anyone who has not drawn x and y its last two
polynomials are ring-LWE samples, the key holder included. It depends on no data, so a pool of them is filled while no
search waits. Each is handed out once.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels
from sealface.cipher.randomness import Randomness
from sealface.cipher.ring import Residues


def add(x: Residues, y: Residues, moduli: Residues) -> Residues:
    """The sum of residues; total - moduli wraps round to something huge where it would be negative."""
    total: Residues = x + y
    reduced: Residues = np.minimum(total, total - moduli)
    return reduced


@dataclass(frozen=True)
class Zero:
    """An encryption of zero in two parts, so that the errors need no transform of their own.

    Attributes:
        product: (b x, b y + a x, a y), (3, limbs, N) in NTT form.
        errors: (e0, e1, e2), (3, N) coefficients.
    """

    product: NDArray[np.uint32]
    errors: NDArray[np.int8]

    def residues(self, primes: tuple[int, ...]) -> Residues:
        """The sum of both (3, limbs, N) in NTT form."""
        errors = kernels.integers_to_ntt(self.errors.astype(np.int64), primes)
        return add(self.product.astype(np.uint64), errors, np.array(primes, np.uint64)[:, None])


class Zeros:
    """A pool of zeros under one public key. Safe for several threads.

    Args:
        key: the public key (2, limbs, N), data primes only.
        primes: the data primes.
    """

    def __init__(self, key: Residues, primes: tuple[int, ...]) -> None:
        self._key = key
        self._primes = primes
        self._pool: deque[Zero] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pool)

    def take(self) -> Zero:
        """A zero that nobody else gets: from the pool, or drawn now."""
        with self._lock:
            ready = self._pool.popleft() if self._pool else None
        return ready or self.draw()

    def add_one(self) -> None:
        """Draw a zero into the pool."""
        drawn = self.draw()
        with self._lock:
            self._pool.append(drawn)

    def draw(self, seed: bytes | None = None) -> Zero:
        """A fresh zero, or the one of a seed."""
        n = self._key.shape[-1]
        draw = Randomness(seed)
        small = np.stack([draw.ternary(n), draw.ternary(n)])
        secrets = np.stack([kernels.ntt(small, p) for p in self._primes], axis=-2)
        # (b x, b y + a x, a y) is the product of (b, a) and (x, y)
        product = kernels.multiply(self._key, secrets, self._primes).astype(np.uint32)
        return Zero(product, np.stack([draw.error(n).astype(np.int8) for _ in range(3)]))
