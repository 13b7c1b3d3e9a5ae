import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sealface.protocol import signing
from sealface.protocol.signing import BadSignature, Credential, CredentialUnreadable

REQUEST = b"the serialised request"
METHOD = "/sealface.keys.v1.KeyService/CreateKey"
NONCE = bytes(range(32))


@pytest.fixture
def credential() -> Credential:
    return Credential.generate("callers/alice")


def test_a_decision_request_verifies(credential):
    signature = credential.sign_decision_request(REQUEST)
    signing.verify_decision_request(credential.verifying_key, REQUEST, signature)
    assert len(signature) == 64


@pytest.mark.parametrize("bit", [0, 1, 7])
def test_any_changed_byte_of_request_signature_or_key_is_refused(credential, bit):
    key, signature = credential.verifying_key, credential.sign_decision_request(REQUEST)

    def flipped(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    cases = [(key, flipped(REQUEST, at), signature) for at in range(len(REQUEST))]
    cases += [(key, REQUEST, flipped(signature, at)) for at in range(64)]
    cases += [(flipped(key, at), REQUEST, signature) for at in range(32)]
    cases += [(key, REQUEST + b"\0", signature), (key, REQUEST, b""), (b"", REQUEST, signature)]
    for case in cases:
        with pytest.raises(BadSignature):
            signing.verify_decision_request(*case)


def test_the_two_kinds_of_signature_do_not_stand_in_for_each_other(credential):
    key = credential.verifying_key
    payload = signing.operator_payload(METHOD, REQUEST, 17, NONCE)
    operator = credential.sign_operator_request(METHOD, REQUEST, 17, NONCE)
    signing.verify_operator_request(key, payload, operator)
    for signed in (REQUEST, payload):
        with pytest.raises(BadSignature):
            signing.verify_decision_request(key, signed, operator)
        with pytest.raises(BadSignature):
            signing.verify_operator_request(key, signed, credential.sign_decision_request(signed))


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "/sealface.keys.v1.KeyService/DeleteCaller"},
        {"request": REQUEST + b"!"},
        {"time_s": 18},
        {"nonce": NONCE[::-1]},
        {"nonce": NONCE[:-1]},
    ],
)
def test_an_operators_signature_covers_each_field(credential, changed):
    fields = {"method": METHOD, "request": REQUEST, "time_s": 17, "nonce": NONCE}
    signature = credential.sign_operator_request(**fields)
    with pytest.raises(BadSignature):
        payload = signing.operator_payload(**fields | changed)
        signing.verify_operator_request(credential.verifying_key, payload, signature)


def test_fields_cannot_be_moved_into_each_other():
    one = signing.operator_payload("/a", b"bc", 1, NONCE)
    other = signing.operator_payload("/ab", b"c", 1, NONCE)
    assert one != other
    assert len(one) == len(other)


def test_a_credential_is_saved_for_its_owner_alone_and_loaded_again(tmp_path, credential):
    before = os.umask(0)
    try:
        path = credential.save(tmp_path)
    finally:
        os.umask(before)
    assert path.name == "alice.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = Credential.load(path)
    assert (loaded.caller, loaded.verifying_key) == (credential.caller, credential.verifying_key)
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary stays


def test_a_key_of_another_kind_is_refused(tmp_path):
    key = generate_private_key(65537, 2048)
    path = tmp_path / "rsa.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(CredentialUnreadable) as caught:
        Credential.load(path)
    assert str(tmp_path) not in str(caught.value)


def test_writing_over_a_private_file_replaces_it_whole_and_keeps_the_mode(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"an old and longer secret")
    path.chmod(0o644)
    signing.write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
