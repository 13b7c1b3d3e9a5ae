"""Asking for a decision, and reading it: signed on the way out, opened and checked on the way in."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from sealface.errors import WrongState
from sealface.protocol import sealing
from sealface.protocol.decision import Candidate, Decision
from sealface.protocol.sealing import DecisionNotGenuine
from sealface.protocol.signing import Credential
from sealface_protos.keys.v1 import decision_pb2

_LIFETIME_S = 120
_REFUSALS = {
    decision_pb2.REFUSAL_KEY_VERSION: "the key version does not decide: use the gallery's current key version",
    decision_pb2.REFUSAL_NOT_GENUINE: (
        "the scores are not genuine: encrypt under the gallery's key, and tell the operator if it stays"
    ),
    decision_pb2.REFUSAL_SLOTS: "the scores are not of the claimed subject: ask again, tell the operator if it stays",
    decision_pb2.REFUSAL_MALFORMED: "the scores are malformed: ask again, and tell the operator if it stays",
    decision_pb2.REFUSAL_BUDGET: "the caller's budget is spent: wait, or ask the operator for a larger one",
    decision_pb2.REFUSAL_CALLER: "this gallery's decisions are not for this caller: an operator grants them",
}


class DecisionRefused(WrongState):
    """The key service made no decision; the reason came sealed."""


@dataclass(frozen=True)
class PendingDecision:
    """A request for one decision, and what is needed to read the answer. Used once."""

    signed: decision_pb2.SignedDecisionRequest
    _request: decision_pb2.DecisionRequest
    _key: X25519PrivateKey

    @classmethod
    def ask(
        cls,
        credential: Credential,
        *,
        gallery: str,
        key_version: str,
        probe: bytes,
        claimed_slots: Sequence[int] = (),
        max_candidates: int = 0,
    ) -> PendingDecision:
        """Sign a request: a verification if slots are claimed, a search otherwise."""
        key = X25519PrivateKey.generate()
        expires = Timestamp()
        expires.FromSeconds(int(time.time()) + _LIFETIME_S)
        request = decision_pb2.DecisionRequest(
            request_id=uuid.uuid4().hex,
            nonce=os.urandom(32),
            caller=credential.caller,
            gallery=gallery,
            key_version=key_version,
            operation=decision_pb2.OPERATION_VERIFY if claimed_slots else decision_pb2.OPERATION_IDENTIFY,
            claimed_slots=claimed_slots,
            max_candidates=max_candidates,
            probe_digest=hashlib.sha256(probe).digest(),
            hpke_public_key=key.public_key().public_bytes_raw(),
            expire_time=expires,
        )
        data = request.SerializeToString()
        signed = decision_pb2.SignedDecisionRequest(
            decision_request=data, signature=credential.sign_decision_request(data)
        )
        return cls(signed, request, key)

    def read(self, sealed: decision_pb2.SealedDecision, verifying_key: bytes) -> tuple[Decision, float]:
        """The decision and the share that was searched.

        Args:
            sealed: the answer.
            verifying_key: the key service's.

        Raises:
            DecisionNotGenuine: not the key service's answer to this request.
            DecisionRefused: no decision was made.
        """
        sealing.verify_box(verifying_key, sealed.binding, sealed.box, sealed.signature)
        binding = decision_pb2.DecisionBinding.FromString(sealed.binding)
        for field in ("request_id", "caller", "gallery", "key_version", "probe_digest"):
            if getattr(binding, field) != getattr(self._request, field):
                raise DecisionNotGenuine("the sealed decision answers another request: ask again")
        decision = decision_pb2.Decision.FromString(sealing.open_box(sealed.box, sealed.binding, self._key))
        if decision.outcome == decision_pb2.OUTCOME_REFUSED:
            raise DecisionRefused(
                _REFUSALS.get(decision.refusal, "no decision was made: ask again"),
                refusal=decision_pb2.Refusal.Name(decision.refusal),
            )
        candidates = tuple(
            Candidate(c.slot, c.distance if c.HasField("distance") else None) for c in decision.candidates
        )
        distance = decision.distance if decision.HasField("distance") else None
        return Decision(candidates, distance), decision.share_searched
