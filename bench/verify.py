"""One against one, Sealface's way and CipherFace's, on the same embeddings in one run.

Ours is the Verify call of running services: template read, probe admitted, scored, nonce stored durably, decision made,
sealed and signed. CipherFace's is what its servers do: load the stored vector and the probe, multiply, serialise.
Nothing of CipherFace's network, storage or decision is counted; `compute_ms_p50` is ours without them too.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.parameters import for_dimension
from sealface.cipher.scheme import Ckks, Encryptor
from sealface.errors import InvalidInput
from sealface.protocol.policy import AMPLE, Policy
from sealface_client import AsyncClient, AsyncGallery
from sealface_client.decisions import PendingDecision
from sealface_client.errors import translated
from sealface_protos.keys.v1 import key_service_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as matching

from .people import by_person

DIMENSION = 128
THRESHOLD = 0.07
_WARM_UP = 2

Vectors = NDArray[np.float64]


class EmbeddingsUnusable(InvalidInput):
    """The embeddings are not what the benchmark needs."""


@dataclass(frozen=True)
class Faces:
    """Unit vectors: enrolled templates (n, d), and a probe (n, d) for each; every other one is an impostor's."""

    templates: Vectors
    probes: Vectors

    @property
    def scores(self) -> Vectors:
        """Cosine similarities (n,)."""
        scores: Vectors = (self.templates * self.probes).sum(axis=1)
        return scores


def synthetic(count: int, seed: int = 2) -> Faces:
    """Random faces; a probe of the same person lies at a cosine distance near 0.03."""
    rng = np.random.default_rng(seed)
    templates = _unit(rng.standard_normal((count, DIMENSION)))
    near = templates + 0.25 * _unit(rng.standard_normal((count, DIMENSION)))
    far = rng.standard_normal((count, DIMENSION))
    return Faces(templates, _unit(np.where(np.arange(count)[:, None] % 2, far, near)))


def real(embeddings: Mapping[str, Vectors], count: int) -> Faces:
    """Real faces, from embeddings named Person_Name_0001.

    Raises:
        EmbeddingsUnusable: too few people with two faces, or another dimension than Dlib's.
    """
    pairs = [names[:2] for names in by_person(embeddings).values() if len(names) >= 2][:count]
    if len(pairs) < 2:
        raise EmbeddingsUnusable("fewer than two people with two faces: name others, or leave --embeddings out")
    first = np.array([embeddings[name] for name, _ in pairs])
    second = np.array([embeddings[name] for _, name in pairs])
    if first.shape[1] != DIMENSION:
        raise EmbeddingsUnusable(f"embeddings of {first.shape[1]} elements: the benchmark takes {DIMENSION}")
    probes = np.where(np.arange(len(pairs))[:, None] % 2, np.roll(second, 1, axis=0), second)
    return Faces(_unit(first), _unit(probes))


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


class Samples:
    """Measurements by name: times in milliseconds, largest errors."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)
        self.error: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """The time of a block."""
        started = time.perf_counter()
        yield
        self.ms[name].append((time.perf_counter() - started) * 1e3)

    def erred(self, name: str, error: float) -> None:
        """A score error."""
        self.error[name] = max(self.error[name], abs(error))


@dataclass(frozen=True)
class Baseline:
    """Parameters that CipherFace is used with, under the prefix of their fields in the result."""

    name: str
    degree: int
    modulus_bits: tuple[int, ...]
    scale_bits: int


CIPHERFACE = Baseline("cipherface", 8192, (60, 40, 40, 60), 40)
CIPHERFACE_16384 = Baseline("cipherface_16384", 16384, (31, *[60] * 6, 31), 60)


class CipherFace:
    """Encrypted vectors and their dot product, as TenSEAL offers them.

    Args:
        baseline: its parameters.
    """

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self._context = ts.context(
            ts.SCHEME_TYPE.CKKS, baseline.degree, coeff_mod_bit_sizes=list(baseline.modulus_bits)
        )
        self._context.global_scale = 2.0**baseline.scale_bits
        self._secret = self._context.secret_key()
        self._context.generate_galois_keys()
        self._context.make_context_public()  # from here on it is what the server holds

    def encrypt(self, vector: Vectors) -> bytes:
        """What the client sends."""
        serialised: bytes = ts.ckks_vector(self._context, vector).serialize()
        return serialised

    def compare(self, template: bytes, probe: bytes) -> bytes:
        """What the server does."""
        stored, asked = ts.ckks_vector_from(self._context, template), ts.ckks_vector_from(self._context, probe)
        serialised: bytes = stored.dot(asked).serialize()
        return serialised

    def open(self, result: bytes) -> float:
        """What the holder of the key does."""
        return float(ts.ckks_vector_from(self._context, result).decrypt(self._secret)[0])

    def evaluation_key_bytes(self) -> int:
        """Relinearisation and Galois keys as the server loads them.

        All are of one shape: the first is serialised, and counted as often as SEAL makes one. Serialising all of
        them at N=16384 takes 2 GB; the product is within 0.3 % of what that gives.
        """
        one = self._context.serialize(save_public_key=False, save_galois_keys=False, save_relin_keys=True)
        galois = 2 * (self.baseline.degree.bit_length() - 2)  # a rotation by each power of two, both ways
        return len(one) * (1 + galois)


class _Way(Protocol):
    """A way to verify, run in turn with the others."""

    async def run(self, at: int) -> None:
        """Verify a probe, and keep what it took."""

    def sizes(self) -> dict[str, int]:
        """Bytes by field name."""


class _TheirRounds:
    def __init__(self, baseline: Baseline, faces: Faces, samples: Samples) -> None:
        self._way = CipherFace(baseline)
        self._faces = faces
        self._samples = samples
        self._templates = [self._way.encrypt(template) for template in faces.templates]
        self._sizes: dict[str, int] = {}

    async def run(self, at: int) -> None:
        name, samples = self._way.baseline.name, self._samples
        with samples.timed(f"{name}_encrypt"):
            probe = self._way.encrypt(self._faces.probes[at])
        with samples.timed(name):
            result = self._way.compare(self._templates[at], probe)
        with samples.timed(f"{name}_open"):
            score = self._way.open(result)
        samples.erred(name, score - self._faces.scores[at])
        self._sizes = {f"{name}_bytes": len(probe), f"{name}_result_bytes": len(result)}

    def sizes(self) -> dict[str, int]:
        name = self._way.baseline.name
        return self._sizes | {
            f"{name}_template_bytes": len(self._templates[0]),
            f"{name}_evaluation_key_bytes": self._way.evaluation_key_bytes(),
        }


class _ComputeRounds:
    """Our arithmetic alone, in this process: what the two services do. Scores are seen here, so errors are too."""

    def __init__(self, faces: Faces, samples: Samples) -> None:
        layout = Layout(for_dimension(DIMENSION), DIMENSION, Metric.COSINE)
        scheme = Ckks()
        scheme.warm()
        key = scheme.generate(layout.parameters)
        self._faces = faces
        self._samples = samples
        self._encryptor = scheme.encryptor(layout, key.public)
        self._evaluator = scheme.evaluator(layout, key.public)
        self._opener = scheme.opener(layout, key.secret)
        self._templates = [self._evaluator.admit(self._encryptor.template(one)) for one in faces.templates]
        self._template_bytes = len(self._templates[0])
        self._group = layout.group
        self._asked = np.arange(self._group.capacity) == 0
        self._evaluation_bytes = sum(map(len, key.evaluation.values()))

    async def run(self, at: int) -> None:
        probe = self._encryptor.probe(self._faces.probes[at])
        with self._samples.timed("compute"):
            admitted = self._evaluator.admit_probe(probe)
            group = self._evaluator.assemble({0: self._templates[at]})
            leaves = self._evaluator.expand([admitted], [self._group])[self._group]
            results = self._evaluator.score([group], leaves, [self._asked])[0]
            opened = self._opener.open(self._group, results)
            assert self._opener.genuine(self._group, opened.checks)
        self._samples.erred("ours", opened.scores[0, 0] - self._faces.scores[at])

    def sizes(self) -> dict[str, int]:
        return {"template_bytes": self._template_bytes, "evaluation_key_bytes": self._evaluation_bytes}


class _ServiceRounds:
    """Our services, through gRPC."""

    def __init__(self, client: AsyncClient, gallery: AsyncGallery, faces: Faces, samples: Samples) -> None:
        self._client = client
        self._gallery = gallery
        self._faces = faces
        self._samples = samples
        self._slots: list[int] = []
        self._sizes: dict[str, int] = {}
        self.equal = 0
        self._encryptor: Encryptor
        self._verifying_key: bytes

    async def prepare(self) -> None:
        self._encryptor = self._client.scheme.encryptor(self._gallery.layout, await self._public_key())
        self._verifying_key = await self._client.verifying_key()
        for number, template in enumerate(self._faces.templates):
            enrolled = await self._gallery.enroll(f"s{number}", template)
            self._slots.append(enrolled.slot)

    async def _public_key(self) -> bytes:
        request = key_service_pb2.GetMaterialRequest(key_version=self._gallery.info.key_version)
        with translated("keys"):
            return b"".join([chunk.data async for chunk in self._client.keys.GetMaterial(request)])

    async def run(self, at: int) -> None:
        samples, info, slots = self._samples, self._gallery.info, [self._slots[at]]
        with samples.timed("encrypt"):
            probe = self._encryptor.probe(self._faces.probes[at])
        with samples.timed("sign"):
            pending = PendingDecision.ask(
                self._client.credential,
                gallery=info.name,
                key_version=info.key_version,
                probe=probe,
                claimed_slots=slots,
            )
        request = matching.VerifyRequest(
            gallery=info.name,
            probe=matching.Probe(ciphertext=probe, key_version=info.key_version, parameter_set=info.parameter_set),
            claimed_slots=slots,
            decision_request=pending.signed,
        )
        with samples.timed("server"), translated("matching"):
            response = await self._client.matching.Verify(request, timeout=self._client.timeout_s)
        with samples.timed("open"):
            decision, _ = pending.read(response.decision, self._verifying_key)
        self.equal += bool(decision.candidates) == bool(1 - self._faces.scores[at] <= THRESHOLD)
        self._sizes = {"bytes": request.ByteSize(), "result_bytes": response.ByteSize()}

    def sizes(self) -> dict[str, int]:
        return self._sizes


async def compare(
    state: Path | None,
    faces: Faces,
    rounds: int,
    baselines: tuple[Baseline, ...] = (CIPHERFACE, CIPHERFACE_16384),
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Verify in turns, ours and theirs; a gallery made for it is erased at the end, its key stays.

    Args:
        state: state folder of running services; None takes the environment's.
        faces: who is enrolled and who asks.
        rounds: how often each way verifies.
        baselines: parameters that CipherFace is run with.
        tell: what is being done.
    """
    samples = Samples()
    compute = _ComputeRounds(faces, samples)
    theirs = []
    for baseline in baselines:
        tell(f"making CipherFace's keys at N={baseline.degree}")
        theirs.append(_TheirRounds(baseline, faces, samples))
    async with AsyncClient.connect(state) as client:
        gallery = await client.create_gallery(
            f"bench-{uuid.uuid4().hex[:12]}",
            policy=Policy(verification_threshold=THRESHOLD, identification_threshold=THRESHOLD, budget=AMPLE),
        )
        try:
            services = _ServiceRounds(client, gallery, faces, samples)
            await services.prepare()
            ways: list[_Way] = [services, compute, *theirs]
            tell(f"verifying, {rounds} rounds of {len(ways)} ways in turn")
            await _in_turns(ways, _WARM_UP, len(faces.templates))
            samples.ms.clear()
            services.equal = 0
            await _in_turns(ways, rounds, len(faces.templates))
        finally:
            await client.delete_gallery(gallery.id)
    sizes: dict[str, int] = {}
    for way in ways:
        sizes |= way.sizes()
    counts = {"rounds": rounds, "dim": DIMENSION, "decisions_equal_to_plaintext": services.equal}
    return counts | summarise(samples, sizes, [baseline.name for baseline in baselines])


async def _in_turns(ways: list[_Way], rounds: int, faces: int) -> None:
    for number in range(rounds):
        first = number % len(ways)  # nobody always follows the same neighbour
        for way in ways[first:] + ways[:first]:
            await way.run(number % faces)


def summarise(samples: Samples, sizes: Mapping[str, int], baselines: list[str]) -> dict[str, Any]:
    """The contract's fields and more: medians, bytes, largest errors, and theirs divided by ours.

    Args:
        samples: what was measured.
        sizes: bytes by field name.
        baselines: their names; the first one's ratios have no suffix.
    """
    median = {f"{name}_ms_p50": statistics.median(values) for name, values in samples.ms.items()}
    errors = {
        "max_abs_score_error" if name == "ours" else f"{name}_max_abs_score_error": error
        for name, error in samples.error.items()
    }
    ratios: dict[str, float] = {}
    for name in baselines:
        suffix = name.removeprefix(baselines[0])
        ratios |= {
            f"ratio_ms{suffix}": median[f"{name}_ms_p50"] / median["server_ms_p50"],
            f"ratio_compute_ms{suffix}": median[f"{name}_ms_p50"] / median["compute_ms_p50"],
            f"ratio_bytes{suffix}": sizes[f"{name}_bytes"] / sizes["bytes"],
            f"ratio_template_bytes{suffix}": sizes[f"{name}_template_bytes"] / sizes["template_bytes"],
        }
    return {**median, **sizes, **errors, **ratios}
