from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from sealface.cipher.layout import Layout
from sealface.enrollment.record import GalleryExists
from sealface.storage.digests import TemplateDamaged
from sealface.storage.galleries import Change, Galleries, GalleryNotFound
from tests.storage.conftest import dump, execute, new_gallery

KEY = "keys/door/versions/1"


@pytest.fixture
def door(record, galleries):
    record.create_gallery(new_gallery())
    return galleries.get("door")


def test_a_gallery_comes_back(record, galleries):
    new = new_gallery(public_key=b"the public key")
    record.create_gallery(new)
    found = galleries.get("door")
    assert (found.id, found.key_version, found.managed, found.layout) == ("door", new.key_version, True, new.layout)
    assert (found.privacy_level, found.fusion, found.recognition) == (2, 1, b"recognition")
    assert (found.first_epoch, found.epoch) == (0, 0)
    assert isinstance(found.layout, Layout)
    assert abs(datetime.now(UTC) - found.created) < timedelta(seconds=10)
    assert galleries.public_key("door") == b"the public key"


@pytest.mark.parametrize("read", ["get", "public_key", "epochs"])
def test_an_unknown_gallery_is_not_found(galleries, read):
    with pytest.raises(GalleryNotFound):
        getattr(galleries, read)("none")
    with pytest.raises(GalleryNotFound):
        galleries.changes("none", 0)


def test_pages_of_galleries(record, galleries):
    for name in ("c", "a", "d", "b"):
        record.create_gallery(new_gallery(name))
    assert [gallery.id for gallery in galleries.page("", 3)] == ["a", "b", "c"]
    assert [gallery.id for gallery in galleries.page("c", 3)] == ["d"]
    assert galleries.page("d", 3) == []


def test_templates_by_slot_and_subject(door, record, galleries):
    stored = [
        record.enroll("door", KEY, subject, data, subject + str(i))
        for i, (subject, data) in enumerate([("bob", b"b1"), ("alice", b"a1"), ("bob", b"b2")])
    ]
    assert [(one.slot, one.epoch) for one in stored] == [(1, 1), (2, 2), (3, 3)]
    assert galleries.counts("door") == (2, 3)
    assert galleries.subjects("door", "", 10) == ["alice", "bob"]
    assert galleries.subjects("door", "alice", 10) == ["bob"]
    assert galleries.subject("door", "bob") == [(1, stored[0].created), (3, stored[2].created)]
    assert galleries.subject("door", "nobody") == []
    assert list(galleries.ciphertexts("door", [3, 1, 99])) == [(1, b"b1"), (3, b"b2")]
    assert list(galleries.ciphertexts("other", [1])) == []


def test_many_ciphertexts_are_read_in_order(door, record, galleries):
    for i in range(300):
        record.enroll("door", KEY, f"s{i}", b"%d" % i, f"r{i}")
    found = list(galleries.ciphertexts("door", range(300, 0, -1)))
    assert found == [(i + 1, b"%d" % i) for i in range(300)]


def test_a_damaged_ciphertext_is_not_given_out(door, record, galleries, engine):
    for i in range(3):
        record.enroll("door", KEY, "s", b"data%d" % i, f"r{i}")
    assert execute(engine, "UPDATE template_ciphertexts SET ciphertext = ? WHERE slot = 2", b"dataX") == 1
    with pytest.raises(TemplateDamaged):
        list(galleries.ciphertexts("door", [1, 2, 3]))
    assert list(galleries.ciphertexts("door", [1, 3])) == [(1, b"data0"), (3, b"data2")]


def test_a_damaged_public_key_is_not_given_out(door, galleries, engine):
    assert execute(engine, "UPDATE gallery_versions SET public_key = ?", b"publiX") == 1
    with pytest.raises(TemplateDamaged):
        galleries.public_key("door")


def test_changes_since_an_epoch(door, record, galleries):
    assert galleries.changes("door", 0) == (0, 0, [])
    record.enroll("door", KEY, "a", b"1", "r1")
    record.enroll("door", KEY, "b", b"2", "r2")
    assert galleries.changes("door", 0) == (0, 2, [Change(1, "a", 1), Change(2, "b", 2)])
    record.erase_subject("door", "a")
    record.enroll("door", KEY, "c", b"3", "r3")
    assert galleries.changes("door", 0) == (0, 4, [Change(2, "b", 2), Change(1, None, 3), Change(3, "c", 4)])
    assert galleries.changes("door", 2) == (0, 4, [Change(1, None, 3), Change(3, "c", 4)])
    assert galleries.changes("door", 4) == (0, 4, [])
    assert galleries.changes("door", 0, limit=1)[2] == [Change(2, "b", 2)]
    assert galleries.epochs("door") == (0, 4)


def test_slots_and_epochs_rise_over_a_gallery_made_anew(door, record, galleries):
    for i in range(3):
        record.enroll("door", KEY, f"s{i}", b"x", f"r{i}")
    record.erase_subject("door", "s2")
    assert record.delete_gallery("door") == 2
    with pytest.raises(GalleryNotFound):
        galleries.get("door")
    for _ in range(2):  # an empty gallery in between loses nothing
        record.create_gallery(new_gallery(key="another"))
        first = galleries.get("door").first_epoch
        assert first > 4
        if _ == 0:
            record.delete_gallery("door")
    again = record.enroll("door", "keys/another/versions/1", "s0", b"y", "r0")  # the request ids are forgotten
    assert again.slot == 4
    assert again.epoch == first + 1
    assert galleries.changes("door", 0) == (first, again.epoch, [Change(4, "s0", again.epoch)])


def test_nothing_of_a_deleted_gallery_stays_but_its_counters(door, record, engine):
    record.enroll("door", KEY, "a", b"the ciphertext", "the-request")
    record.enroll("door", KEY, "b", b"the ciphertext", "another")
    record.erase_subject("door", "b")
    record.delete_gallery("door")
    rows = dump(engine)
    assert rows.pop("retired_galleries") == [("door", 3, 3)]
    assert not any(rows.values())


def test_concurrent_enrolments_get_slots_and_epochs_of_their_own(door, record, galleries):
    def enrol(i):
        return record.enroll("door", KEY, f"s{i % 7}", b"%d" % i, f"r{i}")

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(enrol, range(60)))
    assert sorted(one.slot for one in stored) == list(range(1, 61))
    assert sorted(one.epoch for one in stored) == list(range(1, 61))
    assert galleries.counts("door") == (7, 60)
    assert galleries.epochs("door") == (0, 60)
    data = dict(galleries.ciphertexts("door", range(1, 61)))
    assert {one.slot: b"%d" % i for i, one in enumerate(stored)} == data


def test_one_request_in_many_threads_is_stored_once(door, record, galleries):
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: record.enroll("door", KEY, "a", b"x", "same"), range(16)))
    assert len(set(stored)) == 1
    assert galleries.counts("door") == (1, 1)


def test_one_gallery_in_many_threads_is_made_once(record, galleries):
    def create(i):
        try:
            record.create_gallery(new_gallery(key=f"key{i}"))
        except GalleryExists:
            return None
        return f"keys/key{i}/versions/1"

    with ThreadPoolExecutor(8) as pool:
        made = [name for name in pool.map(create, range(8)) if name]
    assert made == [galleries.get("door").key_version]


def test_a_second_reader_sees_what_was_committed(door, record, engine):
    other = Galleries(engine)
    record.enroll("door", KEY, "a", b"x", "r")
    assert other.counts("door") == (1, 1)


def test_a_template_admitted_under_another_key_is_not_stored(door, record, engine):
    before = dump(engine)
    with pytest.raises(GalleryNotFound):
        record.enroll("door", "keys/other/versions/1", "a", b"x", "r")
    assert dump(engine) == before
