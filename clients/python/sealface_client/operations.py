"""Long work on a gallery: begun, followed, cancelled."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

from sealface.protocol import names
from sealface_client.errors import ServiceError, from_status, translated
from sealface_client.paging import pages
from sealface_protos.enrollment.v1 import operation_pb2, operation_pb2_grpc

Operation = operation_pb2.Operation

_LOOK_S = (0.05, 1.0)  # at first, and at most
_AWAY_S = 60.0


class AsyncOperations:
    """The operations of one gallery; `AsyncGallery.operations`.

    Args:
        stub: the service.
        gallery: resource name of the gallery.
        timeout_s: deadline of each call.
    """

    def __init__(self, stub: operation_pb2_grpc.OperationServiceAsyncStub, gallery: str, timeout_s: float) -> None:
        self._stub = stub
        self._gallery = gallery
        self._timeout_s = timeout_s

    async def begin_import(self, templates: int, operation_id: str | None = None) -> Operation:
        """Announce an import; give its id to `AsyncGallery.import_many`.

        Args:
            templates: how many will come.
            operation_id: the same one goes on with an import that was broken off: `done` says where.
        """
        request = operation_pb2.BeginImportRequest(
            gallery=self._gallery, operation_id=_id(operation_id), templates=templates
        )
        with translated("enrollment"):
            return await self._stub.BeginImport(request, timeout=self._timeout_s)

    async def begin_compaction(self, operation_id: str | None = None) -> Operation:
        """Seal all that can be sealed, and make blocks with erased templates again."""
        request = operation_pb2.BeginCompactionRequest(gallery=self._gallery, operation_id=_id(operation_id))
        with translated("enrollment"):
            return await self._stub.BeginCompaction(request, timeout=self._timeout_s)

    async def begin_erasure(self, subject: str, operation_id: str | None = None) -> Operation:
        """Erase a subject, at once for searches, and then to the last byte; see `AsyncGallery.erase_with_proof`."""
        name = f"{self._gallery}/subjects/{names.check_opaque(subject, 'subject')}"
        request = operation_pb2.BeginErasureRequest(name=name, operation_id=_id(operation_id))
        with translated("enrollment"):
            return await self._stub.BeginErasure(request, timeout=self._timeout_s)

    async def begin_rotation(self, operation_id: str | None = None) -> Operation:
        """Move the gallery to its key's primary version; see `AsyncGallery.rotate`."""
        request = operation_pb2.BeginRotationRequest(gallery=self._gallery, operation_id=_id(operation_id))
        with translated("enrollment"):
            return await self._stub.BeginRotation(request, timeout=self._timeout_s)

    async def get(self, operation_id: str) -> Operation:
        """An operation as it is now."""
        request = operation_pb2.GetOperationRequest(name=self._name(operation_id))
        with translated("enrollment"):
            return await self._stub.GetOperation(request, timeout=self._timeout_s)

    async def list(self) -> list[Operation]:
        """All operations, the newest first."""
        request = operation_pb2.ListOperationsRequest(parent=self._gallery)
        listed = pages("enrollment", self._stub.ListOperations, request, self._timeout_s)
        return [operation async for page in listed for operation in page.operations]

    async def cancel(self, operation_id: str) -> Operation:
        """End an operation where it is."""
        request = operation_pb2.CancelOperationRequest(name=self._name(operation_id))
        with translated("enrollment"):
            return await self._stub.CancelOperation(request, timeout=self._timeout_s)

    async def follow(self, operation: Operation) -> AsyncIterator[Operation]:
        """An operation as it gets on, until it has ended; goes on while the service is started again.

        Raises:
            ServiceError: it failed, or the service is away for long.
        """
        pause, away = _LOOK_S[0], 0.0
        while operation.state == operation_pb2.OPERATION_STATE_RUNNING:
            yield operation
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LOOK_S[1])
            try:
                operation = await self.get(operation.name.rpartition("/")[2])
                away = 0.0
            except ServiceError as error:
                away += pause
                if not error.retryable or away > _AWAY_S:
                    raise
        if operation.HasField("error"):
            raise from_status(operation.error)
        yield operation

    async def wait(self, operation: Operation) -> Operation:
        """An operation when it has ended; errors as for `follow`."""
        async for now in self.follow(operation):
            operation = now
        return operation

    def _name(self, operation_id: str) -> str:
        return f"{self._gallery}/operations/{names.check_opaque(operation_id, 'operation')}"


def _id(given: str | None) -> str:
    return uuid.uuid4().hex if given is None else names.check_opaque(given, "operation")
