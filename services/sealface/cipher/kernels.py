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
def reduce(x, p, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Reduce x to below p, for x < 2^(2 bits + 1) and a prime of that many bits (Barrett); see `barrett`."""
    r = x - _product(_product(x >> shift, mu) >> np.uint64(32), p)
    r = min(r, r - p)
    return min(r, r - p)


@_compiled
def forward(a, out, ring, p, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Rows (rows, n) of signed elements from -p to p to NTT form."""
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
def inverse(a, out, ring, scale, scale_shoup, p, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Rows (rows, n) in NTT form to coefficients; may be done in place."""
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
        z0[j] = reduce(_product(x0[j], y0[j]), p, shift, mu)
        z1[j] = reduce(_product(x0[j], y1[j]) + _product(x1[j], y0[j]), p, shift, mu)
        z2[j] = reduce(_product(x1[j], y1[j]), p, shift, mu)


@_compiled
def _multiply_add(x, y, z, out, limb, p, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    x0, y0, z0, out0 = x[limb], y[limb], z[limb], out[limb]
    for j in range(x0.size):
        out0[j] = reduce(_product(x0[j], y0[j]) + z0[j], p, shift, mu)


@_compiled
def _add_words(x, y, out, moduli):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for polynomial in range(x.shape[0]):
        for limb in range(x.shape[1]):
            p = moduli[limb]
            a, b, to = x[polynomial, limb], y[polynomial, limb], out[polynomial, limb]
            for j in range(a.size):
                s = np.uint64(a[j]) + np.uint64(b[j])
                to[j] = min(s, s - p)


@_compiled
def _scale_sum(x, y, factor, p, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out = np.empty(x.size, np.uint64)
    for j in range(x.size):
        out[j] = reduce(_product(x[j] + y[j], factor), p, shift, mu)
    return out


@_compiled
def _correct(low, errors, mask, q, p, q_rest, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # residues modulo q and small errors to what must be added modulo p before both are divided by q: the errors, less
    # what is left modulo q with them, taken around zero, and in row 0 the mask times q
    out = np.empty(low.shape, np.uint64)
    half = q // np.int64(2)
    for row in range(low.shape[0]):
        for j in range(low.shape[1]):
            e = errors[row, j]
            v = np.int64(low[row, j]) + e
            v += q if v < 0 else np.int64(0)
            v -= q if v > half else np.int64(0)
            d = e - v
            d += np.int64(p) if d < 0 else np.int64(0)
            out[row, j] = np.uint64(d)
    for j in range(mask.size):
        out[0, j] = reduce(_product(mask[j], q_rest) + out[0, j], p, shift, mu)
    return out


def by_column(w: Residues, c: int) -> Residues:
    """Roots of the stages below distance c, in the order in which the transposed loops meet them."""
    length = w.size // c
    stages = [1 << i for i in range(c.bit_length() - 1)]  # roots a row, once transposed
    rows = [w[m * length : 2 * m * length].reshape(length, m).T.ravel() for m in stages]
    return np.concatenate([*rows, np.empty(0, np.uint64)])


@lru_cache(maxsize=8)
def directions(p: int, n: int) -> tuple[_Ring, _Ring, np.uint64, np.uint64, int]:
    """Tables of both directions, 1/n and its quotient, and where the transform transposes."""
    ahead, back, n_inverse = roots(p, n)
    prime = np.uint64(p)
    c = 1 << (n.bit_length() - 1) // 2

    def ring(w: Residues) -> _Ring:
        columns = by_column(w, c)
        words = [w, (w << np.uint64(32)) // prime, columns, (columns << np.uint64(32)) // prime]
        return _Ring(*(np.ascontiguousarray(values.astype(np.uint32)) for values in words))

    return ring(ahead), ring(back), np.uint64(n_inverse), np.uint64((n_inverse << 32) // p), c


@lru_cache(maxsize=8)
def barrett(p: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Constants of `reduce` for a prime: itself, bits - 1 = shift, floor(2^(32 + shift) / p)."""
    shift = p.bit_length() - 1
    return np.uint64(p), np.uint64(shift), np.uint64((1 << 32 + shift) // p)


def ntt(a: NDArray[Any], p: int) -> Residues:
    """Forward transform along the last axis; see `ring.ntt`. Signed elements from -p to p are taken as well."""
    ring, _, _, _, c = directions(p, a.shape[-1])
    rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
    out = np.empty(rows.shape, np.uint64)
    forward(rows, out, ring, np.uint64(p), c)
    return out.reshape(a.shape)


def intt(a: Residues, p: int) -> Residues:
    """Inverse transform along the last axis; see `ring.intt`."""
    _, ring, scale, scale_shoup, c = directions(p, a.shape[-1])
    rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
    out = np.empty(rows.shape, np.uint64)
    inverse(rows, out, ring, scale, scale_shoup, np.uint64(p), c)
    return out.reshape(a.shape)


def integers_to_ntt(values: NDArray[np.int64], primes: tuple[int, ...]) -> Residues:
    """Signed integer coefficients (..., N) of any size to residues in NTT form (..., limbs, N)."""
    return np.stack([ntt(values % p, p) for p in primes], axis=-2)


def multiply(x: Residues, y: Residues, primes: tuple[int, ...]) -> Residues:
    """Product of two ciphertexts (2, limbs, N), not relinearised: (3, limbs, N)."""
    out = np.empty((3, *x.shape[1:]), np.uint64)
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    for limb, p in enumerate(primes):
        _multiply(x, y, out, limb, *barrett(p))
    return out


def multiply_add(x: Residues, y: Residues, z: Residues, primes: tuple[int, ...]) -> Residues:
    """Products x y, plus z, of polynomials (limbs, N) in NTT form."""
    out = np.empty(x.shape, np.uint64)
    x, y, z = np.ascontiguousarray(x), np.ascontiguousarray(y), np.ascontiguousarray(z)
    for limb, p in enumerate(primes):
        _multiply_add(x, y, z, out, limb, *barrett(p))
    return out


def add_words(x: NDArray[np.uint32], y: NDArray[np.uint32], primes: tuple[int, ...]) -> Residues:
    """The sum of residues (k, limbs, N) that are held as 32-bit words."""
    out = np.empty(x.shape, np.uint64)
    _add_words(x, y, out, np.array(primes, np.uint64))
    return out


def switch(
    residues: Residues,
    primes: tuple[int, ...],
    errors: NDArray[np.int64] | None = None,
    mask: Residues | None = None,
) -> Residues:
    """Divide polynomials by the second prime and round.

    What is small or belongs to the quotient alone is added on the way, as coefficients, which saves its transforms.

    Args:
        residues: (k, 2, N) in NTT form.
        primes: both primes.
        errors: (k, N) small coefficients that are added before the division.
        mask: (N,) coefficients modulo the first prime that are added to the first polynomial's quotient.

    Returns:
        (k, N) modulo the first prime, in NTT form.
    """
    p, q = primes
    low = intt(residues[:, 1], q)
    errors = np.zeros(low.shape, np.int64) if errors is None else errors
    mask = np.empty(0, np.uint64) if mask is None else mask
    prime, shift, mu = barrett(p)
    correction = ntt(_correct(low, errors, mask, np.int64(q), prime, np.uint64(q % p), shift, mu), p)
    high = np.ascontiguousarray(residues[:, 0]).reshape(-1)
    scaled: Residues = _scale_sum(high, correction.reshape(-1), np.uint64(pow(q, -1, p)), prime, shift, mu)
    return scaled.reshape(low.shape)
