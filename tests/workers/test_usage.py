"""What a worker says of itself, through gRPC too."""

from __future__ import annotations

import asyncio

from sealface.runtime.server import ServerConfig
from sealface.workers.convert import usage_from_proto, usage_to_proto
from sealface.workers.pool import WorkerLost, WorkerPool
from sealface.workers.remote import RemoteWorker
from sealface.workers.server import WorkerConfig, build
from sealface.workers.usage import Cached, Shard, Usage


def test_a_usage_survives_its_message():
    for cached in (None, Cached(), Cached(1, 2, 3, 4)):
        usage = Usage(1 << 62, (Shard("door", 5 << 32, 7), Shard("safe", 0, 0)), cached)
        assert usage_from_proto(usage_to_proto(usage)) == usage


async def test_a_worker_is_asked_and_silent_when_it_is_gone(tmp_path, scheme):
    server = build(WorkerConfig(tmp_path, ServerConfig(), memory=1000), scheme)
    worker = RemoteWorker(await server.start())

    class Home:
        def members(self):
            return {"w0": worker, "w1": Lost()}

    class Lost:
        def usage(self, timeout_s):
            raise WorkerLost

    pool = WorkerPool(Home())
    assert await asyncio.to_thread(pool.usage, 20.0) == {"w0": Usage(1000, ()), "w1": None}
    await server.stop()
    assert await asyncio.to_thread(pool.usage, 20.0) == {"w0": None, "w1": None}
    worker.close()
