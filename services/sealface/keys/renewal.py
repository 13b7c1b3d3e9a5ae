"""Blinded blocks and templates to fresh encryptions (threat model, rule 7; docs/adr/0011, 0019).

What is opened here is uniform: nothing of it is looked at, only that it has the form of a block. So whatever goes wrong
is compute's doing, or what it may know, and is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.evaluator import block_size
from sealface.cipher.layout import Shape, UnknownShape
from sealface.cipher.scheme import Opener
from sealface.errors import InvalidInput, WrongState
from sealface.keys.keyring import Keyring
from sealface.protocol import names

MOST_TEMPLATES = 256


class InvalidPositions(InvalidInput):
    """The positions to clear are not one bit for each of the block's."""


class InvalidCount(InvalidInput):
    """Templates are announced where a block is, or none, or too many."""


class BlockTooLong(InvalidInput):
    """More bytes were sent than what was announced has."""


class NotThePrimaryVersion(WrongState):
    """Ciphertexts are moved to the key's primary version, and to no other."""


@dataclass(frozen=True)
class Announced:
    """What is said of ciphertexts before their bytes arrive; see `RenewBlockHeader` in the contract."""

    key_version: str
    columns: int
    cleared: bytes = b""
    target_version: str = ""
    templates: int = 0


@dataclass(frozen=True)
class Renewal:
    """A block that is announced, or some templates.

    Attributes:
        opener: of the key version that they are under.
        target: of the key version that they are to be under.
        shape: of the block; of templates a group's.
        count: blocks or templates.
        cleared: (capacity,) positions that are to hold nothing.
    """

    opener: Opener
    target: Opener
    shape: Shape
    count: int
    cleared: NDArray[np.bool_]

    @classmethod
    def expect(cls, keyring: Keyring, announced: Announced) -> Renewal:
        """Check what is said before the bytes arrive.

        Raises:
            InvalidName, KeyNotFound, KeyClientHeld, KeyVersionInactive, KeyVersionQuarantined, NotThePrimaryVersion,
            UnknownShape, InvalidCount, InvalidPositions: see there.
        """
        key_id, number = names.key_version(announced.key_version)
        opener = target = keyring.opener(key_id, number)
        key = keyring.get(key_id)
        if announced.target_version not in ("", announced.key_version):
            if names.key_version(announced.target_version) != (key_id, key.version):
                raise NotThePrimaryVersion(
                    "ciphertexts are moved to the key's primary version alone: begin the rotation again",
                    primary=key.version,
                )
            target = keyring.opener(key_id, key.version)
        shape = key.layout.shape(announced.columns)
        count = announced.templates if not shape.sealed else 1
        if shape.sealed and announced.templates:
            raise InvalidCount("a block is no templates: leave their number out")
        if not shape.sealed and target is opener:
            raise UnknownShape("a group is no sealed block: use more columns", columns=announced.columns)
        if not 1 <= count <= MOST_TEMPLATES:
            raise InvalidCount(
                f"1 to {MOST_TEMPLATES} templates are renewed at once: send them in several calls", limit=MOST_TEMPLATES
            )
        return cls(opener, target, shape, count, _positions(shape, announced.cleared))

    def check_size(self, received: int) -> None:
        """Refuse more bytes than were announced.

        Raises:
            BlockTooLong: see there.
        """
        size = self.count * block_size(self.shape)
        if received > size:
            raise BlockTooLong(f"more than the {size} bytes of what was announced", limit=size)

    def renew(self, blinded: bytes) -> bytes:
        """The ciphertexts, encrypted afresh.

        Raises:
            MalformedCiphertext: they are none of their shape, or hide nothing.
        """
        return self.opener.renew(self.shape, blinded, self.cleared, self.target, self.count)


def _positions(shape: Shape, cleared: bytes) -> NDArray[np.bool_]:
    if not cleared:
        return np.zeros(shape.capacity, np.bool_)
    bits = np.unpackbits(np.frombuffer(cleared, np.uint8), bitorder="little").astype(np.bool_)
    if not shape.sealed or len(cleared) != (shape.capacity + 7) // 8 or bits[shape.capacity :].any():
        raise InvalidPositions(
            f"cleared is one bit for each of the {shape.capacity} positions, the rest of the last byte 0",
            positions=shape.capacity,
        )
    return bits[: shape.capacity]
