"""Services as real processes, and people as random vectors, so that no model is needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.cli.processes import SERVICES, LocalServices, local_services
from sealface.protocol.policy import AMPLE, Policy
from sealface_client import Client

DATA = Path(__file__).parents[3] / "shared" / "data"
DIMENSION = 128
POLICY = Policy(verification_threshold=0.3, identification_threshold=0.3, max_candidates=3, budget=AMPLE)

Vector = NDArray[np.float64]


class People:
    """Faces of people who do not exist: another picture of a person lies near, everybody else far."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def somebody(self) -> Vector:
        return self._rng.normal(size=DIMENSION)

    def again(self, person: Vector) -> Vector:
        """Cosine distance to the person about 0.04; to anybody else about 1."""
        return person + 0.3 * self._rng.normal(size=DIMENSION)


def cosine(a: Vector, b: Vector) -> float:
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def people() -> People:
    return People(20261123)


@pytest.fixture(scope="module")
def services() -> Iterator[LocalServices]:
    """Services for the tests of one module. The test that stops one starts it again."""
    with local_services() as started:
        yield started


@pytest.fixture
def client(services: LocalServices) -> Iterator[Client]:
    with Client.connect(services.state) as connected:
        yield connected


def kill(services: LocalServices, name: str) -> None:
    """As a power failure would, or the kernel when memory is short."""
    os.kill(services.pid(name), signal.SIGKILL)


@contextmanager
def revived(services: LocalServices, name: str) -> Iterator[None]:
    """A service is dead for the time of a block."""
    kill(services, name)
    try:
        yield
    finally:
        services.launch(name)


def logs(services: LocalServices) -> dict[str, str]:
    return {name: next(services.state.glob(f"*/{name}.log")).read_text() for name in SERVICES}
