"""The service among the others: who is away, how long it waits, what it leaves behind."""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import structlog
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sealface.edge.server import SERVICE, EdgeConfig, build
from sealface.protocol.signing import Credential, CredentialUnreadable
from sealface.recognition import Limits
from sealface.runtime import logs
from sealface.runtime.server import ServerConfig
from sealface_client.aio import CredentialMissing
from sealface_client.endpoints import NoServices
from sealface_protos.edge.v1 import edge_service_pb2 as messages
from sealface_protos.keys.v1 import caller_pb2, key_service_pb2
from tests.edge.proxy import Tap
from tests.edge.zones import Zones, embedding, refused


async def callers(zones: Zones) -> list[caller_pb2.Caller]:
    return list((await zones.client.keys.ListCallers(key_service_pb2.ListCallersRequest())).callers)


# --- health and reflection


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_health(zones: Zones, name: str) -> None:
    response = await health_pb2_grpc.HealthStub(zones.channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection(zones: Zones) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(zones.channel)

    async def requests():  # type: ignore[no-untyped-def]
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)

    listed, described = [response async for response in stub.ServerReflectionInfo(requests())]
    assert SERVICE in {service.name for service in listed.list_services_response.service}
    files = [FileDescriptorProto.FromString(data) for data in described.file_descriptor_response.file_descriptor_proto]
    methods = {method.name for file in files for service in file.service for method in service.method}
    assert methods == {"Enroll", "Verify", "Identify"}


# --- its credential


async def test_it_signs_with_a_credential_of_its_own(zones: Zones) -> None:
    (own,) = [caller for caller in await callers(zones) if caller.name != "callers/operator"]
    assert own.name.startswith("callers/edge-")
    assert own.role == caller_pb2.CALLER_ROLE_VERIFIER
    (file,) = (zones.state / "edge-service").glob("edge-*.pem")
    assert Credential.load(file).verifying_key == own.verifying_key
    assert file.stat().st_mode & 0o777 == 0o600
    await zones.start_edge()
    assert len(await callers(zones)) == 2  # the same again


async def test_a_credential_that_was_never_registered_is_registered(zones: Zones) -> None:
    (own,) = [caller.name for caller in await callers(zones) if caller.name != "callers/operator"]
    await zones.client.keys.DeleteCaller(key_service_pb2.DeleteCallerRequest(name=own))
    await zones.enroll("p0", embedding(0))
    refusal = await refused(zones.verify("p0", embedding(0, 1)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNKNOWN_CALLER")
    await zones.start_edge()
    assert await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"


async def test_it_needs_no_operator(zones: Zones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (zones.state / "edge" / "operator.pem").unlink()
    await zones.start_edge()  # with the credential it has
    await zones.enroll("p0", embedding(0))
    assert await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"

    given = Credential.generate("callers/given")
    await zones.client.create_caller("given", given.verifying_key)
    (own,) = (zones.state / "edge-service").glob("edge-*.pem")
    own.unlink()
    with pytest.raises(CredentialMissing, match="SEALFACE_CREDENTIAL"):
        await zones.start_edge()
    monkeypatch.setenv("SEALFACE_CREDENTIAL", str(given.save(tmp_path)))
    await zones.start_edge()
    assert await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"
    monkeypatch.setenv("SEALFACE_CREDENTIAL", str(tmp_path / "missing.pem"))
    with pytest.raises(CredentialUnreadable, match=r"missing\.pem"):
        await zones.start_edge()


async def test_it_says_that_it_knows_no_services(zones: Zones, tmp_path: Path) -> None:
    with pytest.raises(NoServices, match="sealface serve"):
        await build(EdgeConfig(tmp_path / "empty", ServerConfig(), warm=False), zones.scheme)


# --- others away, others slow


@pytest.mark.parametrize(
    ("away", "reason"),
    [("enrollment", "UNAVAILABLE"), ("matching", "UNAVAILABLE"), ("keys", "KEY_SERVICE_UNAVAILABLE")],
)
async def test_a_service_away_and_back(zones: Zones, away: str, reason: str) -> None:
    await zones.enroll("p0", embedding(0))
    assert await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"
    await zones.stop_service(away)
    call = zones.enroll("p1", embedding(1)) if away == "enrollment" else zones.verify("p0", embedding(0, 1))
    refusal = await refused(call)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, reason)
    assert "service does not answer" in refusal.message
    assert refusal.infos[0].domain == "sealface"
    await zones.start_service(away)
    assert await eventually_verifies(zones)


async def eventually_verifies(zones: Zones) -> bool:
    """Whether the service is of use again; channels try again only after a while."""
    for _ in range(50):
        try:
            return await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)
    return False


async def test_all_services_away_from_the_first_call(zones: Zones) -> None:
    for name in ("matching", "enrollment", "keys"):
        await zones.stop_service(name)
    refusal = await refused(zones.identify(embedding(0)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def tapped(zones: Zones, name: str) -> Tap:
    tap = Tap(zones.addresses[name])
    zones.write_services(**{name: await tap.start()})
    await zones.start_edge()
    return tap


async def test_others_get_the_time_that_is_left(zones: Zones) -> None:
    tap = await tapped(zones, "enrollment")
    try:
        await zones.enroll("p0", embedding(0), timeout=5)
        assert [name for name, _ in tap.waits] == ["GetGallery", "GetGallery", "Enroll"]
        assert all(4 < (wait or 0) < 5.1 for _, wait in tap.waits)
        tap.waits.clear()
        await zones.enroll("p0", embedding(0))  # no deadline: ours
        assert [name for name, _ in tap.waits] == ["GetGallery", "Enroll"]
        assert all(55 < (wait or 0) < 60.5 for _, wait in tap.waits)
    finally:
        await tap.stop()


async def test_a_deadline_ends_the_call_everywhere(zones: Zones) -> None:
    tap = await tapped(zones, "matching")
    try:
        await zones.enroll("p0", embedding(0))
        tap.held.add("Verify")
        started = time.monotonic()
        refusal = await refused(zones.verify("p0", embedding(0, 1), timeout=1))
        assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0.9 < time.monotonic() - started < 3
        for _ in range(40):
            if tap.ended:
                break
            await asyncio.sleep(0.05)
        assert tap.ended == ["Verify"]
        tap.held.clear()
        assert await zones.verify("p0", embedding(0, 1)) == "DECISION_MATCH"
    finally:
        await tap.stop()


# --- limits


async def test_a_message_over_the_limit(zones: Zones) -> None:
    refusal = await refused(zones.enroll("p0", b"x" * (22 << 20)))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_limit_is_this_services_alone(zones: Zones) -> None:
    await zones.start_edge(Limits(max_bytes=1000))
    refusal = await refused(zones.enroll("p0", b"x" * (2 << 20)))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.infos == []  # gRPC's own: it was not read


# --- nothing stays


def runs(values: np.ndarray) -> set[bytes]:
    """Every run of 8 bytes of an embedding, as float64 and float32, as given and of unit length."""
    found = set()
    for vector in (values, values / np.linalg.norm(values)):
        for kind in ("<f8", "<f4", ">f8", ">f4"):
            data = vector.astype(kind).tobytes()
            found.update(data[at : at + 8] for at in range(len(data) - 7))
    return found


def holds(data: bytes, wanted: set[bytes]) -> bool:
    return any(data[at : at + 8] in wanted for at in range(len(data) - 7))


def read(path: Path) -> bytes:
    return path.read_bytes()


def test_the_search_finds_an_embedding() -> None:
    values = embedding(0)
    wanted = runs(values)
    assert holds(b"abc" + struct.pack("<d", values[7]), wanted)
    assert holds(b"abc" + values[3:5].astype(np.float32).tobytes() + b"d", wanted)
    assert holds(messages.Embedding(values=values).SerializeToString(), wanted)
    assert not holds(embedding(1).tobytes(), wanted)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the service writes its log, as in a process of its own."""
    path = tmp_path / "edge.log"
    with path.open("w", buffering=1) as file:
        monkeypatch.setattr(sys, "stderr", file)
        logs.configure("edge")
        yield path
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


async def test_nothing_of_a_face_stays_or_leaves(
    real_zones: Zones, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    zones = real_zones
    taps = {name: Tap(zones.addresses[name]) for name in ("keys", "enrollment", "matching")}
    zones.write_services(**{name: await tap.start() for name, tap in taps.items()})
    await zones.start_edge()
    before = {path.name for path in (zones.state / "edge-service").rglob("*")}
    faces = [embedding(0), embedding(0, 1), embedding(1)]
    try:
        await zones.enroll("p0", faces[0])
        assert await zones.verify("p0", faces[1]) == "DECISION_MATCH"
        assert await zones.verify("p0", faces[2]) == "DECISION_NO_MATCH"
        assert list((await zones.identify(faces[1])).subject_ids) == ["p0"]
        await refused(zones.enroll("p0", faces[0][:-1]))
    finally:
        for tap in taps.values():
            await tap.stop()
    await zones.stop_service("edge")

    wanted = set().union(*map(runs, faces))
    assert {path.name for path in (zones.state / "edge-service").rglob("*")} == before
    for path in (zones.state / "edge-service").rglob("*"):
        assert path.is_dir() or not holds(read(path), wanted), path
    sent = [request for tap in taps.values() for request in tap.requests]
    assert max(map(len, sent)) > 10_000  # ciphertexts went by
    assert not any(holds(request, wanted) for request in sent)
    written = read(log).decode() + "".join(capfd.readouterr())
    assert "/sealface.edge.v1.EdgeService/Verify" in written  # it did log
    assert "p0" not in written
    for text in (f"{value:.4f}" for face in faces for value in face if abs(value) >= 0.1):
        assert text not in written
