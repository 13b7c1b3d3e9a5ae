import asyncio
import threading

import pytest

from sealface.workers.servicer import WorkerServicer
from sealface.workers.task import Tile
from sealface.workers.worker import Pass
from sealface_protos.workers.v1 import worker_service_pb2 as messages


class Slow:
    """A worker whose second tile takes until it is told."""

    def __init__(self):
        self.computing, self.go_on, self.closed = threading.Event(), threading.Event(), threading.Event()

    def begin(self, task):
        def tiles():
            try:
                yield Tile((0,), [[b"scores"]])
                self.computing.set()
                self.go_on.wait(30)
                yield Tile((1,), [[b"scores"]])
            finally:
                self.closed.set()

        return Pass(tiles())


async def test_a_search_that_is_given_up_while_a_tile_is_computed_ends_quietly_and_goes_no_further():
    worker = Slow()

    async def follow():
        async for _ in WorkerServicer(worker).Score(messages.ScoreRequest(), None):
            pass

    following = asyncio.create_task(follow())
    await asyncio.to_thread(worker.computing.wait, 30)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    worker.go_on.set()
    assert await asyncio.to_thread(worker.closed.wait, 30)
