"""Compute's side: blocks of templates, expanded probes, and results that give nothing but scores away.

Everything here works with public keys and ciphertexts. A result leaves compute only through `Evaluator.score`, which
does three things to the raw product (threat model, rules 1 to 3):

1. It adds a single-use encryption of zero of three polynomials (`zeros`). Without it the product's c2 = t1 q1 lets a
   key holder who knows q divide the templates out.
2. It switches to one prime, which halves the bytes.
3. It adds a uniform mask wherever there is no requested score: the other coefficients are cross-correlations.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels, product, renewal, switching
from sealface.cipher.layout import Layout, Shape
from sealface.cipher.product import Words
from sealface.cipher.randomness import Randomness, derived
from sealface.cipher.renewal import Blinding
from sealface.cipher.ring import Residues
from sealface.cipher.switching import monomial
from sealface.cipher.wire import MalformedCiphertext, pack, packed_size, unpack
from sealface.cipher.zeros import Zero, Zeros, add
from sealface.errors import WrongState

RESULT_POLYNOMIALS = 3


class EvaluationKeyMissing(WrongState):
    """Sealed blocks need a Galois key that the gallery's key does not have."""


@dataclass(frozen=True)
class Probe:
    """An admitted probe: (parts, 2, limbs, N)."""

    residues: Residues


@dataclass(frozen=True)
class Block:
    """Templates that are scored together.

    Attributes:
        shape: where they lie.
        columns: as `product.arrange` makes them.
        norms: for the euclidean metric |t|^2 at each score's coefficient, (2, limbs, N).
    """

    shape: Shape
    columns: Words
    norms: Residues | None

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.columns.nbytes + (0 if self.norms is None else self.norms.nbytes)


@dataclass(frozen=True)
class Leaves:
    """Probes as blocks of one shape are multiplied with.

    Attributes:
        words: (probes, ...) as `product.arrange` makes them.
        norms: for the euclidean metric |q|^2 at each score's coefficient, (probes, 2, limbs, N).
    """

    words: Words
    norms: Residues | None


def template_size(layout: Layout) -> int:
    """Bytes of a template or a probe on the wire."""
    parameters = layout.parameters
    return packed_size(2 * layout.parts, parameters.degree, parameters.data_primes)


def block_size(shape: Shape) -> int:
    """Bytes of a block on the wire and in the record."""
    parameters = shape.layout.parameters
    return packed_size(2 * shape.ciphertexts, parameters.degree, parameters.data_primes)


def block_memory(shape: Shape) -> int:
    """Bytes of a block in memory."""
    parameters = shape.layout.parameters
    residues = 2 * len(parameters.data_primes) * parameters.degree
    return residues * (4 * shape.columns + 8 * (shape.layout.parts - 1))


def result_size(layout: Layout) -> int:
    """Bytes of a result on the wire: three polynomials modulo the first prime."""
    return packed_size(RESULT_POLYNOMIALS, layout.parameters.degree, layout.parameters.data_primes[:1])


def parse(data: bytes, layout: Layout, ciphertexts: int | None = None) -> Residues:
    """A template or probe, or another number of ciphertexts, from the wire: (ciphertexts, 2, limbs, N).

    Raises:
        MalformedCiphertext: wrong length, a residue out of range, or nothing is hidden (c1 = 0).
    """
    parameters = layout.parameters
    count = layout.parts if ciphertexts is None else ciphertexts
    residues = unpack(data, 2 * count, parameters.degree, parameters.data_primes)
    residues = residues.reshape(count, 2, len(parameters.data_primes), parameters.degree)
    if transparent(residues[:, 1]):
        raise MalformedCiphertext("the ciphertext hides nothing: encrypt with the gallery's public key")
    return residues


def transparent(residues: Residues) -> bool:
    """Whether a polynomial in NTT form that should be uniform, with N/p = 4e-6 zeros, is mostly zeros."""
    return bool((np.count_nonzero(residues == 0, axis=-1) > 8).any())


@lru_cache(maxsize=16)
def _indicator(shape: Shape) -> Residues:
    """1 at the coefficient of each score that is not a check, in NTT form (limbs, N)."""
    ones = np.zeros(shape.layout.parameters.degree, np.int64)
    ones[shape.coefficients[: shape.capacity]] = 1
    return np.stack([kernels.ntt(ones, p) for p in shape.layout.parameters.data_primes])


class Evaluator:
    """Homomorphic work under one public key. Safe for several threads.

    Args:
        layout: the gallery's layout.
        public: the public key (2, limbs, N), special prime included or not.
        evaluation: Galois keys (2, 2, limbs, N) by element, special prime included; none are needed for groups alone.
        threads: how many an expansion may use.
    """

    def __init__(
        self, layout: Layout, public: Residues, evaluation: Mapping[int, Residues] | None = None, threads: int = 1
    ) -> None:
        self._layout = layout
        self._primes = layout.parameters.data_primes
        self._moduli = np.array(self._primes, np.uint64)[:, None]
        self._key = np.ascontiguousarray(public[:, : len(self._primes)])
        self._evaluation = evaluation or {}
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "expand") if threads > 1 else None
        self._scratch: dict[int, list[list[Words]]] = defaultdict(
            list
        )  # by leaves; a new page costs as much as its use
        self.zeros = Zeros(self._key, self._primes)

    def admit(self, template: bytes) -> bytes:
        """A template as it may be stored: validated and randomised again, its sender's choices gone.

        Raises:
            MalformedCiphertext: see `parse`.
        """
        return pack(self._randomise(parse(template, self._layout)), self._primes)

    def admit_probe(self, probe: bytes, seed: bytes | None = None) -> Probe:
        """A probe as it may be multiplied: validated and randomised again, by a seed where it is to be repeated."""
        return Probe(self._randomise(parse(probe, self._layout), seed))

    def admit_block(self, shape: Shape, block: bytes) -> bytes:
        """A block that was encrypted as it is, as it may be stored; see `admit`."""
        return pack(self._randomise(parse(block, self._layout, shape.ciphertexts)), self._primes)

    def assemble(self, templates: Mapping[int, bytes], onto: Block | None = None) -> Block:
        """A group of stored templates, by position, added to those of another group at other positions.

        Raises:
            MalformedCiphertext: see `parse`.
        """
        group = self._layout.group
        _check_positions(group, templates)
        total = self._sum(templates)
        words = product.arrange(total[:1])
        norms = total[1] if self._layout.parts == 2 else None
        if onto is not None:
            moduli = np.array(self._primes, np.uint32)[:, None, None, None, None]
            sums = words + onto.columns  # below 2^31
            words = np.minimum(sums, sums - moduli)
            norms = None if norms is None or onto.norms is None else add(norms, onto.norms, self._moduli)
        return Block(group, words, norms)

    def seal(self, shape: Shape, templates: Mapping[int, bytes], pause: Callable[[], None] = lambda: None) -> bytes:
        """A sealed block of stored templates, by position: one tree for each group of it (docs/engine.md).

        Args:
            shape: a sealed shape.
            templates: at most its capacity.
            pause: called now and then, so that work in the background can step aside, or stop by an exception.

        Raises:
            MalformedCiphertext: see `parse`.
            EvaluationKeyMissing: the gallery's key has no Galois keys for this shape.
        """
        _check_positions(shape, templates)
        if not templates:
            raise ValueError("a block of nothing hides nothing")
        n, count = self._layout.parameters.degree, shape.columns
        columns = np.zeros((count, 2, len(self._primes), n), np.uint32)
        norms = np.zeros((2, len(self._primes), n), np.uint64)
        for number in range(count):
            members = {at // count: data for at, data in templates.items() if at % count == number}
            if not members:
                continue
            pause()
            total = self._sum(members)
            shift = monomial(number, n, self._primes)
            for nodes in self._levels(total[0], count):
                if len(nodes) == count:
                    switching.add_shifted(nodes, shift, columns, self._primes)
            if self._layout.parts == 2:
                for part, sums in zip(total[1], norms, strict=True):
                    sums[:] = kernels.multiply_add(part, shift, sums, self._primes)
        data = pack(columns, self._primes)
        return data + pack(norms, self._primes) if self._layout.parts == 2 else data

    def blind(self, shape: Shape, block: bytes, count: int = 1) -> tuple[bytes, Blinding]:
        """A stored block as the key holder may open it, and what `unblind` takes off again; see `renewal`.

        Args:
            shape: of the block; of single templates a group's.
            block: the block, or some blocks or templates one after the other.
            count: how many.

        Raises:
            MalformedCiphertext: see `parse`.
        """
        residues = self._randomise(parse(block, self._layout, count * shape.ciphertexts))
        blinded, blinding = renewal.blind(residues, self._primes)
        return pack(blinded, self._primes), blinding

    def unblind(
        self, shape: Shape, renewed: bytes, blinding: Blinding, cleared: NDArray[np.bool_], count: int = 1
    ) -> bytes:
        """A block that the key holder has renewed under this evaluator's key, as it may be stored.

        Args:
            shape: of the block.
            renewed: the key holder's answer.
            blinding: of this block, used this once.
            cleared: (capacity,) positions that the key holder was told to clear.
            count: see `blind`.

        Raises:
            MalformedCiphertext: see `parse`.
        """
        residues = parse(renewed, self._layout, count * shape.ciphertexts)
        unblinded = renewal.unblind(residues, blinding, shape.taken(cleared), self._primes)
        return pack(self._randomise(unblinded), self._primes)

    def load(self, shape: Shape, block: bytes) -> Block:
        """A stored block, ready to be scored.

        Raises:
            MalformedCiphertext: see `parse`.
        """
        residues = parse(block, self._layout, shape.ciphertexts)
        norms = residues[-1].copy() if self._layout.parts == 2 else None
        return Block(shape, product.arrange(residues[: shape.columns]), norms)

    def expand(self, probes: Sequence[Probe], shapes: Iterable[Shape], deepest: int = 1) -> dict[Shape, Leaves]:
        """Probes as blocks of some shapes need them; one tree a probe, whatever the shapes.

        Args:
            probes: admitted ones.
            shapes: which.
            deepest: columns of the deepest shape that any of a search needs; bits depend on it, and nothing else does.

        Raises:
            EvaluationKeyMissing: the gallery's key has no Galois keys for these shapes.
        """
        wanted = sorted(set(shapes), key=lambda shape: shape.columns)
        n, limbs = self._layout.parameters.degree, len(self._primes)
        words = {
            shape: np.empty((len(probes), limbs, n // product.LANES, shape.columns, 2, product.LANES), np.uint32)
            for shape in wanted
        }
        deepest = max(deepest, wanted[-1].columns if wanted else 1)
        for number, probe in enumerate(probes):
            q = probe.residues[0]
            for shape in wanted:
                if not shape.sealed:
                    product.arrange(q[None], words[shape][number])
            if deepest == 1:
                continue
            # exponents -m become d1 - 1 - m, so that the leaf of residue d1 - 1 - i is Q_i
            for nodes in self._levels(self._shifted(q, deepest - 1), deepest):
                for shape in wanted:
                    if shape.sealed and shape.columns == len(nodes):
                        leaves = self._rescaled(nodes, shape.columns, deepest)
                        product.arrange(leaves[::-1], words[shape][number])
        return {shape: Leaves(words[shape], self._norms(probes, shape)) for shape in wanted}

    def score(
        self,
        blocks: Sequence[Block],
        leaves: Leaves,
        requested: Sequence[NDArray[np.bool_]],
        multiplied: list[float] | None = None,
        seeds: Sequence[Sequence[bytes]] | None = None,
    ) -> list[list[bytes]]:
        """The scores of blocks of one shape, as results that tell their opener nothing else; in one pass.

        Args:
            blocks: at least one.
            leaves: the probes, expanded for their shape.
            requested: for each block (capacity,) which positions are asked for.
            multiplied: the seconds that the products took are appended.
            seeds: by probe and block, of randomness that is to be repeated; each is used for this result alone.

        Returns:
            For each probe and block `result_size` bytes: three polynomials modulo the first prime.
        """
        started = time.perf_counter()
        products = product.scores([block.columns for block in blocks], leaves.words, self._primes)
        if multiplied is not None:
            multiplied.append(time.perf_counter() - started)
        return [
            [
                self._finish(
                    block,
                    raw,
                    None if leaves.norms is None else leaves.norms[number],
                    wanted,
                    None if seeds is None else seeds[number][place],
                )
                for place, (block, raw, wanted) in enumerate(zip(blocks, of_probe, requested, strict=True))
            ]
            for number, of_probe in enumerate(products)
        ]

    def _finish(
        self, block: Block, raw: Words, norms: Residues | None, requested: NDArray[np.bool_], seed: bytes | None
    ) -> bytes:
        shape = block.shape
        if requested.shape != (shape.capacity,):
            raise ValueError(f"a block of this shape has {shape.capacity} positions to ask for")
        zero = self._zero(seed)
        result = kernels.add_words(raw, zero.product, self._primes)
        if norms is not None and block.norms is not None:
            result[:2] = add(result[:2], add(block.norms, norms, self._moduli), self._moduli)
        everything = shape.rows == 1 and bool(requested.all())
        mask = None if everything else self._mask(shape, requested, seed and derived(seed, b"mask"))
        return pack(self._switch(result, zero.errors.astype(np.int64), mask)[:, None, :], self._primes[:1])

    def _norms(self, probes: Sequence[Probe], shape: Shape) -> Residues | None:
        if self._layout.parts == 1:
            return None
        ones = _indicator(shape)
        none = np.zeros_like(ones)
        return np.stack(
            [[kernels.multiply_add(c, ones, none, self._primes) for c in probe.residues[1]] for probe in probes]
        )

    def _sum(self, templates: Mapping[int, bytes]) -> Residues:
        """Templates at their positions in a group, added up: (parts, 2, limbs, N)."""
        layout, n = self._layout, self._layout.parameters.degree
        shape = (layout.parts, 2, len(self._primes), n)
        total = np.zeros(shape, np.uint64)
        for position, template in templates.items():
            parsed = parse(template, layout)
            shift = monomial(position * layout.stride, n, self._primes)
            for polynomial, sums in zip(parsed.reshape(-1, *shift.shape), total.reshape(-1, *shift.shape), strict=True):
                sums[:] = kernels.multiply_add(polynomial, shift, sums, self._primes)
        return total

    def _shifted(self, ciphertext: Residues, exponent: int) -> Residues:
        shift = monomial(exponent, ciphertext.shape[-1], self._primes)
        none = np.zeros_like(shift)
        return np.stack([kernels.multiply_add(polynomial, shift, none, self._primes) for polynomial in ciphertext])

    def _split(self, ciphertext: Residues, count: int) -> Words:
        """The part of each residue r of exponents modulo `count`, divided by x^r: (count, 2, limbs, N)."""
        return next(nodes.copy() for nodes in self._levels(ciphertext, count) if len(nodes) == count)

    def _levels(self, ciphertext: Residues, count: int) -> Iterator[Words]:
        """The nodes of each level of the tree, 1 to `count`; the last are exact, others times their share of it.

        A level lies in memory that is written over when the next but one, or another tree, is made.
        """
        parameters, n = self._layout.parameters, self._layout.parameters.degree
        inverse = np.array([pow(count, -1, p) for p in self._primes], np.uint64)[:, None]
        nodes: Words = (ciphertext * inverse % self._moduli).astype(np.uint32)[None]
        depth = count.bit_length() - 1
        free = self._scratch[count]
        try:
            held = free.pop()
        except IndexError:  # another thread has it
            held = [np.empty((count >> i, *ciphertext.shape), np.uint32) for i in range(2)]
        try:
            for level in range(depth):
                yield nodes
                if switching.element_of_level(level, n) not in self._evaluation:
                    raise EvaluationKeyMissing("the key has no Galois keys: make a gallery with a new key")
                out = held[(depth - level - 1) % 2][: 2 * len(nodes)]

                def work(part: range, nodes: Words = nodes, level: int = level, out: Words = out) -> None:
                    switching.split_level(nodes, level, self._evaluation, parameters, out, part)

                self._in_parts(work, len(nodes))
                nodes = out
            yield nodes
        finally:
            free.append(held)

    def _in_parts(self, work: Callable[[range], None], count: int) -> None:
        if self._pool is None or count < self._threads:
            work(range(count))
            return
        bounds = [count * i // self._threads for i in range(self._threads + 1)]
        list(self._pool.map(lambda i: work(range(bounds[i], bounds[i + 1])), range(self._threads)))

    def _rescaled(self, nodes: Words, columns: int, deepest: int) -> Words:
        """Nodes of a level above the deepest as leaves: exact, and without the factor x^(deepest - columns)."""
        if columns == deepest:
            return nodes
        n = nodes.shape[-1]
        shift = monomial(columns - deepest, n, self._primes) * np.uint64(deepest // columns) % self._moduli
        out = np.zeros_like(nodes)
        switching.add_shifted(nodes, shift, out, self._primes)
        return out

    def _randomise(self, residues: Residues, seed: bytes | None = None) -> Residues:
        n = self._layout.parameters.degree
        out = np.empty_like(residues)
        for number, (part, randomised) in enumerate(zip(residues, out, strict=True)):
            draw = Randomness(seed and derived(seed, bytes([number])))
            small = np.stack([draw.ternary(n), draw.error(n), draw.error(n)])
            drawn = np.stack([kernels.ntt(small, p) for p in self._primes], axis=-2)
            sums = add(part, drawn[1:], self._moduli)
            for key, polynomial, added in zip(self._key, sums, randomised, strict=True):
                added[:] = kernels.multiply_add(key, drawn[0], polynomial, self._primes)
        return out

    def _zero(self, seed: bytes | None) -> Zero:
        return self.zeros.take() if seed is None else self.zeros.draw(derived(seed, b"zero"))

    def _switch(self, residues: Residues, errors: NDArray[np.int64], mask: Residues | None) -> Residues:
        """Add the errors, divide by the second prime and round, add the mask: (3, 2, N) to (3, N) modulo the first."""
        return kernels.switch(residues, self._primes, errors, mask)

    def _mask(self, shape: Shape, requested: NDArray[np.bool_], seed: bytes | None) -> Residues:
        """Coefficients (N,): uniform, but 0 at the requested positions and the check positions."""
        p, n = self._primes[0], self._layout.parameters.degree
        mask = Randomness(seed).uniform(n, p)
        kept: NDArray[Any] = np.append(requested, np.ones(shape.checks, bool))
        mask[shape.coefficients[kept]] = 0
        return mask


def _check_positions(shape: Shape, templates: Iterable[int]) -> None:
    for position in templates:
        if not 0 <= position < shape.capacity:
            raise ValueError(f"position {position} is outside a block of {shape.capacity}")
