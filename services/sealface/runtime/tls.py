"""Certificates from files, looked at again at every connection, so that they are replaced without a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealface.addresses import is_loopback
from sealface.errors import InvalidInput

_log = structlog.get_logger("sealface.tls")
_T = TypeVar("_T")
_Stamp = tuple[tuple[int, int, int], ...]


class CertificateUnusable(InvalidInput):
    """A file holds no certificate or key, they do not belong together, or the certificate has lapsed."""


class PlaintextRefused(InvalidInput):
    """An address outside of this machine was to be served, or called, without TLS."""


@dataclass(frozen=True)
class Tls:
    """Files of one end of a connection, in PEM.

    Attributes:
        certificate: of this process, followed by those between it and the authority.
        key: its private key.
        authority: whoever's certificates are believed, one or several.
    """

    certificate: Path
    key: Path
    authority: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return self.certificate, self.key, self.authority


@dataclass(frozen=True)
class Contents:
    """What the files of `Tls` hold."""

    certificate: bytes
    key: bytes
    authority: bytes


class Certificate:
    """What the files hold now, as far as it can be used.

    Args:
        tls: the files.

    Raises:
        CertificateUnusable: what they hold cannot be used. Later on what they held before is kept instead: they are
            seen while one is replaced and the other not yet.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        self._seen = _stamp(tls)
        self._contents = _read(tls)

    def current(self) -> Contents:
        """The contents; the same object for as long as they are the same."""
        with self._lock:
            try:
                stamp = _stamp(self._tls)
                if stamp != self._seen:
                    self._seen = stamp
                    self._contents = _read(self._tls)
                    _log.info("certificate replaced")
            except CertificateUnusable as error:
                _log.warning("certificate not replaced", message=error.message)
            return self._contents


def server_credentials(certificate: Certificate, *, mutual: bool) -> grpc.ServerCredentials:
    """What a server listens with.

    Args:
        certificate: its own.
        mutual: whether a client must show a certificate of the authority.
    """

    def current() -> grpc.ServerCertificateConfiguration:
        contents = certificate.current()
        return grpc.ssl_server_certificate_configuration([(contents.key, contents.certificate)], contents.authority)

    return grpc.dynamic_ssl_server_credentials(current(), current, mutual)


def channel_credentials(contents: Contents) -> grpc.ChannelCredentials:
    """What a service calls another with: it believes the authority, and shows its own certificate if it is asked to."""
    return grpc.ssl_channel_credentials(contents.authority, contents.key, contents.certificate)


def check_plaintext(address: str) -> None:
    """Nothing leaves this machine without TLS.

    Raises:
        PlaintextRefused: the address is none of loopback.
    """
    if not is_loopback(address):
        raise PlaintextRefused(
            f"{address} is no loopback address, and plaintext is spoken on loopback alone: name a certificate "
            "(--tls-cert, --tls-key, --tls-ca)"
        )


def _stamp(tls: Tls) -> _Stamp:
    def of(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size

    return tuple(_tried(path, of) for path in tls.files)


def _read(tls: Tls) -> Contents:
    contents = Contents(*(_tried(path, Path.read_bytes) for path in tls.files))
    try:
        own, *_ = x509.load_pem_x509_certificates(contents.certificate)
        public = load_pem_private_key(contents.key, None).public_key()
        x509.load_pem_x509_certificates(contents.authority)
    except (ValueError, TypeError):
        names = ", ".join(path.name for path in tls.files)
        raise CertificateUnusable(f"{names}: not PEM files of a certificate, its key and its authority") from None
    if own.public_key() != public:
        raise CertificateUnusable(f"{tls.key.name} is not the key of {tls.certificate.name}: replace both")
    if own.not_valid_after_utc <= datetime.now(UTC):
        lapsed = own.not_valid_after_utc.isoformat(" ", "seconds")
        raise CertificateUnusable(f"{tls.certificate.name} lapsed {lapsed}: have another issued")
    return contents


def _tried(path: Path, what: Callable[[Path], _T]) -> _T:
    try:
        return what(path)
    except OSError as error:
        raise CertificateUnusable(f"{path}: {error.strerror}: name a PEM file that this process may read") from None
