"""Channels from one service to another."""

from __future__ import annotations

import grpc

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


def connect(address: str) -> grpc.aio.Channel:
    """A channel to a service; needs a running event loop."""
    return grpc.aio.insecure_channel(address, options=RECONNECT)
