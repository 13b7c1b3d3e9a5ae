from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import kernels
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.product import LANES, Words, arrange, exact_scores, scores
from tests.cipher import portable

SETS = pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)
CHUNKS = 2  # of 16 coefficients: the kernel knows no other degree


def words(rng: np.random.Generator, count: int, columns: int, primes: tuple[int, ...], kind: str) -> Words:
    """Residues (count, limbs, chunks, columns, 2, 16): random, all p - 1, or either 0 or p - 1."""
    shape = (count, CHUNKS, columns, 2, LANES)
    drawn = {
        "random": lambda p: rng.integers(0, p, shape),
        "largest": lambda p: np.full(shape, p - 1),
        "extreme": lambda p: rng.choice([0, 1, p - 1], shape, p=[0.1, 0.1, 0.8]),
    }[kind]
    return np.stack([drawn(p) for p in primes], axis=1).astype(np.uint32)


@SETS
@pytest.mark.parametrize("columns", [1, 2, 8, 32, 128])
@pytest.mark.parametrize("kind", ["random", "largest", "extreme"])
def test_sums_of_products_are_those_of_big_integers(
    parameters: ParameterSet, columns: int, kind: str, rng: np.random.Generator
) -> None:
    primes = parameters.data_primes
    blocks = list(words(rng, 3, columns, primes, kind))
    probes = words(rng, 16, columns, primes, kind)
    expected = exact_scores(blocks, probes, primes)
    for count in (1, 3, 4, 5, 16):  # four share a kernel; one by one what is left
        for some in (1, 2, 3):
            got = scores(blocks[:some], probes[:count], primes)
            assert got.dtype == np.uint32
            assert np.array_equal(got, expected[:count, :some])


def test_many_at_once_with_others_that_use_memory() -> None:
    """The kernels pass addresses: what they point to must live, and be nobody else's, until the sums are done."""
    program = [sys.executable, "-m", "tests.cipher.crowded"]
    done = subprocess.run(program, env=os.environ | {"MALLOC_ARENA_MAX": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [3, 7, 9, 12, 24, 40, 100])
def test_any_number_of_columns(columns: int, rng: np.random.Generator) -> None:
    """Steps of 8 and runs of 32 columns, and what is left of them."""
    primes = N4096.data_primes
    for kind in ("random", "largest"):
        blocks, probes = list(words(rng, 2, columns, primes, kind)), words(rng, 5, columns, primes, kind)
        assert np.array_equal(scores(blocks, probes, primes), exact_scores(blocks, probes, primes))


def test_large_and_small_residues_in_any_order(rng: np.random.Generator) -> None:
    """Halves of columns and leaves of nothing but p - 1, or of 0: one accumulator is fullest, others are empty."""
    primes = N8192.data_primes
    for t0, t1, q0, q1 in np.ndindex(2, 2, 2, 2):
        block, probes = (np.zeros((count, 2, CHUNKS, 32, 2, LANES), np.uint32) for count in (1, 4))
        for limb, p in enumerate(primes):
            for target, halves in ((block, (t0, t1)), (probes, (q0, q1))):
                for half, full in enumerate(halves):
                    target[:, limb, ..., half, :] = (p - 1) * full
        for count in (1, 4):
            expected = exact_scores(list(block), probes[:count], primes)
            assert np.array_equal(scores(list(block), probes[:count], primes), expected)


def test_one_column_is_the_product_of_ciphertexts(rng: np.random.Generator) -> None:
    primes = N4096.data_primes
    x, y = (np.stack([rng.integers(0, p, (2, 4096)) for p in primes], axis=1).astype(np.uint64) for _ in range(2))
    got = scores([arrange(x[None])], arrange(y[None])[None], primes)
    assert np.array_equal(got[0, 0], kernels.multiply(x, y, primes))


def test_arranging_moves_every_residue_once(rng: np.random.Generator) -> None:
    residues = rng.integers(0, 1 << 30, (3, 2, 2, 64)).astype(np.uint64)
    arranged = arrange(residues)
    assert arranged.dtype == np.uint32
    assert arranged.shape == (2, 4, 3, 2, LANES)
    assert np.array_equal(arranged.transpose(2, 3, 0, 1, 4).reshape(3, 2, 2, 64), residues)
    into = np.empty_like(arranged)
    assert arrange(residues[::-1].astype(np.uint32), into) is into  # words, and in any order of memory
    assert np.array_equal(into, arranged[:, :, ::-1])


def wrong(columns: int = 8) -> Iterator[tuple[list[Words], NDArray[np.uint32]]]:
    """Blocks and probes that do not belong together."""
    primes, rng = N4096.data_primes, np.random.default_rng(0)
    block, probe = words(rng, 1, columns, primes, "random")[0], words(rng, 1, columns, primes, "random")
    yield [block], words(rng, 1, columns * 2, primes, "random")
    yield [block, words(rng, 1, columns * 2, primes, "random")[0]], probe
    yield [block], probe[:, :1]
    yield [block], probe[:, :, :1]
    yield [block], probe[0]
    yield [block[:1]], probe
    # of the shape, but not one after the other in memory, which is read by address
    yield [np.repeat(block, 2, axis=0)[::2]], probe
    yield [block], np.asfortranarray(probe)
    yield [np.ascontiguousarray(block.swapaxes(0, 1)).swapaxes(0, 1)], probe


@pytest.mark.parametrize("case", range(9))
def test_what_does_not_belong_together_is_refused(case: int) -> None:
    blocks, probes = list(wrong())[case]
    with pytest.raises(ValueError, match="one shape"):
        scores(blocks, probes, N4096.data_primes)


def test_the_bits_are_those_of_the_least_processor(plain_processor: dict[str, Any]) -> None:
    assert not plain_processor["wide registers"]  # else nothing is compared
    assert plain_processor["product"] == portable.digests()["product"]
