"""Components under load, killed one after the other and sometimes two at once; accounts are settled at the end."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy import servers
from sealface.cli.processes import SERVICES, LocalServices, local_services
from sealface.storage.database import open_database
from sealface.storage.schema import RECORD
from sealface_client import AsyncClient
from tests.system.chaos.components import Component, DoesNotComeBack, Server, Service, Watching, Worker, actors
from tests.system.chaos.load import Again, Caller, Crowd, Final, Hung, Load, Mover
from tests.system.chaos.model import Findings, Person, State
from tests.system.conftest import POLICY, People

CALLERS = 4
IMPORTED = 120  # of which one block is made, and stays as it is
FILLED = 150  # open ones: a block of 192 is sealed when some more come
WORKERS = 2


@dataclass(frozen=True)
class Scenario:
    """What runs.

    Attributes:
        name: of it.
        servers: whether the record is in PostgreSQL, instead of in a file, with Redis as a cache.
        ray: whether workers are Ray actors, instead of processes of the matching service.
    """

    name: str
    servers: bool = False
    ray: bool = False


SCENARIOS = (Scenario("embedded"), Scenario("deployed", servers=True), Scenario("cluster", servers=True, ray=True))


@dataclass
class Running:
    """A scenario's processes."""

    services: LocalServices
    components: list[Component]
    watching: Watching


@contextmanager
def started(scenario: Scenario, chance: random.Random, state: Path | None) -> Iterator[Running]:
    """The processes of a scenario."""
    with ExitStack() as stack:
        environment = {
            "SEALFACE_WORKERS": str(WORKERS),
            "SEALFACE_THREADS": str(WORKERS),
            "SEALFACE_MEMORY": "1",
        }
        components: list[Component] = []
        if scenario.servers:
            postgresql, redis = stack.enter_context(servers.postgresql()), stack.enter_context(servers.redis())
            engine = open_database(postgresql.url)
            RECORD.migrate(engine)
            engine.dispose()
            environment |= {"SEALFACE_DATABASE": postgresql.url, "SEALFACE_REDIS": redis.url}
            components += [Server("postgresql", postgresql), Server("redis", redis)]
        if scenario.ray:
            cluster = stack.enter_context(servers.ray_cluster())
            environment |= {"SEALFACE_POOL": "ray", "SEALFACE_RAY_ADDRESS": cluster.url}
        services = stack.enter_context(local_services(state, **environment))
        components += [Service(services, name) for name in SERVICES]
        if scenario.ray:
            components.append(Worker("ray actor", lambda: actors(cluster), WORKERS, chance))
        else:
            components.append(Worker("worker", services.worker_pids, WORKERS, chance))
        yield Running(services, components, stack.enter_context(Watching(services)))


async def run(scenario: Scenario, kills: int, seed: int, state: Path | None = None) -> Findings:
    """Run a scenario.

    Args:
        scenario: which.
        kills: at least so many.
        seed: of what is left to chance.
        state: folder of the services, to be looked at afterwards; a temporary one if none is named.
    """
    chance = random.Random(seed)
    findings = Findings()
    with started(scenario, chance, state) as running:
        crowds = [Crowd(name, {number: [] for number in range(CALLERS)}) for name in ("managed", "held")]
        load = Load(running.services.state, crowds, findings, seed)
        await _fill(load)
        callers = [Caller(load, number) for number in range(CALLERS)]
        for caller in callers:
            await caller.connect()
        tasks = [asyncio.create_task(one.run()) for one in (*callers, Mover(load))]
        try:
            await load.answers()
            await _disturb(running, load, kills, chance)
            await load.answers()
        except (Hung, DoesNotComeBack) as error:
            failure = running.watching.failure
            findings.fault("hung", f"{error}; what starts services again ended: {failure!r}" if failure else str(error))
            _dump(running, load)
        load.stopping = True
        await asyncio.gather(*tasks)
        if not findings.counts["hung"]:
            await _settle(load, callers)
        for caller in callers:
            await caller.close()
        for line in _unexpected(running.services):
            findings.fault("unexpected", line)
        for path in sorted(running.services.state.glob("*/*.db")):
            if not _intact(path):
                findings.fault("wrong", f"{path.name} is damaged")
    return findings


async def _fill(load: Load) -> None:
    """Each gallery gets a block that was imported whole, and most of what is needed to seal one."""
    people = People(load.seed)
    async with AsyncClient.connect(load.state) as client:
        for crowd in load.crowds:
            gallery = await client.create_gallery(crowd.gallery, policy=POLICY, client_held=crowd.gallery == "held")
            new = [Person(f"i{number}", people.somebody(), None) for number in range(IMPORTED)]
            new += [Person(f"f{number}", people.somebody(), f"fill-{number}") for number in range(FILLED)]
            faces = [(person.subject, person.face) for person in new]
            async for imported in gallery.import_many(faces[:IMPORTED]):
                load.findings.counts["acknowledged"] += imported.templates
            for person in new[IMPORTED:]:
                enrolled = await gallery.enroll(person.subject, person.face, request_id=person.request_id)
                person.slot = enrolled.slot
                load.findings.counts["acknowledged"] += 1
            slots = {subject.name.rpartition("/")[2]: subject.templates[0].slot for subject in await gallery.subjects()}
            for number, person in enumerate(new):
                person.slot, person.state = slots[person.subject], State.ENROLLED
                crowd.everybody[number % CALLERS].append(person)


async def _disturb(running: Running, load: Load, kills: int, chance: random.Random) -> None:
    order = itertools.chain.from_iterable(
        chance.sample(running.components, len(running.components)) for _ in itertools.count()
    )
    while load.findings.kills.total() < kills and not load.stopping:
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        victims = list(itertools.islice(order, 2 if chance.random() < 0.25 else 1))
        for victim in victims:
            await asyncio.to_thread(victim.kill)
            load.findings.kills[victim.name] += 1
        await asyncio.sleep(chance.uniform(0, 1.0))
        for victim in victims:
            await asyncio.to_thread(victim.back)
        if chance.random() < 0.7:  # else the next kill finds it still coming back
            await load.answers()


async def _settle(load: Load, callers: Sequence[Caller]) -> None:
    """Everything is up: what is open is repeated, and what a new client is told is held against the model."""
    anew = Caller(load, len(callers))
    try:
        await asyncio.gather(*(caller.finish() for caller in callers))
        await anew.connect()
        for crowd in load.crowds:
            await anew.settle(crowd, [caller.galleries[crowd.gallery] for caller in callers])
    except Final:
        return  # it is counted
    except (Again, Hung) as error:
        load.findings.fault("hung", f"{error}, when all is there again")
    finally:
        await anew.close()


def _logs(services: LocalServices) -> Iterator[tuple[str, list[str]]]:
    for name in SERVICES:
        for path in services.state.glob(f"*/{name}.log"):
            yield name, path.read_text().splitlines()


def _unexpected(services: LocalServices) -> list[str]:
    """What the services themselves did not expect to go wrong."""
    found = []
    for name, lines in _logs(services):
        for line in lines:
            if line.startswith("{") and (event := json.loads(line))["event"] == "unexpected":
                found.append(f"{name}: {event['error']} at {event['at']} in {event['method']}")
    return found


def _intact(database: Path) -> bool:
    connection = sqlite3.connect(database)
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


def _dump(running: Running, load: Load) -> None:
    """What is under way, for whoever reads why it hangs."""
    now = time.monotonic()
    for number, (what, since) in load.under_way.items():
        print(f"client {number}: {what} for {now - since:.0f} s", file=sys.stderr)
    for name, lines in _logs(running.services):
        print(f"--- {name}", *lines[-20:], sep="\n", file=sys.stderr)
