"""Where a passphrase comes from: the environment, a file, or somebody who is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sealface.errors import InvalidInput

Ask = Callable[[], str]


class PassphraseNeeded(InvalidInput):
    """A secret is under a passphrase, and nothing says which."""


def needed() -> str:
    """Nobody is there to be asked.

    Raises:
        PassphraseNeeded: always.
    """
    raise PassphraseNeeded(
        "a passphrase is needed: set SEALFACE_PASSPHRASE, or SEALFACE_PASSPHRASE_FILE to a file that holds it"
    )


def read(path: Path) -> str:
    """The first line of a file.

    Raises:
        PassphraseNeeded: it cannot be read, or is empty.
    """
    try:
        first = path.read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError):
        first = ""
    if not first:
        raise PassphraseNeeded(f"{path.name} holds no passphrase in its first line: name another file")
    return first


def from_environment() -> str | None:
    """SEALFACE_PASSPHRASE, else the first line of SEALFACE_PASSPHRASE_FILE; None if neither is set.

    Raises:
        PassphraseNeeded: the file cannot be read, or is empty.
    """
    if passphrase := os.environ.get("SEALFACE_PASSPHRASE"):
        return passphrase
    file = os.environ.get("SEALFACE_PASSPHRASE_FILE")
    return read(Path(file)) if file else None
