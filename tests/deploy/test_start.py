"""The small overlay as processes of this machine: commands, files and probes of the manifests, for real.

What a container would mount is a folder here, secrets as the kubelet lays them out; addresses are loopback's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealface.cli.authority import Authority
from sealface.cli.processes import ZONES, _compile
from sealface.keys.providers import FileKey
from sealface.protocol.signing import Credential
from sealface.protocol.zones import Zone
from sealface_client import Client
from sealface_protos.keys.v1 import key_service_pb2, key_service_pb2_grpc
from tests.deploy.conftest import Object, Pod, environment, read
from tests.deploy.test_commands import TO_COME
from tests.system.conftest import POLICY, People

SERVING = health_pb2.HealthCheckResponse.SERVING


def mounted(folder: Path, files: dict[str, bytes]) -> Path:
    """A Secret or ConfigMap: links to a folder that is replaced whole, readable by the volume's group."""
    inner = folder / "..2026_11_25"
    inner.mkdir(parents=True)
    (folder / "..data").symlink_to(inner.name)
    for name, data in files.items():
        (inner / name).write_bytes(data)
        (inner / name).chmod(0o440)
        (folder / name).symlink_to(f"..data/{name}")
    return folder


@dataclass
class Machine:
    """Volumes by namespace and name, and the containers that run on them."""

    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)  # as in the manifests -> here
    ready: dict[str, dict[str, str]] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def volume(self, pod: Pod, name: str) -> Path:
        claims = [one["metadata"]["name"] for one in pod.owner["spec"].get("volumeClaimTemplates", [])]
        if name in claims:
            return self.made(f"{pod.namespace}/{name}")
        (volume,) = (one for one in pod.spec["volumes"] if one["name"] == name)
        match volume:
            case {"secret": {"secretName": named}} | {"configMap": {"name": named}}:
                return self.folder / pod.namespace / named
            case {"persistentVolumeClaim": {"claimName": named}}:
                return self.made(f"{pod.namespace}/{named}")
        return self.made(f"{pod.namespace}/{pod.name}/{name}")

    def made(self, path: str) -> Path:
        (self.folder / path).mkdir(parents=True, exist_ok=True)
        return self.folder / path

    def here(self, pod: Pod, container: Object, word: str) -> str:
        """A word of the manifest with the paths and addresses of this machine."""
        volumes = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        paths = rf"(?<![\w.-])({'|'.join(volumes)})(?![\w-])"
        word = re.sub(paths, lambda found: str(self.volume(pod, volumes[found[1]])), word)
        if "=0.0.0.0:" in word:
            word = f"{word.partition('=')[0]}=127.0.0.1:0"
        for there, address in self.addresses.items():
            word = word.replace(there, address)
        return word

    def start(self, pod: Pod) -> None:
        for container in pod.spec.get("initContainers", []):
            words = [self.here(pod, container, word) for word in (*container["command"], *container["args"])]
            subprocess.run(words, check=True)
        (container,) = pod.spec["containers"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALFACE_")}
        told = {name: self.here(pod, container, value) for name, value in environment(container).items()}
        words = [self.here(pod, container, word) for word in container["args"] if word.partition("=")[0] not in TO_COME]
        kept |= self.compiled(pod)
        command = [sys.executable, "-m", "sealface.cli.main", *words]
        with open(self.folder / f"{pod.name}.log", "w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=kept | told)
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (self.folder / f"{pod.name}.log").read_text()
        self.ready[pod.name] = json.loads(line)

    def compiled(self, pod: Pod) -> dict[str, str]:
        """Kernels where the process would compile them itself, in half a minute each."""
        zone = self.volume(pod, "state") / ZONES[pod.name]
        shutil.copytree(self.folder / "kernels" / "keys" / "numba", zone / "numba", dirs_exist_ok=True)
        return {"NUMBA_CACHE_DIR": str(zone / "numba"), "TMPDIR": str(zone / f"{pod.name}-tmp")}

    def stop(self) -> list[int]:
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.communicate(timeout=60)
        return [process.returncode for process in self.processes]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    manifests, authority = read("small"), Authority.create()
    authority.publish(folder / "ca.pem")
    for zone in (Zone.KEYS, Zone.COMPUTE):
        certificate, key = authority.issue(zone, timedelta(hours=1))
        files = {"tls.crt": certificate, "tls.key": key, "ca.crt": (folder / "ca.pem").read_bytes()}
        mounted(folder / f"sealface-{zone}" / "tls", files)
    operator = Credential.generate("callers/operator")
    operator.save(folder)
    mounted(folder / "sealface-keys/public-keys", {"operator.pub": operator.publish(folder).read_bytes()})
    FileKey.create(folder / "key")
    mounted(folder / "sealface-keys/key-encryption", {"key": (folder / "key").read_bytes()})
    for zone in ZONES.values():
        (folder / "kernels" / zone).mkdir(parents=True, exist_ok=True)
    _compile(folder / "kernels")
    machine = Machine(folder)
    try:
        machine.start(manifests.pod("keys"))
        machine.addresses["keys.sealface-keys.svc:50061"] = machine.ready["keys"]["internal"]
        machine.start(manifests.pod("enrollment"))
        machine.start(manifests.pod("matching"))
        yield machine
    finally:
        codes = machine.stop()
    assert codes == [0, 0, 0]


def test_they_enrol_and_find_whom_they_enrolled(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, ready in machine.ready.items():
        monkeypatch.setenv(f"SEALFACE_{name.upper()}", ready["address"])
    monkeypatch.setenv("SEALFACE_CA", str(machine.folder / "ca.pem"))
    monkeypatch.setenv("SEALFACE_CREDENTIAL", str(machine.folder / "operator.pem"))
    people = People(7)
    person = people.somebody()
    with Client.connect() as client:
        gallery = client.create_gallery("door", policy=POLICY)
        gallery.enroll("ada", person)
        assert gallery.verify("ada", people.again(person)).match
        assert not gallery.verify("ada", people.somebody()).match
        assert [found.subject for found in gallery.identify(people.again(person)).candidates] == ["ada"]


@pytest.mark.parametrize("name", ["keys", "enrollment", "matching"])
def test_every_probe_is_answered_as_it_is_asked(machine: Machine, name: str) -> None:
    (container,) = read("small").pod(name).spec["containers"]
    with grpc.insecure_channel(machine.ready[name]["health"]) as channel:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            request = health_pb2.HealthCheckRequest(service=container[probe]["grpc"].get("service", ""))
            assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status == SERVING


def test_the_health_port_of_the_key_service_serves_nothing_of_keys(machine: Machine) -> None:
    with grpc.insecure_channel(machine.ready["keys"]["health"]) as channel:
        stub: key_service_pb2_grpc.KeyServiceStub = key_service_pb2_grpc.KeyServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_what_the_key_zone_was_given_is_its_owners_alone(machine: Machine) -> None:
    pod = read("small").pod("keys")
    copies = machine.volume(pod, "key-encryption") / "key", machine.volume(pod, "state") / "keys" / "operator.pub"
    for copied in copies:
        assert copied.stat().st_mode & 0o077 == 0
        assert not copied.is_symlink()
    assert not (machine.volume(pod, "state") / "keys" / "key-encryption.key").exists()  # none of its own was made


def test_a_pod_that_is_started_again_is_prepared_again(machine: Machine) -> None:
    pod = read("small").pod("keys")
    for container in pod.spec["initContainers"]:
        words = [machine.here(pod, container, word) for word in (*container["command"], *container["args"])]
        assert subprocess.run(words).returncode == 0


def test_the_record_is_on_the_volume_of_compute(machine: Machine) -> None:
    assert (machine.folder / "sealface-compute" / "record" / "compute" / "record.db").exists()
    assert not (machine.folder / "sealface-keys" / "state" / "compute").exists()
