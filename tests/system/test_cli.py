"""The command line as programs and people use it: JSON on one stream, one line of error on the other, exit codes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command_name

from sealface.cli.authority import Authority
from sealface.cli.main import app
from sealface.cli.processes import LocalServices, certificate_files, local_services
from sealface.protocol.zones import Zone
from sealface_client import Client
from tests.system.conftest import DATA, POLICY, People, kill, revived

FACES = DATA / "faces"
DONE, NO, USAGE, FAILED = 0, 1, 2, 3
THRESHOLDS = ("--threshold", "0.07", "--identification-threshold", "0.07")


class Command:
    """`sealface` as a subprocess."""

    def __init__(self, state: Path | None, **environment: str) -> None:
        self.state = state
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SEALFACE_")}
        self.environment = clean | environment

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sealface.cli.main", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def ran(self, *words: object, code: int) -> tuple[str, str]:
        """What a command wrote to both streams."""
        if self.state is not None and words[0] not in ("serve", "--help", "bench"):
            words = (*words, "--state", self.state)
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        assert process.returncode == code, (words, out, err)
        return out, err

    def json(self, *words: object, code: int = DONE) -> dict[str, Any]:
        """The one JSON object on standard output."""
        out, _ = self.ran(*words, "--json", code=code)
        assert out.endswith("}\n")
        assert out.count("\n") == 1
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    def error(self, *words: object, code: int) -> str:
        """The one line on standard error; nothing on standard output."""
        out, err = self.ran(*words, "--json", code=code)
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("sealface: ")]
        assert len(lines) == 1, err
        assert err.endswith(lines[0] + "\n")
        return lines[0]


@pytest.fixture
def sealface(services: LocalServices) -> Command:
    return Command(services.state)


def test_help_lists_the_commands() -> None:
    out, _ = Command(None).ran("--help", code=DONE)
    commands = ("serve", "gallery", "enroll", "verify", "identify", "erase", "keys", "bench", "evaluate")
    for command in (*commands, "certify", "migrate", "backup", "restore", "doctor"):
        assert f" {command} " in out


def test_no_command_takes_the_place_of_another() -> None:
    """Typer takes the last of a name, and says nothing."""
    for group in (app, *(one.typer_instance for one in app.registered_groups)):
        assert group is not None
        commands = group.registered_commands
        named = [one.name or get_command_name(one.callback.__name__) for one in commands if one.callback]
        assert len(named) == len(set(named)) == len(commands)


def test_galleries_by_command(sealface: Command) -> None:
    made = sealface.json("gallery", "create", "by-hand", *THRESHOLDS)
    assert made["gallery"] == "by-hand"
    assert (made["custody"], made["privacy_level"], made["metric"]) == ("managed", "embedding", "cosine")
    assert (made["model"], made["detector"], made["dimension"]) == ("Dlib", "dlib", 128)
    assert (made["subjects"], made["templates"]) == (0, 0)
    with Client.connect(sealface.state) as client:
        gallery = client.gallery("by-hand")
        for subject in ("ada", "ada", "bob"):
            gallery.enroll(subject, People(1).somebody())
    shown = sealface.json("gallery", "show", "by-hand")
    assert (shown["subjects"], shown["templates"]) == (2, 3)
    assert "by-hand" in {gallery["gallery"] for gallery in sealface.json("gallery", "list")["galleries"]}
    assert sealface.json("gallery", "subjects", "by-hand") == {"subjects": {"ada": 2, "bob": 1}}
    assert sealface.json("erase", "by-hand", "ada") == {"templates": 2}
    assert "SUBJECT_NOT_FOUND" in sealface.error("erase", "by-hand", "ada", code=FAILED)
    assert sealface.json("gallery", "delete", "by-hand") == {"templates": 1}
    assert "GALLERY_NOT_FOUND" in sealface.error("gallery", "show", "by-hand", code=FAILED)


def test_key_versions_by_command(sealface: Command) -> None:
    sealface.json("gallery", "create", "lived", "--exportable", *THRESHOLDS)
    with Client.connect(sealface.state) as client:
        gallery, ada = client.gallery("lived"), People(1).somebody()
        gallery.enroll("ada", ada)
        shown = sealface.json("keys", "show", "lived")
        assert (shown["custody"], shown["primary"], shown["oldest"], shown["exportable"]) == ("managed", 1, 1, True)
        (first,) = shown["versions"]
        assert (first["state"], first["security_bits"], first["held_here"]) == ("enabled", 128, False)
        rotated = sealface.json("keys", "rotate", "lived")
        assert rotated["primary"] == 2
        assert sealface.json("keys", "disable", "lived/1")["state"] == "disabled"
        assert [v["state"] for v in sealface.json("keys", "versions", "lived")["versions"]] == ["enabled", "disabled"]
        assert sealface.json("keys", "enable", "lived/1")["state"] == "enabled"
        assert gallery.verify("ada", ada).match
    scheduled = sealface.json("keys", "destroy", "lived/1", "--undo", "90m")
    assert scheduled["state"] == "destroy_scheduled"
    assert scheduled["destroyed"] > scheduled["created"]
    assert sealface.json("keys", "undo-destroy", "lived/1")["state"] == "disabled"
    assert "NOT_SCHEDULED" in sealface.error("keys", "undo-destroy", "lived/1", code=FAILED)
    assert sealface.json("keys", "destroy", "lived/1", "--undo", "0")["state"] == "destroyed"
    assert sealface.json("keys", "oldest", "lived", 2) == {"key": "lived", "oldest": 2}
    assert "INVALID_OLDEST_VERSION" in sealface.error("keys", "oldest", "lived", 1, code=FAILED)
    assert sealface.json("keys", "forbid-export", "lived") == {"key": "lived", "exportable": False}
    for wrong in ("lived", "lived/x", "lived/0"):
        assert "INVALID_NAME" in sealface.error("keys", "enable", wrong, code=USAGE)
    assert "24h" in sealface.error("keys", "destroy", "lived/2", "--undo", "soon", code=USAGE)


def test_secrets_by_command(sealface: Command, services: LocalServices, tmp_path: Path) -> None:
    made = sealface.json("keys", "generate", "moving", *THRESHOLDS, "--security-bits", 256)
    assert made["key_version"] == "keys/moving/versions/1"
    assert "PASSPHRASE_NEEDED" in sealface.error("keys", "export", "moving", tmp_path / "moving.secret", code=USAGE)
    (tmp_path / "passphrase").write_text("correct horse battery staple\n")
    phrase = ("--passphrase-file", tmp_path / "passphrase")
    sealface.json("keys", "export", "moving", tmp_path / "moving.secret", *phrase)
    assert (tmp_path / "moving.secret").stat().st_mode & 0o777 == 0o600
    assert "is there already" in sealface.error("keys", "export", "moving/1", tmp_path / "moving.secret", code=FAILED)

    sealface.json("gallery", "create", "moving", "--client-held", "--transform", "--security-bits", 256, *THRESHOLDS)
    sealface.json("gallery", "export-transform", "moving", tmp_path / "transform.secret", *phrase)
    people = People(4)
    ada = people.somebody()
    with Client.connect(services.state) as client:
        client.gallery("moving").enroll("ada", ada)
        assert client.gallery("moving").verify("ada", people.again(ada)).match

    keys = services.state / "edge" / "keys"
    away = [path.rename(tmp_path / path.name) for path in keys.glob("*moving*")]
    assert len(away) == 2
    (tmp_path / "wrong").write_text("something else\n")
    for file in ("moving.secret", "transform.secret"):
        wrong = sealface.error("keys", "import", tmp_path / file, "--passphrase-file", tmp_path / "wrong", code=FAILED)
        assert "WRONG_PASSPHRASE" in wrong
        assert sealface.json("keys", "import", tmp_path / file, *phrase)["name"].split("/")[1] == "moving"
    assert "SECRET_FILE_DAMAGED" in sealface.error("keys", "import", tmp_path / "wrong", *phrase, code=FAILED)
    assert "SECRET_KEY_EXISTS" in sealface.error("keys", "import", tmp_path / "moving.secret", *phrase, code=FAILED)
    assert sorted(path.read_bytes() for path in keys.glob("*moving*")) == sorted(path.read_bytes() for path in away)

    protected = sealface.json("keys", "protect", *phrase)["secrets"]
    assert protected >= 2
    assert all(path.read_bytes().startswith(b"-----BEGIN SEALFACE") for path in keys.glob("*.secret"))
    knowing = Command(services.state, SEALFACE_PASSPHRASE="correct horse battery staple")
    try:
        with Client.connect(services.state, passphrase="correct horse battery staple") as client:
            assert client.gallery("moving").verify("ada", people.again(ada)).match
        assert "PASSPHRASE_NEEDED" in sealface.error("keys", "export", "moving", tmp_path / "x", *phrase, code=USAGE)
        assert knowing.json("keys", "show", "moving")["versions"][0]["held_here"]
        assert knowing.json("keys", "rotate", "moving")["primary"] == 2
    finally:
        knowing.json("keys", "unprotect")
    renewed = sealface.json("gallery", "renew-transform", "moving", "moved")
    assert (renewed["gallery"], renewed["replaces"]) == ("moved", "moving")
    old, new = (sealface.json("gallery", "show", name) for name in ("moving", "moved"))
    assert old["transform_digest"] != new["transform_digest"] == renewed["transform_digest"]
    unlike = {"gallery", "key_version", "subjects", "templates", "created", "transform_digest"}
    assert {k: v for k, v in old.items() if k not in unlike} == {k: v for k, v in new.items() if k not in unlike}
    assert sealface.json("keys", "policy", "moved")["verification_threshold"] == 0.07
    assert sealface.json("keys", "versions", "moved")["versions"][0]["security_bits"] == 256


@pytest.mark.parametrize("held", [False, True], ids=["managed", "held"])
def test_a_gallery_is_moved_by_command_and_its_old_version_destroyed(
    sealface: Command, tmp_path: Path, held: bool
) -> None:
    name = "stays" if held else "moves"
    sealface.json("gallery", "create", name, *(["--client-held"] if held else []), *THRESHOLDS)
    people = People(3)
    ada, faces = people.somebody(), [people.somebody() for _ in range(40)]
    np.savez(tmp_path / "people.npz", names=np.array([f"i{number}" for number in range(40)]), emb=np.array(faces))
    sealface.json("gallery", "import", name, tmp_path / "people.npz")
    with Client.connect(sealface.state) as client:
        open_before = client.gallery(name)
        open_before.enroll("ada", ada)
        moved = sealface.json("gallery", "rotate", name)
        assert (moved["kind"], moved["state"]) == ("rotation", "done")
        assert moved["done"] == moved["total"] > 1
        assert moved["key_version"] == f"keys/{name}/versions/2"
        assert sealface.json("gallery", "show", name)["key_version"] == moved["key_version"]
        assert sealface.json("keys", "destroy", f"{name}/1", "--undo", "0")["state"] == "destroyed"
        # whoever had it open notices
        assert open_before.verify("ada", people.again(ada)).match
        found = open_before.identify(people.again(faces[7]))
        assert [candidate.subject for candidate in found.candidates] == ["i7"]
        assert not open_before.identify(people.somebody()).match
        assert open_before.erase("ada") == 1
    assert sealface.json("doctor", name)["healthy"]
    assert sealface.json("gallery", "operations", name)["operations"][0]["kind"] in ("rotation", "compaction")


def test_long_work_by_command(sealface: Command, tmp_path: Path) -> None:
    made = sealface.json("gallery", "create", "long", "--retention-days", 30, *THRESHOLDS)
    assert made["retention_s"] == 30 * 86_400
    assert sealface.json("gallery", "retain", "long", 0)["retention_s"] is None
    everybody = People(2)
    names, faces = [f"i{number}" for number in range(70)], [everybody.somebody() for _ in range(70)]
    np.savez(tmp_path / "people.npz", names=np.array(names), emb=np.array(faces))
    imported = sealface.json("gallery", "import", "long", tmp_path / "people.npz")
    assert (imported["templates"], imported["before"]) == (70, 0)
    again = sealface.json("gallery", "import", "long", tmp_path / "people.npz")
    assert (again["templates"], again["before"], again["bytes_sent"]) == (70, 70, 0)
    assert sealface.json("gallery", "show", "long")["templates"] == 70
    compacted = sealface.json("gallery", "compact", "long")
    assert (compacted["kind"], compacted["state"]) == ("compaction", "done")
    proof = sealface.json("erase", "long", "i7", "--proof")
    assert (proof["templates"], proof["complete"]) == (1, True)
    assert {"templates", "blocks", "log"} < {check["place"] for check in proof["checks"]}
    listed = sealface.json("gallery", "operations", "long")["operations"]
    assert [(one["kind"], one["state"]) for one in listed] == [
        ("erasure", "done"),
        ("compaction", "done"),
        ("import", "done"),
    ]
    assert "OPERATION_NOT_FOUND" in sealface.error("gallery", "cancel", "long", "none", code=FAILED)
    assert sealface.json("gallery", "cancel", "long", imported["operation"])["state"] == "done"
    with Client.connect(sealface.state) as client:
        client.gallery("long").operations.begin_import(5, "broken-off")
    assert sealface.json("gallery", "cancel", "long", "broken-off")["state"] == "cancelled"
    told = sealface.error(
        "gallery", "import", "long", tmp_path / "people.npz", "--operation", "broken-off", code=FAILED
    )
    assert "--operation" in told
    out, _ = sealface.ran("erase", "long", "i8", "--proof", code=DONE)
    assert "nothing of it is left" in out


def test_client_held_and_other_metrics_by_command(sealface: Command, services: LocalServices) -> None:
    made = sealface.json(
        "gallery", "create", "held", "--client-held", "--metric", "euclidean", "--largest-norm", 3, *THRESHOLDS
    )
    assert (made["custody"], made["privacy_level"], made["metric"]) == ("client_held", "client_key", "euclidean")
    secret = services.state / "edge" / "keys" / "keys-held-versions-1.secret"
    assert secret.stat().st_mode & 0o777 == 0o600


def test_the_audit_log_by_command(sealface: Command, services: LocalServices, tmp_path: Path) -> None:
    sealface.json("gallery", "create", "watched", *THRESHOLDS)
    with Client.connect(services.state) as client:
        gallery, face = client.gallery("watched"), People(7).somebody()
        gallery.enroll("ada", face)
        assert gallery.verify("ada", face).match
    spent = sealface.json("keys", "usage", "watched")["usage"]
    assert [(one["caller"], one["decisions"], one["comparisons"]) for one in spent] == [("callers/operator", 1, 1)]
    assert isinstance(sealface.json("keys", "alarms")["alarms"], list)

    head = sealface.json("audit", "head")
    (tmp_path / "head.json").write_text(json.dumps(head))
    for kept in (tmp_path / "head.json", head["digest"]):
        assert sealface.json("audit", "verify", "--head", kept)["intact"]
    lines = tmp_path / "log.jsonl"
    count = sealface.json("audit", "export", "--out", lines)["entries"]
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    assert count == len(entries) > head["number"]
    decided = [
        entry for entry in entries if entry["resource"] == "keys/watched/versions/1" and entry["act"] == "Decide"
    ]
    assert [entry["outcome"] for entry in decided] == ["begun", "match"]
    slot = sealface.json("audit", "pseudonym", "watched", 1)["pseudonym"]
    assert decided[0]["detail"]["claimed"] == [slot]
    out, _ = sealface.ran("audit", "export", "--act", "Decide", code=DONE)
    assert {json.loads(line)["act"] for line in out.splitlines()} == {"Decide"}

    offline = sealface.json(
        "audit", "verify", "--database", services.state / "keys" / "keys.db", "--head", head["digest"]
    )
    assert offline["entries"] >= count
    assert sealface.json("audit", "verify", "--file", lines, "--head", tmp_path / "head.json")["entries"] == count
    whole = lines.read_bytes()
    lines.write_bytes(whole.replace(b'"outcome":"match"', b'"outcome":"no match"', 1))
    assert not sealface.json("audit", "verify", "--file", lines, code=NO)["intact"]
    lines.write_bytes(b"".join(whole.splitlines(keepends=True)[: head["number"] - 1]))
    assert sealface.json("audit", "verify", "--file", lines)["intact"]  # which is why heads are kept elsewhere
    assert not sealface.json("audit", "verify", "--file", lines, "--head", head["digest"], code=NO)["intact"]
    assert "neither a file" in sealface.error("audit", "verify", "--head", "nonsense", code=USAGE)
    assert "--out" in sealface.error("audit", "export", "--json", code=USAGE)


def test_the_audit_log_of_the_compute_zone_by_command(
    sealface: Command, services: LocalServices, tmp_path: Path
) -> None:
    sealface.json("gallery", "create", "logged", *THRESHOLDS)
    with Client.connect(services.state) as client:
        client.gallery("logged").enroll("ada", People(8).somebody())
    sealface.json("erase", "logged", "ada")
    compute = ("--zone", "compute")
    head = sealface.json("audit", "head", *compute)
    assert head["signature"] == ""
    lines = tmp_path / "log.jsonl"
    count = sealface.json("audit", "export", *compute, "--out", lines)["entries"]
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    assert count == len(entries) >= head["number"]
    whom = sealface.json("audit", "pseudonym", "logged", "ada", *compute)["pseudonym"]
    found = [entry["act"] for entry in entries if entry["detail"].get("subject") == whom]
    assert found[0] == "Enroll"
    assert found[1] in ("EraseSubject", "Erasure")
    for options in ((*compute, "--head", head["digest"]), ("--file", lines, "--head", head["digest"])):
        assert sealface.json("audit", "verify", *options)["intact"]
    with sqlite3.connect(services.state / "compute" / "record.db") as record:
        (act,) = record.execute("SELECT act FROM audit WHERE number = 1").fetchone()
        record.execute("DROP TRIGGER audit_no_update")
        record.execute("UPDATE audit SET act = 'Nothing' WHERE number = 1")
    assert not sealface.json("audit", "verify", *compute, code=NO)["intact"]
    with sqlite3.connect(services.state / "compute" / "record.db") as record:
        record.execute("UPDATE audit SET act = ? WHERE number = 1", (act,))
    assert "--zone compute" in sealface.error("audit", "pseudonym", "logged", "ada", code=USAGE)


def test_keys_by_command(sealface: Command, tmp_path: Path) -> None:
    sealface.json("gallery", "create", "keyed", *THRESHOLDS)
    (key,) = (key for key in sealface.json("keys", "list")["keys"] if key["key"] == "keyed")
    assert key["version"] == "keys/keyed/versions/1"
    assert len(key["public_key_sha256"]) == 64
    policy = sealface.json("keys", "policy", "keyed")
    assert (policy["verification_threshold"], policy["version"]) == (0.07, 1)
    changed = sealface.json("keys", "policy", "keyed", "--threshold", 0.09, "--max-candidates", 2)
    assert (changed["verification_threshold"], changed["max_candidates"], changed["version"]) == (0.09, 2, 2)
    asked = ("--decisions", 50, "--comparisons", 60_000, "--of-version", 70)
    budget = sealface.json("keys", "policy", "keyed", *asked)["budget"]
    assert budget == {"decisions_per_hour": 50, "comparisons_per_hour": 60_000, "decisions_per_version": 70}
    kept = sealface.json("keys", "policy", "keyed", "--threshold", 0.08)["budget"]
    assert kept == budget
    assert sealface.json("keys", "usage", "keyed") == {"budget": budget, "usage": []}
    made = sealface.json("keys", "caller", "guard", tmp_path)
    assert made == {"caller": "callers/guard", "file": str(tmp_path / "guard.pem")}
    assert (tmp_path / "guard.pem").stat().st_mode & 0o777 == 0o600

    guard = Command(sealface.state, SEALFACE_CREDENTIAL=str(tmp_path / "guard.pem"))
    assert "keyed" in {key["key"] for key in guard.json("keys", "list")["keys"]}
    assert "OPERATOR_REQUIRED" in guard.error("gallery", "create", "mine", *THRESHOLDS, code=FAILED)
    assert "CALLER_EXISTS" in sealface.error("keys", "caller", "guard", tmp_path, code=FAILED)


def test_services_are_found_by_state_or_by_addresses(sealface: Command, services: LocalServices) -> None:
    named = services.addresses | {"ca": str(services.ca)}
    addresses = {f"SEALFACE_{name.upper()}": value for name, value in named.items()}
    assert "TOKEN_MISSING" in Command(None, **addresses).error("gallery", "list", code=FAILED)
    addresses["SEALFACE_CREDENTIAL"] = str(services.state / "edge" / "operator.pem")
    for other in (Command(None, SEALFACE_STATE=str(services.state)), Command(None, **addresses)):
        assert other.json("gallery", "list") == sealface.json("gallery", "list")


BAD_CALLS: dict[str, tuple[tuple[object, ...], int, str]] = {
    "gallery id": (("gallery", "create", "Not_An_Id!", *THRESHOLDS), FAILED, "[a-z0-9-]"),
    "gallery id, shown": (("gallery", "show", "UPPER"), USAGE, "[a-z0-9-]"),
    "unknown gallery": (("gallery", "show", "nowhere"), FAILED, "create it, or list"),
    "unknown gallery, deleted": (("gallery", "delete", "nowhere"), FAILED, "create it, or list"),
    "unknown gallery, erased": (("erase", "nowhere", "ada"), FAILED, "create it, or list"),
    "unknown gallery, enrolled": (("enroll", "nowhere", "ada", "a.jpg"), FAILED, "create it, or list"),
    "unknown gallery, verified": (("verify", "nowhere", "ada", "a.jpg"), FAILED, "create it, or list"),
    "unknown gallery, identified": (("identify", "nowhere", "a.jpg"), FAILED, "create it, or list"),
    "subject id": (("erase", "nowhere", "not a subject"), FAILED, ""),
    "an image without a proof": (("erase", "nowhere", "ada", "--image", "a.jpg"), USAGE, "--proof"),
    "unknown gallery, compacted": (("gallery", "compact", "nowhere"), FAILED, "create it, or list"),
    "unknown gallery, operations": (("gallery", "operations", "nowhere"), FAILED, "create it, or list"),
    "unknown key": (("keys", "policy", "nowhere"), FAILED, "create it, or list"),
    "threshold": (("gallery", "create", "g", "--threshold", "nan", "--identification-threshold", 1), USAGE, "finite"),
    "model": (("gallery", "create", "g", "--model", "Nobody", *THRESHOLDS), USAGE, "choose one of"),
    "false match rate": (("gallery", "create", "g", "--model", "SFace", "--threshold", "0.3"), USAGE, "give"),
    "neither pictures nor embeddings": (("evaluate", "--pairs", "p.csv"), USAGE, "--images or --embeddings"),
    "no pairs": (("evaluate", "--pairs", "nowhere.csv", "--images", ".", "--threshold", 0.1), USAGE, "file_x"),
    "one service without the key service": (("serve", "matching"), USAGE, "--keys"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_an_error_is_one_line_that_names_the_next_step(sealface: Command, case: str) -> None:
    words, code, next_step = BAD_CALLS[case]
    if case == "subject id":
        sealface.json("gallery", "create", "subjects", *THRESHOLDS)
        words = ("erase", "subjects", "not a subject")
        code = USAGE
    assert next_step in sealface.error(*words, code=code)


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("gallery", "create"),
        ("gallery", "create", "g", "--threshold", "abc"),
        ("gallery", "create", "g", "--metric", "manhattan"),
        ("identify", "g", "a.jpg", "--most", "11"),
        ("verify", "g"),
        ("serve", "nothing"),
        ("keys", "policy", "k", "--max-candidates", "0"),
    ],
)
def test_wrong_words_are_a_matter_of_usage(words: tuple[str, ...]) -> None:
    out, err = Command(None).ran(*words, code=USAGE)
    assert out == ""
    assert "Error" in err or "Usage" in err


@pytest.mark.parametrize(
    "words",
    [
        ("gallery", "list"),
        ("gallery", "create", "g", *THRESHOLDS),
        ("enroll", "g", "s", "a.jpg"),
        ("verify", "g", "s", "a.jpg"),
        ("identify", "g", "a.jpg"),
        ("erase", "g", "s"),
        ("keys", "list"),
    ],
)
def test_no_services_are_known(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert "sealface serve" in Command(tmp_path).error(*words, code=USAGE)


def test_a_credential_that_is_none(services: LocalServices, tmp_path: Path) -> None:
    (tmp_path / "me.pem").write_text("no key")
    command = Command(services.state, SEALFACE_CREDENTIAL=str(tmp_path / "me.pem"))
    assert "me.pem" in command.error("gallery", "list", code=USAGE)


def test_a_services_file_that_is_none(tmp_path: Path) -> None:
    for content in ("", "[]", "{", '{"keys": 5}', "\xff"):
        (tmp_path / "services.json").write_bytes(content.encode("latin-1"))
        assert "sealface serve" in Command(tmp_path).error("gallery", "list", code=USAGE)


def test_a_callers_folder_that_cannot_be(sealface: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sealface.error("keys", "caller", "nobody", tmp_path / "file", code=FAILED)
    made = sealface.json("keys", "caller", "nobody", tmp_path / "new" / "folder")
    assert Path(made["file"]).is_file(), "the id was not spent on the failure before"


def test_a_state_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Command(None).error("serve", "--state", tmp_path / "file", code=FAILED)


def test_an_address_that_is_taken_or_none(tmp_path: Path) -> None:
    Authority.create().certify(certificate_files(tmp_path, "keys"), Zone.KEYS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", "nonsense"):
            said = Command(None).ran("serve", "keys", "--state", tmp_path, "--listen", address, code=FAILED)[1]
            assert "--listen" in said.splitlines()[-1]


def _pairs(folder: Path, rows: list[list[str]]) -> Path:
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["file_x", "file_y", "Decision"], *rows])
    return path


def _embeddings(folder: Path, vectors: dict[str, Any]) -> Path:
    path = folder / "embeddings.npz"
    np.savez(path, names=list(vectors), emb=np.array(list(vectors.values()), np.float32))
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("no array"),
        lambda path: path.write_bytes(b"PK\3\4 and then nothing"),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path.open("wb"), other=np.zeros(3)),
        lambda path: np.save(path.open("wb"), np.zeros(3)),
        lambda path: np.savez(path.open("wb"), names=["a", "b"], emb=np.zeros((3, 128))),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_embeddings_that_are_none(services: LocalServices, tmp_path: Path, write: Callable[[Path], object]) -> None:
    pairs = _pairs(tmp_path, [["a", "b", "Yes"]])
    write(tmp_path / "e.npz")
    words = ("evaluate", "--pairs", pairs, "--embeddings", tmp_path / "e.npz", "--threshold", 0.1)
    assert "names" in Command(services.state).error(*words, code=USAGE)


def test_a_row_of_pairs_that_is_too_short(services: LocalServices, tmp_path: Path) -> None:
    pairs = _pairs(tmp_path, [["a", "b", "Yes"], ["a"]])
    found = _embeddings(tmp_path, {"a": np.ones(128), "b": np.ones(128)})
    words = ("evaluate", "--pairs", pairs, "--embeddings", found, "--threshold", 0.1)
    assert "file_x" in Command(services.state).error(*words, code=USAGE)


@pytest.mark.faces
def test_evaluate_says_what_killed_it(tmp_path: Path) -> None:
    people = People(2)
    faces = {f"p{number}": people.somebody() for number in range(2000)}
    pairs = _pairs(tmp_path, [[name, name, "Yes"] for name in faces])
    with local_services(tmp_path / "state") as services:
        command = Command(None)
        process = command.start(
            *("evaluate", "--pairs", pairs, "--embeddings", _embeddings(tmp_path, faces), "--threshold", 0.07),
            *("--json", "--state", services.state),
        )
        with Client.connect(services.state) as client:
            until = time.monotonic() + 60
            while not any(gallery.templates > 20 for gallery in client.galleries()):
                assert time.monotonic() < until
                time.sleep(0.1)
        kill(services, "enrollment")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (FAILED, "")
        assert "Traceback" not in err
        assert "the enrollment service does not answer" in err.splitlines()[-1]
        services.launch("enrollment")


def test_services_that_are_dead(sealface: Command, services: LocalServices) -> None:
    with Client.connect(services.state) as client:
        client.create_gallery("lonely", policy=POLICY).enroll("ada", People(1).somebody())
    with revived(services, "enrollment"):
        said = sealface.error("gallery", "list", code=FAILED)
        assert "the enrollment service does not answer: start it (`sealface serve`)" in said
    with revived(services, "keys"):
        assert "the keys service does not answer" in sealface.error("keys", "list", code=FAILED)


@pytest.mark.faces
@pytest.mark.data
def test_faces_by_command(sealface: Command, tmp_path: Path) -> None:
    obama = [FACES / "img1.jpg", FACES / "img2.jpg"]
    sealface.json("gallery", "create", "door", "--largest-face")
    enrolled = sealface.json("enroll", "door", "4711", obama[0])
    assert (enrolled["templates"], enrolled["failed"]) == (["galleries/door/subjects/4711/templates/1"], [])
    assert enrolled["bytes_sent"] > 50_000

    match = sealface.json("verify", "door", "4711", obama[1])
    assert (match["decision"], match["candidates"], match["searched"]) == ("MATCH", ["4711"], 1.0)
    assert {"ms", "bytes_sent"} <= match.keys()
    other = _other(tmp_path)
    assert sealface.json("verify", "door", "4711", other, code=NO)["decision"] == "NO_MATCH"
    found = sealface.json("identify", "door", obama[1])
    assert (found["decision"], found["candidates"], found["searched"]) == ("MATCH", ["4711"], 1.0)
    assert sealface.json("identify", "door", other, code=NO)["candidates"] == []

    (tmp_path / "text.jpg").write_text("no picture")
    assert "IMAGE_UNREADABLE" in sealface.error("enroll", "door", "x", tmp_path / "missing.jpg", code=USAGE)
    sealface.error("verify", "door", "4711", tmp_path / "text.jpg", code=USAGE)
    sealface.error("identify", "door", tmp_path / "text.jpg", code=USAGE)
    assert "SUBJECT_NOT_FOUND" in sealface.error("verify", "door", "nobody", obama[1], code=FAILED)
    assert sealface.json("gallery", "subjects", "door") == {"subjects": {"4711": 1}}


def _other(folder: Path) -> Path:
    """Somebody else than img1.jpg's person."""
    with (FACES / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    same = {row[side] for row in rows if row["Decision"] == "Yes" and "img1.jpg" in row.values() for side in row}
    return next(
        FACES / row["file_y"]
        for row in rows
        if row["Decision"] == "No" and row["file_x"] == "img1.jpg" and row["file_y"] not in same
    )


def test_an_interrupted_serve_leaves_no_process(tmp_path: Path) -> None:
    process = Command(None).start("serve", "--state", tmp_path, "--json")
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready.keys() == {"keys", "enrollment", "matching", "ca", "state"}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 3
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert (process.returncode, out) == (DONE, "")
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_where_metrics_are_is_told_where_they_are_asked_for(tmp_path: Path) -> None:
    command = Command(None)
    told = command.error("serve", "--state", tmp_path, "--metrics", "127.0.0.1:9100", code=USAGE)
    assert "--metrics" in told
    process = command.start("serve", "--state", tmp_path, "--metrics", "127.0.0.1:0")
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        assert ready["metrics"].keys() == {"keys", "enrollment", "matching"}
        assert len(set(ready["metrics"].values())) == 3
        for service, address in ready["metrics"].items():
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
                assert f"sealface.{service}.v1." in answer.read().decode()
    finally:
        process.terminate()
        process.communicate(timeout=60)
