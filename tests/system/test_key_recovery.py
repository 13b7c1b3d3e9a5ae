"""The runbook of docs/keys.md as an operator follows it: backup, loss, restore, recovery, moving to another key."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from sealface.cli.processes import LocalServices, local_services
from sealface_client import Client, ServiceError
from tests.system.conftest import POLICY, People
from tests.system.test_cli import DONE, FAILED, NO, USAGE, Command

PASSPHRASE = "four words are enough"
SECRETS = ["audit pseudonym key", "decision signing key", "keys/door/versions/1"]
"""What the key service holds sealed once the gallery `door` has its key."""


def restart(services: LocalServices, **environment: str) -> None:
    stop(services)
    services.environment |= environment
    services.launch("keys")


def stop(services: LocalServices) -> None:
    process = services._processes["keys"].popen
    process.terminate()
    process.wait(30)


def until_unsealed(gallery, face):  # type: ignore[no-untyped-def]
    """The answer of the first verification that is not refused for want of a key."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return gallery.verify("ada", face)
        except ServiceError as error:
            assert error.reason == "KEYS_SEALED", error
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_keys_come_back_when_their_database_and_their_key_encryption_key_are_lost(
    tmp_path: Path, people: People
) -> None:
    ada, bob = people.somebody(), people.somebody()
    offline = tmp_path / "offline"
    with local_services() as services, Client.connect(services.state) as client:
        zone = services.state / "keys"
        command = Command(services.state, SEALFACE_RECOVERY_PASSPHRASE=PASSPHRASE)
        gallery = client.create_gallery("door", policy=POLICY)
        gallery.enroll("ada", ada)
        assert gallery.verify("ada", people.again(ada)).match

        made = Command(None, SEALFACE_RECOVERY_PASSPHRASE=PASSPHRASE).json("keys", "recovery-key", offline)
        shutil.copy(made["public"], zone)
        assert command.json("keys", "rewrap", "--check")["unrecoverable"] == len(SECRETS)
        restart(services)
        assert command.json("keys", "rewrap", "--check", code=NO)["not_current"] == len(SECRETS)
        assert command.json("keys", "rewrap")["rewrapped"] == len(SECRETS)
        saved = command.json("keys", "backup", tmp_path / "keys.backup")
        assert (saved["keys"], saved["versions"], "" in saved["recovery_keys"]) == (1, 1, False)
        assert command.json("keys", "restore", tmp_path / "keys.backup", "--verify")["sha256"] == saved["sha256"]
        command.ran("keys", "restore", tmp_path / "keys.backup", "--replace", code=FAILED)  # the service runs

        stop(services)
        for path in (zone / "key-encryption.key", *zone.glob("keys.db*")):
            path.unlink()
        command.json("keys", "restore", tmp_path / "keys.backup")
        services.launch("keys")  # nobody has its key-encryption key any more
        with pytest.raises(ServiceError) as failure:
            gallery.verify("ada", people.again(ada))
        assert failure.value.reason == "KEYS_SEALED"
        wrong = Command(services.state, SEALFACE_RECOVERY_PASSPHRASE="another")
        wrong.ran("keys", "recover", offline / "recovery.pem", code=USAGE)
        assert not (zone / "key-encryption.key").exists()
        recovered = command.json("keys", "recover", offline / "recovery.pem")
        assert (recovered["recovered"], recovered["failed"]) == (len(SECRETS), [])

        assert until_unsealed(gallery, people.again(ada)).match  # it unseals by itself
        assert not gallery.verify("ada", bob).match
        gallery.enroll("bob", bob)
        assert [named.subject for named in gallery.identify(people.again(bob)).candidates] == ["bob"]


def test_what_has_no_recovery_wrapping_is_named_as_lost(tmp_path: Path) -> None:
    """No service is needed to make the recovery key, and none to learn that it came too late."""
    with local_services() as services, Client.connect(services.state) as client:
        client.create_gallery("door", policy=POLICY)
        stop(services)
        offline = tmp_path / "offline"
        Command(None, SEALFACE_RECOVERY_PASSPHRASE=PASSPHRASE).json("keys", "recovery-key", offline)
        (services.state / "keys" / "key-encryption.key").unlink()
        command = Command(services.state, SEALFACE_RECOVERY_PASSPHRASE=PASSPHRASE)
        lost = command.json("keys", "recover", offline / "recovery.pem", code=NO)
        assert sorted(lost["failed"]) == SECRETS


def test_all_services_come_up_while_keys_are_sealed_and_move_to_another_key(tmp_path: Path, people: People) -> None:
    """`sealface serve` does not wait for the key-encryption key; the move leaves nothing under the old one."""
    state, new = tmp_path / "state", tmp_path / "secrets" / "new.key"
    new.parent.mkdir()
    ada = people.somebody()
    with local_services(state) as services, Client.connect(state) as client:
        client.create_gallery("door", policy=POLICY).enroll("ada", ada)
        assert services.waiting() == []
    old = state / "keys" / "key-encryption.key"
    moving = {"SEALFACE_KEY_ENCRYPTION": f"file:{new}", "SEALFACE_KEY_ENCRYPTION_OLD": f"file:{old}"}
    moving["VAULT_TOKEN"] = "none of compute's business"
    with local_services(state, **moving) as services, Client.connect(state) as client:
        assert services.waiting() == ["keys"]
        gallery = client.gallery("door")
        with pytest.raises(ServiceError) as failure:
            gallery.verify("ada", ada)
        assert (failure.value.reason, "put its file back" in failure.value.message) == ("KEYS_SEALED", True)
        made = Command(None).json("keys", "encryption-key", new)
        assert until_unsealed(gallery, people.again(ada)).match
        command = Command(state)
        done = command.json("keys", "rewrap")
        assert (done["key_encryption_key"], done["rewrapped"], done["current"]) == (made["id"], len(SECRETS), 0)
        assert command.json("keys", "rewrap", "--check", code=DONE)["not_current"] == 0
        for line in (state / "keys" / "keys.log").read_text().splitlines():
            assert str(new) not in line and json.loads(line)["event"]
        for name in ("enrollment", "matching"):
            environment = Path(f"/proc/{services.pid(name)}/environ").read_text()
            assert "business" not in environment and str(new) not in environment
            assert str(new).encode() not in Path(f"/proc/{services.pid(name)}/cmdline").read_bytes()
    old.unlink()
    with local_services(state, SEALFACE_KEY_ENCRYPTION=f"file:{new}"), Client.connect(state) as client:
        assert client.gallery("door").verify("ada", people.again(ada)).match
    with closing(sqlite3.connect(state / "keys" / "keys.db")) as connection:
        blobs = [row[0] for row in connection.execute("SELECT wrapped_secret FROM key_versions")]
    assert all(made["id"].encode() in blob for blob in blobs)


def test_a_key_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A confined process could not read it when it comes."""
    command = Command(None)
    words = ("serve", "keys", "--insecure", "--state", tmp_path / "state")
    words += ("--key-encryption", f"file:{tmp_path / 'none' / 'key'}")
    _, err = command.ran(*words, code=USAGE)
    assert "the folder of key is not there" in err
    _, err = command.ran(*words[:-1], "file", code=USAGE)
    assert "INVALID_KEY_ENCRYPTION" in err
