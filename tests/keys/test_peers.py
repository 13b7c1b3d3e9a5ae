"""Over TLS the key service decides and renews for compute alone, and knows it by its certificate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealface.cli.authority import Authority
from sealface.keys.server import SERVICE, KeyConfig, build
from sealface.protocol.signing import Credential
from sealface.protocol.zones import Zone
from sealface.runtime.server import ServerConfig
from sealface.runtime.tls import Tls
from sealface_client.channels import OperatorSigner, open_channel
from sealface_protos.keys.v1 import caller_pb2, key_service_pb2, key_service_pb2_grpc
from tests.conftest import refused
from tests.plain import Plain

FOR_COMPUTE = ("Decide", "RenewBlock", "FindCaller")
METHODS = [method.name for method in key_service_pb2.DESCRIPTOR.services_by_name["KeyService"].methods]


@dataclass
class Keys:
    """A key service behind TLS, and ways to call it."""

    folder: Path
    authority: Authority
    address: str
    internal: str
    stack: AsyncExitStack

    async def channel(self, zone: Zone | None, address: str) -> grpc.aio.Channel:
        """With a certificate of a zone, or with none."""
        tls = files(self.folder / f"client-{zone}")
        self.authority.certify(tls, zone or Zone.EDGE)
        shown = (tls.key.read_bytes(), tls.certificate.read_bytes()) if zone else ()
        credentials = grpc.ssl_channel_credentials(tls.authority.read_bytes(), *shown)
        names = [("grpc.ssl_target_name_override", Zone.KEYS.server_name)]
        return await self.stack.enter_async_context(grpc.aio.secure_channel(address, credentials, options=names))


def files(folder: Path) -> Tls:
    return Tls(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")


@pytest.fixture
def operator() -> Credential:
    return Credential.generate("callers/operator")


@pytest.fixture
async def keys(tmp_path: Path, operator: Credential) -> AsyncIterator[Keys]:
    authority, tls = Authority.create(), files(tmp_path / "server")
    authority.certify(tls, Zone.KEYS)
    (tmp_path / "operator.pub").write_bytes(
        operator.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    listening = ServerConfig(tls=tls, internal="127.0.0.1:0", grace_s=1)
    server = build(KeyConfig(tmp_path / "keys", listening, tmp_path / "operator.pub"), Plain())
    address = await server.start()
    async with AsyncExitStack() as stack:
        yield Keys(tmp_path, authority, address, server.internal, stack)
    await server.stop()


def called(channel: grpc.aio.Channel, method: str) -> Any:
    """A call without a message, or with an empty one."""
    described = key_service_pb2.DESCRIPTOR.services_by_name["KeyService"].methods_by_name[method]
    kind = "_".join("stream" if s else "unary" for s in (described.client_streaming, described.server_streaming))
    make: Callable[..., Any] = getattr(channel, kind)(f"/{SERVICE}/{method}")
    call = make(iter([b""]) if described.client_streaming else b"", timeout=10)
    return call.read() if described.server_streaming else call


@pytest.mark.parametrize("method", FOR_COMPUTE)
async def test_compute_may_call_what_is_for_it(keys: Keys, method: str) -> None:
    channel = await keys.channel(Zone.COMPUTE, keys.internal)
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # it is answered, and an empty message is no request
        await called(channel, method)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", FOR_COMPUTE)
@pytest.mark.parametrize("zone", [Zone.EDGE, Zone.KEYS])
async def test_another_zone_may_not(keys: Keys, method: str, zone: Zone) -> None:
    channel = await keys.channel(zone, keys.internal)
    with refused("PERMISSION_DENIED", "PEER_NOT_ALLOWED"):
        await called(channel, method)


@pytest.mark.parametrize("method", FOR_COMPUTE)
@pytest.mark.parametrize("zone", [None, Zone.COMPUTE])
async def test_at_the_address_for_callers_nobody_may(keys: Keys, method: str, zone: Zone | None) -> None:
    channel = await keys.channel(zone, keys.address)
    with refused("UNAUTHENTICATED", "PEER_CERTIFICATE_MISSING"):
        await called(channel, method)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(FOR_COMPUTE)))
async def test_every_other_method_needs_no_certificate(keys: Keys, method: str) -> None:
    """What answers is the method, or the check of an operator's signature."""
    channel = await keys.channel(None, keys.address)
    try:
        await called(channel, method)
    except grpc.aio.AioRpcError as error:
        reasons = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED)
        assert error.code() in reasons
        assert "PEER" not in str(error.trailing_metadata())


async def test_an_operator_needs_a_signature_and_no_certificate(keys: Keys, operator: Credential) -> None:
    ca = keys.folder / "server" / "ca.crt"
    async with open_channel(keys.address, Zone.KEYS, ca, OperatorSigner(operator)) as channel:
        stub: key_service_pb2_grpc.KeyServiceAsyncStub = key_service_pb2_grpc.KeyServiceStub(channel)
        caller = caller_pb2.Caller(
            verifying_key=Credential.generate("callers/door").verifying_key, role=caller_pb2.CALLER_ROLE_VERIFIER
        )
        made = await stub.CreateCaller(key_service_pb2.CreateCallerRequest(caller_id="door", caller=caller))
        assert made.name == "callers/door"


async def test_a_client_does_not_take_a_service_of_compute_for_the_key_service(tmp_path: Path) -> None:
    authority, tls = Authority.create(), files(tmp_path / "impostor")
    authority.certify(tls, Zone.COMPUTE)
    server = build(KeyConfig(tmp_path / "keys", ServerConfig(tls=tls, grace_s=1)), Plain())
    address = await server.start()
    async with open_channel(address, Zone.KEYS, tls.authority) as channel:
        stub: key_service_pb2_grpc.KeyServiceAsyncStub = key_service_pb2_grpc.KeyServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with open_channel(address, Zone.COMPUTE, tls.authority) as channel:
        stub = key_service_pb2_grpc.KeyServiceStub(channel)
        assert await stub.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest(), timeout=5)
    await server.stop()
