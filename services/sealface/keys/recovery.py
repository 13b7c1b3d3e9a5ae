"""A recovery key: kept offline, it opens data keys when the key-encryption key is lost (HPKE, RFC 9180).

The key service knows its public half alone, and seals each secret's data key to it as the secret is stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sealface.errors import InvalidInput
from sealface.keys.providers import SecretDamaged
from sealface.protocol.signing import write_private

PUBLIC_FILE, PRIVATE_FILE = "recovery.pub", "recovery.pem"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_CONTEXT = b"sealface recovery v1\0"


class RecoveryKeyUnreadable(InvalidInput):
    """A file holds no recovery key, or another passphrase opens it."""


def _id(public: X25519PublicKey) -> str:
    return f"x25519:{hashlib.sha256(public.public_bytes_raw()).digest()[:8].hex()}"


@dataclass(frozen=True)
class RecoveryRecipient:
    """The public half of a recovery key."""

    public: X25519PublicKey

    @classmethod
    def load(cls, path: Path) -> RecoveryRecipient:
        """Read it from a PEM file.

        Raises:
            RecoveryKeyUnreadable: there is none in it.
        """
        try:
            public = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError):
            public = None
        if not isinstance(public, X25519PublicKey):
            raise RecoveryKeyUnreadable(
                f"{path.name} holds no X25519 public key: make one, `sealface keys recovery-key`"
            )
        return cls(public)

    @property
    def id(self) -> str:
        """A fingerprint."""
        return _id(self.public)

    def seal(self, data_key: bytes, name: str) -> bytes:
        """A data key that only the recovery key opens, bound to the name of what it encrypts."""
        return _SUITE.encrypt(data_key, self.public, info=_CONTEXT + name.encode())


@dataclass(frozen=True)
class RecoveryKey:
    """The private half; never where the key service runs, but for a recovery."""

    private: X25519PrivateKey

    @classmethod
    def generate(cls) -> RecoveryKey:
        """A fresh one."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: str) -> RecoveryKey:
        """Read it from a file that `save` wrote.

        Raises:
            RecoveryKeyUnreadable: there is none in it, or another passphrase opens it.
        """
        try:
            private = load_pem_private_key(path.read_bytes(), passphrase.encode() or None)
        except (OSError, ValueError, TypeError):
            private = None
        if not isinstance(private, X25519PrivateKey):
            raise RecoveryKeyUnreadable(f"{path.name} holds no recovery key, or has another passphrase: try again")
        return cls(private)

    def save(self, folder: Path, passphrase: str) -> tuple[Path, Path]:
        """Write both halves into a folder, the private one under the passphrase unless that is empty."""
        encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        private, public = folder / PRIVATE_FILE, folder / PUBLIC_FILE
        write_private(private, self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        write_private(public, self.recipient.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return private, public

    @property
    def recipient(self) -> RecoveryRecipient:
        """Its public half."""
        return RecoveryRecipient(self.private.public_key())

    @property
    def id(self) -> str:
        """A fingerprint."""
        return self.recipient.id

    def open(self, sealed: bytes, name: str) -> bytes:
        """The data key.

        Raises:
            SecretDamaged: it was not sealed to this key for that name.
        """
        try:
            return _SUITE.decrypt(sealed, self.private, info=_CONTEXT + name.encode())
        except (InvalidTag, ValueError):
            raise SecretDamaged("a stored secret's recovery wrapping does not open: use the key it is for") from None
