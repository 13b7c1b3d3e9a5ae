"""Residues as bytes: each packed at the width of its prime, least significant bit first, no header.

What the bytes are (kind, parameter set, shape) is said by the message that carries them; the length must fit
it exactly and every residue must be below its prime. These are the only bytes from outside that ever become
polynomials: SEAL's own loader sees none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sealface.cipher.ring import Residues
from sealface.errors import InvalidInput

_compiled = njit(cache=True, nogil=True, boundscheck=False)


class MalformedCiphertext(InvalidInput):
    """Bytes that are no polynomials of the parameter set: wrong length or a residue out of range."""


@_compiled
def _pack_words(a, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in range(out.size // 15):
        w, x, y, z = np.uint64(a[4 * i]), np.uint64(a[4 * i + 1]), np.uint64(a[4 * i + 2]), np.uint64(a[4 * i + 3])
        low = w | x << np.uint64(30) | y << np.uint64(60)  # the shift drops y's upper 26 bits
        high = y >> np.uint64(4) | z << np.uint64(26)
        for j in range(8):
            out[15 * i + j] = np.uint8(low >> np.uint64(8 * j))
        for j in range(7):
            out[15 * i + 8 + j] = np.uint8(high >> np.uint64(8 * j))


@_compiled
def _unpack_words(data, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    mask = np.uint64((1 << 30) - 1)
    for i in range(data.size // 15):
        low, high = np.uint64(0), np.uint64(0)
        for j in range(8):
            low |= np.uint64(data[15 * i + j]) << np.uint64(8 * j)
        for j in range(7):
            high |= np.uint64(data[15 * i + 8 + j]) << np.uint64(8 * j)
        out[4 * i] = low & mask
        out[4 * i + 1] = low >> np.uint64(30) & mask
        out[4 * i + 2] = (low >> np.uint64(60) | high << np.uint64(4)) & mask
        out[4 * i + 3] = high >> np.uint64(26)


def _pack_30(a: NDArray[Any]) -> bytes:
    """Four residues to 15 bytes."""
    out = np.empty(a.size // 4 * 15, np.uint8)
    _pack_words(np.ascontiguousarray(a).reshape(-1), out)
    return out.tobytes()


def _unpack_30(data: NDArray[np.uint8]) -> Residues:
    out = np.empty(data.size // 15 * 4, np.uint64)
    _unpack_words(data, out)
    return out


def _pack_40(a: Residues) -> bytes:
    return a.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :5].tobytes()


def _unpack_40(data: NDArray[np.uint8]) -> Residues:
    words = np.zeros((data.size // 5, 8), np.uint8)
    words[:, :5] = data.reshape(-1, 5)
    return words.view("<u8").astype(np.uint64).ravel()


def _width(p: int) -> int:
    return 30 if p < 1 << 30 else 40


def packed_size(polynomials: int, degree: int, primes: tuple[int, ...]) -> int:
    """Bytes of that many polynomials."""
    return polynomials * sum(degree * _width(p) // 8 for p in primes)


def pack(residues: NDArray[Any], primes: tuple[int, ...]) -> bytes:
    """Residues of shape (..., limbs, N) to bytes, polynomial by polynomial, limb by limb."""
    limbs = residues.reshape(-1, len(primes), residues.shape[-1])
    if all(_width(p) == 30 for p in primes):
        return _pack_30(limbs)
    packers = [_pack_30 if _width(p) == 30 else _pack_40 for p in primes]
    return b"".join(packer(limb) for polynomial in limbs for packer, limb in zip(packers, polynomial, strict=True))


def unpack(data: bytes, polynomials: int, degree: int, primes: tuple[int, ...]) -> Residues:
    """Bytes to residues of shape (polynomials, limbs, N).

    Raises:
        MalformedCiphertext: the length is not exactly that of the shape, or a residue is not below its prime.
    """
    expected = packed_size(polynomials, degree, primes)
    if len(data) != expected:
        raise MalformedCiphertext(
            f"{len(data)} bytes where {expected} are needed: encrypt under the gallery's parameter set",
            expected_bytes=expected,
        )
    raw = np.frombuffer(data, np.uint8)
    limits = np.array(primes, np.uint64)[None, :, None]
    if all(_width(p) == 30 for p in primes):
        residues = _unpack_30(raw).reshape(polynomials, len(primes), degree)
    else:
        parts, at = [], 0
        for p in primes * polynomials:
            size = degree * _width(p) // 8
            parts.append((_unpack_30 if _width(p) == 30 else _unpack_40)(raw[at : at + size]))
            at += size
        residues = np.stack(parts).reshape(polynomials, len(primes), degree)
    if (residues >= limits).any():
        raise MalformedCiphertext("a residue is out of range: encrypt under the gallery's parameter set")
    return residues
