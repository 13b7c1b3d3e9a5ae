"""Digests of what every compiled kernel computes, to compare with a process that compiles for a lesser processor.

Run as `python -m tests.cipher.portable`, it prints them.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels, product, switching, wire
from sealface.cipher.parameters import ParameterSet, parameter_sets
from sealface.cipher.ring import Residues


def _residues(rng: np.random.Generator, shape: tuple[int, ...], primes: tuple[int, ...]) -> Residues:
    """Random residues (..., limbs, N), a tenth of them the largest there are."""
    drawn = [rng.integers(0, p, shape) for p in primes]
    for values, p in zip(drawn, primes, strict=True):
        values[rng.random(shape) < 0.1] = p - 1
    return np.stack(drawn, axis=-2).astype(np.uint64)


def _product(rng: np.random.Generator, parameters: ParameterSet) -> list[NDArray[Any]]:
    primes, found = parameters.data_primes, []
    for columns in (1, 8, 12, 64):
        blocks, probes = (
            [product.arrange(_residues(rng, (columns, 2, 64), primes)) for _ in range(count)] for count in (2, 6)
        )
        found.append(product.scores(blocks, np.stack(probes), primes))
        largest = [np.full_like(block, min(primes) - 1) for block in blocks]
        found.append(product.scores(largest, np.stack(probes), primes))
    return found


def _switching(rng: np.random.Generator, parameters: ParameterSet) -> list[NDArray[Any]]:
    primes, n = parameters.data_primes, parameters.degree
    keys = {switching.element_of_level(level, n): _residues(rng, (2, 2, n), parameters.primes) for level in range(3)}
    nodes = _residues(rng, (2, n), primes)
    found = [switching.apply_galois(nodes, element, key, parameters) for element, key in keys.items()]
    words = nodes.astype(np.uint32)[None]
    for level in range(3):
        out = np.empty((2 * len(words), *words.shape[1:]), np.uint32)
        switching.split_level(words, level, keys, parameters, out, range(len(words)))
        words = out
    total = words[::-1].copy()
    switching.add_shifted(words, switching.monomial(5, n, primes), total, primes)
    return [*found, words, total]


def _kernels(rng: np.random.Generator, parameters: ParameterSet) -> list[NDArray[Any]]:
    primes, n = parameters.data_primes, parameters.degree
    x, y = (_residues(rng, (2, n), primes) for _ in range(2))
    three = kernels.multiply(x, y, primes)
    words = three.astype(np.uint32)
    errors, mask = rng.integers(-21, 22, (3, n)), _residues(rng, (n,), primes[:1])[0]
    return [
        *(kernels.ntt(x[:, limb], p) for limb, p in enumerate(primes)),
        *(kernels.intt(x[:, limb], p) for limb, p in enumerate(primes)),
        kernels.integers_to_ntt(rng.integers(-(2**57), 2**57, n), primes),
        three,
        kernels.multiply_add(x[0], y[0], y[1], primes),
        kernels.add_words(words, words[::-1].copy(), primes),
        kernels.switch(three, primes),
        kernels.switch(three, primes, errors, mask),
        np.frombuffer(wire.pack(x, primes), np.uint8),
        wire.unpack(wire.pack(x, primes), 2, n, primes),
    ]


@cache
def digests() -> dict[str, str]:
    """A digest by what was computed."""
    found = {}
    for name, compute in (("product", _product), ("switching", _switching), ("kernels", _kernels)):
        digest = hashlib.sha256()
        for number, parameters in enumerate(parameter_sets()):
            for values in compute(np.random.default_rng(number), parameters):
                digest.update(np.ascontiguousarray(values).tobytes())
        found[name] = digest.hexdigest()
    return found


def wide_registers() -> bool:
    """Whether the scoring kernel was compiled for more than what every x86-64 processor has."""
    assembly = "".join(product._score.inspect_asm().values())
    return any(register in assembly for register in ("ymm", "zmm"))


if __name__ == "__main__":
    print(json.dumps({**digests(), "wide registers": wide_registers()}))
