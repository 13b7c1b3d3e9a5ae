"""The rendered manifests, as objects, and what the tests ask of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("small", "large")
OURS = ("keys", "enrollment", "matching", "edge")
"""Containers that run one of our services."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A template of pods, wherever it is in an object.

    Attributes:
        name: its `app.kubernetes.io/name`, which says what it is.
        namespace: where it runs.
        metadata: of the template.
        spec: of the template.
        owner: the object that it is in.
    """

    name: str
    namespace: str
    metadata: Object
    spec: Object
    owner: Object

    @property
    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.metadata["labels"]
        return found

    @property
    def containers(self) -> list[Object]:
        """All of them, those that only begin the pod too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def lasting(self) -> list[Object]:
        """Those that run as long as the pod does."""
        return [
            one for one in self.containers if one in self.spec["containers"] or one.get("restartPolicy") == "Always"
        ]

    @property
    def secrets(self) -> set[str]:
        """Names of the secrets that it is given."""
        volumes = {volume["secret"]["secretName"] for volume in self.spec["volumes"] if "secret" in volume}
        variables = {
            variable["valueFrom"]["secretKeyRef"]["name"]
            for container in self.containers
            for variable in container.get("env", [])
            if "valueFrom" in variable
        }
        return volumes | variables


@dataclass(frozen=True)
class Manifests:
    """What an overlay renders to."""

    overlay: str
    objects: list[Object]

    def of(self, *kinds: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] in kinds]

    def one(self, kind: str, name: str) -> Object:
        (found,) = (found for found in self.of(kind) if found["metadata"]["name"] == name)
        return found

    @property
    def pods(self) -> list[Pod]:
        return [
            Pod(
                template["metadata"]["labels"]["app.kubernetes.io/name"],
                owner["metadata"]["namespace"],
                template["metadata"],
                template["spec"],
                owner,
            )
            for owner in self.objects
            for template in templates(owner)
        ]

    def pod(self, name: str) -> Pod:
        (found,) = (pod for pod in self.pods if pod.name == name)
        return found

    def labels_of(self, namespace: str) -> dict[str, str]:
        """As the API server has them."""
        own: dict[str, str] = self.one("Namespace", namespace)["metadata"]["labels"]
        return own | {"kubernetes.io/metadata.name": namespace}


def templates(value: Any) -> Iterator[Object]:
    """Templates of pods anywhere in an object."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        else:
            for inner in value.values():
                yield from templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from templates(inner)


@cache
def read(overlay: str) -> Manifests:
    text = (KUBERNETES / "rendered" / f"{overlay}.yaml").read_text()
    return Manifests(overlay, [found for found in yaml.safe_load_all(text) if found])


def environment(container: Object) -> dict[str, str]:
    """What is set in so many words, with `$(NAME)` replaced as the kubelet does; secrets are `secret`."""
    found: dict[str, str] = {}
    for variable in container.get("env", []):
        value = variable.get("value", "secret")
        found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], value)
    return found


def amount(quantity: str | int) -> float:
    """A quantity of Kubernetes, in cores or bytes."""
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i|)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return read(request.param)
