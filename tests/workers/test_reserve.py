"""Zeros are drawn ahead, as many as a search needs, and while none waits."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from sealface.workers import reserve
from sealface.workers.reserve import Reserve


class Pool:
    """Counts what is drawn; a test may hold the next draw up."""

    def __init__(self):
        self.ready = 0
        self.drawn = 0
        self.may_draw = threading.Event()
        self.may_draw.set()
        self.drawing = threading.Event()

    def __len__(self):
        return self.ready

    def add_one(self):
        self.drawing.set()
        assert self.may_draw.wait(20)
        self.ready += 1
        self.drawn += 1

    def take(self, count):
        self.ready -= count


class Evaluator:
    def __init__(self):
        self.zeros = Pool()


@pytest.fixture
def filling():
    running = Reserve()
    running.start()
    yield running
    running.stop()


def until(true):
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def stays(pool, count):
    """It has that many, and gets no more."""
    until(lambda: len(pool) == count)
    time.sleep(0.05)
    assert len(pool) == count


def searched(reserve, evaluator, results):
    reserve.want(evaluator, results)
    with reserve.waiting():
        pass


def test_as_many_are_drawn_as_a_search_needs(filling):
    evaluator = Evaluator()
    searched(filling, evaluator, 7)
    stays(evaluator.zeros, 7)


def test_the_largest_search_counts(filling):
    evaluator = Evaluator()
    for results in (3, 9, 5, 0):
        searched(filling, evaluator, results)
    stays(evaluator.zeros, 9)


def test_there_is_a_most(filling, monkeypatch):
    monkeypatch.setattr(reserve, "_MOST", 12)
    evaluator = Evaluator()
    searched(filling, evaluator, 10_000)
    stays(evaluator.zeros, 12)


def test_what_a_search_took_is_drawn_again(filling):
    evaluator = Evaluator()
    searched(filling, evaluator, 5)
    stays(evaluator.zeros, 5)
    with filling.waiting():
        evaluator.zeros.take(4)
    stays(evaluator.zeros, 5)
    assert evaluator.zeros.drawn == 9


def test_every_gallery_has_its_own(filling):
    evaluators = [Evaluator() for _ in range(4)]
    for number, evaluator in enumerate(evaluators):
        searched(filling, evaluator, number)
    for number, evaluator in enumerate(evaluators):
        stays(evaluator.zeros, number)


def test_nothing_is_drawn_while_a_search_waits(filling):
    evaluator = Evaluator()
    with filling.waiting():
        filling.want(evaluator, 5)
        with filling.waiting():
            pass
        stays(evaluator.zeros, 0)  # one of two is still under way
    stays(evaluator.zeros, 5)


def test_a_search_that_fails_waits_no_more(filling):
    evaluator = Evaluator()
    filling.want(evaluator, 3)
    with pytest.raises(ZeroDivisionError), filling.waiting():
        _ = 1 // 0
    stays(evaluator.zeros, 3)


def test_a_search_stops_the_drawing_after_the_one_that_was_begun(filling):
    evaluator = Evaluator()
    evaluator.zeros.may_draw.clear()
    searched(filling, evaluator, 100)
    assert evaluator.zeros.drawing.wait(10)
    with filling.waiting():  # it need not wait for that one
        evaluator.zeros.may_draw.set()
        stays(evaluator.zeros, 1)
    stays(evaluator.zeros, 100)


def test_a_gallery_that_is_gone_is_not_drawn_for(filling):
    gone, kept = Evaluator(), Evaluator()
    gone.zeros.may_draw.clear()
    searched(filling, gone, 50)
    assert gone.zeros.drawing.wait(10)
    searched(filling, kept, 3)
    held, pool = weakref.ref(gone), gone.zeros
    del gone
    pool.may_draw.set()
    stays(kept.zeros, 3)
    until(lambda: held() is None)
    assert pool.ready == 1


def test_a_gallery_without_a_search_under_way_is_let_go(filling):
    evaluator = Evaluator()
    searched(filling, evaluator, 4)
    stays(evaluator.zeros, 4)
    held = weakref.ref(evaluator)
    del evaluator
    gc.collect()
    assert held() is None


def test_stopping_ends_the_thread_whatever_is_missing():
    running = Reserve()
    running.start()
    evaluator = Evaluator()
    evaluator.zeros.may_draw.clear()
    searched(running, evaluator, 500)
    assert evaluator.zeros.drawing.wait(10)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    evaluator.zeros.may_draw.set()
    stopping.join(10)
    assert not stopping.is_alive()
    assert len(evaluator.zeros) < 500
    assert not running._thread.is_alive()
    running.stop()
    searched(running, evaluator, 600)  # a search that is still under way fails for nothing


def test_one_that_was_never_started_stops_too():
    running = Reserve()
    searched(running, Evaluator(), 5)
    running.stop()
