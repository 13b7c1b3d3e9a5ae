"""Compute's side: groups of templates, products, and results that give nothing but scores away.

Everything here works with public keys and ciphertexts. A result leaves compute only through
`Evaluator.score`, which does three things to the raw product (threat model, rules 1 to 3):

1. It adds a single-use encryption of zero of three polynomials. Without it the product's c2 = t1 q1 lets a
   key holder who knows q divide the templates out.
2. It switches to one prime, which halves the bytes.
3. It adds a uniform mask wherever there is no requested score: the other coefficients are cross-correlations.

The zero is (b x + e0, a x + b y + e1, a y + e2) for the public key (b, a), ternary x, y and errors e: it
opens to e x + e y s + e0 + e1 s + e2 s^2 (about 2^14, at a scale of 2^56), and to anyone who has not drawn x
and y its last two polynomials are ring-LWE samples, the key holder included. It needs no relinearisation key;
see docs/adr/0003.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels
from sealface.cipher.layout import Layout
from sealface.cipher.randomness import Randomness
from sealface.cipher.ring import Residues
from sealface.cipher.wire import MalformedCiphertext, pack, packed_size, unpack

RESULT_POLYNOMIALS = 3


@dataclass(frozen=True)
class Probe:
    """An admitted probe: (parts, 2, limbs, N)."""

    residues: Residues


@dataclass(frozen=True)
class Group:
    """The sum of the templates at their positions: (parts, 2, limbs, N)."""

    residues: Residues


def template_size(layout: Layout) -> int:
    """Bytes of a template or a probe on the wire."""
    parameters = layout.parameters
    return packed_size(2 * layout.parts, parameters.degree, parameters.data_primes)


def result_size(layout: Layout) -> int:
    """Bytes of a result on the wire: three polynomials modulo the first prime."""
    return packed_size(RESULT_POLYNOMIALS, layout.parameters.degree, layout.parameters.data_primes[:1])


def parse(data: bytes, layout: Layout) -> Residues:
    """A template or probe from the wire: (parts, 2, limbs, N).

    Raises:
        MalformedCiphertext: wrong length, a residue out of range, or nothing is hidden (c1 = 0).
    """
    parameters = layout.parameters
    residues = unpack(data, 2 * layout.parts, parameters.degree, parameters.data_primes)
    residues = residues.reshape(layout.parts, 2, len(parameters.data_primes), parameters.degree)
    if transparent(residues[:, 1]):
        raise MalformedCiphertext("the ciphertext hides nothing: encrypt with the gallery's public key")
    return residues


def transparent(residues: Residues) -> bool:
    """Whether a polynomial in NTT form that should be uniform, with N/p = 4e-6 zeros, is mostly zeros."""
    return bool((np.count_nonzero(residues == 0, axis=-1) > 8).any())


def _add(x: Residues, y: Residues, moduli: Residues) -> Residues:
    """The sum of residues; total - moduli wraps round to something huge where it would be negative."""
    total: Residues = x + y
    reduced: Residues = np.minimum(total, total - moduli)
    return reduced


@lru_cache(maxsize=512)
def _monomial(exponent: int, degree: int, primes: tuple[int, ...]) -> Residues:
    coefficients = np.zeros(degree, np.uint64)
    coefficients[exponent] = 1
    return np.stack([kernels.ntt(coefficients, p) for p in primes])


class Evaluator:
    """Homomorphic work under one public key. Safe for several threads.

    Args:
        layout: the gallery's layout.
        public: the public key (2, limbs, N), special prime included or not.
    """

    def __init__(self, layout: Layout, public: Residues) -> None:
        self._layout = layout
        self._primes = layout.parameters.data_primes
        self._moduli = np.array(self._primes, np.uint64)[:, None]
        self._key = np.ascontiguousarray(public[:, : len(self._primes)])

    def admit(self, template: bytes) -> bytes:
        """A template as it may be stored: validated and randomised again, its sender's choices gone.

        Raises:
            MalformedCiphertext: see `parse`.
        """
        return pack(self._randomise(parse(template, self._layout)), self._primes)

    def admit_probe(self, probe: bytes) -> Probe:
        """A probe as it may be multiplied: validated and randomised again."""
        return Probe(self._randomise(parse(probe, self._layout)))

    def assemble(self, templates: Mapping[int, bytes], onto: Group | None = None) -> Group:
        """A group of stored templates, by position, added to those of another group at other positions.

        Raises:
            MalformedCiphertext: see `parse`.
        """
        layout = self._layout
        n = layout.parameters.degree
        shape = (layout.parts, 2, len(self._primes), n)
        total = onto.residues.copy() if onto else np.zeros(shape, np.uint64)
        for position, template in templates.items():
            if not 0 <= position < layout.capacity:
                raise ValueError(f"position {position} is outside a group of {layout.capacity}")
            parsed = parse(template, layout)
            shift = _monomial(position * layout.stride, n, self._primes)
            for polynomial, sums in zip(parsed.reshape(-1, *shift.shape), total.reshape(-1, *shift.shape), strict=True):
                sums[:] = kernels.multiply_add(polynomial, shift, sums, self._primes)
        return Group(total)

    def score(self, group: Group, probe: Probe, positions: Collection[int]) -> bytes:
        """The scores of a group at some positions, as a result that tells its opener nothing else.

        Returns:
            `result_size` bytes: three polynomials modulo the first prime, coefficient d b the score at b.
        """
        layout = self._layout
        if not all(0 <= position < layout.capacity for position in positions):
            raise ValueError(f"a position is outside a group of {layout.capacity}")
        product = kernels.multiply(group.residues[0], probe.residues[0], self._primes)
        if layout.parts == 2:
            product[:2] += group.residues[1] + probe.residues[1]
            product %= self._moduli
        result = self._switch(_add(product, self._zero(), self._moduli))
        kept = [*positions, *range(layout.capacity, layout.positions)]
        result[0] = _add(result[0], self._mask(kept), self._moduli[0])
        return pack(result[:, None, :], self._primes[:1])

    def _transform(self, coefficients: NDArray[np.int64]) -> Residues:
        return np.stack([kernels.ntt(coefficients, p) for p in self._primes], axis=-2)

    def _randomise(self, residues: Residues) -> Residues:
        n = self._layout.parameters.degree
        out = np.empty_like(residues)
        for part, randomised in zip(residues, out, strict=True):
            draw = Randomness()
            drawn = self._transform(np.stack([draw.ternary(n), draw.error(n), draw.error(n)]))
            sums = _add(part, drawn[1:], self._moduli)
            for key, polynomial, added in zip(self._key, sums, randomised, strict=True):
                added[:] = kernels.multiply_add(key, drawn[0], polynomial, self._primes)
        return out

    def _zero(self) -> Residues:
        n = self._layout.parameters.degree
        draw = Randomness()
        secrets = [draw.ternary(n), draw.ternary(n)]
        drawn = self._transform(np.stack([*secrets, *(draw.error(n) for _ in range(3))]))
        # (b x, b y + a x, a y) is the product of (b, a) and (x, y)
        return _add(kernels.multiply(self._key, drawn[:2], self._primes), drawn[2:], self._moduli)

    def _switch(self, residues: Residues) -> Residues:
        """Divide by the second prime and round: (3, 2, N) to (3, N) modulo the first."""
        return kernels.switch(residues, self._primes)

    def _mask(self, kept: Collection[int]) -> Residues:
        p, n = self._primes[0], self._layout.parameters.degree
        mask = Randomness().uniform(n, p)
        mask[[self._layout.stride * position for position in kept]] = 0
        return kernels.ntt(mask, p)
