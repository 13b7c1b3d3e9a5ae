"""Results from threads to calls that wait, and searches that come together."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from sealface.matching import feed
from sealface.matching.feed import Eager, Feed, together


class Broken(Exception):
    """What goes wrong."""


async def taken(items):
    return [item async for item in items]


async def until(true):
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


def tiles(count, searches, fails=False):
    """`count` tiles for some searches: names instead of results, which a feed does not look into."""
    for tile in range(count):
        yield [[f"{tile}-{search}"] for search in range(searches)]
    if fails:
        raise Broken


# --- Feed


@pytest.mark.parametrize("searches", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
async def test_each_search_gets_its_own_results_in_order(searches, count):
    feeding = Feed(tiles(count, searches), searches)
    found = await asyncio.gather(*(taken(feeding.of(number)) for number in range(searches)))
    assert found == [[[f"{tile}-{number}"] for tile in range(count)] for number in range(searches)]


async def test_one_search_does_not_wait_for_another():
    feeding = Feed(tiles(20, 2), 2)
    assert len(await taken(feeding.of(1))) == 20
    assert len(await taken(feeding.of(0))) == 20


async def test_results_arrive_while_others_are_computed():
    go = threading.Event()

    def slow():
        yield [["first"]]
        go.wait(20)
        yield [["second"]]

    results = Feed(slow(), 1).of(0)
    assert await anext(results) == ["first"]
    assert not go.is_set()
    go.set()
    assert await taken(results) == [["second"]]


async def test_they_are_computed_beside_the_loop():
    threads = []

    def noted():
        threads.append(threading.current_thread())
        yield [["x"]]

    assert await taken(Feed(noted(), 1).of(0)) == [["x"]]
    assert threads[0] is not threading.current_thread()


async def test_what_goes_wrong_is_every_searchs_after_what_came_before():
    feeding = Feed(tiles(3, 2, fails=True), 2)
    for number in (1, 0):
        found = []
        with pytest.raises(Broken):
            async for results in feeding.of(number):
                found.append(results)
        assert len(found) == 3


async def test_a_search_that_gives_up_stops_no_other():
    go = threading.Event()

    def slow():
        yield from tiles(2, 2)
        go.wait(20)
        yield from tiles(2, 2)

    feeding = Feed(slow(), 2)
    first = feeding.of(0)
    await anext(first)
    await first.aclose()
    waiting = asyncio.create_task(taken(feeding.of(1)))
    await asyncio.sleep(0)
    go.set()
    assert len(await waiting) == 4


async def test_a_call_that_is_cancelled_leaves_the_pass_to_the_others():
    go = threading.Event()

    def slow():
        yield from tiles(1, 2)
        go.wait(20)
        yield from tiles(1, 2)

    feeding = Feed(slow(), 2)
    given_up = asyncio.create_task(taken(feeding.of(0)))
    await asyncio.sleep(0.02)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    go.set()
    assert len(await taken(feeding.of(1))) == 2


async def test_the_pass_ends_also_when_nobody_takes_it():
    """What it holds, a search under way among it, is given back."""
    ended = threading.Event()

    def noted():
        try:
            yield from tiles(3, 1)
        finally:
            ended.set()

    Feed(noted(), 1)
    assert await asyncio.to_thread(ended.wait, 10)


def test_a_loop_that_is_gone_is_no_failure(recwarn):
    go, pumped = threading.Event(), []

    def slow():
        go.wait(20)
        yield [["late"]]

    async def give_up():
        Feed(slow(), 1)
        pumped.extend(thread for thread in threading.enumerate() if thread.name == "feed")

    asyncio.run(give_up())
    go.set()
    for thread in pumped:
        thread.join(10)
        assert not thread.is_alive()
    assert len(pumped) == 1
    assert not recwarn.list


# --- together


class Arriving:
    """Items that arrive when a test says so."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.read = 0

    def put(self, *items):
        for item in items:
            self.queue.put_nowait(item)

    async def __aiter__(self):
        while (item := await self.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self.read += 1
            yield item


async def test_what_has_arrived_is_one_batch_in_order(monkeypatch):
    monkeypatch.setattr(feed, "_LINGER_S", 0.2)
    items = Arriving()
    items.put(1, 2, 3)
    batches = together(items, 16)
    assert await anext(batches) == [1, 2, 3]
    items.put(4)
    assert await anext(batches) == [4]
    items.put(5, 6, None)
    assert await anext(batches) == [5, 6]
    assert await taken(batches) == []


async def test_a_batch_has_no_more_than_may_be_together(monkeypatch):
    monkeypatch.setattr(feed, "_LINGER_S", 0.2)
    items = Arriving()
    items.put(*range(7), None)
    assert await taken(together(items, 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 8])
async def test_every_item_comes_once_however_they_arrive(count):
    items = Arriving()
    items.put(*range(count), None)
    found = await taken(together(items, 4))
    assert [item for batch in found for item in batch] == list(range(count))
    assert all(1 <= len(batch) <= 4 for batch in found)


async def test_nobody_waits_for_a_search_that_does_not_come():
    items = Arriving()
    batches = together(items, 16)
    for i in range(3):
        items.put(i)
        assert await asyncio.wait_for(anext(batches), 10) == [i]
    await batches.aclose()


async def test_items_slower_than_the_wait_lose_nothing():
    items = Arriving()

    async def send():
        for i in range(60):
            items.put(i)
            await asyncio.sleep(feed._LINGER_S * (0.5 + (i % 5) / 4))
        items.put(None)

    sending = asyncio.create_task(send())
    found = await taken(together(items, 16))
    await sending
    assert [item for batch in found for item in batch] == list(range(60))


async def test_no_more_is_read_than_is_asked_for():
    """A caller that sends faster than is searched is held back."""
    items = Arriving()
    items.put(*range(100))
    batches = together(items, 4)
    assert await anext(batches) == [0, 1, 2, 3]
    await asyncio.sleep(0.05)
    assert items.read <= 4 + 4 + 2  # and one in each hand
    await batches.aclose()


async def test_a_stream_that_breaks_off_is_an_error_after_what_came_before():
    items = Arriving()
    batches = together(items, 4)
    items.put(1)
    assert await anext(batches) == [1]
    items.put(Broken())
    with pytest.raises(Broken):
        await anext(batches)


async def test_who_gives_up_leaves_no_reader_behind():
    items = Arriving()
    items.put(1)
    batches = together(items, 4)
    assert await anext(batches) == [1]
    tasks = asyncio.all_tasks()
    await batches.aclose()
    await until(lambda: len(asyncio.all_tasks()) < len(tasks))


# --- Eager


async def test_it_is_asked_for_before_anybody_takes_it():
    made = []

    async def items():
        for i in range(3):
            made.append(i)
            yield i

    answer = Eager(items())
    await until(lambda: made == [0, 1, 2])
    assert await taken(answer) == [0, 1, 2]


async def test_an_error_waits_until_it_is_reached():
    async def items():
        yield 1
        raise Broken

    answer = Eager(items())
    await asyncio.sleep(0.01)
    assert await anext(answer) == 1
    with pytest.raises(Broken):
        await anext(answer)


async def test_an_error_that_nobody_takes_disturbs_nobody(caplog):
    async def items():
        raise Broken
        yield

    answer = Eager(items())
    await asyncio.sleep(0.01)
    del answer
    gc.collect()
    await asyncio.sleep(0.01)
    assert not caplog.records


@pytest.mark.parametrize("taken", [0, 1])
async def test_an_answer_that_is_given_up_is_worked_on_no_more(taken):
    """Also one that nobody began to take: a call that ends in its first answer has others under way."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def items():
        try:
            yield 1
            began.set()
            await asyncio.sleep(60)
        finally:
            ended.set()

    answer = Eager(items())
    for _ in range(taken):
        assert await anext(answer) == 1
    await began.wait()
    answer.close()
    await asyncio.wait_for(ended.wait(), 10)
    answer.close()  # or was done


async def test_an_answer_that_is_done_may_be_closed():
    async def items():
        yield 1

    answer = Eager(items())
    assert await taken(answer) == [1]
    answer.close()
