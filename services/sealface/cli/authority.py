"""The certificate authority that `sealface serve` keeps for the services of one machine.

Its key lies in a folder of its own, which no service may read (`runtime.confinement`): the process that starts the
services issues each a certificate for a day, with a fresh key, and another long before that lapses.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sealface.protocol.signing import write_private
from sealface.protocol.zones import Zone
from sealface.runtime.tls import Tls

CA_FILE = "ca.pem"
_LIFETIME = timedelta(days=3650)
_LEFT = timedelta(days=30)  # with less, another authority takes its place at the next start
_CLOCKS = timedelta(minutes=5)  # by which they may differ
LEAF_LIFETIME = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Issues certificates of zones.

    Attributes:
        certificate: its own, which clients trust.
        key: what it signs with.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls) -> Authority:
        """A new one, in memory."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sealface, services of this machine")])
        now = datetime.now(UTC)
        certificate = (
            _builder(name, name, key.public_key(), now, _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def at(cls, folder: Path) -> Authority:
        """The one of a folder; made there if there is none, or if it lapses soon."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = _loaded(folder)
        if authority is None:
            authority = cls.create()
            write_private(folder / "ca.key", _pem(authority.key))
            authority.publish(folder / CA_FILE)
        return authority

    def publish(self, path: Path) -> None:
        """Write its certificate to a file, for clients to trust."""
        write_private(path, self.certificate.public_bytes(Encoding.PEM))

    def issue(self, zone: Zone, lifetime: timedelta = LEAF_LIFETIME) -> tuple[bytes, bytes]:
        """Certificate and fresh key of a process of a zone, in PEM.

        Besides the zone's names it carries those of loopback, for clients that know nothing of zones.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.UniformResourceIdentifier(zone.identity),
            *map(x509.DNSName, (zone.server_name, "localhost")),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, zone.server_name)])
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), datetime.now(UTC), lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _pem(key)

    def certify(self, files: Tls, zone: Zone, lifetime: timedelta = LEAF_LIFETIME) -> None:
        """Issue into the files of a service, in place of what they hold; see `runtime.tls.Certificate`."""
        certificate, key = self.issue(zone, lifetime)
        files.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.publish(files.authority)
        write_private(files.key, key)
        write_private(files.certificate, certificate)


def _loaded(folder: Path) -> Authority | None:
    try:
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / CA_FILE).read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    usable = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
    if not usable or certificate.not_valid_after_utc - datetime.now(UTC) < _LEFT:
        return None
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - just looked at
    return Authority(certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
