"""What a caller accepts as the answer to its request."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealface.protocol import sealing, signing
from sealface.protocol.decision import Candidate, Decision
from sealface.protocol.sealing import DecisionNotGenuine
from sealface.protocol.signing import Credential
from sealface_client.decisions import DecisionRefused, PendingDecision
from sealface_protos.keys.v1 import decision_pb2

SERVICE = Ed25519PrivateKey.generate()
VERIFYING = SERVICE.public_key().public_bytes_raw()
ALICE = Credential.generate("callers/alice")
MATCH = decision_pb2.Decision(
    outcome=decision_pb2.OUTCOME_MATCH,
    candidates=[decision_pb2.Candidate(slot=7), decision_pb2.Candidate(slot=9, distance=0.25)],
    share_searched=0.5,
)


def ask(**changed):
    fields = {"gallery": "galleries/door", "key_version": "keys/door/versions/1", "probe": b"probe"} | changed
    return PendingDecision.ask(ALICE, **fields)


def answer(pending, decision=MATCH, signer=SERVICE, **binding):
    request = decision_pb2.DecisionRequest.FromString(pending.signed.decision_request)
    fields = {
        name: getattr(request, name) for name in ("request_id", "caller", "gallery", "key_version", "probe_digest")
    }
    bound = decision_pb2.DecisionBinding(**fields | binding).SerializeToString()
    box = sealing.seal(decision.SerializeToString(), bound, request.hpke_public_key)
    return decision_pb2.SealedDecision(binding=bound, box=box, signature=sealing.sign_box(signer, bound, box))


def test_a_request_is_signed_and_says_what_is_asked():
    pending = ask(claimed_slots=[3, 1])
    signed = pending.signed
    signing.verify_decision_request(ALICE.verifying_key, signed.decision_request, signed.signature)
    request = decision_pb2.DecisionRequest.FromString(signed.decision_request)
    assert request.operation == decision_pb2.OPERATION_VERIFY
    assert list(request.claimed_slots) == [3, 1]
    assert (request.caller, request.gallery) == ("callers/alice", "galleries/door")
    assert request.probe_digest == hashlib.sha256(b"probe").digest()
    search = decision_pb2.DecisionRequest.FromString(ask(max_candidates=4).signed.decision_request)
    assert (search.operation, search.max_candidates) == (decision_pb2.OPERATION_IDENTIFY, 4)


def test_every_request_has_a_nonce_a_key_and_an_id_of_its_own():
    requests = [decision_pb2.DecisionRequest.FromString(ask().signed.decision_request) for _ in range(20)]
    for field in ("nonce", "hpke_public_key", "request_id"):
        assert len({getattr(request, field) for request in requests}) == 20
    assert {len(request.nonce) for request in requests} == {32}


def test_a_decision_is_read():
    pending = ask()
    assert pending.read(answer(pending), VERIFYING) == (Decision((Candidate(7, None), Candidate(9, 0.25))), 0.5)
    nobody = decision_pb2.Decision(outcome=decision_pb2.OUTCOME_NO_MATCH, distance=0.75, share_searched=1)
    assert pending.read(answer(pending, nobody), VERIFYING) == (Decision((), 0.75), 1.0)


@pytest.mark.parametrize("refusal", [value for value in decision_pb2.Refusal.values() if value])
def test_a_refusal_is_an_error_that_says_what_to_do(refusal):
    pending = ask()
    refused = decision_pb2.Decision(outcome=decision_pb2.OUTCOME_REFUSED, refusal=refusal)
    with pytest.raises(DecisionRefused) as caught:
        pending.read(answer(pending, refused), VERIFYING)
    assert caught.value.metadata == {"refusal": decision_pb2.Refusal.Name(refusal)}
    assert ": " in caught.value.message


@pytest.mark.parametrize(
    "binding",
    [
        {"request_id": "another"},
        {"caller": "callers/bob"},
        {"gallery": "galleries/safe"},
        {"key_version": "keys/door/versions/2"},
        {"probe_digest": bytes(32)},
    ],
)
def test_a_decision_bound_to_something_else_is_not_genuine(binding):
    pending = ask()
    with pytest.raises(DecisionNotGenuine):
        pending.read(answer(pending, **binding), VERIFYING)


def test_a_decision_of_another_request_is_not_genuine():
    mine, other = ask(), ask()
    with pytest.raises(DecisionNotGenuine):
        mine.read(answer(other), VERIFYING)
    # even with the binding made to fit
    swapped = answer(other)
    swapped.binding = answer(mine).binding
    with pytest.raises(DecisionNotGenuine):
        mine.read(swapped, VERIFYING)


def test_a_decision_that_another_signed_is_not_genuine():
    pending = ask()
    with pytest.raises(DecisionNotGenuine):
        pending.read(answer(pending, signer=Ed25519PrivateKey.generate()), VERIFYING)
    with pytest.raises(DecisionNotGenuine):
        pending.read(decision_pb2.SealedDecision(), VERIFYING)
