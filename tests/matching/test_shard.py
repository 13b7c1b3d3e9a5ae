"""A shard, kept up to date by changes, and the blocks it names, equal a plain dictionary, wherever templates lie."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from sealface.enrollment.leases import Leases
from sealface.enrollment.record import Record
from sealface.matching.shard import GalleryChanging, Shard
from sealface.storage.digests import TemplateDamaged
from sealface.storage.galleries import Galleries, GalleryNotFound
from sealface.workers.store import Store
from sealface.workers.task import BlockGone
from tests.conftest import Vector, both_schemes, execute, person, select
from tests.storage.conftest import new_gallery, open_quickly

KEY = "keys/door/versions/1"


class Model:
    """A record, a shard over it, and what should be in it."""

    def __init__(self, path, scheme):
        self.path = path / "record.db"
        engine = open_quickly(self.path)
        self.record, self.galleries, self.leases = Record(engine), Galleries(engine), Leases(engine)
        layout = new_gallery().layout
        material = scheme.generate(layout.parameters)
        self.record.create_gallery(new_gallery(public_key=material.public, evaluation_keys=material.evaluation))
        self.encryptor = scheme.encryptor(layout, material.public)
        self.evaluator = scheme.evaluator(layout, material.public, material.evaluation)
        self.opener = scheme.opener(layout, material.secret)
        self.layout = layout
        self.shapes = layout.sealed_shapes[:2]
        self.shard = self.new_shard()
        self.store = Store(self.galleries, 1 << 62)
        self.held: dict[int, tuple[str, Vector]] = {}
        self.count = 0

    def new_shard(self):
        return Shard(self.galleries, self.galleries.get("door"))

    def enroll(self, subject: str) -> None:
        self.count += 1
        vector = person(self.count)
        admitted = self.evaluator.admit(self.encryptor.template(vector))
        stored = self.record.enroll("door", KEY, subject, admitted, f"r{self.count}")
        self.held[stored.slot] = (subject, vector)

    def import_block(self, subjects: list[str], shape=None) -> None:
        shape = shape or self.shapes[0]
        vectors = [person(self.count + i) for i in range(1, len(subjects) + 1)]
        self.count += len(subjects)
        block = self.evaluator.admit_block(shape, self.encryptor.block(shape, np.stack(vectors)))
        stored = self.record.import_block("door", KEY, subjects, shape.columns, shape.capacity, block, f"r{self.count}")
        self.held |= {stored.slot + i: row for i, row in enumerate(zip(subjects, vectors, strict=True))}

    def erase(self, subject: str) -> None:
        self.record.erase_subject("door", subject)
        self.held = {slot: row for slot, row in self.held.items() if row[0] != subject}

    def seal(self, slots, replaced=(), shape=None) -> None:
        """These slots as a block, in this order, with what lies in some blocks."""
        shape = shape or self.shapes[0]
        gallery = self.galleries.get("door")
        slots = [*slots, *(slot for number in replaced for slot in self.galleries.sealed("door", number))]
        slots = slots[: shape.capacity]
        placed = np.zeros(shape.capacity, np.uint32)
        placed[: len(slots)] = slots
        templates = dict(self.galleries.ciphertexts("door", slots))
        assert len(templates) == len(slots)
        block = self.evaluator.seal(shape, {i: templates[slot] for i, slot in enumerate(slots)})
        assert self.record.seal(gallery, self.leases.take("door"), shape.columns, placed, block, replaced)

    def seal_some(self, rng: random.Random) -> None:
        """A block of some open templates and of some blocks', or one dropped that is empty."""
        blocks = self.galleries.blocks("door")
        for block in blocks:
            if not block.live:
                self.record.drop_block(self.galleries.get("door"), self.leases.take("door"), block.number)
        shape = rng.choice(self.shapes)
        own = [block for block in blocks if not block.imported and block.live]
        replaced = [block.number for block in own if rng.random() < 0.5]
        room = shape.capacity - sum(block.live for block in own if block.number in replaced)
        tail = self.galleries.unsealed("door", 10_000)
        slots = rng.sample(tail, rng.randint(0, min(len(tail), max(room, 0))))
        if room >= 0 and (slots or replaced):
            self.seal(slots, replaced, shape)

    def act(self, rng: random.Random) -> None:
        action = rng.random()
        subjects = sorted({subject for subject, _ in self.held.values()})
        if action < 0.5 or not subjects:
            subject = f"s{rng.randrange(25)}"
            if sum(row[0] == subject for row in self.held.values()) < 16:
                self.enroll(subject)
        elif action < 0.65:
            self.erase(rng.choice(subjects))
        elif action < 0.7:
            self.import_block([f"i{self.count}", *(f"i{rng.randrange(5)}x{self.count // 9}" for _ in range(4))])
        elif action < 0.82:
            self.seal_some(rng)
        else:
            self.check()

    def check(self, shard: Shard | None = None) -> None:
        snapshot = (shard or self.shard).refresh()
        assert snapshot.epoch == self.galleries.epochs("door")[1]
        assert sorted(slots_of(snapshot)) == sorted(self.held)  # each once
        firsts: dict[str, int] = {}
        for slot in sorted(self.held):
            firsts.setdefault(self.held[slot][0], slot)
        leads = {slot: firsts[row[0]] for slot, row in self.held.items() if firsts[row[0]] != slot}
        assert snapshot.links.shape == (len(leads), 2)
        assert dict(snapshot.links.tolist()) == leads
        for slot, score in self.scores(snapshot).items():
            assert score == pytest.approx(float(self.held[slot][1] @ person(0)), abs=3e-4)

    def load(self, snapshot):
        parts = [part.wanted for part in snapshot.parts]
        return self.store.load(self.galleries.get("door"), self.evaluator, parts, whole=True)

    def scores(self, snapshot) -> dict[int, float]:
        probe = self.evaluator.admit_probe(self.encryptor.probe(person(0)))
        leaves = self.evaluator.expand([probe], {part.shape for part in snapshot.parts})
        found = {}
        for part, loaded in zip(snapshot.parts, self.load(snapshot), strict=True):
            ((result,),) = self.evaluator.score([loaded.block], leaves[part.shape], [loaded.requested])
            opened = self.opener.open(part.shape, [result])
            assert self.opener.genuine(part.shape, opened.checks)
            found |= {slot: opened.scores[0, i] for i, slot in enumerate(part.slots.tolist()) if slot}
        return found


def slots_of(snapshot) -> list[int]:
    for part in snapshot.parts:
        assert part.slots.shape == (part.shape.capacity,)
    return [slot for part in snapshot.parts for slot in part.slots.tolist() if slot]


def columns_of(snapshot) -> list[int]:
    return [part.shape.columns for part in snapshot.parts]


@pytest.fixture
def model(tmp_path, scheme):
    return Model(tmp_path, scheme)


@both_schemes
@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_changes_equals_a_dictionary(model, scheme, seed):
    rng = random.Random(seed)
    for _ in range(160 if type(scheme).__name__ == "Plain" else 60):
        model.act(rng)
    model.check()
    model.check(model.new_shard())  # one that loads all of it at once
    for subject in sorted({subject for subject, _ in model.held.values()}):
        model.erase(subject)
    model.check()
    for block in model.galleries.blocks("door"):
        model.record.drop_block(model.galleries.get("door"), model.leases.take("door"), block.number)
    model.check()
    assert model.shard.refresh().parts == ()
    assert model.store.nbytes == 0


@pytest.mark.parametrize("seed", range(6))
def test_changes_while_it_looks_are_found_at_the_next_look(model, seed, monkeypatch):
    """The record goes on between any two of the shard's reads."""
    rng = random.Random(100 + seed)
    shard = model.new_shard()
    galleries = model.galleries
    for _ in range(40):
        model.act(rng)
    looking = False

    def disturbed(name):
        read = getattr(Galleries, name)

        def disturb(*arguments):
            nonlocal looking
            found = read(galleries, *arguments)
            if looking and rng.random() < 0.5:
                looking = False  # reads that a change makes are its own
                model.seal_some(rng) if rng.random() < 0.5 else model.act(rng)
                looking = True
            return found

        return disturb

    for name in ("epochs", "placement", "block_slots"):
        monkeypatch.setattr(galleries, name, disturbed(name))
    checked = 0
    for _ in range(25):
        before = {slot: vector for slot, (_, vector) in model.held.items()}
        looking = True
        try:
            snapshot = shard.refresh()
        except GalleryChanging:
            continue
        finally:
            looking = False
        slots = slots_of(snapshot)
        assert len(set(slots)) == len(slots)
        # what was there all the while is there
        assert {slot for slot in before if slot in model.held} <= set(slots)
        everything = before | {slot: vector for slot, (_, vector) in model.held.items()}
        try:
            scores = model.scores(snapshot)
        except BlockGone:  # by the time it is loaded it is no more as it was
            scores = {}
        for slot, score in scores.items():
            if slot in everything:  # or it came and went meanwhile
                assert score == pytest.approx(float(everything[slot] @ person(0)), abs=3e-4)
        model.check(shard)
        checked += 1
        for _ in range(4):
            model.act(rng)
    assert checked > 5
    model.check()


def test_without_changes_nothing_is_made_anew(model):
    model.enroll("a")
    first = model.shard.refresh()
    assert model.shard.refresh() is first


def test_what_did_not_change_is_not_loaded_again(model, monkeypatch):
    for i in range(40):
        model.enroll(f"s{i}")
    model.import_block(["x", "y"])
    model.seal(range(1, 9))
    before = {id(held.block) for held in model.load(model.shard.refresh())}
    loaded = []
    read_block, read = model.galleries.block, model.galleries.ciphertexts
    monkeypatch.setattr(model.galleries, "block", lambda *a: loaded.append(a[1]) or read_block(*a))
    monkeypatch.setattr(model.galleries, "ciphertexts", lambda *a: loaded.append(list(a[1])) or read(*a))
    model.enroll("more")
    after = model.load(model.shard.refresh())
    assert loaded == [[43]]
    assert len(before & {id(held.block) for held in after}) == len(before) - 1
    model.erase("x")  # masked, nothing is read
    model.erase("s3")
    model.load(snapshot := model.shard.refresh())
    assert len(slots_of(snapshot)) == 41
    assert loaded == [[43]]
    model.check()


def test_a_snapshot_stays_as_it_was(model):
    for subject in "abcd":
        model.enroll(subject)
    model.seal([1, 2])
    before = model.shard.refresh()
    model.erase("a")
    model.erase("c")
    model.enroll("e")
    model.seal([4], [1])
    model.check()
    assert (sorted(slots_of(before)), before.epoch) == ([1, 2, 3, 4], 5)
    with pytest.raises(BlockGone):  # and is not to be had any more
        model.load(before)


@both_schemes
def test_sealed_blocks_come_first_and_erased_templates_are_masked_at_once(model):
    model.import_block(["a", "b", "c"], model.shapes[1])
    for subject in "defg":
        model.enroll(subject)
    model.seal([5, 4])
    model.check()
    snapshot = model.shard.refresh()
    assert columns_of(snapshot) == [model.shapes[1].columns, model.shapes[0].columns, 1]
    assert [part.slots[:3].tolist() for part in snapshot.parts[:2]] == [[1, 2, 3], [5, 4, 0]]
    blocks = [held.block for held in model.load(snapshot)]
    for subject in "beg":
        model.erase(subject)
    snapshot = model.shard.refresh()
    assert [part.slots[:3].tolist() for part in snapshot.parts[:2]] == [[1, 0, 3], [0, 4, 0]]
    assert [held.block for held in model.load(snapshot)[:2]] == blocks[:2]  # the same, until they are made again
    model.check()


def test_a_block_whose_templates_are_all_erased_is_still_there_until_it_is_dropped(model):
    model.import_block(["a", "b"])
    model.check()
    model.erase("a")
    model.erase("b")
    (part,) = model.shard.refresh().parts
    assert not part.slots.any()
    model.record.drop_block(model.galleries.get("door"), model.leases.take("door"), 1)
    assert model.shard.refresh().parts == ()


def test_links_are_to_the_first_slot_wherever_templates_lie(model):
    for subject in "abab":
        model.enroll(subject)
    model.import_block(["b", "c", "c", "a"])
    assert model.shard.refresh().links.tolist() == [[3, 1], [4, 2], [5, 2], [7, 6], [8, 1]]
    model.seal([2, 3])
    assert model.shard.refresh().links.tolist() == [[3, 1], [4, 2], [5, 2], [7, 6], [8, 1]]
    model.erase("a")
    assert model.shard.refresh().links.tolist() == [[4, 2], [5, 2], [7, 6]]
    model.erase("b")
    model.enroll("a")
    model.enroll("a")
    assert model.shard.refresh().links.tolist() == [[7, 6], [10, 9]]
    assert model.shard.refresh().links.dtype == np.uint32
    model.check()


def test_after_a_damaged_template_nothing_is_counted_twice(model):
    for i in range(40):
        model.enroll(f"s{i}")
    model.seal(range(1, 11))
    model.check()
    model.enroll("more")
    model.enroll("damaged")
    slot = max(model.held)
    (original,) = [data for _, data in model.galleries.ciphertexts("door", [slot])]
    execute(model.path, "UPDATE template_ciphertexts SET ciphertext = x'00' WHERE slot = ?", slot)
    for _ in range(3):
        with pytest.raises(TemplateDamaged):
            model.load(model.shard.refresh())
    execute(model.path, "UPDATE template_ciphertexts SET ciphertext = ? WHERE slot = ?", original, slot)
    model.check()


@pytest.mark.parametrize("column", ["ciphertext", "slots"])
def test_a_damaged_block_is_said_until_it_is_repaired(model, column):
    model.enroll("a")
    model.enroll("b")
    model.check()
    model.seal([1, 2])
    table = "blocks" if column == "slots" else "block_ciphertexts"
    ((original,),) = select(model.path, f"SELECT {column} FROM {table}")  # noqa: S608
    changed = bytes([original[0] ^ 1]) + original[1:]
    execute(model.path, f"UPDATE {table} SET {column} = ?", changed)  # noqa: S608
    for _ in range(2):
        with pytest.raises(TemplateDamaged):
            model.load(model.shard.refresh())
    execute(model.path, f"UPDATE {table} SET {column} = ?", original)  # noqa: S608
    model.check(model.new_shard())


def test_a_template_erased_between_two_looks_is_not_there(model, monkeypatch):
    model.enroll("a")
    model.enroll("b")
    placement = model.galleries.placement

    def then_erased(*arguments):
        found = placement(*arguments)
        monkeypatch.undo()
        model.erase("a")
        return found

    monkeypatch.setattr(model.galleries, "placement", then_erased)
    with pytest.raises(BlockGone):
        model.load(model.shard.refresh())
    assert slots_of(model.shard.refresh()) == [2]
    model.check()


def test_a_block_that_is_replaced_meanwhile_is_looked_for_again(model, monkeypatch):
    for subject in "abc":
        model.enroll(subject)
    model.seal([1, 2])
    placement = model.galleries.placement
    looks = []

    def then_replaced(*arguments):
        found = placement(*arguments)
        looks.append(found)
        if len(looks) < 4:
            model.seal([], [max(block.number for block in model.galleries.blocks("door"))])
        return found

    monkeypatch.setattr(model.galleries, "placement", then_replaced)
    assert sorted(slots_of(model.shard.refresh())) == [1, 2, 3]
    assert len(looks) == 4
    model.check()


def test_a_gallery_that_never_holds_still_is_said(model, monkeypatch):
    for subject in "abc":
        model.enroll(subject)
    model.seal([1, 2])
    with monkeypatch.context() as patched:
        placement = model.galleries.placement

        def then_replaced(*arguments):
            found = placement(*arguments)
            model.seal([], [max(block.number for block in model.galleries.blocks("door"))])
            return found

        patched.setattr(model.galleries, "placement", then_replaced)
        with pytest.raises(GalleryChanging):
            model.shard.refresh()
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
        slots = slots_of(snapshot)
        assert len(slots) == snapshot.epoch
        assert all(slot <= snapshot.epoch for slot in slots)


def test_sealing_in_a_thread_of_its_own_loses_and_doubles_nothing(model):
    for i in range(80):
        model.enroll(f"s{i}")
    stop, failures, looks = threading.Event(), [], []

    def seal():
        rng = random.Random(5)
        try:
            while not stop.is_set():
                model.seal_some(rng)
        except Exception as error:
            failures.append(error)

    def refresh(shard):
        try:
            while not stop.is_set():
                try:
                    slots = slots_of(shard.refresh())
                except GalleryChanging:
                    continue
                assert sorted(slots) == list(range(1, 81))
                looks.append(1)
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=seal)]
    workers += [
        threading.Thread(target=refresh, args=(shard,)) for shard in (model.shard, model.shard, model.new_shard())
    ]
    for worker in workers:
        worker.start()
    while len(looks) < 60 and not failures:
        stop.wait(0.01)
    stop.set()
    for worker in workers:
        worker.join()
    assert failures == []
    model.check()


def test_a_gallery_made_anew_is_not_taken_for_the_old_one(model):
    model.enroll("a")
    model.enroll("b")
    model.seal([1])
    model.check()
    model.record.delete_gallery("door")
    with pytest.raises(GalleryNotFound):
        model.shard.refresh()
    model.record.create_gallery(new_gallery(key="another"))
    model.record.enroll("door", "keys/another/versions/1", "b", b"under another key", "r")
    for _ in range(2):
        with pytest.raises(BlockGone):
            model.shard.refresh()
