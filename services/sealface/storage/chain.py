"""Audit logs in a database: append-only tables of the lines of `protocol.audit`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa

from sealface.protocol.audit import BEGINNING, Detail, Entry, digest

_PAGE = 1000
_LAST = (1 << 31) - 1
_LOCK = 5350  # of whoever writes a log, in PostgreSQL


def chain_table(name: str, metadata: sa.MetaData) -> sa.Table:
    """The table of a log. `act` is the line's own, for whoever looks for entries of a kind."""
    return sa.Table(
        name,
        metadata,
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("act", sa.String(64), nullable=False, index=True),
        sa.Column("line", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
    )


@cache
def _last(table: sa.Table) -> sa.Select[Any]:
    """Made once: putting a statement together takes longer than running it."""
    return sa.select(table.c.number, table.c.digest).order_by(table.c.number.desc()).limit(1)


def last(connection: sa.Connection, table: sa.Table) -> tuple[int, bytes]:
    """Number and digest of the last entry; 0 and `BEGINNING` if there is none."""
    row = connection.execute(_last(table)).one_or_none()
    return (0, BEGINNING) if row is None else (row.number, row.digest)


def append(
    transaction: sa.Connection,
    table: sa.Table,
    *,
    actor: str,
    act: str,
    resource: str = "",
    outcome: str,
    begun: int = 0,
    request: bytes | None = None,
    detail: Mapping[str, Detail] | None = None,
) -> int:
    """Write an entry; returns its number. Other writers of the log wait from here on until the transaction ends.

    Args:
        transaction: it is written, or not, with what else is done in it.
        table: the log.
        actor: see `Entry`.
        act: see `Entry`.
        resource: see `Entry`.
        outcome: see `Entry`.
        begun: see `Entry`.
        request: the request's bytes, of which the log keeps a digest.
        detail: see `Entry`.
    """
    if transaction.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        transaction.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    number, previous = last(transaction, table)
    entry = Entry(
        number=number + 1,
        time_us=time.time_ns() // 1000,
        actor=actor,
        act=act,
        resource=resource,
        outcome=outcome,
        begun=begun,
        request="" if request is None else hashlib.sha256(request).hexdigest(),
        detail=detail or {},
        previous=previous.hex(),
    )
    line = entry.line()
    row = {"number": entry.number, "act": act, "line": line, "digest": digest(line)}
    transaction.execute(sa.insert(table), row)
    return entry.number


def page(connection: sa.Connection, table: sa.Table, after: int, until: int = _LAST, act: str = "") -> list[Any]:
    """The next rows behind a number, up to another, of one act if one is named."""
    query = sa.select(table).where(table.c.number > after, table.c.number <= until).order_by(table.c.number)
    return list(connection.execute((query.where(table.c.act == act) if act else query).limit(_PAGE)))


def line_of(row: Any) -> bytes:
    """The line of a row; empty where there are no bytes any more."""
    return row.line if isinstance(row.line, bytes) else b""


def lines(connection: sa.Connection, table: sa.Table, after: int = 0, act: str = "") -> Iterator[bytes]:
    """All lines behind a number, of one act if one is named.

    One whose row says another act or digest than it has itself comes out empty, which no line is.
    """
    while rows := page(connection, table, after, act=act):
        for row in rows:
            line = line_of(row)
            honest = row.digest == digest(line) and b'"act":"%s"' % str(row.act).encode() in line
            yield line if honest else b""
        after = rows[-1].number
