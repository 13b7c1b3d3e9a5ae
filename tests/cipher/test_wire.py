from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sealface.cipher import wire
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.wire import MalformedCiphertext, pack, packed_size, unpack

DATA, ALL = N4096.data_primes, N4096.primes
SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([4, 8, 32]), st.sampled_from([DATA, ALL, ALL[:1], ALL[2:]]))


@given(SHAPES, st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip_and_the_layout_of_bits(shape: tuple[int, int, tuple[int, ...]], data: st.DataObject) -> None:
    polynomials, degree, primes = shape
    rows = [
        data.draw(st.lists(st.integers(0, p - 1), min_size=degree, max_size=degree))
        for _ in range(polynomials)
        for p in primes
    ]
    residues = np.array(rows, np.uint64).reshape(polynomials, len(primes), degree)
    packed = pack(residues, primes)
    assert len(packed) == packed_size(polynomials, degree, primes)
    assert np.array_equal(unpack(packed, polynomials, degree, primes), residues)
    expected = b""
    for row, p in zip(rows, primes * polynomials, strict=True):
        width = p.bit_length()
        expected += sum(v << (width * i) for i, v in enumerate(row)).to_bytes(degree * width // 8, "little")
    assert packed == expected


@given(st.binary(max_size=200), SHAPES)
@example(b"\xff" * 30, (1, 8, ALL[:1]))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_refused_or_canonical(data: bytes, shape: tuple[int, int, tuple[int, ...]]) -> None:
    try:
        residues = unpack(data, *shape)
    except MalformedCiphertext:
        return
    assert pack(residues, shape[2]) == data  # nothing has two encodings


@given(SHAPES, st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_of_the_right_length(shape: tuple[int, int, tuple[int, ...]], data: st.DataObject) -> None:
    size = packed_size(*shape)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    try:
        residues = unpack(raw, *shape)
    except MalformedCiphertext as error:
        assert error.reason == "MALFORMED_CIPHERTEXT"
        return
    assert (residues < np.array(shape[2], np.uint64)[:, None]).all()
    assert pack(residues, shape[2]) == raw


@pytest.mark.parametrize("primes", [DATA, ALL])
@pytest.mark.parametrize("limb", [0, 1, -1])
def test_the_prime_itself_is_out_of_range(primes: tuple[int, ...], limb: int) -> None:
    residues = np.zeros((2, len(primes), 4096), np.uint64)
    residues[1, limb, 4095] = primes[limb] - 1
    assert unpack(pack(residues, primes), 2, 4096, primes)[1, limb, 4095] == primes[limb] - 1
    residues[1, limb, 4095] += np.uint64(1)
    with pytest.raises(MalformedCiphertext, match="out of range"):
        unpack(pack(residues, primes), 2, 4096, primes)


@pytest.mark.parametrize("length", [0, 1, 61439, 61441, 122880])
def test_truncated_or_over_long(length: int) -> None:
    with pytest.raises(MalformedCiphertext) as caught:
        unpack(bytes(length), 2, 4096, DATA)
    assert caught.value.metadata == {"expected_bytes": "61440"}


def slowly_packed(residues: NDArray[Any], primes: tuple[int, ...]) -> bytes:
    """The reference: one number per polynomial and limb, bit by bit in Python."""
    out = b""
    for polynomial in residues.reshape(-1, len(primes), residues.shape[-1]).tolist():
        for limb, p in zip(polynomial, primes, strict=True):
            bits = "".join(f"{value:0{p.bit_length()}b}"[::-1] for value in limb)
            out += int(bits[::-1], 2).to_bytes(len(bits) // 8, "little")
    return out


def slowly_unpacked(data: bytes, polynomials: int, degree: int, primes: tuple[int, ...]) -> list[list[list[int]]]:
    bits = "".join(f"{byte:08b}"[::-1] for byte in data)
    found, at = [], 0
    for _ in range(polynomials):
        limbs = []
        for p in primes:
            width = p.bit_length()
            limbs.append([int(bits[at + width * i : at + width * (i + 1)][::-1], 2) for i in range(degree)])
            at += width * degree
        found.append(limbs)
    assert at == len(bits)
    return found


@pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)
@pytest.mark.parametrize("which", ["data", "all", "first", "special"])
def test_compiled_packing_is_the_slow_one(parameters: ParameterSet, which: str, rng: np.random.Generator) -> None:
    primes = {
        "data": parameters.data_primes,
        "all": parameters.primes,
        "first": parameters.primes[:1],
        "special": parameters.primes[2:],
    }[which]
    n = parameters.degree
    residues = np.stack([rng.integers(0, p, (2, n)) for p in primes], axis=1).astype(np.uint64)
    largest = np.array(primes, np.uint64)[:, None] - np.uint64(1)
    residues[:, :, :64] = largest * rng.integers(0, 2, (2, len(primes), 64)).astype(np.uint64)
    residues[0, :, 64:1064] = np.uint64(1) << rng.integers(0, 29, 1000).astype(np.uint64)  # single bits
    before = residues.copy()
    packed = pack(residues, primes)
    assert packed == slowly_packed(residues, primes)
    assert np.array_equal(residues, before)
    found = unpack(packed, 2, n, primes)
    assert found.dtype == np.uint64
    assert found.tolist() == slowly_unpacked(packed, 2, n, primes)
    # from another order of memory, as more axes, and from 32-bit words where they fit
    assert pack(np.asfortranarray(residues), primes) == packed
    assert pack(residues[::-1], primes) == slowly_packed(residues[::-1].copy(), primes)
    assert pack(residues[:, None], primes) == packed
    if which in ("data", "first"):
        assert pack(residues.astype(np.uint32), primes) == packed


def test_sizes_of_the_design() -> None:
    assert packed_size(2, 4096, DATA) == 61_440
    assert packed_size(3, 4096, DATA[:1]) == 46_080
    assert wire._width(ALL[2]) == 40
