"""A gallery to a file and back: exactly, at one moment, whole or not at all, and without what was erased."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from sealface.cipher.scheme import Ckks
from sealface.enrollment import restore as restoring
from sealface.enrollment.leases import Leases
from sealface.enrollment.record import GalleryExists, KeyTaken, Record
from sealface.enrollment.restore import Restored, restore
from sealface.storage import record as tables
from sealface.storage.archive import BackupDamaged, NotABackup, Reader, Writer
from sealface.storage.backup import GalleryDamaged, back_up, verify
from sealface.storage.database import RecordUnavailable
from sealface.storage.doctor import examine
from sealface.storage.galleries import Galleries, GalleryNotFound
from sealface.storage.schema import open_record
from tests.conftest import person
from tests.storage import sound
from tests.storage.conftest import dump, execute, new_gallery

APART = 2**32


@pytest.fixture
def door(record, galleries):
    sound.fill(record, galleries)
    return galleries.get("door")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "door.backup"


@pytest.fixture
def other(tmp_path):
    """Another record, on another machine."""
    engine = open_record(tmp_path / "other")
    yield engine
    engine.dispose()


def in_epochs_of(rows, shift):
    """Rows as they are restored: later, and one epoch more for what is not brought back."""
    by_name = {table.name: table for table in tables.metadata.sorted_tables}
    shifted = {}
    for name, held in rows.items():
        columns = [column.name for column in by_name[name].columns]
        later = [{**dict(zip(columns, row, strict=True))} for row in held]
        for row in later:
            for column in {"epoch", "first_epoch"} & row.keys():
                row[column] += shift + (name == "galleries" and column == "epoch")
        shifted[name] = sorted(tuple(row.values()) for row in later)
    return shifted


# --- there and back


def test_a_gallery_comes_back_as_it_was(door, record, engine, file, other):
    made = back_up(engine, "door", file)
    before = dump(engine)
    found = verify(file)
    assert found == made
    assert (found.gallery, found.key_version, found.nbytes) == ("door", sound.KEY, file.stat().st_size)
    assert found.rows == {
        "galleries": 1,
        "gallery_evaluation_keys": 7,
        "templates": 9,
        "tombstones": 2,
        "blocks": 3,
        "requests": 8,
    }
    assert restore(other, file, found) == Restored(templates=9, kept_erased=0, lost=0)
    after = dump(other)
    if engine.dialect.name == "sqlite":  # which keeps no zone with its times, as the other one
        assert after == in_epochs_of(before, found.epoch + APART)
    assert examine(other).findings == []
    assert dict(Galleries(other).ciphertexts("door", sound.LIVE)) == dict(
        Galleries(engine).ciphertexts("door", sound.LIVE)
    )
    # and from there to here
    record.delete_gallery("door")
    again = back_up(other, "door", file)
    restore(engine, file, again)
    assert examine(engine).findings == []


def test_a_request_that_is_repeated_gets_its_answer_from_before(door, engine, file, other):
    restore(other, file, back_up(engine, "door", file))
    repeated = Record(other).enroll("door", sound.KEY, "eda", sound.template(7), "r-7")
    assert repeated.slot == 7
    assert Galleries(other).count("door") == 9


def test_every_caller_and_worker_begins_anew(door, record, galleries, engine, file):
    """No epoch that anybody can have seen is used again, whatever happened after the backup."""
    made = back_up(engine, "door", file)
    for number in range(20, 24):
        sound.enroll(record, "door", "new", number)
    last = galleries.get("door")
    record.delete_gallery("door")
    restore(engine, file, made)
    back = galleries.get("door")
    assert back.first_epoch >= last.epoch + APART
    assert back.first_epoch < back.epoch
    first, _, changes = galleries.changes("door", back.first_epoch)
    assert first == back.first_epoch
    assert {change.slot for change in changes if change.subject} == set(sound.LIVE)
    assert galleries.placement("door", back.first_epoch).taken[:, 0].tolist() == sorted(sound.LIVE)


def test_slots_that_were_used_after_the_backup_stay_used(door, record, galleries, engine, file):
    made = back_up(engine, "door", file)
    used = [sound.enroll(record, "door", "new", number) for number in (20, 21)]
    record.delete_gallery("door")
    restore(engine, file, made)
    assert sound.enroll(record, "door", "newer", 30) == max(used) + 1
    assert examine(engine).findings == []


def test_a_backup_of_what_was_restored_is_one_like_any_other(door, record, engine, file):
    for _ in range(3):
        made = back_up(engine, "door", file)
        record.delete_gallery("door")
        restore(engine, file, made)
    assert examine(engine).findings == []


def test_epochs_that_are_used_up_are_refused(door, record, engine, file):
    assert execute(engine, "UPDATE galleries SET epoch = 9223372036854775000") == 1
    made = back_up(engine, "door", file)
    record.delete_gallery("door")
    before = dump(engine)
    with pytest.raises(restoring.TooManyRestores):
        restore(engine, file, made)
    assert dump(engine) == before


def test_a_backup_sees_one_moment(door, record, galleries, engine, file):
    """Enrolled, sealed, erased, imported while it is written."""
    before = dump(engine)
    lease = Leases(engine).take("door")
    steps = iter(
        [
            lambda: sound.enroll(record, "door", "new", 20),
            lambda: record.erase_subject("door", "ann"),
            lambda: record.import_block(
                "door", sound.KEY, ["late"], sound.SHAPE.columns, sound.SHAPE.capacity, sound.block(7), "r-late"
            ),
            lambda: record.drop_block(galleries.get("door"), lease, 1),
        ]
    )

    def meanwhile(_):
        for step in steps:
            step()
            break

    made = back_up(engine, "door", file, meanwhile)
    assert next(steps, None) is None
    assert dump(engine) != before
    assert verify(file) == made
    restore(engine, file, made, replace=True)
    assert {row[1] for row in dump(engine)["templates"]} == set(sound.LIVE) - {1, 3}


def test_a_large_gallery_is_read_a_few_rows_at_a_time(record, galleries, engine, file):
    sound.create(record)
    for number in range(150):
        sound.enroll(record, "door", f"s{number}", number, sound.template(1))
    told = []
    made = back_up(engine, "door", file, told.append)
    assert sum(told) == made.rows["templates"] == 150
    assert max(told) == 64
    with open(file, "rb") as opened:
        assert max(len(data) for _, data in Reader(opened)) == 64 * (61_440 + 32)


def test_the_file_is_its_owners_alone(door, engine, file):
    back_up(engine, "door", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.glob("*door*")] == [file.name]


def test_no_secret_key_and_no_embedding_is_in_it(record, engine, file):
    scheme = Ckks()
    material = scheme.generate(sound.LAYOUT.parameters)
    record.create_gallery(new_gallery(public_key=material.public, evaluation_keys=material.evaluation, recognition=b""))
    vector = person(1)
    template = scheme.encryptor(sound.LAYOUT, material.public).template(vector)
    admitted = scheme.evaluator(sound.LAYOUT, material.public).admit(template)
    record.enroll("door", sound.KEY, "ann", admitted, "r-1")
    back_up(engine, "door", file)
    written = file.read_bytes()
    assert admitted in written  # or this test looks at nothing
    assert material.public in written
    secret = material.secret
    assert not any(secret[at : at + 24] in written for at in range(0, len(secret) - 24, 97))
    for kind in ("<f8", "<f4"):
        data = vector.astype(kind).tobytes()
        assert not any(data[at : at + 16] in written for at in range(0, len(data) - 16, 8))


# --- what was erased


def test_replaced_a_gallery_keeps_erased_what_it_has_erased(door, record, galleries, engine, file):
    made = back_up(engine, "door", file)
    for subject in ("ann", "cid", "eda"):  # sealed, imported, open
        record.erase_subject("door", subject)
    sound.enroll(record, "door", "new", 20)
    assert restore(engine, file, made, replace=True) == Restored(templates=5, kept_erased=4, lost=1)
    assert galleries.subjects("door", "", 100) == ["bob", "dan", "fay", "han"]
    assert [(b.number, b.live, b.erased) for b in galleries.blocks("door")] == [(1, 1, 2), (2, 2, 1), (3, 1, 1)]
    assert examine(engine).findings == []
    written = [row for row in dump(engine)["templates"] if row[1] in (1, 3, 4, 7)]
    assert written == []
    assert sound.enroll(record, "door", "newer", 21) == 13


def test_replaced_again_it_still_does(door, record, galleries, engine, file):
    made = back_up(engine, "door", file)
    record.erase_subject("door", "ann")
    for _ in range(2):
        restored = restore(engine, file, made, replace=True)
        assert (restored.templates, restored.kept_erased) == (7, 2)
    assert examine(engine).findings == []


def test_a_damaged_gallery_is_replaced_by_its_backup(door, record, galleries, engine, file):
    made = back_up(engine, "door", file)
    record.erase_subject("door", "eda")
    assert execute(engine, "UPDATE template_ciphertexts SET ciphertext = ? WHERE slot = 8", b"damaged") == 1
    assert execute(engine, "UPDATE block_ciphertexts SET ciphertext = ? WHERE number = 2", b"damaged") == 1
    assert len(examine(engine).findings) == 2
    restore(engine, file, made, replace=True)
    assert examine(engine).findings == []
    assert galleries.subject("door", "eda") == []


# --- what is refused


def test_a_gallery_that_is_there_is_not_touched_unless_told(door, engine, file):
    made = back_up(engine, "door", file)
    before = dump(engine)
    with pytest.raises(GalleryExists, match="--replace"):
        restore(engine, file, made)
    assert dump(engine) == before


def test_a_key_serves_one_gallery(door, record, engine, file):
    made = back_up(engine, "door", file)
    record.delete_gallery("door")
    record.create_gallery(new_gallery("hall", key="door"))
    before = dump(engine)
    with pytest.raises(KeyTaken):
        restore(engine, file, made)
    assert dump(engine) == before


def test_an_unknown_gallery_is_not_backed_up(engine, file):
    with pytest.raises(GalleryNotFound):
        back_up(engine, "door", file)
    assert not file.exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE template_ciphertexts SET ciphertext = 'x' WHERE slot = 8",
        "UPDATE templates SET lead = 3 WHERE slot = 3",
        "DELETE FROM templates WHERE slot = 7",
        "UPDATE blocks SET erased = 5",
        "DELETE FROM gallery_evaluation_keys WHERE galois_element = 65",
    ],
)
def test_what_is_damaged_is_not_backed_up_in_the_place_of_what_was_not(door, engine, file, statement):
    file.write_bytes(b"older")
    assert execute(engine, statement) > 0
    with pytest.raises(GalleryDamaged, match="sealface doctor door"):
        back_up(engine, "door", file)
    assert file.read_bytes() == b"older"


def test_a_file_that_is_changed_after_it_was_verified_changes_nothing(door, record, engine, file):
    made = back_up(engine, "door", file)
    record.delete_gallery("door")
    whole = file.read_bytes()
    sound.create(record, "hall")
    hall = file.with_name("hall.backup")
    back_up(engine, "hall", hall)
    record.delete_gallery("hall")
    before = dump(engine)
    for changed in (whole[:-1], whole[: len(whole) // 2], whole + b"\0", hall.read_bytes()):
        file.write_bytes(changed)
        with pytest.raises((BackupDamaged, restoring.RestoreConflict)):
            restore(engine, file, made)
        assert dump(engine) == before


def test_a_database_that_fails_in_between_has_nothing_of_it(door, engine, file, other):
    made = back_up(engine, "door", file)
    with other.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 500")
    with pytest.raises(RecordUnavailable):
        restore(other, file, made)
    assert not any(dump(other).values())


# --- files from somebody else, whose digests fit


def forged(path: Path, file: Path, change) -> None:
    """The same backup with some entries changed, and digests that fit."""
    with open(path, "rb") as opened:
        entries = [[header, bytes(data)] for header, data in Reader(opened)]
    changed = change(entries)
    with open(file, "wb") as target:
        writer = Writer(target)
        for header, data in entries if changed is None else changed:
            writer.add(header, [data])
        writer.close()


def of(entries, table):
    return [header for header, _ in entries if header.get("table") == table]


def setting(table, column, value, row=0):
    def change(entries):
        header = of(entries, table)[0]
        header["rows"][row][header["columns"].index(column)] = value

    return change


def every(table, column, value):
    def change(entries):
        for header in of(entries, table):
            for row in header["rows"]:
                row[header["columns"].index(column)] = value

    return change


def twice(table):
    def change(entries):
        place = next(i for i, (header, _) in enumerate(entries) if header.get("table") == table)
        return [*entries[: place + 1], *entries[place:]]

    return change


def without(table):
    return lambda entries: [entry for entry in entries if entry[0].get("table") != table]


def heading(header):
    def change(entries):
        entries[0][0] = header

    return change


def last_block(entries):
    """Zeros in the place of what hides the last block."""
    data = entries[[header.get("table") for header, _ in entries].index("blocks")]
    data[1] = bytes(len(data[1]))


FORGERIES = {
    "nothing": lambda entries: [],
    "no header": lambda entries: entries[1:],
    "header of another gallery": heading({"gallery": "hall", "created": "2026-01-01T00:00:00+00:00"}),
    "header with no id": heading({"gallery": "../door", "created": "2026-01-01T00:00:00+00:00"}),
    "header without zone": heading({"gallery": "door", "created": "2026-01-01T00:00:00"}),
    "header with no time": heading({"gallery": "door", "created": 17}),
    "header with more": heading({"gallery": "door", "created": "2026-01-01T00:00:00+00:00", "x": 1}),
    "another header between": lambda entries: [*entries[:3], [{"x": 1}, b""], *entries[3:]],
    "unknown table": lambda entries: [*entries, [{"table": "keys", "columns": [], "rows": [[]]}, b""]],
    "table that is retired": lambda entries: [
        *entries,
        [{"table": "retired_galleries", "columns": ["id", "epoch", "next_slot"], "rows": [["door", 0, 1]]}, b""],
    ],
    "unknown column": lambda entries: of(entries, "templates")[0]["columns"].__setitem__(0, "secret"),
    "column twice": lambda entries: of(entries, "templates")[0]["columns"].__setitem__(0, "subject"),
    "no columns": lambda entries: of(entries, "templates")[0].pop("columns") and None,
    "no rows": lambda entries: of(entries, "templates")[0].__setitem__("rows", []),
    "rows that are none": lambda entries: of(entries, "templates")[0].__setitem__("rows", {"a": 1}),
    "short row": lambda entries: of(entries, "templates")[0]["rows"][0].pop() and None,
    "no gallery": without("galleries"),
    "no templates": without("templates"),
    "no blocks": without("blocks"),
    "no tombstones": without("tombstones"),
    "no evaluation keys": without("gallery_evaluation_keys"),
    "gallery twice": twice("galleries"),
    "templates twice": twice("templates"),
    "block twice": twice("blocks"),
    "requests twice": twice("requests"),
    "tables in another order": lambda entries: [entries[0], *reversed(entries[1:])],
    "another id": setting("galleries", "id", "hall"),
    "no key version": setting("galleries", "key_version", "door"),
    "no parameter set": setting("galleries", "parameter_set", "none"),
    "no number": setting("galleries", "largest_norm", float("nan")),
    "no bound": setting("galleries", "largest_norm", float("inf")),
    "a number that is a text": setting("galleries", "next_slot", "12"),
    "a number that is a flag": setting("templates", "slot", True),
    "a number below zero": setting("templates", "slot", -1),
    "a number too large": setting("templates", "slot", 2**63),
    "a number far too large": setting("templates", "slot", 10**400),
    "a number with a fraction": setting("templates", "slot", 1.5),
    "a flag that is a number": setting("blocks", "imported", 1),
    "a list": setting("templates", "subject", ["ann"]),
    "an object": setting("templates", "subject", {"x": 1}),
    "nothing where something must be": setting("templates", "subject", None),
    "a subject that is none": setting("templates", "subject", "a/b", 5),
    "a subject that is too long": setting("templates", "subject", "s" * 65, 5),
    "a subject beyond ASCII": setting("templates", "subject", "ä\ud800", 5),
    "another subject": setting("templates", "subject", "zoe", 6),
    "a slot that is another's": setting("templates", "slot", 2),
    "slot zero": setting("templates", "slot", 0),
    "a slot beyond the counter": setting("templates", "slot", 4000, 8),
    "an epoch beyond the counter": setting("templates", "epoch", 4000, 8),
    "epochs before the first": setting("galleries", "first_epoch", 11),
    "a lead that is nobody's": setting("templates", "lead", 3, 2),
    "all one subject": every("templates", "subject", "ann"),
    "a template in another block": setting("templates", "block", 2),
    "a template in no block": setting("templates", "block", None, 3),
    "erased and there": setting("tombstones", "slot", 8),
    "a count of erased": setting("blocks", "erased", 1),
    "columns of another shape": setting("blocks", "columns", 8),
    "columns of no shape": setting("blocks", "columns", 7),
    "a request of nobody": setting("requests", "slot", 4000),
    "a request that is none": setting("requests", "request_id", "a b"),
    "bytes beyond the end": setting("templates", "ciphertext", {"bytes": 1 << 40}),
    "bytes that are less than none": setting("templates", "ciphertext", {"bytes": -1}),
    "bytes of another length": setting("templates", "ciphertext", {"bytes": 61_439}),
    "a time that is none": setting("templates", "created", "now"),
    "a time too late": setting("templates", "created", {"us": 1 << 60}),
    "a block of zeros": last_block,
}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genuine")
    engine = open_record(folder)
    sound.fill(Record(engine), Galleries(engine))
    back_up(engine, "door", folder / "door.backup")
    engine.dispose()
    return folder / "door.backup"


def test_what_is_forged_without_a_change_is_whole(genuine, file):
    forged(genuine, file, lambda entries: None)
    assert file.read_bytes() == genuine.read_bytes()
    assert verify(file).rows["templates"] == 9


@pytest.mark.parametrize("forgery", FORGERIES)
def test_nothing_is_trusted_because_it_parses(genuine, file, forgery):
    forged(genuine, file, FORGERIES[forgery])
    with pytest.raises((BackupDamaged, NotABackup)):
        verify(file)


def test_a_column_that_came_later_is_empty(genuine, file, other):
    def change(entries):
        for header in of(entries, "templates"):
            place = header["columns"].index("block")
            header["columns"].pop(place)
            for row in header["rows"]:
                row.pop(place)

    forged(genuine, file, change)
    with pytest.raises(BackupDamaged, match="does not fit itself"):  # read, and judged
        verify(file)


@pytest.mark.parametrize("at", np.linspace(0, 1, 40))
def test_a_flipped_bit_or_a_missing_end_is_found_wherever_it_is(genuine, file, at):
    data = bytearray(genuine.read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    file.write_bytes(data[:place])
    with pytest.raises((BackupDamaged, NotABackup)):
        verify(file)
    data[place] ^= 16
    file.write_bytes(data)
    with pytest.raises((BackupDamaged, NotABackup)):
        verify(file)
