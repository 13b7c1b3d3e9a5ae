"""Many clients at once get the answers that one would."""

from __future__ import annotations

import asyncio
import time

from sealface.cli.processes import LocalServices
from sealface_client import AsyncClient
from tests.system.conftest import POLICY, People, Vector

CLIENTS = 8
SECONDS = 5.0


async def test_eight_clients_enrol_and_identify_at_once(services: LocalServices) -> None:
    enrolled: dict[str, Vector] = {}
    wrong: list[str] = []
    answers = 0

    async def work(number: int, until: float) -> None:
        nonlocal answers
        people = People(number)
        async with AsyncClient.connect(services.state) as client:
            gallery = await client.gallery("crowd")
            count = 0
            while time.monotonic() < until:
                count += 1
                subject, face = f"c{number}-{count}", people.somebody()
                await gallery.enroll(subject, face)
                enrolled[subject] = face
                other = list(enrolled)[(7 * count + number) % len(enrolled)]  # most often another client's
                for who, probe in ((subject, face), (other, enrolled[other]), (None, people.somebody())):
                    found = await gallery.identify(people.again(probe))
                    if [named.subject for named in found.candidates] != ([who] if who else []):
                        wrong.append(f"identify {who}: {found.candidates}")
                    answers += 1
                for probe, match in ((people.again(enrolled[other]), True), (people.somebody(), False)):
                    if (await gallery.verify(other, probe)).match != match:
                        wrong.append(f"verify {other}: not {match}")
                    answers += 1

    async with AsyncClient.connect(services.state) as client:
        gallery = await client.create_gallery("crowd", policy=POLICY)
        until = time.monotonic() + SECONDS
        await asyncio.gather(*(work(number, until) for number in range(CLIENTS)))
        listed = await gallery.subjects()
        shown = await client.gallery("crowd")

    assert wrong == []
    assert answers >= 5 * CLIENTS
    assert {subject.name.rpartition("/")[2] for subject in listed} == set(enrolled)
    slots = [template.slot for subject in listed for template in subject.templates]
    assert sorted(slots) == list(range(1, len(enrolled) + 1))
    assert (shown.info.subjects, shown.info.templates) == (len(enrolled), len(enrolled))
