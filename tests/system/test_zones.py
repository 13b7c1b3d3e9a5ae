"""A zone cannot reach into another: contexts are public, keys unreadable, also for root."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealface.cipher import kernels, public_key, wire
from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.parameters import N4096
from sealface.cipher.scheme import Ckks
from sealface.cli.processes import LocalServices
from sealface.protocol.sealing import DecisionNotGenuine
from sealface_client import AsyncClient, Client
from sealface_client.held_keys import LocalJudge
from sealface_protos.keys.v1 import decision_pb2
from sealface_protos.matching.v1 import matching_service_pb2
from tests.system.conftest import POLICY, People, cosine, logs

LAYOUT = Layout(N4096, 128, Metric.COSINE)

PROBE = """
import ctypes, json, os, sys
from pathlib import Path
from sealface.cli.serve import _PACKAGES
from sealface.runtime.confinement import confine

own, others, processes = json.loads(sys.argv[1])
if not confine(_PACKAGES, [Path(own)]):
    print("no Landlock")
    sys.exit()

def tried(what):
    try:
        what()
        return "done"
    except OSError as error:
        return type(error).__name__

def foreign_memory(pid):
    class Iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    start = int(maps[0].split("-")[0], 16)
    buffer = ctypes.create_string_buffer(16)
    local, remote = Iovec(ctypes.addressof(buffer), 16), Iovec(start, 16)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")

found = {"own": tried(lambda: (Path(own) / "probe").write_text("mine"))}
for path in others:
    found[f"read {path}"] = tried(lambda: open(path, "rb").read(1) if not os.path.isdir(path) else os.listdir(path))
    if not os.path.isdir(path):
        found[f"write {path}"] = tried(lambda: open(path, "ab").close())
        found[f"link {path}"] = tried(lambda: os.link(path, Path(own) / "linked"))
        found[f"root {path}"] = tried(lambda: open(f"/proc/self/root{path}", "rb").read(1))
for pid in processes:
    found[f"memory of {pid}"] = tried(lambda: open(f"/proc/{pid}/mem", "rb").close())
    found[f"readv of {pid}"] = tried(lambda: foreign_memory(pid))
    for link in ("0", "2", *map(str, range(3, 40))):
        path = f"/proc/{pid}/fd/{link}"
        if os.path.lexists(path):
            found[f"descriptor {link} of {pid}"] = tried(lambda: open(path, "rb").read(1))
            found[f"name of descriptor {link} of {pid}"] = tried(lambda: os.readlink(path))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def face(services: LocalServices) -> np.ndarray[Any, Any]:
    person = People(3).somebody()
    with Client.connect(services.state) as client:
        for name, held in (("managed", False), ("held", True), ("other", True)):
            client.create_gallery(name, policy=POLICY, client_held=held).enroll("ada", person)
    return person


def held_secret(services: LocalServices, name: str) -> bytes:
    return (services.state / "edge" / "keys" / f"keys-{name}-versions-1.secret").read_bytes()


@pytest.mark.parametrize("zone", ["compute", "keys"])
def test_a_confined_process_cannot_reach_another_zone(
    services: LocalServices, face: object, tmp_path: Path, zone: str
) -> None:
    state = services.state
    private = {
        "keys": ["key-encryption.key", "keys.db", "keys.db-wal", "operator.pub", "keys.log", "tls/keys.key"],
        "compute": ["record.db", "record.db-wal", "matching.log", "tls/matching.key", "tls/worker.key"],
        "edge": ["operator.pem", "keys/keys-held-versions-1.secret"],
        "edge-service": ["tls/edge.key"],
        "authority": ["ca.key", "ca.pem"],
    }
    others = [str(state / other / name) for other, names in private.items() if other != zone for name in names]
    assert all(Path(path).is_file() for path in others)
    others += [str(state / other) for other in private if other != zone] + [str(tmp_path)]
    pids = [services.pid(name) for name in ("keys", "enrollment") if (name == "keys") == (zone != "keys")]
    arguments = json.dumps([str(state / zone), others, pids])
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, arguments], capture_output=True, text=True, timeout=60, check=True
    )
    if ran.stdout.startswith("no Landlock"):
        pytest.skip("the kernel has no Landlock: zones are parted by users or containers there")
    found = json.loads(ran.stdout)
    (state / zone / "probe").unlink()
    assert found.pop("own") == "done"
    assert sum(what.startswith("memory") for what in found) == 1
    assert sum(what.startswith("descriptor") for what in found) > 5
    # a link to another folder is refused as one over devices is
    reached = {what: how for what, how in found.items() if how not in ("PermissionError", "OSError")}
    assert reached == {}


def test_the_services_say_whether_they_are_confined(services: LocalServices) -> None:
    for name, text in logs(services).items():
        first = json.loads(text.splitlines()[0])
        status = Path(f"/proc/{services.pid(name)}/status").read_text()
        confined = "NoNewPrivs:\t1" in status
        assert first["event"] == ("confined" if confined else "not confined"), name


def test_the_keys_are_open_in_the_key_service_alone(services: LocalServices, face: object) -> None:
    keys = str(services.state / "keys")

    def opened(pid: int) -> set[str]:
        return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}

    assert any(path.startswith(keys) for path in opened(services.pid("keys")))
    for name in ("enrollment", "matching"):
        assert not any(path.startswith(keys) for path in opened(services.pid(name))), name


async def scores(services: LocalServices, gallery_id: str, face: Any) -> list[decision_pb2.ScoreResult]:
    """A result as compute makes it, for a probe of a client-held gallery."""
    async with AsyncClient.connect(services.state) as client:
        gallery = await client.gallery(gallery_id)
        probe = gallery._keyed.encryptor.probe(face)
        request = matching_service_pb2.VerifyRequest(
            gallery=gallery.info.name,
            probe=matching_service_pb2.Probe(
                ciphertext=probe, key_version=gallery.info.key_version, parameter_set=gallery.info.parameter_set
            ),
            claimed_slots=[1],
        )
        return list((await client.matching.Verify(request)).scores.results)


async def test_nothing_that_compute_has_opens_a_result(services: LocalServices, face: Any) -> None:
    probe = People(4).again(face)
    results = await scores(services, "held", probe)
    truth = 1 - cosine(face, probe)
    (result,) = results
    group = LAYOUT.shape(result.columns)
    position = np.frombuffer(result.slots, "<u4").tolist().index(1)

    right = Ckks().opener(LAYOUT, held_secret(services, "held"))
    opened = right.open(group, [result.ciphertext])
    assert right.genuine(group, opened.checks)
    assert opened.scores[0, position] == pytest.approx(truth, abs=2e-4)

    connection = sqlite3.connect(services.state / "compute" / "record.db")
    publics = [bytes(row[0]) for row in connection.execute("SELECT public_key FROM gallery_versions")]
    templates = [bytes(row[0]) for row in connection.execute("SELECT ciphertext FROM template_ciphertexts")]
    switching = [bytes(row[0]) for row in connection.execute("SELECT material FROM gallery_evaluation_keys")]
    connection.close()
    assert (len(publics), len(templates), len(switching)) == (3, 3, 3 * 7)

    primes_left = N4096.data_primes[:1]
    tried = [polynomial for data in publics for polynomial in public_key.parse(N4096, data)]
    for data, primes in [*((template, N4096.data_primes) for template in templates), (result.ciphertext, primes_left)]:
        count = len(data) // wire.packed_size(1, N4096.degree, primes)
        for polynomial in wire.unpack(data, count, N4096.degree, primes):
            tried.append(np.vstack([polynomial[:1]] * 3))  # opening uses the first limb alone
    for data in switching:
        tried += list(wire.unpack(data, 4, N4096.degree, N4096.primes))
    guess = np.random.default_rng(1).integers(-1, 2, N4096.degree)
    tried += [kernels.integers_to_ntt(guess, N4096.primes), np.zeros((3, N4096.degree), np.uint64)]
    assert len(tried) == 3 * 2 + 3 * 7 * 4 + 3 * 2 + 3 + 2
    near = 0
    for polynomial in tried:
        opener = Ckks().opener(LAYOUT, wire.pack(polynomial, N4096.primes))
        opened = opener.open(group, [result.ciphertext])
        assert not opener.genuine(group, opened.checks)
        near += abs(opened.scores[0, position] - truth) < 1e-3
    assert near <= 2  # what opens to anything within +-8 comes as near as that once in 8,000 times


async def test_another_galleries_key_opens_nothing(services: LocalServices, face: Any) -> None:
    results = await scores(services, "held", face)
    assert LocalJudge(Ckks(), LAYOUT, held_secret(services, "held"), POLICY).verify(results, [1]).candidates
    with pytest.raises(DecisionNotGenuine):
        LocalJudge(Ckks(), LAYOUT, held_secret(services, "other"), POLICY).verify(results, [1])


def test_the_key_service_opens_no_client_held_gallery(services: LocalServices, face: object) -> None:
    connection = sqlite3.connect(services.state / "keys" / "keys.db")
    stored = dict(connection.execute("SELECT key, wrapped_secret IS NOT NULL FROM key_versions"))
    connection.close()
    assert stored == {"managed": 1, "held": 0, "other": 0}
