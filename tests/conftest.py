"""The three services in this process, on free ports, over a temporary folder."""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from sealface.cipher.scheme import Ckks, Scheme
from sealface.enrollment.server import EnrollmentConfig
from sealface.enrollment.server import build as build_enrollment
from sealface.keys.server import KeyConfig
from sealface.keys.server import build as build_keys
from sealface.matching.server import MatchingConfig
from sealface.matching.server import build as build_matching
from sealface.protocol.policy import Policy
from sealface.protocol.signing import Credential
from sealface.recognition import weights_home
from sealface.recognition.weights import DLIB_WEIGHTS, weights_folder
from sealface.runtime.authentication import Issuer
from sealface.runtime.authorisation import Rate
from sealface.runtime.server import Server, ServerConfig
from sealface.storage.cache import CacheConfig
from sealface.workers.pool import Home
from sealface_client import AsyncClient, AsyncGallery, Endpoints
from tests.plain import Plain

SERVICES = ("keys", "enrollment", "matching")
DIMENSION = 128
DATA = Path(__file__).parents[2] / "shared" / "data"
POLICY = Policy(verification_threshold=0.4, identification_threshold=0.3, max_candidates=5)

Vector = NDArray[np.float64]

both_schemes = pytest.mark.parametrize("scheme", ["plain", "ckks"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, and say why."""
    missing = _what_deepface_lacks()
    for item in items:
        if missing and item.get_closest_marker("faces"):
            item.add_marker(pytest.mark.skip(reason=missing))
        if not DATA.is_dir() and item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason="no ../shared/data"))


def _what_deepface_lacks() -> str | None:
    for module in ("deepface", "dlib", "cv2", "PIL"):
        if importlib.util.find_spec(module) is None:
            return f"module {module} is not installed: make test"
    for name in DLIB_WEIGHTS:
        if not (weights_folder() / name).is_file():
            return f"{name} is not below {weights_home()}: python -m sealface.recognition.weights"
    return None


@dataclass
class Suite:
    """Keys, enrollment and matching. A service that is started again keeps its address and its folder."""

    folder: Path
    scheme: Scheme
    grace_s: float = 5.0
    threads: int = 1
    memory: int = 1 << 62
    cache: CacheConfig | None = None
    home: Home | None = None  # of workers; one in the matching service if none is named
    database: str = ""
    issuers: tuple[Issuer, ...] = ()
    rate: Rate = field(default_factory=Rate)
    key_encryption: dict[str, Any] = field(default_factory=dict)  # of KeyConfig
    operator: Credential = field(default_factory=lambda: Credential.generate("callers/operator"))
    addresses: dict[str, str] = field(default_factory=dict)
    _servers: dict[str, Server] = field(default_factory=dict)
    _clients: list[AsyncClient] = field(default_factory=list)

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def compute(self) -> Path:
        return self.folder / "compute"

    async def start(self, *services: str) -> None:
        for service in services or SERVICES:
            config = ServerConfig(self.addresses.get(service, "127.0.0.1:0"), grace_s=self.grace_s)
            if service == "keys":
                self.keys.mkdir(exist_ok=True)
                public = self.operator.key.public_key()
                pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                (self.keys / "operator.pub").write_bytes(pem)
                server = build_keys(
                    KeyConfig(self.keys, config, self.keys / "operator.pub", **self.key_encryption), self.scheme
                )
            elif service == "enrollment":
                of_record = self.database, self.cache, self.issuers, self.rate
                enrollment = EnrollmentConfig(self.compute, config, self.addresses["keys"], *of_record)
                server = build_enrollment(enrollment, self.scheme)
            else:
                matching = MatchingConfig(
                    self.compute,
                    config,
                    self.addresses["keys"],
                    self.home,
                    threads=self.threads,
                    memory=self.memory,
                    database=self.database,
                    cache=self.cache,
                    issuers=self.issuers,
                    rate=self.rate,
                )
                server = build_matching(matching, self.scheme)
            self.addresses[service] = await server.start()
            self._servers[service] = server

    async def stop(self, *services: str) -> None:
        for service in services or reversed(SERVICES):
            if server := self._servers.pop(service, None):
                await server.stop()

    async def restart(self, *services: str) -> None:
        await self.stop(*services)
        await self.start(*services)

    def client(self, credential: Credential | None = None, anonymous: bool = False, **options: Any) -> AsyncClient:
        """A client; the operator's unless told otherwise."""
        client = AsyncClient(
            self.endpoints,
            None if anonymous else credential or self.operator,
            keys=self.folder / "edge",
            scheme=self.scheme,
            **options,
        )
        self._clients.append(client)
        return client

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(**self.addresses)

    def record(self) -> dict[str, list[Any]]:
        """All rows of the compute zone's record."""
        return dump(self.compute / "record.db")

    async def sealed(self, *blocks: int) -> None:
        """Wait until the sealed blocks of all galleries hold so many templates each, erased ones not counted."""
        query = (
            "SELECT count(slot) FROM blocks LEFT JOIN templates "
            "ON templates.gallery = blocks.gallery AND templates.block = blocks.number "
            "GROUP BY blocks.gallery, blocks.number ORDER BY 1"
        )
        found: list[int] = []
        for _ in range(400):
            found = [row[0] for row in select(self.compute / "record.db", query)]
            if found == sorted(blocks):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"sealed are {found}")

    def metric(self, service: str, name: str, **labels: str) -> float | None:
        """A sample of a service's metrics; None if there is none."""
        return self._servers[service].registry.get_sample_value(name, labels)

    def metrics(self, service: str) -> dict[tuple[str, ...], float]:
        """All samples of a service's own metrics, not of its calls, by name and labels."""
        families = self._servers[service].registry.collect()
        samples = [one for family in families if family.name.startswith("sealface_") for one in family.samples]
        return {(one.name, *sorted(one.labels.values())): one.value for one in samples}

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.stop()


def dump(path: Path) -> dict[str, list[Any]]:
    """All rows of a database by table, but for its version and for who works on what."""
    connection = sqlite3.connect(path)
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert tables
        tables = [table for table in tables if table not in ("alembic_version", "leases")]
        return {table: sorted(connection.execute(f'SELECT * FROM "{table}"').fetchall()) for table in tables}  # noqa: S608
    finally:
        connection.close()


def select(path: Path, query: str, *values: Any) -> list[Any]:
    """Rows of a database."""
    connection = sqlite3.connect(path, timeout=30)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def execute(path: Path, statement: str, *values: Any) -> int:
    """Change a database behind its service's back; returns how many rows."""
    connection = sqlite3.connect(path, timeout=30)
    try:
        with connection:
            return connection.execute(statement, values).rowcount
    finally:
        connection.close()


@pytest.fixture
def scheme(request: pytest.FixtureRequest) -> Scheme:
    """Without encryption, unless a test asks for `both_schemes`."""
    return {"plain": Plain, "ckks": Ckks}[getattr(request, "param", "plain")]()


@pytest.fixture
async def suite(tmp_path: Path, scheme: Scheme) -> AsyncIterator[Suite]:
    running = Suite(tmp_path, scheme)
    await running.start()
    yield running
    await running.close()


@pytest.fixture
def client(suite: Suite) -> AsyncClient:
    """The operator's."""
    return suite.client()


@pytest.fixture
async def door(client: AsyncClient) -> AsyncGallery:
    """A managed gallery, empty."""
    return await client.create_gallery("door", policy=POLICY)


@pytest.fixture
async def safe(client: AsyncClient) -> AsyncGallery:
    """A client-held gallery, empty."""
    return await client.create_gallery("safe", policy=POLICY, client_held=True)


def person(number: int, dimension: int = DIMENSION) -> Vector:
    """Somebody's embedding, a unit vector: at a cosine distance of about 1 from everybody else's."""
    vector = np.random.default_rng(number).standard_normal(dimension)
    return vector / np.linalg.norm(vector)


def near(embedding: Vector, distance: float, number: int = 0) -> Vector:
    """A unit vector at exactly that cosine distance."""
    aside = np.random.default_rng(10_000 + number).standard_normal(embedding.size)
    aside -= (aside @ embedding) * embedding
    aside /= np.linalg.norm(aside)
    cosine = 1 - distance
    return cosine * embedding + np.sqrt(1 - cosine**2) * aside


def status_of(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    """Code and the one ErrorInfo of a failed call."""
    details = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    assert len(details) == 1, f"{error.code()}: {error.details()}"
    status = status_pb2.Status.FromString(details[0])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return error.code(), only_info(status)


def only_info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    assert len(status.details) == 1
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "sealface"
    return info


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in a failed call's ErrorInfo."""
    return str(status_of(error)[1].reason)


@contextmanager
def refused(code: str, reason: str) -> Iterator[pytest.ExceptionInfo[grpc.aio.AioRpcError]]:
    """A call within fails with exactly that."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield caught
    found, info = status_of(caught.value)
    assert (found.name, info.reason) == (code, reason)
