"""Who may call what, on real servers: every method with every role, and with every credential that is none."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from sealface.cli.authority import Authority
from sealface.protocol import tokens
from sealface.protocol.rights import ALL, NEEDS, Grant, Role, granted
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Signed
from sealface.protocol.zones import Zone
from sealface.runtime import authentication, authorisation
from sealface.runtime.authentication import InvalidIssuers, Issuer, read_issuers
from sealface.runtime.authorisation import Rate
from sealface.runtime.tls import Tls
from sealface_client import ServiceError
from sealface_client.decisions import DecisionRefused
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from tests.conftest import person, reason_of
from tests.protocol.test_rights import METHODS

REFUSED = ("NOT_ALLOWED", "TOKEN_MISSING", "TOKEN_REFUSED", "CALLER_UNKNOWN", "TOO_MANY_CALLS")
ISSUER = "https://idp.example"


def message(method: str, gallery: str) -> Any:
    """A request that names a gallery and is wrong otherwise, or does no harm."""
    need, described = NEEDS[method], METHODS[method].input_type
    made = described._concrete_class()
    at, (*path, last) = made, (need.field or "page_size").split(".")
    for name in path:
        at = getattr(at, name)
    if need.field:
        named = {"name": f"galleries/{gallery}/subjects/x/y", "gallery_id": gallery}.get(last, f"galleries/{gallery}")
        setattr(at, last, named if last != "gallery_id" else gallery)
    return made


async def called(suite: Any, method: str, request: Any, token: str | None) -> str:
    """The reason that a call ended with; empty if it was answered.

    On a thread: gRPC's asyncio client now and then says INTERNAL where a stream is refused while it is being sent.
    """
    return await asyncio.to_thread(_called, suite, method, request, token)


def _called(suite: Any, method: str, request: Any, token: str | None) -> str:
    address = suite.addresses["matching" if "matching" in method else "enrollment"]
    described = METHODS[method]
    kind = "_".join("stream" if s else "unary" for s in (described.client_streaming, described.server_streaming))
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(address) as channel:
        make = getattr(channel, kind)(method, request_serializer=lambda m: m.SerializeToString())
        try:
            call = make(iter([request]) if described.client_streaming else request, metadata=metadata, timeout=20)
            if described.server_streaming:
                list(call)
        except grpc.RpcError as error:
            return reason_of(error)
    return ""


@pytest.fixture
async def tokens_of(client, door) -> dict[Role, str]:
    """A token of somebody of each role, for the gallery `door` alone."""
    made = {}
    for role in Role:
        made[role], digest = tokens.new_static()
        await client.create_caller(f"the-{role}", grants=[Grant(role, "door")], token_digest=digest)
    return made


@pytest.mark.parametrize("method", sorted(NEEDS))
async def test_every_method_with_every_role(suite, tokens_of, method):
    need = NEEDS[method]
    for role, token in sorted(tokens_of.items(), reverse=True):  # the admin's last: what it asks for may be done
        allowed = granted([Grant(role, "door")], need.roles, "door") and bool(need.field)
        for gallery, may in (("hall", False), ("door", allowed)):
            reason = await called(suite, method, message(method, gallery), token)
            assert (reason not in REFUSED) == may, (role, gallery, reason)
            assert may or reason == "NOT_ALLOWED"


async def test_a_method_that_nobody_has_thought_of_is_refused_to_everybody(suite, door, monkeypatch):
    method = "/sealface.enrollment.v1.EnrollmentService/GetGallery"
    request = enrollment.GetGalleryRequest(name="galleries/door")
    assert await called(suite, method, request, Signed(suite.operator)()) == ""
    monkeypatch.setattr(authorisation, "NEEDS", {name: need for name, need in NEEDS.items() if name != method})
    assert await called(suite, method, request, Signed(suite.operator)()) == "NOT_ALLOWED"


@pytest.fixture
def bad_tokens(suite, client, door) -> Callable[[], dict[str, tuple[str | None, str]]]:
    operator, now = suite.operator, int(time.time())
    claims = {"iss": operator.caller, "sub": operator.caller, "aud": "sealface", "iat": now, "exp": now + 300}

    def signed(key: Any = operator.key, **changed: Any) -> str:
        return jwt.encode(claims | changed, key, "EdDSA")

    foreign = Credential.generate("callers/operator")
    return {
        "none": (None, "TOKEN_MISSING"),
        "empty": ("", "TOKEN_MISSING"),
        "nonsense": ("nonsense", "TOKEN_REFUSED"),
        "expired": (signed(exp=now - 60, iat=now - 360), "TOKEN_REFUSED"),
        "foreign": (signed(foreign.key), "TOKEN_REFUSED"),
        "wrong audience": (signed(aud="elsewhere"), "TOKEN_REFUSED"),
        "unknown caller": (Signed(Credential.generate("callers/nobody"))(), "CALLER_UNKNOWN"),
        "no caller's name": (signed(iss="callers/Not A Name"), "CALLER_UNKNOWN"),
        "unknown token": (tokens.new_static()[0], "CALLER_UNKNOWN"),
        "unknown issuer": (signed(iss=ISSUER), "TOKEN_REFUSED"),
    }


@pytest.mark.parametrize("method", sorted(NEEDS))
async def test_every_method_with_credentials_that_are_none(suite, bad_tokens, method):
    for kind, (token, expected) in bad_tokens.items():
        assert await called(suite, method, message(method, "door"), token) == expected, kind


async def test_who_is_withdrawn_or_loses_a_role_is_refused_soon(suite, client, door, monkeypatch):
    monkeypatch.setattr(authentication, "FRESH_S", 0.2)
    method = "/sealface.enrollment.v1.EnrollmentService/GetGallery"
    token, digest = tokens.new_static()
    await client.create_caller("guest", grants=[Grant(Role.AUDITOR, "door")], token_digest=digest)
    assert await called(suite, method, message(method, "hall"), token) == "NOT_ALLOWED"
    request = enrollment.GetGalleryRequest(name="galleries/door")
    assert await called(suite, method, request, token) == ""
    await client.grant("guest", [])
    await asyncio.sleep(0.3)
    assert await called(suite, method, request, token) == "NOT_ALLOWED"
    await client.grant("guest", [Grant(Role.VERIFIER, ALL)])
    await asyncio.sleep(0.3)
    assert await called(suite, method, request, token) == ""
    await client.delete_caller("guest")
    await asyncio.sleep(0.3)
    assert await called(suite, method, request, token) == "CALLER_UNKNOWN"


async def test_while_the_key_service_is_away_who_was_known_goes_on(suite, client, door, monkeypatch):
    monkeypatch.setattr(authentication, "FRESH_S", 0.0)
    await door.enroll("ada", person(1))
    await suite.stop("keys")
    await door.enroll("ada", person(2))
    method = "/sealface.enrollment.v1.EnrollmentService/GetGallery"
    unseen = Signed(Credential.generate("callers/unseen"))()
    request = enrollment.GetGalleryRequest(name="galleries/door")
    assert await called(suite, method, request, unseen) == "KEY_SERVICE_UNAVAILABLE"


async def test_each_message_of_a_stream_is_looked_at(suite, client, door):
    await client.create_gallery("hall", policy=door.policy)
    token, digest = tokens.new_static()
    await client.create_caller("clerk", grants=[Grant(Role.ENROLLER, "door")], token_digest=digest)
    own = suite.client(anonymous=True, token=token)

    async def both():
        for gallery in ("door", "hall"):
            request = enrollment.EnrollRequest(gallery=f"galleries/{gallery}", subject_id="ada", request_id="r")
            yield enrollment.BatchEnrollRequest(request=request)

    call = own.enrollment.BatchEnroll(both())
    assert (await call.read()).error.message  # of the door's: it has no ciphertext
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert reason_of(caught.value) == "NOT_ALLOWED"


async def test_decisions_are_for_verifiers_whatever_compute_says(suite, client, door):
    """The key service looks itself: compute that lets anybody in gets no decision for them."""
    await door.enroll("ada", person(1))
    eve = Credential.generate("callers/eve")
    await client.create_caller("eve", eve.verifying_key, [Grant(Role.VERIFIER, "hall"), Grant(Role.ENROLLER, "door")])
    behind_computes_back = await suite.client(eve, token=Signed(suite.operator)()).gallery("door")
    with pytest.raises(DecisionRefused, match="grant") as caught:
        await behind_computes_back.verify("ada", person(1))
    assert caught.value.metadata["refusal"] == "REFUSAL_CALLER"
    await client.grant("eve", [Grant(Role.VERIFIER, "door")])
    assert (await behind_computes_back.verify("ada", person(1))).match


# --- issuers


@pytest.fixture
async def issuer(suite, tmp_path) -> Callable[..., str]:
    """Has the services take tokens of an issuer, whose keys are in a file; returns what it issues."""
    key = rsa.generate_private_key(65537, 2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public | {"kid": "k1", "use": "sig", "alg": "RS256"}]}))
    suite.issuers = (Issuer(ISSUER, "doors", str(jwks)),)
    await suite.restart("enrollment", "matching")

    def issue(kid: str = "k1", signer: Any = key, **changed: Any) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": "ada@example", "aud": "doors", "iat": now, "exp": now + 600}
        return jwt.encode(claims | changed, signer, "RS256", headers={"kid": kid})

    return issue


async def test_an_issuers_token_is_the_callers_that_it_names(suite, client, door, issuer):
    await client.create_caller("ada", grants=[Grant(Role.ENROLLER, "door")], issuer=ISSUER, subject="ada@example")
    own = await suite.client(anonymous=True, token=issuer()).gallery("door")
    await own.enroll("bob", person(1))
    with pytest.raises(ServiceError, match="needs the role admin"):
        await suite.client(anonymous=True, token=issuer()).delete_gallery("door")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"aud": "elsewhere"}, "TOKEN_REFUSED"),
        ({"exp": 1}, "TOKEN_REFUSED"),
        ({"kid": "k2"}, "TOKEN_REFUSED"),
        ({"signer": rsa.generate_private_key(65537, 2048)}, "TOKEN_REFUSED"),
        ({"sub": "eve@example"}, "CALLER_UNKNOWN"),
        ({"iss": "https://other.example"}, "TOKEN_REFUSED"),
        ({"iss": "callers/operator"}, "TOKEN_REFUSED"),  # which is signed by itself
    ],
)
async def test_an_issuers_token_that_is_none(suite, client, door, issuer, changed, reason):
    await client.create_caller("ada", grants=[Grant(Role.ENROLLER, "door")], issuer=ISSUER, subject="ada@example")
    method = "/sealface.enrollment.v1.EnrollmentService/GetGallery"
    request = enrollment.GetGalleryRequest(name="galleries/door")
    assert await called(suite, method, request, issuer()) == ""
    assert await called(suite, method, request, issuer(**changed)) == reason


async def test_keys_that_cannot_be_read_are_said(suite, client, door, issuer, tmp_path):
    (tmp_path / "jwks.json").write_text("nonsense")
    method = "/sealface.enrollment.v1.EnrollmentService/GetGallery"
    request = enrollment.GetGalleryRequest(name="galleries/door")
    assert await called(suite, method, request, issuer()) == "ISSUER_UNAVAILABLE"


async def test_keys_are_fetched_over_https_and_again_when_a_token_names_another(
    suite, client, door, tmp_path, monkeypatch
):
    tls = Tls(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    Authority.create().certify(tls, Zone.EDGE)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
    monkeypatch.setattr(authentication, "COOLDOWN_S", 0.0)
    signers = {name: rsa.generate_private_key(65537, 2048) for name in ("k1", "k2")}
    published = ["k1"]

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            to_jwk = jwt.algorithms.RSAAlgorithm.to_jwk
            keys = [json.loads(to_jwk(signers[name].public_key())) | {"kid": name, "use": "sig"} for name in published]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": keys}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    server = ThreadingHTTPServer(("localhost", 0), Keys)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    suite.issuers = (Issuer(ISSUER, "doors", f"https://localhost:{server.server_port}/keys"),)
    await suite.restart("enrollment")
    await client.create_caller("ada", grants=[Grant(Role.ENROLLER, "door")], issuer=ISSUER, subject="ada@example")
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": "ada@example", "aud": "doors", "iat": now, "exp": now + 600}
    issued = {name: jwt.encode(claims, key, "RS256", headers={"kid": name}) for name, key in signers.items()}
    method = "/sealface.enrollment.v1.EnrollmentService/GetGallery"
    request = enrollment.GetGalleryRequest(name="galleries/door")
    try:
        assert await called(suite, method, request, issued["k1"]) == ""
        published.append("k2")
        assert await called(suite, method, request, issued["k2"]) == ""
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert await called(suite, method, request, issued["k1"]) == ""  # known by now
    stranger = jwt.encode(claims, signers["k1"], "RS256", headers={"kid": "k3"})
    assert await called(suite, method, request, stranger) == "ISSUER_UNAVAILABLE"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '[{"issuer": "x"}]',
        '[{"issuer": 1, "audience": "a", "jwks": "j"}]',
        '[{"issuer": "x", "audience": "a", "jwks": "http://x/keys"}]',
        '[{"issuer": "callers/x", "audience": "a", "jwks": "j"}]',
    ],
)
def test_a_file_of_issuers_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "issuers.json").write_text(content)
    with pytest.raises(InvalidIssuers):
        read_issuers(tmp_path / "issuers.json")


# --- rates


async def test_a_caller_that_calls_too_often_is_told_to_wait_and_others_are_not(suite, client, door):
    suite.rate = Rate(per_second=0.001, burst=5)
    await suite.restart("enrollment")
    method = "/sealface.enrollment.v1.EnrollmentService/GetGallery"
    request = enrollment.GetGalleryRequest(name="galleries/door")
    made = {}
    for name in ("one", "two"):
        made[name], digest = tokens.new_static()
        await client.create_caller(name, grants=[Grant(Role.AUDITOR, "door")], token_digest=digest)
    assert [await called(suite, method, request, made["one"]) for _ in range(7)] == [""] * 5 + ["TOO_MANY_CALLS"] * 2
    assert await called(suite, method, request, made["two"]) == ""
