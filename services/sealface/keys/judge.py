"""A signed request and encrypted results to a sealed decision (threat model, rule 4).

What compute may learn is raised: that a request is not signed, not known, expired or used before. Everything that
depends on a secret, or on what was opened, is said inside the box.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial

import numpy as np
import sqlalchemy as sa
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from sealface.cipher.scheme import Opener
from sealface.cipher.wire import MalformedCiphertext
from sealface.errors import InvalidInput, LimitExceeded
from sealface.keys import audit, budgets, wrapping
from sealface.keys.alarms import Kind, Watch
from sealface.keys.audit import AuditLog
from sealface.keys.budgets import Account
from sealface.keys.callers import Callers, RequestExpired
from sealface.keys.kept import kept_secret
from sealface.keys.keyring import (
    Key,
    KeyClientHeld,
    KeyNotFound,
    Keyring,
    KeyVersionInactive,
    KeyVersionQuarantined,
)
from sealface.keys.lifecycle import Lifecycle
from sealface.protocol import decision, names
from sealface.protocol.audit import DECIDE, Detail
from sealface.protocol.decision import Decision
from sealface.protocol.scores import (
    Result,
    ScoresMisplaced,
    ScoresNotGenuine,
    open_results,
    result_digest,
    results_digest,
)
from sealface.storage.database import reading

LARGEST_LIFETIME_S = 600
LARGEST_CLAIM = 16
LARGEST_SEARCH = 1 << 21
MOST_STRIKES = 3
ALARM = "Alarm"
"""The act of an alarm in the audit log."""
_ACT = DECIDE
_IDENTITY = "decision signing key"
_log = structlog.get_logger("sealface.judge")


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
    BUDGET = auto()
    QUARANTINE = auto()
    CALLER = auto()


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

    @property
    def told(self) -> str:
        """As the audit log has it."""
        if isinstance(self.outcome, Refusal):
            return f"refused: {self.outcome.name.lower()}"
        return "match" if self.outcome.candidates else "no match"


class Judge:
    """Decides.

    Args:
        keyring: keys and policies.
        lifecycle: puts versions into quarantine.
        callers: who may ask.
        log: the audit log.
        engine: the key zone's database, for the signing key.
        encryption: what that key is wrapped under.
        most_strikes: requests with results that are not genuine, within an hour, that put a version into quarantine.
            Not one: whoever signs a probe under a wrong key, or enrols a template that is none, makes such results.
        decided: told of each decision, and of the alarms it raised, when they are in the audit log.
    """

    def __init__(
        self,
        keyring: Keyring,
        lifecycle: Lifecycle,
        callers: Callers,
        log: AuditLog,
        engine: sa.Engine,
        encryption: wrapping.KeyEncryption,
        most_strikes: int = MOST_STRIKES,
        decided: Callable[[Hearing, Verdict, Collection[Kind]], None] = lambda hearing, verdict, alarms: None,
    ) -> None:
        self._keyring = keyring
        self._lifecycle = lifecycle
        self._callers = callers
        self._log = log
        self._engine = engine
        self._encryption = encryption
        self._most_strikes = most_strikes
        self._decided = decided
        self._watch = Watch()
        self.signing_key: Ed25519PrivateKey

    def unseal(self) -> None:
        """Open the key that signs decisions; it is made at the first time.

        Raises:
            KeyEncryptionUnavailable, KeyEncryptionKeyMissing, SecretDamaged: see there.
        """
        secret = kept_secret(self._engine, self._encryption, _IDENTITY, partial(os.urandom, 32))
        self.signing_key = Ed25519PrivateKey.from_private_bytes(secret)

    def admit(self, request: Request, signed: bytes, signature: bytes) -> Hearing:
        """Check who asks, and that it is asked for the first time.

        One transaction consumes the nonce, charges a decision, and writes into the audit log that it is to be decided.

        Args:
            request: the request.
            signed: its bytes as they were signed.
            signature: the caller's signature of them.

        Raises:
            UnknownCaller, BadSignature, RequestExpired, NonceUsed: see there.
        """
        caller = self._callers.authenticate_decision(request.caller, signed, signature)
        now = time.time()
        if not now <= request.expires <= now + LARGEST_LIFETIME_S:
            raise RequestExpired("the request has expired or reaches too far ahead: sign a new one")
        # all that can fail for want of the key-encryption key comes first: the same request may come again then
        key_id, number = names.key_version(request.key_version)
        key, opener, refusal, policy_version = None, None, None, 0
        try:
            key = self._keyring.get(key_id)
            policy_version = key.policy.version  # of those that decide nothing too: it stands beside the box
            opener = self._keyring.opener(key_id, number)
        except KeyVersionQuarantined:
            key, refusal = None, Refusal.QUARANTINE
        except (KeyNotFound, KeyClientHeld, KeyVersionInactive):
            key, refusal = None, Refusal.KEY_VERSION
        if not caller.may_have_decisions(key_id):  # a gallery has its key's id
            key, opener, refusal = None, None, Refusal.CALLER
        account = Account(caller.id, key_id, number)
        detail = self._detail(request)
        with self._callers.consume(request.nonce, request.expires) as transaction:
            if key and not budgets.charge_decisions(transaction, account, key.policy.budget):
                refusal = Refusal.BUDGET
            begun = audit.begin(transaction, request.caller, _ACT, request.key_version, signed, detail)
        return Hearing(request, account, begun, key, opener, refusal, policy_version)

    def conclude(self, hearing: Hearing, links: NDArray[np.uint32]) -> Verdict:
        """Decide under the key's policy.

        Before anybody is told, one transaction charges the comparisons, counts results that are not genuine against the
        key version, and writes into the audit log what was decided.

        Args:
            hearing: all that was heard.
            links: (n, 2) slot and first slot of its subject, for subjects with several templates.
        """
        with hearing.ending:
            verdict = self._conclude(hearing, hearing.verdict(links))
            hearing.ended = True
        return verdict

    def _conclude(self, hearing: Hearing, verdict: Verdict) -> Verdict:
        request, account, key = hearing.request, hearing.account, hearing.key
        struck, spent = False, 0.0
        with self._engine.begin() as transaction:
            if key and verdict.outcome is not Refusal.BUDGET:
                # a search that names ten tells ten times as much as one that names one: each name counts
                further = len(verdict.outcome.candidates) - 1 if isinstance(verdict.outcome, Decision) else 0
                paid = budgets.charge_comparisons(transaction, account, key.policy.budget, hearing.compared)
                if further > 0:
                    paid = budgets.charge_decisions(transaction, account, key.policy.budget, further) and paid
                if not paid:
                    verdict = replace(verdict, outcome=Refusal.BUDGET)
                spent = budgets.share_of_version(transaction, account, key.policy.budget)
            if verdict.outcome is Refusal.NOT_GENUINE:
                struck = self._lifecycle.strike(transaction, account.key, account.version, self._most_strikes)
            alarms = {Kind.QUARANTINE: self._most_strikes} if struck else {}
            if key and not isinstance(verdict.outcome, Refusal):
                matched = bool(verdict.outcome.candidates)
                alarms |= self._watch.hear(account.caller, account.key, matched, hearing.reach, spent)
            for kind, count in alarms.items():
                detail = {"alarm": kind.value, "decisions": count, "key_version": request.key_version}
                audit.note(transaction, ALARM, request.caller, kind.value, detail)
            detail = {
                "policy_version": verdict.policy_version,
                "compared": hearing.compared,
                "results": results_digest(hearing.digests).hex(),  # what an auditor computes again (docs/adr/0022)
            }
            audit.end(transaction, hearing.begun, request.caller, _ACT, request.key_version, verdict.told, detail)
        if struck:
            self._keyring.drop_opener(account.key, account.version)
        for kind, count in alarms.items():
            _log.warning("alarm", alarm=kind.value, caller=request.caller, key_version=request.key_version, count=count)
        self._decided(hearing, verdict, alarms)
        return verdict

    def abandon(self, hearing: Hearing, why: str) -> None:
        """Note that a request was admitted and not decided."""
        request = hearing.request
        with hearing.ending:  # whoever gave up may have done so while it was decided
            if not hearing.ended:
                with self._engine.begin() as transaction:
                    audit.end(transaction, hearing.begun, request.caller, _ACT, request.key_version, why)
                hearing.ended = True

    def usage(self, key_id: str) -> list[budgets.Usage]:
        """What callers have spent of a key."""
        with reading(self._engine).begin() as connection:
            return budgets.usage(connection, key_id)

    def _detail(self, request: Request) -> dict[str, Detail]:
        detail: dict[str, Detail] = {
            "gallery": request.gallery,
            "operation": request.operation.name.lower(),
            "request_id": request.request_id,
            "probe": request.probe_digest.hex(),
        }
        if request.operation is Operation.VERIFY:
            detail["claimed"] = [self._log.pseudonym(request.gallery, slot) for slot in request.claimed_slots]
        return detail


class Hearing:
    """One admitted request. Scores are opened as they arrive; only slots and distances are held.

    Args:
        request: the request.
        account: who pays.
        begun: number of its entry in the audit log.
        key, opener: of its key version; None if that does not decide.
        policy_version: of the key, also where its version decides nothing.
        refusal: why nothing is decided. What arrives is opened all the same, where it can be.

    Attributes:
        compared: scores that were sent.
        digests: of all results.
        reach: the nearest distance over the threshold, when it is decided.
        opening_s: what opening took, seconds.
        ending: held while its end is written into the audit log.
        ended: whether it is.
    """

    def __init__(
        self,
        request: Request,
        account: Account,
        begun: int,
        key: Key | None,
        opener: Opener | None,
        refusal: Refusal | None = None,
        policy_version: int = 0,
    ) -> None:
        self.request = request
        self.account = account
        self.begun = begun
        self.key = key
        self._opener = opener
        self._layout = key.layout.under(account.version) if key else None
        self._refusal = refusal
        self._policy_version = policy_version
        self._heard = 0
        self.compared = 0
        self.digests: list[bytes] = []
        self.reach = np.inf
        self.ending = threading.Lock()
        self.ended = False
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
        of_group = self.key.layout.group.capacity if self.key else 1
        if self.request.operation is Operation.VERIFY:
            most, self._heard = LARGEST_CLAIM, self._heard + len(results)
        else:
            most, self._heard = LARGEST_SEARCH, self._heard + sum(max(of_group, r.slots.size) for r in results)
        if self._heard > most:
            raise TooManyScores(f"a decision of this kind is made on at most {most:,} scores", limit=most)
        self.compared += sum(int(np.count_nonzero(r.slots)) for r in results)
        self.digests.extend(map(result_digest, results))
        if self._layout is None or self._opener is None or not results:
            return
        started = time.perf_counter()
        try:
            slots, distances = open_results(self._opener, self._layout, results, dithered=True)
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
        """Decide under the key's policy; also where it is refused, so that this does not show in the time it takes.

        Args:
            links: (n, 2) slot and first slot of its subject, for subjects with several templates.
        """
        if self.key is None:
            return Verdict(self._refusal or Refusal.KEY_VERSION, self._policy_version)
        policy, request = self.key.policy, self.request
        slots, distances = np.concatenate(self._slots), np.concatenate(self._distances)
        outcome: Decision | Refusal
        if request.operation is Operation.IDENTIFY:
            outcome = decision.identify(policy, slots, distances, links, request.max_candidates)
            threshold = policy.search_threshold(distances.size)
            whole = True
        else:
            outcome = decision.verify(policy, slots, distances)
            threshold = policy.verification_threshold
            whole = decision.exactly(slots, request.claimed_slots)
        self.reach = float(distances.min(initial=np.inf)) / threshold if threshold > 0 else np.inf
        if self._refusal or not (decision.each_once(slots) and whole):
            outcome = self._refusal or Refusal.SLOTS
        return Verdict(outcome, policy.version)
