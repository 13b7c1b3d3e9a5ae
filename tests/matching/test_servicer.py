"""Calls to the matching service as they are on the wire."""

import asyncio
import os

import grpc
import numpy as np
import pytest

from sealface.cipher.evaluator import block_memory
from sealface.matching import feed, servicer
from sealface.matching.decider import Decider
from sealface.matching.matcher import Matcher
from sealface.matching.servicer import MOST_TOGETHER
from sealface.protocol import sealing
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Signed
from sealface.runtime.request_ids import REQUEST_ID
from sealface.runtime.server import MESSAGE_LIMIT, ServerConfig
from sealface.runtime.timing import SERVER_TIMING, parse_timing
from sealface.workers.server import WorkerConfig, worker_of
from sealface_protos.keys.v1 import decision_pb2, key_service_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as messages
from tests.conftest import POLICY, both_schemes, dump, execute, near, only_info, person, refused, status_of
from tests.enrollment.conftest import import_data, import_header, import_messages
from tests.matching.conftest import identify_request, probe_of, verify_request
from tests.workers.test_pool import Several

USED = grpc.StatusCode.FAILED_PRECONDITION


async def verify(client, request, **options):
    return await client.matching.Verify(request, **options)


async def identify(client, request):
    return [part async for part in client.matching.Identify(request)]


async def batch(client, requests):
    items = [messages.BatchIdentifyRequest(request=request) for request in requests]
    return [part async for part in client.matching.BatchIdentify(iter(items))]


async def verifying_key(client):
    return (await client.keys.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest())).verifying_key


def slots_of(results):
    """All slots that results name."""
    return [slot for result in results for slot in np.frombuffer(result.slots, "<u4").tolist() if slot]


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
    capacity = safe.layout.group.capacity
    for i in range(capacity + 2):
        await safe.enroll(f"s{i % 5}", person(i))
    await identify(client, identify_request(safe, person(1))[0])  # by now it is known who calls
    await suite.stop("keys")  # which is not needed
    request, pending = identify_request(safe, person(1))
    assert pending is None
    parts = await identify(client, request)
    links = {link.slot: link.lead for part in parts for link in part.scores.links}
    assert links == {slot: (slot - 1) % 5 + 1 for slot in range(6, capacity + 3)}
    results = [result for part in parts for result in part.scores.results]
    assert slots_of(results) == list(range(1, capacity + 3))
    assert {result.columns for result in results} == {1}
    answer = await verify(client, verify_request(safe, person(1), [2, 7])[0])
    assert answer.WhichOneof("answer") == "scores"
    assert slots_of(answer.scores.results) == [2, 7]


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
    """By matching who calls, and by the key service whose request it is."""
    stranger = Credential.generate("callers/stranger")
    gallery = await suite.client(stranger, token=Signed(suite.operator)()).gallery("door")
    request, _ = verify_request(gallery, person(1), [1])
    with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        await verify(suite.client(stranger), request)
    with refused("UNAUTHENTICATED", "UNKNOWN_CALLER"):
        await verify(suite.client(), request)


async def test_the_key_service_away_is_unavailable(suite, client, peopled):
    assert (await peopled.identify(person(1))).match  # by now matching knows who calls
    await suite.stop("keys")
    with refused("UNAVAILABLE", "KEY_SERVICE_UNAVAILABLE"):
        await verify(client, verify_request(peopled, person(1), [1])[0])
    with refused("UNAVAILABLE", "KEY_SERVICE_UNAVAILABLE"):
        await identify(client, identify_request(peopled, person(1))[0])


async def test_a_search_that_loses_its_workers_under_way_says_so_at_once(suite, client, peopled):
    suite.home = Several(worker_of(WorkerConfig(suite.compute, ServerConfig()), suite.scheme))
    await suite.restart("matching")
    assert (await peopled.identify(person(1))).match
    suite.home.dies_after["w0"] = 0  # its blocks are in memory by then
    request, _ = identify_request(peopled, person(1))
    with refused("UNAVAILABLE", "SEARCH_INCOMPLETE"):
        async for _ in client.matching.Identify(request, timeout=3):
            pass


async def test_a_damaged_template_is_said_and_the_rest_still_serves(suite, client, peopled):
    assert (
        execute(suite.compute / "record.db", "UPDATE template_ciphertexts SET ciphertext = x'00' WHERE slot = 2") == 1
    )
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


@pytest.fixture
def passes(monkeypatch):
    """How many searches shared each pass; those that arrive together are waited for."""
    shared = []
    identify = Matcher.identify

    def counted(self, gallery_id, probes, *options):
        search = identify(self, gallery_id, probes, *options)
        shared.append((gallery_id, len(probes)))
        return search

    monkeypatch.setattr(Matcher, "identify", counted)
    monkeypatch.setattr(feed, "_LINGER_S", 0.3)
    return shared


def named(answers, asked, key):
    """Slots that each managed answer of a batch names, in the order of the answers."""
    pending = {request.request_id: pending for request, pending in asked}
    return [
        [candidate.slot for candidate in pending[answer.request_id].read(answer.response.decision, key)[0].candidates]
        for answer in answers
        if answer.HasField("response")
    ]


@both_schemes
async def test_searches_that_arrive_together_share_a_pass(client, peopled, passes):
    asked = [identify_request(peopled, person(i % 4)) for i in range(MOST_TOGETHER + 3)]
    answers = await batch(client, [request for request, _ in asked])
    assert passes == [("door", MOST_TOGETHER), ("door", 3)]
    assert [answer.request_id for answer in answers if answer.last] == [request.request_id for request, _ in asked]
    found = named(answers, asked, await verifying_key(client))
    assert found == [[[], [1], [2], [3]][i % 4] for i in range(MOST_TOGETHER + 3)]


@both_schemes
async def test_a_shared_pass_goes_over_all_blocks_for_each(client, safe, passes):
    await client.enrollment.ImportBlock(
        iter(import_messages(import_header(safe, ["s1", "s2"]), import_data(safe, [person(1), person(2)])))
    )
    await safe.enroll("s3", person(3))
    await safe.enroll("s1", person(4))
    requests = [identify_request(safe, person(i), request_id=f"r{i}")[0] for i in range(1, 5)]
    answers = await batch(client, requests)
    assert passes == [("safe", 4)]
    for i in range(1, 5):
        parts = [a.response for a in answers if a.request_id == f"r{i}" and a.HasField("response")]
        assert {part.layout_epoch for part in parts} == {3}
        results = [result for part in parts for result in part.scores.results]
        assert slots_of(results) == [1, 2, 3, 4]
        slots, distances = safe._keyed.judge.distances(results)
        assert int(slots[np.argmin(distances)]) == i
        links = [(link.slot, link.lead) for part in parts for link in part.scores.links]
        assert links == [(4, 1)]
    order = [answer.request_id for answer in answers]
    assert order == sorted(order)


async def test_one_that_is_wrong_stops_no_other_of_its_pass(suite, client, peopled, safe, passes):
    await safe.enroll("a", person(1))
    asked = [identify_request(peopled, person(i), request_id=f"r{i}") for i in range(1, 4)]
    requests = [request for request, _ in asked]
    wrong = {
        "probe": identify_request(peopled, person(1), request_id="probe")[0],
        "version": identify_request(peopled, person(1), request_id="version")[0],
        "signed": identify_request(peopled, person(1), request_id="signed", decision_request=None)[0],
        "nowhere": identify_request(peopled, person(1), request_id="nowhere", gallery="galleries/none")[0],
        "name": identify_request(peopled, person(1), request_id="name", gallery="none")[0],
        "no id": identify_request(peopled, person(1), request_id="no id")[0],
        "replayed": identify_request(peopled, person(1), request_id="replayed")[0],
    }
    wrong["probe"].probe.ciphertext = b"random"
    wrong["version"].probe.key_version = "keys/door/versions/2"
    wrong["replayed"].CopyFrom(requests[0])
    wrong["replayed"].request_id = "replayed"
    held = identify_request(safe, person(1), request_id="held")[0]
    sent = [wrong["probe"], requests[0], wrong["nowhere"], wrong["signed"], held, wrong["name"], requests[1]]
    sent += [wrong["version"], wrong["no id"], requests[2], wrong["replayed"]]
    answers = await batch(client, sent)
    assert [answer.request_id for answer in answers if answer.last] == [request.request_id for request in sent]
    failed = {a.request_id: (a.error.code, only_info(a.error).reason) for a in answers if a.HasField("error")}
    invalid, absent, before = (
        code.value[0] for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, USED)
    )
    # of two with one nonce either may be the first
    replayed = failed.pop("replayed", None) or failed.pop("r1")
    assert replayed == (before, "NONCE_USED")
    assert failed == {
        "probe": (invalid, "MALFORMED_CIPHERTEXT"),
        "version": (invalid, "WRONG_KEY_VERSION"),
        "signed": (invalid, "MISSING_FIELD"),
        "nowhere": (absent, "GALLERY_NOT_FOUND"),
        "name": (invalid, "INVALID_NAME"),
        "no id": (invalid, "INVALID_NAME"),
    }
    answered = [a for a in answers if a.HasField("response") and a.request_id in {"r2", "r3"}]
    assert named(answered, asked, await verifying_key(client)) == [[2], [3]]
    assert sum(1 for gallery, _ in passes if gallery == "safe") == 1


async def test_the_key_service_away_fails_each_search_of_a_pass(suite, client, peopled, passes):
    assert (await peopled.identify(person(1))).match
    await suite.stop("keys")
    answers = await batch(client, [identify_request(peopled, person(i))[0] for i in range(1, 4)])
    assert [only_info(answer.error).reason for answer in answers] == ["KEY_SERVICE_UNAVAILABLE"] * 3


async def test_answers_come_while_the_stream_is_open(client, peopled):
    go = asyncio.Event()
    first, last = (messages.BatchIdentifyRequest(request=identify_request(peopled, person(i))[0]) for i in (1, 2))

    async def items():
        yield first
        await go.wait()
        yield last

    call = client.matching.BatchIdentify(items())
    assert (await asyncio.wait_for(call.read(), 20)).HasField("response")
    assert (await call.read()).last
    go.set()
    assert (await call.read()).request_id == last.request.request_id
    assert (await call.read()).last
    assert await call.read() is grpc.aio.EOF


async def test_a_long_batch_ends_as_well_as_a_short_one(client, peopled, monkeypatch):
    """Whatever is told at its end has a size of its own, not the batch's."""
    monkeypatch.setattr(servicer, "MOST_TOGETHER", 1)
    asked = [identify_request(peopled, person(i % 4)) for i in range(300)]
    call = client.matching.BatchIdentify(iter([messages.BatchIdentifyRequest(request=request) for request, _ in asked]))
    answers = [answer async for answer in call]
    assert sum(answer.last for answer in answers) == 300
    trailing = dict(await call.trailing_metadata())
    assert len(trailing[SERVER_TIMING]) < 1000
    assert set(parse_timing(trailing[SERVER_TIMING])) == {"expand", "multiply", "pass", "open"}


async def test_a_batch_that_is_given_up_has_nothing_decided_any_more(client, peopled, passes, monkeypatch):
    began, ended = [], []

    async def slow(self, *arguments):
        began.append(1)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    monkeypatch.setattr(Decider, "decide", slow)
    items = [messages.BatchIdentifyRequest(request=identify_request(peopled, person(i))[0]) for i in range(4)]
    call = client.matching.BatchIdentify(iter(items))
    reading = asyncio.ensure_future(call.read())
    await until(lambda: len(began) == 4)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: len(ended) == 4)


async def until(true):
    for _ in range(200):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


# --- what is told of the time


@both_schemes
async def test_a_search_tells_its_steps_and_nothing_else(client, peopled, safe):
    await safe.enroll("a", person(1))
    for gallery, steps in ((peopled, {"expand", "multiply", "pass", "open"}), (safe, {"expand", "multiply", "pass"})):
        for vector in (person(1), person(9)):
            call = client.matching.Identify(identify_request(gallery, vector)[0])
            assert [part async for part in call]
            trailing = dict(await call.trailing_metadata())
            assert set(trailing) == {SERVER_TIMING, REQUEST_ID}
            told = parse_timing(trailing[SERVER_TIMING])
            assert set(told) == steps
            assert all(ms >= 0 for ms in told.values())


async def test_a_search_that_fails_tells_no_time(client, peopled):
    request, _ = identify_request(peopled, person(1))
    request.decision_request.signature = bytes(64)
    with refused("UNAUTHENTICATED", "BAD_SIGNATURE") as caught:
        await identify(client, request)
    assert SERVER_TIMING not in dict(caught.value.trailing_metadata())


# --- memory


async def test_a_gallery_over_the_memory_is_refused_and_no_other(suite, client, door, safe):
    suite.memory = 2 * block_memory(door.layout.group)
    await suite.restart("matching")
    for gallery in (door, safe):
        await gallery.enroll("ann", person(1))
    assert (await door.identify(person(1))).match
    await client.enrollment.ImportBlock(
        iter(import_messages(import_header(door, ["bob"]), import_data(door, [person(2)])))
    )
    for _ in range(2):
        with refused("RESOURCE_EXHAUSTED", "SHARD_TOO_LARGE") as caught:
            await identify(client, identify_request(door, person(1))[0])
        metadata = status_of(caught.value)[1].metadata
        assert int(metadata["limit_bytes"]) == suite.memory < int(metadata["needed_bytes"])
        (answer,) = await batch(client, [identify_request(door, person(1))[0]])
        assert only_info(answer.error).reason == "SHARD_TOO_LARGE"
        assert (await safe.identify(person(1))).match
    assert (await door.verify("ann", person(1))).match  # which needs nothing in memory
