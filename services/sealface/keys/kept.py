"""Secrets of the service itself: each made at the first start, kept wrapped."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from sealface.keys import wrapping
from sealface.storage import keys as tables
from sealface.storage.database import reading


def kept_secret(engine: sa.Engine, encryption: wrapping.KeyEncryption, name: str, make: Callable[[], bytes]) -> bytes:
    """The secret of a name.

    Args:
        engine: the key zone's database.
        encryption: what it is wrapped under.
        name: that it is kept under, and bound to.
        make: makes it at the first time.

    Raises:
        KeyEncryptionUnavailable, KeyEncryptionKeyMissing, SecretDamaged: see there.
    """
    table = tables.identity
    with reading(engine).begin() as transaction:
        query = sa.select(table.c.wrapped_secret).where(table.c.name == name)
        wrapped = transaction.execute(query).scalar_one_or_none()
    if wrapped is not None:
        return wrapping.unwrap(encryption, wrapped, name)
    secret = make()
    wrapped = wrapping.wrap(encryption, secret, name)  # outside: a provider may take its time
    with engine.begin() as transaction:
        transaction.execute(sa.insert(table).values(name=name, wrapped_secret=wrapped))
    return secret
