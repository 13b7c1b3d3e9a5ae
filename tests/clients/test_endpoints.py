"""Where the services are, and how they are called there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sealface_client import AsyncClient, Endpoints
from sealface_client.channels import AuthorityMissing
from sealface_client.endpoints import NoServices

ADDRESSES = {"keys": "127.0.0.1:1", "enrollment": "127.0.0.1:2", "matching": "127.0.0.1:3"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE", "KEYS", "ENROLLMENT", "MATCHING", "CA"):
        monkeypatch.delenv(f"SEALFACE_{name}", raising=False)


def named(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"SEALFACE_{name.upper()}", value)


def state(folder: Path, **values: object) -> Path:
    (folder / "services.json").write_text(json.dumps(values))
    return folder


def test_by_state(tmp_path: Path) -> None:
    assert Endpoints.discover(state(tmp_path, **ADDRESSES)) == Endpoints(**ADDRESSES)
    found = Endpoints.discover(state(tmp_path, **ADDRESSES, ca="ca.pem"))
    assert found == Endpoints(**ADDRESSES, ca=tmp_path / "ca.pem")
    assert Endpoints.discover(state(tmp_path, **ADDRESSES, ca="/etc/ca.pem")).ca == Path("/etc/ca.pem")
    assert Endpoints.discover(state(tmp_path, **ADDRESSES, ca=None)).ca is None


def test_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, **ADDRESSES)
    assert Endpoints.discover() == Endpoints(**ADDRESSES)
    named(monkeypatch, ca="/etc/sealface/ca.pem")
    assert Endpoints.discover() == Endpoints(**ADDRESSES, ca=Path("/etc/sealface/ca.pem"))


def test_the_environment_comes_first_and_the_state_fills_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(tmp_path, **ADDRESSES, ca="ca.pem")
    named(monkeypatch, keys="127.0.0.1:9")
    assert Endpoints.discover(tmp_path) == Endpoints(**ADDRESSES | {"keys": "127.0.0.1:9"}, ca=tmp_path / "ca.pem")
    named(monkeypatch, ca="/etc/ca.pem")
    assert Endpoints.discover(tmp_path).ca == Path("/etc/ca.pem")


def test_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, keys="127.0.0.1:9", ca="/etc/ca.pem")
    for folder in (None, tmp_path, state(tmp_path, matching="127.0.0.1:3", enrollment=5)):
        with pytest.raises(NoServices, match="SEALFACE_CA"):
            Endpoints.discover(folder)


@pytest.mark.parametrize(
    "address", ["192.0.2.1:50051", "keys.example.org:50051", "0.0.0.0:1", "[2001:db8::1]:1", "keys"]
)
async def test_services_elsewhere_are_not_called_in_plaintext(address: str) -> None:
    for name in ADDRESSES:
        with pytest.raises(AuthorityMissing, match="SEALFACE_CA"):
            AsyncClient(Endpoints(**ADDRESSES | {name: address}))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1", "unix:/tmp/socket"])
async def test_services_of_this_machine_may_be(address: str) -> None:
    await AsyncClient(Endpoints(address, address, address)).close()


async def test_an_authority_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AuthorityMissing, match=r"ca\.pem"):
        AsyncClient(Endpoints(**ADDRESSES, ca=tmp_path / "ca.pem"))
