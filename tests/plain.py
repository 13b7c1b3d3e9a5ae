"""A `Scheme` that encrypts nothing, for tests of services: vectors in the clear, fast.

Independent of the ring: scores are float64 dot products. What it keeps of a real cipher is what services can
get wrong: bytes carry the key and the layout they were made for, a checksum, and a nonce, so that no two are
equal; what meets a foreign key, or a Galois key of another version, turns into noise; positions that were not
requested open as random, and so does a result opened as one of another shape; check positions open to zero unless
a result was tampered with or made under another key; a block is blinded bit by bit. `sealface` does not install it and
cannot import it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.evaluator import EvaluationKeyMissing
from sealface.cipher.layout import Layout, Shape
from sealface.cipher.opening import Opened
from sealface.cipher.parameters import ParameterSet
from sealface.cipher.scheme import KeyMaterial
from sealface.cipher.wire import MalformedCiphertext

_SECRET, _PUBLIC, _EVALUATION, _TEMPLATE, _PROBE, _RESULT, _BLOCK, _BLINDED = (b"PLN%d" % i for i in range(8))
_KEY, _NONCE, _DIGEST = 16, 8, 8
_HEADER = 4 + _KEY + _DIGEST + _NONCE
_LEVELS = 7  # of the tree: one evaluation key each

Vector = NDArray[np.float64]


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_DIGEST]


def _described(layout: Layout, columns: int) -> bytes:
    described = (layout.parameters.name, layout.dimension, layout.metric.value, layout.largest_norm, columns)
    return _digest(repr(described).encode())


def _random(count: int, seed: bytes | None = None) -> Vector:
    """Uniform in +-8, about what a masked coefficient of CKKS opens to."""
    drawn = os.urandom(8 * count) if seed is None else hashlib.shake_256(seed).digest(8 * count)
    return np.frombuffer(drawn, "<i8") / 2.0**60


def _element(parameters: ParameterSet, level: int) -> int:
    return parameters.degree // (1 << level) + 1


def _key_bytes(kind: bytes, parameters: ParameterSet, key: bytes) -> bytes:
    body = kind + _digest(parameters.name.encode()) + key
    return body + _digest(body)


def _key(kind: bytes, parameters: ParameterSet, data: bytes) -> bytes:
    key = data[-_DIGEST - _KEY : -_DIGEST]
    if data != _key_bytes(kind, parameters, key) or len(key) != _KEY:
        raise MalformedCiphertext("the bytes are no such key of this parameter set")
    return key


def _seal(kind: bytes, key: bytes, layout: Layout, columns: int, values: Vector, nonce: bytes | None = None) -> bytes:
    fresh = os.urandom(_NONCE) if nonce is None else nonce
    body = kind + key + _described(layout, columns) + fresh + values.astype("<f8").tobytes()
    return body + _digest(body)


@dataclass(frozen=True)
class _Sealed:
    key: bytes
    intact: bool
    values: Vector


def _unseal(kind: bytes, layout: Layout, columns: int, count: int, data: bytes) -> _Sealed:
    described = data[len(kind) + _KEY : len(kind) + _KEY + _DIGEST]
    if (
        len(data) != _HEADER + 8 * count + _DIGEST
        or data[: len(kind)] != kind
        or described != _described(layout, columns)
    ):
        raise MalformedCiphertext("the bytes are no ciphertext of this kind and gallery")
    values = np.frombuffer(data, "<f8", count, _HEADER)
    intact = data[-_DIGEST:] == _digest(data[:-_DIGEST])
    return _Sealed(data[len(kind) : len(kind) + _KEY], intact, values)


def _parts(data: bytes, count: int) -> list[bytes]:
    """Bytes in that many parts of one size."""
    size, rest = divmod(len(data), count)
    if rest:
        raise MalformedCiphertext("the bytes are not that many ciphertexts")
    return [data[at : at + size] for at in range(0, len(data), size)] if size else [b""] * count


def _xor(values: Vector, mask: bytes) -> Vector:
    """Values with their bits turned over where the mask's are: exact, unlike a sum."""
    bits = values.view("<u8") ^ np.frombuffer(mask, "<u8")
    return bits.view("<f8")


def _vector(layout: Layout, embedding: Vector) -> Vector:
    """The embedding as scores see it; raises what the real layout raises."""
    return layout._scaled(embedding)


def _norms(layout: Layout, vectors: Vector) -> Vector | float:
    """What is added to a product for each vector (..., d)."""
    return 0.0 if layout.metric.normalised else (vectors**2).sum(axis=-1)


@dataclass(frozen=True)
class PlainProbe:
    """An admitted probe."""

    sealed: _Sealed


@dataclass(frozen=True)
class PlainBlock:
    """Templates by position: (capacity, d), zero where there is none, and whose keys they are under."""

    shape: Shape
    keys: frozenset[bytes]
    vectors: Vector
    norms: Vector | float


@dataclass(frozen=True)
class PlainLeaves:
    """Probes (n, d) for one shape, and the keys of each."""

    keys: list[bytes]
    vectors: Vector
    norms: Vector | float


class PlainZeros:
    """Nonces of results, each handed out once."""

    def __init__(self) -> None:
        self._pool: deque[bytes] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pool)

    def add_one(self) -> None:
        drawn = os.urandom(_NONCE)
        with self._lock:
            self._pool.append(drawn)

    def take(self) -> bytes:
        with self._lock:
            return self._pool.popleft() if self._pool else os.urandom(_NONCE)


class _Encryptor:
    def __init__(self, layout: Layout, key: bytes) -> None:
        self._layout, self._key = layout, key

    def template(self, embedding: Vector) -> bytes:
        return _seal(_TEMPLATE, self._key, self._layout, 1, _vector(self._layout, embedding))

    def probe(self, embedding: Vector) -> bytes:
        return _seal(_PROBE, self._key, self._layout, 1, _vector(self._layout, embedding))

    def block(self, shape: Shape, embeddings: Vector) -> bytes:
        if not 0 < len(embeddings) <= shape.capacity:
            raise ValueError(f"a block of this shape holds 1 to {shape.capacity} templates")
        vectors = np.zeros((shape.capacity, self._layout.dimension))
        vectors[: len(embeddings)] = [_vector(self._layout, embedding) for embedding in embeddings]
        return _seal(_BLOCK, self._key, self._layout, shape.columns, vectors)


class _Evaluator:
    def __init__(self, layout: Layout, key: bytes, evaluation: Mapping[int, bytes]) -> None:
        self._layout, self._key, self._evaluation = layout, key, evaluation
        self.zeros = PlainZeros()

    def _parse(self, kind: bytes, data: bytes, shape: Shape | None = None) -> _Sealed:
        columns, count = (shape.columns, shape.capacity) if shape else (1, 1)
        sealed = _unseal(kind, self._layout, columns, count * self._layout.dimension, data)
        if not sealed.intact:
            raise MalformedCiphertext("the checksum does not match")
        if not sealed.values.view("<u8").any():  # the real one is then transparent
            raise MalformedCiphertext("the ciphertext hides nothing")
        return sealed

    def _split(self, key: bytes, columns: int) -> bytes:
        """The key that a ciphertext is under when it was split: nobody's if a Galois key was another's."""
        parameters = self._layout.parameters
        for level in range(columns.bit_length() - 1):
            found = self._evaluation.get(_element(parameters, level))
            if found is None:
                raise EvaluationKeyMissing("the key has no Galois keys: make a gallery with a new key")
            if found != key:
                return os.urandom(_KEY)
        return key

    def admit(self, template: bytes) -> bytes:
        sealed = self._parse(_TEMPLATE, template)
        return _seal(_TEMPLATE, sealed.key, self._layout, 1, sealed.values)

    def admit_probe(self, probe: bytes, seed: bytes | None = None) -> PlainProbe:
        return PlainProbe(self._parse(_PROBE, probe))

    def admit_block(self, shape: Shape, block: bytes) -> bytes:
        sealed = self._parse(_BLOCK, block, shape)
        return _seal(_BLOCK, sealed.key, self._layout, shape.columns, sealed.values)

    def _placed(self, shape: Shape, templates: Mapping[int, bytes]) -> tuple[Vector, set[bytes]]:
        if not all(0 <= position < shape.capacity for position in templates):
            raise ValueError(f"a position is outside a block of {shape.capacity}")
        vectors, keys = np.zeros((shape.capacity, self._layout.dimension)), set()
        for position, data in templates.items():
            sealed = self._parse(_TEMPLATE, data)
            vectors[position] = sealed.values
            keys.add(sealed.key)
        return vectors, keys

    def assemble(self, templates: Mapping[int, bytes], onto: PlainBlock | None = None) -> PlainBlock:
        shape = self._layout.group
        vectors, keys = self._placed(shape, templates)
        norms = _norms(self._layout, vectors)
        if onto is not None:  # a second template at a position spoils it, as in a real group
            vectors, norms, keys = vectors + onto.vectors, norms + onto.norms, keys | onto.keys
        return PlainBlock(shape, frozenset(keys), vectors, norms)

    def seal(self, shape: Shape, templates: Mapping[int, bytes], pause: Callable[[], None] = lambda: None) -> bytes:
        vectors, keys = self._placed(shape, templates)
        for _ in {position % shape.columns for position in templates}:
            pause()
        key = self._split(keys.pop() if len(keys) == 1 else os.urandom(_KEY), shape.columns)
        return _seal(_BLOCK, key, self._layout, shape.columns, vectors)

    def blind(self, shape: Shape, block: bytes, count: int = 1) -> tuple[bytes, list[bytes]]:
        blinded, blindings = b"", []
        for part in _parts(block, count):
            sealed = self._parse(_BLOCK if shape.sealed else _TEMPLATE, part, shape if shape.sealed else None)
            blindings.append(os.urandom(sealed.values.nbytes))
            blinded += _seal(_BLINDED, sealed.key, self._layout, shape.columns, _xor(sealed.values, blindings[-1]))
        return blinded, blindings

    def unblind(
        self, shape: Shape, renewed: bytes, blinding: list[bytes], cleared: NDArray[np.bool_], count: int = 1
    ) -> bytes:
        stored, kind = b"", _BLOCK if shape.sealed else _TEMPLATE
        for part, blind in zip(_parts(renewed, count), blinding, strict=True):
            sealed = self._parse(_BLINDED, part, shape if shape.sealed else None)
            mask = np.frombuffer(blind, "<u8").reshape(-1, self._layout.dimension) * np.uint64(1)
            if shape.sealed:
                mask[cleared] = 0
            stored += _seal(kind, sealed.key, self._layout, shape.columns, _xor(sealed.values, mask.tobytes()))
        return stored

    def load(self, shape: Shape, block: bytes) -> PlainBlock:
        sealed = self._parse(_BLOCK, block, shape)
        vectors = sealed.values.reshape(shape.capacity, -1)
        return PlainBlock(shape, frozenset((sealed.key,)), vectors, _norms(self._layout, vectors))

    def expand(
        self, probes: Sequence[PlainProbe], shapes: Iterable[Shape], deepest: int = 1
    ) -> dict[Shape, PlainLeaves]:
        wanted = set(shapes)
        deepest = max((shape.columns for shape in wanted), default=deepest)
        vectors = np.array([probe.sealed.values for probe in probes]).reshape(len(probes), self._layout.dimension)
        norms = _norms(self._layout, vectors)
        split = [self._split(probe.sealed.key, deepest) for probe in probes]
        own = [probe.sealed.key for probe in probes]
        return {shape: PlainLeaves(split if shape.sealed else own, vectors, norms) for shape in wanted}

    def score(
        self,
        blocks: Sequence[PlainBlock],
        leaves: PlainLeaves,
        requested: Sequence[NDArray[np.bool_]],
        multiplied: list[float] | None = None,
        seeds: Sequence[Sequence[bytes]] | None = None,
    ) -> list[list[bytes]]:
        started = time.perf_counter()
        # one by one, so that a score's last bit does not depend on who is searched for beside it
        products = [[block.vectors @ vector for vector in leaves.vectors] for block in blocks]
        if multiplied is not None:
            multiplied.append(time.perf_counter() - started)
        return [
            [
                self._finish(block, scores[number], leaves, number, wanted, seeds and seeds[number][place])
                for place, (block, scores, wanted) in enumerate(zip(blocks, products, requested, strict=True))
            ]
            for number in range(len(leaves.keys))
        ]

    def _finish(
        self,
        block: PlainBlock,
        scores: Vector,
        leaves: PlainLeaves,
        number: int,
        requested: NDArray[np.bool_],
        seed: bytes | None,
    ) -> bytes:
        shape = block.shape
        if requested.shape != (shape.capacity,):
            raise ValueError(f"a block of this shape has {shape.capacity} positions to ask for")
        if not self._layout.metric.normalised:
            scores = np.maximum(block.norms + leaves.norms[number] - 2 * scores, 0)
        if {leaves.keys[number], *block.keys} == {self._key}:
            values = np.r_[_random(shape.capacity, seed), np.zeros(shape.checks)]
            values[: shape.capacity][requested] = scores[requested]
        else:  # ciphertexts of another key make the whole product noise
            values = _random(shape.positions, seed)
        nonce = self.zeros.take() if seed is None else _digest(seed)
        return _seal(_RESULT, self._key, self._layout, shape.columns, values, nonce)


class _Opener:
    def __init__(self, layout: Layout, key: bytes) -> None:
        self._layout, self._key = layout, key
        shapes = (layout.group, *layout.sealed_shapes)
        self._shapes = {_described(layout, shape.columns): shape for shape in shapes}

    def open(self, shape: Shape, results: Sequence[bytes]) -> Opened:
        values = np.empty((len(results), shape.positions))
        for row, data in zip(values, results, strict=True):
            made = self._shapes.get(data[4 + _KEY : 4 + _KEY + _DIGEST], shape)
            sealed = _unseal(_RESULT, self._layout, made.columns, made.positions, data)
            genuine = sealed.intact and sealed.key == self._key and made == shape
            row[:] = sealed.values if genuine else _random(shape.positions)
        return Opened(values[:, : shape.capacity], values[:, shape.capacity :])

    def genuine(self, shape: Shape, checks: Vector) -> bool:
        return bool((checks == 0).all())

    def renew(
        self,
        shape: Shape,
        blinded: bytes,
        cleared: NDArray[np.bool_],
        target: _Opener | None = None,
        count: int = 1,
    ) -> bytes:
        renewed, held = b"", shape.capacity if shape.sealed else 1
        for part in _parts(blinded, count):
            sealed = _unseal(_BLINDED, self._layout, shape.columns, held * self._layout.dimension, part)
            values = sealed.values.reshape(held, -1).copy()
            if shape.sealed:
                values[cleared] = 0
            genuine = sealed.intact and sealed.key == self._key
            key = (target or self)._key if genuine else os.urandom(_KEY)  # nobody's: noise
            renewed += _seal(_BLINDED, key, self._layout, shape.columns, values)
        return renewed


class Plain:
    """See the module's docstring."""

    def warm(self) -> None:
        pass

    def generate(self, parameters: ParameterSet) -> KeyMaterial:
        key = os.urandom(_KEY)
        secret = _key_bytes(_SECRET, parameters, key)
        return KeyMaterial(secret, _key_bytes(_PUBLIC, parameters, key), self.evaluation(parameters, secret))

    def evaluation(self, parameters: ParameterSet, secret: bytes) -> Mapping[int, bytes]:
        material = _key_bytes(_EVALUATION, parameters, _key(_SECRET, parameters, secret))
        return {_element(parameters, level): material for level in range(_LEVELS)}

    def check_public(self, parameters: ParameterSet, public: bytes) -> None:
        _key(_PUBLIC, parameters, public)

    def check_evaluation(self, parameters: ParameterSet, material: bytes) -> None:
        _key(_EVALUATION, parameters, material)

    def check_probe(self, layout: Layout, probe: bytes) -> None:
        _Evaluator(layout, b"", {}).admit_probe(probe)

    def encryptor(self, layout: Layout, public: bytes) -> _Encryptor:
        return _Encryptor(layout, _key(_PUBLIC, layout.parameters, public))

    def evaluator(
        self, layout: Layout, public: bytes, evaluation: Mapping[int, bytes] | None = None, threads: int = 1
    ) -> _Evaluator:
        parameters = layout.parameters
        keys = {element: _key(_EVALUATION, parameters, data) for element, data in (evaluation or {}).items()}
        return _Evaluator(layout, _key(_PUBLIC, parameters, public), keys)

    def opener(self, layout: Layout, secret: bytes) -> _Opener:
        return _Opener(layout, _key(_SECRET, layout.parameters, secret))
