"""Z_p[x]/(x^N + 1) for the data primes: the number-theoretic transform in SEAL's order.

A polynomial in *NTT form* holds its values at the 2N-th roots psi^(2*bitrev(i)+1), psi the least primitive
2N-th root modulo p, which is what SEAL stores (seal/util/ntt.cpp). This numpy version is the portable twin of
`kernels`; the two give the same bits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.uint64]
"""Residues below their prime, always uint64; the last axes are (limb, coefficient)."""


def _least_primitive_root(p: int, order: int) -> int:
    """The least element of the given (power of two) order modulo p."""
    root = next(r for g in range(2, p) if pow(r := pow(g, (p - 1) // order, p), order // 2, p) == p - 1)
    step = root * root % p
    least = candidate = root
    for _ in range(order // 2 - 1):  # the odd powers of one primitive root are all of them
        candidate = candidate * step % p
        least = min(least, candidate)
    return least


def bit_reversal(n: int) -> NDArray[np.intp]:
    """The order of a transform: 0 to n - 1, each with its bits reversed."""
    bits = n.bit_length() - 1
    index = np.arange(n)
    reversed_index = np.zeros(n, dtype=np.intp)
    for _ in range(bits):
        reversed_index = (reversed_index << 1) | (index & 1)
        index >>= 1
    return reversed_index


def _powers(base: int, n: int, p: int) -> Residues:
    values = [1] * n
    for i in range(1, n):
        values[i] = values[i - 1] * base % p
    return np.array(values, dtype=np.uint64)


@lru_cache(maxsize=8)
def roots(p: int, n: int) -> tuple[Residues, Residues, int]:
    """Tables of the transform: powers of psi and of 1/psi in bit-reversed order, and 1/n mod p."""
    psi = _least_primitive_root(p, 2 * n)
    order = bit_reversal(n)
    forward, inverse = np.empty(n, np.uint64), np.empty(n, np.uint64)
    forward[order] = _powers(psi, n, p)
    inverse[order] = _powers(pow(psi, -1, p), n, p)
    return forward, inverse, pow(n, -1, p)


def ntt(a: Residues, p: int) -> Residues:
    """Forward transform along the last axis (natural order in, SEAL's order out)."""
    n = a.shape[-1]
    w, _, _ = roots(p, n)
    prime = np.uint64(p)
    out = a.copy()
    m, t = 1, n // 2
    while m < n:
        pairs = out.reshape(*a.shape[:-1], m, 2, t)
        u = pairs[..., 0, :].copy()
        v = pairs[..., 1, :] * w[m : 2 * m, None] % prime
        pairs[..., 0, :] = (u + v) % prime
        pairs[..., 1, :] = (u + prime - v) % prime
        m, t = 2 * m, t // 2
    return out


def intt(a: Residues, p: int) -> Residues:
    """Inverse transform along the last axis (SEAL's order in, natural order out)."""
    n = a.shape[-1]
    _, w, n_inverse = roots(p, n)
    prime = np.uint64(p)
    out = a.copy()
    m, t = n // 2, 1
    while m >= 1:
        pairs = out.reshape(*a.shape[:-1], m, 2, t)
        u = pairs[..., 0, :].copy()
        v = pairs[..., 1, :].copy()
        pairs[..., 0, :] = (u + v) % prime
        pairs[..., 1, :] = (u + prime - v) % prime * w[m : 2 * m, None] % prime
        m, t = m // 2, 2 * t
    return out * np.uint64(n_inverse) % prime
