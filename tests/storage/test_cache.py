"""Ciphertexts through real Redis servers: what they hold, what they hold wrongly, and what they do not answer."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from deploy import servers
from sealface.storage import entries as entries_module
from sealface.storage.cache import Cache
from sealface.storage.database import RecordUnavailable
from sealface.storage.digests import TemplateDamaged
from sealface.storage.entries import CacheUnavailable, Entries
from sealface.storage.galleries import Galleries
from sealface.storage.redis_address import RedisAddress
from tests.conftest import execute
from tests.storage import redis_servers
from tests.storage.cached import SIZE, Kept, counts, held, open_cache, read_all
from tests.storage.conftest import new_gallery

pytestmark = pytest.mark.servers
# --- hits and misses


def test_what_was_read_once_comes_from_redis(kept, cache, server):
    kept.enroll(150)  # several batches
    kept.import_block()
    read_all(kept, cache)
    assert counts(cache) == (0, 151, 0, 0)
    kept.lose_ciphertexts()
    read_all(kept, cache)
    assert counts(cache) == (151, 151, 0, 0)
    another = open_cache(kept, server.url)
    read_all(kept, another)
    assert counts(another) == (151, 0, 0, 0)


def test_a_part_that_is_missing_is_read_and_held(kept, cache):
    first = kept.enroll(10)
    assert len(dict(cache.ciphertexts("door", first))) == 10
    kept.enroll(5)
    read_all(kept, cache)
    assert counts(cache) == (10, 15, 0, 0)


def test_it_answers_as_the_record_does(kept, cache):
    (slot,) = kept.enroll(1)
    number = kept.import_block()
    imported = kept.blocks[number][0][0]
    for _ in range(2):
        assert cache.block("door", 99) is cache.block("none", 1) is None
        assert list(cache.ciphertexts("none", [slot])) == list(cache.ciphertexts("door", [])) == []
        # as they come, without those that have none of their own
        assert list(cache.ciphertexts("door", iter([imported, 99, slot]))) == [(slot, kept.templates[slot])]
        assert cache.block("door", number)[1] == kept.blocks[number][1]


def test_what_is_damaged_in_the_record_is_no_less_so(kept, cache):
    kept.enroll(2)
    kept.lose_ciphertexts()
    with pytest.raises(TemplateDamaged):
        list(cache.ciphertexts("door", [1]))


def test_a_record_that_is_away_is_not_answered_for(kept, cache):
    kept.enroll(3)
    read_all(kept, cache)
    kept.galleries._engine.dispose()
    kept.path.rename(kept.path.with_suffix(".away"))
    kept.path.mkdir()  # cannot be opened
    with pytest.raises(RecordUnavailable):
        list(cache.ciphertexts("door", kept.templates))
    with pytest.raises(RecordUnavailable):
        cache.block("door", 1)


def test_an_erased_template_is_not_found_though_redis_has_it(kept, cache, raw):
    slots = kept.enroll(3)
    read_all(kept, cache)
    kept.erase(slots[1])
    assert raw.exists(f"{kept.space}:t{slots[1]}")
    assert dict(cache.ciphertexts("door", slots)) == kept.templates
    assert len(kept.templates) == 2


def test_a_template_erased_while_it_is_read_is_not_left_in_redis(kept, cache, raw, monkeypatch):
    slots = kept.enroll(3)
    read = Galleries.ciphertexts

    def and_erase(self, *arguments):
        found = list(read(self, *arguments))
        kept.erase(slots[1])
        return iter(found)

    monkeypatch.setattr(Galleries, "ciphertexts", and_erase)
    assert len(dict(cache.ciphertexts("door", slots))) == 3  # it was there when it was read
    assert [raw.exists(f"{kept.space}:t{slot}") for slot in slots] == [1, 0, 1]


# --- what Redis holds wrongly


@pytest.mark.parametrize("name", ["t2", "b1"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "empty", "foreign", "swapped", "list", "hash"])
def test_a_wrong_value_is_not_used_but_overwritten(kept, cache, raw, name, damage):
    kept.enroll(3)
    kept.import_block()
    read_all(kept, cache)
    key = f"{kept.space}:{name}"
    right = raw.get(key)
    flipped = right[:1000] + bytes([right[1000] ^ 1]) + right[1001:]
    values = {"flipped": flipped, "truncated": right[:-1], "longer": b"x" + right, "foreign": os.urandom(len(right))}
    values["swapped"] = raw.get(f"{kept.space}:t3")
    if damage in values:
        raw.set(key, values[damage])
    elif damage == "empty":
        raw.set(key, b"")
    else:
        raw.delete(key)
        raw.rpush(key, b"x") if damage == "list" else raw.hset(key, "x", b"y")
    with capture_logs() as logs:
        read_all(kept, cache)
    lost = damage == "empty"  # as good as none
    assert counts(cache) == (3, 4 + lost, 0 if lost else 1, 0)
    if not lost:
        assert [log["log_level"] for log in logs] == ["warning"]
        assert right[:8].hex() not in str(logs) and str(right[:8])[2:-1] not in str(logs)
    assert raw.get(key) == right
    kept.lose_ciphertexts()
    read_all(kept, cache)


def test_books_of_another_type_are_begun_anew(kept, cache, raw):
    kept.enroll(3)
    read_all(kept, cache)
    for book, value in (("used", "list"), ("sizes", "string")):
        raw.delete(f"{kept.space}:{book}")
        raw.rpush(f"{kept.space}:{book}", b"x") if value == "list" else raw.set(f"{kept.space}:{book}", b"x")
        read_all(kept, cache)
        assert raw.zcard(f"{kept.space}:used") == 3
        assert raw.hget(f"{kept.space}:sizes", "") == str(3 * SIZE).encode()
    assert cache.errors == cache.healed == 0


def test_all_of_it_wrong_is_all_right(kept, cache, raw):
    """Every value becomes another's: nothing that is read is anything but the record's."""
    kept.enroll(20)
    read_all(kept, cache)
    keys = [f"{kept.space}:t{slot}" for slot in kept.templates]
    values = raw.mget(keys)
    raw.mset(dict(zip(keys, values[1:] + values[:1], strict=True)))
    read_all(kept, cache)
    assert (cache.hits, cache.healed) == (0, 20)
    read_all(kept, cache)
    assert (cache.hits, cache.healed) == (20, 20)


# --- namespaces


def test_a_gallery_made_anew_takes_nothing_of_the_old_one(kept, cache, raw):
    kept.enroll(3)
    kept.import_block()
    read_all(kept, cache)
    before = kept.space
    old = kept.blocks.pop(1)[1]
    kept.record.delete_gallery("door")
    kept.templates.clear()
    assert cache.block("door", 1) is None
    kept.record.create_gallery(new_gallery())
    kept.enroll(2)
    number = kept.import_block()
    assert number == 1  # numbers of blocks begin again
    assert kept.space != before
    read_all(kept, cache)
    assert cache.block("door", 1)[1] != old
    assert cache.healed == 0


NEXT = "keys/door/versions/2"


def test_another_key_version_is_another_space(kept, cache, raw):
    kept.enroll(2)
    read_all(kept, cache)
    before = kept.space
    fresh = {slot: os.urandom(SIZE) for slot in kept.templates}  # as a rotation encrypts them anew
    for slot, data in fresh.items():
        digest = hashlib.sha256(data).digest()
        execute(kept.path, "INSERT INTO template_ciphertexts VALUES (?, ?, ?, ?, ?)", "door", NEXT, slot, data, digest)
    execute(kept.path, "UPDATE galleries SET key_version = ?", NEXT)
    kept.templates = fresh
    read_all(kept, cache)
    assert kept.space != before
    assert counts(cache) == (0, 4, 0, 0)
    assert raw.exists(f"{before}:t1") and raw.exists(f"{kept.space}:t1")


def test_galleries_do_not_share(kept, cache):
    kept.enroll(2)
    kept.record.create_gallery(new_gallery("gate"))
    data = os.urandom(SIZE)
    kept.record.enroll("gate", "keys/gate/versions/1", "s", data, "r")
    read_all(kept, cache)
    for _ in range(2):
        assert dict(cache.ciphertexts("gate", [1, 2])) == {1: data}
    assert counts(cache) == (1, 3, 0, 0)


# --- bounds


def test_the_least_recently_used_leave(kept, server, raw):
    slots = kept.enroll(12)
    cache = open_cache(kept, server.url, 10 * SIZE)

    def read(*wanted):
        assert len(dict(cache.ciphertexts("door", wanted))) == len(wanted)
        time.sleep(0.005)  # times are in milliseconds

    for slot in slots[:10]:
        read(slot)
    read(slots[0])
    read(slots[10])
    assert held(raw, kept.space) == {f"t{slot}" for slot in slots[:11]} - {f"t{slots[1]}"}
    read(slots[11])
    assert held(raw, kept.space) == {f"t{slot}" for slot in slots} - {f"t{slots[1]}", f"t{slots[2]}"}
    assert cache.errors == 0


def test_the_bound_holds_whoever_writes(kept, server, raw):
    kept.enroll(200)
    number = kept.import_block(size=12 * SIZE)
    caches = [open_cache(kept, server.url, 40 * SIZE) for _ in range(4)]

    def use(turn: int) -> None:
        cache = caches[turn % 4]
        wanted = list(kept.templates)[turn * 7 % 180 :][:20]
        assert dict(cache.ciphertexts("door", wanted)) == {slot: kept.templates[slot] for slot in wanted}
        assert cache.block("door", number)[1] == kept.blocks[number][1]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(60)))
    total = sum(raw.strlen(f"{kept.space}:{name}") for name in held(raw, kept.space))
    assert 20 * SIZE < total <= 40 * SIZE
    assert int(raw.hget(f"{kept.space}:sizes", "")) == total
    assert raw.zcard(f"{kept.space}:used") == len(held(raw, kept.space))


def test_what_is_larger_than_the_bound_puts_nothing_out(kept, server, raw):
    kept.enroll(3)
    kept.import_block(size=5 * SIZE)
    cache = open_cache(kept, server.url, 4 * SIZE)
    read_all(kept, cache)
    read_all(kept, cache)
    assert held(raw, kept.space) == {"t1", "t2", "t3"}


def test_nothing_is_kept_for_ever(kept, cache, raw, monkeypatch):
    kept.enroll(3)
    kept.import_block()
    read_all(kept, cache)
    keys = list(raw.scan_iter("*"))
    assert len(keys) == 6
    assert all(entries_module.LEASE_MS < raw.pttl(key) <= entries_module.KEPT_MS for key in keys)
    monkeypatch.setattr(entries_module, "KEPT_MS", 300)
    read_all(kept, cache)
    redis_servers.wait(lambda: not list(raw.scan_iter("*")))
    read_all(kept, cache)
    assert (cache.hits, cache.misses) == (4, 8)


def test_what_nobody_lived_to_look_at_again_goes_after_its_lease(kept, server, raw, monkeypatch):
    """A process dies between reading a template and looking whether it is still there; meanwhile it is erased."""
    (slot,) = kept.enroll(1)
    monkeypatch.setattr(entries_module, "LEASE_MS", 400)
    entries = Entries(RedisAddress.parse(server.url), 1 << 20)
    entries.put(kept.space, {f"t{slot}": kept.templates[slot]})
    kept.erase(slot)
    assert 0 < raw.pttl(f"{kept.space}:t{slot}") <= 400
    redis_servers.wait(lambda: not raw.exists(f"{kept.space}:t{slot}"))


# --- Redis is not as it should be


def test_redis_is_killed_and_comes_back_empty(kept):
    kept.enroll(20)
    kept.import_block()
    with servers.redis() as server, capture_logs() as logs:
        cache = open_cache(kept, server.url)
        read_all(kept, cache)
        server.kill()
        read_all(kept, cache)
        assert cache.errors >= 1
        server.start()
        redis_servers.wait(lambda: reads(kept, cache) and cache.misses >= 2 * 21)  # all of it is there again
        before = cache.hits
        read_all(kept, cache)
        assert cache.hits == before + 21
    changes = [log["event"] for log in logs]
    assert changes == ["Redis is not used", "Redis is used again"]


def reads(kept: Kept, cache: Cache) -> bool:
    read_all(kept, cache)
    return True


def test_redis_was_never_there(kept):
    kept.enroll(70)
    kept.import_block()
    port = servers._free_port()
    cache = open_cache(kept, f"redis://:pa55word@127.0.0.1:{port}")
    with capture_logs() as logs:
        read_all(kept, cache)
    assert counts(cache) == (0, 0, 0, 1)  # it was asked once
    assert [log["event"] for log in logs] == ["Redis is not used"]
    assert "pa55word" not in str(logs) and str(port) not in str(logs)


def test_redis_is_emptied(kept, cache, raw):
    kept.enroll(20)
    kept.import_block()
    read_all(kept, cache)
    raw.flushall()
    read_all(kept, cache)
    assert counts(cache) == (0, 42, 0, 0)
    read_all(kept, cache)
    assert counts(cache) == (21, 42, 0, 0)


def test_redis_stops_answering(kept):
    kept.enroll(200)  # several batches, that do not wait one after another
    with servers.redis() as server, capture_logs() as logs:
        cache = open_cache(kept, server.url)
        read_all(kept, cache)
        server.pause()
        try:
            read_all(kept, cache)
            assert cache.errors == 1
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: read_all(kept, cache), range(8)))
        finally:
            server.resume()
        redis_servers.wait(lambda: reads(kept, cache) and cache.hits >= 200)
        assert [log["event"] for log in logs] == ["Redis is not used", "Redis is used again"]
        before = counts(cache)
        read_all(kept, cache)
        assert counts(cache) == (before[0] + 200, *before[1:])


def test_redis_is_full(kept, raw, server):
    kept.enroll(40, 60_000)
    cache = open_cache(kept, server.url)
    dict(cache.ciphertexts("door", range(1, 5)))
    raw.config_set("maxmemory-policy", "noeviction")
    raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 100_000)
    with capture_logs() as logs:
        for _ in range(3):
            read_all(kept, cache)
    assert cache.errors >= 1
    assert cache.hits >= 4 * 3  # what is there is there
    assert [log["event"] for log in logs] == ["Redis takes nothing more"]
    raw.config_set("maxmemory", 0)
    time.sleep(entries_module._RETRY_S)
    read_all(kept, cache)
    before = cache.misses
    read_all(kept, cache)
    assert cache.misses == before


def test_redis_evicts_by_itself(kept, raw, server):
    kept.enroll(40, 60_000)
    raw.config_set("maxmemory-policy", "allkeys-lru")
    raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 1_000_000)
    cache = open_cache(kept, server.url)
    for _ in range(4):
        read_all(kept, cache)
    assert cache.misses > 40
    raw.config_set("maxmemory-policy", "noeviction")
    raw.config_set("maxmemory", 0)
    for _ in range(2):
        read_all(kept, cache)
    assert held(raw, kept.space) == {f"t{slot}" for slot in kept.templates}
    assert int(raw.hget(f"{kept.space}:sizes", "")) == 40 * 60_000


def test_redis_may_only_be_read(kept):
    """As a replica that was a master until now."""
    kept.enroll(20)
    with servers.redis() as server:
        cache = open_cache(kept, server.url)
        read_all(kept, cache)
        with redis_servers.client(server) as one:
            one.execute_command("REPLICAOF", "127.0.0.1", servers._free_port())
            read_all(kept, cache)
            assert cache.errors >= 1
            one.execute_command("REPLICAOF", "NO", "ONE")
        redis_servers.wait(lambda: reads(kept, cache) and cache.hits >= 20)


def test_redis_is_loading(kept, tmp_path):
    """It answers LOADING to everything while it reads what it kept."""
    kept.enroll(20)
    with servers.redis("--enable-debug-command", "yes", "--key-load-delay", "20000") as server:
        cache = open_cache(kept, server.url)
        read_all(kept, cache)
        with redis_servers.client(server) as one:
            one.mset({f"x{i}": b"x" * 100 for i in range(300)})
        thread = ThreadPoolExecutor(1)
        with redis_servers.client(server, socket_timeout=60) as one:
            done = thread.submit(one.execute_command, "DEBUG", "RELOAD")
            time.sleep(0.3)
            for _ in range(5):
                read_all(kept, cache)
            assert cache.errors >= 1
            done.result()
        thread.shutdown()


# --- who may ask


def test_a_password_is_needed(kept, caplog):
    kept.enroll(5)
    with servers.redis("--requirepass", "pa55:w/rd") as server, caplog.at_level(logging.DEBUG), capture_logs() as logs:
        where = f"127.0.0.1:{server.port}/0"
        right = open_cache(kept, f"redis://:pa55%3Aw%2Frd@{where}")
        for _ in range(2):
            read_all(kept, right)
        assert counts(right) == (5, 5, 0, 0)
        for url in (f"redis://:other-secret@{where}", f"redis://{where}"):
            wrong = open_cache(kept, url)
            read_all(kept, wrong)
            assert (wrong.hits, wrong.errors) == (0, 1)
        with redis_servers.client(server, password="pa55:w/rd") as one:
            one.execute_command("ACL", "SETUSER", "ann", "on", ">anns", "~sealface:*", "+@all")
        named = open_cache(kept, f"redis://ann:anns@{where}")
        read_all(kept, named)
        assert counts(named) == (5, 0, 0, 0)
    told = caplog.text + str(logs)
    assert "pa55" not in told and "secret" not in told and "anns" not in told


def test_a_user_without_rights_is_no_error(kept):
    kept.enroll(5)
    with servers.redis() as server:
        with redis_servers.client(server) as one:
            one.execute_command("ACL", "SETUSER", "eve", "on", ">eves", "~other:*", "+@all")
        cache = open_cache(kept, f"redis://eve:eves@127.0.0.1:{server.port}")
        for _ in range(3):
            read_all(kept, cache)
        assert cache.hits == 0 and cache.errors >= 1


def test_over_tls(kept, tmp_path):
    kept.enroll(5)
    kept.import_block()
    certificate, key, root = redis_servers.certificates(tmp_path)
    port = servers._free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(root), "--requirepass", "s3cret"]
    with servers.redis(*options, "--tls-auth-clients", "yes"):
        own = f"ssl_certfile={certificate}&ssl_keyfile={key}"
        where = f"rediss://:s3cret@127.0.0.1:{port}/0"
        cache = open_cache(kept, f"{where}?ssl_ca_certs={root}&{own}")
        for _ in range(2):
            read_all(kept, cache)
        assert counts(cache) == (6, 6, 0, 0)
        unknown = open_cache(kept, f"{where}?{own}")  # signed by nobody that this machine knows
        nameless = open_cache(kept, f"{where}?ssl_ca_certs={root}")  # and the server asks who we are
        plain = open_cache(kept, f"redis://:s3cret@127.0.0.1:{port}/0")
        for refused in (unknown, nameless, plain):
            read_all(kept, refused)
            assert (refused.hits, refused.misses) == (0, 0) and refused.errors >= 1
        elsewhere = open_cache(kept, f"{where.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={root}&{own}")
        read_all(kept, elsewhere)  # the certificate is another name's
        assert elsewhere.hits == 0 and elsewhere.errors >= 1


# --- many servers


def test_a_cluster(kept):
    """A gallery is on one node: it is lost with that, and the others go on."""
    kept.enroll(100)
    kept.import_block()
    with redis_servers.cluster() as nodes, capture_logs() as logs:
        listed = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        cache = open_cache(kept, f"redis+cluster://{listed}")
        for _ in range(2):
            read_all(kept, cache)
        assert counts(cache) == (101, 101, 0, 0)
        keys = []
        for node in nodes:
            with redis_servers.client(node) as one:
                keys.append(one.dbsize())
        assert sorted(keys) == [0, 0, 103]
        entries = cache._entries
        assert len(entries.keys()) == 103
        assert len(entries.servers()) == 3
        entries.drop(kept.space, ["t1", "b1"])
        assert len(entries.keys()) == 101
        entries.clear(kept.space)
        assert entries.keys() == []
        read_all(kept, cache)
        home = nodes[keys.index(103)]
        home.kill()
        for _ in range(3):
            read_all(kept, cache)
        assert cache.errors >= 1
        home.start()
        before = cache.hits
        redis_servers.wait(lambda: reads(kept, cache) and cache.hits >= before + 101)
    assert {log["event"] for log in logs} == {"Redis is not used", "Redis is used again"}


def test_slots_that_move_within_a_cluster(kept):
    """MOVED is followed, as it is told."""
    kept.enroll(20)
    with redis_servers.cluster() as nodes:
        cache = open_cache(kept, f"redis+cluster://127.0.0.1:{nodes[0].port}")
        for _ in range(2):
            read_all(kept, cache)
        clients = [redis_servers.client(node) for node in nodes]
        slot = clients[0].execute_command("CLUSTER KEYSLOT", kept.space)
        home = next(one for one in clients if one.dbsize())
        other = next(one for one in clients if not one.dbsize())
        home.execute_command("FLUSHALL")
        for one in clients:
            one.execute_command("CLUSTER SETSLOT", slot, "NODE", other.execute_command("CLUSTER MYID").decode())
        for _ in range(3):
            read_all(kept, cache)
            time.sleep(0.4)
        before = cache.hits
        redis_servers.wait(lambda: reads(kept, cache) and cache.hits >= before + 20)
        assert other.dbsize() == 22
        for one in clients:
            one.close()


def test_a_sentinel_names_another_master(kept, tmp_path):
    kept.enroll(50)
    kept.import_block()
    with redis_servers.watched(tmp_path) as watched:
        cache = open_cache(kept, watched.url)
        read_all(kept, cache)
        with redis_servers.client(watched.master) as one:
            assert one.wait(1, 2000) == 1  # the replica has it
        old = watched.master.port
        watched.master.kill()
        while watched.master_port() == old:
            read_all(kept, cache)
            time.sleep(0.1)
        before = cache.hits
        redis_servers.wait(lambda: reads(kept, cache) and cache.hits >= before + 51)
        assert cache.healed == 0


def test_no_sentinel_answers(kept):
    kept.enroll(3)
    cache = open_cache(kept, f"redis+sentinel://127.0.0.1:{servers._free_port()}/faces")
    read_all(kept, cache)
    assert counts(cache) == (0, 0, 0, 1)


def test_who_asks_entries_is_told(kept):
    entries = Entries(RedisAddress.parse(f"redis://127.0.0.1:{servers._free_port()}"), 1)
    for ask in (
        entries.servers,
        entries.keys,
        lambda: entries.get("s", {"a": 1}),
        lambda: entries.keep("s", ["a"]),
        lambda: entries.drop("s", ["a"]),
        lambda: entries.clear("s"),
        lambda: entries.unlink([b"a"]),
    ):
        with pytest.raises(CacheUnavailable):
            ask()
