from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import product, ring, seal
from sealface.cipher.evaluator import Evaluator
from sealface.cipher.kernels import integers_to_ntt
from sealface.cipher.parameters import N4096, N8192, ParameterSet
from sealface.cipher.ring import Residues
from sealface.cipher.seal import Rotor
from sealface.cipher.switching import (
    add_shifted,
    apply_galois,
    automorphism,
    element_of_level,
    monomial,
    split_level,
)
from tests.cipher import portable
from tests.cipher.conftest import Sides, centred, sides, units

SETS = pytest.mark.parametrize("parameters", [N4096, N8192], ids=lambda s: s.name)
LEVELS = 7


@cache
def rotor(parameters: ParameterSet) -> Rotor:
    """SEAL's automorphisms, and its keys: of every level, of x -> x^3 and of x -> x^-1."""
    n = parameters.degree
    elements = [*(element_of_level(level, n) for level in range(LEVELS)), 3, 2 * n - 1]
    return Rotor(parameters, sides(parameters).secret, elements)


def ciphertext(made: Sides, coefficients: NDArray[np.int64]) -> Residues:
    """A fresh encryption (2, limbs, N) of coefficients, as they are."""
    parameters = made.layout.parameters
    plain = integers_to_ntt(coefficients, made.primes)
    return seal.Encryptor(parameters, made.public).encrypt(plain, parameters.template_scale)


def opened(made: Sides, found: Residues) -> NDArray[np.int64]:
    """Coefficients of a ciphertext (2, limbs, N) that are small enough for the first prime."""
    p = made.primes[0]
    return centred((found[0, 0] + found[1, 0] * made.secret[0]) % np.uint64(p), p)


def message(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    return rng.integers(-(1 << 27), 1 << 27, n)


# --- against SEAL


@SETS
@pytest.mark.parametrize("which", [*range(LEVELS), "3", "-1"])
def test_an_automorphism_is_seals_bit_for_bit(
    parameters: ParameterSet, which: int | str, rng: np.random.Generator
) -> None:
    made, theirs, n = sides(parameters), rotor(parameters), parameters.degree
    element = element_of_level(which, n) if isinstance(which, int) else int(which) % (2 * n)
    largest = np.array(made.primes, np.uint64)[:, None] - np.uint64(1) + np.zeros((2, 2, n), np.uint64)
    inputs = {
        "fresh": ciphertext(made, message(rng, n)),
        "uniform": np.stack([rng.integers(0, p, (2, n)) for p in made.primes], axis=1).astype(np.uint64),
        "largest": largest,
        "largest and zero": np.where(rng.random((2, 2, n)) < 0.5, largest, 0).astype(np.uint64),
        "one coefficient": np.stack(
            [integers_to_ntt(np.eye(1, n, 7, dtype=np.int64)[0] * v, made.primes) for v in (1, -1)]
        ),
    }
    for name, c in inputs.items():
        before = c.copy()
        ours = apply_galois(c, element, theirs.keys[element], parameters)
        assert np.array_equal(c, before)
        assert np.array_equal(ours, theirs.residues(theirs.apply(theirs.load(c), element))), name


@SETS
def test_an_expansion_is_seals_tree_bit_for_bit(parameters: ParameterSet, rng: np.random.Generator) -> None:
    """Eight leaves: every automorphism by SEAL, sums and monomials by numpy."""
    made, theirs, n = sides(parameters, 128), rotor(parameters), parameters.degree
    shape = made.layout.shape(8)
    probe = made.probe(units(rng, 1, 128)[0])
    evaluator = Evaluator(made.layout, made.public, theirs.keys)
    expanded = evaluator.expand([probe], [shape])[shape].words[0]

    def times(c: Residues, exponent: int) -> Residues:
        return c * monomial(exponent, n, made.primes) % made.moduli

    eighth = np.array([pow(8, -1, p) for p in made.primes], np.uint64)[:, None]
    nodes = [times(probe.residues[0], 7) * eighth % made.moduli]
    for level in range(3):
        turned = [theirs.residues(theirs.apply(theirs.load(c), element_of_level(level, n))) for c in nodes]
        even = [(c + t) % made.moduli for c, t in zip(nodes, turned, strict=True)]
        odd = [times((c + made.moduli - t) % made.moduli, -(1 << level)) for c, t in zip(nodes, turned, strict=True)]
        nodes = even + odd
    leaves = np.stack(nodes)[::-1]  # the leaf of residue 7 - i is Q_i
    assert np.array_equal(product.arrange(leaves), expanded)


# --- what it means


@SETS
@pytest.mark.parametrize("element", [3, 5, "level 3", "-1"])
def test_an_automorphism_moves_coefficients_and_little_else(
    parameters: ParameterSet, element: int | str, rng: np.random.Generator
) -> None:
    made, n = sides(parameters), parameters.degree
    g = {"level 3": element_of_level(3, n), "-1": 2 * n - 1}.get(str(element), element)
    assert isinstance(g, int)
    keys = Rotor(parameters, made.secret, [g]).keys
    coefficients = message(rng, n)
    to = np.arange(n) * g % (2 * n)
    moved = np.empty(n, np.int64)
    moved[to % n] = np.where(to < n, coefficients, -coefficients)
    error = opened(made, apply_galois(ciphertext(made, coefficients), g, keys[g], parameters)) - moved
    assert np.abs(error).max() < 1 << 10


@SETS
@pytest.mark.parametrize("count", [2, 16, 128])
def test_a_tree_splits_by_residue(parameters: ParameterSet, count: int, rng: np.random.Generator) -> None:
    made, n = sides(parameters), parameters.degree
    coefficients = message(rng, n)
    c = ciphertext(made, coefficients)
    found = made.evaluator._split(c, count)
    assert found.shape == (count, 2, 2, n)
    rounding = (1 + n * 2 / 3) / 12  # of a key switch and of the encryption, in variance
    energy = []
    for residue, node in enumerate(found):
        expected = np.zeros(n, np.int64)
        expected[::count] = coefficients[residue::count]  # divided by x^residue
        error = opened(made, node.astype(np.uint64)) - expected
        # multiples of the count get the most: each level doubles their error, where it doubles only the energy of all
        assert np.abs(error).max() < 8 * np.sqrt(rounding) * (1 + count / np.sqrt(3))
        energy.append((error**2).mean())
    assert np.mean(energy) == pytest.approx((count - 1 + 1 / count) * rounding, rel=0.3)  # as Shape.noise has it


@SETS
def test_parts_of_a_level_are_the_level(parameters: ParameterSet, rng: np.random.Generator) -> None:
    n, keys = parameters.degree, rotor(parameters).keys
    nodes = np.stack([rng.integers(0, p, (8, 2, n)) for p in parameters.data_primes], axis=2).astype(np.uint32)
    before = nodes.copy()
    whole = np.empty((16, 2, 2, n), np.uint32)
    split_level(nodes, 3, keys, parameters, whole, range(8))
    for bounds in ([0, 1, 8], [0, 3, 5, 8], list(range(9)), [0, 0, 8]):
        parts = np.full_like(whole, 7)
        for start, stop in reversed(list(itertools.pairwise(bounds))):
            split_level(nodes, 3, keys, parameters, parts, range(start, stop))
        assert np.array_equal(parts, whole)
    some = np.full_like(whole, 7)
    split_level(nodes, 3, keys, parameters, some, range(2, 4))
    assert np.array_equal(some[[2, 3, 10, 11]], whole[[2, 3, 10, 11]])
    assert (np.delete(some, [2, 3, 10, 11], axis=0) == 7).all()  # nobody else's
    assert np.array_equal(nodes, before)


@pytest.mark.parametrize("element", [1, 3, 5, 33, 65, 127])
def test_automorphisms_in_ntt_form_are_permutations(element: int, rng: np.random.Generator) -> None:
    n, p = 64, N4096.primes[0]
    a = rng.integers(0, p, n).astype(np.uint64)
    to = np.arange(n) * element % (2 * n)
    moved = np.empty(n, np.uint64)
    moved[to % n] = np.where(to < n, a, np.uint64(p) - a)
    order = automorphism(element, n)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(ring.ntt(moved % np.uint64(p), p), ring.ntt(a, p)[order])


@SETS
def test_elements_of_levels(parameters: ParameterSet) -> None:
    """x -> x^g keeps even multiples of 2^level and turns the sign of odd ones."""
    n = parameters.degree
    for level in range(LEVELS):
        g, step = element_of_level(level, n), 1 << level
        assert g % 2 == 1
        exponents = np.arange(0, n, step)
        assert ((exponents * g - exponents) % (2 * n) == np.where(exponents // step % 2 == 0, 0, n)).all()


@pytest.mark.parametrize("exponent", [0, 1, 63, 64, 65, 127, 128, -1, -64, -65, 1000])
def test_monomials(exponent: int) -> None:
    n, primes = 64, N4096.data_primes
    found = monomial(exponent, n, primes)
    for limb, p in zip(found, primes, strict=True):
        expected = np.zeros(n, np.uint64)
        at = exponent % (2 * n)
        expected[at % n] = 1 if at < n else p - 1
        assert np.array_equal(ring.intt(limb, p), expected)


def test_adding_shifted(rng: np.random.Generator) -> None:
    primes, n = N4096.data_primes, 4096
    moduli = np.array(primes, np.uint64)[:, None]
    nodes, total = (np.stack([rng.integers(0, p, (3, 2, n)) for p in primes], axis=2) for _ in range(2))
    nodes[0], total[0] = (moduli - np.uint64(1)).astype(np.int64), (moduli - np.uint64(1)).astype(np.int64)
    shift = monomial(-5, n, primes)
    out = total.astype(np.uint32)
    add_shifted(nodes.astype(np.uint32), shift, out, primes)
    assert np.array_equal(out, (nodes.astype(np.uint64) * shift + total.astype(np.uint64)) % moduli)


def test_the_bits_are_those_of_the_least_processor(plain_processor: dict[str, Any]) -> None:
    assert plain_processor["switching"] == portable.digests()["switching"]
