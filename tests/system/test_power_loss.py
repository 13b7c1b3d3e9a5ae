"""A key service that is killed at any moment of create, rotate, rewrap and destroy recovers by itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
from collections.abc import Awaitable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sealface.cipher import kernels, public_key, wire
from sealface.cipher.parameters import N4096
from sealface.cipher.ring import intt
from sealface.cli.processes import LocalServices, _compile, _prepare
from sealface.keys.providers import FileKey
from sealface.keys.wrapping import Envelope
from sealface.protocol import sealing
from sealface.protocol.signing import Credential
from sealface_client import AsyncClient, Endpoints
from sealface_protos.keys.v1 import key_pb2, key_service_pb2
from tests.keys.conftest import new_key

KILLS = 12
LIVES_S = 1.2  # at most, from the first request to the kill
NOTHING = "127.0.0.1:1"
k = key_service_pb2


@dataclass
class Known:
    """What was acknowledged.

    Attributes:
        secrets: SHA-256 of the secret of each version that is to be there; empty until it was seen.
        bodies: a piece of its wrapped secret, which no rewrapping changes.
        doubtful: versions whose destruction was asked for, and not acknowledged.
        destroyed: versions whose destruction was acknowledged.
        rewrapped: rewrappings that were acknowledged.
    """

    secrets: dict[str, bytes] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    destroyed: set[str] = field(default_factory=set)
    rewrapped: int = 0


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    """The key service alone, with two key-encryption keys that change places."""
    state = LocalServices(tmp_path, insecure=True)
    _prepare(tmp_path)
    _compile(tmp_path)
    for name in ("one", "two"):
        FileKey.create(tmp_path / "keys" / name)
    yield state
    if state._processes:
        os.kill(state.pid("keys"), signal.SIGKILL)
        state._processes["keys"].popen.communicate()


def database(services: LocalServices) -> Path:
    return services.state / "keys" / "keys.db"


def stored(services: LocalServices) -> dict[str, tuple[str, bytes | None]]:
    """State and wrapped secret of every version."""
    with closing(sqlite3.connect(database(services), timeout=30)) as connection:
        query = "SELECT 'keys/' || key || '/versions/' || number, state, wrapped_secret FROM key_versions"
        return {name: (state, blob) for name, state, blob in connection.execute(query)}


async def export(client: AsyncClient, name: str) -> bytes:
    receiver = X25519PrivateKey.generate()
    public = receiver.public_key().public_bytes_raw()
    answer = await client.keys.ExportKeyVersion(k.ExportKeyVersionRequest(name=name, hpke_public_key=public))
    return sealing.open_secret(answer.box, name, receiver)


async def fits(client: AsyncClient, name: str, secret: bytes) -> bool:
    """Whether a public key is one of the secret: b + a s is small."""
    request = k.GetMaterialRequest(key_version=name)
    public = b"".join([chunk.data async for chunk in client.keys.GetMaterial(request)])
    b, a = public_key.parse(N4096, public)
    (s,) = wire.unpack(secret, 1, N4096.degree, N4096.primes)
    error = intt(kernels.multiply_add(a, s, b, N4096.primes)[0], N4096.primes[0]).astype(np.int64)
    return bool(np.minimum(error, N4096.primes[0] - error).max() < 64)


async def drive(client: AsyncClient, known: Known, services: LocalServices, prefix: str) -> None:
    """Create, rotate, rewrap and destroy until the service is gone."""

    async def lives(worker: int) -> None:
        for number in range(1000):
            key_id = f"{prefix}-{worker}-{number}"
            first, second = (f"keys/{key_id}/versions/{version}" for version in (1, 2))
            await client.keys.CreateKey(k.CreateKeyRequest(key_id=key_id, key=new_key(exportable=True)))
            known.secrets[first] = b""
            known.bodies[first] = Envelope.parse(stored(services)[first][1] or b"").body[-64:]
            await client.keys.RotateKey(k.RotateKeyRequest(name=f"keys/{key_id}", primary_version=first))
            known.secrets[second] = b""
            known.secrets[first] = hashlib.sha256(await export(client, first)).digest()
            del_first = k.DestroyKeyVersionRequest(name=first, undo_window={"seconds": 0})
            if number % 2 == 0:
                known.doubtful.add(first)
                answer = await client.keys.DestroyKeyVersion(del_first)
                assert answer.state == key_pb2.KEY_VERSION_STATE_DESTROYED
                known.destroyed.add(first)

    async def moves() -> None:
        for _ in range(1000):
            done = await client.keys.RewrapKeys(k.RewrapKeysRequest())
            assert list(done.failed) == []
            known.rewrapped += 1
            await asyncio.sleep(0.05)

    await asyncio.gather(*(ends(task) for task in (lives(0), lives(1), moves())))


async def ends(work: Awaitable[None]) -> None:
    """Work that a kill ends, and nothing else does."""
    try:
        await work
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        assert not error.details().startswith("the "), error  # no answer of the service's own


async def check(client: AsyncClient, known: Known, services: LocalServices) -> None:
    """Everything that was acknowledged is so."""
    with closing(sqlite3.connect(database(services), timeout=30)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        query = (
            "SELECT keys.id FROM keys LEFT JOIN key_versions ON key = id AND number = primary_version "
            "WHERE number IS NULL UNION ALL SELECT key FROM key_versions WHERE (state = 'destroyed') IS NOT "
            "(wrapped_secret IS NULL) UNION ALL SELECT key FROM key_versions WHERE (SELECT count(*) FROM "
            "evaluation_keys WHERE evaluation_keys.key = key_versions.key AND version = number) "
            "!= CASE state WHEN 'destroyed' THEN 0 ELSE 7 END"
        )
        assert connection.execute(query).fetchall() == []  # nothing was made, or destroyed, by half
    versions = stored(services)
    for name in known.doubtful - known.destroyed:
        if versions[name][0] == "destroyed":
            known.destroyed.add(name)
    for name in known.destroyed:
        known.secrets.pop(name, None)
        assert versions[name] == ("destroyed", None), name
    for name, digest in known.secrets.items():
        secret = await export(client, name)
        assert digest in (b"", hashlib.sha256(secret).digest()), name
        if not digest:
            assert await fits(client, name, secret), name
            known.secrets[name] = hashlib.sha256(secret).digest()
    gone = {known.bodies[name] for name in known.destroyed if name in known.bodies}
    while any(body in path.read_bytes() for path in database(services).parent.glob("keys.db*") for body in gone):
        await asyncio.sleep(0.1)  # the destroyer looks when it starts; the test's own time limit ends the wait


async def test_whenever_it_is_killed_everything_acknowledged_holds(services: LocalServices) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng, known = random.Random(seed), Known()
    keys = [f"file:{services.state / 'keys' / name}" for name in ("one", "two")]
    identity = None
    for life in range(KILLS + 1):
        keys.reverse()
        services.environment = {"SEALFACE_KEY_ENCRYPTION": keys[0], "SEALFACE_KEY_ENCRYPTION_OLD": keys[1]}
        await asyncio.to_thread(services.launch, "keys")
        credential = Credential.load(services.state / "edge" / "operator.pem")
        endpoints = Endpoints(services.addresses["keys"], NOTHING, NOTHING)
        async with AsyncClient(endpoints, credential) as client:
            signs = (await client.keys.GetServiceIdentity(k.GetServiceIdentityRequest())).verifying_key
            assert identity in (None, signs)
            identity = signs
            await check(client, known, services)
            if life == KILLS:
                break
            driven = asyncio.create_task(drive(client, known, services, f"life-{life}"))
            await asyncio.sleep(rng.uniform(0.05, LIVES_S))
            os.kill(services.pid("keys"), signal.SIGKILL)
            await asyncio.to_thread(services._processes["keys"].popen.wait)
            await driven
    print(f"{KILLS} kills: {len(known.secrets)} versions there, {len(known.destroyed)} destroyed")
    assert known.secrets and known.destroyed and known.rewrapped
