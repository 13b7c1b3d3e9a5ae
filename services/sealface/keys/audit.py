"""The key zone's audit log: who did what with keys, before it was done and after (after OpenBao).

It holds no score, no distance and no slot: a claimed slot is there as an HMAC under a key of its own, wrapped like any
secret, so that whoever has the log alone cannot tell who was verified, and the operator can look somebody up.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial

import sqlalchemy as sa

from sealface.errors import SealfaceError
from sealface.keys import wrapping
from sealface.keys.kept import kept_secret
from sealface.protocol.audit import BEGUN, Detail, Head
from sealface.storage import chain
from sealface.storage import keys as tables
from sealface.storage.database import reading

SERVICE = "service"
"""The actor of what the key service does by itself."""
_PSEUDONYMS = "audit pseudonym key"
_PSEUDONYM_BYTES = 16


def begin(
    transaction: sa.Connection,
    actor: str,
    act: str,
    resource: str,
    request: bytes,
    detail: Mapping[str, Detail] | None = None,
) -> int:
    """Write that something is about to be done; returns the entry's number, for `end`."""
    return chain.append(
        transaction,
        tables.audit,
        actor=actor,
        act=act,
        resource=resource,
        outcome=BEGUN,
        request=request,
        detail=detail,
    )


def end(
    transaction: sa.Connection,
    begun: int,
    actor: str,
    act: str,
    resource: str,
    outcome: str,
    detail: Mapping[str, Detail] | None = None,
) -> None:
    """Write what became of it."""
    chain.append(
        transaction,
        tables.audit,
        actor=actor,
        act=act,
        resource=resource,
        outcome=outcome,
        begun=begun,
        detail=detail,
    )


def note(
    transaction: sa.Connection,
    act: str,
    resource: str,
    outcome: str,
    detail: Mapping[str, Detail] | None = None,
) -> None:
    """Write what the service has done by itself, in the transaction that does it."""
    chain.append(transaction, tables.audit, actor=SERVICE, act=act, resource=resource, outcome=outcome, detail=detail)


def outcome_of(error: BaseException) -> str:
    """How an act ended that did not succeed; never an error's own text."""
    if isinstance(error, SealfaceError):
        return error.reason
    return "CANCELLED" if isinstance(error, asyncio.CancelledError | GeneratorExit) else type(error).__name__


class AuditLog:
    """Reads the log, and makes the pseudonyms in it.

    Args:
        engine: the key zone's database.
        encryption: what the key of pseudonyms is wrapped under.
    """

    def __init__(self, engine: sa.Engine, encryption: wrapping.KeyEncryption) -> None:
        self._engine = engine
        self._encryption = encryption
        self._pseudonyms: bytes

    def unseal(self) -> None:
        """Open the key of pseudonyms; it is made at the first time.

        Raises:
            KeyEncryptionUnavailable, KeyEncryptionKeyMissing, SecretDamaged: see there.
        """
        self._pseudonyms = kept_secret(self._engine, self._encryption, _PSEUDONYMS, partial(os.urandom, 32))

    def transaction(self) -> AbstractContextManager[sa.Connection]:
        """A transaction to write entries in."""
        return self._engine.begin()

    def head(self) -> Head:
        """The last entry, not signed."""
        with reading(self._engine).begin() as connection:
            return Head(*chain.last(connection, tables.audit))

    def pages(self, after: int, act: str = "") -> Iterator[list[bytes]]:
        """Lines behind an entry's number, of one act if one is named, up to the last one of now."""
        until = self.head().number
        while after < until:
            with reading(self._engine).begin() as connection:
                rows = chain.page(connection, tables.audit, after, until, act)
            if not rows:
                return
            yield [chain.line_of(row) for row in rows]
            after = rows[-1].number

    def pseudonym(self, gallery: str, slot: int) -> str:
        """What stands in the log for a slot of a gallery: HMAC-SHA-256, 16 bytes of it in hexadecimal digits."""
        message = f"{gallery}\0{slot}".encode()
        return hmac.digest(self._pseudonyms, message, hashlib.sha256)[:_PSEUDONYM_BYTES].hex()
