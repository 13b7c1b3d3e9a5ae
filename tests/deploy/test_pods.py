"""What every pod of the manifests has: one test a property, over all of them."""

from __future__ import annotations

import re

import pytest
import yaml

from sealface.runtime.server import LIVENESS, ServerConfig
from tests.deploy.conftest import KUBERNETES, OURS, Manifests, amount, environment, read


def test_the_overlays_run_what_they_are_for() -> None:
    assert {pod.name for pod in read("small").pods} == {"keys", "enrollment", "matching"}
    further = {"edge", "postgresql", "redis", "ray-head", "ray-worker"}
    assert {pod.name for pod in read("large").pods} == {"keys", "enrollment", "matching", *further}


# --- restricted (Pod Security Standards)


def test_namespaces_enforce_the_restricted_standard(manifests: Manifests) -> None:
    for found in manifests.of("Namespace"):
        assert found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_nobody_is_root(manifests: Manifests) -> None:
    for pod in manifests.pods:
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod.name
        assert context["runAsUser"] > 0, pod.name
        for container in pod.containers:
            assert "runAsUser" not in container["securityContext"], pod.name
            assert container["securityContext"].get("runAsNonRoot", True) is True, pod.name


def test_nobody_gains_privileges(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, container["name"]
            assert context["capabilities"] == {"drop": ["ALL"]}, container["name"]
            assert not context.get("privileged", False), container["name"]


def test_system_calls_are_filtered(manifests: Manifests) -> None:
    for pod in manifests.pods:
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name


def test_nothing_of_the_node_is_shared(manifests: Manifests) -> None:
    for pod in manifests.pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.name
        kinds = {kind for volume in pod.spec["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}, pod.name
        for container in pod.containers:
            assert all("hostPort" not in port for port in container.get("ports", [])), pod.name


def test_the_root_file_system_is_read_only(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, container["name"]


def test_what_is_mounted_is_there(manifests: Manifests) -> None:
    for pod in manifests.pods:
        claims = {claim["metadata"]["name"] for claim in pod.owner["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod.spec["volumes"]} | claims
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
        assert mounted == volumes, pod.name


def test_secrets_are_mounted_to_be_read(manifests: Manifests) -> None:
    for pod in manifests.pods:
        given = {volume["name"] for volume in pod.spec["volumes"] if {"secret", "configMap"} & volume.keys()}
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                assert mount.get("readOnly", False) or mount["name"] not in given, (pod.name, mount)


def test_what_lies_in_memory_or_scratch_has_a_limit(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for volume in pod.spec["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), (pod.name, volume)


def test_files_of_volumes_keep_their_modes(manifests: Manifests) -> None:
    """The kubelet gives all of a volume to the group at every start, unless it is told not to look again."""
    for pod in manifests.pods:
        if "volumeClaimTemplates" in pod.owner["spec"] or any(
            "persistentVolumeClaim" in volume for volume in pod.spec["volumes"]
        ):
            assert pod.spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch", pod.name


# --- what a pod could find


def test_no_pod_has_a_token_of_the_cluster(manifests: Manifests) -> None:
    for pod in manifests.pods:
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        assert "serviceAccountName" not in pod.spec, pod.name
        assert all("projected" not in volume for volume in pod.spec["volumes"]), pod.name
    assert manifests.of("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []


def test_no_pod_is_told_of_services_by_the_environment(manifests: Manifests) -> None:
    """A service of the wrong name would be an option of ours."""
    for pod in manifests.pods:
        assert pod.spec["enableServiceLinks"] is False, pod.name


def test_passwords_are_on_no_command_line_of_ours(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            if container["name"] in OURS:
                assert not re.search(r"\$\(", " ".join(container["args"])), container["name"]


# --- probes, and how a pod ends


def test_what_lasts_has_all_three_probes(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.lasting:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), container["name"]


def test_our_services_are_probed_by_grpc_on_the_plaintext_health_port(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.spec["containers"]:
            if container["name"] not in OURS:
                continue
            (health,) = (port for port in container["ports"] if port["name"] == "health")
            assert f"--health=0.0.0.0:{health['containerPort']}" in container["args"]
            port = health["containerPort"]
            assert container["startupProbe"]["grpc"] == {"port": port, "service": LIVENESS}
            assert container["livenessProbe"]["grpc"] == {"port": port, "service": LIVENESS}
            assert container["readinessProbe"]["grpc"] == {"port": port}
            assert port not in {port["port"] for port in manifests.one("Service", pod.name)["spec"]["ports"]}


def test_kernels_have_time_to_be_compiled(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.spec["containers"]:
            if container["name"] in OURS:
                probe = container["startupProbe"]
                assert probe["periodSeconds"] * probe["failureThreshold"] >= 120, container["name"]


def test_what_ends_is_sent_nothing_first(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.lasting:
            assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= 1, container["name"]


def test_calls_under_way_have_the_time_that_the_server_gives_them(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.spec["containers"]:
            if container["name"] in OURS:
                sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
                assert sleep >= 5
                assert pod.spec["terminationGracePeriodSeconds"] >= sleep + ServerConfig().grace_s + 30


# --- resources


def test_memory_is_requested_as_it_is_limited(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.containers:
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], container["name"]
            assert amount(resources["requests"]["cpu"]) > 0, container["name"]


def test_nobody_is_throttled(manifests: Manifests) -> None:
    for pod in manifests.pods:
        assert all("cpu" not in container["resources"]["limits"] for container in pod.containers), pod.name


MEASURED = {"keys": 300, "enrollment": 283, "matching": 261, "worker": 282}
OF_RAY = {"ray": 375, "ray-head": 691, "ray-worker": 403}
"""MiB at most; the workers' without their blocks; `ray` is a node's own processes. docs/kubernetes.md says how."""


@pytest.mark.parametrize("service", ["keys", "enrollment", "matching"])
def test_there_is_room_for_what_was_measured(manifests: Manifests, service: str) -> None:
    (container,) = (one for one in manifests.pod(service).spec["containers"] if one["name"] == service)
    told = environment(container)
    needed = MEASURED[service] * 2**20
    if told.get("SEALFACE_POOL") == "local":
        needed += int(told["SEALFACE_WORKERS"]) * MEASURED["worker"] * 2**20 + float(told["SEALFACE_MEMORY"]) * 2**30
    assert needed * 1.2 < amount(container["resources"]["limits"]["memory"])


def test_local_workers_have_a_core_for_each_thread() -> None:
    """The default would be the node's cores, whatever the pod may use of them."""
    (container,) = read("small").pod("matching").spec["containers"]
    assert int(environment(container)["SEALFACE_THREADS"]) == amount(container["resources"]["requests"]["cpu"])


# --- more than one


def test_every_workload_may_lose_one_pod_at_a_time(manifests: Manifests) -> None:
    budgets = manifests.of("PodDisruptionBudget")
    for pod in manifests.pods:
        selecting = [
            budget
            for budget in budgets
            if budget["metadata"]["namespace"] == pod.namespace
            and budget["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()
        ]
        assert [budget["spec"]["maxUnavailable"] for budget in selecting] == [1], pod.name
    assert len(budgets) == len(manifests.pods)


def test_what_may_be_more_than_one_is_spread_over_nodes_and_zones(manifests: Manifests) -> None:
    single = {"keys", "postgresql", "redis", "ray-head"}
    for pod in manifests.pods:
        if pod.name in single:
            assert pod.owner["kind"] == "RayCluster" or pod.owner["spec"]["replicas"] == 1, pod.name
            continue
        spread = pod.spec["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        for one in spread:
            assert one["maxSkew"] == 1
            assert one["labelSelector"]["matchLabels"].items() <= pod.labels.items(), pod.name


def test_what_owns_pods_selects_them_and_nothing_else(manifests: Manifests) -> None:
    for pod in manifests.pods:
        if "selector" in pod.owner["spec"]:
            wanted = pod.owner["spec"]["selector"]["matchLabels"]
            assert [other.name for other in manifests.pods if wanted.items() <= other.labels.items()] == [pod.name]


def test_services_lead_to_ports_that_are_listened_on(manifests: Manifests) -> None:
    for service in manifests.of("Service"):
        pod = manifests.pod(service["spec"]["selector"]["app.kubernetes.io/name"])
        assert pod.namespace == service["metadata"]["namespace"]
        listening = {port["containerPort"] for container in pod.lasting for port in container.get("ports", [])}
        assert {port["port"] for port in service["spec"]["ports"]} <= listening


# --- autoscaling, monitoring


def test_the_large_overlay_scales_what_searches_and_what_enrols() -> None:
    manifests = read("large")
    scaled = {found["metadata"]["name"]: found["spec"] for found in manifests.of("HorizontalPodAutoscaler")}
    assert scaled.keys() == {"enrollment", "matching"}
    for name, spec in scaled.items():
        deployment = manifests.one("Deployment", name)
        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert "replicas" not in deployment["spec"]  # or every apply would undo it
        assert 2 <= spec["minReplicas"] < spec["maxReplicas"]
        own, waiting = spec["metrics"]
        assert own["containerResource"]["container"] == name  # not the node of Ray beside it
        assert waiting["pods"]["metric"]["name"] == "sealface_calls_under_way"
    assert read("small").of("HorizontalPodAutoscaler") == []


def test_the_autoscalers_metric_is_made_of_counters_of_the_zone_and_pod() -> None:
    values = yaml.safe_load((KUBERNETES / "components" / "autoscaling" / "adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    assert rule["name"] == {"as": "sealface_calls_under_way"}
    assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
    assert set(re.findall(r"grpc_server_\w+", rule["metricsQuery"])) == {
        "grpc_server_started_total",
        "grpc_server_handled_total",
    }


def test_one_core_is_what_a_scaled_server_asks_for() -> None:
    """A share of more than it can use would never be reached."""
    for name in ("enrollment", "matching"):
        (container,) = read("large").pod(name).spec["containers"]
        assert amount(container["resources"]["requests"]["cpu"]) <= 1


def test_ray_has_room_for_the_workers_of_as_many_servers_as_there_may_be() -> None:
    manifests = read("large")
    (container,) = manifests.pod("matching").spec["containers"]
    told = environment(container)
    workers, threads = int(told["SEALFACE_WORKERS"]), int(told["SEALFACE_THREADS"])
    memory = float(told["SEALFACE_MEMORY"]) * 2**30 / workers
    (group,) = manifests.one("RayCluster", "ray")["spec"]["workerGroupSpecs"]
    parameters = group["rayStartParams"]
    assert int(parameters["num-cpus"]) == threads // workers  # one worker a pod
    assert int(parameters["memory"]) >= memory
    most = manifests.one("HorizontalPodAutoscaler", "matching")["spec"]["maxReplicas"]
    assert group["replicas"] >= most * workers
    (container,) = manifests.pod("ray-worker").spec["containers"]
    assert amount(container["resources"]["requests"]["cpu"]) == threads // workers
    beside = (OF_RAY["ray-worker"] + OF_RAY["ray"]) * 2**20
    assert amount(container["resources"]["limits"]["memory"]) > int(parameters["memory"]) + beside


def test_there_is_room_for_rays_own_processes() -> None:
    manifests = read("large")
    for pod, name in (("matching", "ray"), ("ray-head", "ray-head")):
        (container,) = (one for one in manifests.pod(pod).lasting if one["name"] == name)
        assert amount(container["resources"]["limits"]["memory"]) > 1.2 * OF_RAY[name] * 2**20


def test_no_worker_is_placed_beside_a_server_or_at_the_head() -> None:
    manifests = read("large")
    assert manifests.one("RayCluster", "ray")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (node,) = (one for one in manifests.pod("matching").spec["initContainers"] if one["name"] == "ray")
    assert "--num-cpus=0" in node["args"]


def test_nobody_joins_ray_without_the_token() -> None:
    manifests = read("large")
    for pod in manifests.pods:
        if pod.labels.get("sealface/ray") != "node":
            continue
        for container in pod.lasting:
            told = environment(container)
            assert told["RAY_AUTH_MODE"] == "token", container["name"]
            assert told["RAY_AUTH_TOKEN"] == "secret", container["name"]
    assert not manifests.one("RayCluster", "ray")["spec"]["enableInTreeAutoscaling"]


def test_ray_finds_the_certificate_and_a_place_for_kernels_where_matching_has_them() -> None:
    manifests = read("large")
    (matching,) = manifests.pod("matching").spec["containers"]
    (worker,) = manifests.pod("ray-worker").spec["containers"]
    needed = {("/certs", "certs"), ("/state", "state"), ("/tmp", "tmp")}  # noqa: S108 - in a container
    for container in (matching, worker):
        assert needed <= {(mount["mountPath"], mount["name"]) for mount in container["volumeMounts"]}
    assert matching["image"] == worker["image"]


def test_every_service_of_ours_is_monitored_by_its_zones_own() -> None:
    manifests = read("large")
    found = {o["metadata"]["name"]: o for o in manifests.of("ServiceMonitor")}
    assert found.keys() == set(OURS)
    for name, monitor in found.items():
        service = manifests.one("Service", name)
        assert service["metadata"]["namespace"] == monitor["metadata"]["namespace"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
        assert [ports[endpoint["port"]] for endpoint in monitor["spec"]["endpoints"]] == [9464]
        (container,) = (one for one in manifests.pod(name).spec["containers"] if one["name"] == name)
        assert "--metrics=0.0.0.0:9464" in container["args"]
