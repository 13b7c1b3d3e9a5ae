"""Finds byte strings, thousands at once and at any offset, in files and in the memory of processes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CHUNK = 32 << 20


def _rare(word: bytes) -> bool:
    """Whether four bytes are worth looking up: not what numbers that are small, or round, are full of."""
    return len(set(word) - {0, 255}) >= 3


class Patterns:
    """What to look for: name -> byte strings of at least 8 bytes."""

    def __init__(self, wanted: Mapping[str, Iterable[bytes]]) -> None:
        self._by_key: dict[int, list[tuple[bytes, int, str]]] = defaultdict(list)
        self._plain: list[tuple[bytes, str]] = []
        self._longest = 0
        for name, patterns in wanted.items():
            for pattern in patterns:
                assert len(pattern) >= 8, name
                self._longest = max(self._longest, len(pattern))
                at = next((at for at in range(min(64, len(pattern) - 3)) if _rare(pattern[at : at + 4])), None)
                if at is None:  # as of coefficients that are -1, 0 or 1
                    self._plain.append((pattern, name))
                else:
                    key = int.from_bytes(pattern[at : at + 4], "little")
                    self._by_key[key].append((pattern, at, name))
        self._keys = np.array(sorted(self._by_key), np.uint32)
        self._likely = np.zeros(1 << 16, bool)
        self._likely[self._keys & 0xFFFF] = True

    def found_in(self, data: bytes) -> set[str]:
        """Names of what the data hold."""
        found = {name for pattern, name in self._plain if pattern in data}
        for odd in (0, 1):
            pairs = np.frombuffer(data[odd:], "<u2", max(0, len(data) - odd) // 2)
            places = np.flatnonzero(self._likely[pairs[:-1]])
            keys = pairs[places].astype(np.uint32) | pairs[places + 1].astype(np.uint32) << np.uint32(16)
            for at in places[np.isin(keys, self._keys)]:
                found |= self._around(data, 2 * int(at) + odd)
        return found

    def _around(self, data: bytes, at: int) -> set[str]:
        candidates = self._by_key[int.from_bytes(data[at : at + 4], "little")]
        return {name for pattern, before, name in candidates if at >= before and data.startswith(pattern, at - before)}

    def found_in_parts(self, parts: Iterable[bytes]) -> set[str]:
        """The same for data that come in parts, not all of them neighbours."""
        found: set[str] = set()
        tail = b""
        for part in parts:
            found |= self.found_in(tail + part)
            tail = part[-self._longest :]
        return found

    def found_in_files(self, files: Iterable[Path]) -> dict[str, set[str]]:
        """File name -> what it holds, for files that hold any of it."""
        found = {str(path): self.found_in(path.read_bytes()) for path in files}
        return {name: names for name, names in found.items() if names}


def memory(pid: int) -> Iterator[bytes]:
    """All memory of a process that can be read, pages of zeros left out.

    Raises:
        PermissionError: it may not be read.
    """
    mapping = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r")
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as file:
        for line in maps:
            match = mapping.match(line)
            if match is None or line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(bound, 16) for bound in match.groups())
            for at in range(start, end, _CHUNK):
                try:
                    file.seek(at)
                    data = file.read(min(_CHUNK, end - at))
                except (OSError, ValueError, OverflowError):
                    continue  # unmapped since, or a device's
                words = np.frombuffer(data, np.uint64, len(data) // 8)
                pages: NDArray[np.bool_] = words.reshape(-1, 512).any(axis=1) if len(data) % 4096 == 0 else np.ones(1)
                if pages.all():
                    yield data
                elif pages.any():
                    yield _without_zeros(data, pages)


def _without_zeros(data: bytes, pages: NDArray[np.bool_]) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(-1, 4096)[pages].tobytes()
