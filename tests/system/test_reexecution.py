"""`sealface audit recompute` on real services: decisions computed again from transcripts, the record and the log."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sealface.cli.processes import local_services
from sealface_client import Client
from tests.system.conftest import POLICY, People
from tests.system.test_cli import NO, Command


@pytest.mark.timeout(240)
def test_an_auditor_computes_decisions_again_and_finds_what_was_not_computed(tmp_path: Path) -> None:
    people, log = People(3), tmp_path / "log.jsonl"
    with local_services(tmp_path / "state", SEALFACE_REPEATABLE="1", SEALFACE_WORKERS="2") as services:
        command = Command(services.state)
        with Client.connect(services.state) as client:
            gallery = client.create_gallery("door", policy=POLICY)
            faces = {f"s{number}": people.somebody() for number in range(6)}
            for subject in ("s0", "s1"):
                gallery.enroll(subject, faces[subject])
            list(gallery.import_many([(subject, faces[subject]) for subject in ("s2", "s3", "s4", "s5")]))
            assert gallery.verify("s0", people.again(faces["s0"])).match
            assert gallery.verify("s4", people.again(faces["s4"])).match
            assert not gallery.verify("s1", people.somebody()).match
            assert gallery.identify(people.again(faces["s3"])).candidates[0].subject == "s3"
            assert not gallery.identify(people.somebody()).match
            searched = list(gallery.identify_many([people.again(faces["s5"]), people.somebody()]))
            assert [found.match for found in searched] == [True, False]
        command.json("audit", "export", "--out", log)
        found = command.json("audit", "recompute", log, "--share", 1)
        assert found == {"decisions": 7, "drawn": 7, "equal": 7, "different": 0, "missing": 0, "changed": 0}
        assert command.json("audit", "recompute", log, "--share", 0)["drawn"] == 0
    # a compute zone that was broken into has something else decided on than it can name
    transcripts = sqlite3.connect(services.state / "compute" / "transcripts.db")
    first, second = (row[0] for row in transcripts.execute("SELECT request_id FROM transcripts LIMIT 2").fetchall())
    take = "UPDATE transcripts SET task = (SELECT task FROM transcripts WHERE request_id = ?) WHERE request_id = ?"
    transcripts.execute(take, (second, first))
    transcripts.commit()
    found = command.json("audit", "recompute", log, "--share", 1, code=NO)
    assert (found["equal"], found["different"]) == (6, 1)
    transcripts.execute("DELETE FROM transcripts WHERE request_id = ?", (first,))
    transcripts.commit()
    transcripts.close()
    found = command.json("audit", "recompute", log, "--share", 1, code=NO)
    assert (found["equal"], found["missing"]) == (6, 1)
    # nor can it have the log say something else
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3] + lines[4:]))
    command.ran("audit", "recompute", log, "--share", 1, code=3)
