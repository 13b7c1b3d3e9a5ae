"""Certificates carry the names that the services ask of each other, as the code has them."""

from __future__ import annotations

import re

import pytest
from cel_expr_python import cel

from sealface.protocol.zones import Zone
from tests.deploy.conftest import OURS, Manifests, Object, environment, read

PRESENT = {"small": [Zone.KEYS, Zone.COMPUTE], "large": [Zone.KEYS, Zone.COMPUTE, Zone.EDGE]}


def test_each_zone_has_exactly_its_own_uri(manifests: Manifests) -> None:
    """`runtime.peers` takes a certificate with one more URI for nobody's."""
    zones = {
        found["metadata"]["namespace"]: found["spec"]
        for found in manifests.of("Certificate")
        if "uris" in found["spec"]
    }
    assert {namespace: spec["uris"] for namespace, spec in zones.items()} == {
        f"sealface-{zone}": [zone.identity] for zone in PRESENT[manifests.overlay]
    }


def test_each_zone_has_the_name_that_clients_ask_for_and_no_other_zones(manifests: Manifests) -> None:
    for found in manifests.of("Certificate"):
        if found["spec"].get("isCA"):
            continue
        namespace = found["metadata"]["namespace"]
        own = Zone(namespace.removeprefix("sealface-")).server_name
        names = set(found["spec"]["dnsNames"])
        assert names & {zone.server_name for zone in Zone} == ({own} if "uris" in found["spec"] else set())
        for name in names - {own}:
            service, rest = name.split(".", 1)
            assert rest == f"{namespace}.svc"
            assert manifests.one("Service", service)["metadata"]["namespace"] == namespace


def test_what_stores_ciphertexts_cannot_pass_for_compute() -> None:
    stores = [
        found for found in read("large").of("Certificate") if found["metadata"]["name"] in ("postgresql", "redis")
    ]
    assert len(stores) == 2
    for found in stores:
        assert "uris" not in found["spec"]
        assert "client auth" not in found["spec"]["usages"]


def test_zones_show_and_ask_for_certificates(manifests: Manifests) -> None:
    for found in manifests.of("Certificate"):
        if "uris" in found["spec"]:
            assert {"server auth", "client auth"} <= set(found["spec"]["usages"])
            assert found["spec"]["privateKey"]["rotationPolicy"] == "Always"
            assert found["spec"]["duration"] == "24h0m0s"  # they lapse, they are not revoked


def test_the_authoritys_key_lies_in_no_zone(manifests: Manifests) -> None:
    (authority,) = (found for found in manifests.of("Certificate") if found["spec"].get("isCA"))
    assert authority["metadata"]["namespace"] not in {pod.namespace for pod in manifests.pods}
    assert manifests.one("ClusterIssuer", "sealface")["spec"] == {"ca": {"secretName": authority["spec"]["secretName"]}}


def test_every_pod_of_ours_is_given_its_zones_certificate(manifests: Manifests) -> None:
    for pod in manifests.pods:
        for container in pod.spec["containers"]:
            if container["name"] not in OURS:
                continue
            (certificate,) = (
                found
                for found in manifests.of("Certificate")
                if found["metadata"]["namespace"] == pod.namespace and "uris" in found["spec"]
            )
            (volume,) = (one for one in pod.spec["volumes"] if one["name"] == "certs")
            assert volume["secret"]["secretName"] == certificate["spec"]["secretName"]
            (mount,) = (one for one in container["volumeMounts"] if one["name"] == "certs")
            files = {
                "--tls-cert": "tls.crt",
                "--tls-key": "tls.key",
                "--tls-ca": "ca.crt",
            }  # as cert-manager names them
            for option, file in files.items():
                assert f"{option}={mount['mountPath']}/{file}" in container["args"]


def test_stores_are_asked_by_the_names_in_their_certificates() -> None:
    manifests = read("large")
    for variable, name in (("SEALFACE_DATABASE", "postgresql"), ("SEALFACE_REDIS", "redis")):
        for service in ("enrollment", "matching"):
            (container,) = (one for one in manifests.pod(service).spec["containers"] if one["name"] == service)
            address = environment(container)[variable]
            found = re.search(r"@([^:/]+):(\d+)/", address)
            assert found is not None
            assert found[1] in manifests.one("Certificate", name)["spec"]["dnsNames"]
            assert address.startswith("rediss:") or "sslmode=verify-full" in address


# --- who may have a certificate issued


POLICY = read("small").one("ValidatingAdmissionPolicy", "sealface-zones")["spec"]
ENVIRONMENT = cel.NewEnv(variables=dict.fromkeys(("object", "namespaceObject", "request", "variables"), cel.Type.DYN))
CERT_MANAGER = "system:serviceaccount:cert-manager:cert-manager"


def holds(expression: str, **known: Object) -> object:
    return ENVIRONMENT.compile(expression).eval(data=known).value()


def refusals(asked: Object, labels: dict[str, str], user: str = "somebody") -> list[str]:
    """What the API server would say of an object in a namespace with these labels, by a CEL of the same makers."""
    (applies,), (zone,) = POLICY["matchConditions"], POLICY["variables"]
    if not holds(applies["expression"], object=asked):
        return []
    known = {
        "object": asked,
        "variables": {"zone": holds(zone["expression"], namespaceObject={"metadata": {"labels": labels}})},
        "request": {"userInfo": {"username": user}},
    }
    return [rule["message"] for rule in POLICY["validations"] if not holds(rule["expression"], **known)]


def certificate(namespace: str, **spec: object) -> Object:
    reference = {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "sealface"}
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": "asked", "namespace": namespace},
        "spec": {"secretName": "asked", "issuerRef": reference, **spec},
    }


def test_the_rules_of_issuing_are_enforced(manifests: Manifests) -> None:
    policy = manifests.one("ValidatingAdmissionPolicy", "sealface-zones")["spec"]
    binding = manifests.one("ValidatingAdmissionPolicyBinding", "sealface-zones")["spec"]
    assert binding == {"policyName": "sealface-zones", "validationActions": ["Deny"]}
    assert policy["failurePolicy"] == "Fail"
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert sorted(rule["resources"]) == ["certificaterequests", "certificates"]
    assert sorted(rule["operations"]) == ["CREATE", "UPDATE"]


def test_the_certificates_of_the_manifests_are_issued(manifests: Manifests) -> None:
    for found in manifests.of("Certificate"):
        namespace = found["metadata"]["namespace"]
        labels = {} if namespace == "cert-manager" else manifests.labels_of(namespace)
        assert refusals(found, labels) == [], found["metadata"]


@pytest.mark.parametrize("zone", list(Zone))
@pytest.mark.parametrize("other", list(Zone))
def test_no_zone_is_given_another_zones_names(zone: Zone, other: Zone) -> None:
    labels = {"sealface/zone": str(zone)}
    for spec in ({"uris": [other.identity]}, {"dnsNames": [other.server_name]}):
        assert bool(refusals(certificate(f"sealface-{zone}", **spec), labels)) == (zone is not other)
    both = certificate(f"sealface-{zone}", uris=[zone.identity, other.identity])
    assert refusals(both, labels)


@pytest.mark.parametrize("zone", list(Zone))
def test_a_namespace_that_is_no_zone_is_given_no_zones_names(zone: Zone) -> None:
    for labels in ({}, {"sealface/zone": ""}):
        assert refusals(certificate("default", uris=[zone.identity]), labels)
        assert refusals(certificate("default", dnsNames=[zone.server_name]), labels)
        assert refusals(certificate("default", uris=["spiffe://sealface/"]), labels)
    assert refusals(certificate("default", dnsNames=["web.default.svc"]), {}) == []


@pytest.mark.parametrize(
    "spec",
    [
        {"dnsNames": ["keys.sealface-keys.svc"]},
        {"commonName": "keys.sealface"},
        {"literalSubject": "CN=keys.sealface"},
        {"ipAddresses": ["10.0.0.1"]},
        {"otherNames": [{"oid": "1.2.3", "utf8Value": "keys"}]},
        {"isCA": True},
    ],
)
def test_compute_has_no_other_way_to_pass_for_keys(spec: Object) -> None:
    assert len(refusals(certificate("sealface-compute", **spec), {"sealface/zone": "compute"})) == 1


def test_nobody_but_cert_manager_asks_the_authority_directly() -> None:
    request = certificate("sealface-compute") | {"kind": "CertificateRequest"}
    assert refusals(request, {"sealface/zone": "compute"})
    assert refusals(request, {"sealface/zone": "compute"}, CERT_MANAGER) == []
