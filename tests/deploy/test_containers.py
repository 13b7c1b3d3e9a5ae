"""The container files as far as they can be looked at without an engine; and the tree that they build, started."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distributions
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealface.cli.authority import Authority
from sealface.protocol.zones import Zone
from sealface.runtime.tls import Tls
from tests.deploy.conftest import OURS, ROOT, read

CONTAINERS = ROOT / "deploy" / "containers"
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text().replace("\\\n", "")


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Name -> what it begins with, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in DOCKERFILE.splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = base, []
        elif name and instruction.isupper():
            found[name][1].append((instruction, rest))
    return found


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    linted = subprocess.run([hadolint, CONTAINERS / "Dockerfile"], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_there_is_an_image_a_role_and_the_manifests_use_them() -> None:
    assert set(OURS) <= stages().keys()
    used = {
        container["image"].partition(":")[0].removeprefix("sealface/")
        for overlay in ("small", "large")
        for pod in read(overlay).pods
        for container in pod.containers
        if container["image"].startswith("sealface/")
    }
    assert used == set(OURS)


def test_the_base_is_pinned_to_a_patch_of_a_python_that_we_support() -> None:
    base = re.search(r"^ARG BASE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-[a-z]+", base[1])
    assert version is not None
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert needed == f">={version[1]}.{version[2]}"  # the tests run with the oldest
    outside = {found for found, _ in stages().values()} - stages().keys()
    assert outside == {"${BASE}"}


@pytest.mark.parametrize("role", OURS)
def test_nobody_is_root_and_what_builds_stays_behind(role: str) -> None:
    base, instructions = stages()[role]
    assert base == "runtime"
    (copied,) = (rest for instruction, rest in instructions if instruction == "COPY")
    assert copied == f"--from=installed-{role} /opt/sealface /opt/sealface"
    every = stages()["runtime"][1] + instructions
    assert [rest for instruction, rest in every if instruction == "USER"] == ["10001:10001"]
    assert [rest for instruction, rest in every if instruction == "ENTRYPOINT"] == ['["sealface"]']
    assert not [rest for instruction, rest in instructions if instruction in ("RUN", "ADD")]


def test_pods_run_as_the_user_of_the_image() -> None:
    for overlay in ("small", "large"):
        for pod in read(overlay).pods:
            ours = any(container["image"].startswith("sealface/") for container in pod.containers)
            assert (pod.spec["securityContext"]["runAsUser"] == 10001) == ours, pod.name


@pytest.mark.parametrize(
    ("role", "extra"), [("keys", "vault"), ("enrollment", ""), ("matching", "ray"), ("edge", "faces")]
)
def test_each_role_has_what_it_needs_and_no_more(role: str, extra: str) -> None:
    ((_, installed),) = stages()[f"installed-{role}"][1]
    assert installed == f"deploy/containers/install.sh /opt/sealface /wheels {extra}".strip()
    assert (
        not extra or extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


def test_versions_are_those_that_the_tests_ran_with() -> None:
    script = (CONTAINERS / "install.sh").read_text()
    assert "--constraint constraints.txt" in script
    pinned = re.search(r"^DEEPFACE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pinned is not None
    assert re.findall(r"deepface==[\w.]+", script) == [pinned[1]]


# --- the list of what is in an image


def bill() -> dict[str, object]:
    made = subprocess.run([sys.executable, CONTAINERS / "sbom.py"], capture_output=True, check=True).stdout
    assert made == subprocess.run([sys.executable, CONTAINERS / "sbom.py"], capture_output=True, check=True).stdout
    found = json.loads(made)
    assert isinstance(found, dict)
    return found


def test_the_bill_of_materials_names_all_that_is_installed() -> None:
    found = bill()
    assert (found["bomFormat"], found["specVersion"], found["version"]) == ("CycloneDX", "1.6", 1)
    metadata, components, dependencies = found["metadata"], found["components"], found["dependencies"]
    assert isinstance(metadata, dict)
    assert isinstance(components, list)
    assert isinstance(dependencies, list)
    here = [sysconfig.get_path("purelib")]  # setuptools, once it is imported, shows what it brings along itself
    installed = {(re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(), d.version) for d in distributions(path=here)}
    listed = {(one["name"], one["version"]) for one in [metadata["component"], *components]}
    assert listed - installed == {("python", ".".join(map(str, sys.version_info[:3])))}
    assert installed <= listed
    references = [one["bom-ref"] for one in [metadata["component"], *components]]
    assert len(references) == len(set(references))
    assert {ref for one in dependencies for ref in (one["ref"], *one["dependsOn"])} == set(references)
    for component in components:
        assert component["type"] == "platform" or component["purl"] == component["bom-ref"]


# --- the tree itself


def copied(target: Path) -> None:
    """What an engine would send as its context: Dockerfile.dockerignore, of which only this much is used."""
    lines = [line for line in (CONTAINERS / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    target.mkdir()
    for line in lines[1:]:
        if line.startswith("!"):
            source = ROOT / line[1:]
            into = target / line[1:]
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, into, ignore=ignored) if source.is_dir() else shutil.copy(source, into)
        else:
            assert fnmatch("**/__pycache__", line)


@pytest.mark.skipif(not os.environ.get("SEALFACE_SOAK"), reason="make soak: installs everything anew, minutes")
@pytest.mark.timeout(1800)
def test_the_tree_of_an_image_serves(tmp_path: Path) -> None:
    """Built by the same script, of the same files, in a clean prefix; started as its entry point starts it."""
    copied(tmp_path / "source")
    wheels, prefix = tmp_path / "wheels", tmp_path / "opt"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, "."]
    subprocess.run(pip, cwd=tmp_path / "source", check=True)
    subprocess.run(["deploy/containers/install.sh", prefix, wheels, "vault"], cwd=tmp_path / "source", check=True)
    shutil.rmtree(tmp_path / "source")
    listed = {one["name"] for one in json.loads((prefix / "sbom.cdx.json").read_text())["components"]}
    assert {"hvac", "tenseal", "grpcio"} <= listed
    assert not {"pip", "setuptools", "ray", "pytest", "dlib-bin", "deepface"} & listed
    tls = Tls(tmp_path / "certs/tls.crt", tmp_path / "certs/tls.key", tmp_path / "certs/ca.crt")
    Authority.create().certify(tls, Zone.KEYS)
    files = [f"--tls-{name}={path}" for name, path in zip(("cert", "key", "ca"), tls.files, strict=True)]
    words = ["serve", "keys", f"--state={tmp_path / 'state'}", "--health=127.0.0.1:0", *files]
    told = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    served = subprocess.Popen([prefix / "bin" / "sealface", *words], stdout=subprocess.PIPE, env=told, cwd="/")
    assert served.stdout is not None
    try:
        with grpc.insecure_channel(json.loads(served.stdout.readline())["health"]) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        served.send_signal(signal.SIGTERM)
        served.communicate(timeout=60)
    assert served.returncode == 0
