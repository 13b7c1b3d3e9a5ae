"""Who may do what, and the proof that they asked: registered credentials, grants, and single-use nonces."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from sealface.errors import AlreadyExists, Denied, InvalidInput, NotFound, Unauthenticated, WrongState
from sealface.keys import audit
from sealface.protocol import names, signing
from sealface.protocol.rights import EVERYTHING, Grant, granted
from sealface.protocol.rights import Role as GalleryRole
from sealface.storage import keys as tables
from sealface.storage.database import reading

OPERATOR_WINDOW_S = 120
"""How far the time of an operator's request may be from the key service's, seconds."""
NONCE_BYTES = 32
_LONGEST = 512  # of an issuer, or a subject
_MOST_GRANTS = 1000


_FORGET = sa.delete(tables.nonces).where(tables.nonces.c.expires < sa.bindparam("before"))


class CallerNotFound(NotFound):
    """No caller of that name."""


class CallerExists(AlreadyExists):
    """There is a caller of that id."""


class UnknownCaller(Unauthenticated):
    """The caller is not registered with the key service."""


class OperatorRequired(Denied):
    """The caller may ask for decisions, not change keys, policies or callers."""


class InvalidVerifyingKey(InvalidInput):
    """A verifying key is no Ed25519 public key of 32 bytes."""


class InvalidCaller(InvalidInput):
    """A caller has no credential, one that is none, or more grants than can be kept."""


class CredentialTaken(AlreadyExists):
    """Another caller has that token or that identity."""


class RequestExpired(Unauthenticated):
    """A signed request is too old, or too far ahead."""


class NonceUsed(WrongState):
    """A nonce was used before: the request is a replay."""


class Role(StrEnum):
    """What a caller may do."""

    VERIFIER = "verifier"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Credentials:
    """By what a caller is known: one of these at least.

    Attributes:
        verifying_key: Ed25519 public key, 32 bytes, or empty.
        token_digest: SHA-256 of a static token, or empty.
        issuer, subject: whom an OpenID Connect issuer's tokens name, or empty.
    """

    verifying_key: bytes = b""
    token_digest: bytes = b""
    issuer: str = ""
    subject: str = ""

    def check(self) -> None:
        """Refuse what is no credential.

        Raises:
            InvalidVerifyingKey, InvalidCaller: see there.
        """
        if not (self.verifying_key or self.token_digest or self.issuer):
            raise InvalidCaller("a caller has a verifying key, a token's digest, or an issuer's identity: name one")
        if len(self.verifying_key) not in (0, 32):
            raise InvalidVerifyingKey("a verifying key is an Ed25519 public key of 32 bytes")
        if len(self.token_digest) not in (0, 32):
            raise InvalidCaller("a token's digest is its SHA-256, 32 bytes")
        if bool(self.issuer) != bool(self.subject) or len(self.issuer) > _LONGEST or len(self.subject) > _LONGEST:
            raise InvalidCaller(f"an identity is an issuer and a subject of up to {_LONGEST} characters each")


@dataclass(frozen=True)
class Caller:
    """A registered caller.

    Attributes:
        id: of its name.
        credentials: by what it is known.
        role: what it may do at the key service.
        grants: what it may do with galleries.
        created: when it was registered.
    """

    id: str
    credentials: Credentials
    role: Role
    grants: tuple[Grant, ...]
    created: datetime

    @property
    def verifying_key(self) -> bytes:
        """Ed25519 public key; empty if it signs nothing."""
        return self.credentials.verifying_key

    def may_have_decisions(self, gallery: str) -> bool:
        """Whether decisions of a gallery are for this caller."""
        return granted(self.grants, [GalleryRole.VERIFIER], gallery)


class Callers:
    """The register of callers."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self, caller_id: str, credentials: Credentials, role: Role, grants: Collection[Grant] = ()) -> Caller:
        """Register a caller.

        Raises:
            InvalidVerifyingKey, InvalidCaller, CallerExists, CredentialTaken: see there.
        """
        credentials.check()
        values = {name: value or None for name, value in vars(credentials).items()}
        values |= {"verifying_key": credentials.verifying_key, "role": role.value, "grants": _stored(grants)}
        try:
            with self._engine.begin() as transaction:
                if transaction.execute(sa.select(tables.callers.c.id).where(tables.callers.c.id == caller_id)).first():
                    raise CallerExists("there is a caller of that id: choose another, or delete that one")
                transaction.execute(sa.insert(tables.callers).values(id=caller_id, created=datetime.now(UTC), **values))
        except IntegrityError:
            raise CredentialTaken("another caller has that token or identity: name one of this caller's own") from None
        return self.get(f"callers/{caller_id}")

    def grant(self, name: str, grants: Collection[Grant]) -> Caller:
        """Replace what a caller may do with galleries.

        Raises:
            CallerNotFound, InvalidCaller: see there.
        """
        caller = self.get(name)
        with self._engine.begin() as transaction:
            change = sa.update(tables.callers).where(tables.callers.c.id == caller.id)
            transaction.execute(change.values(grants=_stored(grants)))
        return self.get(name)

    def find(self, *, token_digest: bytes = b"", issuer: str = "", subject: str = "") -> Caller:
        """The caller that has a token, or that an issuer names.

        Raises:
            CallerNotFound: there is none.
        """
        columns = tables.callers.c
        if token_digest:
            where = [columns.token_digest == token_digest]
        else:
            where = [columns.issuer == issuer, columns.subject == subject]
        with reading(self._engine).begin() as transaction:
            row = transaction.execute(sa.select(tables.callers).where(*where)).one_or_none()
        if row is None:
            raise _nobody()
        return _caller(row)

    def ensure_operator(self, caller_id: str, verifying_key: bytes) -> None:
        """Register the operator that the service was started with, in place of one of that id."""
        values = {"verifying_key": verifying_key, "role": Role.OPERATOR.value}
        with self._engine.begin() as transaction:
            query = sa.select(tables.callers.c.verifying_key, tables.callers.c.role)
            found = transaction.execute(query.where(tables.callers.c.id == caller_id)).one_or_none()
            if found is not None and found._mapping == values:
                return
            transaction.execute(sa.delete(tables.callers).where(tables.callers.c.id == caller_id))
            transaction.execute(sa.insert(tables.callers).values(id=caller_id, created=datetime.now(UTC), **values))
            detail = {"verifying_key": verifying_key.hex()}
            audit.note(transaction, "EnsureOperator", f"callers/{caller_id}", "ok", detail)

    def get(self, name: str) -> Caller:
        """The caller of a name.

        Raises:
            CallerNotFound: there is none.
        """
        caller_id = names.id_of(name, "callers")
        with reading(self._engine).begin() as transaction:
            row = transaction.execute(sa.select(tables.callers).where(tables.callers.c.id == caller_id)).one_or_none()
        if row is None:
            raise _nobody()
        return _caller(row)

    def page(self, after: str, limit: int) -> list[Caller]:
        """Callers by id, from the first after that one."""
        query = sa.select(tables.callers).where(tables.callers.c.id > after)
        with reading(self._engine).begin() as transaction:
            rows = transaction.execute(query.order_by(tables.callers.c.id).limit(limit))
            return [_caller(row) for row in rows]

    def delete(self, name: str) -> None:
        """Withdraw a caller's credential.

        Raises:
            CallerNotFound: there is none.
        """
        caller = self.get(name)
        with self._engine.begin() as transaction:
            transaction.execute(sa.delete(tables.callers).where(tables.callers.c.id == caller.id))

    def authenticate_decision(self, name: str, request: bytes, signature: bytes) -> Caller:
        """The registered caller that signed a decision request.

        Raises:
            UnknownCaller, BadSignature: see there.
        """
        caller = self._known(name)
        signing.verify_decision_request(caller.verifying_key, request, signature)
        return caller

    def authenticate_operator(
        self, name: str, method: str, request: bytes, time_s: int, nonce: bytes, signature: bytes
    ) -> Caller:
        """The operator that signed a request; its nonce is yet to be consumed.

        Raises:
            UnknownCaller, BadSignature, OperatorRequired, RequestExpired: see there.
        """
        caller = self._known(name)
        payload = signing.operator_payload(method, request, time_s, nonce)
        signing.verify_operator_request(caller.verifying_key, payload, signature)
        if caller.role is not Role.OPERATOR:
            raise OperatorRequired("this method needs an operator's credential")
        if abs(time.time() - time_s) > OPERATOR_WINDOW_S:
            raise RequestExpired("the request's time is too far from the key service's: set the clock and retry")
        return caller

    @contextmanager
    def consume(self, nonce: bytes, expires: float) -> Iterator[sa.Connection]:
        """Accept a nonce once, durably, in one transaction with what is written in the block.

        It is forgotten a while after it would be refused as expired.

        Args:
            nonce: 32 bytes.
            expires: when requests with it stop being accepted, seconds since 1970.

        Raises:
            NonceUsed: it was accepted before, or is not 32 bytes.
        """
        if len(nonce) != NONCE_BYTES:
            raise NonceUsed(f"a nonce is {NONCE_BYTES} random bytes: draw one for each request")
        with self._engine.begin() as transaction:
            transaction.execute(_FORGET, {"before": time.time() - OPERATOR_WINDOW_S})
            try:
                transaction.execute(sa.insert(tables.nonces), {"nonce": nonce, "expires": expires})
            except IntegrityError:
                raise NonceUsed("this request was used before: sign a new one") from None
            yield transaction

    def _known(self, name: str) -> Caller:
        try:
            return self.get(name)
        except (CallerNotFound, names.InvalidName):
            raise UnknownCaller(
                "the caller is not registered with the key service: an operator must register it"
            ) from None


def _nobody() -> CallerNotFound:
    return CallerNotFound("no such caller: an operator must register it")


def _stored(grants: Collection[Grant]) -> list[list[str]]:
    if len(grants) > _MOST_GRANTS:
        raise InvalidCaller(
            f"a caller has up to {_MOST_GRANTS} grants: grant a role for all galleries", limit=_MOST_GRANTS
        )
    return [[grant.role.value, grant.gallery] for grant in grants]


def _caller(row: sa.Row[Any]) -> Caller:
    credentials = Credentials(row.verifying_key, row.token_digest or b"", row.issuer or "", row.subject or "")
    role = Role(row.role)
    grants = tuple(Grant(GalleryRole(held), gallery) for held, gallery in row.grants)
    granted_to = EVERYTHING if role is Role.OPERATOR else grants
    return Caller(row.id, credentials, role, granted_to, row.created.replace(tzinfo=UTC))
