"""Where the key-encryption key is: a file, an environment variable, Vault's Transit engine, a plug-in for a cloud KMS.

A provider wraps and unwraps 32 bytes, bound to associated data, which is what all of these can do. It is chosen by an
address, `scheme:rest`. A scheme that is not one of ours is an entry point of the group `sealface.key_encryption` in any
installed package: its name is the scheme, and it is called with the address.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealface.errors import DataCorrupted, InvalidInput, Unavailable
from sealface.protocol.signing import write_private

KEY_BYTES = 32
PLUG_INS = "sealface.key_encryption"
_NONCE_BYTES = 12


class KeyEncryptionUnavailable(Unavailable):
    """The key-encryption key's provider does not answer, or refuses us."""


class KeyEncryptionKeyMissing(Unavailable):
    """The key-encryption key is not where it should be, or others may read it."""


class SecretDamaged(DataCorrupted):
    """A wrapped secret does not open under its key-encryption key and name."""


class InvalidKeyEncryption(InvalidInput):
    """An address names no provider of key-encryption keys."""


class KeyEncryptionKey(Protocol):
    """Wraps data keys. Safe for several threads; made without looking whether the key is there.

    Every method, `id` too, may raise what tells an operator what to do: `KeyEncryptionUnavailable`, or
    `KeyEncryptionKeyMissing`. The same call may work later.
    """

    @property
    def id(self) -> str:
        """Names the key, not its version: at most 255 bytes, no secret. Each wrapped secret says it."""

    @property
    def reads(self) -> Sequence[Path]:
        """Files it reads whenever it is used."""

    def wrap(self, data_key: bytes, associated: bytes) -> bytes:
        """A data key of 32 bytes, wrapped under the newest version of the key."""

    def unwrap(self, wrapped: bytes, associated: bytes) -> bytes:
        """The data key again; `SecretDamaged` if it is not the one wrapped."""

    def version(self, wrapped: bytes) -> int:
        """Version of the key that a data key is wrapped under; 1 where keys have none."""


class LocalKey:
    """A key-encryption key that this process reads, and computes with itself (AES-256-GCM).

    Args:
        read: the key, 32 bytes; called whenever it is used, and never kept.
        reads: the file it comes from, if any.
    """

    def __init__(self, read: Callable[[], bytes], reads: Sequence[Path] = ()) -> None:
        self._read = read
        self.reads = reads

    @property
    def id(self) -> str:
        """See `KeyEncryptionKey`: a fingerprint, the same wherever the key is kept."""
        return f"aes256:{hmac.digest(self._read(), b'sealface key-encryption key id v1', 'sha256')[:8].hex()}"

    def wrap(self, data_key: bytes, associated: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        return encrypt(self._read(), data_key, associated)

    def unwrap(self, wrapped: bytes, associated: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        return decrypt(self._read(), wrapped, associated)

    def version(self, wrapped: bytes) -> int:
        """See `KeyEncryptionKey`."""
        return 1


class FileKey(LocalKey):
    """A key-encryption key in a file of 32 bytes that its owner alone may read; it may be put there later."""

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: _read_file(path), [path])

    @staticmethod
    def create(path: Path) -> None:
        """Write a fresh key with mode 0600."""
        write_private(path, os.urandom(KEY_BYTES))


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode, key = os.fstat(file.fileno()).st_mode, file.read(KEY_BYTES + 1)
    except OSError:
        raise KeyEncryptionKeyMissing("the key-encryption key cannot be read: put its file back") from None
    if stat.S_IMODE(mode) & 0o077:
        raise KeyEncryptionKeyMissing("the key-encryption key may be read by others: set its mode to 0600")
    if len(key) != KEY_BYTES:
        raise KeyEncryptionKeyMissing("the key-encryption key must be 32 bytes: put its file back")
    return key


class EnvironmentKey(LocalKey):
    """A key-encryption key in an environment variable: 32 bytes in Base64."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda: _read_variable(name))


def _read_variable(name: str) -> bytes:
    try:
        key = base64.b64decode(os.environ[name], validate=True)
    except (KeyError, binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyEncryptionKeyMissing(
            "the key-encryption key's variable is not 32 bytes in Base64: set it, and restart"
        )
    return key


def open_provider(address: str) -> KeyEncryptionKey:
    """A provider by its address; whether its key is there is not looked at.

    Args:
        address: `file:PATH`, `env:NAME`, `vault+https://host:port/mount/key`, or one of a plug-in's scheme.

    Raises:
        InvalidKeyEncryption: it is none of these, or malformed, or a library of it is not installed.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "file" and rest:
        return FileKey(Path(rest).absolute())
    if scheme == "env" and rest:
        return EnvironmentKey(rest)
    if scheme == "vault+https":
        from sealface.keys.transit import TransitKey  # an optional library

        return TransitKey(address)
    for plug_in in entry_points(group=PLUG_INS, name=scheme):
        provider: KeyEncryptionKey = plug_in.load()(address)
        return provider
    raise InvalidKeyEncryption(
        "no such key-encryption key: use file:PATH, env:NAME, vault+https://host:port/mount/key, or install a plug-in"
    )


def encrypt(key: bytes, data: bytes, associated: bytes) -> bytes:
    """AES-256-GCM with a fresh nonce: 12 bytes of nonce, then ciphertext and tag."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, associated)


def decrypt(key: bytes, data: bytes, associated: bytes) -> bytes:
    """What `encrypt` encrypted.

    Raises:
        SecretDamaged: it is not that, or under another key.
    """
    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        raise SecretDamaged(
            "a stored secret does not open: restore the key-encryption key it was wrapped under"
        ) from None
