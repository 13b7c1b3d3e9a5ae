"""Results from the threads that compute them to the calls that wait for them, and searches that come together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import suppress
from contextvars import copy_context
from typing import Generic, TypeVar

from sealface.protocol.scores import Result

_T = TypeVar("_T")
_LINGER_S = 0.005  # how long a batch waits for another search


class Feed:
    """Hands the results of a pass to each of the searches that share it. Needs a running event loop.

    Args:
        results: of some blocks, by search, and so on.
        searches: how many.
    """

    def __init__(self, results: Generator[list[list[Result]]], searches: int) -> None:
        self._results = results
        self._waiting = searches
        self._loop = asyncio.get_running_loop()
        self._queues: list[asyncio.Queue[list[Result] | BaseException | None]] = [
            asyncio.Queue() for _ in range(searches)
        ]
        threading.Thread(target=copy_context().run, args=(self._pump,), name="feed", daemon=True).start()

    async def of(self, number: int) -> AsyncIterator[list[Result]]:
        """The results of one search; may be taken once. A pass that nobody waits for any more ends early."""
        try:
            while (item := await self._queues[number].get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._waiting -= 1

    def _pump(self) -> None:
        last: BaseException | None = None
        try:
            for of_searches in self._results:
                self._tell(of_searches)
                if not self._waiting:
                    break
        except BaseException as error:
            last = error
        finally:
            self._results.close()
        self._tell([last] * len(self._queues))

    def _tell(self, items: list[list[Result]] | list[BaseException | None]) -> None:
        def put() -> None:
            for queue, item in zip(self._queues, items, strict=True):
                queue.put_nowait(item)

        with suppress(RuntimeError):  # the loop is closed, and with it all who waited
            self._loop.call_soon_threadsafe(put)


async def together(items: AsyncIterator[_T], most: int) -> AsyncIterator[list[_T]]:
    """Items in order, those that have arrived by now as one batch."""
    arrived: asyncio.Queue[_T | Exception | None] = asyncio.Queue(most)

    async def read() -> None:
        last: Exception | None = None
        try:
            async for item in items:
                await arrived.put(item)
        except Exception as error:
            last = error
        await arrived.put(last)

    reader = asyncio.create_task(read())
    waiting = asyncio.create_task(arrived.get())
    try:
        while (first := await waiting) is not None:
            batch = [_raised(first)]
            waiting = asyncio.create_task(arrived.get())
            while len(batch) < most and (await asyncio.wait({waiting}, timeout=_LINGER_S))[0]:
                item = waiting.result()
                if item is None or isinstance(item, Exception):
                    break
                batch.append(item)
                waiting = asyncio.create_task(arrived.get())
            yield batch
    finally:
        reader.cancel()
        waiting.cancel()


class Eager(Generic[_T]):
    """The same items, asked for at once and not when somebody takes them.

    Args:
        items: what is asked for.
    """

    def __init__(self, items: AsyncIterator[_T]) -> None:
        self._made: asyncio.Queue[_T | Exception | None] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(items))

    async def _read(self, items: AsyncIterator[_T]) -> None:
        last: Exception | None = None
        try:
            async for item in items:
                self._made.put_nowait(item)
        except Exception as error:
            last = error
        self._made.put_nowait(last)

    def __aiter__(self) -> Eager[_T]:
        return self

    async def __anext__(self) -> _T:
        item = await self._made.get()
        if item is None:
            raise StopAsyncIteration
        return _raised(item)

    def close(self) -> None:
        """Ask for nothing more."""
        self._reader.cancel()


def _raised(item: _T | Exception) -> _T:
    if isinstance(item, Exception):
        raise item
    return item
