"""Every container of ours is started with options that the command line has, of values that it takes."""

from __future__ import annotations

import re

import pytest
import typer
from typer.exceptions import TyperException

from sealface.cli.main import app
from sealface.cli.serve import Service
from sealface.enrollment import server as enrollment
from sealface.keys import server as keys
from sealface.matching import server as matching
from tests.deploy.conftest import OURS, Manifests, Object, environment, read

COMMANDS = typer.main.get_group(app).commands
TO_COME = {"--metrics"} - {name for option in COMMANDS["serve"].params for name in option.opts}
"""An option that another branch brings: when it is there this is empty, and goes."""
READ_ELSEWHERE = {"SEALFACE_ENROLLMENT", "SEALFACE_MATCHING", "SEALFACE_CA", "SEALFACE_CREDENTIAL"}
"""By the client library, and by the edge service's credential."""


def ours(manifests: Manifests) -> list[Object]:
    """Containers whose arguments are `sealface`'s."""
    every = (container for pod in manifests.pods for container in pod.containers)
    return [one for one in every if one["image"].startswith("sealface/") and "command" not in one and "args" in one]


def parsed(container: Object, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, object]]:
    """The command, and what it is called with; typer refuses what it does not know."""
    for name, value in environment(container).items():
        monkeypatch.setenv(name, value)
    name, *words = (word for word in container["args"] if word.partition("=")[0] not in TO_COME)
    return name, COMMANDS[name].make_context(name, words).params


def test_every_service_is_started(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    started = set()
    for container in ours(manifests):
        with monkeypatch.context() as patch:
            command, options = parsed(container, patch)
        if command == "serve":
            assert options["service"] is Service(container["name"])
            started.add(container["name"])
            assert not options["insecure"]
            assert {str(options[name]) for name in ("tls_cert", "tls_key", "tls_ca")} == {
                "/certs/tls.crt",
                "/certs/tls.key",
                "/certs/ca.crt",
            }
    assert started == {pod.name for pod in manifests.pods} & set(OURS)


def test_a_misspelt_option_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    container = next(one for one in ours(read("small")) if one["name"] == "keys")
    for wrong in ("--listn=0.0.0.0:1", "--strikes=none"):
        with pytest.raises(TyperException):
            parsed(container | {"args": [*container["args"], wrong]}, monkeypatch)


def test_variables_are_those_of_an_option_or_of_the_client(manifests: Manifests) -> None:
    for container in ours(manifests):
        named: set[str] = set()
        for option in COMMANDS[container["args"][0]].params:
            variables = option.envvar or []
            named |= {variables} if isinstance(variables, str) else set(variables)
        told = {name for name in environment(container) if name.startswith("SEALFACE_")}
        assert told <= named | READ_ELSEWHERE, container["name"]


def test_ports_are_those_that_are_listened_on(manifests: Manifests) -> None:
    for container in ours(manifests):
        listening = {int(found) for word in container["args"] if (found := word.partition("=0.0.0.0:")[2])}
        assert {port["containerPort"] for port in container.get("ports", [])} == listening, container["name"]


def test_services_are_called_where_they_listen(manifests: Manifests) -> None:
    """Each address `name.namespace.svc:port` is a service's, and a port of it."""
    addresses = [
        found
        for pod in manifests.pods
        for container in pod.containers
        for text in (*container.get("args", []), *environment(container).values())
        for found in re.findall(r"([a-z-]+)\.(sealface-[a-z]+)\.svc:(\d+)", text)
    ]
    assert ("keys", "sealface-keys", "50061") in addresses
    for name, namespace, port in set(addresses):
        if name == "ray-head-svc":  # KubeRay makes it
            assert manifests.one("RayCluster", "ray")["metadata"]["namespace"] == namespace
            continue
        service = manifests.one("Service", name)
        assert service["metadata"]["namespace"] == namespace
        assert int(port) in {one["port"] for one in service["spec"]["ports"]}


def test_probes_ask_for_names_that_health_has(manifests: Manifests) -> None:
    """A name that is none of the server's is NOT_FOUND: the pod would be killed over and over."""
    assert {keys.SERVICE, enrollment.SERVICE, matching.SERVICE}  # what "" stands for
    asked = {
        container[probe]["grpc"].get("service", "")
        for container in ours(manifests)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if "grpc" in container.get(probe, {})
    }
    assert asked == {"", "liveness"}


# --- the record


def test_the_schema_is_brought_up_to_date_before_the_writer_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = read("large").pod("enrollment")
    (migrate,) = pod.spec["initContainers"]
    (serving,) = pod.spec["containers"]
    command, options = parsed(migrate, monkeypatch)
    assert command == "migrate"
    assert options["database"] == environment(serving)["SEALFACE_DATABASE"]
    assert migrate["image"] == serving["image"]


def test_on_one_node_both_services_have_the_record_and_stay_with_it() -> None:
    manifests = read("small")
    for name in ("enrollment", "matching"):
        pod = manifests.pod(name)
        (state,) = (volume for volume in pod.spec["volumes"] if volume["name"] == "state")
        assert state["persistentVolumeClaim"]["claimName"] == "record"
        assert pod.owner["spec"]["strategy"] == {"type": "Recreate"}
        assert pod.owner["spec"]["replicas"] == 1
        (container,) = pod.spec["containers"]
        assert "SEALFACE_DATABASE" not in environment(container)
    affinity = manifests.pod("matching").spec["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert affinity[0]["topologyKey"] == "kubernetes.io/hostname"
    assert manifests.one("PersistentVolumeClaim", "record")["metadata"]["namespace"] == "sealface-compute"


def test_on_many_the_record_is_in_postgresql_and_nothing_is_kept_in_a_pod() -> None:
    manifests = read("large")
    for name in ("enrollment", "matching", "ray-worker"):
        (state,) = (volume for volume in manifests.pod(name).spec["volumes"] if volume["name"] == "state")
        assert "emptyDir" in state
    assert manifests.pod("postgresql").owner["spec"]["volumeClaimTemplates"]


# --- secrets


def test_every_secret_comes_from_somewhere(manifests: Manifests) -> None:
    """From cert-manager, from the zone's store, or by hand as docs/kubernetes.md says."""
    made = {(found["metadata"]["namespace"], found["spec"]["secretName"]) for found in manifests.of("Certificate")} | {
        (found["metadata"]["namespace"], found["spec"]["target"]["name"]) for found in manifests.of("ExternalSecret")
    }
    needed = {(pod.namespace, name) for pod in manifests.pods for name in pod.secrets}
    by_hand = {("sealface-keys", "key-encryption")} if manifests.overlay == "small" else set()
    assert needed - made == by_hand


def test_no_store_of_secrets_is_shared_by_zones(manifests: Manifests) -> None:
    for found in manifests.of("ExternalSecret"):
        assert found["spec"]["secretStoreRef"]["kind"] == "SecretStore"  # of its namespace


def test_the_key_encryption_key_is_copied_into_memory_for_its_owner_alone() -> None:
    """The kubelet gives a mounted Secret to the group, and the service takes no key that others may read."""
    pod = read("small").pod("keys")
    (volume,) = (one for one in pod.spec["volumes"] if one["name"] == "key-encryption")
    assert volume["emptyDir"]["medium"] == "Memory"
    (copies,) = (one for one in pod.spec["initContainers"] if one["name"] == "key-encryption")
    (serving,) = pod.spec["containers"]
    assert environment(serving)["SEALFACE_KEY_ENCRYPTION"] == "file:/key-encryption/key"
    assert "umask 077" in copies["args"][0]


def test_under_vault_no_key_encryption_key_is_in_the_cluster() -> None:
    pod = read("large").pod("keys")
    (serving,) = pod.spec["containers"]
    assert environment(serving)["SEALFACE_KEY_ENCRYPTION"].startswith("vault+https://")
    assert [one["name"] for one in pod.spec["initContainers"]] == ["public-keys"]
    assert pod.secrets == {"tls", "vault"}
