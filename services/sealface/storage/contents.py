"""A gallery as rows of the record's tables, in one order for all who take them: backups, restores, the doctor.

Rows are dictionaries by column, without the gallery's id where a table has it beside. What lies in tables by key
version is part of the row that it belongs to, as it is under the gallery's version: what gathers under another, while
the gallery is moved there, is not the gallery's yet. What comes from a damaged database or a foreign file need not be
what its column says: `misfits` tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa

from sealface.storage import record
from sealface.storage.archive import BackupDamaged
from sealface.storage.database import in_utc

Row = dict[str, Any]

TABLES = (
    record.galleries,
    record.evaluation_keys,
    record.tombstones,
    record.templates,
    record.blocks,
    record.requests,
)
"""Each after what is needed to judge it."""
_BY_VERSION = {
    record.galleries: (record.versions, ("public_key", "public_key_digest")),
    record.templates: (record.template_ciphertexts, ("ciphertext", "digest")),
    record.blocks: (record.block_ciphertexts, ("ciphertext", "digest")),
}
"""Where more columns of a table's rows lie, and which."""
_AT_ONCE = {record.galleries: 1, record.evaluation_keys: 1, record.templates: 64, record.blocks: 1}
_MOST = 1000
_1970 = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST = (1 << 63) - 1


@cache
def columns(table: sa.Table) -> tuple[sa.Column[Any], ...]:
    """The columns of a table's rows, as this module knows them; a template may have no ciphertext of its own."""
    outside = ("gallery",) if table is record.galleries else ("gallery", "key_version")
    own = [column for column in table.columns if column.name not in outside]
    beside, names = _BY_VERSION.get(table, (table, ()))
    optional = table is record.templates
    more = [sa.Column(name, beside.c[name].type, nullable=optional) for name in names]
    return (*own, *more)


def key_of(table: sa.Table) -> str:
    """The column that tells a gallery's rows of a table from each other."""
    return next(
        (column.name for column in table.primary_key.columns if column.name not in ("gallery", "key_version")), ""
    )


def stored(
    table: sa.Table, rows: Iterable[Row], gallery_id: str, key_version: str
) -> Iterator[tuple[sa.Table, list[Row]]]:
    """Rows as the record keeps them, by table."""
    of_version = {"gallery": gallery_id, "key_version": key_version}
    beside, names = _BY_VERSION.get(table, (None, ()))
    key = key_of(table)
    main, more = [], []
    for row in rows:
        own = {} if table is record.galleries else of_version if "key_version" in table.c else {"gallery": gallery_id}
        main.append({name: value for name, value in row.items() if name not in names} | own)
        if names and row[names[0]] is not None:
            keyed = {} if table is record.galleries else {key: row[key]}
            more.append({name: row[name] for name in names} | keyed | of_version)
    yield table, main
    if beside is not None:
        yield beside, more


def read(transaction: sa.Connection, gallery_id: str) -> Iterator[tuple[sa.Table, list[Row]]]:
    """A gallery's rows, a few at a time, in the order of `TABLES` and there by their keys."""
    live = sa.select(record.galleries.c.key_version).where(record.galleries.c.id == gallery_id).scalar_subquery()
    for table in TABLES:
        single = table is record.galleries
        owner, key = (table.c.id if single else table.c.gallery), table.c[key_of(table)]
        beside, names = _BY_VERSION.get(table, (table, ()))
        raw = [_raw(transaction, column, (beside if column.name in names else table).c) for column in columns(table)]
        page = (
            sa.select(*raw)
            .select_from(table)
            .where(owner == gallery_id)
            .order_by(key)
            .limit(_AT_ONCE.get(table, _MOST))
        )
        if names:
            same = sa.true() if single else beside.c[key.name] == key
            page = page.outerjoin(beside, (beside.c.gallery == owner) & (beside.c.key_version == live) & same)
        elif "key_version" in table.c:
            page = page.where(table.c.key_version == live)
        query = page
        while found := [_row(table, row) for row in transaction.execute(query)]:
            yield table, found
            last = found[-1][key.name]
            if single or not isinstance(last, key.type.python_type):  # one that is damaged: there is no next
                break
            query = page.where(key > last)


def _raw(transaction: sa.Connection, wanted: sa.Column[Any], stored_in: Any) -> sa.ColumnElement[Any]:
    """A column as it is stored: a damaged one can be read, too."""
    column: sa.Column[Any] = stored_in[wanted.name]
    if transaction.dialect.name != "sqlite":
        return column
    if isinstance(column.type, sa.String | sa.DateTime):
        return sa.cast(column, sa.LargeBinary).label(column.name)
    if isinstance(column.type, sa.Boolean):
        return sa.type_coerce(column, sa.Integer).label(column.name)
    return column


def _row(table: sa.Table, found: sa.Row[Any]) -> Row:
    row = dict(found._mapping)
    for column in columns(table):
        value = row[column.name]
        if isinstance(column.type, sa.String) and isinstance(value, bytes):
            row[column.name] = _or_itself(value, bytes.decode)
        elif isinstance(column.type, sa.DateTime) and value is not None:
            row[column.name] = _or_itself(value, _time)
        elif isinstance(column.type, sa.Boolean) and value in (0, 1):
            row[column.name] = bool(value)
    return row


def _time(value: Any) -> datetime:
    return in_utc(value if isinstance(value, datetime) else datetime.fromisoformat(value.decode()))


def _or_itself(value: Any, convert: Any) -> Any:
    try:
        return convert(value)
    except (ValueError, AttributeError):
        return value


def misfits(table: sa.Table, row: Mapping[str, Any]) -> list[str]:
    """Columns of a row that hold what theirs cannot."""
    return [column.name for column in columns(table) if not _fits(column, row[column.name])]


def _fits(column: sa.Column[Any], value: Any) -> bool:
    kind = column.type
    if value is None:
        return bool(column.nullable)
    if isinstance(kind, sa.Boolean):
        return isinstance(value, bool)
    if isinstance(kind, sa.Integer):
        most = _LARGEST if isinstance(kind, sa.BigInteger) else (1 << 31) - 1
        return type(value) is int and 0 <= value <= most
    if isinstance(kind, sa.Float):
        return type(value) is float and math.isfinite(value) and value >= 0
    if isinstance(kind, sa.LargeBinary):
        return isinstance(value, bytes) and (kind.length is None or len(value) == kind.length)
    if isinstance(kind, sa.String):
        return isinstance(value, str) and 0 < len(value) <= (kind.length or 0) and value.isascii()
    return isinstance(value, datetime) and value.tzinfo is not None


# --- rows in a backup


def encode(table: sa.Table, rows: Sequence[Row]) -> tuple[dict[str, Any], list[bytes]]:
    """Rows as an entry of an archive: bytes as its data one after the other, all else in its header."""
    data: list[bytes] = []
    packed = []
    for row in rows:
        values = [row[column.name] for column in columns(table)]
        data += [value for value in values if isinstance(value, bytes)]
        packed.append([_plain(value) for value in values])
    return {"table": table.name, "columns": [column.name for column in columns(table)], "rows": packed}, data


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, datetime):
        return {"us": (value - _1970) // timedelta(microseconds=1)}
    return value


def decode(header: Mapping[str, Any], data: memoryview) -> tuple[sa.Table, list[Row]]:
    """What `encode` made; whether values fit their columns, `misfits` tells. A column that was not known then is empty.

    Raises:
        BackupDamaged: it is nothing that `encode` makes of these tables.
    """
    table = next((table for table in TABLES if table.name == header.get("table")), None)
    named, packed = header.get("columns"), header.get("rows")
    if table is None or not isinstance(packed, list) or not packed or not isinstance(named, list):
        raise _unknown()
    own = {column.name: column for column in columns(table)}
    if not all(isinstance(name, str) for name in named) or not set(named) <= own.keys() or len(set(named)) < len(named):
        raise _unknown()
    absent = [name for name in own if name not in named]
    if not all(own[name].nullable for name in absent):
        raise _unknown()
    rows, at = [], 0
    for values in packed:
        if not isinstance(values, list) or len(values) != len(named):
            raise _unknown()
        row: Row = dict.fromkeys(absent)
        for name, value in zip(named, values, strict=True):
            row[name], at = _value(value, data, at)
        rows.append(row)
    if at != len(data):
        raise _unknown()
    return table, rows


def _value(value: Any, data: memoryview, at: int) -> tuple[Any, int]:
    if not isinstance(value, dict):
        return value, at
    if value.keys() == {"bytes"} and type(value["bytes"]) is int and 0 <= value["bytes"] <= len(data) - at:
        end = at + value["bytes"]
        return bytes(data[at:end]), end
    if value.keys() == {"us"} and type(value["us"]) is int and 0 <= value["us"] < 1 << 57:
        return _1970 + timedelta(microseconds=value["us"]), at
    raise _unknown()


def _unknown() -> BackupDamaged:
    return BackupDamaged("the backup holds what this version does not know: use the version that wrote it")
