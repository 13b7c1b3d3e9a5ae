"""What tells whether a stored ciphertext is what was stored."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sealface.errors import DataCorrupted

_SHAPE = struct.Struct("<II")


class TemplateDamaged(DataCorrupted):
    """A stored template does not match its digest."""


@dataclass(frozen=True)
class Fingerprint:
    """What tells a stored ciphertext from any other bytes.

    Attributes:
        size: bytes it has.
        digest: SHA-256 of `bound` and the ciphertext.
        bound: of a block its shape and slots, see `block_digest`; of a template nothing.
    """

    size: int
    digest: bytes
    bound: bytes = b""

    @classmethod
    def of_block(cls, size: int, digest: bytes, columns: int, slots: bytes) -> Self:
        """A sealed block's."""
        return cls(size, digest, _bound(columns, slots))

    def fits(self, data: bytes) -> bool:
        """Whether these bytes are that ciphertext."""
        digest = hashlib.sha256(self.bound)
        digest.update(data)
        return digest.digest() == self.digest

    @property
    def slots(self) -> NDArray[np.uint32]:
        """Of a block: slots by position."""
        return np.frombuffer(self.bound, "<u4", offset=_SHAPE.size).astype(np.uint32)


def slots_of(stored: bytes) -> NDArray[np.uint32]:
    """Slots by position, 0 for none, of a stored list."""
    return np.frombuffer(stored, "<u4").astype(np.uint32)


def sha256(data: bytes) -> bytes:
    """The digest of a stored ciphertext."""
    return hashlib.sha256(data).digest()


def block_digest(columns: int, slots: bytes, ciphertext: bytes) -> bytes:
    """The digest of a sealed block: its shape and who lies where are as much part of it as the ciphertext."""
    digest = hashlib.sha256(_bound(columns, slots))
    digest.update(ciphertext)
    return digest.digest()


def _bound(columns: int, slots: bytes) -> bytes:
    return _SHAPE.pack(columns, len(slots)) + slots


def subject_digest(gallery_id: str, subject: str) -> bytes:
    """What stands for a subject where its id must not outlive it."""
    return hashlib.sha256(f"{gallery_id}/{subject}".encode()).digest()


def checked(data: bytes, digest: bytes, stored: bytes) -> bytes:
    """Stored bytes whose digest is the stored one.

    Raises:
        TemplateDamaged: it is not.
    """
    if digest != stored:
        raise TemplateDamaged("a stored ciphertext is damaged: restore the record from a backup")
    return bytes(data)
