"""gRPC to operations: validate, convert, call, convert."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from sealface import errors
from sealface.enrollment.operations import Kind, Operation, Operations, State
from sealface.enrollment.record import Record
from sealface.enrollment.rotations import Rotations
from sealface.errors import InvalidInput
from sealface.protocol import convert, names
from sealface.runtime.status import DOMAIN, code_of
from sealface_protos.enrollment.v1 import operation_pb2 as messages
from sealface_protos.enrollment.v1 import operation_pb2_grpc

LARGEST_IMPORT = 2**32 - 1
_KINDS = {
    Kind.IMPORT: messages.OPERATION_KIND_IMPORT,
    Kind.COMPACTION: messages.OPERATION_KIND_COMPACTION,
    Kind.ERASURE: messages.OPERATION_KIND_ERASURE,
    Kind.EXPIRY: messages.OPERATION_KIND_EXPIRY,
    Kind.ROTATION: messages.OPERATION_KIND_ROTATION,
}
_STATES = {
    State.RUNNING: messages.OPERATION_STATE_RUNNING,
    State.DONE: messages.OPERATION_STATE_DONE,
    State.FAILED: messages.OPERATION_STATE_FAILED,
    State.CANCELLED: messages.OPERATION_STATE_CANCELLED,
}

Context = grpc.aio.ServicerContext[Any, Any]


class WrongPageToken(InvalidInput):
    """The page token is none that was given out."""


class OperationServicer(operation_pb2_grpc.OperationServiceServicer):
    """See `OperationService` in the contract."""

    def __init__(
        self, operations: Operations, record: Record, rotations: Rotations, changed: Callable[[], None]
    ) -> None:
        self._operations = operations
        self._record = record
        self._rotations = rotations
        self._changed = changed

    async def BeginImport(self, request: messages.BeginImportRequest, context: Context) -> messages.Operation:
        """See the contract."""
        if not 1 <= request.templates <= LARGEST_IMPORT:
            raise convert.missing(f"templates (1 to {LARGEST_IMPORT:,})")
        gallery_id = names.id_of(request.gallery, "galleries")
        return await self._begin(gallery_id, request.operation_id, Kind.IMPORT, request.templates)

    async def BeginCompaction(self, request: messages.BeginCompactionRequest, context: Context) -> messages.Operation:
        """See the contract."""
        return await self._begin(names.id_of(request.gallery, "galleries"), request.operation_id, Kind.COMPACTION)

    async def BeginErasure(self, request: messages.BeginErasureRequest, context: Context) -> messages.Operation:
        """See the contract."""
        operation_id = names.check_opaque(request.operation_id, "operation_id")
        begun = await asyncio.to_thread(self._record.begin_erasure, *names.subject(request.name), operation_id)
        self._changed()
        return operation_to_proto(begun)

    async def BeginRotation(self, request: messages.BeginRotationRequest, context: Context) -> messages.Operation:
        """See the contract."""
        gallery_id = names.id_of(request.gallery, "galleries")
        names.check_opaque(request.operation_id, "operation_id")
        begun = await self._rotations.begin(gallery_id, request.operation_id)
        self._changed()
        return operation_to_proto(begun)

    async def GetOperation(self, request: messages.GetOperationRequest, context: Context) -> messages.Operation:
        """See the contract."""
        return operation_to_proto(await asyncio.to_thread(self._operations.get, *names.operation(request.name)))

    async def ListOperations(
        self, request: messages.ListOperationsRequest, context: Context
    ) -> messages.ListOperationsResponse:
        """See the contract."""
        gallery_id = names.id_of(request.parent, "galleries")
        limit = convert.page_limit(request.page_size)
        token = request.page_token or "0"
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise WrongPageToken("page_token must be next_page_token of the last answer, or empty")
        skip = int(token)
        found = await asyncio.to_thread(self._operations.page, gallery_id, skip, limit + 1)
        return messages.ListOperationsResponse(
            operations=map(operation_to_proto, found[:limit]),
            next_page_token=str(skip + limit) if len(found) > limit else "",
        )

    async def CancelOperation(self, request: messages.CancelOperationRequest, context: Context) -> messages.Operation:
        """See the contract."""
        return operation_to_proto(await asyncio.to_thread(self._operations.cancel, *names.operation(request.name)))

    async def _begin(self, gallery_id: str, operation_id: str, kind: Kind, total: int = 0) -> messages.Operation:
        names.check_opaque(operation_id, "operation_id")
        begun = await asyncio.to_thread(self._operations.begin, gallery_id, operation_id, kind, total)
        self._changed()
        return operation_to_proto(begun)


def operation_to_proto(operation: Operation) -> messages.Operation:
    """An operation as a message."""
    message = messages.Operation(
        name=f"galleries/{operation.gallery}/operations/{operation.id}",
        kind=_KINDS[operation.kind],
        state=_STATES[operation.state],
        done=operation.done,
        total=operation.total,
        create_time=convert.timestamp(operation.created),
        update_time=convert.timestamp(operation.updated),
    )
    if operation.state is State.FAILED:
        message.error.CopyFrom(_error(operation))
    elif operation.state is State.DONE:
        _result(operation, message)
    return message


def _error(operation: Operation) -> status_pb2.Status:
    """What it failed of, as the call would have said it."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=operation.detail["reason"], domain=DOMAIN))
    message = operation.detail["message"]
    code = code_of(getattr(errors, operation.detail["kind"])(message))
    return status_pb2.Status(code=code.value[0], message=message, details=[detail])


def _result(operation: Operation, message: messages.Operation) -> None:
    if operation.kind is Kind.IMPORT:
        message.imported.templates = operation.done
    elif operation.kind is Kind.COMPACTION:
        message.compacted.blocks = operation.done
    elif operation.kind is Kind.EXPIRY:
        message.expired.templates = operation.done
    elif operation.kind is Kind.ROTATION:
        message.rotated.ciphertexts = operation.done
        message.rotated.key_version = operation.detail["key_version"]
    else:
        checks = operation.detail["checks"]
        message.erased.CopyFrom(
            messages.ErasureProof(
                slots=operation.detail["slots"],
                layout_epoch=operation.detail["epoch"],
                checks=[messages.ErasureCheck(**check) for check in checks],
                complete=not any(check["found"] for check in checks),
            )
        )
