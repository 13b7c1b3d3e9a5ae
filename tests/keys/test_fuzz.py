"""Whatever bytes come, the key service says what is wrong, and never that it failed."""

from __future__ import annotations

import asyncio
import os
import random

import grpc
import pytest

from sealface.protocol.signing import Credential
from sealface_protos.keys.v1 import key_service_pb2
from tests.conftest import both_schemes, person
from tests.keys.conftest import ask

ROUNDS = 3000 if os.environ.get("SEALFACE_SOAK") else 150
PATH = "/sealface.keys.v1.KeyService/Decide"
EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
}


def spoilt(rng: random.Random, data: bytes) -> bytes:
    data_ = bytearray(data)
    match rng.randrange(5):
        case 0:
            data_ = data_[: rng.randrange(len(data_) + 1)]
        case 1:
            for _ in range(rng.randrange(1, 6)):
                if data_:
                    data_[rng.randrange(len(data_))] = rng.randrange(256)
        case 2:
            at = rng.randrange(len(data_) + 1)
            data_[at:at] = rng.randbytes(rng.randrange(1, 20))
        case 3:
            data_ = bytearray(rng.randbytes(rng.randrange(200)))
        case 4:
            at = rng.randrange(len(data_) + 1)
            del data_[at : at + rng.randrange(1, 40)]
    return bytes(data_)


def resigned(rng: random.Random, credential: Credential, probe: bytes) -> bytes:
    """A first message whose request is spoilt, and yet signed."""
    request = spoilt(rng, ask(credential, probe).request.SerializeToString())
    signed = {"decision_request": request, "signature": credential.sign_decision_request(request)}
    return key_service_pb2.DecideRequest(request=signed).SerializeToString()


@both_schemes
async def test_spoilt_streams_get_a_precise_status(suite, door_key, alice):
    rng = random.Random(2)
    (result,) = door_key.results({1: person(0), 2: person(2)})
    rest = key_service_pb2.DecideRequest(results=[result]).SerializeToString()
    seen: dict[str, int] = {}
    async with grpc.aio.insecure_channel(suite.addresses["keys"]) as channel:
        call = channel.stream_unary(PATH)

        async def one(messages: list[bytes]) -> None:
            try:
                answer = await call(iter(messages), timeout=20)
                assert len(answer) > 1000
                seen["answered"] = seen.get("answered", 0) + 1
            except grpc.aio.AioRpcError as error:
                assert error.code() in EXPECTED, error.details()
                seen[error.code().name] = seen.get(error.code().name, 0) + 1

        for _ in range(ROUNDS):
            first = key_service_pb2.DecideRequest(request=ask(alice, door_key.probe).signed).SerializeToString()
            kind = rng.randrange(3)
            if kind == 0:
                await one([spoilt(rng, first), rest])
            elif kind == 1:
                await one([first, spoilt(rng, rest)])
            else:
                await one([resigned(rng, alice, door_key.probe), rest])
    assert {"answered", "INVALID_ARGUMENT", "UNAUTHENTICATED"} <= set(seen), seen


@pytest.mark.parametrize(
    "method", ["GetKey", "ListKeys", "GetServiceIdentity", "CreateKey", "UpdatePolicy", "DeleteCaller"]
)
async def test_spoilt_requests_of_unary_methods_do_not_fail_the_service(suite, client, door_key, method):
    rng = random.Random(3)
    message = key_service_pb2.CreateKeyRequest(key_id="new", key=door_key.key).SerializeToString()
    path = f"/sealface.keys.v1.KeyService/{method}"
    async with grpc.aio.insecure_channel(suite.addresses["keys"]) as channel:

        async def one(data: bytes) -> None:
            from tests.keys.test_operator import signed

            try:
                await channel.unary_unary(path)(data, metadata=tuple(signed(suite.operator, method, data)))
            except grpc.aio.AioRpcError as error:
                assert error.code() in EXPECTED | {
                    grpc.StatusCode.NOT_FOUND,
                    grpc.StatusCode.ALREADY_EXISTS,
                }, error.details()

        await asyncio.gather(*(one(spoilt(rng, message)) for _ in range(ROUNDS // 10)))
