"""Certificates carry the names that the services ask of each other, as the code has them."""

from __future__ import annotations

import re

import pytest

from sealface.protocol.zones import Zone
from tests.deploy.conftest import OURS, Manifests, environment, read

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


def policy() -> dict[str, str]:
    """Message -> expression."""
    spec = read("small").one("ValidatingAdmissionPolicy", "sealface-zones")["spec"]
    assert spec["failurePolicy"] == "Fail"
    return {rule["message"]: rule["expression"] for rule in spec["validations"]}


def test_the_rules_of_issuing_are_enforced(manifests: Manifests) -> None:
    binding = manifests.one("ValidatingAdmissionPolicyBinding", "sealface-zones")
    assert binding["spec"] == {"policyName": "sealface-zones", "validationActions": ["Deny"]}
    resources = manifests.one("ValidatingAdmissionPolicy", "sealface-zones")["spec"]["matchConstraints"][
        "resourceRules"
    ]
    assert [sorted(rule["resources"]) for rule in resources] == [["certificaterequests", "certificates"]]


@pytest.mark.parametrize("zone", list(Zone))
def test_the_rules_of_issuing_speak_of_the_names_that_the_code_has(zone: Zone) -> None:
    text = " ".join(policy().values())
    assert f"'{zone.identity.removesuffix(zone)}' + variables.zone" in text
    assert f"variables.zone + '{zone.server_name.removeprefix(zone)}'" in text
