"""Secrets in files under a passphrase, as text that can be looked at, copied and printed (docs/client-held.md).

The key is derived by Argon2id with the second recommended option of RFC 9106 (section 4); the secret is encrypted
with AES-256-GCM. Everything before the data is its associated data, the name of what the secret is among it. A digest
of all that tells a damaged file from a wrong passphrase; it protects nothing, the tag does that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sealface.errors import DataCorrupted, InvalidInput, Unauthenticated

SHORTEST_PASSPHRASE = 8
LARGEST_FILE = 1 << 20
_BEGIN, _END = "-----BEGIN SEALFACE SECRET-----", "-----END SEALFACE SECRET-----"
_HEADER = re.compile(
    rf"{_BEGIN}\n"
    r"Format: 1\n"
    r"Name: (?P<name>[a-z0-9/-]{1,255})\n"
    r"KDF: argon2id memory=(?P<memory>[1-9][0-9]{0,7}) "
    r"iterations=(?P<iterations>[1-9][0-9]?) lanes=(?P<lanes>[1-9][0-9]?)\n"
    r"Salt: (?P<salt>[0-9a-f]{32})\n"
    r"Nonce: (?P<nonce>[0-9a-f]{24})\n"
)
_LINE = 64


class SecretFileDamaged(DataCorrupted):
    """The file is not as it was written, or none of these."""


class UnknownSecretFile(InvalidInput):
    """The file is of a format, or asks for work, that this version does not know."""


class WrongPassphrase(Unauthenticated):
    """The file is whole, and does not open with this passphrase."""


class PassphraseTooShort(InvalidInput):
    """A new passphrase has fewer characters than it must."""


@dataclass(frozen=True)
class Kdf:
    """What Argon2id costs.

    Attributes:
        memory: in KiB.
        iterations: passes over it.
        lanes: of it, that are filled side by side.
    """

    memory: int = 1 << 16
    iterations: int = 3
    lanes: int = 4

    def derive(self, passphrase: str, salt: bytes) -> bytes:
        """A key of 32 bytes; the passphrase is taken in Unicode's normal form C, as UTF-8."""
        argon2 = Argon2id(salt=salt, length=32, iterations=self.iterations, lanes=self.lanes, memory_cost=self.memory)
        return argon2.derive(unicodedata.normalize("NFC", passphrase).encode())


_MOST = Kdf(memory=1 << 20, iterations=16, lanes=16)
_LEAST_MEMORY = 1 << 13


def is_sealed(data: bytes) -> bool:
    """Whether a file is one of these, rather than a bare secret."""
    return data.startswith(_BEGIN.encode())


def seal(name: str, secret: bytes, passphrase: str, kdf: Kdf = Kdf()) -> bytes:
    """A secret as a file.

    Args:
        name: what it is, for example `keys/door/versions/1`.
        secret: any bytes.
        passphrase: `SHORTEST_PASSPHRASE` characters or more.
        kdf: what deriving the key costs whoever opens the file.

    Raises:
        PassphraseTooShort: see there.
    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise PassphraseTooShort(f"a passphrase has {SHORTEST_PASSPHRASE} characters or more: several words are best")
    salt, nonce = os.urandom(16), os.urandom(12)
    header = (
        f"{_BEGIN}\nFormat: 1\nName: {name}\n"
        f"KDF: argon2id memory={kdf.memory} iterations={kdf.iterations} lanes={kdf.lanes}\n"
        f"Salt: {salt.hex()}\nNonce: {nonce.hex()}\n"
    )
    encrypted = AESGCM(kdf.derive(passphrase, salt)).encrypt(nonce, secret, header.encode())
    encoded = base64.b64encode(encrypted).decode()
    lines = "\n".join(encoded[at : at + _LINE] for at in range(0, len(encoded), _LINE))
    text = f"{header}\n{lines}\n"
    return f"{text}SHA-256: {hashlib.sha256(text.encode()).hexdigest()}\n{_END}\n".encode()


@dataclass(frozen=True)
class SecretFile:
    """A file that was read, not opened yet.

    Attributes:
        name: what the secret is; to be believed when it has been opened.
    """

    name: str
    _header: bytes
    _kdf: Kdf
    _salt: bytes
    _nonce: bytes
    _encrypted: bytes

    @classmethod
    def read(cls, data: bytes) -> SecretFile:
        """What `seal` made.

        Raises:
            SecretFileDamaged, UnknownSecretFile: see there.
        """
        try:
            text = data[:LARGEST_FILE].decode("ascii").replace("\r\n", "\n").strip() + "\n"
            body, digest = text.removesuffix(f"{_END}\n").rsplit("SHA-256: ", 1)
            whole = len(data) <= LARGEST_FILE and text.endswith(f"\n{_END}\n")
        except ValueError:
            raise _damaged() from None
        if not whole or hashlib.sha256(body.encode()).hexdigest() != digest.strip():
            raise _damaged()
        found = _HEADER.match(body)
        if found is None:
            raise UnknownSecretFile("the file is of a newer format: use the version that wrote it")
        kdf = Kdf(*(int(found[name]) for name in ("memory", "iterations", "lanes")))
        least = max(_LEAST_MEMORY, 8 * kdf.lanes)
        if not least <= kdf.memory <= _MOST.memory or kdf.iterations > _MOST.iterations or kdf.lanes > _MOST.lanes:
            raise UnknownSecretFile("the file asks for more work, or less, than a passphrase may: do not open it")
        try:
            encrypted = base64.b64decode(body[found.end() :].replace("\n", ""), validate=True)
        except binascii.Error:
            raise _damaged() from None
        salt, nonce = bytes.fromhex(found["salt"]), bytes.fromhex(found["nonce"])
        return cls(found["name"], found[0].encode(), kdf, salt, nonce, encrypted)

    def open(self, passphrase: str) -> bytes:
        """The secret.

        Raises:
            WrongPassphrase: it is not that, or somebody has changed the file and its digest.
        """
        key = self._kdf.derive(passphrase, self._salt)
        try:
            return AESGCM(key).decrypt(self._nonce, self._encrypted, self._header)
        except (InvalidTag, ValueError):
            raise WrongPassphrase("the file does not open with this passphrase: try another", name=self.name) from None


def _damaged() -> SecretFileDamaged:
    return SecretFileDamaged("the file is damaged, or no secret of Sealface: take another copy of it")
