"""A signed request and encrypted results to a sealed decision (threat model, rule 4).

What compute may learn is raised: that a request is not signed, not known, expired or used before. Everything that
depends on a secret, or on what was opened, is said inside the box.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from sealface.cipher.scheme import Opener
from sealface.cipher.wire import MalformedCiphertext
from sealface.errors import InvalidInput, LimitExceeded
from sealface.keys import wrapping
from sealface.keys.callers import Callers, RequestExpired
from sealface.keys.keyring import (
    Key,
    KeyClientHeld,
    KeyNotFound,
    Keyring,
    KeyVersionInactive,
    KeyVersionQuarantined,
)
from sealface.protocol import decision, names
from sealface.protocol.decision import Decision
from sealface.protocol.scores import Result, ScoresMisplaced, ScoresNotGenuine, open_results
from sealface.storage import keys as tables
from sealface.storage.database import reading

LARGEST_LIFETIME_S = 600
LARGEST_CLAIM = 16
LARGEST_SEARCH = 1 << 21
_IDENTITY = "decision signing key"


class InvalidDecisionRequest(InvalidInput):
    """A decision request is malformed."""


class TooManyScores(LimitExceeded):
    """A decision was asked for on more scores than one request may hold."""


class Operation(Enum):
    """What is to be decided."""

    VERIFY = auto()
    IDENTIFY = auto()


class Refusal(Enum):
    """Why no decision was made; said inside the box."""

    KEY_VERSION = auto()
    NOT_GENUINE = auto()
    SLOTS = auto()
    MALFORMED = auto()
    QUARANTINE = auto()


@dataclass(frozen=True)
class Request:
    """A decision request as its caller signed it; see `DecisionRequest` in the contract."""

    request_id: str
    nonce: bytes
    caller: str
    gallery: str
    key_version: str
    operation: Operation
    claimed_slots: tuple[int, ...]
    max_candidates: int
    probe_digest: bytes
    hpke_public_key: bytes
    expires: float

    def __post_init__(self) -> None:
        names.check_opaque(self.request_id, "request_id")
        names.id_of(self.gallery, "galleries")
        names.key_version(self.key_version)
        if len(self.probe_digest) != 32 or len(self.hpke_public_key) != 32 or not any(self.hpke_public_key):
            raise InvalidDecisionRequest("probe_digest and hpke_public_key are 32 bytes each")
        if self.operation is Operation.VERIFY and not 1 <= len(self.claimed_slots) <= LARGEST_CLAIM:
            raise InvalidDecisionRequest(f"a verification claims 1 to {LARGEST_CLAIM} slots")
        if self.operation is Operation.IDENTIFY and not 1 <= self.max_candidates <= 10:
            raise InvalidDecisionRequest("max_candidates is 1 to 10")


@dataclass(frozen=True)
class Verdict:
    """What was decided, under which policy version."""

    outcome: Decision | Refusal
    policy_version: int


class Judge:
    """Decides.

    Args:
        keyring: keys and policies.
        callers: who may ask.
        engine: the key zone's database, for the signing key.
        encryption: what that key is wrapped under.
    """

    def __init__(
        self, keyring: Keyring, callers: Callers, engine: sa.Engine, encryption: wrapping.KeyEncryption
    ) -> None:
        self._keyring = keyring
        self._callers = callers
        self._engine = engine
        self._encryption = encryption
        self.signing_key: Ed25519PrivateKey

    def unseal(self) -> None:
        """Open the key that signs decisions; it is made at the first time.

        Raises:
            KeyEncryptionUnavailable, KeyEncryptionKeyMissing, SecretDamaged: see there.
        """
        self.signing_key = _identity(self._engine, self._encryption)

    def admit(self, request: Request, signed: bytes, signature: bytes) -> Hearing:
        """Check who asks, and that it is asked for the first time; the nonce is consumed.

        Args:
            request: the request.
            signed: its bytes as they were signed.
            signature: the caller's signature of them.

        Raises:
            UnknownCaller, BadSignature, RequestExpired, NonceUsed: see there.
        """
        self._callers.authenticate_decision(request.caller, signed, signature)
        now = time.time()
        if not now <= request.expires <= now + LARGEST_LIFETIME_S:
            raise RequestExpired("the request has expired or reaches too far ahead: sign a new one")
        hearing = self._hearing(
            request
        )  # it can fail for want of the key-encryption key: the same request may come again
        self._callers.consume(request.nonce, request.expires)
        return hearing

    def _hearing(self, request: Request) -> Hearing:
        key_id, number = names.key_version(request.key_version)
        try:
            return Hearing(request, self._keyring.get(key_id), self._keyring.opener(key_id, number))
        except KeyVersionQuarantined:
            return Hearing(request, None, None, Refusal.QUARANTINE)
        except (KeyNotFound, KeyClientHeld, KeyVersionInactive):
            return Hearing(request, None, None, Refusal.KEY_VERSION)


class Hearing:
    """One admitted request. Scores are opened as they arrive; only slots and distances are held.

    Args:
        request: the request.
        key, opener: of its key version; None if that does not decide.
        refusal: why it does not.
    """

    def __init__(
        self, request: Request, key: Key | None, opener: Opener | None, refusal: Refusal | None = None
    ) -> None:
        self.request = request
        self._key = key
        self._opener = opener
        self._refusal = refusal
        self._heard = 0
        self.opening_s = 0.0
        self._slots: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]
        self._distances: list[NDArray[np.float64]] = [np.empty(0)]

    def hear(self, results: Sequence[Result]) -> None:
        """Open results; one that cannot be decided on spoils the whole request.

        The others are opened all the same: when a request is refused must not show in the time it takes.

        Raises:
            TooManyScores: more were sent than one request may hold.
        """
        # a result counts for the positions it names, and for a group's at least, so that empty ones cost as well
        of_group = self._key.layout.group.capacity if self._key else 1
        if self.request.operation is Operation.VERIFY:
            most, self._heard = LARGEST_CLAIM, self._heard + len(results)
        else:
            most, self._heard = LARGEST_SEARCH, self._heard + sum(max(of_group, r.slots.size) for r in results)
        if self._heard > most:
            raise TooManyScores(f"a decision of this kind is made on at most {most:,} scores", limit=most)
        if self._key is None or self._opener is None or not results:
            return
        started = time.perf_counter()
        try:
            slots, distances = open_results(self._opener, self._key.layout, results)
        except MalformedCiphertext:
            self._refusal = self._refusal or Refusal.MALFORMED
        except ScoresNotGenuine:
            self._refusal = self._refusal or Refusal.NOT_GENUINE
        except ScoresMisplaced:
            self._refusal = self._refusal or Refusal.SLOTS
        else:
            self._slots.append(slots)
            self._distances.append(distances)
        self.opening_s += time.perf_counter() - started

    def verdict(self, links: NDArray[np.uint32]) -> Verdict:
        """Decide under the key's policy.

        Args:
            links: (n, 2) slot and first slot of its subject, for subjects with several templates.
        """
        version = self._key.policy.version if self._key else 0
        if self._key is None or self._refusal:
            return Verdict(self._refusal or Refusal.KEY_VERSION, version)
        policy, request = self._key.policy, self.request
        slots, distances = np.concatenate(self._slots), np.concatenate(self._distances)
        if not decision.each_once(slots):
            return Verdict(Refusal.SLOTS, version)
        if request.operation is Operation.IDENTIFY:
            return Verdict(decision.identify(policy, slots, distances, links, request.max_candidates), version)
        if not decision.exactly(slots, request.claimed_slots):
            return Verdict(Refusal.SLOTS, version)
        return Verdict(decision.verify(policy, slots, distances), version)


def _identity(engine: sa.Engine, encryption: wrapping.KeyEncryption) -> Ed25519PrivateKey:
    """The key that signs decisions: made at the first start, kept wrapped."""
    stored = sa.select(tables.identity.c.wrapped_secret).where(tables.identity.c.name == _IDENTITY)
    with reading(engine).begin() as transaction:
        wrapped = transaction.execute(stored).scalar_one_or_none()
    if wrapped is None:
        key = Ed25519PrivateKey.generate()
        wrapped = wrapping.wrap(encryption, key.private_bytes_raw(), _IDENTITY)
        with engine.begin() as transaction:
            transaction.execute(sa.insert(tables.identity).values(name=_IDENTITY, wrapped_secret=wrapped))
        return key
    return Ed25519PrivateKey.from_private_bytes(wrapping.unwrap(encryption, wrapped, _IDENTITY))
