"""A `Scheme` that encrypts nothing, for tests of services: vectors in the clear, fast.

Independent of the ring: scores are float64 dot products. What it keeps of a real cipher is what services can
get wrong: bytes carry the key and the layout they were made for, a checksum, and a nonce, so that no two are
equal; positions that were not requested open as random; check positions open to zero unless a result was
tampered with or made under another key. `sealface` does not install it and cannot import it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Layout
from sealface.cipher.opening import Opened
from sealface.cipher.parameters import ParameterSet
from sealface.cipher.scheme import KeyMaterial
from sealface.cipher.wire import MalformedCiphertext

_SECRET, _PUBLIC, _EVALUATION, _TEMPLATE, _PROBE, _RESULT = (
    b"PLN0",
    b"PLN1",
    b"PLN2",
    b"PLN3",
    b"PLN4",
    b"PLN5",
)
_KEY, _NONCE, _DIGEST = 16, 8, 8


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_DIGEST]


def _shape(layout: Layout) -> bytes:
    described = (layout.parameters.name, layout.dimension, layout.metric.value, layout.largest_norm)
    return _digest(repr(described).encode())


def _random(count: int) -> NDArray[np.float64]:
    """Uniform in +-8, about what a masked coefficient of CKKS opens to."""
    return np.frombuffer(os.urandom(8 * count), "<i8") / 2.0**60


def _key_bytes(kind: bytes, parameters: ParameterSet, key: bytes) -> bytes:
    body = kind + _digest(parameters.name.encode()) + key
    return body + _digest(body)


def _key(kind: bytes, parameters: ParameterSet, data: bytes) -> bytes:
    key = data[-_DIGEST - _KEY : -_DIGEST]
    if data != _key_bytes(kind, parameters, key) or len(key) != _KEY:
        raise MalformedCiphertext("the bytes are no such key of this parameter set")
    return key


def _seal(kind: bytes, key: bytes, layout: Layout, values: NDArray[np.float64]) -> bytes:
    body = kind + key + _shape(layout) + os.urandom(_NONCE) + values.astype("<f8").tobytes()
    return body + _digest(body)


@dataclass(frozen=True)
class _Sealed:
    key: bytes
    intact: bool
    values: NDArray[np.float64]


def _unseal(kind: bytes, layout: Layout, count: int, data: bytes) -> _Sealed:
    start = len(kind) + _KEY + _DIGEST + _NONCE
    shape = data[len(kind) + _KEY : len(kind) + _KEY + _DIGEST]
    if len(data) != start + 8 * count + _DIGEST or data[: len(kind)] != kind or shape != _shape(layout):
        raise MalformedCiphertext("the bytes are no ciphertext of this kind and gallery")
    values = np.frombuffer(data, "<f8", count, start)
    intact = data[-_DIGEST:] == _digest(data[:-_DIGEST])
    return _Sealed(data[len(kind) : len(kind) + _KEY], intact, values)


def _vector(layout: Layout, embedding: NDArray[np.float64]) -> NDArray[np.float64]:
    """The embedding as scores see it; raises what the real layout raises."""
    plaintext = layout.template(embedding)[0]
    return plaintext.coefficients[: layout.dimension] / plaintext.scale


@dataclass(frozen=True)
class PlainProbe:
    """An admitted probe."""

    sealed: _Sealed


@dataclass(frozen=True)
class PlainGroup:
    """Templates by position."""

    sealed: Mapping[int, _Sealed]


class _Encryptor:
    def __init__(self, layout: Layout, key: bytes) -> None:
        self._layout, self._key = layout, key

    def template(self, embedding: NDArray[np.float64]) -> bytes:
        return _seal(_TEMPLATE, self._key, self._layout, _vector(self._layout, embedding))

    def probe(self, embedding: NDArray[np.float64]) -> bytes:
        return _seal(_PROBE, self._key, self._layout, _vector(self._layout, embedding))


class _Evaluator:
    def __init__(self, layout: Layout, key: bytes) -> None:
        self._layout, self._key = layout, key

    def _parse(self, kind: bytes, data: bytes) -> _Sealed:
        sealed = _unseal(kind, self._layout, self._layout.dimension, data)
        if not sealed.intact:
            raise MalformedCiphertext("the checksum does not match")
        return sealed

    def admit(self, template: bytes) -> bytes:
        sealed = self._parse(_TEMPLATE, template)
        return _seal(_TEMPLATE, sealed.key, self._layout, sealed.values)

    def admit_probe(self, probe: bytes) -> PlainProbe:
        return PlainProbe(self._parse(_PROBE, probe))

    def assemble(self, templates: Mapping[int, bytes], onto: PlainGroup | None = None) -> PlainGroup:
        if not all(0 <= position < self._layout.capacity for position in templates):
            raise ValueError(f"a position is outside a group of {self._layout.capacity}")
        held = dict(onto.sealed) if onto else {}
        for position, data in templates.items():
            sealed, before = self._parse(_TEMPLATE, data), held.get(position)
            if before is not None:  # as in a real group, where a second template at a position spoils it
                keys_equal = before.key == sealed.key
                sealed = _Sealed(sealed.key if keys_equal else b"", True, before.values + sealed.values)
            held[position] = sealed
        return PlainGroup(held)

    def score(self, group: PlainGroup, probe: PlainProbe, positions: Collection[int]) -> bytes:
        layout = self._layout
        if not all(0 <= position < layout.capacity for position in positions):
            raise ValueError(f"a position is outside a group of {layout.capacity}")
        values = np.r_[_random(layout.capacity), np.zeros(layout.checks)]
        q = probe.sealed.values
        for position in positions:
            template = group.sealed.get(position)
            t = np.zeros(layout.dimension) if template is None else template.values
            values[position] = t @ q if layout.metric.normalised else ((t - q) ** 2).sum()
        keys = {probe.sealed.key, *(template.key for template in group.sealed.values())}
        if keys != {self._key}:  # ciphertexts of another key make the whole product noise
            values = _random(layout.positions)
        return _seal(_RESULT, self._key, layout, values)


class _Opener:
    def __init__(self, layout: Layout, key: bytes) -> None:
        self._layout, self._key = layout, key

    def open(self, results: list[bytes]) -> Opened:
        layout = self._layout
        values = np.empty((len(results), layout.positions))
        for row, data in zip(values, results, strict=True):
            sealed = _unseal(_RESULT, layout, layout.positions, data)
            genuine = sealed.intact and sealed.key == self._key
            row[:] = sealed.values if genuine else _random(layout.positions)
        return Opened(values[:, : layout.capacity], values[:, layout.capacity :])

    def genuine(self, checks: NDArray[np.float64]) -> bool:
        return bool((checks == 0).all())


class Plain:
    """See the module's docstring."""

    def generate(self, parameters: ParameterSet) -> KeyMaterial:
        key = os.urandom(_KEY)
        return KeyMaterial(
            secret=_key_bytes(_SECRET, parameters, key),
            public=_key_bytes(_PUBLIC, parameters, key),
            evaluation={parameters.degree + 1: _key_bytes(_EVALUATION, parameters, key)},
        )

    def check_public(self, parameters: ParameterSet, public: bytes) -> None:
        _key(_PUBLIC, parameters, public)

    def check_evaluation(self, parameters: ParameterSet, material: bytes) -> None:
        _key(_EVALUATION, parameters, material)

    def encryptor(self, layout: Layout, public: bytes) -> _Encryptor:
        return _Encryptor(layout, _key(_PUBLIC, layout.parameters, public))

    def evaluator(self, layout: Layout, public: bytes) -> _Evaluator:
        return _Evaluator(layout, _key(_PUBLIC, layout.parameters, public))

    def opener(self, layout: Layout, secret: bytes) -> _Opener:
        return _Opener(layout, _key(_SECRET, layout.parameters, secret))
