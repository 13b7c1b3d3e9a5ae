"""Bearer tokens: what is one, and what is none."""

from __future__ import annotations

import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sealface.protocol import tokens
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Claim, Signed, TokenRefused, claim_of, verify_issued, verify_signed

ALICE = Credential.generate("callers/alice")
NOW = int(time.time())
CLAIMS = {"iss": "callers/alice", "sub": "callers/alice", "aud": "sealface", "iat": NOW, "exp": NOW + 300}


def signed(key=ALICE.key, algorithm="EdDSA", without=(), **changed):
    claims = {name: value for name, value in (CLAIMS | changed).items() if name not in without}
    return jwt.encode(claims, key, algorithm)


def test_a_caller_signs_for_itself():
    token = Signed(ALICE)()
    assert claim_of(token) == Claim(caller="callers/alice")
    verify_signed(token, "callers/alice", ALICE.verifying_key)


def test_a_token_is_used_for_a_while():
    signer = Signed(ALICE)
    first = signer()
    assert signer() == first
    signer._until = 0
    assert claim_of(signer()).caller == "callers/alice"


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (signed(key=Credential.generate("callers/alice").key), "signature"),
        (signed(exp=NOW - 60), "lapsed"),
        (signed(aud="other"), "audience"),
        (signed(iss="callers/bob"), "claims"),
        (signed(exp=NOW + 3600), "lasts"),
        (signed(iat=NOW + 3600, exp=NOW + 3700), "claims"),
        *((signed(without=(name,)), "claims") for name in ("exp", "iat", "aud", "sub")),
        (signed(key=ALICE.verifying_key * 2, algorithm="HS256"), "signature"),  # the public key as a secret
        (jwt.encode(CLAIMS, None, "none"), "signature"),
        (signed(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"), "signature"),
    ],
)
def test_what_alice_has_not_signed_for_now_is_refused(token, why):
    with pytest.raises(TokenRefused, match=why):
        verify_signed(token, "callers/alice", ALICE.verifying_key)


@pytest.mark.parametrize("verifying_key", [b"", b"short", bytes(32)])
def test_a_caller_without_a_key_signs_nothing(verifying_key):
    with pytest.raises(TokenRefused):
        verify_signed(Signed(ALICE)(), "callers/alice", verifying_key)


@pytest.mark.parametrize(
    "token",
    ["", "x", "a.b.c", "sft" * 5000, "eyJhbGciOiJub25lIn0.e30.", signed(without=("iss",)), "é.é.é", "." * 9000],
)
def test_what_names_nobody_is_refused(token):
    with pytest.raises(TokenRefused):
        claim_of(token)


def test_a_static_token_is_known_by_its_digest():
    token, digest = tokens.new_static()
    assert claim_of(token) == Claim(digest=digest)
    assert len(digest) == 32
    assert tokens.new_static()[0] != token


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_an_issuers_token_is_its_audiences(algorithm):
    key = rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    issued = signed(key, algorithm, iss="https://idp.example", sub="ada@example", aud="doors")
    assert claim_of(issued) == Claim(issuer="https://idp.example")
    assert verify_issued(issued, "https://idp.example", "doors", key.public_key()) == "ada@example"
    for issuer, audience in (("https://idp.example", "sealface"), ("https://other.example", "doors")):
        with pytest.raises(TokenRefused):
            verify_issued(issued, issuer, audience, key.public_key())
