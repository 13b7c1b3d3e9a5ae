"""Clients that enrol, erase, verify and identify, each with people of its own, and hold every answer to the model.

Meanwhile the galleries are moved from one version of their keys to the next.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sealface.errors import SealfaceError
from sealface_client import AsyncClient, AsyncGallery, ServiceError
from sealface_client.gallery import SubjectNotFound
from tests.system.chaos.model import Before, Findings, Person, State
from tests.system.conftest import People

KINDS = {"enroll": 4, "erase": 3, "verify": 4, "identify": 5, "repeat": 1}
HANG_S = 180.0  # the longest deadline is 30 s; what comes back does so within seconds, on an idle machine
DEADLINE_S = 30.0
_PAUSE_S = 0.15
_BETWEEN_MOVES_S = 2.0
_T = TypeVar("_T")


class Again(Exception):
    """A call failed, and says that it may be repeated."""


class Final(Exception):
    """A call failed, and does not say so."""


class Hung(Exception):
    """A call does not end, or fails for too long."""


@dataclass
class Crowd:
    """Everybody in one gallery.

    Attributes:
        gallery: its id.
        everybody: by whose client they are.
        recent: those who changed last.
    """

    gallery: str
    everybody: dict[int, list[Person]]
    recent: deque[Person] = field(default_factory=lambda: deque(maxlen=4))

    def settle(self, person: Person, state: State) -> None:
        """A change is acknowledged."""
        person.settle(state)
        self.recent.append(person)

    def all(self, *states: State) -> list[Person]:
        return [person for people in self.everybody.values() for person in people if person.state in states]


@dataclass
class Load:
    """What the clients share.

    Attributes:
        state: the services' state folder.
        crowds: by gallery.
        findings: what comes of it.
        answered: calls by kind.
        under_way: by client, and since when.
    """

    state: Path
    crowds: list[Crowd]
    findings: Findings
    seed: int
    answered: Counter[str] = field(default_factory=Counter)
    under_way: dict[int, tuple[str, float]] = field(default_factory=dict)
    stopping: bool = False

    async def answers(self) -> None:
        """Wait until calls of every kind have been answered from now on."""
        before = self.answered.copy()
        deadline = time.monotonic() + HANG_S
        while any(self.answered[kind] <= before[kind] for kind in KINDS):
            if self.stopping:
                return
            if time.monotonic() > deadline:
                silent = [kind for kind in KINDS if self.answered[kind] <= before[kind]]
                raise Hung(f"no answers to {', '.join(silent)} for {HANG_S:.0f} s")
            await asyncio.sleep(0.05)


async def _all(items: AsyncIterator[_T]) -> list[_T]:
    return [item async for item in items]


class Caller:
    """One client.

    Args:
        load: what it shares with the others.
        number: its own.
    """

    def __init__(self, load: Load, number: int) -> None:
        self._load, self._number = load, number
        self._findings = load.findings
        self._random = random.Random(f"{load.seed} {number}")
        self._people = People(load.seed + 1 + number)
        self._client = AsyncClient.connect(load.state)
        self._client.timeout_s = DEADLINE_S
        self.galleries: dict[str, AsyncGallery] = {}

    async def connect(self) -> None:
        """Fetch the galleries."""
        for crowd in self._load.crowds:
            self.galleries[crowd.gallery] = await self._client.gallery(crowd.gallery)

    async def close(self) -> None:
        await self._client.close()

    async def run(self) -> None:
        """Call until it is time to stop."""
        try:
            while not self._load.stopping:
                await self._step(self._random.choice(self._load.crowds))
                await asyncio.sleep(self._random.uniform(0, _PAUSE_S))
        except Hung as hung:
            self._findings.fault("hung", str(hung))
            self._load.stopping = True

    async def finish(self) -> None:
        """Repeat what has not been answered, now that everything is there."""
        for crowd in self._load.crowds:
            for person in crowd.everybody[self._number]:
                if person.state is State.OPEN and person.slot is None:
                    await self._enroll(crowd, person)
                elif person.state is State.OPEN:
                    await self._erase(crowd, person)

    async def settle(self, crowd: Crowd, others: Sequence[AsyncGallery]) -> None:
        """Hold everybody in a gallery, and the other clients' tables, against what this client is told."""
        gallery, findings = self.galleries[crowd.gallery], self._findings
        here, gone = crowd.all(State.ENROLLED), crowd.all(State.ERASED)
        listed = await self._once("list", crowd.gallery, gallery.subjects)
        slots = {subject.name.rpartition("/")[2]: [t.slot for t in subject.templates] for subject in listed}
        for person in here:
            if person.subject not in slots:
                findings.fault("lost", f"{person.subject} is not listed")
            elif slots.pop(person.subject) != [person.slot]:
                findings.fault("wrong", f"{person.subject} has other slots than {person.slot}")
        for person in gone:
            if slots.pop(person.subject, None) is not None:
                findings.fault("resurrected", f"{person.subject} is listed")
        if slots:
            findings.fault("wrong", f"nobody enrolled {sorted(slots)}")
        for table in (gallery, *others):
            await self._once("list", "slots", table._update_slots)
            if table._slots._subjects != {person.slot: person.subject for person in here}:
                findings.fault("wrong", f"a table of the slots of {crowd.gallery} is not what was acknowledged")
        everybody = [*here, *gone]
        befores = [Before.of(person) for person in everybody]
        probes = [self._people.again(person.face) for person in everybody]
        found = await self._once("identify", "everybody", lambda: _all(gallery.identify_many(probes)))
        for before, answer in zip(befores, found, strict=True):
            if isinstance(answer, SealfaceError):
                findings.fault("not_retryable", f"identify {before.person.subject} at the end: {answer.reason}")
            else:
                findings.named(before, [candidate.subject for candidate in answer.candidates])
        for person in everybody:
            await self._verify(crowd, person)

    async def _step(self, crowd: Crowd) -> None:
        (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
        own = [person for person in crowd.everybody[self._number] if person.state is State.ENROLLED]
        try:
            if kind == "enroll" or not own:
                kind = "enroll"
                count = len(crowd.everybody[self._number])
                person = Person(f"c{self._number}-{count}", self._people.somebody(), uuid.uuid4().hex)
                crowd.everybody[self._number].append(person)
                await self._enroll(crowd, person)
            elif kind == "erase":
                await self._erase(crowd, self._random.choice(own))
            elif kind == "repeat":
                await self._repeat(crowd)
            elif kind == "verify":
                await self._verify(crowd, self._anybody(crowd))
            else:
                await self._identify(crowd, self._anybody(crowd))
        except (Again, Final):
            return
        self._load.answered[kind] += 1

    def _anybody(self, crowd: Crowd) -> Person:
        """Also other clients' people, those that are erased, and most often who changed last."""
        if crowd.recent and self._random.random() < 0.6:
            return self._random.choice(crowd.recent)
        gone = crowd.all(State.ERASED)
        if gone and self._random.random() < 0.3:
            return self._random.choice(gone)
        return self._random.choice(crowd.all(State.ENROLLED, State.OPEN))

    async def _enroll(self, crowd: Crowd, person: Person) -> None:
        person.begin()
        gallery = self.galleries[crowd.gallery]

        async def call() -> int:
            return (await gallery.enroll(person.subject, person.face, request_id=person.request_id)).slot

        person.slot = await self._insist(crowd, person, "enroll", call)
        crowd.settle(person, State.ENROLLED)
        self._findings.counts["acknowledged"] += 1

    async def _erase(self, crowd: Crowd, person: Person) -> None:
        person.begin()
        gallery = self.galleries[crowd.gallery]

        async def call() -> None:
            first, person.erasing = not person.erasing, True
            try:
                await gallery.erase(person.subject)
            except ServiceError as error:
                if error.reason != "SUBJECT_NOT_FOUND":
                    raise
                if first:
                    self._findings.fault("lost", f"{person.subject} cannot be erased: it is not there")

        await self._insist(crowd, person, "erase", call)
        crowd.settle(person, State.ERASED)

    async def _repeat(self, crowd: Crowd) -> None:
        """An old enrolment arrives once more: it gets its first answer, and enrols nobody."""
        own = [
            person for person in crowd.everybody[self._number] if person.state is not State.OPEN and person.request_id
        ]
        if not own:
            return
        person = self._random.choice(own)
        gallery = self.galleries[crowd.gallery]

        async def call() -> int:
            return (await gallery.enroll(person.subject, person.face, request_id=person.request_id)).slot

        slot = await self._once("repeat", person.subject, call)
        if person.slot is not None and slot != person.slot:
            self._findings.fault("wrong", f"{person.subject} was enrolled twice, in slots {person.slot} and {slot}")
        await self._identify(crowd, person)

    async def _verify(self, crowd: Crowd, person: Person) -> None:
        gallery = self.galleries[crowd.gallery]
        genuine = self._random.random() < 0.6
        probe = self._people.again(person.face) if genuine else self._people.somebody()
        before = Before.of(person)

        async def call() -> bool | None:
            try:
                return (await gallery.verify(person.subject, probe)).match
            except SubjectNotFound:
                return None

        match = await self._once("verify", person.subject, call)
        self._findings.verified(before, genuine, match)

    async def _identify(self, crowd: Crowd, person: Person) -> None:
        gallery = self.galleries[crowd.gallery]
        probe = self._people.again(person.face)
        before = Before.of(person)
        found = await self._once("identify", person.subject, lambda: gallery.identify(probe))
        self._findings.named(before, [candidate.subject for candidate in found.candidates])
        if found.searched != 1.0:
            self._findings.fault("wrong", f"a search says that it saw {found.searched} of the gallery")

    async def _insist(self, crowd: Crowd, person: Person, kind: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat a change until it is answered; now and then look what is to be seen of it meanwhile."""
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                return await self._once(kind, person.subject, call)
            except Again as again:
                if time.monotonic() > deadline:
                    raise Hung(f"{kind} {person.subject} fails for {HANG_S:.0f} s: {again}") from None
            if self._random.random() < 0.3:
                try:
                    await self._identify(crowd, person)
                except (Again, Final):
                    continue
            await asyncio.sleep(self._random.uniform(0, 2 * _PAUSE_S))

    async def _once(self, kind: str, subject: str, call: Callable[[], Awaitable[_T]]) -> _T:
        what = f"{kind} {subject}"
        self._findings.calls[kind] += 1
        self._load.under_way[self._number] = (what, time.monotonic())
        try:
            async with asyncio.timeout(HANG_S):
                return await call()
        except TimeoutError:
            raise Hung(f"{what} has not ended after {HANG_S:.0f} s") from None
        except ServiceError as error:
            self._findings.reasons[f"{error.code.name} {error.reason}"] += 1
            said = f"{error.code.name} {error.reason}: {error.message}"
            if error.retryable:
                self._findings.counts["retryable_errors"] += 1
                raise Again(said) from None
            self._findings.fault("not_retryable", f"{what}: {said}")
            raise Final(said) from None
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            self._findings.fault("not_retryable", f"{what}: {said}")
            raise Final(said) from error
        finally:
            del self._load.under_way[self._number]


class Mover:
    """An operator who moves the galleries to new versions of their keys, one after the other."""

    def __init__(self, load: Load) -> None:
        self._load, self._findings = load, load.findings
        self._client = AsyncClient.connect(load.state)
        self._client.timeout_s = DEADLINE_S

    async def run(self) -> None:
        """Move until it is time to stop."""
        try:
            while not self._load.stopping:
                for crowd in self._load.crowds:
                    await self._insist(crowd)
                    await asyncio.sleep(_BETWEEN_MOVES_S)
        except Hung as hung:
            self._findings.fault("hung", str(hung))
            self._load.stopping = True
        finally:
            await self._client.close()

    async def _insist(self, crowd: Crowd) -> None:
        """A rotation that was broken off goes on when it is asked for again."""
        deadline = time.monotonic() + HANG_S
        while not self._load.stopping:
            try:
                async with asyncio.timeout(HANG_S):
                    gallery = await self._client.gallery(crowd.gallery)
                    moved = await gallery.operations.wait(await gallery.rotate())
            except TimeoutError:
                raise Hung(f"rotate {crowd.gallery} has not ended after {HANG_S:.0f} s") from None
            except ServiceError as error:
                said = f"rotate {crowd.gallery}: {error.code.name} {error.reason}: {error.message}"
                self._findings.reasons[f"{error.code.name} {error.reason}"] += 1
                if not error.retryable:
                    self._findings.fault("not_retryable", said)
                    return
                self._findings.counts["retryable_errors"] += 1
                if time.monotonic() > deadline:
                    raise Hung(said) from None
                await asyncio.sleep(_PAUSE_S)
            except Exception as error:
                self._findings.fault("not_retryable", f"rotate {crowd.gallery}: {type(error).__name__}: {error}")
                return
            else:
                if moved.rotated.ciphertexts:
                    self._findings.calls["rotate"] += 1
                return
