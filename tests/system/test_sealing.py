"""Blocks are sealed, made anew and searched while people come and go, on real processes."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sealface.cli.processes import LocalServices
from sealface_client import Client, Gallery
from tests.system.conftest import DIMENSION, POLICY, People, Vector, kill

SOAK = bool(os.environ.get("SEALFACE_SOAK"))
WORKERS = 3
SECONDS = 180.0 if SOAK else 12.0
KILLS = 20 if SOAK else 4


def blocks(services: LocalServices, gallery: str) -> list[tuple[int, int, int]]:
    """Number, columns and erased templates of the sealed blocks in the record."""
    record = sqlite3.connect(f"file:{services.state}/compute/record.db?mode=ro", uri=True)
    try:
        query = "SELECT number, columns, erased FROM blocks WHERE gallery = ?"
        return record.execute(query, (gallery,)).fetchall()
    finally:
        record.close()


def open_templates(services: LocalServices, gallery: str) -> int:
    record = sqlite3.connect(f"file:{services.state}/compute/record.db?mode=ro", uri=True)
    try:
        query = "SELECT count(*) FROM templates WHERE gallery = ? AND block IS NULL"
        return record.execute(query, (gallery,)).fetchone()[0]
    finally:
        record.close()


def until(condition: object, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def crowd(number: int, seed: int) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {f"c{seed}-{i}": rng.normal(size=DIMENSION) for i in range(number)}


class Worker(threading.Thread):
    """Enrols and erases people of its own, and holds every answer against what it has done."""

    def __init__(self, services: LocalServices, gallery: str, number: int, until_time: float) -> None:
        super().__init__()
        self._state, self._gallery, self._number, self._until = services.state, gallery, number, until_time
        self._people = People(700 + number)
        self._random = random.Random(number)
        self.known: dict[str, Vector] = {}
        self.gone: dict[str, Vector] = {}
        self.searches = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with Client.connect(self._state) as client:
                gallery = client.gallery(self._gallery)
                while time.monotonic() < self._until:
                    self._step(gallery)
        except BaseException as error:
            self.failure = error

    def _step(self, gallery: Gallery) -> None:
        name = f"w{self._number}-{len(self.known) + len(self.gone)}"
        if self._random.random() < 0.6 or not self.known:
            self.known[name] = self._people.somebody()
            gallery.enroll(name, self.known[name])
        else:
            name = self._random.choice(list(self.known))
            self.gone[name] = self.known.pop(name)
            gallery.erase(name)
        for person in {name, self._random.choice([*self.known, *self.gone])}:
            self.check(gallery, person)

    def check(self, gallery: Gallery, name: str) -> None:
        here = name in self.known
        vector = self.known[name] if here else self.gone[name]
        found = [candidate.subject for candidate in gallery.identify(self._people.again(vector)).candidates]
        self.searches += 1
        assert found == ([name] if here else []), f"{name}: {found}"
        if here:
            assert gallery.verify(name, self._people.again(vector)).match


@pytest.fixture
def filled(services: LocalServices, client: Client, request: pytest.FixtureRequest) -> Iterator[Gallery]:
    """A gallery with more open templates than a block holds."""
    gallery = client.create_gallery(f"sealing-{request.node.name.replace('_', '-')[:40]}", policy=POLICY)
    for enrolled in gallery.enroll_many(crowd(260, 1).items()):
        assert not isinstance(enrolled, Exception)
    yield gallery
    client.delete_gallery(gallery.id)


def test_enrol_erase_seal_and_search_at_once(services: LocalServices, client: Client, filled: Gallery) -> None:
    people = crowd(260, 1)
    until_time = time.monotonic() + SECONDS
    workers = [Worker(services, filled.id, number, until_time) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    erased = list(people)[::9]
    for name in erased:  # out of sealed blocks, so that they are made anew under the searches
        filled.erase(name)
    for worker in workers:
        worker.join()
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure
        assert worker.searches > 10
        for name in [*worker.known, *worker.gone]:
            worker.check(filled, name)
    assert blocks(services, filled.id), "nothing was sealed meanwhile"
    for name, vector in people.items():
        found = [candidate.subject for candidate in filled.identify(vector).candidates]
        assert found == ([] if name in erased else [name])
    until(
        lambda: not any(erased for _, _, erased in blocks(services, filled.id)), "erased templates stay in their blocks"
    )


def test_a_process_killed_while_sealing_loses_no_template_and_shows_none_twice(
    services: LocalServices, client: Client
) -> None:
    gallery = client.create_gallery("killed-sealing", policy=POLICY, client_held=True)
    people = crowd(1100, 2)
    rng = random.Random(3)
    names = iter(people.items())
    for _ in range(KILLS):
        part = [item for _, item in zip(range(len(people) // KILLS), names, strict=False)]
        for enrolled in gallery.enroll_many(part):
            assert not isinstance(enrolled, Exception)
        time.sleep(rng.random() * 0.5)
        kill(services, "enrollment")
        services.launch("enrollment")
        slots, _ = gallery.distances(next(iter(people.values())))
        assert len(set(slots.tolist())) == len(slots) == client.gallery(gallery.id).info.templates
    for enrolled in gallery.enroll_many(list(names)):
        assert not isinstance(enrolled, Exception)
    until(lambda: open_templates(services, gallery.id) < 192, "the tail was not sealed after the kills")
    slots, distances = gallery.distances(people["c2-0"])
    assert sorted(slots.tolist()) == sorted(set(slots.tolist()))
    assert len(slots) == len(people)
    by_slot = {
        template.slot: subject.name.rpartition("/")[2]
        for subject in gallery.subjects()
        for template in subject.templates
    }
    exact = np.array([_cosine(people[by_slot[int(slot)]], people["c2-0"]) for slot in slots])
    assert np.abs(distances - exact).max() < 2e-4
    client.delete_gallery(gallery.id)


def _cosine(a: Vector, b: Vector) -> float:
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_sealed_templates_are_gone_from_the_disk_when_they_are_erased(
    services: LocalServices, client: Client, filled: Gallery
) -> None:
    until(lambda: blocks(services, filled.id), "nothing was sealed")
    before = {number for number, _, _ in blocks(services, filled.id)}
    filled.erase("c1-0")
    until(
        lambda: (
            before.isdisjoint({n for n, _, _ in blocks(services, filled.id)})
            and not any(erased for _, _, erased in blocks(services, filled.id))
        ),
        "the block was not made anew",
    )
    assert filled.identify(crowd(260, 1)["c1-0"]).candidates == ()
    assert [c.subject for c in filled.identify(crowd(260, 1)["c1-1"]).candidates] == ["c1-1"]


def test_imported_templates_are_gone_from_the_disk_also_after_kills(services: LocalServices, client: Client) -> None:
    """Erased while the key service is down; then enrollment dies as well, with the renewal still to do."""
    gallery = client.create_gallery("killed-renewing", policy=POLICY)
    people = crowd(150, 4)
    list(gallery.import_many(people.items()))
    before = {number for number, _, _ in blocks(services, gallery.id)}
    kill(services, "keys")
    for name in ("c4-0", "c4-149"):
        gallery.erase(name)
    assert sum(erased for _, _, erased in blocks(services, gallery.id)) == 2
    kill(services, "enrollment")
    services.launch("keys")
    services.launch("enrollment")
    until(lambda: not any(erased for _, _, erased in blocks(services, gallery.id)), "the blocks were not renewed")
    assert {number for number, _, _ in blocks(services, gallery.id)} != before
    assert client.gallery(gallery.id).info.templates == 148
    for name in ("c4-0", "c4-1", "c4-148", "c4-149"):
        found = [candidate.subject for candidate in gallery.identify(people[name]).candidates]
        assert found == ([] if name in ("c4-0", "c4-149") else [name])
    client.delete_gallery(gallery.id)
