"""Who may reach whom, by the network policies as they are rendered: every pair of pods, every port, and nothing else.

The policies are read here as Kubernetes reads them: a pod that a policy of a direction selects accepts what one of them
names, and a connection needs both its ends' leave. Whether a cluster's network enforces them is the cluster's to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.conftest import OURS, Manifests, Object, read


@dataclass(frozen=True)
class End:
    """One end of a connection; which policies it has are those of its namespace."""

    name: str
    namespace: str
    labels: tuple[tuple[str, str], ...]
    namespace_labels: tuple[tuple[str, str], ...]
    ports: tuple[tuple[int, str], ...]


def end(name: str, namespace: str, labels: dict[str, str], of_namespace: dict[str, str], ports: dict[int, str]) -> End:
    own = {"kubernetes.io/metadata.name": namespace} | of_namespace
    return End(name, namespace, *(tuple(sorted(d.items())) for d in (labels, own)), tuple(sorted(ports.items())))


OUTSIDE = [
    end("caller", "application", {}, {"sealface/zone": "edge"}, {8443: "TCP"}),
    end("caller of edge", "kiosk", {}, {"sealface/calls-edge": "true"}, {8443: "TCP"}),
    end("stranger", "default", {}, {}, {8443: "TCP"}),
    end("monitor of keys", "watch-keys", {}, {"sealface/monitors-keys": "true"}, {9090: "TCP"}),
    end("monitor of compute", "watch-compute", {}, {"sealface/monitors-compute": "true"}, {9090: "TCP"}),
    end("monitor of edge", "watch-edge", {}, {"sealface/monitors-edge": "true"}, {9090: "TCP"}),
    end("vault", "vault", {"app.kubernetes.io/name": "vault"}, {}, {8200: "TCP"}),
    end("names", "kube-system", {"k8s-app": "kube-dns"}, {}, {53: "UDP"}),
    end("api server", "kube-system", {"component": "kube-apiserver"}, {}, {6443: "TCP"}),
]


def ends(manifests: Manifests) -> list[End]:
    """All pods with all their ports, one more that nobody knows, and who else there may be in a cluster."""
    found = []
    for pod in manifests.pods:
        ports = {port["containerPort"]: "TCP" for one in pod.lasting for port in one.get("ports", [])} | {22: "TCP"}
        found.append(end(pod.name, pod.namespace, pod.labels, manifests.labels_of(pod.namespace), ports))
    return found + OUTSIDE


def selects(selector: Object, labels: tuple[tuple[str, str], ...]) -> bool:
    has = dict(labels)
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    if not selector.get("matchLabels", {}).items() <= has.items():
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if has.get(expression["key"]) not in expression["values"]:
            return False
    return True


def is_peer(peer: Object, own_namespace: str, other: End) -> bool:
    assert peer.keys() <= {"podSelector", "namespaceSelector"}
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], other.namespace_labels):
            return False
    elif other.namespace != own_namespace:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def leave(manifests: Manifests, direction: str, own: End, other: End, port: tuple[int, str]) -> bool:
    """Whether one end may, as far as its own policies say."""
    rules, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    policies = [
        policy["spec"]
        for policy in manifests.of("NetworkPolicy")
        if policy["metadata"]["namespace"] == own.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], own.labels)
    ]
    if not policies:
        return True

    def names(rule: Object) -> bool:
        ports = [(each["port"], each.get("protocol", "TCP")) for each in rule.get("ports", [])]
        return (not ports or port in ports) and any(is_peer(peer, own.namespace, other) for peer in rule[peers])

    return any(names(rule) for policy in policies for rule in policy.get(rules, []))


def flows(manifests: Manifests) -> set[tuple[str, str, int]]:
    """Who reaches whom at which port, where at least one end is ours."""

    def found() -> Iterator[tuple[str, str, int]]:
        everybody = ends(manifests)
        for source in everybody:
            for target in everybody:
                if source is target or (source in OUTSIDE and target in OUTSIDE):
                    continue
                for port in target.ports:
                    if leave(manifests, "Egress", source, target, port) and leave(
                        manifests, "Ingress", target, source, port
                    ):
                        yield source.name, target.name, port[0]

    return set(found())


ALWAYS = {
    ("caller", "keys", 50051),
    ("caller", "enrollment", 50052),
    ("caller", "matching", 50053),
    ("enrollment", "keys", 50061),
    ("matching", "keys", 50061),
    ("enrollment", "names", 53),
    ("matching", "names", 53),
    ("monitor of keys", "keys", 9464),
    ("monitor of compute", "enrollment", 9464),
    ("monitor of compute", "matching", 9464),
}
LARGE = {
    ("edge", "keys", 50051),
    ("edge", "enrollment", 50052),
    ("edge", "matching", 50053),
    ("edge", "names", 53),
    ("caller of edge", "edge", 50054),
    ("monitor of edge", "edge", 9464),
    ("keys", "vault", 8200),
    ("keys", "names", 53),
    ("enrollment", "postgresql", 5432),
    ("matching", "postgresql", 5432),
    ("ray-worker", "postgresql", 5432),
    ("enrollment", "redis", 6379),
    ("matching", "redis", 6379),
    ("ray-worker", "redis", 6379),
    *((name, "names", 53) for name in ("postgresql", "redis", "ray-head", "ray-worker")),
}


def among_ray(found: set[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    nodes = {"matching", "ray-head", "ray-worker"}
    return {(source, target, port) for source, target, port in found if {source, target} <= nodes}


def test_on_one_node_nothing_else_is_reached() -> None:
    assert flows(read("small")) == ALWAYS


def test_on_many_nothing_else_is_reached_but_ray_nodes_among_each_other() -> None:
    found = flows(read("large"))
    assert found - among_ray(found) == ALWAYS | LARGE
    assert {(source, target) for source, target, _ in among_ray(found)} == {
        (source, target)
        for source in ("matching", "ray-head", "ray-worker")
        for target in ("matching", "ray-head", "ray-worker")
        if source != target
    }


# --- what follows from these, in the words of the threat model


def test_compute_cannot_reach_the_key_store(manifests: Manifests) -> None:
    """Neither over the network, nor as a volume, nor by a secret."""
    compute = [pod for pod in manifests.pods if pod.namespace == "sealface-compute"]
    reached = {target for source, target, _ in flows(manifests) if source in {pod.name for pod in compute}}
    assert "vault" not in reached
    for pod in compute:
        assert pod.secrets <= {"tls", "postgresql", "postgresql-tls", "redis", "redis-tls", "ray"}
        assert not any("VAULT" in variable["name"] for one in pod.containers for variable in one.get("env", []))
        assert not any(
            "KEY_ENCRYPTION" in variable["name"] for one in pod.containers for variable in one.get("env", [])
        )


def test_compute_reaches_the_key_service_where_it_shows_a_certificate_alone(manifests: Manifests) -> None:
    compute = {pod.name for pod in manifests.pods if pod.namespace == "sealface-compute"}
    assert {port for source, target, port in flows(manifests) if source in compute and target == "keys"} == {50061}


def test_keys_cannot_reach_the_template_store(manifests: Manifests) -> None:
    """Nor anything else of compute."""
    assert {target for source, target, _ in flows(manifests) if source == "keys"} <= {"vault", "names"}
    keys = manifests.pod("keys")
    assert keys.secrets <= {"tls", "key-encryption", "vault"}
    assert not any("persistentVolumeClaim" in volume for volume in keys.spec["volumes"])


def test_the_volume_of_keys_is_their_own(manifests: Manifests) -> None:
    (claim,) = manifests.pod("keys").owner["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]  # a second pod cannot have it, whatever it is
    assert manifests.pod("keys").owner["spec"]["replicas"] == 1
    for pod in manifests.pods:
        if pod.name != "keys":
            assert pod.namespace != "sealface-keys"


def test_who_calls_from_outside_reaches_no_store_and_no_internal_port(manifests: Manifests) -> None:
    from_outside = {(source, target, port) for source, target, port in flows(manifests) if source.startswith("caller")}
    assert {port for _, _, port in from_outside} <= {50051, 50052, 50053, 50054}


def test_a_stranger_reaches_nothing_and_nobody_reaches_the_api_server(manifests: Manifests) -> None:
    found = flows(manifests)
    assert not [flow for flow in found if flow[0] == "stranger"]
    assert not [flow for flow in found if flow[1] == "api server"]


def test_health_is_asked_by_the_kubelet_alone(manifests: Manifests) -> None:
    assert not [flow for flow in flows(manifests) if flow[2] == 50050 and not {flow[0], flow[1]} & {"matching"}]


def test_what_is_new_in_a_zone_reaches_nothing(manifests: Manifests) -> None:
    """Policies name what may; the first of each namespace says that nothing else does."""
    for namespace in (found["metadata"]["name"] for found in manifests.of("Namespace")):
        (nothing,) = (
            policy["spec"]
            for policy in manifests.of("NetworkPolicy")
            if policy["metadata"]["namespace"] == namespace and policy["metadata"]["name"] == "nothing"
        )
        assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_metrics_of_decisions_are_the_key_zones_to_read(manifests: Manifests) -> None:
    readers = {source for source, target, port in flows(manifests) if (target, port) == ("keys", 9464)}
    assert readers == {"monitor of keys"}


@pytest.mark.parametrize("name", [*OURS, "postgresql", "redis"])
def test_the_reading_of_policies_can_find_a_hole(name: str) -> None:
    """Without a pod's namespace's first policy a stranger reaches it."""
    manifests = read("large")
    namespace = manifests.pod(name).namespace

    def kept(found: Any) -> bool:
        metadata = found["metadata"]
        return found["kind"] != "NetworkPolicy" or metadata["namespace"] != namespace

    holed = Manifests("large", [found for found in manifests.objects if kept(found)])
    assert ("stranger", name, 22) in flows(holed)
