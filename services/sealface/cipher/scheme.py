"""What services ask of a cipher, and CKKS behind it.

Services take a `Scheme` as an argument. The only implementation in the package is `Ckks`; the tests bring one
without encryption for speed (tests/plain.py), which no configuration can name because it is not installed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels, opening, seal, tail, wire
from sealface.cipher.layout import Layout
from sealface.cipher.opening import Opened
from sealface.cipher.parameters import ParameterSet, parameter_sets


@dataclass(frozen=True)
class KeyMaterial:
    """One version of a key.

    Attributes:
        secret: packed secret key; never leaves the key zone unless its owner is the client.
        public: packed public key.
        evaluation: Galois element -> packed key switching key; public.
    """

    secret: bytes
    public: bytes
    evaluation: Mapping[int, bytes]


class Encryptor(Protocol):
    """The edge's side."""

    def template(self, embedding: NDArray[np.float64]) -> bytes:
        """An encrypted template of an embedding (dimension,)."""

    def probe(self, embedding: NDArray[np.float64]) -> bytes:
        """An encrypted probe of an embedding (dimension,)."""


class Evaluator(Protocol):
    """Compute's side; see `tail.Evaluator`."""

    def admit(self, template: bytes) -> bytes:
        """A template as it may be stored."""

    def admit_probe(self, probe: bytes) -> Any:
        """A probe as it may be scored."""

    def assemble(self, templates: Mapping[int, bytes], onto: Any = None) -> Any:
        """A group of templates, by position, added to those of another group."""

    def score(self, group: Any, probe: Any, positions: Collection[int]) -> bytes:
        """The scores of a group at some positions, sealed to the key holder."""


class Opener(Protocol):
    """The key holder's side; see `opening.Opener`."""

    def open(self, results: list[bytes]) -> Opened:
        """Scores and check positions of results."""

    def genuine(self, checks: NDArray[np.float64]) -> bool:
        """Whether check positions hold nothing but noise."""


class Scheme(Protocol):
    """A way to compute scores on templates that cannot be read."""

    def warm(self) -> None:
        """Do once, before the first call, what would make it slow."""

    def generate(self, parameters: ParameterSet) -> KeyMaterial:
        """A fresh key."""

    def check_public(self, parameters: ParameterSet, public: bytes) -> None:
        """Refuse a public key that is none of the parameter set (`MalformedCiphertext`)."""

    def check_evaluation(self, parameters: ParameterSet, material: bytes) -> None:
        """Refuse an evaluation key that is none of the parameter set (`MalformedCiphertext`)."""

    def encryptor(self, layout: Layout, public: bytes) -> Encryptor:
        """Encrypts for a gallery."""

    def evaluator(self, layout: Layout, public: bytes) -> Evaluator:
        """Scores for a gallery."""

    def opener(self, layout: Layout, secret: bytes) -> Opener:
        """Opens a gallery's results."""


class _CkksEncryptor:
    def __init__(self, layout: Layout, public: bytes) -> None:
        parameters = layout.parameters
        self._layout = layout
        self._seal = seal.Encryptor(parameters, wire.unpack(public, 2, parameters.degree, parameters.primes))

    def template(self, embedding: NDArray[np.float64]) -> bytes:
        return self._encrypt(self._layout.template(embedding))

    def probe(self, embedding: NDArray[np.float64]) -> bytes:
        return self._encrypt(self._layout.probe(embedding))

    def _encrypt(self, plaintexts: list[Any]) -> bytes:
        primes = self._layout.parameters.data_primes
        residues = [kernels.integers_to_ntt(plaintext.coefficients, primes) for plaintext in plaintexts]
        scales = [plaintext.scale for plaintext in plaintexts]
        encrypted = map(self._seal.encrypt, residues, scales)
        return b"".join(wire.pack(ciphertext, primes) for ciphertext in encrypted)


class Ckks:
    """CKKS: SEAL generates keys and encrypts, `tail` scores, `opening` opens."""

    def warm(self) -> None:
        """Compile the kernels, or load them from the cache, and make the tables of every parameter set."""
        for parameters in parameter_sets():
            kernels.warm(parameters.data_primes, parameters.degree)

    def generate(self, parameters: ParameterSet) -> KeyMaterial:
        """A fresh key, with the Galois keys that expand a probe into up to 128 leaves (docs: engine)."""
        secret, public = seal.generate(parameters)
        elements = [parameters.degree // (1 << level) + 1 for level in range(7)]
        evaluation = seal.galois_keys(parameters, secret, elements)
        return KeyMaterial(
            secret=wire.pack(secret, parameters.primes),
            public=wire.pack(public, parameters.primes),
            evaluation={element: wire.pack(key, parameters.primes) for element, key in evaluation.items()},
        )

    def check_public(self, parameters: ParameterSet, public: bytes) -> None:
        """Refuse what is no public key of the set, or one under which nothing is hidden."""
        if tail.transparent(wire.unpack(public, 2, parameters.degree, parameters.primes)):
            raise wire.MalformedCiphertext("the public key hides nothing: generate another")

    def check_evaluation(self, parameters: ParameterSet, material: bytes) -> None:
        """Refuse what is no key switching key of the set: one pair of polynomials a data prime."""
        wire.unpack(material, 2 * len(parameters.data_primes), parameters.degree, parameters.primes)

    def encryptor(self, layout: Layout, public: bytes) -> Encryptor:
        """Encrypts for a gallery."""
        return _CkksEncryptor(layout, public)

    def evaluator(self, layout: Layout, public: bytes) -> tail.Evaluator:
        """Scores for a gallery."""
        parameters = layout.parameters
        return tail.Evaluator(layout, wire.unpack(public, 2, parameters.degree, parameters.primes))

    def opener(self, layout: Layout, secret: bytes) -> opening.Opener:
        """Opens a gallery's results."""
        parameters = layout.parameters
        return opening.Opener(layout, wire.unpack(secret, 1, parameters.degree, parameters.primes)[0])
