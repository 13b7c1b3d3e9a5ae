"""The scoring kernel: sums of products of a block's columns and a probe's leaves, exact modulo both data primes.

Residues lie as (limbs, N/16, columns, 2, 16) unsigned 32-bit words, so that the sum over columns runs over contiguous
memory and its accumulators stay in registers. Per coefficient c0 += t0 q0, c1 += t0 q1 + t1 q0, c2 += t1 q1 in 64 bits;
after eight products, each below 2^60, a multiple of the prime near 2^63 is subtracted where it fits, and one exact
reduction ends it.

The inner loop is written as LLVM vectors of any width, which every processor's back end turns into its own: AVX-512,
AVX2, NEON or plain words give the same bits. A single probe is bound by memory: it streams the block once, linearly. Of
several probes four share each load, with three products instead of four (Karatsuba: t0 q1 + t1 q0 = (t0 + t1)(q0 + q1)
- t0 q0 - t1 q1), and as many blocks as there are share the preparation of their leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numpy.typing import NDArray

from sealface.cipher.kernels import barrett
from sealface.cipher.ring import Residues

Words = NDArray[np.uint32]
"""Residues below their prime as 32-bit words."""

LANES = 16
"""Coefficients that lie together."""
_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_STEPS = 8  # products between two reductions
_TOGETHER, _HALF = 4, 8  # probes that share a load, and coefficients of theirs that fit the registers
_RUN = 32  # columns whose prepared leaves fit the first-level cache
_SINGLE_SUMS, _SHARED_SUMS = 4, 3

_on_stack: Any = cgutils.alloca_once
_variadic: Any = types.StarArgTuple
_unpacked: Any = cgutils.unpack_tuple
_intrinsic: Any = extending.intrinsic  # mypy takes the typing context for an argument of calls
_compiled = njit(cache=True, nogil=True, boundscheck=False)
_inlined = njit(cache=True, nogil=True, boundscheck=False, inline="always")


class _Vectors:
    """Emits vector instructions of one width at the builder's place."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.words, self.longs = ir.VectorType(_WORD, lanes), ir.VectorType(_LONG, lanes)

    def address(self, base: Any, offset: int) -> Any:
        return self.builder.add(base, ir.Constant(_LONG, offset))

    def load(self, base: Any, offset: int, kind: Any) -> Any:
        loaded = self.builder.load(self.builder.inttoptr(self.address(base, offset), kind.as_pointer()))
        loaded.align = 4
        return loaded

    def widened(self, base: Any, offset: int) -> Any:
        return self.builder.zext(self.load(base, offset, self.words), self.longs)

    def store(self, value: Any, base: Any, offset: int) -> None:
        self.builder.store(value, self.builder.inttoptr(self.address(base, offset), self.longs.as_pointer())).align = 4

    def splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.longs, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_WORD, 0))
        return self.builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(_WORD, self.lanes), [0] * self.lanes)
        )

    def less_if_it_fits(self, value: Any, modulus: Any) -> Any:
        """min(v, v - m), unsigned: v - m is huge if v < m."""
        reduced = self.builder.sub(value, modulus)
        return self.builder.select(self.builder.icmp_unsigned("<", value, reduced), value, reduced)

    def sums(self, base: Any, count: int) -> list[Any]:
        """Accumulators with what memory holds; LLVM keeps them in registers."""
        held = [_on_stack(self.builder, self.longs) for _ in range(count)]
        for number, accumulator in enumerate(held):
            self.builder.store(self.load(base, number * 8 * self.lanes, self.longs), accumulator)
        return held

    def keep(self, held: list[Any], base: Any) -> None:
        for number, accumulator in enumerate(held):
            self.store(self.builder.load(accumulator), base, number * 8 * self.lanes)

    def multiply_add(self, accumulator: Any, x: Any, y: Any) -> None:
        self.builder.store(self.builder.add(self.builder.load(accumulator), self.builder.mul(x, y)), accumulator)

    def reduce(self, held: list[Any], modulus: Any) -> None:
        for accumulator in held:
            self.builder.store(self.less_if_it_fits(self.builder.load(accumulator), modulus), accumulator)


_ROW = 2 * LANES * 4  # bytes from one column to the next


@_intrinsic
def _dot(typing_context, columns, leaves, count, multiple, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add the products of `count` columns at an address with leaves at another to four sums of 16 coefficients."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        columns, leaves, count, multiple, sums = arguments
        v = _Vectors(builder, LANES)
        limit, held = v.splat(multiple), v.sums(sums, _SINGLE_SUMS)

        def step(at: Any, row: int) -> None:
            t0, t1 = (v.widened(builder.add(columns, at), row * _ROW + half * 4 * LANES) for half in range(2))
            q0, q1 = (v.widened(builder.add(leaves, at), row * _ROW + half * 4 * LANES) for half in range(2))
            for accumulator, x, y in zip(held, (t0, t0, t1, t1), (q0, q1, q0, q1), strict=True):
                v.multiply_add(accumulator, x, y)

        whole = builder.udiv(count, ir.Constant(_LONG, _STEPS))
        with cgutils.for_range(builder, whole, intp=_LONG) as loop:
            at = builder.mul(loop.index, ir.Constant(_LONG, _STEPS * _ROW))
            for row in range(_STEPS):
                step(at, row)
            v.reduce(held, limit)
        done = builder.mul(whole, ir.Constant(_LONG, _STEPS))
        with cgutils.for_range(builder, builder.sub(count, done), intp=_LONG) as loop:
            step(builder.mul(builder.add(done, loop.index), ir.Constant(_LONG, _ROW)), 0)
        v.reduce(held, limit)
        v.keep(held, sums)
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 5), generate


@_intrinsic
def _dots(typing_context, columns, leaves, count, prime, multiple, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The same for 8 coefficients of four probes; their leaves are (q0, q0 + q1, q1), and count is a multiple of 8."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        columns, leaves, count, prime, multiple, sums = arguments
        v = _Vectors(builder, _HALF)
        limit, p, held = v.splat(multiple), v.splat(prime), v.sums(sums, _TOGETHER * _SHARED_SUMS)
        low = ir.Constant(v.longs, [0xFFFFFFFF] * _HALF)  # tells LLVM that 32 by 32 bits are multiplied
        size = _TOGETHER * _SHARED_SUMS * 8 * _HALF
        with cgutils.for_range(builder, builder.udiv(count, ir.Constant(_LONG, _STEPS)), intp=_LONG) as loop:
            column = builder.add(columns, builder.mul(loop.index, ir.Constant(_LONG, _STEPS * _ROW)))
            leaf = builder.add(leaves, builder.mul(loop.index, ir.Constant(_LONG, _STEPS * size)))
            for row in range(_STEPS):
                t0, t1 = (v.widened(column, row * _ROW + half * 4 * LANES) for half in range(2))
                both = builder.and_(v.less_if_it_fits(builder.add(t0, t1), p), low)
                for number, accumulator in enumerate(held):
                    q = builder.and_(v.load(leaf, row * size + number * 8 * _HALF, v.longs), low)
                    v.multiply_add(accumulator, (t0, both, t1)[number % _SHARED_SUMS], q)
            v.reduce(held, limit)
        v.keep(held, sums)
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 6), generate


@_intrinsic
def _prepare(typing_context, leaf, prime, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write (q0, q0 + q1, q1) of 8 coefficients of a leaf as `_dots` reads them."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        leaf, prime, out = arguments
        v = _Vectors(builder, _HALF)
        q0, q1 = v.widened(leaf, 0), v.widened(leaf, 4 * LANES)
        both = v.less_if_it_fits(builder.add(q0, q1), v.splat(prime))
        for number, value in enumerate((q0, both, q1)):
            v.store(value, out, number * 8 * _HALF)
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 3), generate


@_intrinsic
def _settle(typing_context, sums, prime, *polynomials):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the three sums of `_dots` as residues of c0, c1 and c2, eight coefficients of each."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        v = _Vectors(builder, _HALF)
        p, _, fold, shift, mu = (v.splat(scalar) for scalar in _unpacked(builder, arguments[1]))
        low_word, word = ir.Constant(v.longs, [0xFFFFFFFF] * _HALF), ir.Constant(v.longs, [32] * _HALF)

        def product(x: Any, y: Any) -> Any:
            return builder.mul(builder.and_(x, low_word), y)

        def below(x: Any) -> Any:  # as `_below`
            x = builder.add(product(builder.lshr(x, word), fold), builder.and_(x, low_word))
            quotient = builder.lshr(product(builder.lshr(x, shift), mu), word)
            return v.less_if_it_fits(v.less_if_it_fits(builder.sub(x, product(quotient, p)), p), p)

        c0, both, c2 = (below(v.load(arguments[0], number * 8 * _HALF, v.longs)) for number in range(_SHARED_SUMS))
        for less in (c0, c2):
            both = v.less_if_it_fits(builder.sub(builder.add(both, p), less), p)
        for value, at in zip((c0, both, c2), _unpacked(builder, arguments[2]), strict=True):
            to = builder.inttoptr(at, v.words.as_pointer())
            builder.store(builder.trunc(value, v.words), to).align = 4
        return context.get_dummy_value()

    return types.void(sums, prime, _variadic(polynomials)), generate


@_inlined
def _below(x, p, fold, shift, mu):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # x < 2^63 to below p: first x = high 2^32 + low, with fold = 2^32 mod p, then Barrett as in `kernels`
    high, low = np.uint64(np.uint32(x >> np.uint64(32))), np.uint64(np.uint32(x))
    x = high * fold + low
    quotient = (np.uint64(np.uint32(x >> shift)) * mu) >> np.uint64(32)
    r = x - np.uint64(np.uint32(quotient)) * p
    r = min(r, r - p)
    return min(r, r - p)


@_compiled
def _score(addresses, leaves, out, count, prime):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # one probe; out (blocks, 3, limbs, N)
    sums = np.empty((_SINGLE_SUMS, LANES), np.uint64)
    limbs, chunks = leaves.shape[0], leaves.shape[1]
    size = np.uint64(count * _ROW)
    for block in range(addresses.size):
        for limb in range(limbs):
            p, multiple, fold, shift, mu = prime[limb]
            for chunk in range(chunks):
                sums[:] = 0
                offset = np.uint64(limb * chunks + chunk) * size
                _dot(
                    addresses[block] + offset,
                    leaves[limb, chunk].ctypes.data,
                    np.uint64(count),
                    multiple,
                    sums.ctypes.data,
                )
                at = chunk * LANES
                c0, c1, c2 = out[block, 0, limb], out[block, 1, limb], out[block, 2, limb]
                for c in range(LANES):
                    c0[at + c] = _below(sums[0, c], p, fold, shift, mu)
                    x = _below(sums[1, c], p, fold, shift, mu) + _below(sums[2, c], p, fold, shift, mu)
                    c1[at + c] = min(x, x - p)
                    c2[at + c] = _below(sums[3, c], p, fold, shift, mu)


@_compiled
def _score_many(addresses, leaves, out, count, prime):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # probes a multiple of 4: leaves (probes, limbs, N/16, columns, 2, 16), out (probes, blocks, 3, limbs, N); count a
    # multiple of 8. The chunks of all blocks stay in the second-level cache until all probes have met them.
    blocks, probes, limbs, chunks = addresses.size, leaves.shape[0], leaves.shape[1], leaves.shape[2]
    sums = np.empty((blocks, _TOGETHER, _SHARED_SUMS, _HALF), np.uint64)
    scratch = np.empty(_RUN * _TOGETHER * _SHARED_SUMS * _HALF + 8, np.uint64)
    prepared = np.uint64(scratch.ctypes.data + 63 & ~63)  # a vector within one cache line is read in one go
    for limb in range(limbs):
        p, multiple, _, _, _ = prime[limb]
        for chunk in range(chunks):
            for half in range(0, LANES, _HALF):
                for first in range(0, probes, _TOGETHER):
                    sums[:] = 0
                    for start in range(0, count, _RUN):
                        run = min(_RUN, count - start)
                        for probe in range(_TOGETHER):
                            leaf = np.uint64(leaves[first + probe, limb, chunk, start].ctypes.data + 4 * half)
                            for i in range(run):
                                to = prepared + np.uint64((i * _TOGETHER + probe) * _SHARED_SUMS * 8 * _HALF)
                                _prepare(leaf + np.uint64(i * _ROW), p, to)
                        row = (limb * chunks + chunk) * count + start
                        offset = np.uint64(row * _ROW + 4 * half)
                        for block in range(blocks):
                            at = np.uint64(sums[block].ctypes.data)
                            _dots(addresses[block] + offset, prepared, np.uint64(run), p, multiple, at)
                    at_lane = chunk * LANES + half
                    for block in range(blocks):
                        for probe in range(_TOGETHER):
                            held, to = sums[block, probe], out[first + probe, block]
                            _settle(
                                np.uint64(held.ctypes.data),
                                prime[limb],
                                np.uint64(to[0, limb].ctypes.data + 4 * at_lane),
                                np.uint64(to[1, limb].ctypes.data + 4 * at_lane),
                                np.uint64(to[2, limb].ctypes.data + 4 * at_lane),
                            )
    scratch[0] = 0  # numba frees an array after its last use, and does not know that its address was in use


@_compiled
def _arrange(residues, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # (columns, 2, limbs, N) to (limbs, N/16, columns, 2, 16)
    columns, _, limbs, n = residues.shape
    for limb in range(limbs):
        for chunk in range(n // LANES):
            for column in range(columns):
                for half in range(2):
                    for c in range(LANES):
                        out[limb, chunk, column, half, c] = np.uint32(residues[column, half, limb, chunk * LANES + c])


def arrange(residues: NDArray[Any], out: Words | None = None) -> Words:
    """Ciphertexts (columns, 2, limbs, N) in the order of the kernel (limbs, N/16, columns, 2, 16)."""
    columns, _, limbs, n = residues.shape
    if out is None:
        out = np.empty((limbs, n // LANES, columns, 2, LANES), np.uint32)
    _arrange(residues, out)
    return out


def _constants(primes: Sequence[int]) -> tuple[tuple[np.uint64, ...], ...]:
    return tuple(
        (np.uint64(p), np.uint64((1 << 63) // p * p), np.uint64((1 << 32) % p), *barrett(p)[1:]) for p in primes
    )


def scores(blocks: Sequence[Words], probes: Words, primes: Sequence[int]) -> Words:
    """Products of blocks and expanded probes, in one pass over the blocks. Holds no GIL; safe for several threads.

    Args:
        blocks: as `arrange` makes them, all of one shape.
        probes: leaves likewise, of the same shape behind the number of the probe.
        primes: the data primes, below 2^30.

    Returns:
        (probes, blocks, 3, limbs, N): for each the sum over columns of column times leaf, not relinearised.
    """
    limbs, chunks, count, _, _ = blocks[0].shape
    fits = (blocks[0].shape, np.uint32, True)
    if any((words.shape, words.dtype, words.flags.c_contiguous) != fits for words in (*blocks, *probes)):
        raise ValueError("blocks and probes of one shape are scored together")  # their addresses are all that is passed
    addresses = np.array([block.ctypes.data for block in blocks], np.uint64)
    out = np.empty((len(probes), len(blocks), 3, limbs, chunks * LANES), np.uint32)
    constants = _constants(primes)
    done = 0
    if count % _STEPS == 0:
        done = len(probes) // _TOGETHER * _TOGETHER
        if done:
            _score_many(addresses, probes[:done], out[:done], count, constants)
    for number in range(done, len(probes)):
        _score(addresses, probes[number], out[number], count, constants)
    return out


def exact_scores(blocks: Sequence[Words], probes: Words, primes: Sequence[int]) -> Residues:
    """The portable twin of `scores`: whole numbers of Python, no bound on their size."""
    limbs, chunks, _, _, _ = blocks[0].shape
    out = np.empty((len(probes), len(blocks), 3, limbs, chunks * LANES), np.uint64)
    for of_probe, probe in zip(out, probes, strict=True):
        for of_block, block in zip(of_probe, blocks, strict=True):
            t, q = block.astype(object), probe.astype(object)
            sums = (
                (t[..., 0, :] * q[..., 0, :]).sum(axis=2),
                (t[..., 0, :] * q[..., 1, :] + t[..., 1, :] * q[..., 0, :]).sum(axis=2),
                (t[..., 1, :] * q[..., 1, :]).sum(axis=2),
            )
            for polynomial, total in zip(of_block, sums, strict=True):
                for limb, p in enumerate(primes):
                    polynomial[limb] = (total[limb] % p).reshape(-1).astype(np.uint64)
    return out
