"""A gallery from nothing into the memory of workers: from PostgreSQL, through an empty Redis, from a full one.

Real servers on this machine, which share its processor with the workers; PostgreSQL's pages are in memory, and nothing
but the loading is timed: workers are ready before. `steps` is one thread in this process, block by block: where the
time goes. `service` is the matching service as `sealface serve matching` starts it, kernels compiled, from its start
until it answers that it is not serving yet, and until it serves.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import redis as redis_py
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealface.cipher.scheme import Ckks
from sealface.storage.cache import Cache
from sealface.storage.database import open_database
from sealface.storage.entries import Entries
from sealface.storage.redis_address import RedisAddress
from sealface.storage.schema import RECORD
from sealface_bench.filled import Filled, Tell
from sealface_bench.workers import local, running
from sealface_deploy import servers

_BLOCKS = 8
_READY_S = 600.0


def _loaded(folder: Path, filled: Filled, workers: int, **environment: str) -> float:
    """Seconds until new workers have all of it."""
    task = filled.task(0)
    with running(local(folder, workers, **environment), workers) as pool:
        started = time.perf_counter()
        pool.begin(task, _READY_S)
        return time.perf_counter() - started


def _steps(filled: Filled, address: str) -> dict[str, float]:
    """Milliseconds of each step for one block, medians."""
    gallery, galleries = filled.gallery, filled.galleries
    evaluator = Ckks().evaluator(filled.layout, filled.material.public, filled.material.evaluation)
    entries = Entries(RedisAddress.parse(address), 1 << 40)
    cache = Cache(galleries, entries)
    times: dict[str, list[float]] = {}

    def timed(step: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        found = call(*arguments)
        times.setdefault(step, []).append((time.perf_counter() - started) * 1e3)
        return found

    for block in galleries.blocks(gallery.id)[:_BLOCKS]:
        known = timed("fingerprint_ms", galleries.fingerprints, gallery.id, (), [block.number])
        _, data = timed("record_ms", galleries.block, gallery.id, block.number)
        timed("digest_ms", known.blocks[block.number].fits, data)
        hits = cache.hits
        timed("cache_ms", cache.block, gallery.id, block.number)
        assert cache.hits == hits + 1
        timed("memory_ms", evaluator.load, filled.layout.shape(block.columns), data)
    return {step: statistics.median(taken) for step, taken in times.items()}


def _in_turn(
    folder: Path, filled: Filled, workers: int, rounds: int, redis: servers.LocalServer, database: str, tell: Tell
) -> dict[str, Any]:
    """Median seconds of each way; bytes of the last round."""
    record = {"SEALFACE_DATABASE": database}
    cached = record | {"SEALFACE_REDIS": redis.url}
    seconds: dict[str, list[float]] = defaultdict(list)
    found: dict[str, Any] = {}
    with redis_py.Redis(port=redis.port) as raw:
        for number in range(rounds):
            raw.flushall()
            for way, environment in (("record", record), ("empty_cache", cached), ("warm_cache", cached)):
                tell(f"loading: {way.replace('_', ' ')}, {number + 1} of {rounds}")
                before = raw.info("stats")
                seconds[way].append(_loaded(folder, filled, workers, **environment))
                after = raw.info("stats")
                for name, counter in (("from", "total_net_output_bytes"), ("to", "total_net_input_bytes")):
                    found[f"{way}_{name}_redis_bytes"] = after[counter] - before[counter]
        found["redis_used_bytes"] = raw.info("memory")["used_memory"]
    return {f"{way}_s": statistics.median(of_way) for way, of_way in seconds.items()} | found


def _service(folder: Path, workers: int, **environment: str) -> dict[str, float]:
    """Seconds from the start of the matching service until it answers, and until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sealface.cli.main", "serve", "matching", "--state", str(folder)]
    command += ["--listen", f"127.0.0.1:{port}", "--keys", "127.0.0.1:1", "--workers", str(workers)]
    command += ["--threads", str(workers), "--insecure"]
    started = time.perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=os.environ | environment)  # noqa: S603
    found: dict[str, float] = {}
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while "ready_s" not in found:
                assert process.poll() is None, "the matching service did not start"
                try:
                    status = check(health_pb2.HealthCheckRequest(), timeout=1, wait_for_ready=True).status
                except grpc.RpcError:
                    continue
                now = time.perf_counter() - started
                found.setdefault("answers_s", now)
                if status == health_pb2.HealthCheckResponse.SERVING:
                    found["ready_s"] = now
                time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return found


def measure(
    *,
    templates: int,
    dimension: int,
    workers: int,
    rounds: int,
    service: bool = True,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Seconds and bytes of each way.

    Args:
        templates: in the gallery.
        dimension: of a template.
        workers: processes of one thread each.
        rounds: how often each way is taken, in turns.
        service: whether the matching service is started as well.
        tell: told of progress.
    """
    with (
        TemporaryDirectory(prefix="sealface-") as name,
        servers.postgresql("max_wal_size=4GB", "checkpoint_timeout=30min") as postgresql,
        servers.redis() as redis,
    ):
        folder = Path(name)
        engine = open_database(postgresql.url)
        RECORD.migrate(engine)
        started = time.perf_counter()
        filled = Filled(engine, templates, dimension, tell, distinct=_BLOCKS)
        filling_s = time.perf_counter() - started
        with engine.begin() as connection:
            query = "SELECT count(*), sum(length(ciphertext)) FROM block_ciphertexts"
            blocks, stored = connection.exec_driver_sql(query).one()
        found: dict[str, Any] = {
            "templates": templates,
            "dim": dimension,
            "workers": workers,
            "rounds": rounds,
            "blocks": blocks,
            "bytes": int(stored),
            "filling_s": filling_s,
        }
        found |= _in_turn(folder, filled, workers, rounds, redis, postgresql.url, tell)
        tell("step by step")
        found["steps"] = _steps(filled, redis.url)
        if service:
            record = {"SEALFACE_DATABASE": postgresql.url}
            cached = record | {"SEALFACE_REDIS": redis.url}
            _service(folder / "state", workers, **record)  # compiles
            for way, environment in (("record", record), ("warm_cache", cached)):
                tell(f"the matching service: {way.replace('_', ' ')}")
                found[f"service_{way}"] = _service(folder / "state", workers, **environment)
        engine.dispose()
        return found
