"""Keys and their versions."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.scheme import KeyMaterial, Opener, Scheme
from sealface.errors import AlreadyExists, DataCorrupted, InvalidInput, NotFound, WrongState
from sealface.keys import wrapping
from sealface.protocol.policy import Budget, Policy
from sealface.storage import keys as tables
from sealface.storage.database import in_utc, reading

_OPENERS = 64  # held at once


class KeyNotFound(NotFound):
    """No such key or key version."""


class KeyExists(AlreadyExists):
    """There is a key of that id."""


class KeyClientHeld(WrongState):
    """The key service does not hold this key's secret."""


class KeyManaged(WrongState):
    """The key service holds this key, and makes its material itself."""


class KeyVersionInactive(WrongState):
    """The key version opens nothing: it is disabled, older than the oldest that may, or destroyed, or is to be."""


class KeyVersionQuarantined(WrongState):
    """The key version opens nothing: results that were not genuine were to be decided on."""


class StaleVersion(WrongState):
    """The policy was changed since it was read."""


class InvalidGaloisElement(InvalidInput):
    """No Galois element of the parameter set."""


class PublicMaterialDamaged(DataCorrupted):
    """A stored public or evaluation key does not match its digest."""


class Custody(StrEnum):
    """Who holds the secret key."""

    MANAGED = "managed"
    CLIENT_HELD = "client_held"


class State(StrEnum):
    """Where a key version is in its life."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    QUARANTINED = "quarantined"
    DESTROY_SCHEDULED = "destroy_scheduled"
    DESTROYED = "destroyed"


@dataclass(frozen=True)
class Version:
    """A key version as others may know it.

    Attributes:
        key, number: its name.
        state: where it is in its life.
        parameter_set: name of its parameter set.
        security_bits: of that set.
        quantum_secure: whether that is against quantum computers.
        public_key_digest: SHA-256 of its public key.
        created: when it was made.
        destroyed: when it is to be destroyed, or was.
        exported: whether its secret has ever left the key zone.
    """

    key: str
    number: int
    state: State
    parameter_set: str
    security_bits: int
    quantum_secure: bool
    public_key_digest: bytes
    created: datetime
    destroyed: datetime | None
    exported: bool


@dataclass(frozen=True)
class Key:
    """A key as others may know it.

    Attributes:
        id: the key's id.
        custody: who holds the secret.
        layout: parameter set, dimension, metric and largest norm.
        policy: the rule of its decisions.
        version: number of the version that encrypts.
        public_key_digest: SHA-256 of that version's public key.
        created: when.
        oldest_version: number of the oldest version that opens anything.
        exportable: whether the secret of a managed key may be given to an operator.
    """

    id: str
    custody: Custody
    layout: Layout
    policy: Policy
    version: int
    public_key_digest: bytes
    created: datetime
    oldest_version: int
    exportable: bool


def version_name(key_id: str, number: int) -> str:
    """`keys/{key}/versions/{version}`."""
    return f"keys/{key_id}/versions/{number}"


class Keyring:
    """All keys of the service.

    Args:
        engine: the key zone's database.
        scheme: the cipher.
        encryption: the key-encryption keys that secrets are wrapped under.
    """

    def __init__(self, engine: sa.Engine, scheme: Scheme, encryption: wrapping.KeyEncryption) -> None:
        self._engine = engine
        self._scheme = scheme
        self._encryption = encryption
        self._openers: OrderedDict[tuple[str, int, datetime], Opener] = OrderedDict()
        self._lock = threading.Lock()

    def create(self, key_id: str, layout: Layout, policy: Policy, *, exportable: bool = False) -> Key:
        """A managed key with a fresh secret; in the place of one whose versions are all destroyed, numbers go on.

        Raises:
            KeyExists: the id is taken.
            KeyEncryptionUnavailable, KeyEncryptionKeyMissing: nothing was made.
        """
        material = self._scheme.generate(layout.parameters)
        with reading(self._engine).begin() as transaction:
            number = _next_number(transaction, key_id)
        wrapped = self._wrap(key_id, number, material)  # outside: a provider may take its time
        with self._engine.begin() as transaction:
            if _insert_key(transaction, key_id, Custody.MANAGED, layout, policy, exportable) != number:
                raise _exists()
            _insert_managed(transaction, key_id, number, layout, material, wrapped)
        return self.get(key_id)

    def register(self, key_id: str, layout: Layout, policy: Policy, public: bytes) -> Key:
        """A client-held key: public material alone.

        Raises:
            KeyExists: the id is taken.
            MalformedCiphertext: the public key is none of the parameter set.
        """
        self._scheme.check_public(layout.parameters, public)
        with self._engine.begin() as transaction:
            number = _insert_key(transaction, key_id, Custody.CLIENT_HELD, layout, policy, False)
            _insert_version(transaction, key_id, number, layout, public, None)
        return self.get(key_id)

    def rotate(self, key_id: str, current: int) -> Key:
        """Make the next version of a managed key, the primary one from now on.

        Args:
            key_id: the key.
            current: the version that is the primary one; if another is, nothing is made.

        Raises:
            KeyNotFound, KeyClientHeld: see there.
            KeyEncryptionUnavailable, KeyEncryptionKeyMissing: nothing was made.
        """
        key = self.get(key_id)
        if key.custody is not Custody.MANAGED:
            raise KeyClientHeld(
                "the key is held by its owner: rotate it with the client library, which registers the next version"
            )
        if key.version != current:
            return key
        material = self._scheme.generate(key.layout.parameters)
        wrapped = self._wrap(key_id, current + 1, material)
        with self._engine.begin() as transaction:
            if _advance(transaction, key_id, current):
                _insert_managed(transaction, key_id, current + 1, key.layout, material, wrapped)
        return self.get(key_id)

    def register_version(self, key_id: str, current: int, public: bytes) -> Key:
        """The next version of a client-held key; see `rotate`.

        Raises:
            KeyNotFound, KeyManaged, MalformedCiphertext: see there.
        """
        key = self.get(key_id)
        if key.custody is not Custody.CLIENT_HELD:
            raise KeyManaged("the key service makes this key's versions itself: rotate it")
        self._scheme.check_public(key.layout.parameters, public)
        with self._engine.begin() as transaction:
            if _advance(transaction, key_id, current):
                _insert_version(transaction, key_id, current + 1, key.layout, public, None)
        return self.get(key_id)

    def add_evaluation_key(self, key_id: str, number: int, element: int, material: bytes) -> None:
        """Evaluation material of a client-held key; sending the same again is harmless.

        Raises:
            KeyNotFound, KeyManaged, InvalidGaloisElement, MalformedCiphertext: see there.
        """
        key = self.get(key_id)
        if key.custody is not Custody.CLIENT_HELD:
            raise KeyManaged("the key service makes this key's evaluation keys itself: nothing to upload")
        if number != key.version:
            raise KeyNotFound("no such key version: list the key and use its primary version")
        if element % 2 == 0 or not 1 < element < 2 * key.layout.parameters.degree:
            raise InvalidGaloisElement("a Galois element is odd, above 1 and below 2N")
        self._scheme.check_evaluation(key.layout.parameters, material)
        with self._engine.begin() as transaction:
            _insert_evaluation_key(transaction, key_id, number, element, material)

    def get(self, key_id: str) -> Key:
        """A key.

        Raises:
            KeyNotFound: there is none of that id.
        """
        with reading(self._engine).begin() as transaction:
            row = transaction.execute(self._select().where(tables.keys.c.id == key_id)).one_or_none()
        if row is None:
            raise KeyNotFound("no such key: create it, or list the keys there are")
        return _key(row)

    def page(self, after: str, limit: int) -> list[Key]:
        """Keys by id, from the first after that one."""
        query = self._select().where(tables.keys.c.id > after).order_by(tables.keys.c.id).limit(limit)
        with reading(self._engine).begin() as transaction:
            return [_key(row) for row in transaction.execute(query)]

    def update_policy(self, key_id: str, policy: Policy) -> Key:
        """Replace a key's policy; `policy.version` is the one it replaces.

        Raises:
            KeyNotFound: there is no such key.
            StaleVersion: the policy was changed since.
        """
        with self._engine.begin() as transaction:
            stored = transaction.execute(
                sa.select(tables.keys.c.policy).where(tables.keys.c.id == key_id)
            ).scalar_one_or_none()
            if stored is None:
                raise KeyNotFound("no such key: create it, or list the keys there are")
            if stored["version"] != policy.version:
                raise StaleVersion("the policy has changed since it was read: read it again and repeat the change")
            changed = replace(policy, version=policy.version + 1)
            transaction.execute(sa.update(tables.keys).where(tables.keys.c.id == key_id).values(policy=asdict(changed)))
        return self.get(key_id)

    def public_key(self, key_id: str, number: int) -> bytes:
        """The public key of a version.

        Raises:
            KeyNotFound: there is no such version.
            PublicMaterialDamaged: the stored key does not match its digest.
        """
        row = self._version(key_id, number)
        return _checked(row.public_key, row.public_key_digest)

    def evaluation_keys(self, key_id: str, number: int) -> Iterator[tuple[int, bytes]]:
        """Galois element and key, by element; one at a time.

        Raises:
            KeyNotFound: there is no such version.
        """
        self._version(key_id, number)
        table = tables.evaluation_keys
        where = sa.and_(table.c.key == key_id, table.c.version == number)
        with reading(self._engine).begin() as transaction:
            elements = transaction.execute(
                sa.select(table.c.galois_element).where(where).order_by(table.c.galois_element)
            ).scalars()
            found = list(elements)
        for element in found:
            with reading(self._engine).begin() as transaction:
                query = sa.select(table.c.material, table.c.digest).where(where, table.c.galois_element == element)
                row = transaction.execute(query).one()
            yield element, _checked(row.material, row.digest)

    def version(self, key_id: str, number: int) -> Version:
        """A version.

        Raises:
            KeyNotFound: there is no such version.
        """
        query = _SELECT_VERSION.where(tables.versions.c.key == key_id, tables.versions.c.number == number)
        with reading(self._engine).begin() as transaction:
            row = transaction.execute(query).one_or_none()
        if row is None:
            raise _no_version()
        return _version(row)

    def versions(self, key_id: str, before: int, limit: int) -> list[Version]:
        """Versions of a key below a number, the newest first.

        Raises:
            KeyNotFound: there is no such key.
        """
        self.get(key_id)
        number = tables.versions.c.number
        query = _SELECT_VERSION.where(tables.versions.c.key == key_id, number < before)
        with reading(self._engine).begin() as transaction:
            return [_version(row) for row in transaction.execute(query.order_by(number.desc()).limit(limit))]

    def tally(self) -> list[tuple[str, State, int]]:
        """How many versions of each key are in each state."""
        table = tables.versions
        query = sa.select(table.c.key, table.c.state, sa.func.count()).group_by(table.c.key, table.c.state)
        with reading(self._engine).begin() as transaction:
            return [(key, State(state), count) for key, state, count in transaction.execute(query)]

    @property
    def opened(self) -> int:
        """How many versions have their secret in memory."""
        with self._lock:
            return len(self._openers)

    def opener(self, key_id: str, number: int) -> Opener:
        """Opens results made under a version; cached as long as it may.

        Raises:
            KeyNotFound: there is no such version.
            KeyClientHeld: the secret is not here.
            KeyVersionInactive, KeyVersionQuarantined: see there.
        """
        key, version = self.get(key_id), self.version(key_id, number)
        if key.custody is not Custody.MANAGED:
            raise KeyClientHeld("the key is held by its owner, who opens scores with the client library")
        if version.state is not State.ENABLED or number < key.oldest_version:
            if version.state is State.QUARANTINED:
                raise KeyVersionQuarantined("the key version is in quarantine: an operator must look, and enable it")
            raise KeyVersionInactive(
                "the key version opens nothing: use the key's primary version, or have an operator enable it",
                state=version.state.value,
                oldest=key.oldest_version,
            )
        # the time it was made tells the version from another of that name, should the database be put back
        held = (key_id, number, version.created)
        with self._lock:
            if held in self._openers:
                self._openers.move_to_end(held)
                return self._openers[held]
        opener = self._scheme.opener(key.layout.under(number), self.secret(key_id, number))
        with self._lock:
            self._openers[held] = opener
            if len(self._openers) > _OPENERS:
                self._openers.popitem(last=False)
        return opener

    def drop_opener(self, key_id: str, number: int) -> None:
        """Hold no secret longer than it is wanted: the state of a version has changed.

        Those of other versions stay: the provider of the key-encryption key may be away.
        """
        with self._lock:
            for held in [held for held in self._openers if held[:2] == (key_id, number)]:
                del self._openers[held]

    def secret(self, key_id: str, number: int) -> bytes:
        """The packed secret key of a version, for those who may have it.

        Raises:
            KeyNotFound, KeyClientHeld, KeyVersionInactive, SecretDamaged: see there.
            KeyEncryptionUnavailable, KeyEncryptionKeyMissing: try again later.
        """
        table = tables.versions
        query = sa.select(table.c.wrapped_secret).where(table.c.key == key_id, table.c.number == number)
        with reading(self._engine).begin() as transaction:
            wrapped = transaction.execute(query).scalar_one_or_none()
        if wrapped is None:
            raise KeyVersionInactive("the key version has no secret here: it is destroyed, or held by its owner")
        return wrapping.unwrap(self._encryption, wrapped, version_name(key_id, number))

    def _version(self, key_id: str, number: int) -> Any:
        table = tables.versions
        query = sa.select(table.c.public_key, table.c.public_key_digest)
        with reading(self._engine).begin() as transaction:
            row = transaction.execute(query.where(table.c.key == key_id, table.c.number == number)).one_or_none()
        if row is None:
            raise _no_version()
        return row

    def _wrap(self, key_id: str, number: int, material: KeyMaterial) -> bytes:
        return wrapping.wrap(self._encryption, material.secret, version_name(key_id, number))

    @staticmethod
    def _select() -> sa.Select[Any]:
        digest = tables.versions.c.public_key_digest
        current = sa.and_(
            tables.versions.c.key == tables.keys.c.id, tables.versions.c.number == tables.keys.c.primary_version
        )
        return sa.select(tables.keys, digest).join(tables.versions, current)


_SELECT_VERSION = sa.select(
    *(column for column in tables.versions.c if column.name not in ("public_key", "wrapped_secret"))
)


def _insert_key(
    transaction: sa.Connection, key_id: str, custody: Custody, layout: Layout, policy: Policy, exportable: bool
) -> int:
    """A key's row; returns the number of its next version."""
    table, versions = tables.keys, tables.versions
    before = transaction.execute(sa.select(table).where(table.c.id == key_id)).one_or_none()
    states = transaction.execute(sa.select(versions.c.state).where(versions.c.key == key_id)).scalars().all()
    if any(state != State.DESTROYED for state in states):
        raise _exists()
    number = _next_number(transaction, key_id)
    version = 1 if before is None else before.policy["version"] + 1
    values = {
        "custody": custody.value,
        "parameter_set": layout.parameters.name,
        "dimension": layout.dimension,
        "metric": layout.metric.value,
        "largest_norm": layout.largest_norm,
        "policy": asdict(replace(policy, version=version)),
        "primary_version": number,
        "oldest_version": number,
        "exportable": exportable,
        "created": datetime.now(UTC),
    }
    if before is None:
        transaction.execute(sa.insert(table).values(id=key_id, **values))
    else:
        transaction.execute(sa.update(table).where(table.c.id == key_id).values(values))
    return number


def _next_number(transaction: sa.Connection, key_id: str) -> int:
    query = sa.select(tables.keys.c.primary_version).where(tables.keys.c.id == key_id)
    return (transaction.execute(query).scalar_one_or_none() or 0) + 1


def _advance(transaction: sa.Connection, key_id: str, current: int) -> bool:
    """Make the next version the primary one; False if another is by now."""
    table = tables.keys
    where = (table.c.id == key_id, table.c.primary_version == current)
    changed = transaction.execute(sa.update(table).where(*where).values(primary_version=current + 1))
    return changed.rowcount > 0


def _insert_version(
    transaction: sa.Connection, key_id: str, number: int, layout: Layout, public: bytes, wrapped_secret: bytes | None
) -> None:
    transaction.execute(
        sa.insert(tables.versions).values(
            key=key_id,
            number=number,
            public_key=public,
            public_key_digest=hashlib.sha256(public).digest(),
            wrapped_secret=wrapped_secret,
            state=State.ENABLED.value,
            parameter_set=layout.parameters.name,
            security_bits=layout.parameters.security_bits,
            quantum_secure=layout.parameters.quantum,
            created=datetime.now(UTC),
            exported=False,
        )
    )


def _insert_managed(
    transaction: sa.Connection, key_id: str, number: int, layout: Layout, material: KeyMaterial, wrapped: bytes
) -> None:
    _insert_version(transaction, key_id, number, layout, material.public, wrapped)
    for element, evaluation_key in material.evaluation.items():
        _insert_evaluation_key(transaction, key_id, number, element, evaluation_key)


def _insert_evaluation_key(transaction: sa.Connection, key_id: str, number: int, element: int, material: bytes) -> None:
    table = tables.evaluation_keys
    where = (table.c.key == key_id, table.c.version == number, table.c.galois_element == element)
    transaction.execute(sa.delete(table).where(*where))
    transaction.execute(
        sa.insert(table).values(
            key=key_id,
            version=number,
            galois_element=element,
            material=material,
            digest=hashlib.sha256(material).digest(),
        )
    )


def _exists() -> KeyExists:
    return KeyExists("there is a key of that id: choose another")


def _no_version() -> KeyNotFound:
    return KeyNotFound("no such key version: list the key and use its primary version")


def _checked(material: bytes, digest: bytes) -> bytes:
    if hashlib.sha256(material).digest() != digest:
        raise PublicMaterialDamaged("stored public material is damaged: restore the key service's database")
    return bytes(material)


def _key(row: sa.Row[Any]) -> Key:
    stored = dict(row._mapping["policy"])
    stored["curve"] = tuple((distance, rate) for distance, rate in stored["curve"])
    stored["budget"] = Budget(**stored.get("budget", {}))  # keys from before budgets have the default one
    return Key(
        id=row.id,
        custody=Custody(row.custody),
        layout=Layout.of(row.parameter_set, row.dimension, Metric(row.metric), row.largest_norm),
        policy=Policy(**stored),
        version=row.primary_version,
        public_key_digest=row.public_key_digest,
        created=in_utc(row.created),
        oldest_version=row.oldest_version,
        exportable=row.exportable,
    )


def _version(row: sa.Row[Any]) -> Version:
    values = dict(row._mapping) | {"state": State(row.state), "created": in_utc(row.created)}
    return Version(**values | {"destroyed": row.destroyed and in_utc(row.destroyed)})
