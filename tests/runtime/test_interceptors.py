import asyncio
import logging

import grpc
import pytest
from structlog.testing import capture_logs

from sealface.errors import NotFound, Unavailable
from tests.conftest import refused, status_of

KINDS = ["UU", "US", "SU", "SS"]
SECRET = "0.123456 /var/lib/keys 4711"  # what no caller and no log may see


@pytest.mark.parametrize("method", KINDS)
async def test_a_call_passes_and_leaves_one_line(running, method):
    with capture_logs() as logs:
        assert await running.call(method, b"payload") == b"payload"
    assert len(logs) == 1
    assert logs[0] | {"ms": 0} == {
        "event": "call",
        "log_level": "info",
        "method": f"/sealface.keys.v1.KeyService/{method}",
        "code": "OK",
        "ms": 0,
    }
    assert logs[0]["ms"] >= 0


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(("error", "code"), [(NotFound, "NOT_FOUND"), (Unavailable, "UNAVAILABLE")])
async def test_a_domain_error_is_a_status_with_one_error_info(running, method, error, code):
    running.raises = error("go there", limit=7)
    with capture_logs() as logs, refused(code, error.__name__.upper().replace("TF", "T_F")) as caught:
        await running.call(method)
    assert caught.value.details() == "go there"
    assert status_of(caught.value)[1].metadata == {"limit": "7"}
    assert [(line["code"], line["reason"]) for line in logs] == [(code, status_of(caught.value)[1].reason)]
    assert "go there" not in str(logs)


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(
    "error", [ValueError(SECRET), KeyError(SECRET), OSError(2, SECRET, SECRET), ZeroDivisionError()]
)
async def test_an_unexpected_error_is_internal_and_tells_nothing(running, method, error, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    running.raises = error
    with capture_logs() as logs, refused("INTERNAL", "INTERNAL_ERROR") as caught:
        await running.call(method)
    out, err = capfd.readouterr()
    for told in (str(caught.value), repr(caught.value.trailing_metadata()), str(logs), caplog.text, out, err):
        assert SECRET not in told
        assert "Traceback" not in told
    # the operator learns what and where
    unexpected = [line for line in logs if line["event"] == "unexpected"]
    assert [(line["error"], line["at"].split(":")[0]) for line in unexpected] == [
        (type(error).__name__, "running.<locals>.unary")
    ]


async def test_a_cancelled_call_is_logged_as_such(running):
    with capture_logs() as logs:
        call = asyncio.ensure_future(running.call("Slow"))
        await running.began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for _ in range(50):
            if logs:
                break
            await asyncio.sleep(0.02)
    assert [line["code"] for line in logs] == ["CANCELLED"]


async def test_a_deadline_that_passes_is_the_callers_to_see(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.call("Slow", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_unknown_method_is_unimplemented(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.channel.unary_unary("/sealface.keys.v1.KeyService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
