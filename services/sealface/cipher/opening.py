"""The key holder's side: results to scores, and blinded blocks to fresh encryptions.

Decryption is c0 + c1 s + c2 s^2 modulo one prime and an inverse transform. It is done here and not by SEAL,
so that bytes from compute never reach SEAL's loader; a test holds it against SEAL's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels, renewal
from sealface.cipher.evaluator import RESULT_POLYNOMIALS, parse
from sealface.cipher.layout import Layout, Shape
from sealface.cipher.ring import Residues
from sealface.cipher.wire import pack, unpack

# |s^2| of 2,000 keys, and with it the variance, varied by 3 % around the model's, 12 % at most
_MARGIN = 1.25


@dataclass(frozen=True)
class Opened:
    """What a result opens to.

    Attributes:
        scores: (results, capacity) scores by position; where nothing was requested the value is random.
        checks: (results, checks) values at the check positions.
    """

    scores: NDArray[np.float64]
    checks: NDArray[np.float64]


class Opener:
    """Opens results, and renews blocks, with a secret key. Safe for several threads.

    Args:
        layout: the gallery's layout.
        secret: the secret key (limbs, N) in NTT form.
    """

    def __init__(self, layout: Layout, secret: Residues) -> None:
        self._layout = layout
        primes = layout.parameters.data_primes
        p = primes[0]
        self._secret = np.ascontiguousarray(secret[: len(primes)])
        self._s = secret[0]
        self._s2 = secret[0] * secret[0] % np.uint64(p)

    def open(self, shape: Shape, results: Sequence[bytes]) -> Opened:
        """Open results of blocks of one shape.

        Raises:
            MalformedCiphertext: a result is no polynomials of the parameter set.
        """
        parameters = self._layout.parameters
        p, dropped = parameters.data_primes
        scale = parameters.product_scale / dropped
        values = np.empty((len(results), shape.positions))
        for row, data in zip(values, results, strict=True):
            c = unpack(data, RESULT_POLYNOMIALS, parameters.degree, (p,))[:, 0]
            phase = kernels.multiply_add(c[1:2], self._s[None], c[:1], (p,))
            phase = kernels.multiply_add(c[2:], self._s2[None], phase, (p,))
            coefficients = kernels.intt(phase[0], p)[shape.coefficients].astype(np.int64)
            row[:] = np.where(coefficients > p // 2, coefficients - p, coefficients) / scale
        return Opened(values[:, : shape.capacity], values[:, shape.capacity :])

    def genuine(self, shape: Shape, checks: NDArray[np.float64]) -> bool:
        """Whether check positions hold nothing but noise, in each result by itself.

        What is added to the secret-dependent part of a result shows there too, unless it was split by the Galois keys
        before (docs/adr/0011). Templates of one model have much in
        common (their mean is most of a vector), and results of one search share the probe's noise: what that mean makes
        of it is nearly the same at all positions of all results. So their mean square has the spread of a single
        Gaussian's square, however many they are; the bound is that of Laurent and Massart 2000, lemma 1, for honest
        results refused about once in 2^40. A margin covers how far a key is from the model's average.

        Args:
            shape: of the results.
            checks: (results, checks), as opened.
        """
        if checks.size == 0:
            return True
        return bool(((checks**2).mean(axis=1) <= _largest_mean_square(shape)).all())

    def renew(
        self,
        shape: Shape,
        blinded: bytes,
        cleared: NDArray[np.bool_],
        target: Opener | None = None,
        count: int = 1,
    ) -> bytes:
        """A blinded block encrypted afresh, with nothing at some positions; see `renewal`.

        Args:
            shape: of the block; of single templates a group's.
            blinded: as `Evaluator.blind` made it.
            cleared: (capacity,) positions to clear.
            target: of the key version that it is encrypted under, if that is another.
            count: blocks, or templates, one after the other.

        Raises:
            MalformedCiphertext: it is no block of the shape, or hides nothing.
        """
        primes = self._layout.parameters.data_primes
        residues = parse(blinded, self._layout, count * shape.ciphertexts)
        secret = (target or self)._secret
        return pack(renewal.renew(residues, self._secret, secret, shape.taken(cleared), primes), primes)


def _largest_mean_square(shape: Shape) -> float:
    x = 40 * math.log(2)
    return (_MARGIN * shape.noise) ** 2 * (1 + 2 * math.sqrt(x) + 2 * x)
