"""Operator methods, called with signatures made by hand."""

import os
import time
from itertools import pairwise

import grpc
import pytest

from sealface.keys import operator
from sealface.keys.callers import OPERATOR_WINDOW_S
from sealface.protocol import convert
from sealface.protocol.signing import Credential
from sealface_protos.keys.v1 import audit_pb2, caller_pb2, key_pb2, key_service_pb2
from tests.conftest import POLICY, dump, refused
from tests.keys.conftest import create_key, new_key

SERVICE = key_service_pb2.DESCRIPTOR.services_by_name["KeyService"]
OPEN = {
    "GetKey",
    "ListKeys",
    "GetKeyVersion",
    "ListKeyVersions",
    "GetMaterial",
    "GetServiceIdentity",
    "Decide",
    "RenewBlock",
    "FindCaller",
}
OPERATOR = [method.name for method in SERVICE.methods if method.name not in OPEN]
CALLER = caller_pb2.Caller(verifying_key=bytes(32), role=caller_pb2.CALLER_ROLE_VERIFIER)
FIRST = "keys/door/versions/1"
REQUESTS = {
    "RotateKey": key_service_pb2.RotateKeyRequest(name="keys/door", primary_version=FIRST),
    "RegisterKeyVersion": key_service_pb2.RegisterKeyVersionRequest(name="keys/door", primary_version=FIRST),
    "UpdateKey": key_service_pb2.UpdateKeyRequest(name="keys/door", forbid_export=True),
    "UpdateKeyVersion": key_service_pb2.UpdateKeyVersionRequest(name=FIRST, state=key_pb2.KEY_VERSION_STATE_DISABLED),
    "DestroyKeyVersion": key_service_pb2.DestroyKeyVersionRequest(name=FIRST),
    "RestoreKeyVersion": key_service_pb2.RestoreKeyVersionRequest(name=FIRST),
    "ExportKeyVersion": key_service_pb2.ExportKeyVersionRequest(name=FIRST, hpke_public_key=bytes(range(32))),
    "ListUsage": audit_pb2.ListUsageRequest(parent="keys/door"),
    "GetAuditHead": audit_pb2.GetAuditHeadRequest(),
    "ExportAudit": audit_pb2.ExportAuditRequest(after=1),
    "GetPseudonym": audit_pb2.GetPseudonymRequest(gallery="galleries/door", slot=1),
    "CreateKey": key_service_pb2.CreateKeyRequest(key_id="new", key=new_key()),
    "RegisterKey": key_service_pb2.RegisterKeyRequest(key_id="new", key=new_key(custody=2), public_key=b"x"),
    "UploadEvaluationKey": key_service_pb2.UploadEvaluationKeyRequest(key_version="keys/door/versions/1"),
    "RewrapKeys": key_service_pb2.RewrapKeysRequest(),
    "UpdatePolicy": key_service_pb2.UpdatePolicyRequest(name="keys/door", policy=convert.policy_to_proto(POLICY)),
    "CreateCaller": key_service_pb2.CreateCallerRequest(caller_id="eve", caller=CALLER),
    "ListCallers": key_service_pb2.ListCallersRequest(),
    "UpdateCaller": key_service_pb2.UpdateCallerRequest(name="callers/alice"),
    "DeleteCaller": key_service_pb2.DeleteCallerRequest(name="callers/operator"),
}


@pytest.fixture
async def raw(client, suite, alice):
    """Calls a method with bytes and metadata as they are; there is a key `door` and a caller `alice`."""
    await create_key(client)
    async with grpc.aio.insecure_channel(suite.addresses["keys"]) as channel:

        async def call(method, request: bytes, metadata=()):
            return await channel.unary_unary(f"/{SERVICE.full_name}/{method}")(request, metadata=tuple(metadata))

        yield call


def signed(credential, method, request: bytes, *, time_s=None, nonce=None, **changed):
    time_s = int(time.time()) if time_s is None else time_s
    nonce = os.urandom(32) if nonce is None else nonce
    path = f"/{SERVICE.full_name}/{method}"
    fields = {
        "sealface-caller": credential.caller,
        "sealface-time": str(time_s),
        "sealface-nonce-bin": nonce,
        "sealface-signature-bin": credential.sign_operator_request(path, request, time_s, nonce),
    }
    return list((fields | {key.replace("_", "-"): value for key, value in changed.items()}).items())


def test_the_contract_and_the_service_agree_on_which_methods_are_open():
    assert frozenset(f"/{SERVICE.full_name}/{name}" for name in OPEN) == operator._OPEN
    assert set(OPERATOR) == set(REQUESTS)


def test_every_method_says_in_the_contract_whether_an_operator_is_needed():
    from pathlib import Path

    text = Path(__file__).parents[2].joinpath("protos/sealface/keys/v1/key_service.proto").read_text()
    service = text[text.index("service KeyService") :].split("\n}")[0].splitlines()
    said = {}
    for before, line in pairwise(service):
        if line.strip().startswith("rpc "):
            said[line.split()[1].split("(")[0]] = before.rstrip().endswith("Operator.")
    assert {name for name, needed in said.items() if needed} == set(OPERATOR)
    assert set(said) == set(OPERATOR) | OPEN


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_every_method_is_open_or_refuses_without_a_signature(raw, suite, method):
    before = dump(suite.keys / "keys.db")
    if method in OPEN:
        async with grpc.aio.insecure_channel(suite.addresses["keys"]) as channel:
            descriptor = SERVICE.methods_by_name[method]
            path = f"/{SERVICE.full_name}/{method}"
            try:
                if descriptor.server_streaming:
                    async for _ in channel.unary_stream(path)(b""):
                        pass
                elif descriptor.client_streaming:
                    await channel.stream_unary(path)(iter([b""]))
                else:
                    await channel.unary_unary(path)(b"")
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # it was looked at
    else:
        with refused("UNAUTHENTICATED", "SIGNATURE_MISSING"):
            await raw(method, b"")
        with refused("UNAUTHENTICATED", "SIGNATURE_MISSING"):
            await raw(method, REQUESTS[method].SerializeToString())
    assert dump(suite.keys / "keys.db") == before


@pytest.mark.parametrize("method", OPERATOR)
async def test_every_operator_method_refuses_other_signatures(raw, suite, alice, method):
    request = REQUESTS[method].SerializeToString()
    other = next(name for name in OPERATOR if name != method)
    operator, stranger = suite.operator, Credential.generate("callers/stranger")
    forged = Credential(operator.caller, stranger.key)
    now = int(time.time())
    before = dump(suite.keys / "keys.db")
    cases = [
        ("PERMISSION_DENIED", "OPERATOR_REQUIRED", request, signed(alice, method, request)),
        ("UNAUTHENTICATED", "UNKNOWN_CALLER", request, signed(stranger, method, request)),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", request, signed(forged, method, request)),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", request, signed(operator, other, request)),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", request + b"\x08\x01", signed(operator, method, request)),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", b"", signed(operator, method, b"\x08\x01")),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", request, signed(operator, method, request, sealface_time=str(now + 1))),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", request, signed(operator, method, request, sealface_nonce_bin=bytes(32))),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", request, signed(operator, method, request, sealface_signature_bin=b"")),
        ("UNAUTHENTICATED", "BAD_SIGNATURE", request, signed(operator, method, request, sealface_caller=alice.caller)),
        ("UNAUTHENTICATED", "UNKNOWN_CALLER", request, signed(operator, method, request, sealface_caller="operator")),
        ("UNAUTHENTICATED", "UNKNOWN_CALLER", request, signed(operator, method, request, sealface_caller="")),
        (
            "UNAUTHENTICATED",
            "REQUEST_EXPIRED",
            request,
            signed(operator, method, request, time_s=now - OPERATOR_WINDOW_S - 5),
        ),
        (
            "UNAUTHENTICATED",
            "REQUEST_EXPIRED",
            request,
            signed(operator, method, request, time_s=now + OPERATOR_WINDOW_S + 5),
        ),
        ("FAILED_PRECONDITION", "NONCE_USED", request, signed(operator, method, request, nonce=bytes(31))),
        ("FAILED_PRECONDITION", "NONCE_USED", request, signed(operator, method, request, nonce=b"")),
    ]
    cases += [
        ("UNAUTHENTICATED", "SIGNATURE_MISSING", request, signed(operator, method, request, sealface_time=time_s))
        for time_s in ("", "now", "1e9", str(2**63), str(-(2**63) - 1), "9" * 400)
    ]
    cases += [
        (
            "UNAUTHENTICATED",
            "SIGNATURE_MISSING",
            request,
            [p for p in signed(operator, method, request) if p[0] != name],
        )
        for name in ("sealface-caller", "sealface-time", "sealface-nonce-bin", "sealface-signature-bin")
    ]
    for code, reason, data, metadata in cases:
        with refused(code, reason):
            await raw(method, data, metadata)
    assert dump(suite.keys / "keys.db") == before


async def test_a_signature_is_taken_once(raw, suite):
    request = REQUESTS["ListCallers"].SerializeToString()
    metadata = signed(suite.operator, "ListCallers", request)
    await raw("ListCallers", request, metadata)
    with refused("FAILED_PRECONDITION", "NONCE_USED"):
        await raw("ListCallers", request, metadata)


async def test_of_many_replays_at_once_one_is_taken(raw, suite):
    import asyncio

    request = REQUESTS["CreateCaller"].SerializeToString()
    metadata = signed(suite.operator, "CreateCaller", request)
    outcomes = await asyncio.gather(
        *(raw("CreateCaller", request, metadata) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 1


async def test_a_message_that_is_none_is_refused_though_it_is_signed(raw, suite):
    for request in (b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff"):
        with refused("INVALID_ARGUMENT", "MALFORMED_MESSAGE"):
            await raw("CreateKey", request, signed(suite.operator, "CreateKey", request))
