"""The key service's messages to its domain types, and back."""

from __future__ import annotations

from datetime import timedelta

from sealface.keys.budgets import Usage
from sealface.keys.callers import Caller, Role
from sealface.keys.judge import InvalidDecisionRequest, Operation, Refusal, Request, Verdict
from sealface.keys.keyring import Custody, Key, State, Version, version_name
from sealface.keys.lifecycle import LONGEST_UNDO, UNDO, InvalidUndoWindow
from sealface.keys.rewrap import Rewrapped
from sealface.protocol import convert
from sealface_protos.keys.v1 import audit_pb2, caller_pb2, decision_pb2, key_pb2, key_service_pb2

CHUNK_BYTES = 1 << 20
_LARGEST_REQUEST_BYTES = 4096
_OPERATIONS = {
    decision_pb2.OPERATION_VERIFY: Operation.VERIFY,
    decision_pb2.OPERATION_IDENTIFY: Operation.IDENTIFY,
}
_REFUSALS = {
    Refusal.KEY_VERSION: decision_pb2.REFUSAL_KEY_VERSION,
    Refusal.NOT_GENUINE: decision_pb2.REFUSAL_NOT_GENUINE,
    Refusal.SLOTS: decision_pb2.REFUSAL_SLOTS,
    Refusal.MALFORMED: decision_pb2.REFUSAL_MALFORMED,
    Refusal.BUDGET: decision_pb2.REFUSAL_BUDGET,
    Refusal.QUARANTINE: decision_pb2.REFUSAL_QUARANTINE,
    Refusal.CALLER: decision_pb2.REFUSAL_CALLER,
}
_CUSTODIES = {
    Custody.MANAGED: key_pb2.CUSTODY_MANAGED,
    Custody.CLIENT_HELD: key_pb2.CUSTODY_CLIENT_HELD,
}
_STATES = {
    State.ENABLED: key_pb2.KEY_VERSION_STATE_ENABLED,
    State.DISABLED: key_pb2.KEY_VERSION_STATE_DISABLED,
    State.QUARANTINED: key_pb2.KEY_VERSION_STATE_QUARANTINED,
    State.DESTROY_SCHEDULED: key_pb2.KEY_VERSION_STATE_DESTROY_SCHEDULED,
    State.DESTROYED: key_pb2.KEY_VERSION_STATE_DESTROYED,
}
ROLES = {
    caller_pb2.CALLER_ROLE_VERIFIER: Role.VERIFIER,
    caller_pb2.CALLER_ROLE_OPERATOR: Role.OPERATOR,
}
_ROLE_VALUES = {role: value for value, role in ROLES.items()}


def undo_window(request: key_service_pb2.DestroyKeyVersionRequest) -> timedelta:
    """For how long a destruction can be taken back.

    Raises:
        InvalidUndoWindow: for longer than a duration can say.
    """
    if not request.HasField("undo_window"):
        return UNDO
    try:
        return timedelta(seconds=request.undo_window.seconds, microseconds=request.undo_window.nanos / 1e3)
    except OverflowError:
        raise InvalidUndoWindow(
            f"a destruction can be undone for up to {LONGEST_UNDO.days} days: name a shorter window"
        ) from None


def chunks(kind: key_pb2.MaterialKind.ValueType, element: int, data: bytes) -> list[key_pb2.MaterialChunk]:
    """Public material in parts that fit a message."""
    return [
        key_pb2.MaterialChunk(
            kind=kind, galois_element=element, data=data[at : at + CHUNK_BYTES], total_bytes=len(data)
        )
        for at in range(0, len(data), CHUNK_BYTES)
    ]


def request_from_proto(data: bytes) -> Request:
    """A decision request from its bytes.

    Raises:
        InvalidDecisionRequest, MissingField: see there.
    """
    if len(data) > _LARGEST_REQUEST_BYTES:
        raise InvalidDecisionRequest(f"a decision request has at most {_LARGEST_REQUEST_BYTES} bytes")
    try:
        message = decision_pb2.DecisionRequest.FromString(data)
    except Exception:  # protobuf's DecodeError differs between its implementations
        raise InvalidDecisionRequest("decision_request is no serialised DecisionRequest") from None
    operation = _OPERATIONS.get(message.operation)
    if operation is None:
        raise convert.missing("decision_request.operation")
    return Request(
        request_id=message.request_id,
        nonce=message.nonce,
        caller=message.caller,
        gallery=message.gallery,
        key_version=message.key_version,
        operation=operation,
        claimed_slots=tuple(message.claimed_slots),
        max_candidates=message.max_candidates,
        probe_digest=message.probe_digest,
        hpke_public_key=message.hpke_public_key,
        expires=message.expire_time.seconds + message.expire_time.nanos / 1e9,
    )


def decision_to_proto(verdict: Verdict, share_searched: float) -> decision_pb2.Decision:
    """What is said in a box."""
    outcome = verdict.outcome
    if isinstance(outcome, Refusal):
        return decision_pb2.Decision(
            outcome=decision_pb2.OUTCOME_REFUSED, refusal=_REFUSALS[outcome], share_searched=share_searched
        )
    return decision_pb2.Decision(
        outcome=decision_pb2.OUTCOME_MATCH if outcome.candidates else decision_pb2.OUTCOME_NO_MATCH,
        candidates=[decision_pb2.Candidate(slot=c.slot, distance=c.distance) for c in outcome.candidates],
        distance=outcome.distance,
        share_searched=share_searched,
    )


def key_to_proto(key: Key) -> key_pb2.Key:
    """A key's message."""
    return key_pb2.Key(
        name=f"keys/{key.id}",
        custody=_CUSTODIES[key.custody],
        parameter_set=key.layout.parameters.name,
        score_format=convert.layout_to_proto(key.layout),
        policy=convert.policy_to_proto(key.policy),
        primary_version=version_name(key.id, key.version),
        public_key_digest=key.public_key_digest,
        create_time=convert.timestamp(key.created),
        oldest_version=key.oldest_version,
        exportable=key.exportable,
    )


def rewrapped_to_proto(rewrapped: Rewrapped) -> key_service_pb2.RewrapKeysResponse:
    """What became of the secrets."""
    return key_service_pb2.RewrapKeysResponse(
        key_encryption_key=rewrapped.key,
        key_encryption_key_version=rewrapped.version,
        current=rewrapped.current,
        rewrapped=rewrapped.rewrapped,
        failed=rewrapped.failed,
        unrecoverable=rewrapped.unrecoverable,
    )


def version_to_proto(version: Version) -> key_pb2.KeyVersion:
    """A key version's message."""
    return key_pb2.KeyVersion(
        name=version_name(version.key, version.number),
        state=_STATES[version.state],
        parameter_set=version.parameter_set,
        security_bits=version.security_bits,
        quantum_secure=version.quantum_secure,
        public_key_digest=version.public_key_digest,
        create_time=convert.timestamp(version.created),
        destroy_time=None if version.destroyed is None else convert.timestamp(version.destroyed),
        exported=version.exported,
    )


def usage_to_proto(usage: Usage) -> audit_pb2.Usage:
    """The message of what a caller has spent."""
    return audit_pb2.Usage(
        caller=f"callers/{usage.account.caller}",
        key_version=version_name(usage.account.key, usage.account.version),
        decisions=usage.decisions,
        comparisons=usage.comparisons,
        decisions_of_version=usage.decisions_of_version,
        comparisons_of_version=usage.comparisons_of_version,
    )


def caller_to_proto(caller: Caller) -> caller_pb2.Caller:
    """A caller's message."""
    known = caller.credentials
    return caller_pb2.Caller(
        name=f"callers/{caller.id}",
        verifying_key=caller.verifying_key,
        role=_ROLE_VALUES[caller.role],
        create_time=convert.timestamp(caller.created),
        grants=[convert.grant_to_proto(grant) for grant in caller.grants],
        token_digest=known.token_digest,
        oidc=caller_pb2.OidcIdentity(issuer=known.issuer, subject=known.subject) if known.issuer else None,
    )
