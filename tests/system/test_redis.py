"""The services as processes with a Redis that wants TLS and a password, which is killed and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from deploy.servers import LocalServer

from deploy import servers
from sealface.cli.processes import LocalServices, local_services
from sealface_client import Client
from tests.storage import redis_servers
from tests.system.conftest import POLICY, People, logs
from tests.system.test_cli import USAGE, Command

pytestmark = pytest.mark.servers
PASSWORD = "k3pt-from-command-lines"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def tls(folder: Path) -> Iterator[tuple[LocalServer, int]]:
    """A server, and its port for TLS."""
    certificate, key, root = redis_servers.certificates(folder)
    port = servers._free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(root), "--tls-auth-clients", "no", "--requirepass", PASSWORD]
    with servers.redis(*options) as server:
        yield server, port


@pytest.fixture(scope="module")
def services(tls: tuple[LocalServer, int], folder: Path) -> Iterator[LocalServices]:
    url = f"rediss://:{PASSWORD}@127.0.0.1:{tls[1]}/0?ssl_ca_certs={folder / 'root.crt'}"
    with local_services(SEALFACE_REDIS=url, SEALFACE_THREADS="2", SEALFACE_WORKERS="2") as started:
        yield started


@pytest.fixture
def raw(tls: tuple[LocalServer, int]) -> Iterator[redis.Redis]:
    with redis_servers.client(tls[0], password=PASSWORD) as one:
        yield one


def held(raw: redis.Redis) -> set[str]:
    return {key.decode().rpartition(":")[2] for key in raw.scan_iter("sealface:*:[tb]*")}


def test_workers_load_through_it_and_what_is_erased_leaves_it(services, client: Client, people: People, raw):
    door = client.create_gallery("door", policy=POLICY)
    ann, bob = people.somebody(), people.somebody()
    door.enroll("ann", ann)
    door.enroll("bob", bob)
    assert door.verify("ann", people.again(ann)).match
    assert not door.verify("ann", people.again(bob)).match
    assert [named.subject for named in door.identify(people.again(bob)).candidates] == ["bob"]
    assert held(raw) == {"t1", "t2"}
    assert door.erase("bob") == 1
    redis_servers.wait(lambda: held(raw) == {"t1"})
    assert not door.identify(people.again(bob)).candidates


def test_it_is_killed_and_comes_back(services, client: Client, people: People, tls, raw):
    hall = client.create_gallery("hall", policy=POLICY)
    known = {f"s{i}": people.somebody() for i in range(6)}
    for subject, face in known.items():
        hall.enroll(subject, face)
    hall.identify(people.somebody())
    tls[0].kill()
    assert hall.erase("s2") == 1
    gone = known.pop("s2")
    for subject, face in known.items():
        assert [named.subject for named in hall.identify(people.again(face)).candidates] == [subject]
        assert hall.verify(subject, people.again(face)).match
    assert not hall.identify(people.again(gone)).candidates
    tls[0].start()
    time.sleep(1.2)
    for subject, face in known.items():
        assert hall.verify(subject, people.again(face)).match
    assert len(held(raw)) == 5
    assert not hall.identify(people.again(gone)).candidates


def test_doctor_finds_what_redis_has_otherwise_than_the_record(
    services, client: Client, people: People, raw, tls, folder
):
    lab = client.create_gallery("lab", policy=POLICY)
    faces = {f"s{i}": people.somebody() for i in range(3)}
    for subject, face in faces.items():
        lab.enroll(subject, face)
    lab.identify(people.somebody())
    key = next(iter(raw.scan_iter("sealface:{lab/*:t2")))
    raw.setrange(key, 1000, bytes([raw.getrange(key, 1000, 1000)[0] ^ 4]))
    raw.set(key.replace(b":t2", b":t77"), b"of nobody")
    url = f"rediss://:{PASSWORD}@127.0.0.1:{tls[1]}/0?ssl_ca_certs={folder / 'root.crt'}"
    doctor = Command(services.state, SEALFACE_REDIS=url)
    found = doctor.json("doctor", "lab", code=1)
    assert {finding["detail"] for finding in found["findings"]} == {
        "entry t2, damaged",
        "entry t77, not in the record",
    }
    assert found["checked"]["cache entries"] == 4
    assert not found["healthy"]
    assert doctor.json("doctor", "lab", "--repair")["healthy"]
    assert doctor.json("doctor", "lab")["findings"] == []
    for subject, face in faces.items():  # and nobody's answer was wrong meanwhile
        assert lab.verify(subject, people.again(face)).match


def test_no_password_is_in_a_command_line_or_a_log_or_with_the_key_service(services):
    pids = {name: services.pid(name) for name in ("keys", "enrollment", "matching")}
    pids |= {f"worker {pid}": pid for pid in services.worker_pids()}
    assert len(pids) == 5
    for name, pid in pids.items():
        assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text(), name
        told = PASSWORD in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        assert told == (name != "keys"), name
    for name, text in logs(services).items():
        assert PASSWORD not in text, name
    assert "Redis is not used" in "".join(logs(services).values())


@pytest.mark.parametrize("url", ["memcached://:s3cret@h", "redis://:s3cret@h:port", "rediss://:s3cret@h?x=1"])
def test_an_address_that_is_none_is_refused_at_start(url, tmp_path):
    for service in ([], ["enrollment", "--keys", "127.0.0.1:1"]):
        told = Command(None).error("serve", *service, "--state", tmp_path, "--redis", url, code=USAGE)
        assert "no such Redis address" in told
        assert "s3cret" not in told
