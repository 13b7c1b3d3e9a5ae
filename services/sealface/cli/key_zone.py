"""`sealface keys …` for whoever runs the key zone: key-encryption keys, backup, recovery."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sealface.cli.output import Exit, Json, State, console, fail, print_json, reporting
from sealface.cli.processes import OPERATOR, ZONES
from sealface.cli.record import StateFolder
from sealface.keys import backup as backups
from sealface.keys.backup import KeyBackup
from sealface.keys.providers import FileKey
from sealface.keys.recovery import RecoveryKey
from sealface.keys.rewrap import Rewrapped, rewrap_all
from sealface.keys.server import KEY_FILE, KeyConfig
from sealface.protocol.signing import Credential
from sealface.runtime.server import ServerConfig
from sealface.storage.schema import KEYS
from sealface_client import Client

Passphrase = Annotated[
    str,
    typer.Option(
        envvar="SEALFACE_RECOVERY_PASSPHRASE", prompt=True, hide_input=True, help="Asked for if it is not set."
    ),
]


def _zone(state: Path) -> Path:
    return state.resolve() / ZONES["keys"]


def _describe(found: KeyBackup) -> dict[str, Any]:
    return {
        "keys": found.keys,
        "versions": found.versions,
        "secrets": found.secrets,
        "recovery_keys": found.recovery_keys,
        "bytes": found.nbytes,
        "sha256": found.digest.hex(),
    }


def _tell(found: KeyBackup) -> None:
    console.print(f"{found.versions:,} versions of {found.keys:,} keys\nSHA-256 {found.digest.hex()}")
    for key, count in found.secrets.items():
        console.print(f"{count:,} secrets open with the key-encryption key {key or '(which one is not said)'}")
    if without := found.recovery_keys.get("", 0):
        console.print(f"{without:,} secrets are lost with that key: they have no recovery key (docs/keys.md)")


@reporting
def rewrap(
    check: Annotated[bool, typer.Option("--check", help="Count, and change nothing.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Put all secrets under the current key-encryption key. Exit code 1: some do not open, or with --check: are not."""
    with Client.connect(state) as client:
        done = client.rewrap_keys(only_count=check)
    left = len(done.failed) + (done.rewrapped if check else 0)
    if as_json:
        print_json(
            {
                "key_encryption_key": done.key_encryption_key,
                "version": done.key_encryption_key_version,
                "current": done.current,
                "not_current" if check else "rewrapped": done.rewrapped,
                "failed": list(done.failed),
                "unrecoverable": done.unrecoverable,
            }
        )
    else:
        _report(done.rewrapped, done.current, list(done.failed), f"{done.key_encryption_key}", check)
    raise typer.Exit(Exit.NO if left else Exit.DONE)


def _report(rewrapped: int, current: int, failed: list[str], key: str, check: bool = False) -> None:
    verb = "to be rewrapped" if check else "rewrapped"
    console.print(f"{rewrapped:,} secrets {verb}, {current:,} were under the key-encryption key {key}")
    for name in failed:
        console.print(f"{name} does not open: restore a backup, or the key that it is under")


@reporting
def backup(
    file: Annotated[Path, typer.Argument(help="Where it is written; an older backup there is replaced.")],
    state: StateFolder = Path(".state"),
    as_json: Json = False,
) -> None:
    """Write the key service's database to one file, beside the service or without it. Secrets in it stay wrapped.

    The key-encryption key is not in it: keep a copy of that elsewhere, or a recovery key.
    """
    if not file.absolute().parent.is_dir():
        fail(f"{file}: its folder is not there: name another", Exit.USAGE)
    made = backups.back_up(_zone(state) / "keys.db", file.absolute())
    if as_json:
        print_json(_describe(made) | {"file": str(file)})
    else:
        _tell(made)


@reporting
def restore(
    file: Annotated[Path, typer.Argument(help="What `sealface keys backup` wrote.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="In the place of keys that are there; what they destroyed stays so.")
    ] = False,
    only_verify: Annotated[bool, typer.Option("--verify", help="Check the file, and restore nothing.")] = False,
    state: StateFolder = Path(".state"),
    as_json: Json = False,
) -> None:
    """Put a backup in place of the database of a key service that is stopped, all of it or nothing.

    What happened since is not in it: keys and versions made since are gone, policies and callers are as they were.
    """
    if only_verify:
        found, destroyed = backups.verify(file.absolute()), None
    else:
        done = backups.restore(file.absolute(), _zone(state), replace=replace)
        found, destroyed = done.backup, done.destroyed
    if as_json:
        print_json(_describe(found) | {"restored": not only_verify, "destroyed": destroyed})
        return
    _tell(found)
    if destroyed is None:
        console.print(f"{file} is whole")
    else:
        console.print(f"restored; {destroyed:,} versions that were destroyed since stayed destroyed")


@reporting
def recovery_key(
    folder: Annotated[Path, typer.Argument(help="Where recovery.pem and recovery.pub are written.")],
    passphrase: Annotated[
        str,
        typer.Option(
            envvar="SEALFACE_RECOVERY_PASSPHRASE",
            prompt=True,
            hide_input=True,
            confirmation_prompt=True,
            help="Encrypts recovery.pem; asked for if it is not set.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Make a recovery key, for the day when the key-encryption key is lost. Keep recovery.pem offline.

    Put recovery.pub into the folder `keys` of the state, start the service again, and run `sealface keys rewrap`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any((folder / name).exists() for name in ("recovery.pem", "recovery.pub")):
        fail(f"{folder}: there is a recovery key: name another folder")
    private, public = RecoveryKey.generate().save(folder, passphrase)
    if as_json:
        print_json({"private": str(private), "public": str(public)})
    else:
        console.print(f"{private}: take it offline\n{public}: into the folder keys of the state")


@reporting
def recover(
    key: Annotated[Path, typer.Argument(help="recovery.pem, as `sealface keys recovery-key` wrote it.")],
    passphrase: Passphrase,
    key_encryption: Annotated[
        str,
        typer.Option(
            envvar="SEALFACE_KEY_ENCRYPTION",
            help="The new key-encryption key; default a file in the state folder, made if it is not there.",
        ),
    ] = "",
    state: StateFolder = Path(".state"),
    as_json: Json = False,
) -> None:
    """Put all secrets under another key-encryption key when theirs is lost. Exit code 1: some cannot be recovered.

    A key service that is sealed unseals by itself then.
    """
    recovery, zone = RecoveryKey.load(key, passphrase), _zone(state)
    config = KeyConfig(zone, ServerConfig(), key_encryption=key_encryption)
    if not config.database.exists():
        fail("no key service's database here: name its state folder with --state, or restore a backup")
    if not key_encryption and not (zone / KEY_FILE).exists():
        FileKey.create(zone / KEY_FILE)
    engine = KEYS.open_file(config.database)
    try:
        done: Rewrapped = rewrap_all(engine, replace(config.encryption(), recovery=recovery))
    finally:
        engine.dispose()
    if as_json:
        counts = {"current": done.current, "recovered": done.rewrapped, "failed": list(done.failed)}
        print_json({"key_encryption_key": done.key, **counts})
    else:
        _report(done.rewrapped, done.current, list(done.failed), done.key)
    raise typer.Exit(Exit.NO if done.failed else Exit.DONE)


@reporting
def encryption_key(
    file: Annotated[Path, typer.Argument(help="Where it is written, with mode 0600.")], as_json: Json = False
) -> None:
    """Make a key-encryption key in a file, for `--key-encryption file:…`."""
    if file.exists():
        fail(f"{file}: there is a file: name another")
    FileKey.create(file.absolute())
    if as_json:
        print_json({"file": str(file), "id": FileKey(file).id})
    else:
        console.print(f"{file}: key-encryption key {FileKey(file).id}")


@reporting
def operator_key(
    folder: Annotated[Path, typer.Argument(help="Where operator.pem and operator.pub are written.")],
    as_json: Json = False,
) -> None:
    """Make the operator's credential, for a key zone that `sealface serve` did not set up.

    Put operator.pub into the folder `keys` of the state and start the service; SEALFACE_CREDENTIAL names operator.pem.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any((folder / f"{OPERATOR}{ending}").exists() for ending in (".pem", ".pub")):
        fail(f"{folder}: there is an operator's credential: name another folder")
    credential = Credential.generate(f"callers/{OPERATOR}")
    private, public = credential.save(folder), credential.publish(folder)
    if as_json:
        print_json({"private": str(private), "public": str(public)})
    else:
        console.print(f"{private}: the operator's alone\n{public}: into the folder keys of the state")
