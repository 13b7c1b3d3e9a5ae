"""Passphrases by command: from the environment, from a file, or asked for at a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sealface_client import Client, passphrases
from sealface_client.secret_file import SHORTEST_PASSPHRASE

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", help="File with the passphrase in its first line; default SEALFACE_PASSPHRASE, or asked."
    ),
]


def connect(state: Path | None, *, keys: Path | None = None) -> Client:
    """A client that asks for the passphrase of the key folder, if one is needed and somebody is there."""
    return Client.connect(state, keys=keys, passphrase=_ask if sys.stdin.isatty() else None)


def chosen(file: Path | None, *, new: bool = False) -> str:
    """The passphrase of a file, from where the command says.

    Args:
        file: of `--passphrase-file`.
        new: whether it is asked for twice.

    Raises:
        PassphraseNeeded: nothing says it, and nobody is there.
    """
    passphrase = passphrases.read(file) if file else passphrases.from_environment()
    if passphrase is not None:
        return passphrase
    if not sys.stdin.isatty():
        return passphrases.needed()
    if not new:
        return _ask()
    asked = typer.prompt(
        f"New passphrase ({SHORTEST_PASSPHRASE} characters or more)",
        hide_input=True,
        confirmation_prompt=True,
        err=True,
    )
    return str(asked)


def _ask() -> str:
    return str(typer.prompt("Passphrase", hide_input=True, err=True))
