"""What becomes of key versions: enabled, disabled, in quarantine, destroyed (after Google Cloud KMS and OpenBao).

Each change is one transaction. Destruction comes when its time has come, in the background, and again after a restart:
the secret is overwritten and gone from the database's log.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from sealface.errors import InvalidInput, WrongState
from sealface.keys import audit
from sealface.keys.keyring import Key, Keyring, State, Version, version_name
from sealface.protocol import sealing
from sealface.runtime.looking import Looking
from sealface.storage import keys as tables
from sealface.storage.database import forget

LONGEST_UNDO = timedelta(days=120)
UNDO = timedelta(days=1)
STRIKES_COUNT_S = 3600.0
"""For how long results that were not genuine count against a version, seconds."""
_LOOK_S = 10.0
_log = structlog.get_logger("sealface.lifecycle")


class InvalidUndoWindow(InvalidInput):
    """A destruction is to be undone for less than no time, or for too long."""


class InvalidOldestVersion(InvalidInput):
    """The oldest version that opens anything would be none, or older than it is now, or newer than the primary one."""


class NotExportable(WrongState):
    """The key was made so that its secret never leaves the key zone, or that was decided since."""


class NotScheduled(WrongState):
    """The key version is not about to be destroyed."""


class KeyVersionDestroyed(WrongState):
    """The key version is destroyed, or about to be."""


class Lifecycle:
    """Changes the state of keys and of their versions.

    Args:
        engine: the key zone's database.
        keyring: all keys.
    """

    def __init__(self, engine: sa.Engine, keyring: Keyring) -> None:
        self._engine = engine
        self._keyring = keyring

    def set_oldest(self, key_id: str, number: int) -> Key:
        """Have versions before one open nothing, for good: it only ever rises.

        Raises:
            KeyNotFound, InvalidOldestVersion: see there.
        """
        table = tables.keys
        where = (table.c.id == key_id, table.c.oldest_version <= number, table.c.primary_version >= number)
        with self._engine.begin() as transaction:
            changed = transaction.execute(sa.update(table).where(*where).values(oldest_version=number))
        key = self._keyring.get(key_id)
        if not changed.rowcount:
            raise InvalidOldestVersion(
                "the oldest version that opens anything lies between what it is now and the primary version",
                oldest=key.oldest_version,
                primary=key.version,
            )
        return key

    def forbid_export(self, key_id: str) -> Key:
        """Never export a version of the key any more.

        Raises:
            KeyNotFound: see there.
        """
        with self._engine.begin() as transaction:
            transaction.execute(sa.update(tables.keys).where(tables.keys.c.id == key_id).values(exportable=False))
        return self._keyring.get(key_id)

    def enable(self, key_id: str, number: int) -> Version:
        """Have a version open again: what an operator found out of a quarantine, for one.

        Raises:
            KeyNotFound, KeyVersionDestroyed: see there.
        """
        return self._change(key_id, number, State.ENABLED)

    def disable(self, key_id: str, number: int) -> Version:
        """Have a version open nothing; errors as for `enable`."""
        return self._change(key_id, number, State.DISABLED)

    def quarantine(self, key_id: str, number: int) -> None:
        """Have a version open nothing until an operator enables it; one that is not enabled stays as it is."""
        with self._engine.begin() as transaction:
            self._quarantine(transaction, key_id, number)

    def strike(self, transaction: sa.Connection, key_id: str, number: int, most: int) -> bool:
        """Note that results that are not genuine were heard under a version; so many within an hour quarantine it.

        Returns:
            Whether this one did.
        """
        table, now = tables.strikes, time.time()
        transaction.execute(sa.delete(table).where(table.c.time < now - STRIKES_COUNT_S))
        transaction.execute(sa.insert(table).values(key=key_id, version=number, time=now))
        mine = (table.c.key == key_id, table.c.version == number)
        if transaction.execute(sa.select(sa.func.count()).where(*mine)).scalar_one() < most:
            return False
        transaction.execute(sa.delete(table).where(*mine))  # whoever enables it again begins anew
        return self._quarantine(transaction, key_id, number)

    def _quarantine(self, transaction: sa.Connection, key_id: str, number: int) -> bool:
        changed = self._update(transaction, key_id, number, (State.ENABLED,), state=State.QUARANTINED)
        if changed:
            audit.note(transaction, "QuarantineKeyVersion", version_name(key_id, number), State.QUARANTINED)
        return changed

    def schedule_destruction(self, key_id: str, number: int, undo: timedelta = UNDO) -> Version:
        """Have a version open nothing, and destroy it when it can no more be undone.

        Raises:
            KeyNotFound, KeyVersionDestroyed, InvalidUndoWindow: see there.
        """
        if not timedelta() <= undo <= LONGEST_UNDO:
            raise InvalidUndoWindow(
                f"a destruction can be undone for up to {LONGEST_UNDO.days} days: name a shorter window"
            )
        changed = self._change(key_id, number, State.DESTROY_SCHEDULED, destroyed=datetime.now(UTC) + undo)
        if not undo:
            self.destroy_due()
        return self._keyring.version(key_id, number) if not undo else changed

    def restore(self, key_id: str, number: int) -> Version:
        """Take back a destruction; the version is disabled then.

        Raises:
            KeyNotFound, NotScheduled: see there.
        """
        with self._engine.begin() as transaction:
            allowed = (State.DESTROY_SCHEDULED,)
            changed = self._update(transaction, key_id, number, allowed, state=State.DISABLED, destroyed=None)
        version = self._keyring.version(key_id, number)
        if not changed:
            raise NotScheduled("the key version is not about to be destroyed: there is nothing to take back")
        return version

    def destroy_due(self) -> int:
        """Destroy the versions whose time has come; returns how many.

        Their secrets are overwritten, and the database's log is emptied; that is done again until it succeeds.
        """
        table = tables.versions
        due = (table.c.state == State.DESTROY_SCHEDULED, table.c.destroyed <= datetime.now(UTC))
        with self._engine.begin() as transaction:
            rows = transaction.execute(sa.select(table.c.key, table.c.number).where(*due)).all()
            for key_id, number in rows:
                of_version = tables.evaluation_keys.c.key == key_id, tables.evaluation_keys.c.version == number
                transaction.execute(sa.delete(tables.evaluation_keys).where(*of_version))
                values: dict[str, Any] = {"state": State.DESTROYED, "wrapped_secret": None}
                self._update(transaction, key_id, number, (State.DESTROY_SCHEDULED,), **values)
                audit.note(transaction, "DestroyKeyVersionSecret", version_name(key_id, number), State.DESTROYED)
        for key_id, number in rows:
            self._keyring.drop_opener(key_id, number)
        return len(rows)

    def export(self, key_id: str, number: int, recipient: bytes) -> bytes:
        """The secret of a version in a box for one receiver.

        Args:
            key_id: the key.
            number: of the version.
            recipient: X25519 public key, 32 bytes.

        Raises:
            KeyNotFound, KeyClientHeld, NotExportable, KeyVersionDestroyed, InvalidRecipient: see there.
        """
        key, name = self._keyring.get(key_id), version_name(key_id, number)
        version = self._keyring.version(key_id, number)
        if version.state in (State.DESTROYED, State.DESTROY_SCHEDULED):
            raise _destroyed()
        if not key.exportable:
            raise NotExportable("the key is not exportable, and cannot be made so: make another that is")
        box = sealing.seal_secret(self._keyring.secret(key_id, number), name, recipient)
        with self._engine.begin() as transaction:  # noted before it leaves
            table = tables.versions
            where = (table.c.key == key_id, table.c.number == number)
            transaction.execute(sa.update(table).where(*where).values(exported=True))
        return box

    def _change(self, key_id: str, number: int, state: State, **values: Any) -> Version:
        allowed = (State.ENABLED, State.DISABLED, State.QUARANTINED)
        with self._engine.begin() as transaction:
            changed = self._update(transaction, key_id, number, allowed, state=state, **values)
        self._keyring.drop_opener(key_id, number)
        version = self._keyring.version(key_id, number)
        if not changed:
            raise _destroyed()
        return version

    @staticmethod
    def _update(
        transaction: sa.Connection, key_id: str, number: int, allowed: tuple[State, ...], **values: Any
    ) -> bool:
        table = tables.versions
        where = (table.c.key == key_id, table.c.number == number, table.c.state.in_(allowed))
        return transaction.execute(sa.update(table).where(*where).values(values)).rowcount > 0


def _destroyed() -> KeyVersionDestroyed:
    return KeyVersionDestroyed("the key version is destroyed, or about to be: restore it while that can be undone")


class Destroyer(Looking):
    """Destroys versions when their time has come, in the background.

    Args:
        lifecycle: of all keys.
        engine: the key zone's database, whose log is emptied.
    """

    def __init__(self, lifecycle: Lifecycle, engine: sa.Engine) -> None:
        super().__init__("destroyer", _LOOK_S)
        self._lifecycle = lifecycle
        self._engine = engine
        self._left = True  # whoever died may have left a destroyed secret in the log

    def look(self) -> None:
        """Destroy what is due, and have it out of the database's log; what does not succeed is done the next time."""
        self._left |= self._lifecycle.destroy_due() > 0
        self._left = self._left and not forget(self._engine)
