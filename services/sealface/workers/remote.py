"""A worker behind gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from sealface.protocol.zones import Zone
from sealface.runtime.channels import KEEPALIVE, connect_blocking
from sealface.runtime.request_ids import passed_on
from sealface.runtime.status import from_rpc_error
from sealface.runtime.tls import Tls
from sealface.workers.convert import (
    part_from_proto,
    task_to_proto,
    tile_from_proto,
    timing_from_proto,
    usage_from_proto,
)
from sealface.workers.pool import Running, WorkerLost
from sealface.workers.task import BlockGone, Part, Task, Tile, Timing
from sealface.workers.usage import Usage
from sealface_protos.workers.v1 import worker_service_pb2 as messages
from sealface_protos.workers.v1 import worker_service_pb2_grpc

LARGEST_MESSAGE = 64 << 20
"""Bytes: a task names every block that a worker is to score, half a kilobyte each."""


class RemoteWorker:
    """Calls a worker.

    Args:
        address: its `host:port`.
        tls: certificate of the compute zone; None for plaintext, on loopback.

    Attributes:
        address: the same.
    """

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        self.address = address
        sizes = [(f"grpc.max_{way}_message_length", LARGEST_MESSAGE) for way in ("send", "receive")]
        self._channel = connect_blocking(address, tls, Zone.COMPUTE.server_name, [*KEEPALIVE, *sizes])
        self._stub = worker_service_pb2_grpc.WorkerServiceStub(self._channel)

    def run(self, task: Task, timeout_s: float) -> Running:
        """Begin a task.

        Raises:
            WorkerLost: it was hung up on meanwhile.
        """
        try:
            return _Running(self._stub.Score(task_to_proto(task), timeout=timeout_s, metadata=passed_on()))
        except ValueError:  # gRPC's word for a channel that is closed
            raise WorkerLost("the worker was started again") from None

    def held(self, gallery_id: str, timeout_s: float) -> list[Part]:
        """What it has in memory of a gallery."""
        try:
            request = messages.ListBlocksRequest(gallery=gallery_id)
            response = self._stub.ListBlocks(request, timeout=timeout_s, metadata=passed_on())
        except (grpc.RpcError, ValueError):
            raise WorkerLost("the worker does not answer") from None
        return [part_from_proto(part) for part in response.parts]

    def usage(self, timeout_s: float) -> Usage:
        """What it holds of all galleries."""
        try:
            return usage_from_proto(self._stub.GetUsage(messages.GetUsageRequest(), timeout=timeout_s))
        except (grpc.RpcError, ValueError):
            raise WorkerLost("the worker does not answer") from None

    def close(self) -> None:
        """Hang up; what is under way is lost."""
        self._channel.close()


class _Running:
    def __init__(self, call: Any) -> None:
        self._call = call  # an iterator of responses, and a grpc.Call
        self.timing = Timing()

    def loaded(self) -> None:
        self._next()

    def tiles(self) -> Iterator[Tile]:
        while (message := self._next()).parts:
            yield tile_from_proto(message)
        self.timing = timing_from_proto(message.timing)

    def cancel(self) -> None:
        self._call.cancel()

    def _next(self) -> messages.ScoreResponse:
        try:
            response: messages.ScoreResponse = next(self._call)
        except StopIteration:
            raise WorkerLost("the answer ended early") from None
        except grpc.RpcError:
            refused = from_rpc_error(self._call, None)
            if refused is None:
                raise WorkerLost("the worker does not answer") from None
            raise BlockGone(refused.message) if refused.reason == "BLOCK_GONE" else refused from None
        return response
