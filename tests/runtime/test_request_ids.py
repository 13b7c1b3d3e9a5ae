import asyncio
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import structlog
from structlog.contextvars import get_contextvars, merge_contextvars

from sealface.errors import NotFound
from sealface.runtime.request_ids import REQUEST_ID, passed_on
from sealface.runtime.server import Server, ServerConfig
from tests.runtime.conftest import SERVICE

KINDS = ["UU", "US", "SU", "SS"]
MINE = uuid.uuid4().hex


@pytest.fixture
def lines():
    """Log lines as services write them."""
    found = []

    def keep(_logger, _name, event):
        found.append(dict(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[merge_contextvars, keep])
    yield found
    structlog.configure(**before)


async def call(running, method, sent):
    """The trailing metadata of a call."""
    path, metadata = f"/{SERVICE}/{method}", ((REQUEST_ID, sent),) if sent is not None else ()

    async def stream():
        yield b"x"

    make = {"U": "unary", "S": "stream"}
    kind = f"{make[method[0]]}_{make[method[1]]}"
    begun = getattr(running.channel, kind)(path)(b"x" if method[0] == "U" else stream(), metadata=metadata)
    if method[1] == "S":
        async for _ in begun:
            pass
    else:
        await begun
    return dict(await begun.trailing_metadata())


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("sent", [MINE, MINE.upper(), str(uuid.uuid4())])
async def test_an_id_that_a_caller_chose_is_logged_and_given_back(running, lines, method, sent):
    assert (await call(running, method, sent))[REQUEST_ID] == sent
    assert [line["request_id"] for line in lines] == [sent]


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(
    "sent", [None, "", "4711", "0.123456789", "x" * 32, MINE + "0", f"{MINE} ", "1234-5678-9012-3456"]
)
async def test_an_id_is_drawn_where_there_is_none_of_its_form(running, lines, method, sent):
    found = {(await call(running, method, sent))[REQUEST_ID] for _ in range(2)}
    assert len(found) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in found)
    assert {line["request_id"] for line in lines} == found
    assert not sent or sent not in found


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("error", [NotFound("go there"), ZeroDivisionError()])
async def test_an_error_carries_it_too(running, lines, method, error):
    running.raises = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(running, method, MINE)
    assert dict(caught.value.trailing_metadata())[REQUEST_ID] == MINE
    assert lines
    assert {line["request_id"] for line in lines} == {MINE}


async def test_what_a_call_does_in_threads_and_calls_is_under_its_id_and_no_others(lines):
    log = structlog.get_logger("test")
    told = []

    async def handler(request, context):
        context.set_trailing_metadata((("mine", "1"),))
        told.append(passed_on())
        await asyncio.sleep(0.05)  # the others begin
        await asyncio.to_thread(log.info, request.decode())
        return request

    server = Server(ServerConfig(), [SERVICE])
    handlers = {"UU": grpc.unary_unary_rpc_method_handler(handler)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        ids = [uuid.uuid4().hex for _ in range(8)]
        calls = [channel.unary_unary(f"/{SERVICE}/UU")(one[:6].encode(), metadata=((REQUEST_ID, one),)) for one in ids]
        await asyncio.gather(*calls)
        assert [dict(await one.trailing_metadata()) for one in calls] == [{"mine": "1", REQUEST_ID: one} for one in ids]
    await server.stop()
    said = [line for line in lines if line["event"] != "call"]
    assert {line["event"]: line["request_id"] for line in said} == {one[:6]: one for one in ids}
    assert sorted(told) == sorted(((REQUEST_ID, one),) for one in ids)
    assert "request_id" not in get_contextvars()  # of whoever started the server


def test_nothing_is_passed_on_outside_a_call():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(passed_on).result() == ()
