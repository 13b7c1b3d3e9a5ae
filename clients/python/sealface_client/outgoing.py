"""Messages of a streaming call, made as they are sent."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Generic, TypeVar

from sealface.errors import SealfaceError

_Item = TypeVar("_Item")
_Message = TypeVar("_Message")
_Note = TypeVar("_Note")


class Outgoing(Generic[_Item, _Message, _Note]):
    """Messages of a streaming call, made of items; one that cannot be made takes its place among the answers.

    gRPC would cancel the call for an exception, and not say which.
    """

    def __init__(self, items: Iterable[_Item], make: Callable[[_Item], Awaitable[tuple[_Message, _Note]]]) -> None:
        self._items = items
        self._make = make
        self._order: deque[SealfaceError | tuple[_Note]] = deque()
        self._broken: Exception | None = None

    async def messages(self) -> AsyncIterator[_Message]:
        """What to send."""
        try:
            for item in self._items:
                try:
                    message, note = await self._make(item)
                except SealfaceError as error:
                    self._order.append(error)
                    continue
                self._order.append((note,))
                yield message
        except Exception as error:  # of the caller's own iterable: raised by `close`
            self._broken = error

    def failed(self) -> Iterator[SealfaceError]:
        """What went wrong with the items before the one that is answered next."""
        while self._order and isinstance(error := self._order[0], SealfaceError):
            self._order.popleft()
            yield error

    def take(self) -> _Note:
        """The note of the item that is answered now."""
        item = self._order.popleft()
        if isinstance(item, SealfaceError):
            raise AssertionError("take what failed first")
        return item[0]

    def close(self) -> None:
        """Raise what ended the items early."""
        if self._broken is not None:
            raise self._broken
