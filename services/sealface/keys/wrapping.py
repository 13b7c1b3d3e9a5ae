"""Secrets at rest: each under an AES-256-GCM data key, the data key under a key-encryption key from outside.

The form (docs/adr/0017), lengths in big endian:

    2 | length, id of the key-encryption key | length, data key wrapped under it
      | length, id of the recovery key | length, data key sealed to it | secret under the data key

The lengths of ids have one byte, the others two. All of it but the wrapped data key and the secret is associated data
of the wrapping, together with the secret's name; the name alone is that of the secret. So a secret can be rewrapped
without being touched. The first form, `1 | length, wrapped data key | secret`, still opens.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from sealface.errors import Unavailable
from sealface.keys.providers import KEY_BYTES, KeyEncryptionKey, SecretDamaged, decrypt, encrypt
from sealface.keys.recovery import RecoveryKey, RecoveryRecipient

_PROBE = b"probe"


@dataclass(frozen=True)
class Envelope:
    """A wrapped secret, taken apart.

    Attributes:
        key: id of the key-encryption key; empty in the first form, which does not say it.
        wrapped: the data key under it.
        recovery_key: id of the recovery key; empty if there is none.
        recovery: the data key sealed to it.
        body: the secret under the data key.
    """

    key: str
    wrapped: bytes
    recovery_key: str
    recovery: bytes
    body: bytes

    @classmethod
    def parse(cls, blob: bytes) -> Envelope:
        """A stored secret's.

        Raises:
            SecretDamaged: it is none.
        """
        try:
            if blob[0] == 1:
                wrapped, body = _take(blob[1:], ">H")
                return cls("", wrapped, "", b"", body)
            if blob[0] == 2:
                key, rest = _take(blob[1:], ">B")
                wrapped, rest = _take(rest, ">H")
                recovery_key, rest = _take(rest, ">B")
                recovery, body = _take(rest, ">H")
                return cls(key.decode(), wrapped, recovery_key.decode(), recovery, body)
        except (IndexError, struct.error, UnicodeDecodeError):
            pass
        raise SecretDamaged("a stored secret is malformed: restore the key service's database")

    def pack(self) -> bytes:
        """As it is stored; always in the second form."""
        recovery = _put(self.recovery_key.encode(), ">B") + _put(self.recovery, ">H")
        return b"\2" + _put(self.key.encode(), ">B") + _put(self.wrapped, ">H") + recovery + self.body

    def associated(self, name: str) -> bytes:
        """What the wrapping of the data key is bound to."""
        if not self.key:
            return name.encode()
        outside = replace(self, wrapped=b"", body=b"").pack()
        return name.encode() + b"\0" + hashlib.sha256(outside).digest()


@dataclass(frozen=True)
class KeyEncryption:
    """The key-encryption keys of a service.

    Attributes:
        current: wraps, and unwraps.
        old: unwrap what is not under the current one yet.
        recipient: of the recovery wrapping of each secret, if there is to be one.
        recovery: the recovery key itself, for as long as a recovery lasts.
    """

    current: KeyEncryptionKey
    old: Sequence[KeyEncryptionKey] = ()
    recipient: RecoveryRecipient | None = None
    recovery: RecoveryKey | None = None

    def probe(self) -> int:
        """Newest version of the current key, which was seen to wrap and to unwrap.

        Raises:
            KeyEncryptionUnavailable, KeyEncryptionKeyMissing: see there.
        """
        data_key = os.urandom(KEY_BYTES)
        wrapped = self.current.wrap(data_key, _PROBE)
        if self.current.unwrap(wrapped, _PROBE) != data_key:
            raise SecretDamaged("the key-encryption key does not unwrap what it wrapped: see to its provider")
        return self.current.version(wrapped)

    def is_current(self, envelope: Envelope, newest: int) -> bool:
        """Whether a rewrapping would change nothing but the randomness."""
        if envelope.key != self.current.id or self.current.version(envelope.wrapped) != newest:
            return False
        return envelope.recovery_key == (self.recipient.id if self.recipient else "")


def wrap(keys: KeyEncryption, secret: bytes, name: str) -> bytes:
    """A secret as it may be stored, bound to its name.

    Args:
        keys: the key-encryption keys.
        secret: any bytes.
        name: what it is, for example `keys/door/versions/1`; needed again to unwrap.

    Raises:
        KeyEncryptionUnavailable, KeyEncryptionKeyMissing: see there.
    """
    data_key = os.urandom(KEY_BYTES)
    return _wrapped(keys, data_key, encrypt(data_key, secret, name.encode()), name)


def unwrap(keys: KeyEncryption, blob: bytes, name: str) -> bytes:
    """The secret again.

    Raises:
        SecretDamaged: the blob is not what `wrap` made for that name under one of these keys.
        KeyEncryptionUnavailable, KeyEncryptionKeyMissing: see there.
    """
    envelope = Envelope.parse(blob)
    return decrypt(_data_key(keys, envelope, name), envelope.body, name.encode())


def rewrap(keys: KeyEncryption, blob: bytes, name: str) -> bytes:
    """The same secret with its data key wrapped anew, under the current key; what holds the secret stays as it is.

    Raises:
        SecretDamaged, KeyEncryptionUnavailable, KeyEncryptionKeyMissing: as for `unwrap`.
    """
    envelope = Envelope.parse(blob)
    data_key = _data_key(keys, envelope, name)
    decrypt(data_key, envelope.body, name.encode())  # nothing damaged is put under a new key
    return _wrapped(keys, data_key, envelope.body, name)


def _wrapped(keys: KeyEncryption, data_key: bytes, body: bytes, name: str) -> bytes:
    recovery_key, recovery = "", b""
    if keys.recipient is not None:
        recovery_key, recovery = keys.recipient.id, keys.recipient.seal(data_key, name)
    envelope = Envelope(keys.current.id, b"", recovery_key, recovery, body)
    return replace(envelope, wrapped=keys.current.wrap(data_key, envelope.associated(name))).pack()


def _data_key(keys: KeyEncryption, envelope: Envelope, name: str) -> bytes:
    if keys.recovery is not None and keys.recovery.id == envelope.recovery_key:
        return keys.recovery.open(envelope.recovery, name)
    damaged: SecretDamaged | None = None
    for provider in _candidates([keys.current, *keys.old], envelope.key):
        try:
            return provider.unwrap(envelope.wrapped, envelope.associated(name))
        except SecretDamaged as error:
            damaged = damaged or error
    assert damaged is not None  # noqa: S101 - there is a current one
    raise damaged


def _candidates(providers: Sequence[KeyEncryptionKey], named: str) -> Sequence[KeyEncryptionKey]:
    """Providers of the key that is named; all of them if none is: it may be found by another name than it had."""
    matching = []
    for provider in providers:
        with suppress(Unavailable):  # it has no name now
            if provider.id == named:
                matching.append(provider)
    return matching or providers


def _put(data: bytes, size: str) -> bytes:
    return struct.pack(size, len(data)) + data


def _take(data: bytes, size: str) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from(size, data)
    start = struct.calcsize(size)
    if len(data) < start + length:
        raise IndexError
    return data[start : start + length], data[start + length :]
