"""Calls to the matching service as they are on the wire."""

import os

import grpc
import numpy as np
import pytest

from sealface.protocol import sealing
from sealface.protocol.signing import Credential
from sealface.runtime.server import MESSAGE_LIMIT
from sealface_protos.keys.v1 import decision_pb2, key_service_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as messages
from tests.conftest import POLICY, both_schemes, dump, execute, near, only_info, person, refused
from tests.matching.conftest import identify_request, probe_of, verify_request


async def verify(client, request, **options):
    return await client.matching.Verify(request, **options)


async def identify(client, request):
    return [part async for part in client.matching.Identify(request)]


async def batch(client, requests):
    items = [messages.BatchIdentifyRequest(request=request) for request in requests]
    return [part async for part in client.matching.BatchIdentify(iter(items))]


async def verifying_key(client):
    return (await client.keys.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest())).verifying_key


@pytest.fixture
async def peopled(door):
    for i in (1, 2, 3):
        await door.enroll(f"s{i}", person(i))
    return door


@both_schemes
async def test_a_managed_verification_answers_with_a_box_alone(client, peopled):
    request, pending = verify_request(peopled, near(person(2), 0.1), [2])
    answer = await verify(client, request)
    assert answer.WhichOneof("answer") == "decision"
    assert answer.layout_epoch == 3
    decision, searched = pending.read(answer.decision, await verifying_key(client))
    assert [candidate.slot for candidate in decision.candidates] == [2]
    assert searched == 1.0
    assert decision_pb2.DecisionBinding.FromString(answer.decision.binding).layout_epoch == 3


@both_schemes
async def test_a_managed_search_is_one_message(client, peopled):
    request, pending = identify_request(peopled, person(3))
    (answer,) = await identify(client, request)
    assert (answer.layout_epoch, answer.share_searched) == (3, 1.0)
    decision, _ = pending.read(answer.decision, await verifying_key(client))
    assert [candidate.slot for candidate in decision.candidates] == [3]


async def test_match_and_no_match_look_alike_to_compute(client, peopled):
    answers = []
    for vector in (person(1), person(9)):
        for request, _ in (verify_request(peopled, vector, [1]), identify_request(peopled, vector)):
            answer = await (
                verify(client, request) if request.DESCRIPTOR.name == "VerifyRequest" else _one(client, request)
            )
            answers.append(answer.decision.ByteSize())
            assert len(answer.decision.box) == sealing.PADDED_BYTES + 48
    assert len(set(answers)) == 1


async def _one(client, request):
    (answer,) = await identify(client, request)
    return answer


@both_schemes
async def test_client_held_galleries_get_scores_and_no_decision(suite, client, safe):
    capacity = safe.layout.capacity
    for i in range(capacity + 2):
        await safe.enroll(f"s{i % 5}", person(i))
    await suite.stop("keys")  # which is not needed
    request, pending = identify_request(safe, person(1))
    assert pending is None
    parts = await identify(client, request)
    links = {link.slot: link.lead for part in parts for link in part.scores.links}
    assert links == {slot: (slot - 1) % 5 + 1 for slot in range(6, capacity + 3)}
    results = [result for part in parts for result in part.scores.results]
    assert [slot for result in results for slot in result.slots if slot] == list(range(1, capacity + 3))
    answer = await verify(client, verify_request(safe, person(1), [2, 7])[0])
    assert answer.WhichOneof("answer") == "scores"
    assert sorted(slot for result in answer.scores.results for slot in result.slots if slot) == [2, 7]


@both_schemes
async def test_an_answer_is_never_the_same_bytes_twice(client, safe):
    await safe.enroll("a", person(1))
    request, _ = verify_request(safe, person(1), [1])
    answers = [(await verify(client, request)).scores.results[0].ciphertext for _ in range(2)]
    assert answers[0] != answers[1]


# --- what is refused


@pytest.mark.parametrize(
    ("changed", "code", "reason"),
    [
        ({"gallery": ""}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"gallery": "door"}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"gallery": "galleries/none"}, "NOT_FOUND", "GALLERY_NOT_FOUND"),
        ({"probe": None}, "INVALID_ARGUMENT", "WRONG_KEY_VERSION"),
        ({"decision_request": None}, "INVALID_ARGUMENT", "MISSING_FIELD"),
    ],
)
async def test_a_wrong_request_is_refused(client, peopled, changed, code, reason):
    with refused(code, reason):
        await verify(client, verify_request(peopled, person(1), [1], **changed)[0])
    with refused(code, reason):
        await identify(client, identify_request(peopled, person(1), **changed)[0])


@pytest.mark.parametrize("request_id", ["", "a b", "r" * 65])
async def test_a_search_has_an_id(client, peopled, request_id):
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await identify(client, identify_request(peopled, person(1), request_id=request_id)[0])


@pytest.mark.parametrize("claimed", [[], [1, 1], list(range(1, 18))])
async def test_one_to_sixteen_slots_are_claimed(client, peopled, claimed):
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await verify(client, verify_request(peopled, person(1), [1], claimed_slots=claimed)[0])


@pytest.mark.parametrize("slot", [0, 4, 30, 31, 2**31, 2**32 - 1])
async def test_a_slot_that_is_nobodys_is_not_found(client, peopled, slot):
    for claimed in ([slot], [1, slot]):
        with refused("NOT_FOUND", "SLOT_NOT_FOUND"):
            await verify(client, verify_request(peopled, person(1), claimed)[0])


async def test_a_stale_slot_is_not_found(client, peopled):
    await peopled.erase("s2")
    with refused("NOT_FOUND", "SLOT_NOT_FOUND"):
        await verify(client, verify_request(peopled, person(2), [2])[0])


@both_schemes
async def test_a_probe_that_is_no_ciphertext_of_the_gallery(client, peopled):
    good = probe_of(peopled, person(1)).ciphertext
    wrong = [b"", good[:-1], good + b"\0", b"\xff" * len(good), bytes(len(good)), np.random.default_rng(1).bytes(500)]
    for ciphertext in wrong:
        probe = messages.Probe(
            ciphertext=ciphertext, key_version=peopled.info.key_version, parameter_set=peopled.info.parameter_set
        )
        for call, (request, _) in (
            (verify, verify_request(peopled, person(1), [1], probe=probe)),
            (identify, identify_request(peopled, person(1), probe=probe)),
        ):
            with refused("INVALID_ARGUMENT", "MALFORMED_CIPHERTEXT"):
                await call(client, request)


async def test_another_key_version_or_parameter_set(client, peopled):
    for field, value, reason in (
        ("key_version", "keys/door/versions/2", "WRONG_KEY_VERSION"),
        ("parameter_set", "ckks-n8192-v1", "WRONG_PARAMETER_SET"),
    ):
        request, _ = verify_request(peopled, person(1), [1])
        setattr(request.probe, field, value)
        with refused("INVALID_ARGUMENT", reason):
            await verify(client, request)


async def test_a_signed_request_must_be_about_the_call_and_costs_no_nonce(suite, client, peopled):
    other = await client.create_gallery("other", policy=POLICY)
    await other.enroll("x", person(1))
    right = verify_request(peopled, person(1), [1])[0]
    signed = {
        "another probe": verify_request(peopled, person(1), [1])[0].decision_request,
        "other slots": verify_request(peopled, person(1), [1, 2], probe=right.probe)[0].decision_request,
        "another operation": identify_request(peopled, person(1))[0].decision_request,
        "another gallery": verify_request(other, person(1), [1])[0].decision_request,
        "no message": decision_pb2.SignedDecisionRequest(decision_request=b"\xff", signature=bytes(64)),
    }
    before = dump(suite.keys / "keys.db")["nonces"]
    for name, request in signed.items():
        wrong = messages.VerifyRequest.FromString(right.SerializeToString())
        wrong.decision_request.CopyFrom(request)
        with refused("INVALID_ARGUMENT", "REQUEST_MISMATCH"):
            await verify(client, wrong)
        search = identify_request(peopled, person(1), decision_request=request)[0]
        with refused("INVALID_ARGUMENT", "REQUEST_MISMATCH"):
            await identify(client, search)
        assert dump(suite.keys / "keys.db")["nonces"] == before, name
    assert (await verify(client, right)).HasField("decision")


async def test_what_the_key_service_says_is_passed_on(client, peopled):
    request, _ = verify_request(peopled, person(1), [1])
    await verify(client, request)
    with refused("FAILED_PRECONDITION", "NONCE_USED"):
        await verify(client, request)
    request, _ = verify_request(peopled, person(1), [1])
    request.decision_request.signature = os.urandom(64)
    with refused("UNAUTHENTICATED", "BAD_SIGNATURE"):
        await verify(client, request)


async def test_an_unregistered_caller_is_refused(suite, peopled):
    stranger = suite.client(Credential.generate("callers/stranger"))
    gallery = await stranger.gallery("door")
    with refused("UNAUTHENTICATED", "UNKNOWN_CALLER"):
        await verify(stranger, verify_request(gallery, person(1), [1])[0])


async def test_the_key_service_away_is_unavailable(suite, client, peopled):
    await suite.stop("keys")
    with refused("UNAVAILABLE", "KEY_SERVICE_UNAVAILABLE"):
        await verify(client, verify_request(peopled, person(1), [1])[0])
    with refused("UNAVAILABLE", "KEY_SERVICE_UNAVAILABLE"):
        await identify(client, identify_request(peopled, person(1))[0])


async def test_a_damaged_template_is_said_and_the_rest_still_serves(suite, client, peopled):
    assert execute(suite.compute / "record.db", "UPDATE templates SET ciphertext = x'00' WHERE slot = 2") == 1
    for _ in range(2):
        with refused("DATA_LOSS", "TEMPLATE_DAMAGED"):
            await verify(client, verify_request(peopled, person(2), [2])[0])
        with refused("DATA_LOSS", "TEMPLATE_DAMAGED"):
            await identify(client, identify_request(peopled, person(1))[0])
    assert (await peopled.verify("s1", person(1))).match
    await peopled.erase("s2")  # which repairs it
    assert [named.subject for named in (await peopled.identify(person(1))).candidates] == ["s1"]


async def test_a_message_over_the_limit_is_refused(suite, client, peopled):
    async with grpc.aio.insecure_channel(
        suite.addresses["matching"], options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        path = "/sealface.matching.v1.MatchingService/Verify"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(bytes(MESSAGE_LIMIT + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await peopled.verify("s1", person(1))).match


# --- batches


@both_schemes
async def test_a_batch_answers_each_in_order_and_one_that_fails_stops_no_other(client, peopled):
    asked = [identify_request(peopled, person(i), request_id=f"r{i}") for i in range(1, 5)]
    asked[1][0].probe.ciphertext = b"random"
    answers = await batch(client, [request for request, _ in asked])
    assert [(answer.request_id, answer.WhichOneof("result"), answer.last) for answer in answers] == [
        ("r1", "response", False),
        ("r1", None, True),
        ("r2", "error", True),
        ("r3", "response", False),
        ("r3", None, True),
        ("r4", "response", False),
        ("r4", None, True),
    ]
    assert only_info(answers[2].error).reason == "MALFORMED_CIPHERTEXT"
    key = await verifying_key(client)
    found = {
        answer.request_id: asked[int(answer.request_id[1]) - 1][1].read(answer.response.decision, key)[0].candidates
        for answer in answers
        if answer.HasField("response")
    }
    assert [[candidate.slot for candidate in found[name]] for name in ("r1", "r3", "r4")] == [[1], [3], []]


async def test_a_batch_over_galleries_of_both_kinds(client, peopled, safe):
    await safe.enroll("a", person(1))
    requests = [
        identify_request(safe, person(1), request_id="held")[0],
        identify_request(peopled, person(1), request_id="managed")[0],
        identify_request(peopled, person(1), request_id="none", gallery="galleries/none")[0],
    ]
    answers = await batch(client, requests)
    kinds = [(a.request_id, a.response.WhichOneof("answer") if a.HasField("response") else None) for a in answers]
    assert kinds == [
        ("held", "scores"),
        ("held", "scores"),
        ("held", None),
        ("managed", "decision"),
        ("managed", None),
        ("none", None),
    ]
    assert [answer.last for answer in answers] == [False, False, True, False, True, True]


async def test_an_empty_batch(client, peopled):
    assert await batch(client, []) == []
