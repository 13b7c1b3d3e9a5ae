"""Backup, restore and doctor by command, beside real services."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealface.cli.processes import LocalServices, local_services
from sealface_client import Client, Gallery, ServiceError
from tests.conftest import execute, select
from tests.system.conftest import POLICY, People, Vector
from tests.system.test_cli import DONE, FAILED, NO, USAGE, Command
from tests.system.test_sealing import until


@pytest.fixture
def sealface(services: LocalServices) -> Command:
    return Command(services.state)


class Crowd:
    """Who is in a gallery, and who is not any more."""

    def __init__(self, gallery: Gallery, seed: int) -> None:
        self.gallery = gallery
        self.people = People(seed)
        self.here: dict[str, Vector] = {}
        self.gone: dict[str, Vector] = {}

    def enroll(self, prefix: str, count: int) -> None:
        new = {f"{prefix}{i}": self.people.somebody() for i in range(count)}
        for enrolled in self.gallery.enroll_many(new.items()):
            assert not isinstance(enrolled, Exception)
        self.here |= new

    def import_(self, prefix: str, count: int) -> None:
        new = {f"{prefix}{i}": self.people.somebody() for i in range(count)}
        list(self.gallery.import_many(list(new.items()), count))
        self.here |= new

    def erase(self, *subjects: str) -> None:
        for subject in subjects:
            self.gallery.erase(subject)
            self.gone[subject] = self.here.pop(subject)

    def check(self, gallery: Gallery | None = None, some: int = 12) -> None:
        """Everybody who should be is found as themselves, and nobody else."""
        gallery = gallery or self.gallery
        known = list(self.here)
        for name in [*known[:: max(1, len(known) // some)], *self.gone]:
            vector = self.here.get(name, self.gone.get(name))
            assert vector is not None
            named = [candidate.subject for candidate in gallery.identify(self.people.again(vector)).candidates]
            assert named == ([name] if name in self.here else []), name
            if name in self.here:
                assert gallery.verify(name, self.people.again(vector)).match


def sealed(services: LocalServices, gallery: str) -> dict[int, int]:
    """Erased templates of each block that is no imported one."""
    query = "SELECT number, erased FROM blocks WHERE gallery = ? AND NOT imported"
    return dict(select(services.state / "compute" / "record.db", query, gallery))


@pytest.fixture
def crowd(services: LocalServices, client: Client, request: pytest.FixtureRequest) -> Iterator[Crowd]:
    """Sealed, imported and open templates, some of each erased."""
    gallery = client.create_gallery(f"backup-{request.node.name.replace('_', '-')[:40]}", policy=POLICY)
    held = Crowd(gallery, 71)
    held.enroll("sealed", 70)
    until(lambda: sealed(services, gallery.id), "nothing was sealed")
    held.import_("imported", 20)
    held.enroll("open", 5)
    held.erase("sealed3", "imported4", "open1")
    until(lambda: not any(sealed(services, gallery.id).values()), "the block was not made anew")
    yield held
    try:
        client.delete_gallery(gallery.id)
    except ServiceError as error:
        assert error.reason == "GALLERY_NOT_FOUND"


def test_deleted_and_restored_everybody_is_found_and_nobody_who_was_erased(
    client: Client, sealface: Command, crowd: Crowd, tmp_path: Path
) -> None:
    file = tmp_path / "door.backup"
    made = sealface.json("backup", crowd.gallery.id, file)
    assert (made["gallery"], made["templates"], made["bytes"]) == (crowd.gallery.id, 92, file.stat().st_size)
    assert made["file"] == str(file)
    client.delete_gallery(crowd.gallery.id)
    with pytest.raises(ServiceError, match="no such gallery"):
        crowd.check()
    restored = sealface.json("restore", file)
    assert restored == {name: made[name] for name in made if name != "file"} | {
        "restored": {"templates": 92, "kept_erased": 0, "lost": 0}
    }
    crowd.check()  # at once: every search asks the record what is there
    crowd.enroll("later", 3)
    crowd.erase("sealed5", "imported6")
    crowd.check()
    assert sealface.json("doctor", crowd.gallery.id)["healthy"]
    with Client.connect(sealface.state) as another:  # that has seen nothing of the old one
        crowd.check(another.gallery(crowd.gallery.id), some=3)


def _found(crowd: Crowd, name: str) -> list[str]:
    return [candidate.subject for candidate in crowd.gallery.identify(crowd.people.again(crowd.here[name])).candidates]


def test_replaced_under_searches_it_keeps_erased_what_it_has_erased(
    client: Client, sealface: Command, crowd: Crowd, tmp_path: Path
) -> None:
    file = tmp_path / "door.backup"
    sealface.json("backup", crowd.gallery.id, file)
    crowd.erase("sealed8", "imported9", "open2")
    crowd.enroll("later", 2)
    assert "--replace" in sealface.error("restore", file, code=FAILED)
    restoring = sealface.start("restore", file, "--replace", "--json", "--state", sealface.state)
    while restoring.poll() is None:
        assert _found(crowd, "sealed10") == ["sealed10"]
    out, err = restoring.communicate()
    assert restoring.returncode == DONE, err
    assert json.loads(out)["restored"] == {"templates": 89, "kept_erased": 3, "lost": 2}
    for name in ("later0", "later1"):
        crowd.gone[name] = crowd.here.pop(name)
    crowd.check()
    assert sealface.json("doctor")["healthy"]


def test_on_another_machine_with_the_same_key_service(
    services: LocalServices, client: Client, sealface: Command, crowd: Crowd, tmp_path: Path
) -> None:
    """The record is lost; keys and callers are not."""
    file = tmp_path / "door.backup"
    made = sealface.json("backup", crowd.gallery.id, file)
    state = tmp_path / "state"
    state.mkdir()
    services.stop()
    try:
        for zone in ("keys", "edge"):
            shutil.copytree(services.state / zone, state / zone)
        written = file.read_bytes()
        for secret in _secrets(services.state):
            assert not any(secret[at : at + 24] in written for at in range(0, len(secret) - 24, 101))
        for vector in list(crowd.here.values())[:30]:
            for kind in ("<f8", "<f4"):
                assert vector.astype(kind).tobytes()[:24] not in written
        with local_services(state) as others, Client.connect(others.state) as connected:
            there = Command(others.state)
            restored = there.json("restore", file)
            assert restored["restored"]["templates"] == made["templates"]
            gallery = connected.gallery(crowd.gallery.id)
            crowd.check(gallery)
            gallery.enroll("later", crowd.people.somebody())
            found = there.json("doctor", "--keys")
            assert found["healthy"]
            assert found["checked"]["keys"] == 1
            # and under a key service that has never heard of the key
            with sqlite3.connect(others.state / "keys" / "keys.db") as record:
                record.execute("UPDATE keys SET primary_version = 7")
            assert [f["what"] for f in there.json("doctor", "--keys", code=NO)["findings"]] == ["key_unknown"]
    finally:
        services.start()


def _secrets(state: Path) -> list[bytes]:
    """Whatever the key zone and the operator keep to themselves."""
    with sqlite3.connect(state / "keys" / "keys.db") as record:
        wrapped = [row[0] for row in record.execute("SELECT wrapped_secret FROM key_versions") if row[0]]
        wrapped += [row[0] for row in record.execute("SELECT wrapped_secret FROM identity")]
    assert wrapped
    files = [path for path in (*state.glob("keys/*"), *state.glob("edge/*")) if path.suffix in (".pem", ".key", ".kek")]
    assert files
    return wrapped + [path.read_bytes() for path in files]


# --- damage


def test_a_damaged_block_is_found_and_healed_beside_the_services(
    services: LocalServices, sealface: Command, crowd: Crowd
) -> None:
    record = services.state / "compute" / "record.db"
    (number,) = sealed(services, crowd.gallery.id)
    damage = "UPDATE block_ciphertexts SET ciphertext = zeroblob(length(ciphertext)) WHERE gallery = ? AND number = ?"
    assert execute(record, damage, crowd.gallery.id, number) == 1
    found = sealface.json("doctor", crowd.gallery.id, code=NO)
    assert not found["healthy"]
    (finding,) = found["findings"]
    assert (finding["what"], finding["block"], finding["severity"]) == ("block_damaged", number, "warning")
    assert "--repair" in finding["advice"]
    assert "doctor" in sealface.error("backup", crowd.gallery.id, services.state / "b", code=FAILED)
    found = sealface.json("doctor", crowd.gallery.id, "--repair")
    assert found["healthy"]
    assert [finding["repaired"] for finding in found["findings"]] == [True]
    crowd.check()
    assert sealface.json("doctor", crowd.gallery.id)["findings"] == []
    crowd.enroll("later", 1)  # the sealer looks again
    until(lambda: sealed(services, crowd.gallery.id), "the block was not made anew")
    crowd.check()


def test_what_people_read(sealface: Command, crowd: Crowd, services: LocalServices, tmp_path: Path) -> None:
    file = tmp_path / "door.backup"
    out, _ = sealface.ran("backup", crowd.gallery.id, file, code=DONE)
    assert "92 templates" in out
    out, _ = sealface.ran("restore", file, "--verify", code=DONE)
    assert "is whole" in " ".join(out.split())
    out, _ = sealface.ran("restore", file, "--replace", code=DONE)
    assert "erase them again" in " ".join(out.split())
    out, _ = sealface.ran("doctor", code=DONE)
    assert "healthy" in out
    record = services.state / "compute" / "record.db"
    assert execute(
        record, "UPDATE template_ciphertexts SET digest = zeroblob(32) WHERE gallery = ? AND slot = 2", crowd.gallery.id
    )
    out, _ = sealface.ran("doctor", code=NO)
    assert "slot 2" in out


def test_what_is_wrong_is_one_line_that_names_the_next_step(
    sealface: Command, client: Client, crowd: Crowd, tmp_path: Path
) -> None:
    file = tmp_path / "door.backup"
    sealface.json("backup", crowd.gallery.id, file)
    whole = file.read_bytes()
    (tmp_path / "short").write_bytes(whole[:-1])
    (tmp_path / "none").write_bytes(b"nothing")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    client.delete_gallery(crowd.gallery.id)
    for name in ("short", "flipped"):
        assert "use another copy" in sealface.error("restore", tmp_path / name, code=FAILED)
    for name in ("none", "missing", "."):
        assert "name" in sealface.error("restore", tmp_path / name, code=USAGE)
    assert "NO_RECORD" in Command(tmp_path).error("restore", file, code=USAGE)
    assert "NO_RECORD" in Command(tmp_path).error("doctor", code=USAGE)
    assert "GALLERY_NOT_FOUND" in sealface.error("backup", crowd.gallery.id, tmp_path / "b", code=FAILED)
    assert "GALLERY_NOT_FOUND" in sealface.error("doctor", crowd.gallery.id, code=FAILED)
    assert "[a-z0-9-]" in sealface.error("backup", "Not an id", tmp_path / "b", code=USAGE)
    assert not (tmp_path / "b").exists()
    assert crowd.gallery.id not in [g.name.partition("/")[2] for g in client.galleries()]


# --- a disk that fills


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, "-m", "sealface.cli.main", *sys.argv[2:]])
"""


def limited(bytes_a_file: int, *words: object) -> subprocess.CompletedProcess[str]:
    """A command whose files may grow to a size and no further, as on a disk that is full."""
    command = [sys.executable, "-c", LIMITED, str(bytes_a_file), *map(str, words), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == FAILED, ran.stderr
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr


def test_a_disk_that_fills_while_a_backup_is_written_leaves_nothing(
    sealface: Command, crowd: Crowd, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "door.backup").write_bytes(b"older")
    said = one_line(limited(1 << 20, "backup", crowd.gallery.id, folder / "door.backup", "--state", sealface.state))
    assert "make room" in said
    assert os.listdir(folder) == ["door.backup"]
    assert (folder / "door.backup").read_bytes() == b"older"


def test_a_disk_that_fills_while_a_gallery_is_restored_leaves_nothing(
    services: LocalServices, client: Client, sealface: Command, crowd: Crowd, tmp_path: Path
) -> None:
    file = tmp_path / "door.backup"
    sealface.json("backup", crowd.gallery.id, file)
    client.delete_gallery(crowd.gallery.id)
    assert "RECORD_UNAVAILABLE" in one_line(limited(1 << 20, "restore", file, "--state", sealface.state))
    assert sealface.json("doctor")["healthy"]
    assert crowd.gallery.id not in [g.name.partition("/")[2] for g in client.galleries()]
    sealface.json("restore", file)
    crowd.check()


def test_killed_while_it_restores_it_has_restored_nothing(
    client: Client, sealface: Command, crowd: Crowd, tmp_path: Path
) -> None:
    file = tmp_path / "door.backup"
    sealface.json("backup", crowd.gallery.id, file)
    client.delete_gallery(crowd.gallery.id)
    wal = Path(f"{sealface.state}/compute/record.db-wal")
    before = wal.stat().st_size
    restoring = sealface.start("restore", file, "--json", "--state", sealface.state)
    deadline = time.monotonic() + 60
    while restoring.poll() is None and wal.stat().st_size < before + (1 << 20):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    restoring.send_signal(signal.SIGKILL)
    restoring.communicate()
    if restoring.returncode == DONE:
        pytest.skip("it was faster")
    assert crowd.gallery.id not in [g.name.partition("/")[2] for g in client.galleries()]
    assert sealface.json("doctor")["healthy"]
    sealface.json("restore", file)
    crowd.check()
