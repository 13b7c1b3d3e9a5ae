"""The record's audit log, in both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from sealface.enrollment.audit import ACTOR, OPERATOR, SERVICE, AuditLog
from sealface.enrollment.leases import Leases
from sealface.enrollment.restore import restore
from sealface.protocol.audit import AuditLogBroken, Entry, check
from sealface.storage.backup import back_up, verify
from sealface.storage.schema import open_record
from tests.storage import sound
from tests.storage.conftest import execute, new_gallery


def entries(engine, act=""):
    return [Entry.parse(line) for line in AuditLog(engine).lines(act=act)]


@pytest.fixture
def door(record):
    record.create_gallery(new_gallery())
    record.enroll("door", "keys/door/versions/1", "ada", b"ciphertext", "r")
    return "door"


def test_several_writers_make_one_chain(engine, record):
    names = [f"gallery-{i}" for i in range(4)]
    for name in names:
        record.create_gallery(new_gallery(name))

    def enroll(name):
        for i in range(20):
            record.enroll(name, f"keys/{name}/versions/1", f"s{i}", b"ciphertext", f"r{i}")

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(enroll, names))
    head = AuditLog(engine).head()
    assert check(AuditLog(engine).lines(), head).number == head.number == len(names) * 21


def test_the_log_takes_no_change(engine, tmp_path):
    if engine.dialect.name == "sqlite":
        engine = open_record(tmp_path / "migrated")  # triggers come with migrations
    execute(engine, "INSERT INTO audit VALUES (1, 'Act', ?, ?)", b"line", b"digest")
    for change in ("UPDATE audit SET act = 'Nothing'", "DELETE FROM audit"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            execute(engine, change)
    engine.dispose()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit SET line = ? WHERE number = 2",
        "UPDATE audit SET digest = ? WHERE number = 2",
        "DELETE FROM audit WHERE number = 1 OR line = ?",
        "UPDATE audit SET act = 'Nothing' WHERE number = 2 OR line = ?",
    ],
)
def test_a_change_that_got_past_is_found(engine, door, change):
    if engine.dialect.name == "postgresql":
        execute(engine, "DROP TRIGGER audit_no_change ON audit")
    check(AuditLog(engine).lines())
    execute(engine, change, b"other")
    with pytest.raises(AuditLogBroken):
        check(AuditLog(engine).lines())


def test_lines_behind_an_entry_and_of_an_act(engine, record, door):
    record.erase_subject("door", "ada")
    assert [entry.act for entry in entries(engine)] == ["CreateGallery", "Enroll", "EraseSubject"]
    assert [entry.number for entry in entries(engine, "Enroll")] == [2]
    assert [Entry.parse(line).number for line in AuditLog(engine).lines(after=2)] == [3]


def test_what_expires_is_the_services(engine, record, door):
    lease = Leases(engine).take("door")
    assert record.expire("door", lease, datetime.now(UTC)) == 1
    assert record.expire("door", lease, datetime.now(UTC)) == 0
    (expired,) = entries(engine, "Expire")
    assert (expired.actor, expired.detail) == (SERVICE, {"slots": ["1"]})


def test_whoever_acts_is_named(engine, record, door):
    token = ACTOR.set("spiffe://sealface/edge")
    record.keep_for("door", 3600)
    ACTOR.reset(token)
    record.keep_for("door", None)
    found = [(entry.actor, entry.detail["retention_s"]) for entry in entries(engine, "UpdateGallery")]
    assert found == [("spiffe://sealface/edge", 3600), (SERVICE, "none")]


def test_a_restore_is_its_operators(engine, record, galleries, tmp_path):
    sound.fill(record, galleries)
    file = tmp_path / "door.backup"
    back_up(engine, "door", file)
    backup = verify(file)
    (subject, *_) = galleries.subjects("door", "", 1)
    erased, _ = record.erase_subject("door", subject)
    restore(engine, file, backup, replace=True)
    (restored,) = entries(engine, "Restore")
    assert restored.actor == OPERATOR
    counts = {"templates": len(sound.LIVE) - erased, "kept_erased": erased, "lost": 0}
    assert restored.detail == counts | {"backup": backup.digest.hex()}
    check(AuditLog(engine).lines())  # it goes on: a restored gallery brings no log of its own


def test_somebodys_pseudonym_is_the_gallerys_and_the_records(engine, door, tmp_path):
    log, other = AuditLog(engine), open_record(tmp_path / "other")
    assert log.pseudonym("door", "ada") == log.pseudonym("door", "ada")
    names = {log.pseudonym("door", "ada"), log.pseudonym("door", "bob"), log.pseudonym("hall", "ada")}
    assert len(names | {AuditLog(other).pseudonym("door", "ada")}) == 4
    other.dispose()
