"""The client's part in renewing blocks of a gallery whose key it holds."""

from __future__ import annotations

import asyncio

import numpy as np

from sealface.cipher.evaluator import block_size
from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Opener
from sealface.errors import DataCorrupted
from sealface_client.errors import translated
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from sealface_protos.enrollment.v1 import enrollment_service_pb2_grpc

_CHUNK_BYTES = 1 << 20


class BlockNotGenuine(DataCorrupted):
    """What the service sends to be renewed is none of the gallery's blocks."""


async def renew_blocks(
    stub: enrollment_service_pb2_grpc.EnrollmentServiceAsyncStub,
    gallery: str,
    key_version: str,
    layout: Layout,
    opener: Opener,
    target: tuple[str, Opener] | None = None,
) -> int:
    """Encrypt afresh, block by block, what the service sends; returns how many blocks, or batches, that were.

    What is opened is uniform, and goes back encrypted: the service learns nothing, nor does this side.

    Args:
        stub: the service.
        gallery: resource name of the gallery.
        key_version: that it is under.
        layout: the gallery's.
        opener: of that version.
        target: name and opener of another version, to move the gallery to.
    """
    renewed, named = 0, (target[0] if target else "")
    with translated("enrollment"):
        call = stub.RenewBlocks()
        await call.write(enrollment.RenewBlocksRequest(gallery=gallery, rotate=target is not None))
        header, data = enrollment.RenewBlocksHeader(), bytearray()
        async for message in call:
            if message.HasField("header"):
                header, data = message.header, bytearray()
                right = (header.key_version, header.target_version) == (key_version, named)
                if not right or header.size > (header.templates or 1) * block_size(layout.shape(header.columns)):
                    raise BlockNotGenuine("the service asks for what is no block of this gallery: tell its operator")
                continue
            data += message.data
            if len(data) > header.size:
                raise BlockNotGenuine("the service sends more than it announced: tell its operator")
            if len(data) == header.size:
                to = target[1] if target else opener
                fresh = await asyncio.to_thread(_renewed, opener, to, layout, header, bytes(data))
                for at in range(0, len(fresh), _CHUNK_BYTES):
                    await call.write(enrollment.RenewBlocksRequest(data=fresh[at : at + _CHUNK_BYTES]))
                renewed += 1
        await call.done_writing()
    return renewed


def _renewed(
    opener: Opener, target: Opener, layout: Layout, header: enrollment.RenewBlocksHeader, blinded: bytes
) -> bytes:
    shape = layout.shape(header.columns)
    cleared = np.zeros(shape.capacity, np.bool_)
    if header.cleared:
        bits = np.frombuffer(header.cleared, np.uint8)
        cleared = np.unpackbits(bits, count=shape.capacity, bitorder="little").astype(np.bool_)
    return opener.renew(shape, blinded, cleared, target, header.templates or 1)
