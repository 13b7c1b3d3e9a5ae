"""Bulk import: embeddings encrypted as whole sealed blocks, one being sent while the next is made."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Shape
from sealface.protocol import names
from sealface_client.errors import ServiceError, translated
from sealface_client.results import Imported
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from sealface_protos.enrollment.v1 import enrollment_service_pb2_grpc, gallery_pb2

_ATTEMPTS = 6  # over 6 s: what died is started again within a few
_CHUNK_BYTES = 1 << 20

Encrypt = Callable[[NDArray[np.float64]], Awaitable[tuple[gallery_pb2.Gallery, bytes]]]
"""Encrypts embeddings (n, d) as a block; also says for which gallery, as it was then."""
_Sends = Callable[[], Awaitable[enrollment.ImportBlockResponse]]
Repeat = Callable[[_Sends], Awaitable[enrollment.ImportBlockResponse]]
"""Does something again if the gallery was moved to another key version meanwhile."""


@dataclass(frozen=True)
class _Block:
    """Embeddings of some subjects, and what they were encrypted as."""

    subjects: list[str]
    embeddings: NDArray[np.float64]
    gallery: gallery_pb2.Gallery
    data: bytes


class BulkImport:
    """Imports into one gallery.

    Args:
        stub: the enrollment service.
        shape: of the blocks.
        encrypt: makes blocks.
        repeat: sends them under the key version that the gallery is under.
        timeout_s: deadline of each block's call.
        operation: resource name of the import that the blocks are part of, if they are.
    """

    def __init__(
        self,
        stub: enrollment_service_pb2_grpc.EnrollmentServiceAsyncStub,
        shape: Shape,
        encrypt: Encrypt,
        repeat: Repeat,
        timeout_s: float,
        operation: str = "",
    ) -> None:
        self._stub = stub
        self._shape = shape
        self._encrypt = encrypt
        self._repeat = repeat
        self._timeout_s = timeout_s
        self._operation = operation

    async def run(self, faces: Iterable[tuple[str, NDArray[np.float64]]]) -> AsyncIterator[Imported]:
        """Import; yields after each block. What is wrong with a block is raised when those before it are stored."""
        remaining = iter(faces)
        sending: asyncio.Task[Imported] | None = None
        try:
            while True:
                made: _Block | None = None
                failure: Exception | None = None
                try:
                    made = await self._next(remaining)
                except Exception as error:
                    failure = error
                if sending is not None:
                    stored, sending = await sending, None
                    yield stored
                if failure is not None:
                    raise failure
                if made is None:
                    return
                sending = asyncio.create_task(self._send(made))
        finally:
            if sending is not None:
                sending.cancel()

    async def _next(self, faces: Iterator[tuple[str, NDArray[np.float64]]]) -> _Block | None:
        batch = list(islice(faces, self._shape.capacity))
        if not batch:
            return None
        subjects = [names.check_opaque(subject, "subject") for subject, _ in batch]
        embeddings = [self._shape.layout.checked(embedding) for _, embedding in batch]
        stacked = np.stack(embeddings)
        return _Block(subjects, stacked, *await self._encrypt(stacked))

    async def _send(self, block: _Block) -> Imported:
        request_id = uuid.uuid4().hex
        made: _Block | None = block

        async def attempt() -> enrollment.ImportBlockResponse:
            nonlocal made
            sent = made or _Block(block.subjects, block.embeddings, *await self._encrypt(block.embeddings))
            made = None  # what was refused is encrypted anew
            header = enrollment.ImportBlockHeader(
                gallery=sent.gallery.name,
                columns=self._shape.columns,
                subject_ids=sent.subjects,
                key_version=sent.gallery.key_version,
                parameter_set=sent.gallery.parameter_set,
                request_id=request_id,
                operation=self._operation,
            )
            return await self._insist(header, sent.data)

        response = await self._repeat(attempt)
        return Imported(block.subjects[-1], response.first_slot, len(block.subjects), len(block.data))

    async def _insist(self, header: enrollment.ImportBlockHeader, data: bytes) -> enrollment.ImportBlockResponse:
        """Repeat a call that failed: it may have stored the block, and is then told so under its request id."""
        for retry in range(_ATTEMPTS):
            try:
                with translated("enrollment"):
                    return await self._stub.ImportBlock(_messages(header, data), timeout=self._timeout_s)
            except ServiceError as error:
                if retry == _ATTEMPTS - 1 or not error.retryable:
                    raise
            await asyncio.sleep(0.2 * 2**retry)
        raise AssertionError("unreachable")


def _messages(header: enrollment.ImportBlockHeader, data: bytes) -> Iterator[enrollment.ImportBlockRequest]:
    yield enrollment.ImportBlockRequest(header=header)
    for start in range(0, len(data), _CHUNK_BYTES):
        yield enrollment.ImportBlockRequest(data=data[start : start + _CHUNK_BYTES])
