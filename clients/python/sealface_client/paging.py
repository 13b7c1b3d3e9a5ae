"""Listings, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from sealface_client.errors import translated

MOST = 1000
"""Items of a page, the most that a service gives."""


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


_P = TypeVar("_P", bound=_Page)


async def pages(
    service: str, method: Callable[..., Awaitable[_P]], request: Any, timeout_s: float
) -> AsyncIterator[_P]:
    """All pages of a listing.

    Args:
        service: whose it is, for what is said when it fails.
        method: of the service's stub.
        request: for the first page; its size and its token are set here.
        timeout_s: deadline of each call.

    Raises:
        ServiceError: what the service refused.
    """
    request.page_size = MOST
    while True:
        with translated(service):
            page = await method(request, timeout=timeout_s)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
