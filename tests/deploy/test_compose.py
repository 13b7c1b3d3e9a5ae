"""`compose.yaml`: well formed, hardened, and its networks part the zones."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy.conftest import Object, read
from tests.deploy.test_commands import parsed
from tests.deploy.test_containers import CONTAINERS, stages

COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
SERVICES: dict[str, Object] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("sealface/")]


def test_it_is_a_compose_file() -> None:
    assert set(PyCompose.from_yaml(yaml.safe_dump(COMPOSE)).service_names()) == SERVICES.keys()


def test_a_misspelt_key_is_found() -> None:
    wrong = COMPOSE | {"services": SERVICES | {"keys": SERVICES["keys"] | {"volume": []}}}
    with pytest.raises(ValueError, match="volume"):
        PyCompose.from_yaml(yaml.safe_dump(wrong))


def test_it_runs_the_three_services_with_their_stores() -> None:
    assert SERVICES.keys() == {"prepare", "keys", "migrate", "enrollment", "matching", "postgresql", "redis"}


@pytest.mark.parametrize("name", [*OURS, "redis"])
def test_nothing_of_ours_is_root_or_writes_its_root_file_system(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0


def test_zones_are_parted_by_networks() -> None:
    networks = {name: set(service.get("networks", [])) for name, service in SERVICES.items()}
    assert networks["keys"] == {"callers", "zones"}
    for store in ("postgresql", "redis"):
        assert networks[store] == {"stores"}
    assert "stores" not in networks["keys"]
    assert networks["enrollment"] == networks["matching"] == {"callers", "zones", "stores"}
    assert networks["migrate"] == {"stores"}
    assert SERVICES["prepare"]["network_mode"] == "none"
    assert {name for name, network in COMPOSE["networks"].items() if network.get("internal")} == {"zones", "stores"}


def test_volumes_of_keys_are_theirs_alone() -> None:
    def of(name: str) -> set[str]:
        return {volume.split(":")[0] for volume in SERVICES[name].get("volumes", [])}

    serving = [name for name in SERVICES if name != "prepare"]
    for volume in ("keys", "certs-keys"):
        assert [name for name in serving if volume in of(name)] == ["keys"]
    for volume in ("authority", "operator"):
        assert [name for name in serving if volume in of(name)] == []
    assert set().union(*map(of, SERVICES)) == COMPOSE["volumes"].keys()


def test_what_is_published_is_published_on_loopback() -> None:
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert {name for name, ports in published.items() if ports} == {"keys", "enrollment", "matching"}
    for ports in published.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)
    assert "50061" not in str(published)


@pytest.mark.parametrize("name", ["keys", "enrollment", "matching", "migrate"])
def test_commands_are_those_of_the_command_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {key: value.replace("$", "") for key, value in SERVICES[name].get("environment", {}).items()}
    environment = [{"name": key, "value": value} for key, value in told.items()]
    command, options = parsed({"args": SERVICES[name]["command"], "env": environment}, monkeypatch)
    assert command == ("migrate" if name == "migrate" else "serve")
    assert command == "migrate" or str(options["service"]) == name
    assert not options.get("insecure")


@pytest.mark.parametrize("name", ["keys", "enrollment", "matching"])
def test_each_is_asked_for_its_health_and_has_its_own_certificate(name: str) -> None:
    service = SERVICES[name]
    assert "--health=127.0.0.1:50050" in service["command"]
    assert "127.0.0.1:50050" in service["healthcheck"]["test"][-1]
    zone = "keys" if name == "keys" else "compute"
    assert f"--tls-cert=/certs/{zone}/tls.pem" in service["command"]
    assert f"certs-{zone}:/certs/{zone}:ro" in service["volumes"]
    assert f"sealface certify {zone} /certs/{zone}" in SERVICES["prepare"]["command"][0]


def test_volumes_begin_in_folders_of_the_images_user() -> None:
    """A volume that begins in a folder that the image does not have is root's."""
    (made,) = (rest for instruction, rest in stages()["runtime"][1] if "install -d" in rest)
    for name in OURS:
        for volume in SERVICES[name].get("volumes", []):
            assert volume.split(":")[1] in made.split(), volume


def test_images_are_those_of_the_manifests() -> None:
    used = {container["image"] for pod in read("large").pods for container in pod.containers}
    assert {service["image"] for service in SERVICES.values()} <= used
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["target"] == name


def test_no_password_is_in_it() -> None:
    assert re.findall(r"://[^$@/\s]*:(?!\$\{)[^@/\s]+@", (CONTAINERS / "compose.yaml").read_text()) == []
