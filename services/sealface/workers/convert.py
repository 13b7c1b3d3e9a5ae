"""Tasks and tiles to messages and back."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from sealface.workers.task import Part, Task, Tile, Timing
from sealface.workers.usage import Cached, Shard, Usage
from sealface_protos.workers.v1 import worker_service_pb2 as messages


def task_to_proto(task: Task) -> messages.ScoreRequest:
    """A task as a message."""
    return messages.ScoreRequest(
        gallery=task.gallery,
        first_epoch=task.first_epoch,
        key_version=task.key_version,
        probes=task.probes,
        parts=[part_to_proto(part) for part in task.parts],
        whole=task.whole,
        seed=task.seed,
        deepest=task.deepest,
    )


def task_from_proto(message: messages.ScoreRequest) -> Task:
    """A task from a message."""
    return Task(
        gallery=message.gallery,
        first_epoch=message.first_epoch,
        key_version=message.key_version,
        probes=tuple(message.probes),
        parts=tuple(map(part_from_proto, message.parts)),
        whole=message.whole,
        seed=message.seed,
        deepest=message.deepest,
    )


def tile_to_proto(tile: Tile) -> messages.ScoreResponse:
    """A tile as a message."""
    return messages.ScoreResponse(parts=tile.places, results=[data for of_probe in tile.results for data in of_probe])


def tile_from_proto(message: messages.ScoreResponse) -> Tile:
    """A tile from a message."""
    count = len(message.parts)
    starts = range(0, len(message.results), count)
    return Tile(tuple(message.parts), [list(message.results[start : start + count]) for start in starts])


def timing_to_proto(timing: Timing) -> messages.Timing:
    """What a task took, as a message."""
    return messages.Timing(expand_ms=timing.expand_ms, multiply_ms=timing.multiply_ms, pass_ms=timing.pass_ms)


def timing_from_proto(message: messages.Timing) -> Timing:
    """What a task took, from a message."""
    return Timing(message.expand_ms, message.multiply_ms, message.pass_ms)


def part_to_proto(part: Part) -> messages.Part:
    """A part as a message."""
    message = messages.Part(columns=part.columns, number=part.number, slots=part.slots)
    if part.requested is not None:
        message.capacity = part.requested.size
        message.requested = np.packbits(part.requested, bitorder="little").tobytes()
    return message


def part_from_proto(message: messages.Part) -> Part:
    """A part from a message."""
    return Part(message.columns, message.number, message.slots, _positions(message.requested, message.capacity))


def usage_to_proto(usage: Usage) -> messages.GetUsageResponse:
    """What a worker holds, as a message."""
    shards = [messages.Shard(gallery=one.gallery, memory_bytes=one.nbytes, blocks=one.blocks) for one in usage.shards]
    cached = None if usage.cached is None else messages.Cached(**asdict(usage.cached))
    return messages.GetUsageResponse(memory_limit_bytes=usage.limit, shards=shards, cached=cached)


def usage_from_proto(message: messages.GetUsageResponse) -> Usage:
    """What a worker holds, from a message."""
    shards = tuple(Shard(one.gallery, one.memory_bytes, one.blocks) for one in message.shards)
    told = message.cached
    cached = Cached(told.hits, told.misses, told.healed, told.errors) if message.HasField("cached") else None
    return Usage(message.memory_limit_bytes, shards, cached)


def _positions(bits: bytes, capacity: int) -> NDArray[np.bool_] | None:
    if not bits:
        return None
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=capacity, bitorder="little").astype(np.bool_)
