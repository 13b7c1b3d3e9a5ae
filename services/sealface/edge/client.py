"""The client library, as this service calls it: within the caller's deadline, and with its errors passed on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from google.rpc import error_details_pb2, status_pb2

from sealface.cipher.scheme import Scheme
from sealface.edge.faces import OneAtATime
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Signed
from sealface.runtime.status import DOMAIN, UpstreamError
from sealface_client import AsyncClient, Endpoints, ServiceError
from sealface_client.aio import DEADLINE_S
from sealface_client.passphrases import from_environment

_ends: ContextVar[float | None] = ContextVar("ends", default=None)
_token: ContextVar[str] = ContextVar("token", default="")


class EdgeClient(AsyncClient):
    """A client whose calls are its caller's, and last no longer than the call they are made for.

    Compute is told who called this service, and decides what they may do. Decisions are asked for with the service's
    own credential, which answers for them to the key service.

    Args:
        endpoints: where the services are.
        credential: this service's own.
        faces: how pictures are embedded.
        scheme: the cipher.
        seeds: folder of the seeds of transforms; they are under SEALFACE_PASSPHRASE if they are under any.
    """

    def __init__(
        self, endpoints: Endpoints, credential: Credential, faces: OneAtATime, scheme: Scheme, seeds: Path
    ) -> None:
        own = Signed(credential)
        super().__init__(
            endpoints,
            credential,
            keys=seeds,
            passphrase=from_environment(),
            scheme=scheme,
            token=lambda: _token.get() or own(),
        )
        self.faces = faces

    @property
    def timeout_s(self) -> float:
        """Deadline of a call made now."""
        ends = _ends.get()
        return DEADLINE_S if ends is None else max(0.0, min(DEADLINE_S, ends - time.monotonic()))

    @timeout_s.setter
    def timeout_s(self, _: float) -> None:
        """It is the caller's, not the client's."""

    def forget_verifying_key(self) -> None:
        """Fetch anew, at the next decision, the key that decisions are signed with."""
        self._verifying_key = None


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Calls within end when the caller stops to wait; never later than `DEADLINE_S`."""
    token = _ends.set(time.monotonic() + (DEADLINE_S if seconds is None else seconds))
    try:
        yield
    finally:
        _ends.reset(token)


@contextmanager
def on_behalf(token: str) -> Iterator[None]:
    """Calls of compute within are those of who has a token."""
    set_before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(set_before)


@contextmanager
def passed_on() -> Iterator[None]:
    """What another service refused is refused here with the same code, reason and message."""
    try:
        yield
    except ServiceError as error:
        status = status_pb2.Status(code=error.code.value[0], message=error.message)
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
        raise UpstreamError(status, info) from None
