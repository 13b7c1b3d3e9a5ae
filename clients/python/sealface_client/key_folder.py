"""Secrets that stay on the caller's machine: keys of client-held galleries, transforms of embeddings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sealface.errors import AlreadyExists, NotFound
from sealface.protocol.signing import write_private
from sealface_client import passphrases, secret_file
from sealface_client.passphrases import Ask
from sealface_client.secret_file import SecretFile, SecretFileDamaged

_FILE = re.compile(r"(keys)-(.+)-(versions)-([1-9][0-9]*)|(galleries)-(.+)-(transforms)-([0-9a-f]{16})")


class SecretKeyMissing(NotFound):
    """The secret key of a client-held gallery is not on this machine."""


class SecretKeyExists(AlreadyExists):
    """A secret key of that name is on this machine already."""


class KeyFolder:
    """Secrets by resource name, one file of mode 0600 each, as they are or under a passphrase.

    The folder is protected as soon as one of its files is: all that is saved then goes under the same passphrase.

    Args:
        folder: where the files are.
        passphrase: what they are under, or whom to ask for it once it is needed. Given outright, what is saved is put
            under it in any case.
    """

    def __init__(self, folder: Path, passphrase: str | Ask | None = None) -> None:
        self._folder = folder
        self._given = passphrase if isinstance(passphrase, str) else None
        self._ask: Ask = passphrase if callable(passphrase) else passphrases.needed
        self._asked: str | None = None

    def save(self, name: str, secret: bytes) -> None:
        """Keep a secret.

        Raises:
            SecretKeyExists: one of that name is here; it is not overwritten.
            PassphraseNeeded, WrongPassphrase: the folder is protected.
        """
        if self.holds(name):
            raise SecretKeyExists(
                "a secret key of that name is on this machine: choose another id, or move its file away", key=name
            )
        sealed = next(self._sealed(), None)
        if sealed is not None:
            self._open(SecretFile.read(sealed.read_bytes()))  # or one file had another passphrase than the rest
        if sealed is not None or self._given is not None:
            secret = secret_file.seal(name, secret, self._passphrase())
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._path(name), secret)

    def load(self, name: str) -> bytes:
        """A secret.

        Raises:
            SecretKeyMissing: it is not here.
            PassphraseNeeded, WrongPassphrase, SecretFileDamaged, UnknownSecretFile: see there.
        """
        try:
            stored = self._path(name).read_bytes()
        except OSError:
            raise SecretKeyMissing(
                "the gallery's secret key is not on this machine: import it (`sealface keys import`)", key=name
            ) from None
        return self._open(_read(name, stored)) if secret_file.is_sealed(stored) else stored

    def holds(self, name: str) -> bool:
        """Whether there is a secret of that name."""
        return self._path(name).exists()

    def names(self) -> list[str]:
        """Names of all secrets here."""
        found = (_FILE.fullmatch(path.stem) for path in self._files())
        return sorted("/".join(filter(None, match.groups())) for match in found if match)

    def remove(self, name: str) -> None:
        """Drop a secret that no service knows."""
        self._path(name).unlink(missing_ok=True)

    def put_aside(self, name: str) -> None:
        """Make room for a secret of that name; the one that is here stays in a file of another."""
        path = self._path(name)
        if path.exists():
            path.rename(path.with_suffix(f".aside-{os.urandom(4).hex()}"))

    def protect(self, passphrase: str) -> int:
        """Put all secrets under a passphrase, perhaps a new one; returns how many. What was broken off may be repeated.

        Raises:
            PassphraseTooShort, PassphraseNeeded, WrongPassphrase, SecretFileDamaged: see there.
        """
        changed = self._rewrite(lambda name, secret: secret_file.seal(name, secret, passphrase), also=passphrase)
        self._given = passphrase
        return changed

    def unprotect(self) -> int:
        """Have all secrets without a passphrase again; returns how many. Errors as for `protect`."""
        changed = self._rewrite(lambda _, secret: secret)
        self._given = None
        return changed

    def _rewrite(self, written: Callable[[str, bytes], bytes], also: str | None = None) -> int:
        secrets = {}
        for name in self.names():
            stored = self._path(name).read_bytes()
            if secret_file.is_sealed(stored) and also is not None:
                try:
                    secrets[name] = _read(name, stored).open(also)
                    continue
                except secret_file.WrongPassphrase:
                    pass  # it is under the one before
            secrets[name] = self.load(name)
        for name, secret in secrets.items():  # now that all of them open
            write_private(self._path(name), written(name, secret))
        return len(secrets)

    def _open(self, file: SecretFile) -> bytes:
        try:
            return file.open(self._passphrase())
        except secret_file.WrongPassphrase:
            self._asked = None
            raise

    def _passphrase(self) -> str:
        if self._given is not None:
            return self._given
        if self._asked is None:
            self._asked = self._ask()
        return self._asked

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("*.secret")

    def _sealed(self) -> Iterator[Path]:
        for path in self._files():
            with path.open("rb") as file:
                if secret_file.is_sealed(file.read(64)):
                    yield path

    def _path(self, name: str) -> Path:
        return self._folder / (name.replace("/", "-") + ".secret")


def _read(name: str, stored: bytes) -> SecretFile:
    file = SecretFile.read(stored)
    if file.name != name:
        raise SecretFileDamaged("the file holds another secret than its name says: rename it", name=file.name)
    return file
