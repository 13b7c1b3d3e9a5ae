"""Decisions in boxes that only their caller can open (HPKE, RFC 9180; threat model, rule 4).

The box is encrypted to a key that the caller made for this one request, bound to the DecisionBinding beside it, of
constant size, and signed by the key service. Compute carries it and learns nothing of it.
"""

from __future__ import annotations

import hashlib
import struct

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from sealface.errors import InvalidInput, SealfaceError

PADDED_BYTES = 1024
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
_CONTEXT = b"sealface decision v1\0"
_EXPORT = b"sealface key export v1\0"


class DecisionNotGenuine(SealfaceError):
    """A sealed decision was not made by the key service for this request."""


class SecretNotForUs(SealfaceError):
    """An exported secret key was not sealed for this receiver and key version."""


class InvalidRecipient(InvalidInput):
    """The key to seal to is no X25519 public key."""


def seal(decision: bytes, binding: bytes, recipient: bytes) -> bytes:
    """The box of a serialised decision: 48 bytes longer than `PADDED_BYTES`.

    Args:
        decision: at most `PADDED_BYTES` - 4 bytes.
        binding: the serialised DecisionBinding.
        recipient: X25519 public key, 32 bytes.

    Raises:
        InvalidRecipient: the key is none, or a point of small order.
    """
    if len(decision) > PADDED_BYTES - 4:
        raise ValueError(f"a decision of {len(decision)} bytes does not fit its box")
    padded = (struct.pack(">I", len(decision)) + decision).ljust(PADDED_BYTES, b"\0")
    try:
        return _SUITE.encrypt(padded, X25519PublicKey.from_public_bytes(recipient), info=_CONTEXT + binding)
    except ValueError:
        raise InvalidRecipient("hpke_public_key is no X25519 public key: make one for each request") from None


def open_box(box: bytes, binding: bytes, key: X25519PrivateKey) -> bytes:
    """The serialised decision in a box.

    Raises:
        DecisionNotGenuine: the box is not for this key and binding.
    """
    try:
        padded = _SUITE.decrypt(box, key, info=_CONTEXT + binding)
        (size,) = struct.unpack_from(">I", padded)
    except (InvalidTag, ValueError, struct.error):
        raise DecisionNotGenuine("the sealed decision does not open: ask again") from None
    if size > len(padded) - 4:
        raise DecisionNotGenuine("the sealed decision is malformed: ask again")
    return padded[4 : 4 + size]


def seal_secret(secret: bytes, key_version: str, recipient: bytes) -> bytes:
    """A secret key in a box, 48 bytes longer than it.

    Args:
        secret: any bytes.
        key_version: resource name of its version; needed again to open it.
        recipient: X25519 public key, 32 bytes.

    Raises:
        InvalidRecipient: the key is none, or a point of small order.
    """
    try:
        return _SUITE.encrypt(secret, X25519PublicKey.from_public_bytes(recipient), info=_EXPORT + key_version.encode())
    except ValueError:
        raise InvalidRecipient("hpke_public_key is no X25519 public key: make one for each request") from None


def open_secret(box: bytes, key_version: str, key: X25519PrivateKey) -> bytes:
    """The secret key in a box.

    Raises:
        SecretNotForUs: the box is not for this key and key version.
    """
    try:
        return _SUITE.decrypt(box, key, info=_EXPORT + key_version.encode())
    except (InvalidTag, ValueError):
        raise SecretNotForUs("the exported key does not open: export it again") from None


def _payload(binding: bytes, box: bytes) -> bytes:
    return _CONTEXT + hashlib.sha256(binding).digest() + box


def sign_box(key: Ed25519PrivateKey, binding: bytes, box: bytes) -> bytes:
    """The key service's signature of a sealed decision."""
    return key.sign(_payload(binding, box))


def verify_box(verifying_key: bytes, binding: bytes, box: bytes, signature: bytes) -> None:
    """Check the key service's signature.

    Raises:
        DecisionNotGenuine: it does not verify.
    """
    try:
        Ed25519PublicKey.from_public_bytes(verifying_key).verify(signature, _payload(binding, box))
    except (InvalidSignature, ValueError):
        raise DecisionNotGenuine("the sealed decision is not signed by the key service: ask again") from None
