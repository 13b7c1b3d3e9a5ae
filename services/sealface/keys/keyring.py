"""Keys and their versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Opener, Scheme
from sealface.errors import AlreadyExists, DataCorrupted, InvalidInput, NotFound, WrongState
from sealface.keys import wrapping
from sealface.protocol.policy import Policy
from sealface.storage import keys as tables
from sealface.storage.database import reading


class KeyNotFound(NotFound):
    """No such key or key version."""


class KeyExists(AlreadyExists):
    """There is a key of that id."""


class KeyClientHeld(WrongState):
    """The key service does not hold this key's secret."""


class KeyManaged(WrongState):
    """The key service holds this key, and makes its material itself."""


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
    """

    id: str
    custody: Custody
    layout: Layout
    policy: Policy
    version: int
    public_key_digest: bytes
    created: datetime


def version_name(key_id: str, number: int) -> str:
    """`keys/{key}/versions/{version}`."""
    return f"keys/{key_id}/versions/{number}"


class Keyring:
    """All keys of the service.

    Args:
        engine: the key zone's database.
        scheme: the cipher.
        provider: the key-encryption key that secrets are wrapped under.
    """

    def __init__(self, engine: sa.Engine, scheme: Scheme, provider: wrapping.KeyEncryptionKey) -> None:
        self._engine = engine
        self._scheme = scheme
        self._provider = provider
        self._opener = lru_cache(maxsize=64)(self._load_opener)

    def create(self, key_id: str, layout: Layout, policy: Policy) -> Key:
        """A managed key with a fresh secret.

        Raises:
            KeyExists: the id is taken.
        """
        material = self._scheme.generate(layout.parameters)
        wrapped = wrapping.wrap(self._provider, material.secret, version_name(key_id, 1))
        with self._engine.begin() as transaction:
            self._insert(transaction, key_id, Custody.MANAGED, layout, policy, material.public, wrapped)
            for element, evaluation_key in material.evaluation.items():
                self._insert_evaluation_key(transaction, key_id, 1, element, evaluation_key)
        return self.get(key_id)

    def register(self, key_id: str, layout: Layout, policy: Policy, public: bytes) -> Key:
        """A client-held key: public material alone.

        Raises:
            KeyExists: the id is taken.
            MalformedCiphertext: the public key is none of the parameter set.
        """
        self._scheme.check_public(layout.parameters, public)
        with self._engine.begin() as transaction:
            self._insert(transaction, key_id, Custody.CLIENT_HELD, layout, policy, public, None)
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
            self._insert_evaluation_key(transaction, key_id, number, element, material)

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

    def opener(self, key_id: str, number: int) -> Opener:
        """Opens results made under a version; cached.

        Raises:
            KeyNotFound: there is no such version.
            KeyClientHeld: the secret is not here.
        """
        return self._opener(key_id, number)

    def _load_opener(self, key_id: str, number: int) -> Opener:
        key = self.get(key_id)
        wrapped = self._version(key_id, number).wrapped_secret
        if wrapped is None:
            raise KeyClientHeld("the key is held by its owner, who opens scores with the client library")
        secret = wrapping.unwrap(self._provider, wrapped, version_name(key_id, number))
        return self._scheme.opener(key.layout, secret)

    def _version(self, key_id: str, number: int) -> Any:
        table = tables.versions
        query = sa.select(table.c.public_key, table.c.public_key_digest, table.c.wrapped_secret)
        with reading(self._engine).begin() as transaction:
            row = transaction.execute(query.where(table.c.key == key_id, table.c.number == number)).one_or_none()
        if row is None:
            raise KeyNotFound("no such key version: list the key and use its primary version")
        return row

    @staticmethod
    def _select() -> sa.Select[Any]:
        digest = tables.versions.c.public_key_digest
        current = sa.and_(
            tables.versions.c.key == tables.keys.c.id, tables.versions.c.number == tables.keys.c.primary_version
        )
        return sa.select(tables.keys, digest).join(tables.versions, current)

    @staticmethod
    def _insert(
        transaction: sa.Connection,
        key_id: str,
        custody: Custody,
        layout: Layout,
        policy: Policy,
        public: bytes,
        wrapped_secret: bytes | None,
    ) -> None:
        if transaction.execute(sa.select(tables.keys.c.id).where(tables.keys.c.id == key_id)).first():
            raise KeyExists("there is a key of that id: choose another")
        transaction.execute(
            sa.insert(tables.keys).values(
                id=key_id,
                custody=custody.value,
                parameter_set=layout.parameters.name,
                dimension=layout.dimension,
                metric=layout.metric.value,
                largest_norm=layout.largest_norm,
                policy=asdict(replace(policy, version=1)),
                primary_version=1,
                created=datetime.now(UTC),
            )
        )
        transaction.execute(
            sa.insert(tables.versions).values(
                key=key_id,
                number=1,
                public_key=public,
                public_key_digest=hashlib.sha256(public).digest(),
                wrapped_secret=wrapped_secret,
            )
        )

    @staticmethod
    def _insert_evaluation_key(
        transaction: sa.Connection, key_id: str, number: int, element: int, material: bytes
    ) -> None:
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


def _checked(material: bytes, digest: bytes) -> bytes:
    if hashlib.sha256(material).digest() != digest:
        raise PublicMaterialDamaged("stored public material is damaged: restore the key service's database")
    return bytes(material)


def _key(row: sa.Row[Any]) -> Key:
    stored = dict(row._mapping["policy"])
    stored["curve"] = tuple((distance, rate) for distance, rate in stored["curve"])
    return Key(
        id=row.id,
        custody=Custody(row.custody),
        layout=Layout.of(row.parameter_set, row.dimension, Metric(row.metric), row.largest_norm),
        policy=Policy(**stored),
        version=row.primary_version,
        public_key_digest=row.public_key_digest,
        created=row.created.replace(tzinfo=UTC),
    )
