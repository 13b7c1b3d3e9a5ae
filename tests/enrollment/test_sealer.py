"""Open templates become sealed blocks, and erased ones disappear from them, while everything else goes on."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from sealface.enrollment import housekeeper as housekeeper_module
from sealface.enrollment import sealer as sealer_module
from sealface.enrollment.housekeeper import Housekeeper
from sealface.enrollment.key_source import KeyServiceUnavailable
from sealface.enrollment.leases import Leases
from sealface.enrollment.record import Record
from sealface.enrollment.sealer import Sealer
from sealface.errors import SealfaceError
from sealface.storage.digests import TemplateDamaged
from sealface.storage.galleries import Galleries, GalleryNotFound
from tests.conftest import POLICY, both_schemes, dump, execute, person, select
from tests.plain import Plain
from tests.storage.conftest import new_gallery, open_quickly

KEY = "keys/door/versions/1"


class Kept:
    """A record, a sealer that is asked for one step at a time, and what the gallery `door` should hold."""

    def __init__(self, folder: Path, scheme):
        self.path = folder / "record.db"
        engine = open_quickly(self.path)
        self.record, self.galleries, self.scheme = Record(engine), Galleries(engine), scheme
        self.sealer, self.leases = Sealer(self.galleries, self.record, scheme, self.renew), Leases(engine)
        self.pause = lambda: None
        self.asked: list[tuple[str, int, np.ndarray, bytes]] = []
        self.managed = True
        self.meanwhile = lambda: None
        self.layout = new_gallery().layout
        self.small, self.larger = self.layout.sealed_shapes[:2]
        self.material = scheme.generate(self.layout.parameters)
        self.create()
        self.encryptor = scheme.encryptor(self.layout, self.material.public)
        self.evaluator = scheme.evaluator(self.layout, self.material.public, self.material.evaluation)
        self.opener = scheme.opener(self.layout, self.material.secret)
        self.held: dict[int, str] = {}
        self.count = 0

    def create(self, key=None):
        new = new_gallery(key=key, public_key=self.material.public, evaluation_keys=self.material.evaluation)
        self.record.create_gallery(replace(new, managed=self.managed))

    def renew(self, asked) -> Future[bytes]:
        """The key service's part."""
        columns, cleared, blinded = asked.columns, asked.cleared, asked.blinded
        self.asked.append((asked.key_version, columns, cleared, blinded))
        answer = Future()
        try:
            self.meanwhile()
            answer.set_result(self.opener.renew(self.layout.shape(columns), blinded, cleared))
        except SealfaceError as error:
            answer.set_exception(error)
        return answer

    @property
    def door(self):
        return self.galleries.get("door")

    def enroll(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            data = self.evaluator.admit(self.encryptor.template(person(self.count)))
            stored = self.record.enroll("door", KEY, f"s{self.count}", data, f"r{self.count}")
            self.held[stored.slot] = f"s{self.count}"

    def import_block(self, count: int) -> None:
        numbers = range(self.count + 1, self.count + count + 1)
        self.count += count
        data = self.encryptor.block(self.small, np.stack([person(number) for number in numbers]))
        subjects = [f"s{number}" for number in numbers]
        stored = self.record.import_block(
            "door", KEY, subjects, self.small.columns, self.small.capacity, data, f"r{self.count}"
        )
        self.held |= {stored.slot + i: subject for i, subject in enumerate(subjects)}

    def erase(self, *numbers: int) -> None:
        for number in numbers:
            self.record.erase_subject("door", f"s{number}")
        self.held = {slot: subject for slot, subject in self.held.items() if subject not in {f"s{n}" for n in numbers}}

    def step(self) -> bool:
        return self.sealer.step(self.door, self.leases.take("door"), self.pause)

    def settle(self) -> int:
        """Steps until there is nothing left to do."""
        for steps in range(50):
            if not self.step():
                return steps
        raise AssertionError("it never comes to an end")

    def blocks(self) -> list[tuple[int, int, int]]:
        """Columns, live and erased templates of each block, by number."""
        return [(block.columns, block.live, block.erased) for block in self.galleries.blocks("door")]

    def tail(self) -> list[int]:
        return self.galleries.unsealed("door", 10_000)

    def check(self) -> None:
        """Every template lies in one place, and scores there what it should."""
        in_blocks = [
            slot for info in self.galleries.blocks("door") for slot in self.galleries.sealed("door", info.number)
        ]
        assert sorted(in_blocks + self.tail()) == sorted(self.held)
        probe = self.evaluator.admit_probe(self.encryptor.probe(person(0)))
        for info in self.galleries.blocks("door"):
            shape = self.layout.shape(info.columns)
            slots, data = self.galleries.block("door", info.number)
            live = np.isin(slots, self.galleries.sealed("door", info.number))
            assert (int(live.sum()), int((slots > 0).sum())) == (info.live, info.live + info.erased)
            leaves = self.evaluator.expand([probe], {shape})[shape]
            ((result,),) = self.evaluator.score([self.evaluator.load(shape, data)], leaves, [live])
            opened = self.opener.open(shape, [result])
            assert self.opener.genuine(shape, opened.checks)
            for position in np.flatnonzero(live):
                number = int(self.held[int(slots[position])][1:])
                assert opened.scores[0, position] == pytest.approx(float(person(number) @ person(0)), abs=5e-4)

    def bytes(self) -> bytes:
        """All that lies in the record's files."""
        return b"".join(file.read_bytes() for file in self.path.parent.iterdir() if file.name.startswith("record.db"))

    def anywhere(self, data: bytes) -> bool:
        """Whether any part of a ciphertext is left in the files; without encryption, its head, which has a nonce."""
        stored = self.bytes()
        if isinstance(self.scheme, Plain):
            return data[:36] in stored
        return any(data[at : at + 24] in stored for at in range(100, len(data) - 24, max(1, len(data) // 40)))


@pytest.fixture
def kept(tmp_path, scheme):
    return Kept(tmp_path, scheme)


# --- sealing


def test_an_empty_gallery_has_nothing_to_seal(kept):
    before = dump(kept.path)
    assert not kept.step()
    kept.enroll(1)
    assert not kept.step()
    kept.erase(1)
    assert not kept.step()
    assert dump(kept.path)["blocks"] == before["blocks"] == []


@both_schemes
def test_a_full_tail_is_sealed_the_oldest_first(kept):
    kept.enroll(kept.small.capacity - 1)
    assert not kept.step()
    kept.enroll(4)
    assert kept.layout.best_shape(len(kept.held)) == kept.small
    epoch = kept.door.epoch
    assert kept.step()
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity, 0)]
    assert kept.tail() == [kept.small.capacity + i for i in (1, 2, 3)]
    assert kept.door.epoch == epoch + 1
    kept.check()
    before = dump(kept.path)
    assert not kept.step()
    assert dump(kept.path) == before


def test_a_block_at_a_time_until_the_rest_is_too_few(kept):
    kept.enroll(3 * kept.small.capacity + 5)
    assert kept.settle() == 3
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity, 0)] * 3
    assert len(kept.tail()) == 5
    kept.check()


def test_slots_that_were_given_up_before_are_no_gap(kept):
    kept.enroll(kept.small.capacity + 2)
    kept.erase(2, 5)
    assert kept.settle() == 1
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity, 0)]
    assert kept.tail() == []
    kept.check()


# --- compaction


@both_schemes
def test_erased_templates_are_gone_when_their_block_was_made_again(kept):
    kept.enroll(kept.small.capacity)
    assert kept.settle() == 1
    _, old = kept.galleries.block("door", 1)
    ((_, template),) = kept.galleries.ciphertexts("door", [7])
    # what is compared is in the files before
    assert kept.anywhere(old) and kept.anywhere(template)
    kept.erase(7, 9)
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity - 2, 2)]
    assert not kept.anywhere(template)
    assert kept.settle() == 1
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity - 2, 0)]
    assert not kept.anywhere(old)
    kept.check()


def test_what_is_open_fills_a_block_that_is_made_again(kept):
    kept.enroll(kept.small.capacity + 5)
    kept.settle()
    kept.erase(1, 2)
    assert kept.settle() == 1
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity, 0)]
    assert len(kept.tail()) == 3
    kept.check()


def test_the_block_with_most_erased_is_made_again_first_and_all_in_the_end(kept):
    kept.enroll(3 * kept.small.capacity)
    kept.settle()
    capacity = kept.small.capacity
    kept.erase(1, capacity + 1, capacity + 2, capacity + 3, 2 * capacity + 1, 2 * capacity + 2)
    assert kept.step()
    assert sorted(erased for _, _, erased in kept.blocks()) == [0, 1, 2]
    kept.settle()
    assert all(erased == 0 for _, _, erased in kept.blocks())
    kept.check()


def test_sealing_comes_before_making_again(kept):
    """Searches are slow by the tail's length, not by what is masked."""
    kept.enroll(kept.small.capacity)
    kept.settle()
    kept.erase(1)
    kept.enroll(kept.small.capacity)
    assert kept.step()
    assert sorted(kept.blocks()) == [
        (kept.small.columns, kept.small.capacity - 1, 1),
        (kept.small.columns, kept.small.capacity, 0),
    ]
    assert kept.settle() == 1
    kept.check()


@both_schemes
def test_a_block_whose_templates_are_all_erased_is_dropped(kept):
    kept.enroll(kept.small.capacity)
    kept.settle()
    _, old = kept.galleries.block("door", 1)
    kept.erase(*range(1, kept.small.capacity + 1))
    epoch = kept.door.epoch
    assert kept.step()
    assert kept.blocks() == []
    assert kept.door.epoch == epoch + 1
    assert not kept.anywhere(old)
    assert not kept.step()


def test_what_was_erased_from_a_large_block_is_gone_also_when_few_are_left(kept):
    """Few templates are best in a smaller shape, which does not hold what is left of the block."""
    kept.enroll(300)
    kept.settle()
    assert (kept.larger.columns, kept.larger.capacity, 0) in kept.blocks()
    kept.erase(*range(1, 101), *range(kept.larger.capacity + 1, 301))
    left = kept.larger.capacity - 100
    assert len(kept.held) == left > kept.layout.best_shape(left).capacity
    kept.settle()
    assert all(erased == 0 for _, _, erased in kept.blocks())
    kept.check()


# --- merging


def test_small_blocks_are_merged_when_a_gallery_outgrows_their_shape(kept):
    small = kept.small.capacity
    grown = next(n for n in range(1, 5000) if kept.layout.best_shape(n) == kept.larger)
    kept.enroll(grown - 1)
    kept.settle()
    whole = (kept.small.columns, small, 0)
    assert kept.blocks() == [whole] * ((grown - 1) // small)
    kept.enroll(1)
    assert kept.step()  # one merge: both shapes at once, and right
    merged = kept.larger.capacity // small
    assert sorted(kept.blocks()) == sorted(
        [whole] * ((grown - 1) // small - merged) + [(kept.larger.columns, merged * small, 0)]
    )
    kept.check()
    kept.settle()
    kept.check()
    numbers = [block.number for block in kept.galleries.blocks("door")]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 1  # never used again


@pytest.mark.parametrize("seed", range(3))
def test_any_growth_and_erasure_comes_to_rest_with_nothing_lost(kept, seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        kept.enroll(int(rng.integers(1, 60)))
        if rng.random() < 0.3:
            kept.import_block(int(rng.integers(1, kept.small.capacity + 1)))
        subjects = sorted(kept.held.values())
        chosen = rng.choice(subjects, int(rng.integers(0, len(subjects) // 3 + 1)), replace=False)
        kept.erase(*(int(subject[1:]) for subject in chosen))
        for _ in range(int(rng.integers(0, 4))):
            kept.step()
        kept.check()
    kept.settle()
    kept.check()
    assert len(kept.tail()) < kept.layout.best_shape(len(kept.held)).capacity
    assert all(block.erased == 0 and block.live for block in kept.galleries.blocks("door"))


# --- imported blocks


@both_schemes
def test_an_erased_template_is_gone_when_its_imported_block_was_renewed(kept):
    kept.import_block(4)
    _, old = kept.galleries.block("door", 1)
    assert kept.anywhere(old)
    kept.erase(1, 3)
    assert kept.blocks() == [(kept.small.columns, 2, 2)]
    epoch = kept.door.epoch
    assert kept.settle() == 1
    assert kept.blocks() == [(kept.small.columns, 2, 0)]
    assert kept.door.epoch == epoch + 1
    slots, renewed = kept.galleries.block("door", 2)
    assert slots.tolist() == [0, 2, 0, 4] + [0] * (kept.small.capacity - 4)
    ((key_version, columns, cleared, blinded),) = kept.asked
    assert (key_version, columns) == (KEY, kept.small.columns)
    assert np.flatnonzero(cleared).tolist() == [0, 2]
    assert not kept.anywhere(old)
    assert not kept.anywhere(blinded)
    assert kept.anywhere(renewed)
    if isinstance(kept.scheme, Plain):
        # some elements of each, as its encryptor scales them; pages of the file may cut others
        vectors = [kept.layout._scaled(person(number)) for number in (1, 2, 3, 4)]
        there = [any(v[at : at + 8].tobytes() in kept.bytes() for at in (0, 64)) for v in vectors]
        assert there == [False, True, False, True]
    kept.check()
    before = dump(kept.path)
    assert not kept.step()
    assert dump(kept.path) == before
    assert all(block.imported for block in kept.galleries.blocks("door"))
    assert select(kept.path, "SELECT count(*) FROM template_ciphertexts") == [(0,)]
    kept.erase(2)
    kept.settle()
    kept.check()
    kept.erase(4)
    kept.settle()
    assert kept.blocks() == []
    assert len(kept.asked) == 2  # an empty block is dropped, not renewed
    assert not kept.anywhere(renewed)


def test_all_that_is_erased_from_a_block_is_cleared_at_once_the_most_first(kept):
    kept.import_block(5)
    kept.import_block(50)
    kept.erase(2, *range(10, 30))
    kept.erase(55)
    assert kept.settle() == 2
    assert [int(cleared.sum()) for _, _, cleared, _ in kept.asked] == [21, 1]
    assert kept.blocks() == [(kept.small.columns, 29, 0), (kept.small.columns, 4, 0)]
    kept.check()


def test_all_other_work_comes_before_a_renewal(kept):
    kept.import_block(5)
    kept.enroll(kept.small.capacity)
    kept.erase(1, 6)
    kept.enroll(1)
    assert kept.step() and kept.asked == []
    kept.erase(7)
    assert kept.step() and kept.asked == []
    assert kept.settle() == 1
    assert len(kept.asked) == 1
    assert all(erased == 0 for _, _, erased in kept.blocks())
    kept.check()


@both_schemes
def test_who_is_erased_while_a_block_is_renewed_is_masked_and_cleared_by_the_next(kept):
    kept.import_block(5)
    kept.erase(1)
    acts = [lambda: kept.erase(2, 4), lambda: None]
    kept.meanwhile = lambda: acts.pop(0)()
    assert kept.step()
    assert kept.blocks() == [(kept.small.columns, 2, 2)]
    _, old = kept.galleries.block("door", 2)
    kept.check()
    assert kept.settle() == 1
    assert [np.flatnonzero(cleared).tolist() for _, _, cleared, _ in kept.asked] == [[0], [1, 3]]
    assert kept.blocks() == [(kept.small.columns, 2, 0)]
    assert kept.galleries.block("door", 3)[0][:5].tolist() == [0, 0, 3, 0, 5]
    assert not kept.anywhere(old)
    kept.check()


def test_when_all_are_erased_while_a_block_is_renewed_there_is_none(kept):
    kept.import_block(3)
    kept.erase(1)
    kept.meanwhile = lambda: kept.erase(2, 3)
    kept.step()
    assert kept.blocks() == []
    kept.settle()
    kept.check()


@pytest.mark.parametrize("again", [False, True])
def test_a_gallery_that_is_deleted_while_a_block_is_renewed_gets_none(kept, again):
    kept.import_block(3)
    kept.erase(1)
    after = []

    def delete():
        kept.record.delete_gallery("door")
        kept.held.clear()
        if again:
            kept.create()
            kept.import_block(2)
        after.append(dump(kept.path))

    kept.meanwhile = delete
    assert not kept.step()
    assert dump(kept.path) == after[0]


@both_schemes
def test_what_cannot_be_renewed_is_lost_nothing_and_tried_again_later(kept, monkeypatch):
    kept.import_block(5)
    kept.enroll(kept.small.capacity - 1)
    kept.erase(1)

    def away():
        raise KeyServiceUnavailable("the key service does not answer: try again")

    kept.meanwhile = away
    before = dump(kept.path)
    with capture_logs() as logs:
        assert not kept.step()
        assert dump(kept.path) == before
        assert not kept.step()  # not at once
    assert [(line["event"], line["reason"]) for line in logs] == [("not renewed", "KEY_SERVICE_UNAVAILABLE")]
    assert len(kept.asked) == 1
    kept.enroll(1)
    assert kept.settle() == 1  # all else goes on
    kept.check()
    kept.meanwhile = lambda: None
    waited = sealer_module.time.monotonic() + sealer_module._RETRY_S
    monkeypatch.setattr(sealer_module.time, "monotonic", lambda: waited)
    assert kept.settle() == 1
    assert sorted(kept.blocks()) == [(kept.small.columns, 4, 0), (kept.small.columns, kept.small.capacity, 0)]
    assert kept.asked[0][3] != kept.asked[1][3]  # blinded anew
    kept.check()


@both_schemes
@pytest.mark.parametrize("answer", [b"", b"\xff" * 100, None], ids=["nothing", "anything", "cut off"])
def test_an_answer_that_is_no_block_is_not_stored(kept, answer):
    kept.import_block(3)
    kept.erase(1)
    before = dump(kept.path)
    renew = kept.opener.renew

    def wrong(shape, blinded, cleared):
        return renew(shape, blinded, cleared)[:-1] if answer is None else answer

    kept.opener.renew = wrong
    with capture_logs() as logs:
        assert not kept.step()
    assert logs[0]["reason"] == "MALFORMED_CIPHERTEXT"
    assert dump(kept.path) == before
    kept.check()


def test_a_damaged_block_is_not_renewed(kept):
    kept.import_block(3)
    kept.erase(1)
    execute(kept.path, "UPDATE block_ciphertexts SET ciphertext = x'00'")
    before = dump(kept.path)
    with capture_logs() as logs:
        assert not kept.step()
    assert logs[0]["reason"] == "TEMPLATE_DAMAGED"
    assert dump(kept.path) == before
    assert kept.asked == []


@pytest.mark.parametrize("where", ["insert_block", "advance"])
def test_a_renewal_that_dies_changes_nothing_and_can_be_done_again(kept, monkeypatch, where):
    from sealface.enrollment import record as record_module

    kept.import_block(3)
    kept.erase(1)
    before = dump(kept.path)

    def die(*_arguments, **_named):
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(record_module, where, die)
        with pytest.raises(Died):
            kept.step()
    assert dump(kept.path) == before
    assert kept.settle() == 1
    kept.check()


@both_schemes
def test_an_imported_block_of_a_client_held_key_stays_until_it_is_empty(tmp_path, scheme):
    kept = Kept(tmp_path, scheme)
    kept.record.delete_gallery("door")
    kept.managed = False
    kept.create()
    kept.import_block(3)
    _, block = kept.galleries.block("door", 1)
    kept.erase(1)
    kept.erase(3)
    before = dump(kept.path)
    assert not kept.step()
    assert dump(kept.path) == before
    kept.check()
    kept.erase(2)
    assert kept.step()
    assert kept.blocks() == []
    assert not kept.anywhere(block)
    assert kept.asked == []


def test_an_imported_block_is_not_merged_and_keeps_nobody_from_it(kept):
    kept.import_block(kept.small.capacity)
    kept.erase(*range(1, 40))
    kept.enroll(300)
    kept.settle()
    kept.check()
    assert sum(live for _, live, _ in kept.blocks()) + len(kept.tail()) == len(kept.held)
    imported = [block for block in kept.galleries.blocks("door") if block.imported]
    assert [(block.live, block.erased) for block in imported] == [(kept.small.capacity - 39, 0)]
    assert len([block for block in kept.galleries.blocks("door") if block.columns == kept.larger.columns]) >= 1


# --- what happens meanwhile


class Meanwhile:
    """Something that happens when a block is begun, between the first two times it pauses."""

    def __init__(self, kept, monkeypatch, act):
        self.acted = 0

        def then():
            self.acted += 1
            if self.acted == 1:
                act()

        monkeypatch.setattr(kept, "pause", then)


@both_schemes
def test_who_is_erased_while_a_block_is_made_is_masked_and_then_gone(kept, monkeypatch):
    kept.enroll(kept.small.capacity + 2)
    during = Meanwhile(kept, monkeypatch, lambda: kept.erase(3, 4))
    assert kept.step()
    assert during.acted > 1
    # it is in the block's bytes for now: counted, no live template lies there
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity - 2, 2)]
    assert not {3, 4} & set(kept.galleries.sealed("door", 1))
    _, old = kept.galleries.block("door", 1)
    kept.check()
    assert kept.settle() == 1
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity, 0)]
    assert not {3, 4} & set(kept.galleries.block("door", 2)[0].tolist())
    assert not kept.anywhere(old)
    kept.check()


def test_who_is_erased_while_a_block_is_made_again_is_masked_and_then_gone(kept, monkeypatch):
    kept.enroll(kept.small.capacity)
    kept.settle()
    kept.erase(1)
    Meanwhile(kept, monkeypatch, lambda: kept.erase(2))
    assert kept.step()
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity - 2, 1)]
    kept.settle()
    assert kept.blocks() == [(kept.small.columns, kept.small.capacity - 2, 0)]
    kept.check()


def test_when_all_are_erased_while_a_block_is_made_there_is_none(kept, monkeypatch):
    kept.enroll(kept.small.capacity)
    Meanwhile(kept, monkeypatch, lambda: kept.erase(*range(1, kept.small.capacity + 1)))
    kept.step()
    assert kept.blocks() == []
    kept.settle()
    kept.check()


def test_who_is_enrolled_while_a_block_is_made_is_in_the_tail(kept, monkeypatch):
    kept.enroll(kept.small.capacity)
    Meanwhile(kept, monkeypatch, lambda: kept.enroll(3))
    assert kept.step()
    assert len(kept.tail()) == 3
    kept.check()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("compacting", [False, True])
def test_a_gallery_that_is_deleted_while_a_block_is_made_gets_none(kept, monkeypatch, again, compacting):
    kept.enroll(kept.small.capacity)
    if compacting:
        kept.settle()
        kept.erase(1)
    after = []

    def delete():
        kept.record.delete_gallery("door")
        if again:
            kept.create()
            data = kept.evaluator.admit(kept.encryptor.template(person(1)))
            kept.record.enroll("door", KEY, "new", data, "new")
        after.append(dump(kept.path))

    Meanwhile(kept, monkeypatch, delete)
    if again:
        assert not kept.step()
    else:
        with pytest.raises(GalleryNotFound):
            kept.step()
    assert dump(kept.path) == after[0]


class Died(Exception):
    """What ends a step in the middle."""


@pytest.mark.parametrize("compacting", [False, True])
@pytest.mark.parametrize("where", ["pause", "later pause", "evaluator", "before it is stored"])
def test_a_step_that_dies_changes_nothing_and_can_be_done_again(kept, monkeypatch, where, compacting):
    kept.enroll(kept.small.capacity + 1)
    if compacting:
        kept.settle()
        kept.erase(1)
    before = dump(kept.path)
    calls = 0

    def die(*_arguments, **_named):
        nonlocal calls
        calls += 1
        if calls > (where == "later pause"):
            raise Died

    with monkeypatch.context() as patched:
        if "pause" in where:
            patched.setattr(kept, "pause", die)
        elif where == "evaluator":
            patched.setattr(kept.sealer._evaluators.of(kept.door), "seal", die)
        else:
            patched.setattr(sealer_module.Record, "seal", die)
        with pytest.raises(Died):
            kept.step()
    assert dump(kept.path) == before
    assert kept.step()
    kept.check()


def test_a_transaction_that_dies_stores_no_half_of_a_block(kept, monkeypatch):
    from sealface.enrollment import record as record_module

    kept.enroll(kept.small.capacity + 1)
    kept.settle()
    kept.erase(1)
    before = dump(kept.path)

    def die(*_arguments, **_named):
        raise Died

    for name in ("insert_block", "advance"):
        with monkeypatch.context() as patched:
            patched.setattr(record_module, name, die)
            with pytest.raises(Died):
                kept.step()
        assert dump(kept.path) == before
    assert kept.step()
    kept.check()


def test_a_damaged_template_is_sealed_into_no_block(kept):
    kept.enroll(kept.small.capacity)
    execute(kept.path, "UPDATE template_ciphertexts SET ciphertext = x'00' WHERE slot = 5")
    before = dump(kept.path)
    with pytest.raises(TemplateDamaged):
        kept.step()
    assert dump(kept.path) == before
    kept.erase(5)
    kept.enroll(1)
    assert kept.step()
    kept.check()


# --- the running service


@pytest.fixture
async def fill(suite, client):
    """A gallery with so many enrolled."""

    async def filled(name="door", count=None, client_held=False):
        gallery = await client.create_gallery(name, policy=POLICY, client_held=client_held)
        count = gallery.layout.sealed_shapes[0].capacity if count is None else count
        results = [result async for result in gallery.enroll_many((f"s{i}", person(i)) for i in range(count))]
        assert len(results) == count
        return gallery

    return filled


@both_schemes
async def test_the_service_seals_by_itself_and_answers_meanwhile(suite, fill):
    gallery = await fill()
    capacity = gallery.layout.sealed_shapes[0].capacity
    while not select(suite.compute / "record.db", "SELECT number FROM blocks"):
        assert [found.subject for found in (await gallery.identify(person(3))).candidates] == ["s3"]
    await suite.sealed(capacity)
    assert [found.subject for found in (await gallery.identify(person(3))).candidates] == ["s3"]
    await gallery.erase("s3")
    await suite.sealed(capacity - 1)
    for _ in range(200):  # and then without it
        rows = select(suite.compute / "record.db", "SELECT slots FROM blocks WHERE erased = 0")
        if rows:
            break
        await asyncio.sleep(0.02)
    assert 4 not in np.frombuffer(rows[0][0], "<u4").tolist()
    assert [found.subject for found in (await gallery.identify(person(3))).candidates] == []


async def test_what_was_left_over_is_sealed_at_the_next_start(suite, client, fill, monkeypatch):
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)
    await suite.restart("enrollment")
    gallery = await fill()
    await asyncio.sleep(0.1)
    assert select(suite.compute / "record.db", "SELECT number FROM blocks") == []
    monkeypatch.undo()
    await suite.restart("enrollment")
    await suite.sealed(gallery.layout.sealed_shapes[0].capacity)


async def test_the_service_stops_in_the_middle_of_a_block(suite, fill, monkeypatch):
    began = threading.Event()
    evaluator = type(suite.scheme.evaluator(new_gallery().layout, _public(suite.scheme), {}))

    def forever(self, shape, templates, pause):
        while True:
            began.set()
            pause()
            threading.Event().wait(0.005)

    with monkeypatch.context() as patched:
        patched.setattr(evaluator, "seal", forever)
        gallery = await fill()
        assert await asyncio.to_thread(began.wait, 10)
        before = suite.record()
        await asyncio.wait_for(suite.stop("enrollment"), 20)
        assert suite.record() == before
        assert not [thread for thread in threading.enumerate() if thread.name == "housekeeper"]
    await suite.start("enrollment")
    await suite.sealed(gallery.layout.sealed_shapes[0].capacity)


def _public(scheme):
    return scheme.generate(new_gallery().layout.parameters).public


async def test_a_gallery_that_cannot_be_sealed_keeps_no_other_from_it(suite, client, fill, monkeypatch):
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)
    await suite.restart("enrollment")
    damaged = await fill("a-damaged")
    keyless = await fill("b-keyless")
    good = await fill("c-good")
    path = suite.compute / "record.db"
    execute(path, "UPDATE template_ciphertexts SET ciphertext = x'00' WHERE gallery = ? AND slot = 5", damaged.id)
    execute(path, "DELETE FROM gallery_evaluation_keys WHERE gallery = ?", keyless.id)
    monkeypatch.undo()
    await suite.restart("enrollment")
    await suite.sealed(good.layout.sealed_shapes[0].capacity)
    assert select(path, "SELECT gallery FROM blocks") == [(good.id,)]


async def test_after_a_failure_it_is_tried_again(suite, fill, monkeypatch):
    failed = []
    step = Sealer.step

    def first_fails(self, gallery, *arguments):
        if len(failed) < 2:
            failed.append(gallery.id)
            raise OSError("/var/lib/no-space-left 4711")
        return step(self, gallery, *arguments)

    monkeypatch.setattr(Sealer, "step", first_fails)
    with capture_logs() as logs:
        gallery = await fill()
        await suite.sealed(gallery.layout.sealed_shapes[0].capacity)
    assert len(failed) == 2
    said = [line for line in logs if line["event"] == "not finished"]
    assert said and all(line["error"] == "OSError" for line in said)
    assert "4711" not in str(logs)


async def test_a_client_held_gallery_is_sealed_as_well(suite, fill):
    gallery = await fill("safe", client_held=True)
    await suite.sealed(gallery.layout.sealed_shapes[0].capacity)
    assert [found.subject for found in (await gallery.identify(person(3))).candidates] == ["s3"]


# --- renewals by the key service


async def imported(gallery, count):
    return [block async for block in gallery.import_many((f"i{n}", person(1000 + n)) for n in range(count))]


async def renewed(suite, *live):
    """Wait until imported blocks hold so many live templates each, and no others."""
    query = (
        "SELECT count(slot) FROM blocks LEFT JOIN templates "
        "ON templates.gallery = blocks.gallery AND templates.block = blocks.number "
        "WHERE imported AND erased = 0 GROUP BY blocks.gallery, blocks.number ORDER BY 1"
    )
    found = []
    for _ in range(400):
        found = [row[0] for row in select(suite.compute / "record.db", query)]
        if found == sorted(live):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"renewed are {found}")


def who(found):
    return [candidate.subject for candidate in found.candidates]


@both_schemes
async def test_an_erased_template_of_an_imported_block_leaves_the_record(suite, door):
    await imported(door, 8)
    ((old,),) = select(suite.compute / "record.db", "SELECT ciphertext FROM block_ciphertexts")
    parts = [old[:36]] if isinstance(suite.scheme, Plain) else [old[at : at + 32] for at in range(0, len(old), 9000)]
    assert await door.erase("i3") == 1
    await renewed(suite, 7)
    ((slots,),) = select(suite.compute / "record.db", "SELECT slots FROM blocks")
    assert np.frombuffer(slots, "<u4")[:9].tolist() == [1, 2, 3, 0, 5, 6, 7, 8, 0]
    for _ in range(100):  # the log is emptied when no reader is in its way
        files = b"".join(f.read_bytes() for f in suite.compute.iterdir() if f.name.startswith("record.db"))
        if not any(part in files for part in parts):
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("the old block is still there")
    assert who(await door.identify(person(1003))) == []
    for number in (0, 2, 4, 7):
        assert who(await door.identify(person(1000 + number))) == [f"i{number}"]
        assert (await door.verify(f"i{number}", person(1000 + number))).match
    await asyncio.gather(*(door.erase(f"i{number}") for number in (0, 2, 4)))
    await renewed(suite, 4)
    assert who(await door.identify(person(1007))) == ["i7"]
    assert who(await door.identify(person(1002))) == []


async def test_while_the_key_service_is_away_all_else_goes_on_and_then_it_is_renewed(suite, fill, monkeypatch):
    monkeypatch.setattr(sealer_module, "_RETRY_S", 0.2)
    monkeypatch.setattr(housekeeper_module, "_LOOK_S", 0.5)
    gallery = await fill(count=0)
    capacity = gallery.layout.sealed_shapes[0].capacity
    await imported(gallery, 5)
    with capture_logs() as logs:
        await suite.stop("keys")
        await gallery.erase("i1")
        for _ in range(200):
            if [line for line in logs if line["event"] == "not renewed"]:
                break
            await asyncio.sleep(0.05)
        assert {line["reason"] for line in logs if line["event"] == "not renewed"} == {"KEY_SERVICE_UNAVAILABLE"}
        results = [result async for result in gallery.enroll_many((f"s{i}", person(i)) for i in range(capacity))]
        assert len(results) == capacity
        await suite.sealed(capacity, 4)
        assert select(suite.compute / "record.db", "SELECT erased FROM blocks WHERE imported") == [(1,)]
        await suite.start("keys")
        await renewed(suite, 4)
    assert who(await gallery.identify(person(1002))) == ["i2"]
    assert who(await gallery.identify(person(1001))) == []


async def test_a_gallery_whose_key_is_gone_keeps_no_other_from_being_renewed(suite, client, monkeypatch):
    monkeypatch.setattr(sealer_module, "_RETRY_S", 0.2)
    first = await client.create_gallery("a-keyless", policy=POLICY)
    second = await client.create_gallery("b-good", policy=POLICY)
    for gallery in (first, second):
        await imported(gallery, 3)
    await suite.stop("keys")
    for table in ("evaluation_keys", "key_versions"):
        execute(suite.keys / "keys.db", f"DELETE FROM {table} WHERE key = 'a-keyless'")  # noqa: S608
    await suite.start("keys")
    with capture_logs() as logs:
        await first.erase("i0")
        await second.erase("i0")
        await renewed(suite, 2)
    rows = select(suite.compute / "record.db", "SELECT gallery, erased FROM blocks ORDER BY 1")
    assert rows == [("a-keyless", 1), ("b-good", 0)]
    assert {line["reason"] for line in logs if line["event"] == "not renewed"} == {"KEY_NOT_FOUND"}


async def test_the_service_stops_while_a_block_is_renewed(suite, door, monkeypatch):
    from sealface.keys.renewal import Renewal

    began, release = threading.Event(), threading.Event()
    renew = Renewal.renew

    def slow(self, blinded):
        began.set()
        release.wait(20)
        return renew(self, blinded)

    monkeypatch.setattr(Renewal, "renew", slow)
    await imported(door, 3)
    await door.erase("i0")
    assert await asyncio.to_thread(began.wait, 10)
    before = suite.record()
    await asyncio.wait_for(suite.stop("enrollment"), 15)
    assert suite.record() == before
    release.set()
    await suite.start("enrollment")
    await renewed(suite, 2)
    assert who(await door.identify(person(1001))) == ["i1"]
