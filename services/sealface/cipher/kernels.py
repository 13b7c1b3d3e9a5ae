"""The hot loops, compiled by numba: no GIL held, no special instructions needed, the bits of `ring`.

Compiled code is cached beside the sources where that can be written, else in numba's own cache folder.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from sealface.cipher.ring import Residues, roots


@njit(cache=True, nogil=True, boundscheck=False)
def _forward(a, w, w_shoup, p):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # Cooley-Tukey; products by Shoup's trick (Harvey 2014, alg. 2): exact for p < 2^30 and 32-bit quotients.
    rows, n = a.shape
    shift = np.uint64(32)
    for r in range(rows):
        m, t = 1, n >> 1
        while m < n:
            for i in range(m):
                root, quotient = w[m + i], w_shoup[m + i]
                base = 2 * i * t
                for j in range(base, base + t):
                    y = a[r, j + t]
                    v = y * root - ((y * quotient) >> shift) * p
                    v = min(v, v - p)
                    u = a[r, j]
                    s = u + v
                    d = u + p - v
                    a[r, j] = min(s, s - p)
                    a[r, j + t] = min(d, d - p)
            m <<= 1
            t >>= 1


@njit(cache=True, nogil=True, boundscheck=False)
def _inverse(a, w, w_shoup, n_inverse, p):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, n = a.shape
    shift = np.uint64(32)
    for r in range(rows):
        m, t = n >> 1, 1
        while m >= 1:
            for i in range(m):
                root, quotient = w[m + i], w_shoup[m + i]
                base = 2 * i * t
                for j in range(base, base + t):
                    u = a[r, j]
                    v = a[r, j + t]
                    s = u + v
                    a[r, j] = min(s, s - p)
                    d = u + p - v
                    d = min(d, d - p)
                    d = d * root - ((d * quotient) >> shift) * p
                    a[r, j + t] = min(d, d - p)
            m >>= 1
            t <<= 1
        for j in range(n):
            a[r, j] = a[r, j] * n_inverse % p


@njit(cache=True, nogil=True, boundscheck=False)
def _multiply(x, y, p):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # (x0, x1) * (y0, y1) of shape (2, N) to (3, N); two products of 30-bit residues fit 61 bits
    n = x.shape[1]
    out = np.empty((3, n), np.uint64)
    for j in range(n):
        out[0, j] = x[0, j] * y[0, j] % p
        out[1, j] = (x[0, j] * y[1, j] + x[1, j] * y[0, j]) % p
        out[2, j] = x[1, j] * y[1, j] % p
    return out


@lru_cache(maxsize=8)
def _tables(p: int, n: int) -> tuple[Residues, Residues, Residues, Residues, np.uint64]:
    forward, inverse, n_inverse = roots(p, n)
    prime = np.uint64(p)
    # min(v, v - p) above relies on unsigned wrap-round: v - p is huge where v < p
    return (
        forward,
        (forward << np.uint64(32)) // prime,
        inverse,
        (inverse << np.uint64(32)) // prime,
        np.uint64(n_inverse),
    )


def ntt(a: Residues, p: int) -> Residues:
    """Forward transform along the last axis; see `ring.ntt`."""
    w, w_shoup, _, _, _ = _tables(p, a.shape[-1])
    out = np.ascontiguousarray(a).copy().reshape(-1, a.shape[-1])
    _forward(out, w, w_shoup, np.uint64(p))
    return out.reshape(a.shape)


def intt(a: Residues, p: int) -> Residues:
    """Inverse transform along the last axis; see `ring.intt`."""
    _, _, w, w_shoup, n_inverse = _tables(p, a.shape[-1])
    out = np.ascontiguousarray(a).copy().reshape(-1, a.shape[-1])
    _inverse(out, w, w_shoup, n_inverse, np.uint64(p))
    return out.reshape(a.shape)


def multiply(x: Residues, y: Residues, primes: tuple[int, ...]) -> Residues:
    """Product of two ciphertexts (2, limbs, N), not relinearised: (3, limbs, N)."""
    return np.stack(
        [_multiply(x[:, i, :], y[:, i, :], np.uint64(p)) for i, p in enumerate(primes)],
        axis=1,
    )


def warm(primes: tuple[int, ...], n: int) -> None:
    """Compile every kernel, or load it from the cache, and make the tables of these rings."""
    ones = np.stack([ntt(intt(np.ones((2, n), np.uint64), p), p) for p in primes], axis=1)
    multiply(ones, ones, primes)
