"""Secrets at rest: each under an AES-256-GCM data key, the data key under a key-encryption key from outside.

The provider of the key-encryption key is pluggable: it wraps and unwraps 32 bytes, which is what a file, a KMS and
Vault's transit engine can all do.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealface.errors import DataCorrupted, Unavailable
from sealface.protocol.signing import write_private

_NONCE_BYTES = 12


class KeyEncryptionKeyMissing(Unavailable):
    """The key-encryption key cannot be had, or others may read it."""


class SecretDamaged(DataCorrupted):
    """A wrapped secret does not open under its key-encryption key and name."""


class KeyEncryptionKey(Protocol):
    """Wraps data keys."""

    def wrap(self, data_key: bytes, associated: bytes) -> bytes:
        """A data key of 32 bytes, wrapped."""

    def unwrap(self, wrapped: bytes, associated: bytes) -> bytes:
        """The data key again; `SecretDamaged` if it is not the one wrapped."""


def _encrypt(key: bytes, data: bytes, associated: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, associated)


def _decrypt(key: bytes, data: bytes, associated: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        raise SecretDamaged(
            "a stored secret does not open: restore the key-encryption key it was wrapped under"
        ) from None


class FileKey:
    """A key-encryption key in a file of 32 bytes that its owner alone may read."""

    def __init__(self, path: Path) -> None:
        """Read the key.

        Raises:
            KeyEncryptionKeyMissing: there is no such file, others may read it, or it has not 32 bytes.
        """
        try:
            status = path.stat()
            key = path.read_bytes()
        except OSError:
            raise KeyEncryptionKeyMissing(
                "the key-encryption key cannot be read: restore its file, or start with a new state"
            ) from None
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise KeyEncryptionKeyMissing("the key-encryption key may be read by others: set its mode to 0600")
        if len(key) != 32:
            raise KeyEncryptionKeyMissing("the key-encryption key must be 32 bytes")
        self._key = key

    @staticmethod
    def create(path: Path) -> None:
        """Write a fresh key with mode 0600."""
        write_private(path, os.urandom(32))

    def wrap(self, data_key: bytes, associated: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        return _encrypt(self._key, data_key, associated)

    def unwrap(self, wrapped: bytes, associated: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        return _decrypt(self._key, wrapped, associated)


def wrap(provider: KeyEncryptionKey, secret: bytes, name: str) -> bytes:
    """A secret as it may be stored, bound to its name.

    Args:
        provider: the key-encryption key.
        secret: any bytes.
        name: what it is, for example `keys/door/versions/1`; needed again to unwrap.
    """
    data_key = os.urandom(32)
    wrapped = provider.wrap(data_key, name.encode())
    return struct.pack(">BH", 1, len(wrapped)) + wrapped + _encrypt(data_key, secret, name.encode())


def unwrap(provider: KeyEncryptionKey, blob: bytes, name: str) -> bytes:
    """The secret again.

    Raises:
        SecretDamaged: the blob is not what `wrap` made for that name under that key-encryption key.
    """
    if len(blob) < 3 or blob[0] != 1:
        raise SecretDamaged("a stored secret is malformed: restore the key service's database")
    (size,) = struct.unpack_from(">H", blob, 1)
    data_key = provider.unwrap(blob[3 : 3 + size], name.encode())
    return _decrypt(data_key, blob[3 + size :], name.encode())
