"""Real damage, and what the doctor says of it and does about it."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter

import numpy as np
import pytest
import sqlalchemy as sa

from sealface.enrollment.leases import Leases
from sealface.enrollment.repair import repair
from sealface.enrollment.versions import Versions
from sealface.storage import record as tables
from sealface.storage.database import forget
from sealface.storage.digests import TemplateDamaged, sha256
from sealface.storage.doctor import examine
from sealface.storage.findings import Damage, Finding, Severity
from sealface.storage.galleries import GalleryNotFound
from tests.storage import sound
from tests.storage.conftest import dump, execute

SECOND = "keys/door/versions/2"


@pytest.fixture
def door(record, galleries):
    sound.fill(record, galleries)
    return galleries.get("door")


def found(engine, gallery=None):
    """What, slot and block of each finding."""
    return [(f.what.value, f.slot, f.block) for f in examine(engine, gallery).findings]


BESIDE = {
    tables.galleries: tables.versions,
    tables.templates: tables.template_ciphertexts,
    tables.blocks: tables.block_ciphertexts,
}


def home(table, column, where):
    """Where a column of a table's rows is kept, and the condition there."""
    if column in table.c:
        return table, where
    return BESIDE[table], {"gallery" if name == "id" else name: value for name, value in where.items()}


def change(engine, table, where, **values):
    """Change a record behind its service's back."""
    table, where = home(table, next(iter(values)), where)
    conditions = [table.c[name] == value for name, value in where.items()]
    with engine.begin() as transaction:
        assert transaction.execute(sa.update(table).where(*conditions).values(**values)).rowcount > 0


def stored(engine, table, column, **where):
    table, where = home(table, column, where)
    conditions = [table.c[name] == value for name, value in where.items()]
    with engine.begin() as transaction:
        return transaction.execute(sa.select(table.c[column]).where(*conditions)).scalars().first()


def flip(engine, table, column, at=1000, **where):
    """One bit of a blob."""
    data = bytearray(stored(engine, table, column, **where))
    data[at % len(data)] ^= 4
    change(engine, table, where, **{column: bytes(data)})


def test_a_sound_record_is_healthy_and_everything_was_looked_at(door, engine):
    report = examine(engine)
    assert report.healthy
    assert report.findings == []
    assert report.checked == Counter(
        {
            "databases": 1,
            "galleries": 1,
            "gallery_evaluation_keys": 7,
            "templates": 9,
            "tombstones": 2,
            "blocks": 3,
            "requests": 8,
        }
    )


def test_an_empty_record_is_healthy(engine):
    assert examine(engine).healthy


def test_a_gallery_that_is_empty_or_made_anew_is_healthy(record, galleries, engine):
    sound.fill(record, galleries)
    record.delete_gallery("door")
    sound.create(record)
    assert examine(engine).healthy
    sound.enroll(record, "door", "ann", 1)
    assert examine(engine).healthy
    assert examine(engine).checked["templates"] == 1


def test_one_gallery_alone(door, record, galleries, engine):
    sound.fill(record, galleries, "hall")
    flip(engine, tables.templates, "ciphertext", gallery="hall", slot=7)
    assert found(engine, "door") == []
    assert found(engine, "hall") == [("template_damaged", 7, None)]
    assert examine(engine, "hall").checked["templates"] == 9
    with pytest.raises(GalleryNotFound):
        examine(engine, "lab")


# --- a flipped bit, column by column

SEALED, IMPORTED, OPEN = (
    {"gallery": "door", "number": 1},
    {"gallery": "door", "number": 2},
    {"gallery": "door", "slot": 7},
)

FLIPPED = [
    (tables.galleries, "public_key", {"id": "door"}, [("public_key_damaged", None, None)]),
    (tables.galleries, "public_key_digest", {"id": "door"}, [("public_key_damaged", None, None)]),
    (tables.evaluation_keys, "material", {"galois_element": 2049}, [("evaluation_key_damaged", None, None)]),
    (tables.evaluation_keys, "digest", {"galois_element": 2049}, [("evaluation_key_damaged", None, None)]),
    (tables.templates, "ciphertext", OPEN, [("template_damaged", 7, None)]),
    (tables.templates, "digest", OPEN, [("template_damaged", 7, None)]),
    (tables.templates, "ciphertext", {"slot": 1}, [("template_damaged", 1, None)]),
    (tables.blocks, "ciphertext", SEALED, [("block_damaged", None, 1)]),
    (tables.blocks, "digest", SEALED, [("block_damaged", None, 1)]),
    (tables.blocks, "slots", SEALED, [("block_damaged", None, 1)]),
    (tables.blocks, "ciphertext", IMPORTED, [("block_damaged", None, 2)]),
    (tables.requests, "subject_digest", {"slot": 7}, [("request_inconsistent", 7, None)]),
]


@pytest.mark.parametrize(
    ("table", "column", "where", "expected"),
    FLIPPED,
    ids=[f"{t.name}.{c}-{i}" for i, (t, c, _, _) in enumerate(FLIPPED)],
)
def test_a_flipped_bit_is_found(door, engine, table, column, where, expected):
    flip(engine, table, column, **where)
    assert found(engine) == expected


CHANGED = [
    ("galleries", "parameter_set = 'ckks-n8192-v1'", "1 = 1", None),
    ("galleries", "parameter_set = 'none'", "1 = 1", ("gallery_malformed", None, None)),
    ("galleries", "dimension = 512", "1 = 1", ("block_damaged", None, 1)),
    ("galleries", "dimension = 1", "1 = 1", ("gallery_malformed", None, None)),
    ("galleries", "metric = 'cosinf'", "1 = 1", ("gallery_malformed", None, None)),
    ("galleries", "custody = 'managee'", "1 = 1", ("gallery_malformed", None, None)),
    ("galleries", "key_version = 'keys/door/versions/x'", "1 = 1", ("gallery_malformed", None, None)),
    ("galleries", "privacy_level = 66", "1 = 1", ("gallery_malformed", None, None)),
    ("galleries", "fusion = 0", "1 = 1", ("gallery_malformed", None, None)),
    ("galleries", "first_epoch = first_epoch + 1", "1 = 1", ("counter_behind", 1, None)),
    ("galleries", "first_epoch = 1000", "1 = 1", ("counter_behind", None, None)),
    ("galleries", "epoch = epoch - 1", "1 = 1", ("counter_behind", 9, None)),
    ("galleries", "next_slot = next_slot - 1", "1 = 1", ("counter_behind", 11, None)),
    ("galleries", "next_block = next_block - 1", "1 = 1", ("counter_behind", None, 3)),
    ("gallery_evaluation_keys", "galois_element = 17", "galois_element = 2049", ("evaluation_key_missing", None, None)),
    ("templates", "slot = 77", "slot = 7", ("template_lost", 7, None)),
    ("templates", "subject = 'fab'", "slot = 8", ("request_inconsistent", 8, None)),
    ("templates", "subject = 'a/b'", "slot = 5", ("subject_inconsistent", 5, None)),
    ("templates", "subject = 'cid'", "slot = 6", ("subject_inconsistent", 6, None)),
    ("templates", "lead = 3", "slot = 3", ("subject_inconsistent", 3, None)),
    ("templates", "lead = 2", "slot = 3", ("subject_inconsistent", 3, None)),
    ("templates", "block = 2", "slot = 2", ("block_inconsistent", None, 1)),
    ("templates", "block = 2", "slot = 7", ("block_inconsistent", None, 2)),
    ("templates", "block = 3", "slot = 6", ("block_inconsistent", None, 2)),
    ("templates", "block = NULL", "slot = 6", ("template_damaged", 6, None)),
    ("template_ciphertexts", "slot = 7000", "slot = 7", ("template_damaged", 7, None)),
    ("template_ciphertexts", "slot = 2000", "slot = 2", ("block_inconsistent", None, 1)),
    ("templates", "epoch = epoch + 1", "slot = 2", ("request_inconsistent", 2, None)),
    ("templates", "epoch = 1000", "slot = 5", ("counter_behind", 5, None)),
    ("blocks", "number = 33", "number = 2", ("block_missing", None, 2)),
    ("blocks", "columns = 8", "number = 2", ("block_damaged", None, 2)),
    ("blocks", "imported = NOT imported", "number = 1", ("block_inconsistent", None, 1)),
    ("blocks", "imported = NOT imported", "number = 2", ("block_inconsistent", None, 2)),
    ("blocks", "erased = 1", "number = 1", ("erased_count_wrong", None, 1)),
    ("blocks", "erased = 0", "number = 3", ("erased_count_wrong", None, 3)),
    ("tombstones", "slot = 7", "slot = 9", ("erased_but_present", 7, None)),
    ("tombstones", "epoch = 1000", "slot = 9", ("counter_behind", 9, None)),
    ("requests", "slot = 6", "slot = 7", ("request_inconsistent", 6, None)),
    ("requests", "slot = 100", "slot = 7", ("counter_behind", 100, None)),
    ("requests", "epoch = epoch - 1", "slot = 7", ("request_inconsistent", 7, None)),
    ("requests", "request_id = 'a b'", "slot = 7", ("request_inconsistent", 7, None)),
]


@pytest.mark.parametrize(
    ("table", "values", "where", "expected"),
    CHANGED,
    ids=[f"{table} {values}, {where}" for table, values, where, _ in CHANGED],
)
def test_a_changed_value_is_found(door, engine, table, values, where, expected):
    if engine.dialect.name == "postgresql":
        values = values.replace("columns", '"columns"')
    assert execute(engine, f"UPDATE {table} SET {values} WHERE {where}") == 1  # noqa: S608
    assert not examine(engine).healthy
    if expected is not None:
        assert expected in found(engine)


@pytest.mark.parametrize(
    "table", ["galleries", "templates", "blocks", "tombstones", "requests", "gallery_evaluation_keys"]
)
def test_a_value_of_another_kind_is_found_and_the_examination_goes_on(tmp_path, table):
    """SQLite keeps what it finds in its file, of whatever type."""
    from sealface.enrollment.record import Record
    from sealface.storage.galleries import Galleries
    from sealface.storage.schema import open_record

    first = f"WHERE rowid = (SELECT min(rowid) FROM {table})"  # noqa: S608
    engine = open_record(tmp_path)
    for column in tables.metadata.tables[table].columns:
        for value in (b"\xff\xfe", "\x07", -1, None):
            if value == -1 and isinstance(column.type, sa.String):
                continue  # a text like another
            record = Record(engine)
            sound.fill(record, Galleries(engine))
            raw = sqlite3.connect(tmp_path / "record.db")
            try:
                raw.execute("PRAGMA ignore_check_constraints=ON")
                try:
                    with raw:
                        raw.execute(f'UPDATE {table} SET "{column.name}" = ? {first}', (value,))  # noqa: S608
                except sqlite3.IntegrityError:
                    continue
            finally:
                raw.close()
                healthy = examine(engine).healthy
                with engine.begin() as transaction:
                    for each in reversed(tables.metadata.sorted_tables):
                        if each not in (tables.audit, tables.pseudonym_key):
                            transaction.execute(sa.delete(each))
            assert not healthy or value is None, (column.name, value)


# --- rows that are gone, moved or doubled


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM templates WHERE slot = 7", [("template_lost", 7, None)]),
        ("DELETE FROM templates WHERE slot = 2", [("subject_inconsistent", 5, None), ("template_lost", 2, None)]),
        ("DELETE FROM templates WHERE slot = 6", [("template_lost", 6, None)]),
        ("DELETE FROM tombstones WHERE slot = 9", [("template_lost", 9, None)]),
        ("DELETE FROM tombstones WHERE slot = 10", [("template_lost", 10, None)]),
        ("DELETE FROM blocks WHERE number = 1", [("block_missing", None, 1)]),
        ("DELETE FROM blocks WHERE number = 2", [("block_missing", None, 2)]),
        ("DELETE FROM gallery_evaluation_keys WHERE galois_element = 4097", [("evaluation_key_missing", None, None)]),
        ("DELETE FROM gallery_evaluation_keys", [("evaluation_key_missing", None, None)] * 7),
        ("DELETE FROM requests WHERE slot = 7", []),  # nothing needs it but a caller that asks again
    ],
)
def test_a_row_that_is_gone_is_missed(door, engine, statement, expected):
    assert execute(engine, statement) > 0
    assert found(engine) == expected


def test_a_gallery_whose_row_is_gone_leaves_orphans(door, record, galleries, tmp_path, request):
    engine = record._engine
    if engine.dialect.name == "postgresql":
        pytest.skip("PostgreSQL does not let it go")
    raw = sqlite3.connect(request.getfixturevalue("path"))
    with raw:
        raw.execute("DELETE FROM galleries")
    raw.close()
    findings = examine(engine).findings
    assert {f.what for f in findings} == {Damage.ORPHANED_ROWS}
    assert {f.detail for f in findings} >= {"templates", "blocks", "requests", "tombstones"}


def test_swapped_ciphertexts_are_found_unless_their_digests_are_swapped_too(door, engine):
    """A digest says that bytes are as they were stored, not whose they are; who can write digests can forge anyway."""
    one, other = (
        stored(engine, tables.templates, "ciphertext", slot=7),
        stored(engine, tables.templates, "ciphertext", slot=8),
    )
    change(engine, tables.templates, {"slot": 7}, ciphertext=other)
    change(engine, tables.templates, {"slot": 8}, ciphertext=one)
    assert found(engine) == [("template_damaged", 7, None), ("template_damaged", 8, None)]
    change(engine, tables.templates, {"slot": 7}, digest=sha256(other))
    change(engine, tables.templates, {"slot": 8}, digest=sha256(one))
    assert found(engine) == []


@pytest.mark.parametrize(
    "data", [b"", b"short", sound.template(1)[:-1], sound.template(1) + b"\0", sound.block(1), b"\xff" * 61_440]
)
def test_a_ciphertext_of_another_form_is_damage_even_if_its_digest_fits(door, engine, data):
    change(engine, tables.templates, {"slot": 7}, ciphertext=data, digest=sha256(data))
    assert found(engine) == [("template_damaged", 7, None)]


def test_a_ciphertext_that_hides_nothing_is_damage_even_if_its_digest_fits(door, engine):
    data = sound.template(1)[:30_720] + bytes(30_720)
    change(engine, tables.templates, {"slot": 7}, ciphertext=data, digest=sha256(data))
    assert found(engine) == [("template_damaged", 7, None)]


def test_a_slot_in_two_blocks_is_found(door, record, galleries, engine):
    placed = np.zeros(sound.SHAPE.capacity, np.uint32)
    placed[:2] = (7, 8)
    sound.seal(record, galleries.get("door"), placed, sound.block(4))
    assert found(engine) == []
    placed[2] = 2
    sound.seal(record, galleries.get("door"), placed, sound.block(5))
    assert set(found(engine)) == {
        ("block_inconsistent", None, 1),
        ("block_inconsistent", None, 4),
        ("block_inconsistent", 2, None),
        ("block_inconsistent", 7, None),
        ("block_inconsistent", 8, None),
    }


def test_a_subject_with_more_templates_than_can_be_claimed(door, engine):
    with engine.begin() as transaction:
        row = transaction.execute(sa.select(tables.templates).where(tables.templates.c.slot == 8)).one()._asdict()
        own = tables.template_ciphertexts
        data = transaction.execute(sa.select(own).where(own.c.slot == 8)).one()._asdict()
        for slot in range(100, 116):
            transaction.execute(sa.insert(tables.templates).values(row | {"slot": slot}))
            transaction.execute(sa.insert(own).values(data | {"slot": slot}))
        transaction.execute(sa.update(tables.galleries).values(next_slot=200))
    assert found(engine) == [("subject_inconsistent", slot, None) for slot in (8, *range(100, 116))]


def test_counters_that_fell_behind_an_earlier_gallery(record, galleries, engine):
    sound.fill(record, galleries)
    record.delete_gallery("door")
    sound.fill(record, galleries)
    assert examine(engine).healthy
    assert execute(engine, "UPDATE retired_galleries SET epoch = 1000") == 1
    assert found(engine) == [("counter_behind", None, None)]


# --- files that are damaged below the database


def test_damaged_pages_are_found(door, engine, request):
    if engine.dialect.name == "postgresql":
        pytest.skip("PostgreSQL's own checksums are the operator's to turn on")
    path = request.getfixturevalue("path")
    assert forget(engine)
    engine.dispose()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        for at in range(4096 * 3, size, 4096 * 40):
            file.seek(at)
            file.write(os.urandom(512))
    report = examine(engine)
    assert not report.healthy
    assert Damage.DATABASE_DAMAGED in {f.what for f in report.findings}


# --- what is said of it


def test_findings_say_how_bad_it_is_and_what_to_do(door, engine):
    flip(engine, tables.templates, "ciphertext", slot=7)
    flip(engine, tables.blocks, "ciphertext", **SEALED)
    lost, heals = (finding.described() for finding in examine(engine).findings)
    assert (lost["what"], lost["gallery"], lost["slot"], lost["severity"]) == ("template_damaged", "door", 7, "error")
    assert "enrol it again" in lost["advice"]
    assert "restore" in lost["advice"]
    assert (heals["what"], heals["block"], heals["severity"]) == ("block_damaged", 1, "warning")
    assert "--repair" in heals["advice"]


def test_every_kind_has_advice():
    for what in Damage:
        assert Finding(what, "door").advice


def test_further_checks_join_in(door, engine):
    def check(gallery_ids, checked):
        assert gallery_ids == ["door"]
        checked["cache entries"] += 3
        yield Finding(Damage.CACHE_ENTRY_DAMAGED, "door", block=2)

    report = examine(engine, further=[check])
    assert report.checked["cache entries"] == 3
    assert not report.healthy
    assert [f.severity for f in report.findings] == [Severity.WARNING]
    assert "from the cache" in report.findings[0].advice


# --- repairs


def healed(engine):
    return repair(engine, examine(engine).findings)


HEALABLE = {
    "ciphertext": lambda engine: flip(engine, tables.blocks, "ciphertext", **SEALED),
    "truncated": lambda engine: change(engine, tables.blocks, SEALED, ciphertext=sound.block(1)[:1000]),
    "empty": lambda engine: change(engine, tables.blocks, SEALED, ciphertext=b""),
    "digest": lambda engine: flip(engine, tables.blocks, "digest", **SEALED),
    "slots": lambda engine: flip(engine, tables.blocks, "slots", **SEALED),
    "columns": lambda engine: change(engine, tables.blocks, SEALED, columns=8),
    "flag": lambda engine: change(engine, tables.blocks, SEALED, imported=True),
    "gone": lambda engine: execute(engine, "DELETE FROM blocks WHERE number = 1"),
    "template elsewhere": lambda engine: change(engine, tables.templates, {"slot": 2}, block=None),
}


@pytest.mark.parametrize("damage", HEALABLE)
def test_a_sealed_block_is_healed_from_its_templates(door, galleries, engine, damage):
    HEALABLE[damage](engine)
    assert [f.repaired for f in healed(engine)] == [True]
    assert examine(engine).findings == []
    assert set(sound.SEALED) <= set(galleries.unsealed("door", 100))
    assert [info.number for info in galleries.blocks("door")] == [2, 3]
    assert dict(galleries.ciphertexts("door", sound.SEALED)) == {slot: sound.template(slot) for slot in sound.SEALED}
    # who searches sees that something changed
    assert galleries.get("door").epoch == door.epoch + 1
    placement = galleries.placement("door", 0)
    assert placement.tail.tolist() == [1, 2, 3, 7, 8]


@pytest.mark.parametrize("number", [1, 3])
def test_a_wrong_count_is_counted_again(door, galleries, engine, number):
    before = dump(engine)
    change(engine, tables.blocks, {"number": number}, erased=2)
    assert [f.repaired for f in healed(engine)] == [True]
    assert examine(engine).findings == []
    assert dump(engine)["blocks"] == before["blocks"]


NOT_HEALABLE = {
    "imported block": lambda engine: flip(engine, tables.blocks, "ciphertext", **IMPORTED),
    "imported block, flag too": lambda engine: (
        flip(engine, tables.blocks, "ciphertext", **IMPORTED),
        change(engine, tables.blocks, IMPORTED, imported=False),
    ),
    "imported block, gone": lambda engine: execute(engine, "DELETE FROM blocks WHERE number = 2"),
    "template": lambda engine: flip(engine, tables.templates, "ciphertext", slot=7),
    "sealed block and one of its templates": lambda engine: (
        flip(engine, tables.blocks, "ciphertext", **SEALED),
        flip(engine, tables.templates, "ciphertext", slot=2),
    ),
    "public key": lambda engine: flip(engine, tables.galleries, "public_key", id="door"),
    "lead": lambda engine: change(engine, tables.templates, {"slot": 3}, lead=3),
    "counter": lambda engine: change(engine, tables.galleries, {"id": "door"}, next_slot=5),
    "erased but there": lambda engine: change(engine, tables.tombstones, {"slot": 9}, slot=7),
}


@pytest.mark.parametrize("damage", NOT_HEALABLE)
def test_nothing_is_guessed(door, engine, damage):
    NOT_HEALABLE[damage](engine)
    before = dump(engine)
    findings = healed(engine)
    assert findings
    assert not any(f.repaired for f in findings)
    assert dump(engine) == before


def test_a_repair_comes_too_late_for_what_was_made_anew(door, record, galleries, engine):
    flip(engine, tables.blocks, "ciphertext", **SEALED)
    (finding,) = examine(engine).findings
    placed = np.zeros(sound.SHAPE.capacity, np.uint32)
    placed[:3] = sound.SEALED
    sound.seal(record, galleries.get("door"), placed, sound.block(9), [1])
    before = dump(engine)["blocks"]
    repair(engine, [finding])
    assert dump(engine)["blocks"] == before
    assert examine(engine).healthy
    record.delete_gallery("door")
    assert not repair(engine, [finding])[0].repaired


def test_what_was_imported_meanwhile_is_not_dropped(door, record, galleries, engine):
    """A gallery made anew counts its blocks from 1 again."""
    flip(engine, tables.blocks, "ciphertext", **SEALED)
    (finding,) = examine(engine).findings
    record.delete_gallery("door")
    sound.create(record)
    record.import_block("door", sound.KEY, ["ann"], sound.SHAPE.columns, sound.SHAPE.capacity, sound.block(2), "r")
    before = dump(engine)
    assert not repair(engine, [finding])[0].repaired
    assert dump(engine) == before


def test_readers_refuse_what_the_doctor_finds(door, galleries, engine):
    flip(engine, tables.blocks, "ciphertext", **SEALED)
    with pytest.raises(TemplateDamaged):
        galleries.block("door", 1)
    healed(engine)
    assert galleries.block("door", 1) is None


# --- what lies beside it


def move(engine, record, galleries, door):
    """Half a rotation: a template and a block under the next version."""
    target = SECOND
    versions, lease = Versions(engine), Leases(engine).take("door")
    versions.begin("door", "r", target, b"public", {}, 1)
    versions.add_templates(door, lease, target, {7: sound.template(70), 8: sound.template(80)})
    slots = np.zeros(sound.SHAPE.capacity, "<u4")
    slots[: len(sound.SEALED)] = sound.SEALED
    versions.add_block(door, lease, target, 1, sound.SHAPE.columns, slots.tobytes(), sound.block(10))
    return versions, target


def test_a_rotation_under_way_is_healthy(door, record, galleries, engine):
    move(engine, record, galleries, door)
    assert found(engine) == []


@pytest.mark.parametrize(
    ("table", "where", "expected"),
    [
        (tables.template_ciphertexts, "slot = 7", ("moved_ciphertext_damaged", 7, None)),
        (tables.block_ciphertexts, "number = 1", ("moved_ciphertext_damaged", None, 1)),
    ],
)
def test_what_was_moved_and_is_damaged_is_dropped_and_moved_again(
    door, record, galleries, engine, table, where, expected
):
    versions, target = move(engine, record, galleries, door)
    query = f"UPDATE {table.name} SET ciphertext = ? WHERE {where} AND key_version = ?"  # noqa: S608
    assert execute(engine, query, b"damaged", target) == 1
    assert found(engine) == [expected]
    live = dump(engine)["template_ciphertexts"]
    assert [f.repaired for f in healed(engine)] == [True]
    assert found(engine) == []
    if table is tables.template_ciphertexts:
        assert versions.missing_templates(door, target, 6, 1) == [7]
        assert len(dump(engine)["template_ciphertexts"]) == len(live) - 1
    else:
        assert versions.missing_block(door, target) == (1, sound.SHAPE.columns)
    assert galleries.get("door").key_version == door.key_version


def test_what_is_left_of_something_erased_is_found_and_dropped(door, record, galleries, engine):
    move(engine, record, galleries, door)
    execute(engine, "DELETE FROM templates WHERE slot = 8")
    execute(engine, "INSERT INTO tombstones SELECT 'door', 8, epoch FROM galleries")
    execute(engine, "UPDATE block_ciphertexts SET number = 99 WHERE number = 1 AND key_version = ?", SECOND)
    assert found(engine) == [("ciphertext_left", 8, None), ("ciphertext_left", None, 99)]
    assert all(f.repaired for f in healed(engine))
    assert found(engine) == []
    assert execute(engine, "DELETE FROM template_ciphertexts WHERE slot = 8") == 0


def test_the_only_ciphertext_of_a_template_that_is_lost_is_not_dropped(door, engine):
    execute(engine, "DELETE FROM templates WHERE slot = 8")
    assert [f.what for f in healed(engine)] == [Damage.TEMPLATE_LOST]
    assert execute(engine, "DELETE FROM template_ciphertexts WHERE slot = 8") == 1
