"""Keys are made once: generation takes a tenth of a second, and no test changes one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import wire
from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.opening import Opener
from sealface.cipher.parameters import N4096, ParameterSet
from sealface.cipher.ring import Residues
from sealface.cipher.scheme import Ckks, Encryptor, KeyMaterial
from sealface.cipher.tail import Evaluator


class Sides:
    """One key and one layout, from every side."""

    def __init__(self, layout: Layout, key: KeyMaterial) -> None:
        parameters = layout.parameters
        self.layout = layout
        self.key = key
        self.primes = parameters.data_primes
        self.moduli = np.array(self.primes, np.uint64)[:, None]
        self.secret: Residues = wire.unpack(key.secret, 1, parameters.degree, parameters.primes)[0]
        self.public: Residues = wire.unpack(key.public, 2, parameters.degree, parameters.primes)
        self.encryptor: Encryptor = Ckks().encryptor(layout, key.public)
        self.evaluator = Evaluator(layout, self.public)
        self.opener = Opener(layout, self.secret)

    def templates(self, embeddings: NDArray[np.float64]) -> dict[int, bytes]:
        """Admitted templates by position."""
        return {i: self.evaluator.admit(self.encryptor.template(e)) for i, e in enumerate(embeddings)}


@cache
def key(parameters: ParameterSet, number: int = 0) -> KeyMaterial:
    """The key of that number."""
    return Ckks().generate(parameters)


@cache
def sides(
    parameters: ParameterSet = N4096,
    dimension: int = 128,
    metric: Metric = Metric.COSINE,
    largest_norm: float = 1.0,
    number: int = 0,
) -> Sides:
    """See `Sides`."""
    return Sides(Layout(parameters, dimension, metric, largest_norm), key(parameters, number))


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers every time."""
    return np.random.default_rng(20)


def units(rng: np.random.Generator, count: int, dimension: int) -> NDArray[np.float64]:
    """Random unit vectors (count, dimension)."""
    vectors = rng.standard_normal((count, dimension))
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def assert_uniform(values: NDArray[np.uint64], p: int, buckets: int = 64) -> None:
    """Chi-square against uniform modulo p; refuses uniform values about once in 10^9."""
    counts = np.bincount((values.ravel().astype(np.float64) * buckets / p).astype(int), minlength=buckets)
    expected = values.size / buckets
    assert expected > 20, "too few values to say anything"
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < buckets - 1 + 6.5 * np.sqrt(2 * (buckets - 1)), f"not uniform: chi2 {chi2:.0f} of {buckets}"
