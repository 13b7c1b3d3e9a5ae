"""Blinded blocks to fresh encryptions (threat model, rule 7; docs/adr/0011).

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
from sealface.errors import InvalidInput
from sealface.keys.keyring import Keyring
from sealface.protocol import names


class InvalidPositions(InvalidInput):
    """The positions to clear are not one bit for each of the block's."""


class BlockTooLong(InvalidInput):
    """More bytes were sent than a block of its shape has."""


@dataclass(frozen=True)
class Renewal:
    """A block that is announced.

    Attributes:
        opener: of its key version.
        shape: of the block.
        cleared: (capacity,) positions that are to hold nothing.
    """

    opener: Opener
    shape: Shape
    cleared: NDArray[np.bool_]

    @classmethod
    def expect(cls, keyring: Keyring, key_version: str, columns: int, cleared: bytes) -> Renewal:
        """Check what is said of a block before its bytes arrive.

        Args:
            keyring: all keys.
            key_version: what it is encrypted under.
            columns: of its shape.
            cleared: a bit a position, as in the contract.

        Raises:
            InvalidName, KeyNotFound, KeyClientHeld, UnknownShape, InvalidPositions: see there.
        """
        key_id, number = names.key_version(key_version)
        opener = keyring.opener(key_id, number)
        shape = keyring.get(key_id).layout.shape(columns)
        if not shape.sealed:
            raise UnknownShape("a group is no sealed block: use more columns", columns=columns)
        bits = np.unpackbits(np.frombuffer(cleared, np.uint8), bitorder="little").astype(np.bool_)
        if len(cleared) != (shape.capacity + 7) // 8 or bits[shape.capacity :].any():
            raise InvalidPositions(
                f"cleared is one bit for each of the {shape.capacity} positions, the rest of the last byte 0",
                positions=shape.capacity,
            )
        return cls(opener, shape, bits[: shape.capacity])

    def check_size(self, received: int) -> None:
        """Refuse more bytes than the block has.

        Raises:
            BlockTooLong: see there.
        """
        size = block_size(self.shape)
        if received > size:
            raise BlockTooLong(f"more than the {size} bytes of a block of this shape", limit=size)

    def renew(self, blinded: bytes) -> bytes:
        """The block, encrypted afresh.

        Raises:
            MalformedCiphertext: it is no block of its shape, or hides nothing.
        """
        return self.opener.renew(self.shape, blinded, self.cleared)
