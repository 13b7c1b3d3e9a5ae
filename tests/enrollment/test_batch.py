import asyncio

from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from tests.conftest import both_schemes, only_info, person
from tests.enrollment.conftest import enroll_request


async def batch(client, requests):
    items = [messages.BatchEnrollRequest(request=request) for request in requests]
    return [response async for response in client.enrollment.BatchEnroll(iter(items))]


@both_schemes
async def test_one_that_fails_in_the_middle_does_not_stop_the_others(suite, client, door):
    requests = [enroll_request(door, f"s{i}", person(i), request_id=f"r{i}") for i in range(5)]
    requests[1].ciphertext = b"random"
    requests[3].gallery = "galleries/none"
    answers = await batch(client, requests)
    assert [answer.request_id for answer in answers] == ["r0", "r1", "r2", "r3", "r4"]
    assert [answer.WhichOneof("result") for answer in answers] == ["enrolled", "error", "enrolled", "error", "enrolled"]
    assert [only_info(answers[i].error).reason for i in (1, 3)] == ["MALFORMED_CIPHERTEXT", "GALLERY_NOT_FOUND"]
    assert [answers[i].enrolled.template.slot for i in (0, 2, 4)] == [1, 2, 3]
    assert [row[2] for row in suite.record()["templates"]] == ["s0", "s2", "s4"]


async def test_an_empty_batch_and_an_empty_item(client, door):
    assert await batch(client, []) == []
    (answer,) = await batch(client, [messages.EnrollRequest()])
    assert only_info(answer.error).reason == "INVALID_NAME"


async def test_a_repeated_item_gets_the_same_answer(suite, client, door):
    request = enroll_request(door, request_id="same")
    first, second = await batch(client, [request, request])
    assert first == second
    assert len(suite.record()["templates"]) == 1


async def test_answers_come_while_the_stream_is_open(client, door):
    go = asyncio.Event()

    async def items():
        yield messages.BatchEnrollRequest(request=enroll_request(door, "a"))
        await go.wait()
        yield messages.BatchEnrollRequest(request=enroll_request(door, "b"))

    call = client.enrollment.BatchEnroll(items())
    first = await asyncio.wait_for(call.read(), 5)
    assert first.enrolled.template.slot == 1
    go.set()
    assert (await call.read()).enrolled.template.slot == 2


async def test_a_stream_that_breaks_off_keeps_what_was_acknowledged(suite, client, door):
    async def items():
        yield messages.BatchEnrollRequest(request=enroll_request(door, "a"))
        await asyncio.sleep(60)

    call = client.enrollment.BatchEnroll(items())
    await asyncio.wait_for(call.read(), 5)
    call.cancel()
    assert len(suite.record()["templates"]) == 1
