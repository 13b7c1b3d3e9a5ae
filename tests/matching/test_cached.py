"""All three services with Redis before the record: right answers whatever becomes of Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy import servers
from sealface.enrollment import housekeeper
from sealface.matching.server import SERVICE
from sealface.storage.cache import CacheConfig
from sealface.storage.redis_address import RedisAddress
from tests.conftest import POLICY, Suite, near, person
from tests.plain import Plain
from tests.storage import redis_servers

HEALTH = health_pb2.HealthCheckResponse


def who(identification):
    return [candidate.subject for candidate in identification.candidates]


@asynccontextmanager
async def suite_with(folder, url, scheme=None) -> AsyncIterator[Suite]:
    folder.mkdir(exist_ok=True)
    running = Suite(folder, scheme or Plain(), cache=CacheConfig(RedisAddress.parse(url)))
    await running.start()
    try:
        yield running
    finally:
        await running.close()


@pytest.fixture
def server() -> Iterator[servers.LocalServer]:
    with servers.redis() as one:
        yield one


@pytest.fixture
def raw(server) -> Iterator[redis.Redis]:
    with redis_servers.client(server) as one:
        yield one


@pytest.fixture
async def cached(tmp_path, server) -> AsyncIterator[Suite]:
    async with suite_with(tmp_path, server.url) as running:
        yield running


@pytest.fixture
async def door(cached):
    return await cached.client().create_gallery("door", policy=POLICY)


async def everybody_is_found(gallery, numbers) -> None:
    for number in numbers:
        probe = near(person(number), 0.1)
        assert who(await gallery.identify(probe)) == [f"s{number}"]
        assert (await gallery.verify(f"s{number}", probe)).match


async def nobody_is_found(gallery, numbers) -> None:
    for number in numbers:
        assert who(await gallery.identify(person(number))) == []


def held(raw: redis.Redis) -> set[str]:
    return {key.decode().rpartition(":")[2] for key in raw.scan_iter("sealface:*:[tb]*")}


async def until(done) -> None:
    for _ in range(400):
        if done():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it is not so in time")


# --- without any Redis


async def test_a_redis_that_is_not_there_is_missed_by_nobody(tmp_path):
    async with suite_with(tmp_path, f"redis://127.0.0.1:{servers._free_port()}") as running:
        door = await running.client().create_gallery("door", policy=POLICY)
        for number in range(40):
            await door.enroll(f"s{number}", person(number))
        await everybody_is_found(door, range(0, 40, 7))
        await door.erase("s7")
        await nobody_is_found(door, [7])
        await running.restart("matching", "enrollment")
        await everybody_is_found(door, [0, 14, 35])
        await nobody_is_found(door, [7, 50])


class Gated(Plain):
    """Loads nothing into memory before the gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waiting = threading.Event()

    def evaluator(self, *arguments):
        made = super().evaluator(*arguments)
        assemble = made.assemble

        def gated(*blocks):
            self.waiting.set()
            assert self.gate.wait(20)
            return assemble(*blocks)

        made.assemble = gated
        return made


async def test_matching_is_not_serving_until_its_galleries_are_in_memory(tmp_path):
    scheme = Gated()
    scheme.gate.set()
    running = Suite(tmp_path, scheme)
    await running.start()
    try:
        door = await running.client().create_gallery("door", policy=POLICY)
        await door.enroll("s1", person(1))
        await running.stop("matching")
        scheme.gate.clear()
        scheme.waiting.clear()
        starting = asyncio.create_task(running.start("matching"))
        await until(scheme.waiting.is_set)
        async with grpc.aio.insecure_channel(running.addresses["matching"]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", SERVICE):
                status = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert status.status == HEALTH.NOT_SERVING
            assert not starting.done()
            scheme.gate.set()
            await starting
            status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
            assert status.status == HEALTH.SERVING
        await everybody_is_found(door, [1])
    finally:
        scheme.gate.set()
        await running.close()


# --- with one


@pytest.mark.servers
async def test_what_workers_load_is_held(cached, door, raw):
    for number in range(5):
        await door.enroll(f"s{number}", person(number))
    await everybody_is_found(door, range(5))
    assert held(raw) == {f"t{slot}" for slot in range(1, 6)}
    assert [told(cached, name) for name in ("misses", "healed", "errors")] == [5, 0, 0]
    values = {key: raw.get(key) for key in raw.scan_iter("sealface:*:t*")}
    await cached.restart("matching")
    await everybody_is_found(door, range(5))
    assert {key: raw.get(key) for key in raw.scan_iter("sealface:*:t*")} == values
    assert [told(cached, name) for name in ("misses", "healed", "errors")] == [0, 0, 0]
    assert told(cached, "hits") >= 5  # verifications read theirs anew


def told(suite, name):
    return suite.metric("matching", f"sealface_cache_{name}_total", worker="embedded")


@pytest.mark.servers
async def test_erased_subjects_leave_redis(cached, door, raw):
    for number in range(5):
        await door.enroll(f"s{number}", person(number))
    await everybody_is_found(door, range(5))
    await door.erase("s2")
    await until(lambda: held(raw) == {"t1", "t2", "t4", "t5"})
    await nobody_is_found(door, [2])
    await cached.client().delete_gallery("door")
    await until(lambda: raw.dbsize() == 0)


@pytest.mark.servers
async def test_sealed_and_replaced_blocks_leave_redis(cached, door, raw):
    capacity = door.layout.sealed_shapes[0].capacity
    await door.enroll("first", person(10_000))
    [_ async for _ in door.import_many((f"s{number}", person(number)) for number in range(capacity))]
    await everybody_is_found(door, [0, capacity - 1])
    await until(lambda: "b1" in held(raw))
    await cached.restart("matching")
    await everybody_is_found(door, [0, 5])
    blocks = {name for name in held(raw) if name.startswith("b")}
    for number in range(capacity):
        await door.erase(f"s{number}")
    await until(lambda: not blocks & held(raw))
    await nobody_is_found(door, [0, 5, capacity - 1])
    assert who(await door.identify(person(10_000))) == ["first"]


@pytest.mark.servers
async def test_erased_while_redis_is_killed_and_comes_back(cached, door, server, raw):
    for number in range(8):
        await door.enroll(f"s{number}", person(number))
    await everybody_is_found(door, range(8))
    server.kill()
    await everybody_is_found(door, range(8))
    await door.erase("s3")
    await door.enroll("s8", person(8))
    left = [0, 1, 2, 4, 5, 6, 7, 8]
    await everybody_is_found(door, left)
    await nobody_is_found(door, [3])
    await cached.restart("matching")
    await everybody_is_found(door, left)
    await nobody_is_found(door, [3])
    server.start()
    await door.erase("s4")
    await asyncio.sleep(1.2)  # it is asked again
    await cached.restart("matching")
    left.remove(4)
    await everybody_is_found(door, left)
    await nobody_is_found(door, [3, 4])
    assert held(raw) == {f"t{number + 1}" for number in left}


@pytest.mark.servers
async def test_erased_while_redis_does_not_answer(cached, door, server, raw):
    for number in range(4):
        await door.enroll(f"s{number}", person(number))
    await everybody_is_found(door, range(4))
    server.pause()
    try:
        await door.erase("s1")
        await cached.restart("matching")
        await everybody_is_found(door, [0, 2, 3])
        await nobody_is_found(door, [1])
    finally:
        server.resume()
    await until(lambda: "t2" not in held(raw))
    await cached.restart("matching")
    await everybody_is_found(door, [0, 2, 3])
    await nobody_is_found(door, [1])


@pytest.mark.servers
async def test_everything_in_redis_is_another_ciphertext(cached, door, raw):
    """Somebody who may write to Redis swaps all templates: nobody is taken for anybody else."""
    for number in range(6):
        await door.enroll(f"s{number}", person(number))
    await everybody_is_found(door, range(6))
    keys = sorted(raw.scan_iter("sealface:*:t*"))
    values = raw.mget(keys)
    raw.mset(dict(zip(keys, values[1:] + values[:1], strict=True)))
    await cached.restart("matching")
    await everybody_is_found(door, range(6))
    await nobody_is_found(door, [9])
    assert raw.mget(keys) == values


@pytest.mark.servers
async def test_searches_go_on_while_redis_comes_and_goes(cached, door, server):
    for number in range(6):
        await door.enroll(f"s{number}", person(number))
    stop = asyncio.Event()

    async def search() -> int:
        count = 0
        while not stop.is_set():
            await everybody_is_found(door, [count % 3])
            await nobody_is_found(door, [100])
            count += 1
        return count

    searching = asyncio.create_task(search())
    for gone in (3, 4, 5):
        await asyncio.to_thread(server.kill)
        await door.erase(f"s{gone}")
        await nobody_is_found(door, [gone])
        await asyncio.to_thread(server.start)
        await asyncio.sleep(1.2)
    stop.set()
    assert await searching > 10


async def test_an_erasure_is_proved_in_redis_too_and_waits_while_that_is_away(cached, door, server, raw, monkeypatch):
    monkeypatch.setattr(housekeeper, "_LOOK_S", 0.5)
    await door.enroll("ann", person(1))
    await door.enroll("bob", person(2))
    assert who(await door.identify(person(1))) == ["ann"]
    assert list(raw.scan_iter("sealface:*:t1"))
    proof = await door.erase_with_proof("ann")
    assert proof.complete
    cache = next(check for check in proof.checks if check.place == "cache")
    assert (cache.checked, cache.found) == (1, 0)
    assert not list(raw.scan_iter("sealface:*:t1"))
    assert who(await door.identify(person(2))) == ["bob"]
    server.kill()
    begun = await door.operations.begin_erasure("bob")
    await asyncio.sleep(1.5)
    waiting = await door.operations.get(begun.name.rpartition("/")[2])
    assert not waiting.HasField("erased")
    assert who(await door.identify(person(2))) == []
    server.start()
    ended = await asyncio.wait_for(door.operations.wait(begun), 30)
    assert ended.erased.complete
    assert "cache" in {check.place for check in ended.erased.checks}
