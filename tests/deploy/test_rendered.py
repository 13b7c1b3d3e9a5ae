"""The rendered manifests are those of their source, and valid in the three newest releases of Kubernetes."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import tomllib
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from tests.deploy.conftest import KUBERNETES, OVERLAYS, ROOT, Manifests, Object, read, templates

NEWEST = sorted({tuple(map(int, version.split(".")[:2])) for version in all_versions()})[-3:]
RELEASES = [f"{major}.{minor}" for major, minor in NEWEST]
CUSTOM = {path.stem: json.loads(path.read_text()) for path in (KUBERNETES / "schemas").glob("*.json")}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders them, is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_committed_is_what_the_source_renders_to(overlay: str) -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / "overlays" / overlay], capture_output=True, text=True, check=True
    ).stdout
    assert (KUBERNETES / "rendered" / f"{overlay}.yaml").read_text() == rendered, "make manifests"


def problem(found: Object, release: str) -> str:
    """What is wrong with an object, or nothing; of a custom resource its pods are looked at, too."""
    if found["kind"].lower() not in CUSTOM:
        try:
            kubernetes_validate.validate(found, release, strict=True)
        except kubernetes_validate.ValidationError as error:
            return f"{found['kind']} {found['metadata'].get('name')}: {error.message}"
        return ""
    try:
        jsonschema.validate(found, CUSTOM[found["kind"].lower()])
    except jsonschema.ValidationError as error:
        return f"{found['kind']} {found['metadata']['name']}: {error.message}"
    pods = ({"apiVersion": "v1", "kind": "Pod", **template} for template in templates(found))
    return next((wrong for pod in pods if (wrong := problem(pod, release))), "")


@pytest.mark.parametrize("release", RELEASES)
def test_every_object_is_valid(manifests: Manifests, release: str) -> None:
    assert len(RELEASES) == 3
    assert [wrong for found in manifests.objects if (wrong := problem(found, release))] == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "readinesProbe"), {}),
        ("StatefulSet", ("spec", "replicas"), "one"),
        ("NetworkPolicy", ("spec", "egres"), []),
        ("Certificate", ("spec", "uri"), "spiffe://sealface/keys"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "intervall"), "15s"),
        ("ExternalSecret", ("spec", "secretStoreRef", "kind"), "Store"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "imag"), "x"),
    ],
)
def test_the_validation_finds_what_is_misspelt(kind: str, path: tuple[Any, ...], value: Any) -> None:
    found = copy.deepcopy(read("large").of(kind)[0])
    *way, last = path
    inner = found
    for step in way:
        inner = inner[step]
    assert problem(found, RELEASES[-1]) == ""
    inner[last] = value
    assert problem(found, RELEASES[-1]) != ""


def test_no_two_objects_have_one_name(manifests: Manifests) -> None:
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in manifests.objects]
    assert len(names) == len(set(names))


def test_every_object_says_its_zone_so_that_each_operator_applies_his_own(manifests: Manifests) -> None:
    """`kubectl apply -l sealface/zone=keys`; what is in no zone's namespace is the authority's."""
    namespaces = {found["metadata"]["name"] for found in manifests.of("Namespace")}
    assert {"sealface-keys", "sealface-compute"} <= namespaces
    for found in manifests.objects:
        metadata = found["metadata"]
        lies_in = metadata["name"] if found["kind"] == "Namespace" else metadata.get("namespace")
        zone = lies_in.removeprefix("sealface-") if lies_in in namespaces else "authority"
        assert metadata["labels"]["sealface/zone"] == zone, (found["kind"], metadata["name"])


def test_every_pod_runs_in_its_zone(manifests: Manifests) -> None:
    for pod in manifests.pods:
        assert pod.labels["sealface/zone"] == pod.namespace.removeprefix("sealface-")


def test_no_secret_is_in_them(manifests: Manifests) -> None:
    assert manifests.of("Secret") == []
    text = yaml.dump_all(manifests.objects)
    assert "PRIVATE KEY" not in text
    assert re.findall(r"://[^@/\s]*:(?!\$\()[^@/\s]+@", text) == []


def test_our_images_are_of_this_version_and_others_are_pinned(manifests: Manifests) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in manifests.pods:
        for container in pod.containers:
            name, _, tag = container["image"].partition(":")
            if name.startswith("sealface/"):
                assert tag == version, container["image"]
            else:
                assert re.fullmatch(r"\d+\.\d+(\.\d+)?-\w+", tag), container["image"]


def test_ray_is_the_one_that_is_installed() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert read("large").one("RayCluster", "ray")["spec"]["rayVersion"] == pinned[1]
