"""The authority of one machine's services."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealface.cli import authority as module
from sealface.cli.authority import Authority
from sealface.cli.processes import ZONES, certificate_files
from sealface.protocol.zones import Zone
from sealface.runtime.tls import Certificate


def names(certificate: bytes) -> x509.SubjectAlternativeName:
    loaded = x509.load_pem_x509_certificate(certificate)
    return loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_it_is_made_once_and_its_key_is_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    made = Authority.at(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "ca.key").stat().st_mode & 0o777 == 0o600
    assert load_pem_private_key((folder / "ca.key").read_bytes(), None).public_key() == made.certificate.public_key()
    assert Authority.at(folder).certificate == made.certificate
    made.publish(tmp_path / "ca.pem")
    assert x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes()) == made.certificate


def test_another_takes_its_place_before_it_lapses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIFETIME", timedelta(days=20))
    short = Authority.at(tmp_path)
    monkeypatch.undo()
    assert Authority.at(tmp_path).certificate != short.certificate


@pytest.mark.parametrize("damage", [b"", b"no key"])
def test_a_key_that_is_damaged_is_replaced_with_its_certificate(tmp_path: Path, damage: bytes) -> None:
    first = Authority.at(tmp_path)
    (tmp_path / "ca.key").write_bytes(damage)
    assert Authority.at(tmp_path).certificate != first.certificate


def test_each_certificate_has_a_key_of_its_own_names_one_zone_and_lapses_within_a_day() -> None:
    authority = Authority.create()
    seen = set()
    for zone in (*Zone, *Zone):
        certificate, key = authority.issue(zone)
        loaded = x509.load_pem_x509_certificate(certificate)
        loaded.verify_directly_issued_by(authority.certificate)
        assert load_pem_private_key(key, None).public_key() == loaded.public_key()
        seen.add(key)
        found = names(certificate)
        assert found.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://sealface/{zone}"]
        assert [n for n in found.get_values_for_type(x509.DNSName) if n != "localhost"] == [f"{zone}.sealface"]
        assert loaded.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=1)
        assert not loaded.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert len(seen) == 6


def test_files_lie_in_the_service_s_own_zone_and_are_usable(tmp_path: Path) -> None:
    authority = Authority.at(tmp_path)
    for service, folder in ZONES.items():
        files = certificate_files(tmp_path, service)
        authority.certify(files, Zone.KEYS)
        assert all(path.is_relative_to(tmp_path / folder) for path in files.files)
        assert files.key.stat().st_mode & 0o777 == 0o600
        assert Certificate(files).current().certificate == files.certificate.read_bytes()
