"""Where the elements of a vector and the scores of a group lie in a polynomial.

A template t is t(x) = sum_m t_m x^m. A group holds N/d templates (d the dimension padded to a power of two):
the one at position b is multiplied by x^(d b). A probe is q(x^-1) = sum_m q_m x^-m, x^-e being -x^(N-e), so
that coefficient d b of group times probe is exactly <t_b, q>. The last positions of a group stay empty for
good: the key holder checks that they open to zero (threat model, rule 4).

For the euclidean metric a second polynomial carries |t|^2 (|q|^2) at the scale of a product, and the probe
holds -2q, so that the sum is |t - q|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.distance import Metric, distances
from sealface.cipher.parameters import ParameterSet, for_dimension, parameter_set
from sealface.errors import InvalidInput


class WrongDimension(InvalidInput):
    """The embedding has not the gallery's number of elements."""


class EmbeddingNotFinite(InvalidInput):
    """The embedding holds NaN or an infinity."""


class ZeroEmbedding(InvalidInput):
    """The embedding has length zero: it has no direction to compare."""


class EmbeddingTooLong(InvalidInput):
    """The embedding's norm is over the gallery's bound for the euclidean metric."""


@dataclass(frozen=True)
class Plaintext:
    """Integer coefficients (N,) and the scale they are at."""

    coefficients: NDArray[np.int64]
    scale: float


@dataclass(frozen=True)
class Layout:
    """How a gallery's vectors are packed.

    Attributes:
        parameters: the parameter set of the gallery's key.
        dimension: elements of an embedding.
        metric: the gallery's metric.
        largest_norm: B, the bound on |t| for the euclidean metric, in units of the embedding; 1 otherwise.
    """

    parameters: ParameterSet
    dimension: int
    metric: Metric
    largest_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.dimension <= self.parameters.degree // 2:
            raise WrongDimension(
                f"{self.parameters.name} holds vectors of 2 to {self.parameters.degree // 2} elements",
                dimension=self.dimension,
            )
        if not (math.isfinite(self.largest_norm) and self.largest_norm > 0):
            raise EmbeddingTooLong("the largest norm must be a positive number")

    @classmethod
    def of(cls, parameters: str, dimension: int, metric: Metric, largest_norm: float) -> Layout:
        """A layout by the name of its parameter set; an empty name takes the smallest set that fits.

        Raises:
            UnknownParameters, WrongDimension, EmbeddingTooLong: see there.
        """
        chosen = parameter_set(parameters) if parameters else for_dimension(dimension)
        return cls(chosen, dimension, metric, 1.0 if metric.normalised else largest_norm)

    @cached_property
    def stride(self) -> int:
        """d: coefficients between two positions."""
        return max(16, 1 << (self.dimension - 1).bit_length())

    @property
    def positions(self) -> int:
        """Positions of a group, check positions included."""
        return self.parameters.degree // self.stride

    @property
    def checks(self) -> int:
        """Positions at the end of a group that stay empty."""
        return 2 if self.positions >= 32 else 1

    @property
    def capacity(self) -> int:
        """Templates a group holds."""
        return self.positions - self.checks

    @property
    def parts(self) -> int:
        """Ciphertexts of a template or a probe: 2 for the euclidean metric, else 1."""
        return 1 if self.metric.normalised else 2

    def _scaled(self, embedding: NDArray[np.float64]) -> NDArray[np.float64]:
        vector = np.asarray(embedding, np.float64)
        if vector.shape != (self.dimension,):
            raise WrongDimension(
                f"an embedding of {vector.size} elements where the gallery has {self.dimension}: "
                "use the gallery's model",
                expected=self.dimension,
            )
        if not np.isfinite(vector).all():
            raise EmbeddingNotFinite("the embedding holds NaN or an infinity: embed the image again")
        largest = np.abs(vector).max()
        if largest == 0:
            raise ZeroEmbedding("the embedding is zero: embed the image again")
        if self.metric.normalised:
            vector = vector / largest  # first, so that the norm can neither overflow nor vanish
            unit: NDArray[np.float64] = vector / np.linalg.norm(vector)
            return unit
        # scaled before the norm is taken, for the same reason
        if largest > self.largest_norm or np.linalg.norm(vector / self.largest_norm) > 1:
            raise EmbeddingTooLong(
                f"the embedding is longer than the gallery's bound of {self.largest_norm:g}: "
                "make a gallery with a larger one",
                largest_norm=self.largest_norm,
            )
        return vector / self.largest_norm

    def _plaintext(self, coefficients: NDArray[np.float64], scale: float) -> Plaintext:
        return Plaintext(np.rint(coefficients * scale).astype(np.int64), scale)

    def template(self, embedding: NDArray[np.float64]) -> list[Plaintext]:
        """Plaintexts of a template at position 0.

        Args:
            embedding: (dimension,), any scale.

        Raises:
            WrongDimension, EmbeddingNotFinite, ZeroEmbedding, EmbeddingTooLong: see there.
        """
        vector = self._scaled(embedding)
        n, scale = self.parameters.degree, self.parameters.scale
        coefficients = np.zeros(n)
        coefficients[: self.dimension] = vector
        parts = [self._plaintext(coefficients, scale)]
        if self.parts == 2:
            norm = np.zeros(n)
            norm[0] = vector @ vector
            parts.append(self._plaintext(norm, scale * scale))
        return parts

    def probe(self, embedding: NDArray[np.float64]) -> list[Plaintext]:
        """Plaintexts of a probe; arguments and errors as for `template`."""
        vector = self._scaled(embedding)
        n, scale = self.parameters.degree, self.parameters.scale
        weights = vector if self.metric.normalised else -2.0 * vector
        coefficients = np.zeros(n)
        coefficients[0] = weights[0]
        coefficients[n - np.arange(1, self.dimension)] = -weights[1:]
        parts = [self._plaintext(coefficients, scale)]
        if self.parts == 2:
            norm = np.zeros(n)
            norm[: self.capacity * self.stride : self.stride] = vector @ vector
            parts.append(self._plaintext(norm, scale * scale))
        return parts

    def distances(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances for opened scores, elementwise; infinite where no pair of embeddings has such a score.

        Whoever encrypts can make a vector longer than its embedding, and so nearer to everything. That is not seen
        as long as its scores stay in range; beyond it (8 standard deviations of noise) they count as no match.
        """
        least, most = (-1.0, 1.0) if self.metric.normalised else (0.0, 4.0)
        margin = 8 * self.noise
        possible = (scores >= least - margin) & (scores <= most + margin)
        return np.where(possible, distances(scores, self.metric, self.largest_norm), np.inf)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of a full group's opened scores, in units of a score: an upper bound.

        Fresh noise of SEAL's encryption is the rounding of its modulus switch, (1 + s)/12 in variance;
        admission adds an encryption of zero without one, e u + e0 + e1 s; a result adds the rounding of its
        own switch, multiplied by 1, s and s^2. Secrets are uniform ternary, errors centred binomial with
        variance 21/2.
        """
        n, scale, secret, error = self.parameters.degree, self.parameters.scale, 2 / 3, 21 / 2
        fresh = (1 + n * secret) / 12
        admitted = fresh + error * (1 + 2 * n * secret)
        probe_norm2 = 1.0 if self.metric.normalised else 4.0
        product = admitted * self.capacity * (1 + probe_norm2) / scale**2
        switched_scale = scale**2 / self.parameters.data_primes[1]
        square = 2 * n * secret**2  # variance of a coefficient of s^2
        switch = (1 + n * secret + n * square) / 12 / switched_scale**2
        return math.sqrt(product + switch)
