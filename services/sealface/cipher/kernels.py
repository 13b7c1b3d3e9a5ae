"""The hot loops, compiled by numba: no GIL held, no special instructions needed, the bits of `ring`.

Inner loops run over contiguous memory and multiply 32 by 32 bits, which compilers turn into vector code. A transform
of N = R C points does the stages of distance C and above in place and transposes to C by R for the others, so that
those are contiguous as well. Between stages values stay below 4p < 2^32 (Harvey 2014, algorithms 3 and 4).

Compiled code is cached beside the sources where that can be written, else in numba's own cache folder.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sealface.cipher.ring import Residues, roots

_compiled = njit(cache=True, nogil=True, boundscheck=False)
_inlined = njit(cache=True, nogil=True, boundscheck=False, inline="always")

# min(v, v - p) below relies on unsigned wrap-round: v - p is huge if v < p. Shoup's product, y w - floor(y s / 2^32) p
# with s = floor(2^32 w / p), lies below 2p for every y < 2^32.


class _Ring(NamedTuple):
    """Tables of one direction: roots for the first stages, and for the others as their loops meet them."""

    w: NDArray[np.uint32]
    w_shoup: NDArray[np.uint32]
    columns: NDArray[np.uint32]
    columns_shoup: NDArray[np.uint32]


@_inlined
def _product(x, y):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return np.uint64(np.uint32(x)) * np.uint64(np.uint32(y))  # tells the compiler that 32 bits are enough


@_inlined
def _reduce(x, p, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # Barrett: x < 2^(2 bits + 1) for p of that many bits, shift = bits - 1, mu = floor(2^(32 + shift) / p)
    r = x - _product(_product(x >> shift, mu) >> np.uint64(32), p)
    r = min(r, r - p)
    return min(r, r - p)


@_compiled
def _forward(a, out, ring, p, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, n = a.shape
    length = n // c
    shift, p1, p2 = np.uint64(32), np.uint32(p), np.uint32(np.uint64(2) * p)
    x, z = np.empty(n, np.uint32), np.empty(n, np.uint32)
    w, w_shoup, columns, columns_shoup = ring
    for r in range(rows):
        for j in range(n):
            signed = np.int64(a[r, j])
            x[j] = np.uint32(signed + ((signed >> np.int64(63)) & np.int64(p)))  # from -p to p
        m, t = 1, n >> 1
        while t >= c:
            for i in range(m):
                root, quotient = np.uint64(w[m + i]), np.uint64(w_shoup[m + i])
                low, high = x[2 * i * t : 2 * i * t + t], x[2 * i * t + t : 2 * i * t + 2 * t]
                for j in range(t):
                    u, y = low[j], np.uint64(high[j])
                    u = min(u, np.uint32(u - p2))
                    v = np.uint32(y * root - ((y * quotient) >> shift) * p)
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
                root, quotient = columns[at : at + length], columns_shoup[at : at + length]
                at += length
                for k in range(2 * i * t, 2 * i * t + t):
                    low, high = z[k * length : (k + 1) * length], z[(k + t) * length : (k + t + 1) * length]
                    for j in range(length):
                        u, y = low[j], np.uint64(high[j])
                        u = min(u, np.uint32(u - p2))
                        v = np.uint32(y * np.uint64(root[j]) - ((y * np.uint64(quotient[j])) >> shift) * p)
                        low[j] = u + v
                        high[j] = u + p2 - v
            m <<= 1
            t >>= 1
        for i in range(length):
            for j in range(c):
                v = z[j * length + i]
                v = min(v, np.uint32(v - p2))
                out[r, i * c + j] = min(v, np.uint32(v - p1))


@_compiled
def _inverse(a, out, ring, scale, scale_shoup, p, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, n = a.shape
    length = n // c
    shift, p1, p2 = np.uint64(32), np.uint32(p), np.uint32(np.uint64(2) * p)
    x, z = np.empty(n, np.uint32), np.empty(n, np.uint32)
    w, w_shoup, columns, columns_shoup = ring
    for r in range(rows):
        for i in range(length):
            for j in range(c):
                z[j * length + i] = np.uint32(a[r, i * c + j])
        at, t, m = (c - 1) * length, 1, c >> 1
        while m >= 1:
            at -= m * length
            for i in range(m):
                first = at + i * length
                root, quotient = columns[first : first + length], columns_shoup[first : first + length]
                for k in range(2 * i * t, 2 * i * t + t):
                    low, high = z[k * length : (k + 1) * length], z[(k + t) * length : (k + t + 1) * length]
                    for j in range(length):
                        u, v = low[j], high[j]
                        s = np.uint32(u + v)
                        low[j] = min(s, np.uint32(s - p2))
                        d = np.uint64(np.uint32(u + p2 - v))
                        high[j] = np.uint32(d * np.uint64(root[j]) - ((d * np.uint64(quotient[j])) >> shift) * p)
            m >>= 1
            t <<= 1
        for i in range(length):
            for j in range(c):
                x[i * c + j] = z[j * length + i]
        m, t = length >> 1, c
        while m >= 1:
            for i in range(m):
                factor, share = np.uint64(w[m + i]), np.uint64(w_shoup[m + i])
                low, high = x[2 * i * t : 2 * i * t + t], x[2 * i * t + t : 2 * i * t + 2 * t]
                for j in range(t):
                    u, v = low[j], high[j]
                    s = np.uint32(u + v)
                    low[j] = min(s, np.uint32(s - p2))
                    d = np.uint64(np.uint32(u + p2 - v))
                    high[j] = np.uint32(d * factor - ((d * share) >> shift) * p)
            m >>= 1
            t <<= 1
        for j in range(n):
            y = np.uint64(x[j])
            v = np.uint32(y * scale - ((y * scale_shoup) >> shift) * p)
            out[r, j] = min(v, np.uint32(v - p1))


@_compiled
def _multiply(x, y, out, limb, p, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # (x0, x1) * (y0, y1) to three polynomials; two products of 30-bit residues fit 61 bits
    x0, x1, y0, y1 = x[0, limb], x[1, limb], y[0, limb], y[1, limb]
    z0, z1, z2 = out[0, limb], out[1, limb], out[2, limb]
    for j in range(x0.size):
        z0[j] = _reduce(_product(x0[j], y0[j]), p, shift, mu)
        z1[j] = _reduce(_product(x0[j], y1[j]) + _product(x1[j], y0[j]), p, shift, mu)
        z2[j] = _reduce(_product(x1[j], y1[j]), p, shift, mu)


@_compiled
def _multiply_add(x, y, z, out, limb, p, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    x0, y0, z0, out0 = x[limb], y[limb], z[limb], out[limb]
    for j in range(x0.size):
        out0[j] = _reduce(_product(x0[j], y0[j]) + z0[j], p, shift, mu)


@_compiled
def _scale_sum(x, y, factor, p, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out = np.empty(x.size, np.uint64)
    for j in range(x.size):
        out[j] = _reduce(_product(x[j] + y[j], factor), p, shift, mu)
    return out


@_compiled
def _centre(a, q):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # residues modulo q to what must be added modulo another prime to round them away: -a, a taken from -q/2 to q/2
    out = np.empty(a.size, np.int64)
    for j in range(a.size):
        v = np.int64(a[j])
        out[j] = (q if v > q // np.int64(2) else np.int64(0)) - v
    return out


@lru_cache(maxsize=8)
def _tables(p: int, n: int) -> tuple[_Ring, _Ring, np.uint64, np.uint64, int]:
    forward, inverse, n_inverse = roots(p, n)
    prime = np.uint64(p)
    c = 1 << (n.bit_length() - 1) // 2
    stages = [1 << i for i in range(c.bit_length() - 1)]  # roots a row, once transposed

    def ring(w: Residues) -> _Ring:
        by_column = [w[m * n // c : 2 * m * n // c].reshape(n // c, m).T.ravel() for m in stages]
        columns = np.concatenate([*by_column, np.empty(0, np.uint64)])
        words = [w, (w << np.uint64(32)) // prime, columns, (columns << np.uint64(32)) // prime]
        return _Ring(*(np.ascontiguousarray(values.astype(np.uint32)) for values in words))

    return ring(forward), ring(inverse), np.uint64(n_inverse), np.uint64((n_inverse << 32) // p), c


@lru_cache(maxsize=8)
def _barrett(p: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    shift = p.bit_length() - 1
    return np.uint64(p), np.uint64(shift), np.uint64((1 << 32 + shift) // p)


def ntt(a: NDArray[Any], p: int) -> Residues:
    """Forward transform along the last axis; see `ring.ntt`. Signed elements from -p to p are taken as well."""
    ring, _, _, _, c = _tables(p, a.shape[-1])
    rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
    out = np.empty(rows.shape, np.uint64)
    _forward(rows, out, ring, np.uint64(p), c)
    return out.reshape(a.shape)


def intt(a: Residues, p: int) -> Residues:
    """Inverse transform along the last axis; see `ring.intt`."""
    _, ring, scale, scale_shoup, c = _tables(p, a.shape[-1])
    rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
    out = np.empty(rows.shape, np.uint64)
    _inverse(rows, out, ring, scale, scale_shoup, np.uint64(p), c)
    return out.reshape(a.shape)


def integers_to_ntt(values: NDArray[np.int64], primes: tuple[int, ...]) -> Residues:
    """Signed integer coefficients (..., N) of any size to residues in NTT form (..., limbs, N)."""
    return np.stack([ntt(values % p, p) for p in primes], axis=-2)


def multiply(x: Residues, y: Residues, primes: tuple[int, ...]) -> Residues:
    """Product of two ciphertexts (2, limbs, N), not relinearised: (3, limbs, N)."""
    out = np.empty((3, *x.shape[1:]), np.uint64)
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    for limb, p in enumerate(primes):
        _multiply(x, y, out, limb, *_barrett(p))
    return out


def multiply_add(x: Residues, y: Residues, z: Residues, primes: tuple[int, ...]) -> Residues:
    """Products x y, plus z, of polynomials (limbs, N) in NTT form."""
    out = np.empty(x.shape, np.uint64)
    x, y, z = np.ascontiguousarray(x), np.ascontiguousarray(y), np.ascontiguousarray(z)
    for limb, p in enumerate(primes):
        _multiply_add(x, y, z, out, limb, *_barrett(p))
    return out


def switch(residues: Residues, primes: tuple[int, ...]) -> Residues:
    """Divide polynomials (k, 2, N) in NTT form by the second prime and round: (k, N) modulo the first."""
    p, q = primes
    low = intt(residues[:, 1], q)
    correction = ntt(_centre(low.reshape(-1), np.int64(q)).reshape(low.shape), p)
    high = np.ascontiguousarray(residues[:, 0]).reshape(-1)
    scaled: Residues = _scale_sum(high, correction.reshape(-1), np.uint64(pow(q, -1, p)), *_barrett(p))
    return scaled.reshape(low.shape)


def warm(primes: tuple[int, ...], n: int) -> None:
    """Compile every kernel, or load it from the cache, and make the tables of these rings."""
    ones = np.ones((2, n), np.uint64)
    pair = np.stack([ntt(intt(ones, p), p) for p in primes], axis=1)
    multiply_add(pair[0], pair[0], pair[0], primes)
    switch(multiply(pair, pair, primes), primes)
    integers_to_ntt(np.ones(n, np.int64), primes)
