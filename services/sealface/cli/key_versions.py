"""`sealface keys show`, `versions`, `rotate`, `disable` and the rest of a key version's life."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.table import Table

from sealface.cli.output import Exit, Json, State, console, fail, print_json, reporting
from sealface.cli.passphrase import connect
from sealface.protocol import names
from sealface_client import Client
from sealface_protos.keys.v1 import key_pb2

KeyId = Annotated[str, typer.Argument(help="Id of the key.")]
KeyVersion = Annotated[str, typer.Argument(help="Key and number of the version: KEY/N.")]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse(version: str) -> tuple[str, int]:
    """Key id and number of `KEY/N`.

    Raises:
        InvalidName: it is none.
    """
    key_id, _, number = version.partition("/")
    return names.key_version(f"keys/{key_id}/versions/{number}")


@reporting
def show(key: KeyId, state: State = None, as_json: Json = False) -> None:
    """Show a key and its versions."""
    with connect(state) as client:
        found = client.lifecycle.get(key)
        described: dict[str, Any] = {
            "key": key,
            "custody": key_pb2.Custody.Name(found.custody).removeprefix("CUSTODY_").lower(),
            "primary": names.key_version(found.primary_version)[1],
            "oldest": found.oldest_version,
            "exportable": found.exportable,
            "versions": _described(client, client.lifecycle.versions(key)),
        }
    if as_json:
        print_json(described)
        return
    table = Table(show_header=False)
    for name in ("key", "custody", "primary", "oldest", "exportable"):
        table.add_row(name, str(described[name]))
    console.print(table)
    _print(described["versions"])


@reporting
def versions(key: KeyId, state: State = None, as_json: Json = False) -> None:
    """List a key's versions, the newest first."""
    with connect(state) as client:
        described = _described(client, client.lifecycle.versions(key))
    if as_json:
        print_json({"versions": described})
    else:
        _print(described)


@reporting
def rotate(key: KeyId, state: State = None, as_json: Json = False) -> None:
    """Make the next version of a key: what is encrypted from now on is under it.

    A client-held key's is made here. Then move the gallery's templates to it, and destroy the old version.
    """
    with connect(state) as client:
        made = client.lifecycle.rotate(key)
    number = names.key_version(made.primary_version)[1]
    if as_json:
        print_json({"key": key, "primary": number, "public_key_sha256": made.public_key_digest.hex()})
    else:
        console.print(f"{key}: version {number} encrypts from now on")


@reporting
def enable(version: KeyVersion, state: State = None, as_json: Json = False) -> None:
    """Have a version open again; also one in quarantine, once you know why it is."""
    with connect(state) as client:
        _changed(client, client.lifecycle.enable(*parse(version)), as_json)


@reporting
def disable(version: KeyVersion, state: State = None, as_json: Json = False) -> None:
    """Have a version open nothing until it is enabled."""
    with connect(state) as client:
        _changed(client, client.lifecycle.disable(*parse(version)), as_json)


@reporting
def destroy(
    version: KeyVersion,
    undo: Annotated[
        str, typer.Option(help="How long it can be taken back: 90m, 24h, 30d; 0 destroys at once.")
    ] = "24h",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Destroy a version when it can no more be taken back: what is encrypted under it is lost, in backups too."""
    window = _duration(undo)
    with connect(state) as client:
        _changed(client, client.lifecycle.destroy(*parse(version), window), as_json)


@reporting
def undo_destroy(version: KeyVersion, state: State = None, as_json: Json = False) -> None:
    """Take back a destruction; the version is disabled then."""
    with connect(state) as client:
        _changed(client, client.lifecycle.restore(*parse(version)), as_json)


@reporting
def oldest(
    key: KeyId,
    number: Annotated[int, typer.Argument(min=1, help="Number of the oldest version that is to open anything.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Have all versions before one open nothing, for good."""
    with connect(state) as client:
        changed = client.lifecycle.set_oldest(key, number)
    if as_json:
        print_json({"key": key, "oldest": changed.oldest_version})
    else:
        console.print(f"{key}: versions before {changed.oldest_version} open nothing any more")


@reporting
def forbid_export(key: KeyId, state: State = None, as_json: Json = False) -> None:
    """Never let a secret of the key leave the key service any more; that cannot be taken back."""
    with connect(state) as client:
        changed = client.lifecycle.forbid_export(key)
    if as_json:
        print_json({"key": key, "exportable": changed.exportable})
    else:
        console.print(f"{key}: no version leaves the key service any more")


COMMANDS = (show, versions, rotate, enable, disable, destroy, undo_destroy, oldest, forbid_export)


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    if text == "0":
        return timedelta()
    fail(f"{text}: no time: name one as 90m, 24h or 30d", Exit.USAGE)


def _described(client: Client, versions: list[key_pb2.KeyVersion]) -> list[dict[str, Any]]:
    held = set(client.key_folder.names())
    return [
        {
            "version": names.key_version(version.name)[1],
            "state": key_pb2.KeyVersionState.Name(version.state).removeprefix("KEY_VERSION_STATE_").lower(),
            "parameter_set": version.parameter_set,
            "security_bits": version.security_bits,
            "quantum_secure": version.quantum_secure,
            "public_key_sha256": version.public_key_digest.hex(),
            "created": version.create_time.ToJsonString(),
            "destroyed": version.destroy_time.ToJsonString() if version.HasField("destroy_time") else None,
            "exported": version.exported,
            "held_here": version.name in held,
        }
        for version in versions
    ]


def _changed(client: Client, version: key_pb2.KeyVersion, as_json: bool) -> None:
    (described,) = _described(client, [version])
    if as_json:
        print_json(described)
    else:
        _print([described])


def _print(versions: list[dict[str, Any]]) -> None:
    columns = ("version", "state", "parameter_set", "security_bits", "created", "destroyed", "exported", "held_here")
    table = Table(*(column.replace("_", " ") for column in columns))
    for version in versions:
        table.add_row(*("" if version[column] is None else str(version[column]) for column in columns))
    console.print(table)
