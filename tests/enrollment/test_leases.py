"""One process at a time works on a gallery; what an earlier one still writes is refused."""

import threading

import pytest

from sealface.enrollment import leases as module
from sealface.enrollment.leases import LeaseLost, Leases, check_fence
from sealface.enrollment.record import Record
from tests.storage.conftest import engine, new_gallery, path, postgresql_server, postgresql_url  # noqa: F401


@pytest.fixture
def door(engine):  # noqa: F811
    Record(engine).create_gallery(new_gallery())
    return engine


def fenced(engine, lease) -> bool:  # noqa: F811
    try:
        with engine.begin() as transaction:
            check_fence(transaction, lease)
    except LeaseLost:
        return False
    return True


def test_one_has_it_and_the_other_has_not(door):
    one, other = Leases(door), Leases(door)
    lease = one.take("door")
    assert (lease.gallery, lease.fence) == ("door", 1)
    assert other.take("door") is None
    assert one.take("door") is lease
    assert fenced(door, lease)


def test_there_is_none_of_a_gallery_that_is_not_there(door):
    assert Leases(door).take("hall") is None


def test_what_is_left_is_taken_by_the_next(door):
    one, other = Leases(door), Leases(door)
    first = one.take("door")
    one.release(first)
    second = other.take("door")
    assert second.fence == 2
    assert one.take("door") is None
    assert not fenced(door, first)
    assert fenced(door, second)


def test_a_silent_holder_loses_it_and_what_it_writes_is_refused(door, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    one, other = Leases(door, expires_s=10), Leases(door, expires_s=10)
    first = one.take("door")
    assert other.take("door") is None  # seen for the first time
    clock[0] += 9
    assert other.take("door") is None
    clock[0] += 2
    second = other.take("door")
    assert second.fence == 2
    assert not fenced(door, first)
    with pytest.raises(LeaseLost, match="another process"):
        one.keep(first)
    assert one.take("door") is None
    one.release(first)  # no longer its own: nothing happens
    assert other.take("door") is second
    assert fenced(door, second)


def test_a_holder_that_goes_on_keeps_it(door, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    one, other = Leases(door, expires_s=10), Leases(door, expires_s=10)
    lease = one.take("door")
    for _ in range(20):
        assert other.take("door") is None
        clock[0] += 4
        one.keep(lease)
    assert fenced(door, lease)


def test_of_many_that_come_at_once_one_gets_it(door):
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(Leases(door).take("door"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in taken if lease is not None]) == 1
