"""Where the elements of a vector and the scores of a block lie in polynomials.

A vector of d elements (padded to a power of two) is split d = d1 d2; element m = i + d1 k, i < d1, k < d2. A *block* of
d1 ciphertexts, its columns, holds N/d2 templates: column i has element (i, k) of the template at coefficient p in
coefficient p + d1 k, p = a + d b with a < d1. A probe is q(x^-1) = sum_m q_m x^-m, x^-e being -x^(N-e), whatever
it meets; with Q_i = sum_k q_(i,k) x^(-d1 k), coefficient p of sum_i column_i Q_i is exactly <t, q>.

One column (d1 = 1) is a *group* of the open tail: t(x) = sum_m t_m x^m at x^(d b), and Q_0 is the probe itself. More
columns need an expanded probe (`expansion`). The last positions of a block stay empty for good: the key holder checks
that they open to zero (threat model, rule 4).

For the euclidean metric a second polynomial carries |t|^2 (|q|^2) at the scale of a product in its coefficient 0,
and the probe holds -2q, so that the sum is |t - q|^2. docs/engine.md draws all this and derives the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

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


class UnknownShape(InvalidInput):
    """No block of that many columns is used for the gallery's dimension."""


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
        rotations: how often ciphertexts may have been moved to another key version: noise is added each time. Who opens
            them knows it; nothing else depends on it.
    """

    parameters: ParameterSet
    dimension: int
    metric: Metric
    largest_norm: float = 1.0
    rotations: int = 0

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

    def under(self, version: int) -> Layout:
        """The same for what is under a numbered version of a key: moved there from each before it, at most."""
        return replace(self, rotations=version - 1)

    @cached_property
    def stride(self) -> int:
        """d: coefficients between two positions."""
        return max(16, 1 << (self.dimension - 1).bit_length())

    @property
    def group(self) -> Shape:
        """The shape of the open tail."""
        return self.shape(1)

    def shape(self, columns: int) -> Shape:
        """The shape of blocks of that many columns.

        Raises:
            UnknownShape: there is none.
        """
        if columns != 1 and columns not in _sealed_columns(self):
            raise UnknownShape("no block of this gallery has that many columns", columns=columns)
        return _shape(self, columns)

    @property
    def sealed_shapes(self) -> tuple[Shape, ...]:
        """The shapes of sealed blocks, fewest columns first."""
        return tuple(_shape(self, columns) for columns in _sealed_columns(self))

    def best_shape(self, templates: int) -> Shape:
        """The sealed shape that searches that many templates fastest.

        A search costs one key switch a column, and a result and a pass over the columns for each block: few columns are
        cheap to expand and give sparse results. The constants are measured (docs/engine.md); only their ratio counts.
        """

        def cost_us(shape: Shape) -> float:
            blocks = max(1.0, templates / shape.capacity)  # not whole ones, so that it only ever grows
            return shape.columns * _SWITCH_US + blocks * (_RESULT_US + shape.columns * _COLUMN_US)

        return min(self.sealed_shapes, key=cost_us)

    @property
    def parts(self) -> int:
        """Ciphertexts of a template or a probe: 2 for the euclidean metric, else 1."""
        return 1 if self.metric.normalised else 2

    def checked(self, embedding: NDArray[np.float64]) -> NDArray[np.float64]:
        """An embedding (dimension,) as floats.

        Raises:
            WrongDimension: it has another number of elements.
        """
        vector = np.asarray(embedding, np.float64)
        if vector.shape != (self.dimension,):
            raise WrongDimension(
                f"an embedding of {vector.size} elements where the gallery has {self.dimension}: "
                "use the gallery's model",
                expected=self.dimension,
            )
        return vector

    def _scaled(self, embedding: NDArray[np.float64]) -> NDArray[np.float64]:
        vector = self.checked(embedding)
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
        coefficients = np.zeros(self.parameters.degree)
        coefficients[: self.dimension] = vector
        return [self._plaintext(coefficients, self.parameters.template_scale), *self._norm(vector)]

    def _norm(self, vector: NDArray[np.float64]) -> list[Plaintext]:
        if self.parts == 1:
            return []
        norm = np.zeros(self.parameters.degree)
        norm[0] = vector @ vector
        return [self._plaintext(norm, self.parameters.product_scale)]

    def probe(self, embedding: NDArray[np.float64]) -> list[Plaintext]:
        """Plaintexts of a probe; arguments and errors as for `template`."""
        vector = self._scaled(embedding)
        n = self.parameters.degree
        weights = vector if self.metric.normalised else -2.0 * vector
        coefficients = np.zeros(n)
        coefficients[0] = weights[0]
        coefficients[n - np.arange(1, self.dimension)] = -weights[1:]
        return [self._plaintext(coefficients, self.parameters.probe_scale), *self._norm(vector)]

    def block(self, shape: Shape, embeddings: NDArray[np.float64]) -> list[Plaintext]:
        """Plaintexts of a block that is encrypted as it is: its columns, then the norms if the metric has any.

        Args:
            shape: the block's shape.
            embeddings: (n, dimension) for the first n positions, n at most its capacity.

        Raises:
            WrongDimension, EmbeddingNotFinite, ZeroEmbedding, EmbeddingTooLong: see there.
        """
        if not 0 < len(embeddings) <= shape.capacity:
            raise ValueError(f"a block of this shape holds 1 to {shape.capacity} templates")
        vectors = np.zeros((len(embeddings), self.stride))
        vectors[:, : self.dimension] = [self._scaled(embedding) for embedding in embeddings]
        at = shape.coefficients[: len(vectors)]
        columns = np.zeros((shape.columns, self.parameters.degree))
        for k in range(shape.rows):
            columns[:, at + shape.columns * k] = vectors[:, k * shape.columns : (k + 1) * shape.columns].T
        plaintexts = [self._plaintext(column, self.parameters.template_scale) for column in columns]
        if self.parts == 2:
            norms = np.zeros(self.parameters.degree)
            norms[at] = (vectors**2).sum(axis=1)
            plaintexts.append(self._plaintext(norms, self.parameters.product_scale))
        return plaintexts

    def distances(self, scores: NDArray[np.float64], dither: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Distances for opened scores, elementwise; infinite where no pair of embeddings has such a score.

        Whoever encrypts can make a vector longer than its embedding, and so nearer to everything. That is not seen
        as long as its scores stay in range; beyond it (8 standard deviations of noise) they count as no match.

        Args:
            scores: any shape.
            dither: as many, added to scores that are in range; it moves none out of it.
        """
        least, most = (-1.0, 1.0) if self.metric.normalised else (0.0, 4.0)
        margin = 8 * self.noise
        possible = (scores >= least - margin) & (scores <= most + margin)
        if dither is not None:
            scores = np.clip(scores + dither, least, most)
        return np.where(possible, distances(scores, self.metric, self.largest_norm), np.inf)

    @cached_property
    def noise(self) -> float:
        """The largest of the shapes' `noise`."""
        return max(shape.noise for shape in (self.group, *self.sealed_shapes))


_CHECKS = 64  # positions of a sealed block that stay empty
_LARGEST_COLUMNS = 128  # log2 of it is the number of Galois keys
_SWITCH_US, _RESULT_US, _COLUMN_US = 170.0, 250.0, 3.0


@dataclass(frozen=True)
class Shape:
    """Where templates lie in a block of ciphertexts, and their scores in its result. Made by `Layout.shape`.

    Attributes:
        layout: the gallery's layout.
        columns: d1, ciphertexts of a block; 1 for a group of the open tail.
    """

    layout: Layout
    columns: int

    @property
    def sealed(self) -> bool:
        """Whether it takes an expanded probe."""
        return self.columns > 1

    @property
    def rows(self) -> int:
        """d2: coefficients of a column that a template takes."""
        return self.layout.stride // self.columns

    @property
    def positions(self) -> int:
        """Positions of a block, check positions included."""
        return self.layout.parameters.degree // self.rows

    @property
    def checks(self) -> int:
        """Positions at the end that stay empty."""
        if self.sealed:
            return _CHECKS
        return 2 if self.positions >= 32 else 1

    @property
    def capacity(self) -> int:
        """Templates a block holds."""
        return self.positions - self.checks

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts of a block: its columns, and one of norms where the metric has them."""
        return self.columns + self.layout.parts - 1

    @cached_property
    def coefficients(self) -> NDArray[np.int64]:
        """(positions,) the coefficient p of each position's score."""
        b, a = np.divmod(np.arange(self.positions, dtype=np.int64), self.columns)
        places: NDArray[np.int64] = a + self.layout.stride * b
        return places

    def taken(self, positions: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The coefficients of each column that belong to the templates at some positions, (capacity,) of them."""
        if positions.shape != (self.capacity,):
            raise ValueError(f"a block of this shape has {self.capacity} positions")
        first = self.coefficients[: self.capacity][positions]
        places: NDArray[np.int64] = (first[:, None] + self.columns * np.arange(self.rows)).ravel()
        return places

    @cached_property
    def noise(self) -> float:
        """Standard deviation of a full block's opened scores, in units of a score: an upper bound (docs/engine.md).

        Fresh noise of SEAL's encryption is the rounding of its modulus switch, (1 + s)/12 in variance; admission adds
        an encryption of zero without one, e u + e0 + e1 s; a rotation adds two of these and an error; a key switch adds
        a rounding like SEAL's, and each level of an expansion doubles the energy of the noise before it; a result adds
        the rounding of its own switch, multiplied by 1, s and s^2. Secrets are uniform ternary, errors centred binomial
        with variance 21/2.
        """
        parameters, d1 = self.layout.parameters, self.columns
        n, secret, error = parameters.degree, 2 / 3, 21 / 2
        rounding = (1 + n * secret) / 12
        zero = error * (1 + 2 * n * secret)
        admitted = rounding + zero
        stored = admitted + self.layout.rotations * (2 * zero + error)
        deepest = _sealed_columns(self.layout)[-1]
        of_column = n / self.layout.stride * stored + (d1**2 * rounding if self.sealed else 0)
        of_leaf = admitted / d1 + (deepest**2 / d1 * rounding if self.sealed else 0)
        probe_norm2 = 1.0 if self.layout.metric.normalised else 4.0
        product = of_column * probe_norm2 / parameters.template_scale**2
        product += self.positions * of_leaf / parameters.probe_scale**2
        square = 2 * n * secret**2  # variance of a coefficient of s^2
        switched_scale = parameters.product_scale / parameters.data_primes[1]
        switch = (1 + n * secret + n * square) / 12 / switched_scale**2
        return math.sqrt(product + switch)


@lru_cache(maxsize=256)
def _shape(layout: Layout, columns: int) -> Shape:
    return Shape(layout, columns)


@lru_cache(maxsize=64)
def _sealed_columns(layout: Layout) -> tuple[int, ...]:
    """Powers of two up to d with at least as many places as check positions."""
    most = min(_LARGEST_COLUMNS, layout.stride)
    least = 2 * _CHECKS * layout.stride // layout.parameters.degree
    return tuple(1 << i for i in range(1, most.bit_length()) if 1 << i >= max(2, least))
