"""Kill any service at any moment and start it again: what was acknowledged is there, what was erased is not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealface.cli.processes import SERVICES, LocalServices, local_services
from sealface.errors import SealfaceError
from sealface_client import AsyncClient, Client, ServiceError
from sealface_protos.enrollment.v1 import enrollment_service_pb2, enrollment_service_pb2_grpc
from tests.system.chaos.components import Service, Watching
from tests.system.conftest import POLICY, People, Vector, logs, revived

AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_a_request_id_repeated_over_a_crash_makes_one_template(people: People) -> None:
    with local_services() as services, Client.connect(services.state) as client:
        gallery = client.create_gallery("door", policy=POLICY)
        face = people.somebody()
        first = gallery.enroll("ada", face, request_id="once")
        with revived(services, "enrollment"):
            pass
        deadline = time.monotonic() + 20
        while True:
            try:
                again = gallery.enroll("ada", face, request_id="once")
                break
            except ServiceError as error:
                assert error.code in AWAY
                assert time.monotonic() < deadline
        assert (again.template, again.slot) == (first.template, first.slot)
        assert [len(subject.templates) for subject in gallery.subjects()] == [1]


def test_a_dead_service_is_named_and_the_others_go_on(people: People) -> None:
    with local_services() as services, Client.connect(services.state) as client:
        gallery = client.create_gallery("door", policy=POLICY)
        face = people.somebody()
        gallery.enroll("ada", face)
        assert gallery.verify("ada", face).match
        with revived(services, "keys"):
            with pytest.raises(ServiceError) as failure:
                gallery.verify("ada", face)
            assert (failure.value.code, failure.value.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "KEY_SERVICE_UNAVAILABLE",
            )
            assert failure.value.retryable
            gallery.enroll("bob", people.somebody())
        with revived(services, "matching"):
            with pytest.raises(ServiceError, match="the matching service does not answer: start it") as failure:
                gallery.identify(face)
            assert failure.value.code is grpc.StatusCode.UNAVAILABLE


def children(pid: int) -> dict[str, int]:
    """Service -> process id of what a `sealface serve` started."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "serve" in words:
            found[words[words.index("serve") + 1]] = int(child)
    return found


@contextmanager
def serving(state: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`sealface serve` as a process, with its ready line."""
    command = [sys.executable, "-m", "sealface.cli.main", "serve", "--state", str(state)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started: dict[str, int] = {}
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        started = children(process.pid)
        yield process, ready
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                for child in started.values():
                    os.kill(child, signal.SIGKILL)


def patiently(call: Any, within_s: float = 20) -> Any:
    """The answer of a call, once a service that was killed is back."""
    until = time.monotonic() + within_s
    while True:
        try:
            return call()
        except ServiceError as error:
            if error.code not in AWAY or time.monotonic() > until:
                raise
            time.sleep(0.2)


@pytest.mark.timeout(180)
def test_serve_starts_again_what_dies_finishes_when_asked_to_stop_and_finds_its_state(
    tmp_path: Path, people: People
) -> None:
    ada, bob, eve = (people.somebody() for _ in range(3))
    with serving(tmp_path) as (process, ready):
        assert set(ready) == {"keys", "enrollment", "matching", "ca", "state"}
        assert ready["state"] == str(tmp_path)
        assert children(process.pid).keys() == set(SERVICES)
        with Client.connect(tmp_path) as client:
            gallery = client.create_gallery("door", policy=POLICY)
            gallery.enroll("ada", ada)
            gallery.enroll("eve", eve)
            gallery.erase("eve")
            for victim in SERVICES:
                before = children(process.pid)[victim]
                os.kill(before, signal.SIGKILL)
                until = time.monotonic() + 30
                while children(process.pid).get(victim, before) == before:
                    assert time.monotonic() < until, f"{victim} was not started again"
                    time.sleep(0.1)
                gallery = patiently(lambda: client.gallery("door"))
                assert patiently(lambda found=gallery: found.verify("ada", people.again(ada))).match
            written = {name: ready[name] for name in SERVICES} | {"ca": "ca.pem"}
            assert json.loads((tmp_path / "services.json").read_text()) == written
            assert ready["ca"] == str(tmp_path / "ca.pem")
            asyncio.run(_stopped_amid_a_call(tmp_path, process, bob))
        said = process.communicate(timeout=40)[1]
        assert process.returncode == 0
        assert all(f"the {victim} service died: starting it again" in " ".join(said.split()) for victim in SERVICES)
        assert "Traceback" not in said
        for name, text in logs(LocalServices(tmp_path)).items():
            events = [json.loads(line)["event"] for line in text.splitlines()]
            assert "stopping" in events and events[-1] == "stopped", name

    with serving(tmp_path) as (process, _), Client.connect(tmp_path) as client:
        gallery = client.gallery("door")
        assert {subject.name.rpartition("/")[2] for subject in gallery.subjects()} == {"ada", "first", "second"}
        assert gallery.verify("ada", people.again(ada)).match
        assert gallery.verify("second", people.again(bob)).match
        assert not gallery.identify(people.again(eve)).match
        gallery.enroll("new", eve)
        assert [named.subject for named in gallery.identify(people.again(eve)).candidates] == ["new"]


async def _stopped_amid_a_call(state: Path, process: subprocess.Popen[str], face: Vector) -> None:
    """A stream that has begun goes on after SIGTERM; a new call is refused."""
    async with AsyncClient.connect(state) as client:
        gallery = await client.gallery("door")
        stub: enrollment_service_pb2_grpc.EnrollmentServiceAsyncStub = client.enrollment
        call = stub.BatchEnroll(timeout=30)
        for subject in ("first", "second"):
            request = await gallery._enroll_request(subject, face, None)
            await call.write(enrollment_service_pb2.BatchEnrollRequest(request=request))
            response = await call.read()
            assert response.enrolled.template.name.startswith(f"galleries/door/subjects/{subject}/")
            if subject == "first":
                process.send_signal(signal.SIGTERM)
                log = state / "compute" / "enrollment.log"
                until = time.monotonic() + 15
                while '"stopping"' not in log.read_text():
                    assert time.monotonic() < until, "the enrollment service does not say that it stops"
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.2)
                with pytest.raises(SealfaceError) as refused:
                    await gallery.subjects()
                assert refused.value.reason == "UNAVAILABLE"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


def test_a_service_that_dies_while_it_starts_is_started_again(people: People) -> None:
    with local_services() as services, Watching(services), Client.connect(services.state) as client:
        gallery = client.create_gallery("door", policy=POLICY)
        face = people.somebody()
        gallery.enroll("ada", face)
        enrollment = Service(services, "enrollment")
        for _ in range(3):  # long before it is ready
            enrollment.kill()
            enrollment.back()
        assert [subject.name.rpartition("/")[2] for subject in patiently(gallery.subjects)] == ["ada"]
