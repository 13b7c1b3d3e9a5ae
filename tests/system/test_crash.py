"""Kill any service at any moment and start it again: what was acknowledged is there, what was erased is not."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealface.cli.processes import SERVICES, LocalServices, local_services
from sealface.errors import SealfaceError
from sealface_client import AsyncClient, AsyncGallery, Client, ServiceError
from sealface_client.gallery import SubjectNotFound
from sealface_protos.enrollment.v1 import enrollment_service_pb2, enrollment_service_pb2_grpc
from tests.system.conftest import POLICY, People, Vector, kill, logs, revived

KILLS = 6
WORKERS = 4
AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


class Load:
    """Calls as fast as they are answered, and what is known from the answers."""

    def __init__(self, gallery: AsyncGallery, seed: int) -> None:
        self.gallery = gallery
        self.people = People(seed)
        self.random = random.Random(seed)
        self.enrolled: dict[str, Vector] = {}
        self.erased: dict[str, Vector] = {}
        self.unsure: dict[str, tuple[str, Vector]] = {}  # an enrolment that was not answered: request id, face
        self.half_erased: dict[str, Vector] = {}
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.stopping = False

    async def work(self, worker: int) -> None:
        mine: dict[str, Vector] = {}
        count = 0
        while not self.stopping:
            count += 1
            kind = self.random.choices(("enroll", "verify", "identify", "erase"), (4, 3, 3, 1))[0]
            if kind == "enroll" or not mine:
                await self.enroll(f"w{worker}-{count}", mine)
                continue
            subject = self.random.choice(list(mine))
            try:
                if kind == "verify":
                    await self.verify(subject, mine[subject])
                elif kind == "identify":
                    await self.identify(subject, mine[subject])
                else:
                    await self.erase(subject, mine)
                self.done[kind] += 1
            except Exception as error:
                await self.note(kind, error)

    async def note(self, kind: str, error: Exception) -> None:
        """A call may fail while a service is away, and must say so."""
        if isinstance(error, ServiceError) and error.code in AWAY and error.reason and error.message:
            self.failed[error.reason] += 1
        else:
            reason = getattr(error, "reason", "")
            self.wrong.append(f"{kind}: {type(error).__name__} {reason} {error}")
        await asyncio.sleep(0.05)

    async def enroll(self, subject: str, mine: dict[str, Vector]) -> None:
        face, request_id = self.people.somebody(), uuid.uuid4().hex
        try:
            await self.gallery.enroll(subject, face, request_id=request_id)
        except Exception as error:
            self.unsure[subject] = (request_id, face)
            await self.note("enroll", error)
            return
        self.enrolled[subject] = mine[subject] = face
        self.done["enroll"] += 1

    async def verify(self, subject: str, face: Vector) -> None:
        genuine = self.random.random() < 0.5
        probe = self.people.again(face) if genuine else self.people.somebody()
        if (await self.gallery.verify(subject, probe)).match != genuine:
            self.wrong.append(f"verify {subject}: not {genuine}")

    async def identify(self, subject: str, face: Vector) -> None:
        if self.erased and self.random.random() < 0.3:
            gone = self.random.choice(list(self.erased))
            found = await self.gallery.identify(self.people.again(self.erased[gone]))
            if found.match:
                self.wrong.append(f"identify found {found.candidates}, {gone} was erased")
            return
        found = await self.gallery.identify(self.people.again(face))
        if [named.subject for named in found.candidates] != [subject]:
            self.wrong.append(f"identify {subject}: {found.candidates}")

    async def erase(self, subject: str, mine: dict[str, Vector]) -> None:
        face = mine.pop(subject)
        del self.enrolled[subject]
        try:
            await self.gallery.erase(subject)
        except BaseException:
            self.half_erased[subject] = face
            raise
        self.erased[subject] = face

    async def settle(self) -> None:
        """Repeat what was not answered: the answer comes, and nothing happens twice."""
        for subject, (request_id, face) in self.unsure.items():
            await self.gallery.enroll(subject, face, request_id=request_id)
            self.enrolled[subject] = face
        for subject, face in self.half_erased.items():
            try:
                await self.gallery.erase(subject)
            except ServiceError as error:
                assert error.reason == "SUBJECT_NOT_FOUND"
            self.erased[subject] = face


async def answers(gallery: AsyncGallery, within_s: float) -> None:
    """Wait until every service answers."""
    face = People(0).somebody()
    until = time.monotonic() + within_s
    while True:
        try:
            await gallery.enroll("canary", face)
            assert (await gallery.verify("canary", face)).match
            await gallery.erase("canary")
            return
        except ServiceError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.2)


def intact(database: Path) -> bool:
    with sqlite3.connect(database) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    return found == [("ok",)]


@pytest.mark.timeout(180)
async def test_killed_services_lose_nothing_that_was_acknowledged() -> None:
    seed = int(os.environ.get("SEALFACE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    print(f"SEALFACE_SEED={seed}")
    chance = random.Random(seed)
    with local_services() as services:
        addresses = dict(services.addresses)
        async with AsyncClient.connect(services.state) as client:
            client.timeout_s = 15
            gallery = await client.create_gallery("door", policy=POLICY)
            load = Load(gallery, seed)
            workers = [asyncio.create_task(load.work(number)) for number in range(WORKERS)]
            victims = [name for _ in range(KILLS // len(SERVICES)) for name in chance.sample(SERVICES, len(SERVICES))]
            for victim in victims:
                await asyncio.sleep(chance.uniform(0.5, 1.5))
                before = services.pid(victim)
                kill(services, victim)
                await asyncio.sleep(chance.uniform(0, 0.3))
                await asyncio.to_thread(services.launch, victim)
                assert services.pid(victim) != before
            assert services.addresses == addresses
            await answers(gallery, within_s=20)
            await asyncio.sleep(1)
            load.stopping = True
            await asyncio.gather(*workers)
            await load.settle()

            assert load.wrong == []
            assert all(load.done[kind] > 3 for kind in ("enroll", "verify", "identify", "erase")), load.done
            assert load.failed, "no call noticed a kill: the load is too small"
            listed = {subject.name.rpartition("/")[2]: subject for subject in await gallery.subjects()}
            assert set(listed) == set(load.enrolled)
            assert all(len(subject.templates) == 1 for subject in listed.values())
            for subject, face in load.enrolled.items():
                found = await gallery.identify(load.people.again(face))
                assert [named.subject for named in found.candidates] == [subject]
            for subject, face in load.erased.items():
                assert not (await gallery.identify(load.people.again(face))).match
                with pytest.raises(SubjectNotFound):
                    await gallery.verify(subject, face)
        assert all(intact(services.state / path) for path in ("compute/record.db", "keys/keys.db"))


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
            assert json.loads((tmp_path / "services.json").read_text()) == {name: ready[name] for name in SERVICES}
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
