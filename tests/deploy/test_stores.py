"""The large overlay's stores with the manifests' own settings: real servers, over TLS, by the addresses in them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from cryptography import x509

from deploy import servers
from sealface.cli.authority import Authority
from sealface.protocol.zones import Zone
from sealface.storage.database import open_database
from sealface.storage.redis_address import RedisAddress
from sealface.storage.schema import RECORD
from tests.deploy.conftest import environment, read

pytestmark = pytest.mark.servers
PASSWORD = "0123456789abcdef"


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """As the kubelet mounts a Secret: root's, and the group's to read. The server's name here is localhost."""
    authority = Authority.create()
    certificate, key = authority.issue(Zone.COMPUTE, timedelta(hours=1))
    folder = tmp_path / "certs"
    folder.mkdir()
    authority.publish(folder / "ca.crt")
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)
    for file in folder.iterdir():
        file.chmod(0o440)
    return folder


def address(variable: str, there: str, port: int, certs: Path) -> str:
    """What a service is told, with this machine in the place of the Service."""
    (container,) = read("large").pod("enrollment").spec["containers"]
    told = environment(container)[variable].replace("secret", PASSWORD)
    assert there in told
    return told.replace(there, f"localhost:{port}").replace("/certs", str(certs))


@pytest.fixture
def cache(certs: Path) -> Iterator[int]:
    (container,) = read("large").pod("redis").spec["containers"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.replace("$(REDIS_PASSWORD)", PASSWORD).replace("/certs", str(certs)) for word in container["args"]]
    words[words.index("--tls-port") + 1] = str(port)
    words[words.index("--maxmemory") + 1] = "64mb"
    command = [servers.program(container["command"][0]), *words, "--bind", "127.0.0.1", "--dir", str(certs.parent)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        server.terminate()
        server.wait(10)


def test_the_cache_is_reached_by_its_address_and_by_nothing_less(cache: int, certs: Path) -> None:
    url = address("SEALFACE_REDIS", "redis.sealface-compute.svc:6379", cache, certs)
    client = RedisAddress.parse(url).connect()
    deadline = time.monotonic() + 20
    while True:
        with suppress(redis.ConnectionError):
            assert client.ping()
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}
    client.close()
    with pytest.raises(redis.RedisError):
        redis.Redis(port=cache).ping()
    with pytest.raises(redis.AuthenticationError):
        RedisAddress.parse(url.replace(PASSWORD, "wrong")).connect().ping()


@pytest.fixture
def record(certs: Path) -> Iterator[int]:
    (container,) = read("large").pod("postgresql").spec["containers"]
    settings = [word.replace("/certs", str(certs)) for word in container["args"] if word != "-c"]
    for folder in (certs, *certs.parents[:3]):  # the server is another user where we are root, and of our group
        folder.chmod(folder.stat().st_mode | 0o011)
    with servers.postgresql(*settings) as server:
        yield server.port


def test_the_record_is_migrated_as_the_init_container_does_it_and_is_reached_over_tls(record: int, certs: Path) -> None:
    url = address("SEALFACE_DATABASE", "postgresql.sealface-compute.svc:5432", record, certs)
    (migrate,) = read("large").pod("enrollment").spec["initContainers"]
    told = os.environ | {"SEALFACE_DATABASE": url}
    subprocess.run([sys.executable, "-m", "sealface.cli.main", *migrate["args"]], env=told, check=True)
    engine = open_database(url)
    RECORD.check(engine)
    with engine.connect() as connection:
        encrypted = connection.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").scalar_one()
        assert encrypted is True
        assert connection.exec_driver_sql("SHOW max_connections").scalar_one() == "400"
    engine.dispose()
    other = certs.parent / "other.crt"
    Authority.create().publish(other)
    assert x509.load_pem_x509_certificate(other.read_bytes())
    wrong = open_database(url.replace(f"{certs}/ca.crt", str(other)))
    with pytest.raises(Exception, match="cannot be read or written"):
        RECORD.revision(wrong)
    wrong.dispose()
