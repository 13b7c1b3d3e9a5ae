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
) -> int:
    """Encrypt afresh, block by block, what the service sends; returns how many blocks that were.

    What is opened is uniform, and goes back encrypted: the service learns nothing, nor does this side.
    """
    renewed = 0
    with translated("enrollment"):
        call = stub.RenewBlocks()
        await call.write(enrollment.RenewBlocksRequest(gallery=gallery))
        header, data = enrollment.RenewBlocksHeader(), bytearray()
        async for message in call:
            if message.HasField("header"):
                header, data = message.header, bytearray()
                if header.key_version != key_version or header.size > block_size(layout.shape(header.columns)):
                    raise BlockNotGenuine("the service asks for what is no block of this gallery: tell its operator")
                continue
            data += message.data
            if len(data) > header.size:
                raise BlockNotGenuine("the service sends more than it announced: tell its operator")
            if len(data) == header.size:
                fresh = await asyncio.to_thread(_renewed, opener, layout, header, bytes(data))
                for at in range(0, len(fresh), _CHUNK_BYTES):
                    await call.write(enrollment.RenewBlocksRequest(data=fresh[at : at + _CHUNK_BYTES]))
                renewed += 1
        await call.done_writing()
    return renewed


def _renewed(opener: Opener, layout: Layout, header: enrollment.RenewBlocksHeader, blinded: bytes) -> bytes:
    shape = layout.shape(header.columns)
    bits = np.frombuffer(header.cleared, np.uint8)
    cleared = np.unpackbits(bits, count=shape.capacity, bitorder="little").astype(np.bool_)
    return opener.renew(shape, blinded, cleared)
