"""Channels from one service to another."""

from __future__ import annotations

import grpc

RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
"""A service that was started again is found within a second or so; gRPC's own pause grows to two minutes."""


def connect(address: str) -> grpc.aio.Channel:
    """A channel to a service; needs a running event loop."""
    return grpc.aio.insecure_channel(address, options=RECONNECT)
