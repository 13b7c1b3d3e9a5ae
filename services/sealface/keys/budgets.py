"""What callers have spent of a key: decisions and comparisons, counted apart, in the transaction of who charges.

The hour slides in steps of five minutes: time is counted in slices, and an hour is the slice under way and the twelve
before it. So no hour ever holds more than the budget, and what was spent is free again after 60 to 65 minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import Insert, insert

from sealface.protocol.policy import Budget
from sealface.storage import keys as tables

SLICE_S = 300
_SLICES = 12


@dataclass(frozen=True)
class Account:
    """Whose spending, and of which key version.

    Attributes:
        caller: id of the caller.
        key: id of the key.
        version: number of its version.
    """

    caller: str
    key: str
    version: int


@dataclass(frozen=True)
class Usage:
    """What an account has spent.

    Attributes:
        account: whose.
        decisions, comparisons: within the hour.
        decisions_of_version, comparisons_of_version: ever.
    """

    account: Account
    decisions: int
    comparisons: int
    decisions_of_version: int
    comparisons_of_version: int


def charge_decisions(transaction: sa.Connection, account: Account, budget: Budget, count: int = 1) -> bool:
    """Charge decisions; False if there are more than the budget has left, and nothing is charged."""
    by_hour = _of_key(transaction, account).decisions + count <= budget.decisions_per_hour
    if not by_hour or _of_version(transaction, account) + count > budget.decisions_per_version:
        return False
    _add(transaction, account, decisions=count)
    return True


def charge_comparisons(transaction: sa.Connection, account: Account, budget: Budget, count: int) -> bool:
    """Charge comparisons; False if there are more than the budget has left, and nothing is charged."""
    if _of_key(transaction, account).comparisons + count > budget.comparisons_per_hour:
        return False
    if count:
        _add(transaction, account, comparisons=count)
    return True


def share_of_version(transaction: sa.Connection, account: Account, budget: Budget) -> float:
    """How much of its decisions of the key version an account has had, 0 to 1."""
    return _of_version(transaction, account) / budget.decisions_per_version


def usage(connection: sa.Connection, key: str) -> list[Usage]:
    """What callers have spent of a key, by caller and version."""
    table, total = tables.spending, tables.version_spending
    hour = (
        sa.select(
            table.c.caller,
            table.c.version,
            sa.func.sum(table.c.decisions).label("decisions"),
            sa.func.sum(table.c.comparisons).label("comparisons"),
        )
        .where(table.c.key == key, table.c.slice > _now() - _SLICES - 1)
        .group_by(table.c.caller, table.c.version)
        .subquery()
    )
    query = (
        sa.select(
            total.c.caller,
            total.c.version,
            sa.func.coalesce(hour.c.decisions, 0),
            sa.func.coalesce(hour.c.comparisons, 0),
            total.c.decisions,
            total.c.comparisons,
        )
        .outerjoin(hour, sa.and_(hour.c.caller == total.c.caller, hour.c.version == total.c.version))
        .where(total.c.key == key)
        .order_by(total.c.caller, total.c.version)
    )
    return [Usage(Account(row[0], key, row[1]), *row[2:]) for row in connection.execute(query)]


def _now() -> int:
    return int(time.time()) // SLICE_S


def _of_key(transaction: sa.Connection, account: Account) -> Any:
    """Decisions and comparisons of a caller within the hour, of all versions of the key."""
    return transaction.execute(_OF_KEY, {**vars(account), "after": _now() - _SLICES - 1}).one()


def _of_version(transaction: sa.Connection, account: Account) -> int:
    return transaction.execute(_OF_VERSION, vars(account)).scalar_one_or_none() or 0


def _add(transaction: sa.Connection, account: Account, decisions: int = 0, comparisons: int = 0) -> None:
    now = _now()
    added = {**vars(account), "decisions": decisions, "comparisons": comparisons}
    transaction.execute(_FORGET, {"before": now - _SLICES})
    transaction.execute(_ADD_TO_HOUR, added | {"slice": now})
    transaction.execute(_ADD_TO_VERSION, added)


def _mine(table: sa.Table, *columns: str) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == sa.bindparam(name) for name in columns]


def _adding(table: sa.Table) -> Insert:
    row = insert(table)
    sums = {name: table.c[name] + row.excluded[name] for name in ("decisions", "comparisons")}
    return row.on_conflict_do_update(index_elements=list(table.primary_key), set_=sums)


# made once: putting a statement together takes longer than running it
_HOUR, _TOTAL = tables.spending, tables.version_spending
_OF_KEY = sa.select(
    sa.func.coalesce(sa.func.sum(_HOUR.c.decisions), 0).label("decisions"),
    sa.func.coalesce(sa.func.sum(_HOUR.c.comparisons), 0).label("comparisons"),
).where(*_mine(_HOUR, "caller", "key"), _HOUR.c.slice > sa.bindparam("after"))
_OF_VERSION = sa.select(_TOTAL.c.decisions).where(*_mine(_TOTAL, "caller", "key", "version"))
_FORGET = sa.delete(_HOUR).where(_HOUR.c.slice < sa.bindparam("before"))
_ADD_TO_HOUR, _ADD_TO_VERSION = _adding(_HOUR), _adding(_TOTAL)
