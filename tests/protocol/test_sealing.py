import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sealface.protocol import sealing
from sealface.protocol.sealing import DecisionNotGenuine, InvalidRecipient
from sealface_protos.keys.v1 import decision_pb2

BINDING = decision_pb2.DecisionBinding(
    request_id="r", caller="callers/alice", probe_digest=bytes(32)
).SerializeToString()
FULL = [decision_pb2.Candidate(slot=2**32 - 1, distance=0.123456789) for _ in range(10)]
DECISIONS = {
    "match": decision_pb2.Decision(outcome=decision_pb2.OUTCOME_MATCH, candidates=FULL[:1], share_searched=1.0),
    "ten candidates": decision_pb2.Decision(outcome=decision_pb2.OUTCOME_MATCH, candidates=FULL, share_searched=0.5),
    "no match": decision_pb2.Decision(outcome=decision_pb2.OUTCOME_NO_MATCH, share_searched=1.0),
    "no match, distance told": decision_pb2.Decision(outcome=decision_pb2.OUTCOME_NO_MATCH, distance=0.5),
    "refused": decision_pb2.Decision(
        outcome=decision_pb2.OUTCOME_REFUSED, refusal=decision_pb2.REFUSAL_NOT_GENUINE, share_searched=1.0
    ),
    "empty": decision_pb2.Decision(),
}


@pytest.fixture
def key() -> X25519PrivateKey:
    return X25519PrivateKey.generate()


def sealed(data: bytes, key: X25519PrivateKey, binding: bytes = BINDING) -> bytes:
    return sealing.seal(data, binding, key.public_key().public_bytes_raw())


@pytest.mark.parametrize("name", DECISIONS)
def test_a_box_opens_for_its_key_and_has_one_size(key, name):
    data = DECISIONS[name].SerializeToString()
    box = sealed(data, key)
    assert sealing.open_box(box, BINDING, key) == data
    assert len(box) == sealing.PADDED_BYTES + 48


def test_the_same_decision_is_never_the_same_box(key):
    assert sealed(b"x", key) != sealed(b"x", key)


def test_another_key_does_not_open_it(key):
    with pytest.raises(DecisionNotGenuine):
        sealing.open_box(sealed(b"x", key), BINDING, X25519PrivateKey.generate())


def test_another_binding_does_not_open_it(key):
    box = sealed(b"x", key)
    for binding in (b"", BINDING + b"\0", BINDING[:-1], b"x" + BINDING):
        with pytest.raises(DecisionNotGenuine):
            sealing.open_box(box, binding, key)


@pytest.mark.parametrize("at", [0, 31, 32, 40, 1000, -1])
def test_a_changed_box_does_not_open(key, at):
    box = bytearray(sealed(b"x", key))
    box[at] ^= 1
    with pytest.raises(DecisionNotGenuine):
        sealing.open_box(bytes(box), BINDING, key)


@pytest.mark.parametrize("box", [b"", b"x", bytes(32), bytes(48), bytes(1072)])
def test_what_is_no_box_does_not_open(key, box):
    with pytest.raises(DecisionNotGenuine):
        sealing.open_box(box, BINDING, key)


def test_a_length_beyond_the_box_is_refused(key):
    padded = (2000).to_bytes(4, "big") + bytes(1020)
    public = key.public_key()
    box = sealing._SUITE.encrypt(padded, public, info=sealing._CONTEXT + BINDING)
    with pytest.raises(DecisionNotGenuine):
        sealing.open_box(box, BINDING, key)


def test_what_does_not_fit_is_refused_rather_than_made_larger(key):
    assert sealing.open_box(sealed(bytes(1020), key), BINDING, key) == bytes(1020)
    with pytest.raises(ValueError, match="does not fit"):
        sealed(bytes(1021), key)


@pytest.mark.parametrize(
    "recipient",
    [b"", bytes(31), bytes(32), (1).to_bytes(32, "little"), (2**255 - 19 + 1).to_bytes(32, "little")],
    ids=["empty", "short", "zero", "one", "order 1 again"],
)
def test_a_recipient_that_hides_nothing_is_refused(recipient):
    with pytest.raises(InvalidRecipient):
        sealing.seal(b"x", BINDING, recipient)


def test_only_the_signer_of_the_box_and_binding_verifies(key):
    signer, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    verifying = signer.public_key().public_bytes_raw()
    box = sealed(b"x", key)
    signature = sealing.sign_box(signer, BINDING, box)
    sealing.verify_box(verifying, BINDING, box, signature)
    for case in (
        (other.public_key().public_bytes_raw(), BINDING, box, signature),
        (verifying, BINDING + b"\0", box, signature),
        (verifying, BINDING, box[:-1] + bytes([box[-1] ^ 1]), signature),
        (verifying, BINDING, box, bytes(64)),
        (verifying, BINDING, box, b""),
        (b"short", BINDING, box, signature),
        (verifying, b"", BINDING + box, signature),
    ):
        with pytest.raises(DecisionNotGenuine):
            sealing.verify_box(*case)
