"""A file of entries that shows when anything of it is missing, changed or out of order (ADR 14).

A line that names the format, then entries: lengths of header and data (32 bits each, little endian), the header (JSON),
the data, and SHA-256 over the digest of the entry before (of the first line at first), the lengths, the header and the
data. The last entry counts the others; nothing follows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sealface.errors import DataCorrupted, InvalidInput, WrongState

_FIRST = b"sealface backup 1\n"
_LENGTHS = struct.Struct("<II")
_DIGEST = 32
_MOST_HEADER = 1 << 20
_MOST_DATA = 32 << 20  # the largest block has 16 MB


class NotABackup(InvalidInput):
    """The file is not there, or is no backup."""


class BackupDamaged(DataCorrupted):
    """A backup is not as it was written."""


class BackupNotWritten(WrongState):
    """A backup could not be written; no part of it is left."""


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is there when it is whole and on the disk, in the place of an older one, and not before.

    Raises:
        BackupNotWritten: the disk is full, or the folder may not be written.
    """
    if path.exists() and not path.is_file():
        raise BackupNotWritten(f"{path} is no file: name another")
    part = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}")
    try:
        with open(part, "xb", opener=_private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise BackupNotWritten(f"{path} cannot be written ({error.strerror}): make room, or name another") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def existing_file(path: Path) -> Iterator[BinaryIO]:
    """A file to read.

    Raises:
        NotABackup: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it is read twice
                raise NotABackup(f"{path} is no file: name a backup")
            yield file
    except OSError as error:
        raise NotABackup(f"{path} cannot be read ({error.strerror}): name a backup") from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Writer:
    """Writes entries.

    Args:
        file: empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries = 0
        self._digest = hashlib.sha256(_FIRST).digest()
        file.write(_FIRST)

    def add(self, header: Mapping[str, Any], data: Sequence[bytes] = ()) -> None:
        """Write an entry."""
        encoded = json.dumps(header, separators=(",", ":")).encode()
        size = sum(map(len, data))
        if len(encoded) > _MOST_HEADER or size > _MOST_DATA:
            raise ValueError("an entry is larger than a reader takes")
        digest = hashlib.sha256(self._digest)
        for part in (_LENGTHS.pack(len(encoded), size), encoded, *data):
            digest.update(part)
            self._file.write(part)
        self._digest = digest.digest()
        self._file.write(self._digest)
        self._entries += 1

    def close(self) -> bytes:
        """Write the last entry; returns its digest, which is the whole file's."""
        self.add({"entries": self._entries})
        return self._digest


class Reader:
    """Reads entries, none before its digest is found right.

    Args:
        file: at its beginning.

    Attributes:
        digest: of the last entry that was read; when all are, the whole file's.

    Raises:
        NotABackup: the file is none, or of a later format.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        if file.read(len(_FIRST)) != _FIRST:
            raise NotABackup(
                "the file is no backup, or one of another version: name a file that `sealface backup` wrote"
            )
        self.digest = hashlib.sha256(_FIRST).digest()

    def __iter__(self) -> Iterator[tuple[dict[str, Any], memoryview]]:
        """Header and data of each entry but the last.

        Raises:
            BackupDamaged: something is missing, changed, out of order or too long.
        """
        entries = 0
        while True:
            header, data = self._entry()
            if header.keys() == {"entries"}:
                break
            entries += 1
            yield header, data
        if header["entries"] != entries or data or self._file.read(1):
            raise _damaged()

    def _entry(self) -> tuple[dict[str, Any], memoryview]:
        lengths = self._exactly(_LENGTHS.size)
        of_header, of_data = _LENGTHS.unpack(lengths)
        if of_header > _MOST_HEADER or of_data > _MOST_DATA:
            raise _damaged()
        body = self._exactly(of_header + of_data)
        digest = hashlib.sha256(self.digest + lengths)
        digest.update(body)
        self.digest = digest.digest()
        if self._exactly(_DIGEST) != self.digest:
            raise _damaged()
        try:
            header = json.loads(body[:of_header])
        except (ValueError, RecursionError):
            raise _damaged() from None
        if not isinstance(header, dict):
            raise _damaged()
        return header, memoryview(body)[of_header:]

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise _damaged()
        return data


def _damaged() -> BackupDamaged:
    return BackupDamaged("the backup is damaged or incomplete: use another copy")
