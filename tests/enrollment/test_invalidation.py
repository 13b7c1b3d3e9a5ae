"""What has left the record leaves Redis, whatever Redis does meanwhile. Real servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis

from deploy import servers
from sealface.enrollment.invalidation import Invalidation
from sealface.storage.cache import Cache, space_of
from sealface.storage.entries import CacheUnavailable, Entries
from sealface.storage.redis_address import RedisAddress
from tests.conftest import execute
from tests.storage import redis_servers
from tests.storage.cached import Kept, held, open_cache, read_all
from tests.storage.conftest import new_gallery
from tests.storage.redis_servers import wait

pytestmark = pytest.mark.servers


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "record.db")


@pytest.fixture
def server() -> Iterator[servers.LocalServer]:
    with servers.redis() as one:
        yield one


@pytest.fixture
def raw(server: servers.LocalServer) -> Iterator[redis.Redis]:
    with redis_servers.client(server) as one:
        yield one


@pytest.fixture
def cache(kept: Kept, server: servers.LocalServer) -> Cache:
    return open_cache(kept, server.url)


def invalidation(kept: Kept, url: str) -> Invalidation:
    return Invalidation(kept.galleries, Entries(RedisAddress.parse(url), 1 << 30))


@pytest.fixture
def looking(kept: Kept, server: servers.LocalServer) -> Invalidation:
    """That has looked once."""
    found = invalidation(kept, server.url)
    found.look()
    return found


@contextmanager
def running(kept: Kept, url: str) -> Iterator[None]:
    background = invalidation(kept, url)
    background.start()
    try:
        yield
    finally:
        background.stop()


def seal(kept: Kept, slots: list[int], replaced: tuple[int, ...] = ()) -> None:
    placed = np.zeros(12, np.uint32)
    placed[: len(slots)] = slots
    assert kept.record.seal(kept.galleries.get("door"), kept.lease(), 8, placed, b"sealed %r" % slots, replaced)


def test_erased_templates_leave_and_others_stay(kept, cache, looking, raw):
    slots = kept.enroll(10)
    read_all(kept, cache)
    looking.look()
    kept.erase(slots[3])
    kept.erase(slots[7])
    looking.look()
    assert held(raw, kept.space) == {f"t{slot}" for slot in kept.templates}
    kept.enroll(2)
    read_all(kept, cache)
    looking.look()
    assert held(raw, kept.space) == {f"t{slot}" for slot in kept.templates}


def test_what_came_and_went_between_two_looks_leaves(kept, cache, looking, raw):
    """Templates enrolled, sealed, read, sealed again and erased before anybody looked."""
    slots = kept.enroll(3)
    seal(kept, slots)
    assert cache.block("door", 1) is not None
    read_all(kept, cache)
    seal(kept, slots, (1,))
    kept.erase(slots[0])
    looking.look()
    assert held(raw, kept.space) == {"t2", "t3"}
    assert cache.block("door", 2) is not None
    seal(kept, slots[1:], (2,))
    assert cache.block("door", 3) is not None
    looking.look()
    assert held(raw, kept.space) == {"t2", "t3", "b3"}


def test_a_gallery_nobody_has_looked_at_is_followed_from_its_beginning(kept, cache, looking, raw):
    kept.record.create_gallery(new_gallery("gate"))
    for name in ("a", "b"):
        kept.record.enroll("gate", "keys/gate/versions/1", name, name.encode(), name)
    assert len(list(cache.ciphertexts("gate", [1, 2]))) == 2
    kept.record.erase_subject("gate", "a")
    looking.look()
    (space,) = [space_of(head) for head in kept.galleries.heads() if head.gallery == "gate"]
    assert held(raw, space) == {"t2"}


def test_a_dropped_block_leaves(kept, cache, looking, raw):
    slots = kept.enroll(2)
    seal(kept, slots)
    assert cache.block("door", 1) is not None
    looking.look()
    assert held(raw, kept.space) == {"b1"}
    for slot in slots:
        kept.erase(slot)
    kept.record.drop_block(kept.galleries.get("door"), kept.lease(), 1)
    looking.look()
    assert held(raw, kept.space) == set()


def test_a_deleted_gallery_leaves_whole(kept, cache, looking, raw):
    kept.enroll(3)
    kept.import_block()
    read_all(kept, cache)
    looking.look()
    kept.record.delete_gallery("door")
    looking.look()
    assert raw.dbsize() == 0


@pytest.mark.parametrize("looked", [True, False])
def test_a_gallery_made_anew_keeps_what_is_new(kept, cache, looking, raw, looked):
    kept.enroll(3)
    read_all(kept, cache)
    before = kept.space
    looking.look()
    kept.record.delete_gallery("door")
    kept.templates.clear()
    if looked:
        looking.look()
    kept.record.create_gallery(new_gallery())
    kept.enroll(1)
    read_all(kept, cache)
    looking.look()
    assert held(raw, before) == set()
    assert held(raw, kept.space) == {"t4"}


def test_an_old_key_version_leaves(kept, cache, looking, raw):
    kept.enroll(3)
    read_all(kept, cache)
    looking.look()
    before = kept.space
    execute(kept.path, "UPDATE template_ciphertexts SET key_version = 'keys/door/versions/2'")
    execute(kept.path, "UPDATE galleries SET key_version = 'keys/door/versions/2', epoch = epoch + 1")
    read_all(kept, cache)
    looking.look()
    assert (held(raw, before), held(raw, kept.space)) == (set(), {"t1", "t2", "t3"})


def test_erased_while_redis_was_away(kept, cache, server, looking, raw):
    """A Redis that only could not be reached still has what was erased: it is dropped when it answers again."""
    slots = kept.enroll(10)
    read_all(kept, cache)
    looking.look()
    server.pause()
    try:
        kept.erase(slots[3])
        with pytest.raises(CacheUnavailable):
            looking.look()
        kept.erase(slots[4])
        with pytest.raises(CacheUnavailable):
            looking.look()
    finally:
        server.resume()
    assert raw.exists(f"{kept.space}:t{slots[3]}")  # the commands that it was sent are given up
    wait(lambda: settled(looking))
    assert held(raw, kept.space) == {f"t{slot}" for slot in kept.templates}


def test_deleted_while_redis_was_away(kept, cache, server, looking, raw):
    kept.enroll(3)
    kept.import_block()
    read_all(kept, cache)
    looking.look()
    server.pause()
    try:
        kept.record.delete_gallery("door")
        with pytest.raises(CacheUnavailable):
            looking.look()
    finally:
        server.resume()
    wait(lambda: settled(looking))
    assert raw.dbsize() == 0


def test_after_a_failure_all_is_compared(kept, cache, server, looking, raw):
    """What came back while Redis could not be asked, however that was."""
    (slot,) = kept.enroll(1)
    read_all(kept, cache)
    kept.erase(slot)
    looking.look()
    raw.set(f"{kept.space}:t{slot}", b"back")
    server.pause()
    try:
        with pytest.raises(CacheUnavailable):
            looking.look()
    finally:
        server.resume()
    wait(lambda: settled(looking))
    assert held(raw, kept.space) == set()


def settled(looking: Invalidation) -> bool:
    try:
        looking.look()
    except CacheUnavailable:
        return False
    return True


def test_erased_before_a_restart_that_brings_it_back(kept, tmp_path):
    """Redis takes the erasure, dies before it has written that, and starts with what it had saved."""
    saved = ("--dir", str(tmp_path), "--dbfilename", "saved.rdb")
    with servers.redis(*saved) as server, redis_servers.client(server) as raw:
        cache, looking = open_cache(kept, server.url), invalidation(kept, server.url)
        slots = kept.enroll(10)
        read_all(kept, cache)
        looking.look()
        raw.save()
        kept.erase(slots[3])
        looking.look()
        assert len(held(raw, kept.space)) == 9
        server.kill()
        server.start()
        assert len(held(raw, kept.space)) == 10
        wait(lambda: settled(looking))
        assert held(raw, kept.space) == {f"t{slot}" for slot in kept.templates}
        read_all(kept, cache)
        assert cache.healed == 0


def test_erased_before_a_failover_that_lost_it(kept, tmp_path):
    """The replica that becomes master has not heard of the erasure."""
    saved = ("--dir", str(tmp_path), "--dbfilename", "saved.rdb")
    with redis_servers.watched(tmp_path, *saved) as watched, running(kept, watched.url):
        cache = open_cache(kept, watched.url)
        slots = kept.enroll(10)
        read_all(kept, cache)
        with redis_servers.client(watched.master) as raw, redis_servers.client(watched.replica) as copy:
            assert raw.wait(1, 2000) == 1
            copy.save()
            watched.replica.kill()
            kept.erase(slots[3])
            wait(lambda: len(held(raw, kept.space)) == 9)
            watched.master.kill()
            watched.replica.start()
            assert len(held(copy, kept.space)) == 10
            wait(lambda: len(held(copy, kept.space)) == 9, 40)
            assert held(copy, kept.space) == {f"t{slot}" for slot in kept.templates}


def test_erased_while_nothing_ran(kept, cache, server, raw):
    slots = kept.enroll(10)
    kept.import_block()
    read_all(kept, cache)
    kept.erase(slots[3])
    with running(kept, server.url):
        wait(lambda: held(raw, kept.space) == {f"t{slot}" for slot in kept.templates} | {"b1"})
        kept.erase(slots[4])
        wait(lambda: held(raw, kept.space) == {f"t{slot}" for slot in kept.templates} | {"b1"})


def test_what_comes_back_unseen_goes_with_the_next_sweep(kept, cache, looking, raw, monkeypatch):
    (slot,) = kept.enroll(1)
    read_all(kept, cache)
    kept.erase(slot)
    looking.look()
    raw.set(f"{kept.space}:t{slot}", b"back", px=60_000)
    looking.look()
    assert held(raw, kept.space) == {f"t{slot}"}
    later = time.monotonic() + 601
    monkeypatch.setattr(time, "monotonic", lambda: later)
    looking.look()
    assert held(raw, kept.space) == set()


def test_many_galleries(kept, server, looking, raw):
    names = [f"g{i}" for i in range(30)]
    cache = open_cache(kept, server.url)
    for name in names:
        kept.record.create_gallery(new_gallery(name))
        for i in range(3):
            kept.record.enroll(name, f"keys/{name}/versions/1", f"s{i}", b"%d of %s" % (i, name.encode()), f"r{i}")
        assert len(list(cache.ciphertexts(name, [1, 2, 3]))) == 3
    looking.look()
    for name in names[::2]:
        kept.record.erase_subject(name, "s1")
    for name in names[1::6]:
        kept.record.delete_gallery(name)
    looking.look()
    spaces = {head.gallery: space_of(head) for head in kept.galleries.heads()}
    assert len(spaces) == 26
    for name in names:
        keys = {key.decode().rpartition(":")[2] for key in raw.scan_iter(f"sealface:{{{name}/*:t*")}
        wanted = {"t1", "t2", "t3"} if name in spaces else set()
        assert keys == (wanted - {"t2"} if name in names[::2] else wanted), name


def test_the_record_is_away_and_comes_back(kept, cache, server, raw):
    slots = kept.enroll(3)
    read_all(kept, cache)
    with running(kept, server.url):
        wait(lambda: raw.info("clients")["connected_clients"] > 1)
        execute(kept.path, "ALTER TABLE galleries RENAME TO away")
        time.sleep(1.2)
        execute(kept.path, "ALTER TABLE away RENAME TO galleries")
        kept.erase(slots[0])
        wait(lambda: held(raw, kept.space) == {"t2", "t3"})


async def test_it_stops_at_once(kept):
    background = invalidation(kept, "redis://127.0.0.1:1")
    background.start()
    await asyncio.to_thread(background.stop)
    assert not background._thread.is_alive()
    invalidation(kept, "redis://127.0.0.1:1").stop()  # never started
