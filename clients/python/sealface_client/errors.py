"""What services answer when they refuse, as one exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.rpc import error_details_pb2, status_pb2

from sealface.errors import SealfaceError

_RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED})


class ServiceError(SealfaceError):
    """A service refused or failed.

    Attributes:
        code: the gRPC status code.
        message: one line, what to do next.
        metadata: details of the service's ErrorInfo.
    """

    def __init__(self, code: grpc.StatusCode, message: str, reason: str, metadata: dict[str, str]) -> None:
        super().__init__(message, **metadata)
        self.code = code
        self._reason = reason

    @property
    def reason(self) -> str:
        """UPPER_SNAKE_CASE cause, as in google.rpc.ErrorInfo.reason."""
        return self._reason

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code in _RETRYABLE


def from_status(status: status_pb2.Status) -> ServiceError:
    """The error in a google.rpc.Status."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    return ServiceError(code, status.message, info.reason or code.name, dict(info.metadata))


@contextmanager
def translated(service: str) -> Iterator[None]:
    """Turns failed calls within into `ServiceError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _from_rpc(error, service) from None


def _from_rpc(error: grpc.aio.AioRpcError, service: str) -> ServiceError:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return from_status(status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode()))
    code = error.code()
    message = {
        grpc.StatusCode.UNAVAILABLE: f"the {service} service {_unavailable(error.details() or '')}",
        grpc.StatusCode.DEADLINE_EXCEEDED: f"the {service} service did not answer in time: retry, or allow more time",
        grpc.StatusCode.RESOURCE_EXHAUSTED: f"the message is over the {service} service's limit: send less at once",
    }.get(code, f"the {service} service failed ({code.name}): retry, and tell its operator if it stays")
    return ServiceError(code, message, code.name, {})


def _unavailable(details: str) -> str:
    """What to do about it; of a handshake that fails gRPC tells in prose alone."""
    if "Tls handshake failed" in details or "verification check failed" in details:
        return "shows no certificate of its zone by the authority in SEALFACE_CA: name the right file"
    if "failed to connect" in details and "Socket closed" in details:
        return "hangs up: set SEALFACE_CA if it shows a certificate, else retry"
    return "does not answer: start it (`sealface serve`) and retry"
