"""The compute zone's audit log: who enrolled and erased whom, and what else was done to galleries.

An entry is written in the transaction of its act: neither is there without the other. What takes long has one where it
is begun and one where it ends. Subjects are there as HMACs, so that the log may outlive them (docs/adr/0024).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar

import sqlalchemy as sa

from sealface.protocol.audit import Detail, Head
from sealface.storage import chain
from sealface.storage import record as tables
from sealface.storage.database import reading

SERVICE = "service"
"""The actor of what the service does by itself."""
OPERATOR = "operator"
"""The actor of a command on the record itself."""
DONE = "ok"
ACTOR: ContextVar[str] = ContextVar("actor", default=SERVICE)
"""Who acts, for the entries that are written meanwhile."""
_PSEUDONYM_BYTES = 16


def note(
    transaction: sa.Connection,
    act: str,
    gallery_id: str,
    detail: Mapping[str, Detail] | None = None,
    *,
    outcome: str = DONE,
    begun: int = 0,
    actor: str = "",
) -> int:
    """Write an entry of what a transaction does; returns its number.

    Other writers of the log wait from here on until the transaction ends: let it be the last statement.

    Args:
        transaction: it does what the entry says.
        act: what is done.
        gallery_id: to which gallery.
        detail: what else is to be known of it.
        outcome: `begun` for what has an end of its own.
        begun: of an end, number of the entry of its beginning.
        actor: who does it; whoever acts now, if left out.
    """
    return chain.append(
        transaction,
        tables.audit,
        actor=actor or ACTOR.get(),
        act=act,
        resource=f"galleries/{gallery_id}",
        outcome=outcome,
        begun=begun,
        detail=detail,
    )


def pseudonym(connection: sa.Connection, gallery_id: str, subject: str) -> str:
    """What stands in the log for a subject: HMAC-SHA-256, 16 bytes of it in hexadecimal digits."""
    return pseudonyms(connection, gallery_id, [subject])[0]


def pseudonyms(connection: sa.Connection, gallery_id: str, subjects: Iterable[str]) -> list[str]:
    """Those of several subjects."""
    key: bytes = connection.execute(sa.select(tables.pseudonym_key.c.secret)).scalar_one()
    messages = (f"{gallery_id}/{subject}".encode() for subject in subjects)  # no gallery's id holds a slash
    return [hmac.digest(key, message, hashlib.sha256)[:_PSEUDONYM_BYTES].hex() for message in messages]


class AuditLog:
    """Reads the log.

    Args:
        engine: the record.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._reading = reading(engine)

    def head(self) -> Head:
        """The last entry; not signed: keep it where whoever may write the record cannot."""
        with self._reading.begin() as connection:
            return Head(*chain.last(connection, tables.audit))

    def lines(self, after: int = 0, act: str = "") -> Iterator[bytes]:
        """The lines behind an entry's number, of one act if one is named."""
        with self._reading.begin() as connection:
            yield from chain.lines(connection, tables.audit, after, act)

    def pseudonym(self, gallery_id: str, subject: str) -> str:
        """See `pseudonym`."""
        with self._reading.begin() as connection:
            return pseudonym(connection, gallery_id, subject)
