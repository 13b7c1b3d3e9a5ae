"""An id for each call: on every log line of it, in its trailing metadata, and on the calls to other services it makes.

A caller may choose it, if it is of a form that holds nothing else: 32 hexadecimal digits, as trace ids are, or a UUID.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

from structlog.contextvars import bind_contextvars, get_contextvars

REQUEST_ID = "x-request-id"
"""In metadata, both ways."""
_FIELD = "request_id"
_OPAQUE = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

Metadata = tuple[tuple[str, str], ...]


def begin(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The id of a call from its metadata, or a fresh one; what is done in this task, and in its threads, carries it."""
    sent = dict(metadata or ()).get(REQUEST_ID)
    known = isinstance(sent, str) and _OPAQUE.fullmatch(sent)
    request_id = str(sent) if known else secrets.token_hex(16)
    bind_contextvars(**{_FIELD: request_id})
    return request_id


def passed_on() -> Metadata:
    """Metadata of a call to another service; empty where no call is handled."""
    found = get_contextvars().get(_FIELD)
    return ((REQUEST_ID, found),) if found else ()
