"""Sealed blocks in the record: where templates lie, and what of it is checked when it is read."""

import numpy as np
import pytest

from sealface.enrollment.leases import Leases
from sealface.enrollment.rows import RequestIdReused, TooManyTemplates
from sealface.storage.digests import TemplateDamaged
from sealface.storage.galleries import BlockInfo, Census, GalleryNotFound
from tests.storage.conftest import dump, execute, new_gallery

KEY = "keys/door/versions/1"
COLUMNS, CAPACITY = 8, 12  # the record asks nothing of a shape


@pytest.fixture
def door(record, galleries):
    record.create_gallery(new_gallery(evaluation_keys={4097: b"first", 2049: b"second"}))
    return galleries.get("door")


@pytest.fixture
def enroll(door, record):
    def enrol(*subjects):
        return [
            record.enroll("door", KEY, subject, b"of " + subject.encode(), f"{subject}-{i}").slot
            for i, subject in enumerate(subjects)
        ]

    return enrol


@pytest.fixture
def import_block(door, record):
    def imported(subjects, request_id="import", ciphertext=b"imported"):
        return record.import_block("door", KEY, subjects, COLUMNS, CAPACITY, ciphertext, request_id)

    return imported


@pytest.fixture
def leases(engine):
    return Leases(engine)


@pytest.fixture
def seal(galleries, record, leases):

    def sealed(slots, ciphertext=b"sealed", replaced=(), gallery=None):
        placed = np.zeros(CAPACITY, np.uint32)
        placed[: len(slots)] = slots
        return record.seal(gallery or galleries.get("door"), leases.take("door"), COLUMNS, placed, ciphertext, replaced)

    return sealed


def rows(placement):
    """First and last epoch, then what was taken, given up, is open and is sealed, as lists."""
    assert placement.taken.shape[1:] == (2,)
    return (
        placement.first_epoch,
        placement.epoch,
        placement.taken.tolist(),
        placement.given.tolist(),
        placement.tail.tolist(),
        placement.blocks,
    )


def test_an_empty_gallery_is_placed(door, galleries):
    assert rows(galleries.placement("door", 0)) == (0, 0, [], [], [], {})


def test_an_unknown_gallery_has_no_placement(galleries):
    with pytest.raises(GalleryNotFound):
        galleries.placement("none", 0)
    assert galleries.blocks("none") == []
    assert galleries.block("none", 1) is None
    assert galleries.unsealed("none", 9) == galleries.sealed("none", 1) == []
    assert galleries.evaluation_keys("none") == {}


def test_templates_are_placed_with_their_subjects_first_slot(enroll, galleries):
    enroll("ann", "bob", "ann", "cyd", "ann")
    taken = [[1, 1], [2, 2], [3, 1], [4, 4], [5, 1]]
    assert rows(galleries.placement("door", 0)) == (0, 5, taken, [], [1, 2, 3, 4, 5], {})
    # what changed since is told, where all of it lies always
    assert rows(galleries.placement("door", 3)) == (0, 5, taken[3:], [], [1, 2, 3, 4, 5], {})
    assert rows(galleries.placement("door", 5)) == (0, 5, [], [], [1, 2, 3, 4, 5], {})


def test_an_erased_template_is_given_up_and_nowhere(enroll, record, galleries):
    enroll("ann", "bob", "ann", "cyd")
    record.erase_subject("door", "ann")
    assert rows(galleries.placement("door", 0)) == (0, 5, [[2, 2], [4, 4]], [1, 3], [2, 4], {})
    assert rows(galleries.placement("door", 4)) == (0, 5, [], [1, 3], [2, 4], {})
    record.enroll("door", KEY, "ann", b"x", "again")  # its first slot is a new one
    assert rows(galleries.placement("door", 5)) == (0, 6, [[5, 5]], [], [2, 4, 5], {})


def test_sealing_moves_templates_and_takes_none(enroll, seal, record, galleries):
    enroll("ann", "bob", "cyd", "dan")
    assert galleries.unsealed("door", 3) == [1, 2, 3]
    assert seal([1, 2, 3])
    assert rows(galleries.placement("door", 4)) == (0, 5, [], [], [4], {1: COLUMNS})
    assert galleries.blocks("door") == [BlockInfo(1, COLUMNS, False, 0, 3)]
    assert (galleries.sealed("door", 1), galleries.unsealed("door", 9)) == ([1, 2, 3], [4])
    slots, data = galleries.block("door", 1)
    assert (slots.tolist(), slots.dtype, data) == ([1, 2, 3] + [0] * 9, np.uint32, b"sealed")
    # a sealed template keeps its ciphertext, so that a block can be made again
    assert list(galleries.ciphertexts("door", [1, 4])) == [(1, b"of ann"), (4, b"of dan")]
    assert galleries.homes("door", [1, 4, 9]) == {1: None, 4: None}
    record.erase_subject("door", "bob")
    assert rows(galleries.placement("door", 5)) == (0, 6, [], [2], [4], {1: COLUMNS})
    assert galleries.blocks("door") == [BlockInfo(1, COLUMNS, False, 1, 2)]
    assert galleries.block("door", 1)[0].tolist()[:3] == [1, 2, 3]  # until it is made again


def test_a_census_counts_templates_where_they_lie(enroll, seal, import_block, record, galleries, door):
    capacity = door.layout.group.capacity
    assert galleries.census(door) == Census(sealed=0, open=0, groups=0, erased=0, blocks=0)
    enroll(*(f"s{number}" for number in range(capacity + 2)))  # the last two lie in a group of their own
    import_block(["x", "y", "z"])
    assert galleries.census(door) == Census(sealed=3, open=capacity + 2, groups=2, erased=0, blocks=1)
    seal(range(1, 11))
    record.erase_subject("door", "s0")
    record.erase_subject("door", "y")
    assert galleries.census(door) == Census(sealed=11, open=capacity - 8, groups=2, erased=2, blocks=2)
    record.delete_gallery("door")
    assert galleries.census(door) == Census(sealed=0, open=0, groups=0, erased=0, blocks=0)


def test_blocks_are_replaced_in_one_step(enroll, seal, record, galleries):
    enroll("a", "b", "c", "d", "e")
    assert seal([1, 2]) and seal([3, 4], b"other")
    record.erase_subject("door", "c")
    assert seal([1, 2, 4, 5], b"all", [1, 2])
    assert rows(galleries.placement("door", 0))[4:] == ([], {3: COLUMNS})
    assert galleries.blocks("door") == [BlockInfo(3, COLUMNS, False, 0, 4)]
    assert galleries.block("door", 1) is galleries.block("door", 2) is None
    # and not at all if one of them is gone
    before = galleries.placement("door", 0)
    assert not seal([1, 2], b"late", [2, 3])
    assert rows(galleries.placement("door", 0)) == rows(before)


def test_what_was_erased_while_it_was_sealed_is_counted(enroll, seal, record, galleries, leases):
    enroll("a", "b", "c")
    record.erase_subject("door", "b")
    assert seal([1, 2, 3])
    assert galleries.blocks("door") == [BlockInfo(1, COLUMNS, False, 1, 2)]
    assert galleries.sealed("door", 1) == [1, 3]
    record.erase_subject("door", "a")
    record.erase_subject("door", "c")
    assert galleries.blocks("door") == [BlockInfo(1, COLUMNS, False, 3, 0)]
    before = galleries.epochs("door")[1]
    record.drop_block(galleries.get("door"), leases.take("door"), 1)
    assert galleries.blocks("door") == []
    assert galleries.epochs("door")[1] == before + 1
    enroll("d")
    assert seal([1, 2, 3])  # nothing of it is left
    assert galleries.blocks("door") == []


def test_a_gallery_made_anew_takes_no_block_of_the_old_one(enroll, seal, record, galleries, engine):
    enroll("a", "b")
    old = galleries.get("door")
    record.delete_gallery("door")
    with pytest.raises(GalleryNotFound):
        seal([1, 2], gallery=old)
    record.create_gallery(new_gallery())
    record.enroll("door", KEY, "c", b"x", "r")
    before = dump(engine)
    assert not seal([1, 2], gallery=old)
    assert dump(engine) == before


def test_an_imported_block_is_placed_at_once(enroll, import_block, record, galleries):
    enroll("ann", "bob")
    imported = import_block(["cyd", "ann", "cyd", "dan"])
    assert (imported.slot, imported.epoch) == (3, 3)
    taken = [[1, 1], [2, 2], [3, 3], [4, 1], [5, 3], [6, 6]]
    assert rows(galleries.placement("door", 0)) == (0, 3, taken, [], [1, 2], {1: COLUMNS})
    assert galleries.blocks("door") == [BlockInfo(1, COLUMNS, True, 0, 4)]
    slots, data = galleries.block("door", 1)
    assert (slots.tolist(), data) == ([3, 4, 5, 6] + [0] * 8, b"imported")
    # its templates have no ciphertexts of their own, and lie there
    assert list(galleries.ciphertexts("door", range(1, 7))) == [(1, b"of ann"), (2, b"of bob")]
    assert galleries.homes("door", [1, 3, 6, 99]) == {1: None, 3: 1, 6: 1}
    assert galleries.counts("door") == (4, 6)
    assert [slot for slot, _ in galleries.subject("door", "ann")] == [1, 4]
    record.erase_subject("door", "ann")
    assert rows(galleries.placement("door", 3)) == (0, 4, [], [1, 4], [2], {1: COLUMNS})
    assert galleries.blocks("door") == [BlockInfo(1, COLUMNS, True, 1, 3)]
    assert enroll("eve") == [7]


def test_an_import_is_one_request(import_block, galleries, engine):
    first = import_block(["a", "b"])
    before = dump(engine)
    assert import_block(["a", "b"], ciphertext=b"encrypted anew") == first
    for others in (["b", "a"], ["a"], ["a", "b", "b"]):
        with pytest.raises(RequestIdReused):
            import_block(others)
    assert dump(engine) == before


def test_an_import_over_a_subjects_bound_stores_nothing(enroll, import_block, engine):
    enroll(*["ann"] * 10)
    before = dump(engine)
    with pytest.raises(TooManyTemplates) as caught:
        import_block(["bob", *["ann"] * 7])
    assert caught.value.metadata == {"limit": "16"}
    assert dump(engine) == before
    import_block(["bob", *["ann"] * 6])


def test_an_import_under_another_key_stores_nothing(door, record, engine):
    before = dump(engine)
    with pytest.raises(GalleryNotFound):
        record.import_block("door", "keys/other/versions/1", ["a"], COLUMNS, CAPACITY, b"x", "r")
    assert dump(engine) == before


def test_slots_do_not_run_out_in_the_middle_of_a_block(import_block, galleries, engine):
    execute(engine, "UPDATE galleries SET next_slot = ?", 2**32 - 2)
    before = dump(engine)
    with pytest.raises(TooManyTemplates):
        import_block(["a", "b", "c"])
    assert dump(engine) == before
    assert import_block(["a", "b"]).slot == 2**32 - 2
    assert galleries.block("door", 1)[0][:3].tolist() == [2**32 - 2, 2**32 - 1, 0]
    with pytest.raises(TooManyTemplates):
        import_block(["c"], "another")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ciphertext", b"sealeX"),
        ("slots", np.arange(2, 2 + CAPACITY, dtype="<u4").tobytes()),
        ("slots", np.zeros(CAPACITY, "<u4").tobytes()),
        ("slots", b""),
        ("digest", bytes(32)),
    ],
    ids=["ciphertext", "other slots", "no slots", "empty slots", "digest"],
)
def test_a_damaged_block_is_not_given_out(enroll, seal, galleries, engine, column, value):
    enroll("a", "b")
    assert seal([1, 2]) and seal([2], b"whole")
    assert galleries.block("door", 1)[1] == b"sealed"
    table = "blocks" if column == "slots" else "block_ciphertexts"
    assert execute(engine, f"UPDATE {table} SET {column} = ? WHERE number = 1", value) == 1  # noqa: S608
    with pytest.raises(TemplateDamaged):
        galleries.block("door", 1)
    assert galleries.block("door", 2)[1] == b"whole"


def test_evaluation_keys_come_back_each_checked(door, galleries, engine):
    assert galleries.evaluation_keys("door") == {4097: b"first", 2049: b"second"}
    assert execute(engine, "UPDATE gallery_evaluation_keys SET material = ? WHERE galois_element = 2049", b"other") == 1
    with pytest.raises(TemplateDamaged):
        galleries.evaluation_keys("door")


def test_nothing_of_a_deleted_gallery_stays_but_its_counters(enroll, seal, import_block, record, engine):
    enroll("a", "b")
    seal([1])
    import_block(["c"])
    assert record.delete_gallery("door") == 3
    rows = dump(engine)
    assert rows.pop("retired_galleries") == [("door", 4, 4)]
    assert not any(rows.values())
