"""Signing credentials (Ed25519), and what is signed with them.

Two things are signed by callers: decision requests, which pass through compute, and requests to operator methods
of the key service. Each has its own context string, so that neither can stand in for the other.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from sealface.errors import InvalidInput, Unauthenticated

_DECISION_REQUEST = b"sealface decision request v1\0"
_OPERATOR_REQUEST = b"sealface operator request v1\0"


class CredentialUnreadable(InvalidInput):
    """A credential's file holds no signing key."""


class BadSignature(Unauthenticated):
    """A signature does not verify under the caller's registered key."""


@dataclass(frozen=True)
class Credential:
    """A caller's name and signing key.

    Attributes:
        caller: resource name, `callers/{caller}`.
        key: the private key.
    """

    caller: str
    key: Ed25519PrivateKey

    @classmethod
    def generate(cls, caller: str) -> Credential:
        """A fresh credential; register its `verifying_key` with the key service."""
        return cls(caller, Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Credential:
        """Read a file that `save` wrote; the file's name is the caller's id.

        Raises:
            CredentialUnreadable: it is none.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise CredentialUnreadable(f"{path.name} holds no Ed25519 key: make a new credential")
        return cls(f"callers/{path.stem}", key)

    def save(self, folder: Path) -> Path:
        """Write `{caller}.pem` into a folder, readable by its owner alone."""
        path = folder / f"{self.caller.removeprefix('callers/')}.pem"
        data = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(path, data)
        return path

    def publish(self, folder: Path) -> Path:
        """Write the public half as `{caller}.pub` into a folder."""
        path = folder / f"{self.caller.removeprefix('callers/')}.pub"
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_private(path, public)
        return path

    @property
    def verifying_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    def sign_decision_request(self, request: bytes) -> bytes:
        """Signature of a serialised DecisionRequest."""
        return self.key.sign(_DECISION_REQUEST + request)

    def sign_operator_request(self, method: str, request: bytes, time_s: int, nonce: bytes) -> bytes:
        """Signature of a serialised request to an operator method, see `operator_payload`."""
        return self.key.sign(operator_payload(method, request, time_s, nonce))


def write_private(path: Path, data: bytes) -> None:
    """Write a file with mode 0600, whole or not at all, and make it durable."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def operator_payload(method: str, request: bytes, time_s: int, nonce: bytes) -> bytes:
    """What a signature of an operator request covers.

    Args:
        method: full gRPC method, `/package.Service/Method`.
        request: the serialised request.
        time_s: seconds since 1970.
        nonce: 32 random bytes.
    """
    return (
        _OPERATOR_REQUEST
        + hashlib.sha256(method.encode()).digest()
        + hashlib.sha256(request).digest()
        + struct.pack(">q", time_s)
        + nonce
    )


def _verify(verifying_key: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(verifying_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise BadSignature("the signature does not verify: sign with the registered credential") from None


def verify_decision_request(verifying_key: bytes, request: bytes, signature: bytes) -> None:
    """Check a caller's signature of a decision request.

    Raises:
        BadSignature: it does not verify.
    """
    _verify(verifying_key, signature, _DECISION_REQUEST + request)


def verify_operator_request(verifying_key: bytes, payload: bytes, signature: bytes) -> None:
    """Check a caller's signature of an operator request.

    Raises:
        BadSignature: it does not verify.
    """
    _verify(verifying_key, signature, payload)
