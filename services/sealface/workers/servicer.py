"""gRPC to a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from sealface.workers.convert import (
    part_to_proto,
    task_from_proto,
    tile_to_proto,
    timing_to_proto,
    usage_to_proto,
)
from sealface.workers.worker import Worker
from sealface_protos.workers.v1 import worker_service_pb2 as messages
from sealface_protos.workers.v1 import worker_service_pb2_grpc


class WorkerServicer(worker_service_pb2_grpc.WorkerServiceServicer):
    """See `WorkerService` in the contract."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def Score(
        self, request: messages.ScoreRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[messages.ScoreResponse]:
        """See the contract."""
        begun = await asyncio.to_thread(self._worker.begin, task_from_proto(request))
        yield messages.ScoreResponse()
        try:
            while (tile := await asyncio.to_thread(next, begun.tiles, None)) is not None:
                yield tile_to_proto(tile)
        finally:  # a search that is given up is computed no further
            with suppress(ValueError):  # a tile is being computed: the rest is dropped with it
                begun.tiles.close()
        yield messages.ScoreResponse(timing=timing_to_proto(begun.timing))

    async def ListBlocks(
        self, request: messages.ListBlocksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> messages.ListBlocksResponse:
        """See the contract."""
        held = await asyncio.to_thread(self._worker.store.held, request.gallery)
        return messages.ListBlocksResponse(parts=[part_to_proto(part) for part in held])

    async def GetUsage(
        self, request: messages.GetUsageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> messages.GetUsageResponse:
        """See the contract."""
        return usage_to_proto(self._worker.usage())
