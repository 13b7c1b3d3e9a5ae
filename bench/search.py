"""1:N search through running services, beside a plaintext search of the same shape in the same run.

`expand_ms`, `score_ms` and `open_ms` are what the services say of themselves (Server-Timing): `score_ms` is the product
of the probe with all blocks, the time of all threads divided by their number; `pass_ms` is the wall time of that with
the results randomised, switched, masked and packed. `total_ms` is a caller's: an embedding encrypted and signed,
scored, opened and decided, and the sealed decision read.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.evaluator import block_memory
from sealface.errors import InvalidInput, SealfaceError
from sealface.protocol.policy import AMPLE, Policy
from sealface.recognition import models
from sealface.runtime.timing import SERVER_TIMING, parse_timing
from sealface_client import AsyncClient, AsyncGallery
from sealface_client.decisions import PendingDecision
from sealface_client.errors import translated
from sealface_protos.keys.v1 import key_service_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as matching

THRESHOLD = 0.3  # mated probes lie near 0.1, others beyond 0.5
MOST_FOR_ERROR = 100_000
_WARM_UP = 2
_OUTSIDE = ("matching", "keys")  # what is measured of them lies outside the pass

Vectors = NDArray[np.float32]
Tell = Callable[[str], None]


class NoModelOfDimension(InvalidInput):
    """No DeepFace model has embeddings of that many elements."""


def unit_vectors(count: int, dimension: int, seed: int) -> Vectors:
    """Random unit vectors (count, dimension)."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def model_of(dimension: int) -> str:
    """A DeepFace model with embeddings of that many elements.

    Raises:
        NoModelOfDimension: there is none.
    """
    for name in models.model_names():
        if models.dimension(name) == dimension:
            return name
    known = sorted({models.dimension(name) for name in models.model_names()})
    raise NoModelOfDimension(f"no model has {dimension} elements: use one of {', '.join(map(str, known))}")


_PLAIN = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
templates, dimension, threads = map(int, sys.argv[1:])
rng = np.random.default_rng(3)
vectors, probe = rng.standard_normal((templates, dimension), dtype=np.float32), np.ones(dimension, np.float32)
parts = np.array_split(vectors.reshape(-1).view(np.int32), threads)
with ThreadPoolExecutor(threads) as pool:
    vectors @ probe
    for _ in sys.stdin:
        started = time.perf_counter(); vectors @ probe; plain = time.perf_counter() - started
        started = time.perf_counter(); list(pool.map(np.max, parts)); read = time.perf_counter() - started
        print(json.dumps([plain * 1e3, vectors.nbytes / read / 1e9]), flush=True)
"""


class Plain:
    """numpy's float32 matrix-vector product in a process of its own, with as many threads; and reading memory."""

    def __init__(self, templates: int, dimension: int, threads: int) -> None:
        variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        command = [sys.executable, "-c", _PLAIN, str(templates), str(dimension), str(threads)]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict.fromkeys(variables, str(threads)),
        )

    def measure(self) -> tuple[float, float]:
        """Milliseconds of one product, and GB/s of reading its matrix."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        plain_ms, speed = json.loads(self._process.stdout.readline())
        return plain_ms, speed

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def plain(templates: int, dimension: int, threads: int) -> Iterator[Plain]:
    """See `Plain`."""
    running = Plain(templates, dimension, threads)
    try:
        yield running
    finally:
        running.close()


async def fill(gallery: AsyncGallery, vectors: Vectors, tell: Tell = lambda line: None) -> float:
    """Import unit vectors as subjects s0, s1, ...; returns templates a second."""
    started, done = time.perf_counter(), 0
    faces = ((f"s{number}", vector.astype(np.float64)) for number, vector in enumerate(vectors))
    async for imported in gallery.import_many(faces, len(vectors)):
        done += imported.templates
        tell(f"imported {done:,} of {len(vectors):,}")
    return done / (time.perf_counter() - started)


class Searcher:
    """Searches one managed gallery and keeps what the services say of the time."""

    def __init__(self, client: AsyncClient, gallery: AsyncGallery) -> None:
        self._client = client
        self._gallery = gallery
        self.ms: dict[str, list[float]] = defaultdict(list)
        self.bytes = 0

    async def prepare(self) -> None:
        """Fetch the public key and the key that signs decisions."""
        request = key_service_pb2.GetMaterialRequest(key_version=self._gallery.info.key_version)
        with translated("keys"):
            public = b"".join([chunk.data async for chunk in self._client.keys.GetMaterial(request)])
        self._encryptor = self._client.scheme.encryptor(self._gallery.layout, public)
        self._verifying_key = await self._client.verifying_key()

    def _request(self, probe: NDArray[np.float64]) -> tuple[matching.IdentifyRequest, PendingDecision]:
        info = self._gallery.info
        started = time.perf_counter()
        ciphertext = self._encryptor.probe(probe)
        self.ms["encrypt"].append((time.perf_counter() - started) * 1e3)
        pending = PendingDecision.ask(
            self._client.credential,
            gallery=info.name,
            key_version=info.key_version,
            probe=ciphertext,
            max_candidates=1,
        )
        request = matching.IdentifyRequest(
            gallery=info.name,
            probe=matching.Probe(ciphertext=ciphertext, key_version=info.key_version, parameter_set=info.parameter_set),
            decision_request=pending.signed,
            request_id=uuid.uuid4().hex,
        )
        self.bytes = request.ByteSize()
        return request, pending

    async def search(self, probes: Sequence[NDArray[np.float64]]) -> list[int | None]:
        """The slot named for each probe; one call, its time divided by the probes."""
        started = time.perf_counter()
        made = [self._request(probe) for probe in probes]
        answers: list[matching.IdentifyResponse] = []
        with translated("matching"):
            if len(made) == 1:
                call: Any = self._client.matching.Identify(made[0][0], timeout=self._client.timeout_s)
                answers = [answer async for answer in call]
            else:
                call = self._client.matching.BatchIdentify(_items(made), timeout=self._client.timeout_s)
                async for answer in call:
                    if answer.HasField("error"):
                        raise SealfaceError(answer.error.message)
                    if answer.HasField("response"):
                        answers.append(answer.response)
            trailing = dict(await call.trailing_metadata())
        named = []
        for (_, pending), answer in zip(made, answers, strict=True):
            decision, _ = pending.read(answer.decision, self._verifying_key)
            named.append(decision.candidates[0].slot if decision.candidates else None)
        self.ms["total"].append((time.perf_counter() - started) * 1e3 / len(probes))
        for name, value in parse_timing(str(trailing[SERVER_TIMING])).items():
            self.ms[name].append(value / len(probes))
        return named


async def _items(
    made: Sequence[tuple[matching.IdentifyRequest, PendingDecision]],
) -> AsyncIterator[matching.BatchIdentifyRequest]:
    for request, _ in made:
        yield matching.BatchIdentifyRequest(request=request)


def _processes(state: Path, *services: str) -> Iterator[Path]:
    """Their folders in /proc, of services of this machine that run on a state folder."""
    names = {service.encode() for service in services}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if b"serve" in command and names & set(command) and str(state).encode() in command:
                yield folder


def resident_mb(state: Path, service: str) -> float | None:
    """Resident memory of a service of this machine that runs on a state folder; of matching, its workers' too."""
    found = []
    for folder in _processes(state, service, *(["worker"] if service == "matching" else [])):
        with suppress(OSError, IndexError):
            found.append(int((folder / "status").read_text().split("VmRSS:")[1].split()[0]) / 1024)
    return sum(found) or None


def cpu_ms(state: Path, service: str) -> float:
    """What the process of a service has computed so far; of matching without its workers."""
    ticks = 0
    for folder in _processes(state, service):
        with suppress(OSError):
            user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            ticks += int(user) + int(system)
    return ticks * 1e3 / os.sysconf("SC_CLK_TCK")


async def measure(
    state: Path | None,
    *,
    templates: int,
    dimension: int,
    probes: int,
    threads: int,
    batch: int = 1,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """The contract's fields and more; the gallery made for it is erased at the end, its key stays.

    Args:
        state: state folder of running services; None takes the environment's.
        templates: size of the gallery, unit vectors.
        dimension: elements of a vector, one that a DeepFace model has.
        probes: searches measured; half of them are of somebody enrolled.
        threads: threads of the plaintext product; the matching service must have as many.
        batch: probes in one call.
        tell: what is being done.
    """
    vectors = unit_vectors(templates, dimension, seed=5)
    rng = np.random.default_rng(6)
    wanted = [int(number) for number in rng.integers(templates, size=probes + _WARM_UP * batch)]
    faces = [_probe(vectors[number], rng, mated=bool(i % 2)) for i, number in enumerate(wanted)]
    policy = Policy(verification_threshold=THRESHOLD, identification_threshold=THRESHOLD, budget=AMPLE)
    async with AsyncClient.connect(state) as client:
        client.timeout_s = 600.0
        gallery = await client.create_gallery(
            f"bench-{uuid.uuid4().hex[:12]}", model=model_of(dimension), policy=policy
        )
        try:
            import_rate = await fill(gallery, vectors, tell)
            searcher = Searcher(client, gallery)
            await searcher.prepare()
            tell("searching")
            with plain(templates, dimension, threads) as baseline:
                await searcher.search(faces[:1])  # loads the gallery
                for _ in range(_WARM_UP):
                    await searcher.search(faces[:batch])
                searcher.ms.clear()
                before = {name: cpu_ms(state, name) for name in _OUTSIDE} if state else None
                right, plain_ms, speeds = 0, [], []
                for start in range(_WARM_UP * batch, len(faces) - batch + 1, batch):
                    named = await searcher.search(faces[start : start + batch])
                    for offset, slot in enumerate(named):
                        number = start + offset
                        right += slot == (wanted[number] + 1 if number % 2 else None)
                    for _ in range(3):
                        ms, speed = baseline.measure()
                        plain_ms.append(ms)
                        speeds.append(speed)
            spent = {name: cpu_ms(state, name) - before[name] for name in _OUTSIDE} if state and before else {}
            rss = {name: resident_mb(state, name) if state else None for name in ("matching", "keys", "enrollment")}
        finally:
            await client.delete_gallery(gallery.id)
        error, compared = await _largest_error(client, vectors, faces[:4], tell)
    shape = gallery.layout.best_shape(templates)
    median = {name: statistics.median(values) for name, values in searcher.ms.items()}
    plain_median = statistics.median(plain_ms)
    blocks = -(-templates // shape.capacity)
    sealed_bytes = blocks * block_memory(shape)
    return {
        "templates": templates,
        "dim": dimension,
        "threads": threads,
        "batch": batch,
        "probes": len(searcher.ms["total"]) * batch,
        "right": right,
        "expand_ms": median["expand"],
        "score_ms": median["multiply"],
        "pass_ms": median["pass"],
        "open_ms": median["open"],
        "encrypt_ms": median["encrypt"],
        "total_ms": median["total"],
        "plain_ms": plain_median,
        "ratio_to_plain": median["multiply"] / plain_median,
        "total_to_plain": median["total"] / plain_median,
        "memory_gb_s": statistics.median(speeds),
        "floor_ms": sealed_bytes / statistics.median(speeds) / 1e6,
        "max_abs_error": error,
        "error_templates": compared,
        "columns": shape.columns,
        "blocks": blocks,
        "bytes_per_template": block_memory(shape) / shape.capacity,
        "sealed_mb": sealed_bytes / 1e6,
        "rss_mb": rss["matching"],
        "rss_all_mb": sum(rss.values()) if all(rss.values()) else None,  # type: ignore[arg-type]
        **{f"{name}_cpu_ms": ms / len(searcher.ms["total"]) / batch for name, ms in spent.items()},
        "probe_bytes": searcher.bytes,
        "import_per_s": import_rate,
    }


def _probe(vector: Vectors, rng: np.random.Generator, *, mated: bool) -> NDArray[np.float64]:
    noise = rng.standard_normal(vector.size)
    noise /= np.linalg.norm(noise)
    return vector + 0.5 * noise if mated else noise  # at a cosine distance near 0.1, or far from all


async def _largest_error(
    client: AsyncClient, vectors: Vectors, faces: Sequence[NDArray[np.float64]], tell: Tell
) -> tuple[float, int]:
    """The largest score error in a gallery whose key is held here, of the same vectors or the first of them."""
    compared = min(len(vectors), MOST_FOR_ERROR)
    policy = Policy(verification_threshold=THRESHOLD, identification_threshold=THRESHOLD, budget=AMPLE)
    gallery = await client.create_gallery(
        f"bench-{uuid.uuid4().hex[:12]}", model=model_of(vectors.shape[1]), policy=policy, client_held=True
    )
    try:
        await fill(gallery, vectors[:compared], tell)
        worst = 0.0
        for face in faces:
            slots, distances = await gallery.distances(face)
            found = vectors[slots - 1].astype(np.float64)
            exact = 1 - found @ face / np.linalg.norm(found, axis=1) / np.linalg.norm(face)
            worst = max(worst, float(np.abs(distances - exact).max()))
    finally:
        await client.delete_gallery(gallery.id)
    return worst, compared
