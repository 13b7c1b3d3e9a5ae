"""Redis as a deployment has it: a cluster, a master with a sentinel, and TLS; on this machine's loopback."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from deploy.servers import LocalServer

from deploy import servers

_WAIT_S = 20.0


def client(server: LocalServer, **options: Any) -> redis.Redis:
    """A client of the test's own; bytes in, bytes out."""
    return redis.Redis(port=server.port, protocol=2, **options)


def wait(done: Callable[[], bool], seconds: float = _WAIT_S) -> None:
    """Until it is so.

    Raises:
        AssertionError: it is not so in time.
    """
    deadline = time.monotonic() + seconds
    while not _quietly(done):
        assert time.monotonic() < deadline, "it is not so in time"
        time.sleep(0.05)


def _quietly(done: Callable[[], bool]) -> bool:
    try:
        return done()
    except (redis.RedisError, redis.exceptions.RedisClusterException):
        return False


@contextmanager
def cluster(nodes: int = 3) -> Iterator[list[LocalServer]]:
    """A Redis Cluster of primaries, each with its share of the slots."""
    with ExitStack() as stack:
        found = []
        for _ in range(nodes):
            bus = str(servers._free_port())
            options = ("--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "1000")
            found.append((stack.enter_context(servers.redis(*options)), bus))
        first, first_bus = found[0]
        for number, (server, _) in enumerate(found):
            with contextlib.closing(client(server)) as one:
                start, end = 16384 * number // nodes, 16384 * (number + 1) // nodes - 1
                one.execute_command("CLUSTER ADDSLOTSRANGE", start, end)
                one.execute_command("CLUSTER MEET", "127.0.0.1", first.port, first_bus)
        for server, _ in found:
            with contextlib.closing(client(server)) as one:
                wait(lambda one=one: one.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
                wait(lambda one=one: len(one.execute_command("CLUSTER NODES")) == nodes)
        yield [server for server, _ in found]


@dataclass
class Watched:
    """A master, its replica, and the sentinel that promotes it."""

    master: LocalServer
    replica: LocalServer
    sentinel: LocalServer

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/faces"

    def master_port(self) -> int:
        with contextlib.closing(client(self.sentinel)) as one:
            return int(one.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "faces")[1])


@contextmanager
def watched(folder: Path, *options: str) -> Iterator[Watched]:
    """A master named `faces`, a replica that follows it, and one sentinel."""
    with servers.redis(*options) as master, ExitStack() as stack:
        replica = stack.enter_context(servers.redis("--replicaof", f"127.0.0.1 {master.port}", *options))
        with contextlib.closing(client(replica)) as one:
            wait(lambda: one.info("replication")["master_link_status"] == "up")
        port = servers._free_port()
        written = folder / "sentinel.conf"
        written.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor faces 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds faces 500\nsentinel failover-timeout faces 2000\n"
        )
        sentinel = LocalServer(
            [servers.program("redis-server"), str(written), "--sentinel"],
            port,
            f"redis://127.0.0.1:{port}",
            lambda: servers._answers(port),
        )
        sentinel.start()
        stack.callback(sentinel.kill)
        with contextlib.closing(client(sentinel)) as one:
            wait(lambda: len(one.execute_command("SENTINEL REPLICAS", "faces")) == 1)
        yield Watched(master, replica, sentinel)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Files of a certificate for 127.0.0.1, of its key, and of the authority that signed it."""
    now = datetime.now(UTC)

    def signed(name: str, issuer: str, key: Any, by: Any, *extensions: Any) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(by, hashes.SHA256())

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(*(n in (5, 6) for n in range(9)))  # to sign certificates and their revocations
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    root = signed(
        "root",
        "root",
        authority,
        authority,
        (x509.BasicConstraints(True, None), True),
        (usage, True),
        (identifier, False),
    )
    leaf = signed(
        "redis",
        "root",
        own,
        authority,
        (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
    )
    paths = (folder / "redis.crt", folder / "redis.key", folder / "root.crt")
    key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    contents = (leaf.public_bytes(serialization.Encoding.PEM), key, root.public_bytes(serialization.Encoding.PEM))
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths
