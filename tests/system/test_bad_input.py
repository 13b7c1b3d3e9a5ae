"""Anything may come over the wire: every answer is a status with a reason, nobody dies, nothing is left half done."""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from sealface.cli.processes import SERVICES, LocalServices, certificate_files
from sealface.errors import SealfaceError
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Signed
from sealface_client import AsyncClient, Client
from sealface_protos.enrollment.v1 import enrollment_service_pb2
from sealface_protos.keys.v1 import key_service_pb2
from sealface_protos.matching.v1 import matching_service_pb2
from tests.system.conftest import POLICY, People, logs

CONTRACTS = {"keys": key_service_pb2, "enrollment": enrollment_service_pb2, "matching": matching_service_pb2}
METHODS = [
    (service, method)
    for service, module in CONTRACTS.items()
    for found in module.DESCRIPTOR.services_by_name.values()
    for method in found.methods
]
ROUNDS = int(os.environ.get("SEALFACE_ROUNDS", "30"))
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass
class Caller:
    """Calls methods by name with bytes, signed as an operator's or not."""

    channels: dict[str, grpc.Channel]
    credential: Credential

    def call(
        self, service: str, method: MethodDescriptor, messages: list[bytes], *, signed: bool = True, timeout: float = 30
    ) -> grpc.RpcError | None:
        """The error of a call, None if there is none."""
        name = f"/{method.containing_service.full_name}/{method.name}"
        kinds = {True: "stream", False: "unary"}
        kind = f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}"
        start: Callable[..., Any] = getattr(self.channels[service], kind)(name)
        of_caller = self.signature(name, messages[0]) if service == "keys" else self.bearer()
        metadata = of_caller if signed else ()
        argument = iter(messages) if method.client_streaming else messages[0]
        try:
            answer = start(argument, metadata=metadata, timeout=timeout)
            if method.server_streaming:
                list(answer)
        except grpc.RpcError as error:
            return error
        return None

    def signature(self, name: str, message: bytes) -> tuple[tuple[str, str | bytes], ...]:
        now, nonce = int(time.time()), os.urandom(32)
        return (
            ("sealface-caller", self.credential.caller),
            ("sealface-time", str(now)),
            ("sealface-nonce-bin", nonce),
            ("sealface-signature-bin", self.credential.sign_operator_request(name, message, now, nonce)),
        )

    def bearer(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {Signed(self.credential)()}"),)


@pytest.fixture
def caller(services: LocalServices) -> Iterator[Caller]:
    of_compute = certificate_files(services.state, "matching")
    shown = of_compute.authority.read_bytes(), of_compute.key.read_bytes(), of_compute.certificate.read_bytes()
    addresses = services.addresses | {"keys": services.internal}  # every method is behind that
    credentials = grpc.ssl_channel_credentials(*shown)
    channels = {name: grpc.secure_channel(addresses[name], credentials, UNLIMITED) for name in SERVICES}
    yield Caller(channels, Credential.load(services.state / "edge" / "operator.pem"))
    for channel in channels.values():
        channel.close()


@pytest.fixture(autouse=True)
def unharmed(services: LocalServices, caller: Caller, client: Client) -> Iterator[None]:
    """After each test the same processes serve, have logged nothing unexpected, and decide rightly."""
    before = {name: services.pid(name) for name in SERVICES}
    yield
    assert {name: services.pid(name) for name in SERVICES} == before
    for name, text in logs(services).items():
        assert os.path.exists(f"/proc/{before[name]}")
        assert '"unexpected"' not in text, [line for line in text.splitlines() if '"unexpected"' in line][-1]
        assert "Traceback" not in text, name
    people, name = People(11), f"after-{uuid.uuid4().hex[:8]}"
    gallery = client.create_gallery(name, policy=POLICY)
    face = people.somebody()
    gallery.enroll("ada", face)
    assert gallery.verify("ada", people.again(face)).match
    assert not gallery.identify(people.somebody()).match


class Odd:
    """Messages that parse and make no sense."""

    def __init__(self, seed: int, ciphertexts: list[bytes]) -> None:
        self.random = random.Random(seed)
        self.ciphertexts = ciphertexts
        self.words = [
            "",
            "galleries/fuzzed",
            "galleries/fuzzed/subjects/ada",
            "keys/fuzzed",
            "keys/fuzzed/versions/1",
            "keys/fuzzed/versions/999999999",
            "callers/fuzzed",
            "fuzzed",
            "ada",
            "ckks-n4096-v1",
            "ckks-n8192-v1",
            "galleries/../../etc/passwd",
            "'; DROP TABLE templates; --",
            "\0",
            "é" * 40,
            "a" * 5000,
            "Dlib",
        ]

    def message(self, kind: Any, depth: int = 0) -> Message:
        made: Message = GetMessageClass(kind)()
        for field in kind.fields:
            if self.random.random() < 0.15 or depth > 5:
                continue
            if field.is_repeated:
                values = [self.value(field, depth) for _ in range(self.random.randrange(4))]
                getattr(made, field.name).extend(values)
            elif field.message_type:
                getattr(made, field.name).CopyFrom(self.value(field, depth))
            else:
                setattr(made, field.name, self.value(field, depth))
        return made

    def likely(self, field: str) -> list[str]:
        """Most often a name of the field's kind, so that something behind the names is reached."""
        if self.random.random() < 0.4:
            return []
        collection = {"gallery": "galleries/", "parent": "galleries/", "key": "keys/"}.get(field)
        if field == "key_version":
            return ["keys/fuzzed/versions/1"]
        return [word for word in self.words if collection and word.startswith(collection)]

    def value(self, field: FieldDescriptor, depth: int) -> Any:
        pick = self.random.choice
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                return self.message(field.message_type, depth + 1)
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
                return pick(self.likely(field.name) or self.words)
            case FieldDescriptor.CPPTYPE_BOOL:
                return pick((True, False))
            case FieldDescriptor.CPPTYPE_ENUM:
                return pick((0, 1, 1, 2, 2, 3, 99))
            case FieldDescriptor.CPPTYPE_UINT32:
                return pick((0, 1, 2, 3, 128, 2**31, 2**32 - 1))
            case FieldDescriptor.CPPTYPE_UINT64:
                return pick((0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1))
            case FieldDescriptor.CPPTYPE_INT32:
                return pick((0, 1, -1, 2**31 - 1, -(2**31)))
            case FieldDescriptor.CPPTYPE_INT64:
                return pick((0, 1, -1, 2**63 - 1, -(2**63), int(time.time()) + 60))
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return pick((0.0, -1.0, 0.3, 1e308, float("nan"), float("inf"), -0.0, 1e-320))
        data = bytearray(pick((b"", b"\0" * 32, self.random.randbytes(32), *self.ciphertexts)))
        if data and self.random.random() < 0.5:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data[: self.random.choice((len(data), len(data), len(data) // 2))])


def reason(error: grpc.RpcError) -> str:
    """The reason in the one ErrorInfo that an error of ours has."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            (detail,) = status.details
            info = error_details_pb2.ErrorInfo()
            assert detail.Unpack(info)
            assert info.domain == "sealface"
            assert info.reason
            assert status.message == error.details()
            return info.reason
    return ""


def acceptable(error: grpc.RpcError | None) -> str:
    """What a call may end with; returns its code."""
    if error is None:
        return "OK"
    assert error.code() not in NEVER, f"{error.code()}: {error.details()}"
    assert reason(error), f"{error.code()} without a reason: {error.details()}"
    assert "/work" not in (error.details() or "")
    return error.code().name


@pytest.fixture(scope="module")
def ciphertexts(services: LocalServices) -> list[bytes]:
    """Valid ones of the gallery that the odd messages name."""
    with Client.connect(services.state) as client:
        gallery = client.create_gallery("fuzzed", policy=POLICY)
        face = People(5).somebody()
        gallery.enroll("ada", face)
        encryptor = gallery._gallery._keyed.encryptor
        return [encryptor.template(face), encryptor.probe(face)]


@pytest.mark.parametrize("signed", [True, False])
def test_random_and_odd_messages_get_a_status_with_a_reason(
    services: LocalServices, caller: Caller, ciphertexts: list[bytes], signed: bool
) -> None:
    seed = int(os.environ.get("SEALFACE_SEED", "20261123"))
    odd = Odd(seed + signed, ciphertexts)
    seen: Counter[str] = Counter()
    sent = 0
    for service, method in METHODS:
        if not signed and service != "keys":
            continue
        for turn in range(ROUNDS):
            valid = [odd.message(method.input_type).SerializeToString() for _ in range(1 + turn % 3)]
            match turn % 4:
                case 0:
                    messages = [odd.random.randbytes(odd.random.randrange(1, 300)) for _ in range(3)]
                case 1:
                    messages = [data[: odd.random.randrange(len(data) + 1)] for data in valid]
                case _:
                    messages = valid
            seen[acceptable(caller.call(service, method, messages, signed=signed))] += 1
            sent += 1
    assert sent >= ROUNDS * (25 if signed else 12)
    assert {"INVALID_ARGUMENT", "OK", "NOT_FOUND"} <= set(seen) if signed else seen["UNAUTHENTICATED"] > 20


def test_bytes_that_are_no_message(services: LocalServices, caller: Caller) -> None:
    for service, method in METHODS:
        error = caller.call(service, method, [b"\xff\xff\xff\xff"])
        assert error is not None
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name
        assert reason(error) in {"MALFORMED_MESSAGE", "MISSING_FIELD"}


@pytest.mark.parametrize("time_s", ["1" + "0" * 30, "-1", "", "now", "9223372036854775808", "1" * 5000])
def test_a_signature_with_a_time_that_is_none(services: LocalServices, caller: Caller, time_s: str) -> None:
    metadata = (
        ("sealface-caller", "callers/operator"),
        ("sealface-time", time_s),
        ("sealface-nonce-bin", os.urandom(32)),
        ("sealface-signature-bin", os.urandom(64)),
    )
    with pytest.raises(grpc.RpcError) as failure:
        caller.channels["keys"].unary_unary("/sealface.keys.v1.KeyService/CreateKey")(b"", metadata=metadata)
    assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("service", "name"), [("keys", "GetKey"), ("enrollment", "Enroll"), ("matching", "Verify")])
def test_a_message_over_the_limit(services: LocalServices, caller: Caller, service: str, name: str) -> None:
    (method,) = (method for where, method in METHODS if (where, method.name) == (service, name))
    for megabytes, too_large in ((3, False), (5, True)):
        error = caller.call(
            service, method, [b"\xfa\x7f\x80\x80" + bytes([megabytes << 4]) + b"\1" + b"x" * (megabytes << 20)]
        )
        assert error is not None
        assert (error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED) == too_large, error.details()


async def test_a_deadline_that_passes_leaves_nothing_half_done(services: LocalServices) -> None:
    people = People(9)
    async with AsyncClient.connect(services.state) as client:
        gallery = await client.create_gallery("hurried", policy=POLICY)
        faces = {f"s{number}": people.somebody() for number in range(12)}
        passed = 0
        for subject, face in faces.items():
            request = await gallery._enroll_request(subject, face, f"once-{subject}")
            try:
                await client.enrollment.Enroll(request, timeout=0.001)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                passed += 1
        assert passed >= 8
        probe = gallery._keyed.probe(gallery._keyed.encryptor.probe(people.somebody()))
        identify = matching_service_pb2.IdentifyRequest(gallery="galleries/hurried", probe=probe, request_id="x")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            _ = [part async for part in client.matching.Identify(identify, timeout=0.001)]
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        await asyncio.sleep(1)  # what a service had begun may still be done, whole
        listed = {s.name.rpartition("/")[2]: len(s.templates) for s in await gallery.subjects()}
        assert set(listed.values()) <= {1}
        for subject, face in faces.items():
            if subject in listed:
                assert (await gallery.verify(subject, people.again(face))).match
            else:
                with pytest.raises(SealfaceError) as unknown:
                    await gallery.verify(subject, face)
                assert unknown.value.reason == "SUBJECT_NOT_FOUND"
            await gallery.enroll(subject, face, request_id=f"once-{subject}")
        listed = {s.name.rpartition("/")[2]: len(s.templates) for s in await gallery.subjects()}
        assert listed == dict.fromkeys(faces, 1)
