"""Channels from one service to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc

from sealface.runtime.tls import Certificate, Contents, Tls, channel_credentials, check_plaintext

RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
"""A service that was started again is found within a second or so; gRPC's own pause grows to two minutes."""

KEEPALIVE = (
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),  # a minute otherwise
    ("grpc.http2.max_pings_without_data", 0),
)
"""A peer that is frozen, or whose machine is gone, is lost within seconds of a call and not at its deadline."""

Options = Sequence[tuple[str, Any]]


def connect(address: str, tls: Tls | None, server_name: str) -> grpc.aio.Channel:
    """A channel to a service; needs a running event loop.

    Args:
        address: its `host:port`.
        tls: this process's files; None for plaintext, on loopback.
        server_name: the DNS name that the service's certificate must carry, whatever its address.

    Raises:
        PlaintextRefused, CertificateUnusable: see there.
    """
    if tls is None:
        check_plaintext(address)
        return grpc.aio.insecure_channel(address, options=RECONNECT)
    options = [*RECONNECT, ("grpc.ssl_target_name_override", server_name)]

    def opened(contents: Contents) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, channel_credentials(contents), options=options)

    return cast(grpc.aio.Channel, _Reopened(Certificate(tls), opened))


def connect_blocking(address: str, tls: Tls | None, server_name: str, options: Options = ()) -> grpc.Channel:
    """The same for threads; the options are added to `RECONNECT`."""
    options = [*RECONNECT, *options]
    if tls is None:
        check_plaintext(address)
        return grpc.insecure_channel(address, options=options)
    options.append(("grpc.ssl_target_name_override", server_name))

    def opened(contents: Contents) -> grpc.Channel:
        return grpc.secure_channel(address, channel_credentials(contents), options=options)

    return cast(grpc.Channel, _Reopened(Certificate(tls), opened))


class _Reopened:
    """As much of a channel as stubs and their owners use; another one once the certificate was replaced.

    gRPC's client credentials are fixed bytes. A call under way ends on the channel it began on, which gRPC drops then.
    """

    def __init__(self, certificate: Certificate, opened: Callable[[Contents], Any]) -> None:
        self._certificate = certificate
        self._opened = opened
        self._contents = certificate.current()
        self._channel = opened(self._contents)

    def current(self) -> Any:
        """The channel that a new call is to be made on."""
        contents = self._certificate.current()
        if contents is not self._contents:
            self._channel, self._contents = self._opened(contents), contents
        return self._channel

    def unary_unary(self, *method: Any, **codec: Any) -> _Method:
        return _Method(self, "unary_unary", method, codec)

    def unary_stream(self, *method: Any, **codec: Any) -> _Method:
        return _Method(self, "unary_stream", method, codec)

    def stream_unary(self, *method: Any, **codec: Any) -> _Method:
        return _Method(self, "stream_unary", method, codec)

    def stream_stream(self, *method: Any, **codec: Any) -> _Method:
        return _Method(self, "stream_stream", method, codec)

    def close(self) -> Any:
        """Hang up; to be awaited if the channel's own is."""
        return self._channel.close()


class _Method:
    """One method of a stub."""

    def __init__(self, channel: _Reopened, kind: str, method: tuple[Any, ...], codec: dict[str, Any]) -> None:
        self._channel = channel
        self._kind, self._method, self._codec = kind, method, codec
        self._bound: tuple[Any, Any] = (None, None)  # a channel, and the method on it

    def __call__(self, *request: Any, **options: Any) -> Any:
        channel = self._channel.current()
        opened, method = self._bound
        if opened is not channel:
            method = getattr(channel, self._kind)(*self._method, **self._codec)
            self._bound = channel, method
        return method(*request, **options)
