"""Bulk import: embeddings encrypted as whole sealed blocks, one being sent while the next is made."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
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

Encrypt = Callable[[NDArray[np.float64]], Awaitable[bytes]]


class BulkImport:
    """Imports into one gallery.

    Args:
        stub: the enrollment service.
        gallery: the gallery.
        shape: of the blocks.
        encrypt: a block of embeddings (n, d).
        timeout_s: deadline of each block's call.
        operation_id: of the import that the blocks are part of, if they are.
    """

    def __init__(
        self,
        stub: enrollment_service_pb2_grpc.EnrollmentServiceAsyncStub,
        gallery: gallery_pb2.Gallery,
        shape: Shape,
        encrypt: Encrypt,
        timeout_s: float,
        operation_id: str = "",
    ) -> None:
        self._stub = stub
        self._gallery = gallery
        self._shape = shape
        self._encrypt = encrypt
        self._timeout_s = timeout_s
        self._operation = f"{gallery.name}/operations/{operation_id}" if operation_id else ""

    async def run(self, faces: Iterable[tuple[str, NDArray[np.float64]]]) -> AsyncIterator[Imported]:
        """Import; yields after each block. What is wrong with a block is raised when those before it are stored."""
        remaining = iter(faces)
        sending: asyncio.Task[Imported] | None = None
        try:
            while True:
                made: tuple[list[str], bytes] | None = None
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
                sending = asyncio.create_task(self._send(*made))
        finally:
            if sending is not None:
                sending.cancel()

    async def _next(self, faces: Iterator[tuple[str, NDArray[np.float64]]]) -> tuple[list[str], bytes] | None:
        batch = list(islice(faces, self._shape.capacity))
        if not batch:
            return None
        subjects = [names.check_opaque(subject, "subject") for subject, _ in batch]
        embeddings = [self._shape.layout.checked(embedding) for _, embedding in batch]
        return subjects, await self._encrypt(np.stack(embeddings))

    async def _send(self, subjects: list[str], data: bytes) -> Imported:
        header = enrollment.ImportBlockHeader(
            gallery=self._gallery.name,
            columns=self._shape.columns,
            subject_ids=subjects,
            key_version=self._gallery.key_version,
            parameter_set=self._gallery.parameter_set,
            request_id=uuid.uuid4().hex,
            operation=self._operation,
        )
        response = await self._insist(header, data)
        return Imported(subjects[-1], response.first_slot, len(subjects), len(data))

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
