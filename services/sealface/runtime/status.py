"""Domain errors to gRPC status: one map, one ErrorInfo (AIP-193)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from sealface import errors

DOMAIN: Final = "sealface"
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"

_CODES: Final[dict[type[errors.SealfaceError], grpc.StatusCode]] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DataCorrupted: grpc.StatusCode.DATA_LOSS,
}


class InternalError(errors.SealfaceError):
    """Anything that is not the caller's doing; the server's log has it."""


def code_of(error: errors.SealfaceError) -> grpc.StatusCode:
    """The gRPC code of an error's kind."""
    if isinstance(error, UpstreamError):
        return error.code
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), grpc.StatusCode.INTERNAL)


def to_status(error: errors.SealfaceError) -> status_pb2.Status:
    """An error as google.rpc.Status with exactly one ErrorInfo."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(code=code_of(error).value[0], message=error.message, details=[detail])


class UpstreamError(errors.SealfaceError):
    """What another service said, passed on with its reason."""

    def __init__(self, status: status_pb2.Status, info: error_details_pb2.ErrorInfo) -> None:
        super().__init__(status.message, **dict(info.metadata))
        self._reason: str = info.reason
        self.code = next(code for code in grpc.StatusCode if code.value[0] == status.code)

    @property
    def reason(self) -> str:
        """The other service's reason."""
        return self._reason


_Otherwise = TypeVar("_Otherwise", bound=errors.SealfaceError | None)


def from_rpc_error(error: grpc.aio.AioRpcError | grpc.Call, otherwise: _Otherwise) -> errors.SealfaceError | _Otherwise:
    """The domain error behind a failed call to another service.

    Args:
        error: the failed call.
        otherwise: what to say if the call did not reach a handler of ours.
    """
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == STATUS_DETAILS_KEY:
            status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            info = error_details_pb2.ErrorInfo()
            if status.details and status.details[0].Unpack(info):
                return UpstreamError(status, info)
    return otherwise
