"""What services ask of a cipher, and CKKS behind it.

Services take a `Scheme` as an argument. The only implementation in the package is `Ckks`; the tests bring one
without encryption for speed (tests/plain.py), which no configuration can name because it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import evaluator, kernels, opening, public_key, seal, switching, wire
from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout, Shape
from sealface.cipher.opening import Opened
from sealface.cipher.parameters import ParameterSet, parameter_sets


@dataclass(frozen=True)
class KeyMaterial:
    """One version of a key.

    Attributes:
        secret: packed secret key; never leaves the key zone unless its owner is the client.
        public: packed public key, and the seed of its uniform half.
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

    def block(self, shape: Shape, embeddings: NDArray[np.float64]) -> bytes:
        """An encrypted block of embeddings (n, dimension), for bulk import."""


class Evaluator(Protocol):
    """Compute's side; see `evaluator.Evaluator`."""

    @property
    def zeros(self) -> Pool:
        """What is drawn ahead for results."""

    def admit(self, template: bytes) -> bytes:
        """A template as it may be stored."""

    def admit_probe(self, probe: bytes, seed: bytes | None = None) -> Any:
        """A probe as it may be scored, by a seed where that is to be repeated."""

    def admit_block(self, shape: Shape, block: bytes) -> bytes:
        """A block that was encrypted as it is, as it may be stored."""

    def assemble(self, templates: Mapping[int, bytes], onto: Any = None) -> Any:
        """A group of templates, by position, added to those of another group."""

    def seal(self, shape: Shape, templates: Mapping[int, bytes], pause: Callable[[], None] = ...) -> bytes:
        """A sealed block of templates, by position, as it may be stored."""

    def blind(self, shape: Shape, block: bytes, count: int = 1) -> tuple[bytes, Any]:
        """A stored block, or several templates, as the key holder may open them, and what blinds them."""

    def unblind(self, shape: Shape, renewed: bytes, blinding: Any, cleared: NDArray[np.bool_], count: int = 1) -> bytes:
        """What the key holder has renewed without some positions, as it may be stored."""

    def load(self, shape: Shape, block: bytes) -> Any:
        """A stored block, ready to be scored."""

    def expand(self, probes: Sequence[Any], shapes: Iterable[Shape], deepest: int = 1) -> Mapping[Shape, Any]:
        """Probes as blocks of some shapes need them."""

    def score(
        self,
        blocks: Sequence[Any],
        leaves: Any,
        requested: Sequence[NDArray[np.bool_]],
        multiplied: list[float] | None = None,
        seeds: Sequence[Sequence[bytes]] | None = None,
    ) -> list[list[bytes]]:
        """The scores of blocks of one shape at some positions, sealed to the key holder, by probe and block."""


class Pool(Protocol):
    """Single-use randomness, drawn ahead."""

    def __len__(self) -> int:
        """How much is ready."""

    def add_one(self) -> None:
        """Draw one more."""


class Opener(Protocol):
    """The key holder's side; see `opening.Opener`."""

    def open(self, shape: Shape, results: Sequence[bytes]) -> Opened:
        """Scores and check positions of results of one shape."""

    def genuine(self, shape: Shape, checks: NDArray[np.float64]) -> bool:
        """Whether check positions hold nothing but noise."""

    def renew(
        self,
        shape: Shape,
        blinded: bytes,
        cleared: NDArray[np.bool_],
        target: Any = None,
        count: int = 1,
    ) -> bytes:
        """A blinded block, or several templates, encrypted afresh without some positions, for this key or another."""


class Scheme(Protocol):
    """A way to compute scores on templates that cannot be read."""

    def warm(self) -> None:
        """Do once, before the first call, what would make it slow."""

    def generate(self, parameters: ParameterSet) -> KeyMaterial:
        """A fresh key."""

    def evaluation(self, parameters: ParameterSet, secret: bytes) -> Mapping[int, bytes]:
        """Evaluation keys of a secret key, made anew."""

    def check_public(self, parameters: ParameterSet, public: bytes) -> None:
        """Refuse a public key that is none of the parameter set (`MalformedCiphertext`)."""

    def check_evaluation(self, parameters: ParameterSet, material: bytes) -> None:
        """Refuse an evaluation key that is none of the parameter set (`MalformedCiphertext`)."""

    def check_probe(self, layout: Layout, probe: bytes) -> None:
        """Refuse what is no probe of a gallery (`MalformedCiphertext`)."""

    def encryptor(self, layout: Layout, public: bytes) -> Encryptor:
        """Encrypts for a gallery."""

    def evaluator(
        self, layout: Layout, public: bytes, evaluation: Mapping[int, bytes] | None = None, threads: int = 1
    ) -> Evaluator:
        """Scores for a gallery; sealed blocks need its evaluation keys."""

    def opener(self, layout: Layout, secret: bytes) -> Opener:
        """Opens a gallery's results, and renews its blocks."""


class _CkksEncryptor:
    def __init__(self, layout: Layout, public: bytes) -> None:
        parameters = layout.parameters
        self._layout = layout
        self._seal = seal.Encryptor(parameters, public_key.parse(parameters, public))

    def template(self, embedding: NDArray[np.float64]) -> bytes:
        return self._encrypt(self._layout.template(embedding))

    def probe(self, embedding: NDArray[np.float64]) -> bytes:
        return self._encrypt(self._layout.probe(embedding))

    def block(self, shape: Shape, embeddings: NDArray[np.float64]) -> bytes:
        return self._encrypt(self._layout.block(shape, embeddings))

    def _encrypt(self, plaintexts: list[Any]) -> bytes:
        primes = self._layout.parameters.data_primes
        residues = [kernels.integers_to_ntt(plaintext.coefficients, primes) for plaintext in plaintexts]
        scales = [plaintext.scale for plaintext in plaintexts]
        encrypted = map(self._seal.encrypt, residues, scales)
        return b"".join(wire.pack(ciphertext, primes) for ciphertext in encrypted)


class Ckks:
    """CKKS: SEAL generates keys and encrypts, `evaluator` scores, `opening` opens."""

    def warm(self) -> None:
        """Compile the kernels, or load them from the cache, and make the tables of every parameter set.

        Does once all that services do, on ciphertexts and keys of ones, so that no kernel is left out.
        """
        for parameters in parameter_sets():
            layout = Layout(parameters, 128, Metric.EUCLIDEAN)
            shape, primes, n = layout.shape(8), parameters.primes, parameters.degree
            template = wire.pack(np.ones((2 * layout.parts, 2, n), np.uint64), parameters.data_primes)
            key = wire.pack(np.ones((2, 3, n), np.uint64), primes)
            switching_key = wire.pack(np.ones((4, 3, n), np.uint64), primes)
            elements = [switching.element_of_level(level, n) for level in range(7)]
            warmed = self.evaluator(layout, key, dict.fromkeys(elements, switching_key))
            block = warmed.admit_block(shape, warmed.seal(shape, {0: warmed.admit(template)}))
            group = warmed.assemble({1: template}, warmed.assemble({0: template}))
            leaves = warmed.expand([warmed.admit_probe(template)] * 5, (layout.group, shape, layout.shape(16)))
            opener = self.opener(layout, key[: len(key) // 2])
            blinded, blinding = warmed.blind(shape, block)
            nobody = np.zeros(shape.capacity, bool)
            renewed = warmed.unblind(shape, opener.renew(shape, blinded, nobody), blinding, nobody)
            for loaded in (warmed.load(shape, renewed), group):
                asked = np.zeros(loaded.shape.capacity, bool)
                for results in warmed.score([loaded], leaves[loaded.shape], [asked]):
                    opener.open(loaded.shape, results)

    def generate(self, parameters: ParameterSet) -> KeyMaterial:
        """A fresh key, with the Galois keys that expand a probe into up to 128 leaves (docs/engine.md)."""
        secret, public = seal.generate(parameters)
        packed = wire.pack(secret, parameters.primes)
        return KeyMaterial(packed, public_key.draw(parameters, secret, public), self.evaluation(parameters, packed))

    def evaluation(self, parameters: ParameterSet, secret: bytes) -> Mapping[int, bytes]:
        """Evaluation keys of a secret key, made anew."""
        (polynomial,) = wire.unpack(secret, 1, parameters.degree, parameters.primes)
        elements = [switching.element_of_level(level, parameters.degree) for level in range(7)]
        made = seal.galois_keys(parameters, polynomial, elements)
        return {element: wire.pack(key, parameters.primes) for element, key in made.items()}

    def check_public(self, parameters: ParameterSet, public: bytes) -> None:
        """Refuse what is no public key of the set, hides nothing, or may have a trapdoor (`public_key`)."""
        if evaluator.transparent(public_key.check(parameters, public)):
            raise wire.MalformedCiphertext("the public key hides nothing: generate another")

    def check_evaluation(self, parameters: ParameterSet, material: bytes) -> None:
        """Refuse what is no key switching key of the set: one pair of polynomials a data prime."""
        wire.unpack(material, 2 * len(parameters.data_primes), parameters.degree, parameters.primes)

    def check_probe(self, layout: Layout, probe: bytes) -> None:
        """Refuse what is no probe of a gallery."""
        evaluator.parse(probe, layout)

    def encryptor(self, layout: Layout, public: bytes) -> Encryptor:
        """Encrypts for a gallery."""
        return _CkksEncryptor(layout, public)

    def evaluator(
        self, layout: Layout, public: bytes, evaluation: Mapping[int, bytes] | None = None, threads: int = 1
    ) -> evaluator.Evaluator:
        """Scores for a gallery."""
        parameters = layout.parameters
        digits, n = len(parameters.data_primes), parameters.degree
        keys = {
            element: wire.unpack(key, 2 * digits, n, parameters.primes).reshape(digits, 2, -1, n)
            for element, key in (evaluation or {}).items()
        }
        return evaluator.Evaluator(layout, public_key.parse(parameters, public), keys, threads)

    def opener(self, layout: Layout, secret: bytes) -> opening.Opener:
        """Opens a gallery's results, and renews its blocks."""
        parameters = layout.parameters
        return opening.Opener(layout, wire.unpack(secret, 1, parameters.degree, parameters.primes)[0])
