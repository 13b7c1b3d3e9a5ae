"""Two matching servers over one record see each other's changes: in the next answer, and within a second in memory."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from deploy import servers
from sealface.cipher.scheme import Scheme
from sealface.runtime.server import ServerConfig
from sealface.storage.database import open_database
from sealface.storage.schema import RECORD
from sealface.workers.embedded import Embedded
from sealface.workers.server import WorkerConfig, worker_of
from sealface_client import AsyncGallery
from sealface_client.gallery import SubjectNotFound
from tests.conftest import POLICY, Suite, both_schemes, near, person

WITHIN_S = 30.0  # not measured here: about half a second


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with servers.postgresql() as server:
        engine = open_database(server.url)
        RECORD.migrate(engine)
        engine.dispose()
        yield server.url


@dataclass
class Side:
    """A matching server with a worker of its own, and a gallery as a client of it sees it."""

    suite: Suite
    home: Embedded
    gallery: AsyncGallery

    async def names(self, number: int) -> list[str]:
        found = await self.gallery.identify(near(person(number), 0.1))
        return [candidate.subject for candidate in found.candidates]

    async def knows(self, subject: str, number: int) -> bool:
        try:
            return (await self.gallery.verify(subject, near(person(number), 0.1))).match
        except SubjectNotFound:
            return False

    def held(self) -> list[bytes]:
        """What names the blocks in its worker's memory."""
        return sorted(part.slots for part in self.home.held(self.gallery.id, 1))

    def open_slots(self) -> set[int]:
        """Of the groups among them."""
        groups = [part for part in self.home.held(self.gallery.id, 1) if part.columns == 1]
        return {slot for part in groups for slot in np.frombuffer(part.slots, "<u4").tolist() if slot}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
async def sides(request: pytest.FixtureRequest, tmp_path: Path, scheme: Scheme) -> AsyncIterator[list[Side]]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    gallery = f"door-{time.monotonic_ns()}"  # the database is one for all tests
    first = Suite(tmp_path, scheme, database=url)
    await first.start("keys", "enrollment")
    second = Suite(tmp_path, scheme, database=url, operator=first.operator, addresses=first.addresses.copy())
    made: list[Side] = []
    for suite in (first, second):
        made.append(await _side(suite, url, gallery, create=not made))
    assert first.addresses["matching"] != second.addresses["matching"]
    yield made
    made.clear()
    for suite in (second, first):
        await suite.close()
        suite.home = None
    with warnings.catch_warnings():  # connections to a database end with a service's process, which here goes on
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def _side(suite: Suite, url: str, gallery: str, create: bool) -> Side:
    suite.home = Embedded(worker_of(WorkerConfig(suite.compute, ServerConfig(), database=url), suite.scheme))
    await suite.start("matching")
    client = suite.client()
    opened = await (client.create_gallery(gallery, policy=POLICY) if create else client.gallery(gallery))
    return Side(suite, suite.home, opened)


async def until(true, what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@both_schemes
async def test_each_answers_for_what_was_enrolled_and_erased_through_the_other(sides: list[Side]) -> None:
    for number in range(1, 5):
        one, other = sides if number % 2 else reversed(sides)
        await one.gallery.enroll(f"s{number}", person(number))
        assert await other.names(number) == await one.names(number) == [f"s{number}"]
        assert await other.knows(f"s{number}", number)
    for number in range(1, 5):
        one, other = sides if number % 2 else reversed(sides)
        await one.gallery.erase(f"s{number}")
        assert await other.names(number) == await one.names(number) == []
        assert not await other.knows(f"s{number}", number)
        for left in range(number + 1, 5):
            assert await other.names(left) == [f"s{left}"]


async def test_what_is_erased_leaves_the_memory_of_both_without_a_search(sides: list[Side]) -> None:
    one, other = sides
    slots = {number: (await one.gallery.enroll(f"s{number}", person(number))).slot for number in range(1, 4)}
    for side in sides:
        assert await side.names(1) == ["s1"]
        assert side.open_slots() == set(slots.values())
    for number in (1, 2, 3):
        await one.gallery.erase(f"s{number}")
        for side in sides:
            await until(lambda side=side, slot=slots[number]: slot not in side.open_slots(), "it stays in memory")


async def test_a_block_that_was_replaced_leaves_the_memory_of_both_without_a_search(sides: list[Side]) -> None:
    one, other = sides
    faces = [(f"i{number}", person(number)) for number in range(1, 41)]
    imported = [part async for part in one.gallery.import_many(faces)]
    assert sum(part.templates for part in imported) == 40
    for side in sides:
        assert await side.names(7) == ["i7"]
    before = one.held()
    assert before == other.held() != []
    for subject, _ in faces:  # a block is dropped when all of its are erased
        await one.gallery.erase(subject)
    for side in sides:
        await until(lambda side=side: not set(before) & set(side.held()), "the block stays in memory")
    assert await one.names(7) == await other.names(7) == []
