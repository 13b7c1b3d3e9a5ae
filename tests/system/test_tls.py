"""`sealface serve` shows certificates of an authority of its own, and renews them as it runs."""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from sealface.cli.authority import Authority
from sealface.cli.processes import SERVICES, LocalServices, certificate_files, local_services
from sealface.protocol.rights import Grant, Role
from sealface.protocol.tokens import new_static
from sealface.protocol.zones import Zone
from sealface_client import Client
from sealface_client.channels import AuthorityMissing
from sealface_protos.edge.v1 import edge_service_pb2 as edge
from sealface_protos.edge.v1 import edge_service_pb2_grpc
from sealface_protos.keys.v1 import key_service_pb2, key_service_pb2_grpc
from tests.conftest import status_of
from tests.system.chaos.components import Service, Watching
from tests.system.conftest import POLICY, People
from tests.system.test_cli import DONE, FAILED, USAGE, Command
from tests.system.test_crash import patiently
from tests.system.test_sealing import until


def shown(address: str) -> x509.Certificate:
    """The certificate that a service shows to a new connection."""
    host, _, port = address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def test_each_service_shows_its_zone(services: LocalServices) -> None:
    assert services.ca is not None
    authority = x509.load_pem_x509_certificate(services.ca.read_bytes())
    found = {name: shown(address) for name, address in services.addresses.items()}
    for certificate in found.values():
        certificate.verify_directly_issued_by(authority)
    assert {name: uris(certificate) for name, certificate in found.items()} == {
        "keys": ["spiffe://sealface/keys"],
        "enrollment": ["spiffe://sealface/compute"],
        "matching": ["spiffe://sealface/compute"],
    }
    keys = {certificate.public_key().public_numbers() for certificate in found.values()}
    assert len(keys) == 3


def test_a_client_that_knows_the_authority_alone_is_served(services: LocalServices) -> None:
    """As a program in another language is: with the file, and nothing of zones."""
    assert services.ca is not None
    credentials = grpc.ssl_channel_credentials(services.ca.read_bytes())
    with grpc.secure_channel(services.addresses["keys"], credentials) as channel:
        stub: key_service_pb2_grpc.KeyServiceStub = key_service_pb2_grpc.KeyServiceStub(channel)
        assert len(stub.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest(), timeout=10).verifying_key) == 32


def test_whoever_is_not_compute_gets_no_decision_and_no_renewal(services: LocalServices) -> None:
    edge = certificate_files(services.state, "edge")
    pems = edge.authority.read_bytes(), edge.key.read_bytes(), edge.certificate.read_bytes()
    for address, code in ((services.addresses["keys"], "UNAUTHENTICATED"), (services.internal, "PERMISSION_DENIED")):
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(*pems)) as channel:
            stub: key_service_pb2_grpc.KeyServiceStub = key_service_pb2_grpc.KeyServiceStub(channel)
            calls = (
                lambda stub=stub: stub.Decide(iter([key_service_pb2.DecideRequest()]), timeout=10),
                lambda stub=stub: list(stub.RenewBlock(iter([key_service_pb2.RenewBlockRequest()]), timeout=10)),
            )
            for call in calls:
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert status_of(caught.value)[0].name == code


def test_an_edge_service_calls_and_is_called_over_tls(services: LocalServices, people: People) -> None:
    assert services.ca is not None
    with Client.connect(services.state) as client:
        client.create_gallery("gate", policy=POLICY, edge=True)
        token, digest = new_static()
        grants = [Grant(Role.ENROLLER, "gate"), Grant(Role.VERIFIER, "gate")]
        client.create_caller("kiosk", grants=grants, token_digest=digest)
    bearer = [("authorization", f"Bearer {token}")]
    process = Command(None).start("serve", "edge", "--state", services.state)
    assert process.stdout is not None
    try:
        address = json.loads(process.stdout.readline())["address"]
        assert uris(shown(address)) == ["spiffe://sealface/edge"]
        person = people.somebody()
        faces = [edge.Face(embedding=edge.Embedding(values=each)) for each in (person, people.again(person))]
        credentials = grpc.ssl_channel_credentials(services.ca.read_bytes())  # as README has it
        with grpc.secure_channel(address, credentials) as channel:
            stub: edge_service_pb2_grpc.EdgeServiceStub = edge_service_pb2_grpc.EdgeServiceStub(channel)
            enroll = edge.EnrollRequest(gallery="galleries/gate", subject_id="ada", face=faces[0], request_id="r-1")
            with pytest.raises(grpc.RpcError) as caught:
                stub.Enroll(enroll, timeout=60)
            assert status_of(caught.value)[1].reason == "TOKEN_MISSING"
            stub.Enroll(enroll, metadata=bearer, timeout=60)
            verify = edge.VerifyRequest(gallery="galleries/gate", subject_id="ada", face=faces[1])
            assert stub.Verify(verify, metadata=bearer, timeout=60).decision == edge.DECISION_MATCH
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == DONE, err


def test_addresses_alone_are_not_enough(services: LocalServices, tmp_path: Path) -> None:
    addresses = {f"SEALFACE_{name.upper()}": address for name, address in services.addresses.items()}
    assert "set SEALFACE_CA" in Command(None, **addresses).error("gallery", "list", code=FAILED)
    other = tmp_path / "other.pem"
    Authority.at(tmp_path)
    (tmp_path / "ca.pem").rename(other)
    assert "shows no certificate" in Command(None, SEALFACE_CA=str(other), **addresses).error(
        "gallery", "list", code=FAILED
    )
    missing = Command(None, SEALFACE_CA=str(tmp_path / "none.pem"), **addresses)
    assert "none.pem" in missing.error("gallery", "list", code=USAGE)
    elsewhere = Command(None, **addresses | {"SEALFACE_KEYS": "192.0.2.1:50051"})
    assert "SEALFACE_CA" in elsewhere.error("gallery", "list", code=USAGE)


@pytest.fixture(scope="module")
def plain() -> Iterator[LocalServices]:
    with local_services(insecure=True) as started:
        yield started


def test_plaintext_on_request(plain: LocalServices, people: People) -> None:
    assert plain.ca is None
    assert "ca" not in json.loads((plain.state / "services.json").read_text())
    assert not list(plain.state.glob("**/tls/*"))
    with Client.connect(plain.state) as client:
        face = people.somebody()
        gallery = client.create_gallery("door", policy=POLICY)
        gallery.enroll("ada", face)
        assert gallery.verify("ada", people.again(face)).match


def test_plaintext_is_spoken_on_loopback_only(tmp_path: Path) -> None:
    for words in (("keys",), ("enrollment", "--keys", "127.0.0.1:1")):
        said = Command(None).ran(
            "serve", *words, "--insecure", "--state", tmp_path, "--listen", "0.0.0.0:0", code=USAGE
        )[1]
        assert "--tls-cert" in said.splitlines()[-1]
        assert "PLAINTEXT_REFUSED" in said.splitlines()[-1]
    said = Command(None).ran(
        "serve", "enrollment", "--insecure", "--state", tmp_path, "--keys", "192.0.2.1:1", code=USAGE
    )[1]
    assert "PLAINTEXT_REFUSED" in said.splitlines()[-1]


def test_a_service_by_itself_names_its_certificate(tmp_path: Path) -> None:
    assert "--tls-cert" in Command(None).error("serve", "keys", "--state", tmp_path, code=USAGE)
    files = certificate_files(tmp_path / "elsewhere", "keys")
    Authority.create().certify(files, Zone.KEYS)
    some = ("--tls-cert", files.certificate, "--tls-key", files.key)
    assert "--tls-ca" in Command(None).error("serve", "keys", "--state", tmp_path, *some, code=USAGE)


def test_a_deployment_s_files_are_read_and_read_again_by_a_confined_process(tmp_path: Path) -> None:
    """As they are replaced: another file of the same name, in a folder outside the service's zone."""
    certify = ("certify", "keys", tmp_path / "secrets", "--authority", tmp_path / "authority")
    files = Command(None).json(*certify)
    command = Command(None, **{f"SEALFACE_TLS_{name.upper()}": value for name, value in files.items()})
    process = command.start("serve", "keys", "--state", tmp_path / "state")
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        assert ready.keys() == {"service", "address", "internal", "serving"}
        before = shown(ready["address"])
        assert Command(None).json(*certify) == files
        after = shown(ready["address"])
        assert after == shown(ready["internal"]) == x509.load_pem_x509_certificate(Path(files["cert"]).read_bytes())
        assert after != before
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == DONE
    assert "certificate replaced" in {json.loads(line)["event"] for line in err.splitlines()}


@pytest.mark.timeout(180)
def test_certificates_are_renewed_and_who_is_started_again_is_spoken_to(people: People, tmp_path: Path) -> None:
    services = LocalServices(tmp_path, lifetime=timedelta(seconds=10))
    try:
        services.start()
        with Watching(services), Client.connect(tmp_path) as client:
            face = people.somebody()
            gallery = client.create_gallery("door", policy=POLICY)
            gallery.enroll("ada", face)
            assert gallery.verify("ada", people.again(face)).match
            first = {name: shown(address) for name, address in services.addresses.items()}
            last = max(certificate.not_valid_after_utc for certificate in first.values())
            while time.time() < last.timestamp() + 1:  # those that the processes began with have lapsed
                time.sleep(0.2)
            for name in SERVICES:
                address = services.addresses[name]
                until(lambda name=name, address=address: shown(address) != first[name], f"{name} shows the first")
            keys = Service(services, "keys")  # the others connect to it again, with what they have now
            keys.kill()
            keys.back()
            assert patiently(lambda: gallery.verify("ada", people.again(face))).match
            assert patiently(lambda: gallery.identify(people.again(face))).match
    finally:
        services.stop()


def test_the_authority_outlives_its_services(tmp_path: Path) -> None:
    """A client that was told of it once goes on after a restart of everything."""
    found = []
    for _ in range(2):
        with local_services(tmp_path) as services:
            assert services.ca is not None
            found.append((services.ca.read_bytes(), shown(services.addresses["keys"])))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_client_elsewhere_needs_the_authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "services.json").write_text(json.dumps(dict.fromkeys(SERVICES, "compute.example.org:50051")))
    for name in [name for name in os.environ if name.startswith("SEALFACE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(AuthorityMissing, match="SEALFACE_CA"):
        Client.connect(tmp_path)


def test_no_private_key_of_the_authority_is_in_a_process_of_a_service(services: LocalServices) -> None:
    """No descriptor, and no command line or environment that names it."""
    for name in SERVICES:
        process = Path(f"/proc/{services.pid(name)}")
        opened = [os.readlink(path) for path in (process / "fd").iterdir()]
        told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert not [path for path in opened if "/authority/" in path]
        assert b"/authority" not in told
