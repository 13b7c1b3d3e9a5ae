"""What Redis holds, compared with the record."""

from __future__ import annotations

import pytest

from sealface.storage.cache import space_of
from sealface.storage.entries import CacheUnavailable, Entries
from sealface.storage.redis_address import RedisAddress
from sealface.storage.sweep import Holding, Sweep
from tests.conftest import execute
from tests.storage.cached import held, read_all
from tests.storage.conftest import new_gallery

pytestmark = pytest.mark.servers


@pytest.fixture
def sweep(kept, server) -> Sweep:
    return Sweep(kept.galleries, Entries(RedisAddress.parse(server.url), 1 << 30))


def test_nothing_is_stale_where_nothing_was_erased(kept, cache, sweep, raw):
    assert sweep.drop_stale() == 0
    kept.enroll(5)
    kept.import_block()
    read_all(kept, cache)
    before = set(raw.scan_iter("*"))
    assert sweep.drop_stale() == 0
    assert set(raw.scan_iter("*")) == before
    assert len(before) == 8


def test_what_was_erased_is_dropped_and_nothing_else(kept, cache, sweep, raw):
    slots = kept.enroll(600)
    kept.import_block()
    read_all(kept, cache)
    for slot in slots[:300:3]:
        kept.erase(slot)
    assert sweep.drop_stale() == 100
    assert held(raw, kept.space) == {f"t{slot}" for slot in kept.templates} | {"b1"}
    assert raw.zcard(f"{kept.space}:used") == 501
    hits = cache.hits
    read_all(kept, cache)
    assert cache.hits == hits + 501


def test_a_replaced_block_and_sealed_templates(kept, cache, sweep, raw):
    kept.enroll(2)
    kept.import_block()
    read_all(kept, cache)
    execute(kept.path, "UPDATE blocks SET number = 7")
    execute(kept.path, "UPDATE block_ciphertexts SET number = 7")
    assert sweep.drop_stale() == 1
    assert held(raw, kept.space) == {"t1", "t2"}
    execute(kept.path, "DELETE FROM template_ciphertexts WHERE slot = 1")  # none of its own any more
    assert sweep.drop_stale() == 1
    assert held(raw, kept.space) == {"t2"}


def test_deleted_galleries_and_old_spaces(kept, cache, sweep, raw):
    kept.enroll(3)
    read_all(kept, cache)
    kept.record.create_gallery(new_gallery("gate"))
    kept.record.enroll("gate", "keys/gate/versions/1", "s", b"x", "r")
    assert dict(cache.ciphertexts("gate", [1])) == {1: b"x"}
    kept.record.delete_gallery("door")
    kept.record.create_gallery(new_gallery())
    assert sweep.drop_stale() == 3
    (gate,) = [space_of(head) for head in kept.galleries.heads() if head.gallery == "gate"]
    assert {key.decode() for key in raw.scan_iter("*")} == {f"{gate}:{name}" for name in ("t1", "used", "sizes")}


def test_what_is_none_of_ours_is_dropped_under_our_prefix_only(kept, cache, sweep, raw):
    kept.enroll(1)
    read_all(kept, cache)
    ours = set(raw.scan_iter("*"))
    odd = ["sealface:", "sealface:x", "sealface:{a:b", "sealface:{door/0/k}:t1", f"{kept.space}:x", f"{kept.space}:t01"]
    for key in (*odd, b"sealface:{\xff}:t1", "other:{door}:t1", "sealface"):
        raw.set(key, b"x")
    assert sweep.drop_stale() == len(odd) + 1
    assert set(raw.scan_iter("*")) == ours | {b"other:{door}:t1", b"sealface"}


def test_what_is_held_is_told_and_checked(kept, cache, sweep, raw):
    slots = kept.enroll(6)
    number = kept.import_block()
    read_all(kept, cache)
    assert sweep.holds("door", slots, [number, 9]) == ["b1", "t1", "t2", "t3", "t4", "t5", "t6"]
    assert sweep.holds("door", [slots[2], 99]) == ["t3"]
    assert sweep.holds("gate", slots, [number]) == []
    kept.erase(slots[0])
    raw.set(f"{kept.space}:t3", b"damaged")
    raw.delete(f"{kept.space}:t4")
    raw.set("sealface:{door/9/old}:t5", b"x")
    wanted = Holding(("b1", "t2", "t5", "t6"), ("t1", "t5"), ("t3",))
    assert sweep.check("door") == sweep.check("door") == wanted
    assert sweep.check("door", drop=True) == wanted
    assert sweep.check("door") == Holding(("b1", "t2", "t5", "t6"), (), ())
    assert sweep.holds("door", slots) == ["t2", "t5", "t6"]
    kept.record.delete_gallery("door")
    assert sweep.check("door", drop=True).stale == ("b1", "t2", "t5", "t6")
    assert list(raw.scan_iter("*")) == []


def test_what_cannot_be_asked_is_not_said_to_be_gone(kept, server):
    nowhere = Sweep(kept.galleries, Entries(RedisAddress.parse("redis://127.0.0.1:1"), 1))
    for ask in (nowhere.drop_stale, lambda: nowhere.holds("door", [1]), lambda: nowhere.check("door")):
        with pytest.raises(CacheUnavailable):
            ask()
