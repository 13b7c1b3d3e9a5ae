"""Automorphisms with key switching, and the tree that splits a ciphertext by them.

An automorphism x -> x^g of a ciphertext needs a key switch back to the secret: c1 is cut into its residues modulo
each data prime, each is multiplied with a part of the Galois key modulo both data primes and the special prime P, and
the sum is divided by P and rounded (Bajard, Eynard, Hasan, Zucca 2016; Cheon, Han, Kim, Kim, Song 2018). The steps are
those of SEAL's Evaluator::apply_galois, and so are the bits; a test holds one against the other.

P has 40 bits, so its transforms run in 64-bit words: a quotient is taken in floating point, where it is off by one at
most, and the remainder is exact.

`split` cuts a polynomial of N coefficients into d by their exponent modulo d (Chen, Dai, Kim, Song 2021, algorithm 3):
at level l, with c holding multiples of 2^l only, c + c(x^g) doubles the even multiples and c - c(x^g) the odd ones, for
g = N/2^l + 1. Multiplying by 1/d first makes up for the doubling.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sealface.cipher import kernels
from sealface.cipher.kernels import barrett, directions, forward, inverse, reduce
from sealface.cipher.parameters import ParameterSet
from sealface.cipher.product import Words
from sealface.cipher.ring import Residues, bit_reversal, roots

_compiled = njit(cache=True, nogil=True, boundscheck=False)
_inlined = njit(cache=True, nogil=True, boundscheck=False, inline="always")


class _Wide(NamedTuple):
    """Tables of one direction modulo the special prime, as `kernels` has them: roots, and their quotients by P."""

    w: NDArray[np.uint64]
    w_share: NDArray[np.float64]
    columns: NDArray[np.uint64]
    columns_share: NDArray[np.float64]


@_inlined
def _times(y, w, share, p):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # y < 4P < 2^42; share is w/P or a little less, so the quotient is exact or one too small: 0 to 2P remains
    return y * w - np.uint64(np.float64(y) * share) * p


@_inlined
def _wide_product(x, y, p, inverse_p):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # x, y < P: the quotient's error is below 2^-10, so it is off by one at most, either way
    r = np.int64(x * y - np.uint64(np.float64(x) * np.float64(y) * inverse_p) * p)
    r += (r >> np.int64(63)) & np.int64(p)
    u = np.uint64(r)
    return min(u, u - p)


@_compiled
def _wide_forward(x, z, ring, p, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # as kernels._forward, in place; x below 4P, z of the same size
    n = x.size
    length = n // c
    p2 = p + p
    w, w_share, columns, columns_share = ring
    m, t = 1, n >> 1
    while t >= c:
        for i in range(m):
            root, share = w[m + i], w_share[m + i]
            low, high = x[2 * i * t : 2 * i * t + t], x[2 * i * t + t : 2 * i * t + 2 * t]
            for j in range(t):
                u = min(low[j], low[j] - p2)
                v = _times(high[j], root, share, p)
                low[j] = u + v
                high[j] = u + p2 - v
        m <<= 1
        t >>= 1
    for i in range(length):
        for j in range(c):
            z[j * length + i] = x[i * c + j]
    at, t, m = 0, c >> 1, 1
    while t >= 1:
        for i in range(m):
            root, share = columns[at : at + length], columns_share[at : at + length]
            at += length
            for k in range(2 * i * t, 2 * i * t + t):
                low, high = z[k * length : (k + 1) * length], z[(k + t) * length : (k + t + 1) * length]
                for j in range(length):
                    u = min(low[j], low[j] - p2)
                    v = _times(high[j], root[j], share[j], p)
                    low[j] = u + v
                    high[j] = u + p2 - v
        m <<= 1
        t >>= 1
    for i in range(length):
        for j in range(c):
            v = z[j * length + i]
            v = min(v, v - p2)
            x[i * c + j] = min(v, v - p)


@_compiled
def _wide_inverse(x, z, ring, scale, scale_share, p, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n = x.size
    length = n // c
    p2 = p + p
    w, w_share, columns, columns_share = ring
    for i in range(length):
        for j in range(c):
            z[j * length + i] = x[i * c + j]
    at, t, m = (c - 1) * length, 1, c >> 1
    while m >= 1:
        at -= m * length
        for i in range(m):
            first = at + i * length
            root, share = columns[first : first + length], columns_share[first : first + length]
            for k in range(2 * i * t, 2 * i * t + t):
                low, high = z[k * length : (k + 1) * length], z[(k + t) * length : (k + t + 1) * length]
                for j in range(length):
                    u, v = low[j], high[j]
                    s = u + v
                    low[j] = min(s, s - p2)
                    high[j] = _times(u + p2 - v, root[j], share[j], p)
        m >>= 1
        t <<= 1
    for i in range(length):
        for j in range(c):
            x[i * c + j] = z[j * length + i]
    m, t = length >> 1, c
    while m >= 1:
        for i in range(m):
            factor, part = w[m + i], w_share[m + i]
            low, high = x[2 * i * t : 2 * i * t + t], x[2 * i * t + t : 2 * i * t + 2 * t]
            for j in range(t):
                u, v = low[j], high[j]
                s = u + v
                low[j] = min(s, s - p2)
                high[j] = _times(u + p2 - v, factor, part, p)
        m >>= 1
        t <<= 1
    for j in range(n):
        v = _times(x[j], scale, scale_share, p)
        x[j] = min(v, v - p)


@_compiled
def _apply(c, key, order, data, special, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # c (2, 2, N) words to its automorphism (2, 2, N), switched back with key (digits, 2, 3, N)
    n = c.shape[2]
    p, inverse_p, ahead, back, scale, scale_share, width = special
    permuted = np.empty((2, n), np.uint64)
    for limb in range(2):
        for j in range(n):
            permuted[limb, j] = c[1, limb, order[j]]
    digits = np.empty((2, n), np.uint64)
    for limb in range(2):
        _, back_ring, n_inverse, n_share, prime, _, _, _, c_width = data[limb]
        inverse(permuted[limb : limb + 1], digits[limb : limb + 1], back_ring, n_inverse, n_share, prime, c_width)
    scratch = np.empty(n, np.uint64)
    lifted = np.empty((2, n), np.uint64)
    for digit in range(2):
        lifted[digit] = digits[digit]
        _wide_forward(lifted[digit], scratch, ahead, p, width)
    raised = np.empty((2, n), np.uint64)  # the product modulo P, as coefficients around zero
    for half in range(2):
        x, k0, k1, d0, d1 = raised[half], key[0, half, 2], key[1, half, 2], lifted[0], lifted[1]
        for j in range(n):
            s = _wide_product(d0[j], k0[j], p, inverse_p) + _wide_product(d1[j], k1[j], p, inverse_p)
            x[j] = min(s, s - p)
        _wide_inverse(x, scratch, back, scale, scale_share, p, width)
        middle = p >> np.uint64(1)
        for j in range(n):
            s = x[j] + middle
            x[j] = min(s, s - p)
    other = np.empty((1, n), np.uint64)
    corrections = np.empty((2, n), np.uint64)
    for limb in range(2):
        forward_ring, _, _, _, prime, shift, mu, p_inverse, c_width = data[limb]
        forward(digits[1 - limb : 2 - limb], other, forward_ring, prime, c_width)
        middle = reduce(p >> np.uint64(1), prime, shift, mu)
        for half in range(2):
            for j in range(n):
                s = reduce(raised[half, j], prime, shift, mu) + prime - middle
                corrections[half, j] = min(s, s - prime)
        forward(corrections, corrections, forward_ring, prime, c_width)
        own, foreign = permuted[limb], other[0]
        for half in range(2):
            k_own, k_foreign = key[limb, half, limb], key[1 - limb, half, limb]
            x, to = corrections[half], out[half, limb]
            for j in range(n):
                s = np.uint64(np.uint32(own[j])) * np.uint64(np.uint32(k_own[j]))
                s += np.uint64(np.uint32(foreign[j])) * np.uint64(np.uint32(k_foreign[j]))
                s = reduce(s, prime, shift, mu) + prime - x[j]
                s = min(s, s - prime)
                to[j] = reduce(np.uint64(np.uint32(s)) * p_inverse, prime, shift, mu)
        to, from_ = out[0, limb], c[0, limb]
        for j in range(n):
            s = np.uint64(to[j]) + np.uint64(from_[order[j]])
            to[j] = min(s, s - prime)


@_compiled
def _split(nodes, first, last, key, order, shift, data, special, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    # nodes[first:last] of `out.shape[0] / 2` to out[node] (even) and out[node + nodes] (odd, divided by x^(2^level))
    count = out.shape[0] // 2
    n = nodes.shape[3]
    turned = np.empty((2, 2, n), np.uint32)
    for node in range(first, last):
        _apply(nodes[node], key, order, data, special, turned)
        for half in range(2):
            for limb in range(2):
                prime, bits, mu = data[limb][4], data[limb][5], data[limb][6]
                p, factor = np.uint32(prime), shift[limb]
                c, g = nodes[node, half, limb], turned[half, limb]
                even, odd = out[node, half, limb], out[node + count, half, limb]
                for j in range(n):
                    s = np.uint32(c[j] + g[j])
                    d = np.uint32(c[j] + p - g[j])
                    even[j] = min(s, np.uint32(s - p))
                    odd[j] = reduce(np.uint64(d) * np.uint64(factor[j]), prime, bits, mu)


@lru_cache(maxsize=16)
def automorphism(element: int, degree: int) -> NDArray[np.int64]:
    """Where each value of x -> x^element of a polynomial in NTT form stands before it."""
    places = bit_reversal(degree)
    exponents = 2 * places + 1
    at = np.empty(2 * degree, np.int64)
    at[exponents] = np.arange(degree)
    return at[exponents * element % (2 * degree)]


@lru_cache(maxsize=8)
def _data(parameters: ParameterSet) -> tuple[tuple[object, ...], ...]:
    special = parameters.primes[-1]
    return tuple(
        (
            *directions(p, parameters.degree)[:4],
            *barrett(p),
            np.uint64(pow(special, -1, p)),
            directions(p, parameters.degree)[4],
        )
        for p in parameters.data_primes
    )


@lru_cache(maxsize=8)
def _special(parameters: ParameterSet) -> tuple[object, ...]:
    p, n = parameters.primes[-1], parameters.degree
    width = 1 << (n.bit_length() - 1) // 2

    def shares(values: Residues) -> NDArray[np.float64]:
        return values / p * (1 - 2.0**-50)

    def wide(w: Residues) -> _Wide:
        columns = kernels.by_column(w, width)
        return _Wide(w, shares(w), columns, shares(columns))

    ahead, back, n_inverse = roots(p, n)
    scale = np.uint64(n_inverse)
    return np.uint64(p), 1 / p, wide(ahead), wide(back), scale, n_inverse / p * (1 - 2.0**-50), width


def apply_galois(c: Residues, element: int, key: Residues, parameters: ParameterSet) -> Residues:
    """The automorphism x -> x^element of a ciphertext (2, 2, N), under the same secret.

    Args:
        c: residues modulo the data primes, in NTT form.
        element: odd, below 2N.
        key: its Galois key (2, 2, 3, N).
        parameters: the parameter set.
    """
    out = np.empty(c.shape, np.uint32)
    order = automorphism(element, parameters.degree)
    _apply(c.astype(np.uint32), key, order, _data(parameters), _special(parameters), out)
    return out.astype(np.uint64)


@lru_cache(maxsize=64)
def monomial(exponent: int, degree: int, primes: tuple[int, ...]) -> Residues:
    """x^exponent in NTT form (limbs, N); x^N is -1."""
    exponent %= 2 * degree
    coefficients = np.zeros(degree, np.int64)
    coefficients[exponent % degree] = 1 if exponent < degree else -1
    return np.stack([kernels.ntt(coefficients, p) for p in primes])


def element_of_level(level: int, degree: int) -> int:
    """The Galois element that splits at a level."""
    return degree // (1 << level) + 1


def split_level(
    nodes: Words, level: int, keys: Mapping[int, Residues], parameters: ParameterSet, out: Words, part: range
) -> None:
    """One level of the tree, for some of its nodes. Holds no GIL; safe for several threads with parts of their own.

    Args:
        nodes: ciphertexts (2^level, 2, 2, N), node r holding exponents r modulo 2^level, divided by x^r.
        level: from 0.
        keys: Galois keys by element.
        parameters: the parameter set.
        out: (2^(level + 1), 2, 2, N), nodes of the next level.
        part: which nodes.
    """
    n = parameters.degree
    element = element_of_level(level, n)
    shift = monomial(2 * n - (1 << level), n, parameters.data_primes).astype(np.uint32)
    order = automorphism(element, n)
    _split(nodes, part.start, part.stop, keys[element], order, shift, _data(parameters), _special(parameters), out)


@_compiled
def _add_shifted(nodes, shift, out, limb, p, bits, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    factor = shift[limb]
    for node in range(nodes.shape[0]):
        for half in range(2):
            x, to = nodes[node, half, limb], out[node, half, limb]
            for j in range(x.size):
                product = np.uint64(x[j]) * np.uint64(np.uint32(factor[j]))
                to[j] = reduce(product + np.uint64(to[j]), p, bits, mu)


def add_shifted(nodes: Words, shift: Residues, out: Words, primes: tuple[int, ...]) -> None:
    """Add ciphertexts (count, 2, limbs, N), each times a polynomial (limbs, N), to others."""
    for limb, p in enumerate(primes):
        _add_shifted(nodes, shift, out, limb, *barrett(p))
