"""Channels to the services: limits, retries of what may be repeated, signatures of operator calls."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from sealface.addresses import is_loopback
from sealface.errors import InvalidInput
from sealface.protocol.signing import Credential
from sealface.protocol.zones import Zone

MESSAGE_LIMIT = 4 * 1024 * 1024

# Only what may be repeated is retried here; decisions are asked for anew with a new nonce (see aio).
_REPEATABLE = [
    {"service": "sealface.enrollment.v1.EnrollmentService", "method": method}
    for method in ("Enroll", "GetGallery", "ListGalleries", "GetSubject", "ListSubjects", "ListSlotChanges")
] + [
    {"service": "sealface.keys.v1.KeyService", "method": method}
    for method in ("GetKey", "ListKeys", "GetMaterial", "GetServiceIdentity")
]
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": _REPEATABLE,
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class OperatorSigner(grpc.aio.UnaryUnaryClientInterceptor):
    """Signs every unary call to the key service with the caller's credential."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Add the signature to the call's metadata."""
        details = client_call_details
        method: str | bytes = details.method  # bytes at run time, whatever its annotation says
        metadata = self.metadata(method if isinstance(method, str) else method.decode(), request.SerializeToString())
        signed = grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )
        return await continuation(signed, request)

    def metadata(self, method: str, request: bytes) -> grpc.aio.Metadata:
        """The signature of a call: of one that is not unary on both sides it has to be handed in with the call."""
        now, nonce = int(time.time()), os.urandom(32)
        return grpc.aio.Metadata(
            ("sealface-caller", self._credential.caller),
            ("sealface-time", str(now)),
            ("sealface-nonce-bin", nonce),
            ("sealface-signature-bin", self._credential.sign_operator_request(method, request, now, nonce)),
        )


class Bearing:
    """A channel whose calls say who calls.

    Args:
        channel: the channel.
        token: a token, or what gives one that is good now.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str | Callable[[], str]) -> None:
        self._channel = channel
        self._token = token

    def unary_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """See the channel's."""
        return self._bearing(self._channel.unary_unary(*method, **codec))

    def unary_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """See the channel's."""
        return self._bearing(self._channel.unary_stream(*method, **codec))

    def stream_unary(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """See the channel's."""
        return self._bearing(self._channel.stream_unary(*method, **codec))

    def stream_stream(self, *method: Any, **codec: Any) -> Callable[..., Any]:
        """See the channel's."""
        return self._bearing(self._channel.stream_stream(*method, **codec))

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    def _bearing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*request: Any, metadata: Any = None, **options: Any) -> Any:
            token = self._token if isinstance(self._token, str) else self._token()
            bearer = ("authorization", f"Bearer {token}")
            return method(*request, metadata=(*(metadata or ()), bearer), **options)

        return call


class AuthorityMissing(InvalidInput):
    """Services on another machine were to be called without TLS, or the authority's file cannot be read."""


def open_channel(address: str, zone: Zone, ca: Path | None, signer: OperatorSigner | None = None) -> grpc.aio.Channel:
    """A channel to one service.

    Args:
        address: its `host:port`.
        zone: what its certificate must say it is of, whatever its address.
        ca: the authority that must have issued it; None for plaintext, on loopback.
        signer: of operator calls.

    Raises:
        AuthorityMissing: see there.
    """
    options = [
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),  # else a service that was away stays so for up to two minutes
    ]
    interceptors = [signer] if signer else None
    if ca is not None:
        options.append(("grpc.ssl_target_name_override", zone.server_name))
        return grpc.aio.secure_channel(address, _credentials(ca), options=options, interceptors=interceptors)
    if not is_loopback(address):
        raise AuthorityMissing(
            f"{address} is no loopback address, and plaintext is spoken on loopback alone: set SEALFACE_CA to the PEM "
            "file of the services' authority"
        )
    return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)


def _credentials(ca: Path) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(ca.read_bytes())
    except OSError as error:
        raise AuthorityMissing(f"{ca}: {error.strerror}: name the PEM file of the services' authority") from None
