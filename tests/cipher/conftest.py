"""Keys are made once: generation takes a tenth of a second, and no test changes one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cipher import evaluator, kernels, public_key, wire, zeros
from sealface.cipher.distance import Metric
from sealface.cipher.evaluator import Block, Evaluator, Probe
from sealface.cipher.layout import Layout, Shape
from sealface.cipher.opening import Opener
from sealface.cipher.parameters import N4096, ParameterSet
from sealface.cipher.randomness import Randomness
from sealface.cipher.ring import Residues
from sealface.cipher.scheme import Ckks, Encryptor, KeyMaterial


class PlainProcessor:
    """A process that compiles every kernel for the least processor of this kind; takes some ten seconds."""

    def __init__(self) -> None:
        self._cache = tempfile.TemporaryDirectory()
        environment = os.environ | {
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
            "NUMBA_CACHE_DIR": self._cache.name,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cipher.portable"],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._found: dict[str, Any] = {}

    def found(self) -> dict[str, Any]:
        """What it computed; see `portable`."""
        if not self._found:
            printed, _ = self._process.communicate()
            assert self._process.returncode == 0
            self._found = json.loads(printed)
        return self._found

    def close(self) -> None:
        """End it, whether it is done or not."""
        self._process.kill()
        with self._process:
            pass  # waits, and closes the pipe
        self._cache.cleanup()


_started: list[PlainProcessor] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have it run beside the other tests, if any asks for it."""
    if any("plain_processor" in getattr(item, "fixturenames", ()) for item in session.items):
        _started.append(PlainProcessor())


def pytest_sessionfinish() -> None:
    for process in _started:
        process.close()
    _started.clear()


@pytest.fixture
def plain_processor() -> dict[str, Any]:
    """Digests of what the kernels compute on the least processor of this kind; see `portable`."""
    return _started[0].found()


class Sides:
    """One key and one layout, from every side."""

    def __init__(self, layout: Layout, key: KeyMaterial) -> None:
        parameters = layout.parameters
        self.layout = layout
        self.key = key
        self.primes = parameters.data_primes
        self.moduli = np.array(self.primes, np.uint64)[:, None]
        self.secret: Residues = wire.unpack(key.secret, 1, parameters.degree, parameters.primes)[0]
        self.public: Residues = public_key.parse(parameters, key.public)
        self.encryptor: Encryptor = Ckks().encryptor(layout, key.public)
        digits, n = len(self.primes), parameters.degree
        self.galois: dict[int, Residues] = {
            element: wire.unpack(data, 2 * digits, n, parameters.primes).reshape(digits, 2, -1, n)
            for element, data in key.evaluation.items()
        }
        self.evaluator = Evaluator(layout, self.public, self.galois)
        self.opener = Opener(layout, self.secret)

    def fresh_evaluator(self, threads: int = 1) -> Evaluator:
        """An evaluator of its own, with a pool of its own."""
        return Ckks().evaluator(self.layout, self.key.public, self.key.evaluation, threads)

    def templates(self, embeddings: NDArray[np.float64]) -> dict[int, bytes]:
        """Admitted templates by position."""
        return {i: self.evaluator.admit(self.encryptor.template(e)) for i, e in enumerate(embeddings)}

    def group(self, embeddings: NDArray[np.float64]) -> Block:
        """A group of embeddings."""
        return self.evaluator.assemble(self.templates(embeddings))

    def imported(self, shape: Shape, embeddings: NDArray[np.float64]) -> Block:
        """A sealed block of embeddings that was encrypted whole."""
        sent = self.encryptor.block(shape, embeddings)
        return self.evaluator.load(shape, self.evaluator.admit_block(shape, sent))

    def probe(self, embedding: NDArray[np.float64]) -> Probe:
        """An admitted probe."""
        return self.evaluator.admit_probe(self.encryptor.probe(embedding))

    def score(
        self,
        block: Block,
        probe: Probe | list[Probe],
        positions: Iterable[int] | None = None,
        evaluator: Evaluator | None = None,
        times: int = 1,
    ) -> list[bytes]:
        """Results of a block by probe; all positions unless told otherwise, and once."""
        chosen = self.evaluator if evaluator is None else evaluator
        leaves = chosen.expand(probe if isinstance(probe, list) else [probe], [block.shape])[block.shape]
        requested = [asked(block.shape, positions)]
        return [result for _ in range(times) for (result,) in chosen.score([block], leaves, requested)]


def asked(shape: Shape, positions: Iterable[int] | None = None) -> NDArray[np.bool_]:
    """A request for some positions of a block, or for all."""
    requested = np.full(shape.capacity, positions is None)
    requested[[] if positions is None else list(positions)] = True
    return requested


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


class Recorder(Randomness):
    """Remembers what was drawn."""

    drawn: ClassVar[list[tuple[str, NDArray[np.int64]]]] = []

    def ternary(self, n: int) -> NDArray[np.int64]:
        self.drawn.append(("ternary", super().ternary(n)))
        return self.drawn[-1][1]

    def error(self, n: int) -> NDArray[np.int64]:
        self.drawn.append(("error", super().error(n)))
        return self.drawn[-1][1]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, NDArray[np.int64]]]:
    """What compute draws from here on."""
    monkeypatch.setattr(evaluator, "Randomness", Recorder)
    monkeypatch.setattr(zeros, "Randomness", Recorder)
    monkeypatch.setattr(Recorder, "drawn", [])
    return Recorder.drawn


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers every time."""
    return np.random.default_rng(20)


def units(rng: np.random.Generator, count: int, dimension: int) -> NDArray[np.float64]:
    """Random unit vectors (count, dimension)."""
    vectors = rng.standard_normal((count, dimension))
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def centred(residues: Residues, p: int) -> NDArray[np.int64]:
    """Coefficients of polynomials in NTT form, around zero."""
    values = kernels.intt(residues, p).astype(np.int64)
    return np.where(values > p // 2, values - p, values)


def assert_uniform(values: NDArray[np.uint64], p: int, buckets: int = 64) -> None:
    """Chi-square against uniform modulo p; refuses uniform values about once in 10^9."""
    counts = np.bincount((values.ravel().astype(np.float64) * buckets / p).astype(int), minlength=buckets)
    expected = values.size / buckets
    assert expected > 20, "too few values to say anything"
    chi2 = ((counts - expected) ** 2 / expected).sum()
    spread = 2 / 9 / (buckets - 1)  # six standard deviations by Wilson and Hilferty 1931, right for few buckets as well
    limit = (buckets - 1) * (1 - spread + 6 * np.sqrt(spread)) ** 3
    assert chi2 < limit, f"not uniform: chi2 {chi2:.0f} of {buckets}"
