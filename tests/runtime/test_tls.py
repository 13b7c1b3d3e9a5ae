"""TLS between real gRPC servers and channels: who is believed, and that certificates are replaced as they run."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from structlog.testing import capture_logs

from sealface.cli.authority import Authority
from sealface.protocol.zones import Zone
from sealface.runtime.channels import connect, connect_blocking
from sealface.runtime.server import Server, ServerConfig
from sealface.runtime.tls import Certificate, CertificateUnusable, PlaintextRefused, Tls
from tests.conftest import refused
from tests.runtime.conftest import SERVICE

LAPSED = timedelta(minutes=-1)
ALL = ("UU", "US", "SU", "SS")
PATHS = [f"/{SERVICE}/{method}" for method in ALL]


@dataclass
class Machines:
    """An authority, and the files of processes."""

    folder: Path
    authority: Authority

    def files(self, name: str, zone: Zone, authority: Authority | None = None, **lifetime: timedelta) -> Tls:
        folder = self.folder / name
        tls = Tls(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        (authority or self.authority).certify(tls, zone, **lifetime)
        return tls


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path, Authority.create())


@asynccontextmanager
async def serving(tls: Tls | None, **options: object) -> AsyncIterator[Server]:
    """Echoes; `US` waits in its middle for `release`."""
    server = Server(
        ServerConfig(tls=tls, internal="127.0.0.1:0", grace_s=1, **options),
        [SERVICE],
        peers=dict.fromkeys(PATHS, Zone.COMPUTE.identity),
    )
    server.release = asyncio.Event()
    server.release.set()

    async def unary(request, context):
        return request if isinstance(request, bytes) else b"".join([part async for part in request])

    async def stream(request, context):
        data = await unary(request, context)
        yield data
        await server.release.wait()
        yield data

    handlers = {
        "UU": grpc.unary_unary_rpc_method_handler(unary),
        "US": grpc.unary_stream_rpc_method_handler(stream),
        "SU": grpc.stream_unary_rpc_method_handler(unary),
        "SS": grpc.stream_stream_rpc_method_handler(stream),
        "Open": grpc.unary_unary_rpc_method_handler(unary),
    }
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.address = await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def call(channel: grpc.aio.Channel, method: str = "UU") -> bytes:
    async def one():
        yield b"x"

    path = f"/{SERVICE}/{method}"
    match method:
        case "US":
            return b"".join([part async for part in channel.unary_stream(path)(b"x", timeout=5)])
        case "SU":
            return await channel.stream_unary(path)(one(), timeout=5)
        case "SS":
            return b"".join([part async for part in channel.stream_stream(path)(one(), timeout=5)])
    return await channel.unary_unary(path)(b"x", timeout=5)


@contextmanager
def no_connection() -> Iterator[None]:
    """The handshake fails, at one end or the other."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not [key for key, _ in caught.value.trailing_metadata() or () if key == "grpc-status-details-bin"]


def presented(address: str) -> x509.Certificate:
    """The certificate that a server shows to a new connection."""
    host, _, port = address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())


# --- who is believed


@pytest.mark.parametrize("method", [*ALL, "Open"])
async def test_a_peer_of_the_zone_may_call_what_is_for_it(machines: Machines, method: str) -> None:
    async with serving(machines.files("server", Zone.KEYS)) as server:
        channel = connect(server.internal, machines.files("client", Zone.COMPUTE), Zone.KEYS.server_name)
        assert await call(channel, method) in (b"x", b"xx")
        await channel.close()


@pytest.mark.parametrize("method", ALL)
async def test_a_peer_of_another_zone_may_not(machines: Machines, method: str) -> None:
    async with serving(machines.files("server", Zone.KEYS)) as server:
        for zone in (Zone.EDGE, Zone.KEYS):
            channel = connect(server.internal, machines.files(f"client-{zone}", zone), Zone.KEYS.server_name)
            with refused("PERMISSION_DENIED", "PEER_NOT_ALLOWED"):
                await call(channel, method)
            assert await call(channel, "Open") == b"x"
            await channel.close()


@pytest.mark.parametrize("method", ALL)
async def test_who_shows_no_certificate_may_not_and_is_told_where_to_call(machines: Machines, method: str) -> None:
    tls = machines.files("server", Zone.KEYS)
    async with serving(tls) as server:
        assert server.internal != server.address
        # the certificate of compute is not asked for at the address that is for callers
        for shown in ((), (tls.key.read_bytes(), tls.certificate.read_bytes())):
            credentials = grpc.ssl_channel_credentials(tls.authority.read_bytes(), *shown)
            async with grpc.aio.secure_channel(server.address, credentials) as channel:
                with refused("UNAUTHENTICATED", "PEER_CERTIFICATE_MISSING") as caught:
                    await call(channel, method)
                assert "--listen-internal" in (caught.value.details() or "")
                assert await call(channel, "Open") == b"x"


async def test_the_address_for_services_takes_nobody_without_a_certificate_of_the_authority(machines: Machines) -> None:
    tls, other = machines.files("server", Zone.KEYS), Authority.create()
    async with serving(tls) as server:
        names = [("grpc.ssl_target_name_override", Zone.KEYS.server_name)]
        strangers = [(), machines.files("stranger", Zone.COMPUTE, other), machines.files("late", Zone.COMPUTE)]
        machines.authority.certify(strangers[2], Zone.COMPUTE, LAPSED)
        for stranger in strangers:
            shown = (stranger.key.read_bytes(), stranger.certificate.read_bytes()) if stranger else ()
            credentials = grpc.ssl_channel_credentials(tls.authority.read_bytes(), *shown)
            async with grpc.aio.secure_channel(server.internal, credentials, options=names) as channel:
                with no_connection():
                    await call(channel, "Open")


async def test_a_server_with_a_foreign_certificate_is_not_spoken_to(machines: Machines) -> None:
    own = machines.files("client", Zone.COMPUTE)
    async with serving(machines.files("server", Zone.KEYS, Authority.create())) as server:
        channel = connect(server.address, own, Zone.KEYS.server_name)
        with no_connection():
            await call(channel, "Open")
        await channel.close()


async def test_a_server_whose_certificate_has_lapsed_is_not_spoken_to(machines: Machines) -> None:
    own = machines.files("client", Zone.COMPUTE)
    async with serving(machines.files("server", Zone.KEYS, lifetime=timedelta(seconds=2))) as server:
        shown = await asyncio.to_thread(presented, server.address)
        while datetime.now(UTC) <= shown.not_valid_after_utc:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)  # it is good for the whole of its last second
        channel = connect(server.address, own, Zone.KEYS.server_name)
        with no_connection():
            await call(channel, "Open")
        await channel.close()


async def test_a_certificate_of_compute_does_not_make_a_key_service(machines: Machines) -> None:
    """Not at the key service's address either: its own name is asked for, and no address."""
    own = machines.files("client", Zone.COMPUTE)
    async with serving(machines.files("impostor", Zone.COMPUTE)) as server:
        for address in (server.address, server.internal):
            channel = connect(address, own, Zone.KEYS.server_name)
            with no_connection():
                await call(channel, "Open")
            await channel.close()
            right = connect(address, own, Zone.COMPUTE.server_name)
            assert await call(right, "Open") == b"x"
            await right.close()


async def test_a_caller_in_plaintext_is_not_served(machines: Machines) -> None:
    async with serving(machines.files("server", Zone.KEYS)) as server:
        for address in (server.address, server.internal):
            async with grpc.aio.insecure_channel(address) as channel:
                with no_connection():
                    await call(channel, "Open")


# --- plaintext


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:0", "[::]:0", "example.org:50051", "nonsense"])
async def test_plaintext_does_not_leave_the_machine(machines: Machines, address: str) -> None:
    with pytest.raises(PlaintextRefused, match="loopback"):
        await Server(ServerConfig(address), [SERVICE]).start()
    with pytest.raises(PlaintextRefused, match="--tls-cert"):
        connect(address, None, Zone.KEYS.server_name)
    with pytest.raises(PlaintextRefused):
        connect_blocking(address, None, Zone.KEYS.server_name)


async def test_in_plaintext_there_are_no_peers_and_one_address() -> None:
    async with serving(None) as server:
        assert server.internal == server.address
        channel = connect(server.address, None, Zone.KEYS.server_name)
        assert await call(channel) == b"x"
        await channel.close()


# --- replaced as they run


async def test_a_certificate_that_is_replaced_is_shown_without_a_restart(machines: Machines) -> None:
    tls = machines.files("server", Zone.KEYS)
    async with serving(tls) as server:
        before = await asyncio.to_thread(presented, server.address)
        assert await asyncio.to_thread(presented, server.address) == before
        machines.authority.certify(tls, Zone.KEYS)
        after = await asyncio.to_thread(presented, server.address)
        assert after != before
        assert after == x509.load_pem_x509_certificate(tls.certificate.read_bytes())


async def test_another_authority_is_believed_without_a_restart(machines: Machines) -> None:
    server_files, client_files = machines.files("server", Zone.KEYS), machines.files("client", Zone.COMPUTE)
    async with serving(server_files) as server:
        channel = connect(server.internal, client_files, Zone.KEYS.server_name)
        assert await call(channel) == b"x"
        other = Authority.create()
        other.certify(server_files, Zone.KEYS)
        fresh = connect(server.internal, client_files, Zone.KEYS.server_name)
        with no_connection():
            await call(fresh)
        other.certify(client_files, Zone.COMPUTE)
        assert await call(channel) == b"x"
        assert await call(fresh) == b"x"
        await channel.close()
        await fresh.close()


async def test_a_call_under_way_ends_on_the_connection_it_began_on(machines: Machines) -> None:
    own = machines.files("client", Zone.COMPUTE)
    async with serving(machines.files("server", Zone.KEYS)) as server:
        channel = connect(server.internal, own, Zone.KEYS.server_name)
        method = channel.unary_stream(f"/{SERVICE}/US")
        server.release.clear()
        begun = method(b"x", timeout=10)
        assert await begun.read() == b"x"
        machines.authority.certify(own, Zone.COMPUTE)
        assert await call(channel) == b"x"
        other = method(b"y", timeout=10)
        assert await other.read() == b"y"
        server.release.set()
        assert await begun.read() == b"x"
        assert await begun.read() is grpc.aio.EOF
        assert await other.read() == b"y"
        await channel.close()


async def test_a_blocking_channel_takes_up_another_certificate(machines: Machines) -> None:
    own = machines.files("client", Zone.EDGE)
    async with serving(machines.files("server", Zone.KEYS)) as server:
        channel = connect_blocking(server.internal, own, Zone.KEYS.server_name)
        method = channel.unary_unary(f"/{SERVICE}/UU")
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(method, b"x", timeout=5)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        machines.authority.certify(own, Zone.COMPUTE)
        assert await asyncio.to_thread(method, b"x", timeout=5) == b"x"
        channel.close()


def test_what_is_replaced_by_half_is_not_taken_up(machines: Machines) -> None:
    tls = machines.files("server", Zone.KEYS)
    certificate = Certificate(tls)
    before = certificate.current()
    new, key = machines.authority.issue(Zone.KEYS)
    tls.key.write_bytes(key)
    with capture_logs() as logs:
        assert certificate.current() is before
        assert certificate.current() is before
    assert [line["event"] for line in logs] == ["certificate not replaced"]
    assert "is not the key of" in logs[0]["message"]
    tls.certificate.write_bytes(new)
    assert certificate.current().certificate == new
    tls.certificate.unlink()
    assert certificate.current().certificate == new


@pytest.mark.parametrize("spoilt", ["certificate", "key", "authority"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None])
def test_files_that_are_none_are_refused_at_the_start(machines: Machines, spoilt: str, content: bytes | None) -> None:
    tls = machines.files("server", Zone.KEYS)
    path = getattr(tls, spoilt)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(CertificateUnusable, match=path.name):
        Server(ServerConfig(tls=tls), [SERVICE])


def test_a_certificate_that_has_lapsed_is_refused_at_the_start(machines: Machines) -> None:
    with pytest.raises(CertificateUnusable, match="lapsed"):
        Certificate(machines.files("server", Zone.KEYS, lifetime=LAPSED))


def test_a_key_of_another_certificate_is_refused_at_the_start(machines: Machines) -> None:
    tls, other = machines.files("server", Zone.KEYS), machines.files("other", Zone.KEYS)
    with pytest.raises(CertificateUnusable, match="not the key"):
        Certificate(Tls(tls.certificate, other.key, tls.authority))
