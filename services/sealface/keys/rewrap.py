"""Every stored secret under the current key-encryption key, and its newest version; the secrets are not touched.

Row by row: each says which key it is under, those under the old and under the new one open at any time, and one that
was rewrapped is skipped the next time. So whatever ends it, it is begun again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from sealface.keys import wrapping
from sealface.keys.keyring import version_name
from sealface.keys.providers import SecretDamaged
from sealface.keys.wrapping import Envelope, KeyEncryption
from sealface.storage import keys as tables
from sealface.storage.database import forget, reading


@dataclass(frozen=True)
class Stored:
    """Where a wrapped secret is.

    Attributes:
        name: that it is bound to.
        column: holds it.
        where: of its row.
    """

    name: str
    column: sa.Column[bytes]
    where: sa.ColumnElement[bool]

    def read(self, engine: sa.Engine) -> bytes | None:
        """The wrapped secret; None if it was destroyed."""
        with reading(engine).begin() as transaction:
            found: bytes | None = transaction.execute(sa.select(self.column).where(self.where)).scalar_one_or_none()
        return found


@dataclass(frozen=True)
class Rewrapped:
    """What became of the secrets.

    Attributes:
        key: id of the current key-encryption key.
        version: its newest version.
        current: how many were under it before.
        rewrapped: how many were not; they are now, unless they were only counted.
        failed: names of those that do not open.
        unrecoverable: how many had no wrapping for the recovery key that is configured, or none is.
    """

    key: str
    version: int
    current: int
    rewrapped: int
    failed: tuple[str, ...]
    unrecoverable: int


def stored_secrets(engine: sa.Engine) -> Iterator[Stored]:
    """All wrapped secrets of the key zone."""
    versions, identity = tables.versions, tables.identity
    with reading(engine).begin() as transaction:
        query = sa.select(versions.c.key, versions.c.number).where(versions.c.wrapped_secret.is_not(None))
        numbers = transaction.execute(query.order_by(versions.c.key, versions.c.number)).all()
        names = transaction.execute(sa.select(identity.c.name).order_by(identity.c.name)).scalars().all()
    for name in names:
        yield Stored(name, identity.c.wrapped_secret, identity.c.name == name)
    for key, number in numbers:
        where = sa.and_(versions.c.key == key, versions.c.number == number)
        yield Stored(version_name(key, number), versions.c.wrapped_secret, where)


def rewrap_all(engine: sa.Engine, keys: KeyEncryption, *, only_count: bool = False) -> Rewrapped:
    """Put every secret under the current key-encryption key.

    Raises:
        KeyEncryptionUnavailable, KeyEncryptionKeyMissing: begin again later; what is done stays done.
    """
    newest, recipient = keys.probe(), keys.recipient.id if keys.recipient else ""
    current = rewrapped = unrecoverable = 0
    failed = []
    for secret in stored_secrets(engine):
        blob = secret.read(engine)
        if blob is None:
            continue
        try:
            envelope = Envelope.parse(blob)
            unrecoverable += not recipient or envelope.recovery_key != recipient
            if keys.is_current(envelope, newest):
                current += 1
                continue
            if not only_count:
                _replace(engine, secret, blob, wrapping.rewrap(keys, blob, secret.name))
            rewrapped += 1
        except SecretDamaged:
            failed.append(secret.name)
    if rewrapped and not only_count:
        forget(engine)  # what the old key still opens, as far as that is possible now
    return Rewrapped(keys.current.id, newest, current, rewrapped, tuple(failed), unrecoverable)


def _replace(engine: sa.Engine, secret: Stored, before: bytes, after: bytes) -> None:
    """Unless it is another by now: destroyed, or rewrapped by somebody else."""
    table = secret.column.table
    where = sa.and_(secret.where, secret.column == before)
    with engine.begin() as transaction:
        transaction.execute(sa.update(table).where(where).values({secret.column.name: after}))
