"""A shard, kept up to date by changes, equals a plain dictionary."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from sealface.enrollment.record import Record
from sealface.matching.shard import Shard
from sealface.storage.database import open_sqlite
from sealface.storage.galleries import Galleries, GalleryNotFound, TemplateDamaged, metadata
from tests.conftest import Vector, both_schemes, execute, person
from tests.storage.conftest import new_gallery

KEY = "keys/door/versions/1"


class Model:
    """A record, a shard over it, and what should be in it."""

    def __init__(self, path, scheme):
        self.path = path / "record.db"
        engine = open_sqlite(self.path, metadata)
        self.record, self.galleries = Record(engine), Galleries(engine)
        layout = new_gallery().layout
        material = scheme.generate(layout.parameters)
        self.record.create_gallery(new_gallery(public_key=material.public))
        self.encryptor = scheme.encryptor(layout, material.public)
        self.evaluator = scheme.evaluator(layout, material.public)
        self.opener = scheme.opener(layout, material.secret)
        self.layout = layout
        self.shard = Shard(self.galleries, self.galleries.get("door"), self.evaluator)
        self.held: dict[int, tuple[str, Vector]] = {}
        self.count = 0

    def enroll(self, subject: str) -> None:
        self.count += 1
        vector = person(self.count)
        admitted = self.evaluator.admit(self.encryptor.template(vector))
        stored = self.record.enroll("door", KEY, subject, admitted, f"r{self.count}")
        self.held[stored.slot] = (subject, vector)

    def erase(self, subject: str) -> None:
        self.record.erase_subject("door", subject)
        self.held = {slot: row for slot, row in self.held.items() if row[0] != subject}

    def check(self) -> None:
        snapshot = self.shard.refresh()
        assert snapshot.epoch == self.galleries.epochs("door")[1]
        placed = {
            slot: (number, position)
            for number, block in snapshot.blocks.items()
            for position, slot in block.slots.items()
        }
        assert set(placed) == set(self.held)
        capacity = self.layout.capacity
        assert all(at == divmod(slot - 1, capacity) for slot, at in placed.items())
        firsts: dict[str, int] = {}
        for slot in sorted(self.held):
            firsts.setdefault(self.held[slot][0], slot)
        leads = {slot: firsts[row[0]] for slot, row in self.held.items() if firsts[row[0]] != slot}
        assert snapshot.leads == leads
        probe = person(0)
        admitted = self.evaluator.admit_probe(self.encryptor.probe(probe))
        for block in snapshot.blocks.values():
            opened = self.opener.open([self.evaluator.score(block.group, admitted, block.slots)])
            assert self.opener.genuine(opened.checks)
            for position, slot in block.slots.items():
                assert opened.scores[0, position] == pytest.approx(float(self.held[slot][1] @ probe), abs=2e-4)


@pytest.fixture
def model(tmp_path, scheme):
    return Model(tmp_path, scheme)


@both_schemes
@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_equals_a_dictionary(model, scheme, seed):
    rng = random.Random(seed)
    for _ in range(120 if type(scheme).__name__ == "Plain" else 50):
        action = rng.random()
        subjects = sorted({subject for subject, _ in model.held.values()})
        if action < 0.55 or not subjects:
            subject = f"s{rng.randrange(25)}"
            if sum(row[0] == subject for row in model.held.values()) < 16:
                model.enroll(subject)
        elif action < 0.75:
            model.erase(rng.choice(subjects))
        else:
            model.check()
    model.check()
    for subject in sorted({subject for subject, _ in model.held.values()}):
        model.erase(subject)
    model.check()
    assert model.shard.refresh().blocks == {}


def test_without_changes_nothing_is_made_anew(model):
    model.enroll("a")
    first = model.shard.refresh()
    assert model.shard.refresh() is first


def test_a_snapshot_stays_as_it_was(model):
    model.enroll("a")
    model.enroll("b")
    before = model.shard.refresh()
    model.erase("a")
    model.enroll("c")
    model.check()
    assert dict(before.blocks[0].slots) == {0: 1, 1: 2}
    assert before.epoch == 2


def test_after_a_damaged_template_nothing_is_counted_twice(model):
    for i in range(40):
        model.enroll(f"s{i}")
    model.check()
    model.enroll("more")
    model.enroll("damaged")
    slot = max(model.held)
    (original,) = [data for _, data in model.galleries.ciphertexts("door", [slot])]
    execute(model.path, "UPDATE templates SET ciphertext = x'00' WHERE slot = ?", slot)
    for _ in range(3):
        with pytest.raises(TemplateDamaged):
            model.shard.refresh()
    execute(model.path, "UPDATE templates SET ciphertext = ? WHERE slot = ?", original, slot)
    model.check()


def test_a_template_erased_between_two_looks_is_not_there(model, monkeypatch):
    model.enroll("a")
    model.enroll("b")
    changes = model.galleries.changes

    def then_erased(*arguments):
        found = changes(*arguments)
        monkeypatch.undo()
        model.erase("a")
        return found

    monkeypatch.setattr(model.galleries, "changes", then_erased)
    assert set(model.shard.refresh().blocks[0].slots.values()) == {2}
    model.check()


def test_refreshes_in_many_threads_agree(model):
    for i in range(60):
        model.enroll(f"s{i}")
    snapshots, failures = [], []

    def refresh():
        try:
            for _ in range(5):
                snapshots.append(model.shard.refresh())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=refresh) for _ in range(6)]
    for thread in threads:
        thread.start()
    for i in range(60, 70):
        model.enroll(f"s{i}")
    for thread in threads:
        thread.join()
    assert failures == []
    model.check()
    for snapshot in snapshots:
        assert sum(len(block.slots) for block in snapshot.blocks.values()) == snapshot.epoch
        assert np.all([slot <= snapshot.epoch for block in snapshot.blocks.values() for slot in block.slots.values()])


def test_a_gallery_made_anew_is_not_taken_for_the_old_one(model):
    model.enroll("a")
    model.check()
    model.record.delete_gallery("door")
    with pytest.raises(GalleryNotFound):
        model.shard.refresh()
    model.record.create_gallery(new_gallery(key="another"))
    model.record.enroll("door", "keys/another/versions/1", "b", b"under another key", "r")
    for _ in range(2):
        with pytest.raises(GalleryNotFound):
            model.shard.refresh()
