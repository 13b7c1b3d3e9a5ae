"""What Redis holds beside what the record does: entries listed, checked, and dropped where the record has dropped them.

Nothing here is quiet: what cannot be asked or dropped is `CacheUnavailable`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from sealface.storage.cache import block_name, space_of, template_name
from sealface.storage.digests import Fingerprint
from sealface.storage.entries import BOOKS, PREFIX, Entries
from sealface.storage.galleries import Galleries, Head

_BATCH = 256
_NAME = re.compile(r"([tb])([1-9][0-9]{0,18})")


@dataclass(frozen=True)
class Holding:
    """What Redis holds of a gallery.

    Attributes:
        right: names of entries that are what the record has.
        stale: names of entries that the record has no more, or never had.
        damaged: names of entries that the record has otherwise.
    """

    right: tuple[str, ...]
    stale: tuple[str, ...]
    damaged: tuple[str, ...]


class Sweep:
    """Compares Redis with the record.

    Args:
        galleries: the record.
        entries: what Redis holds.
    """

    def __init__(self, galleries: Galleries, entries: Entries) -> None:
        self._galleries = galleries
        self._entries = entries

    def drop_stale(self) -> int:
        """Drop all that the record does not have any more; returns how many entries that were."""
        heads = {space_of(head): head for head in self._galleries.heads()}
        foreign: list[bytes] = []
        dropped = 0
        for space, keys in self._listed().items():
            if space in heads:
                stale = [name for name, backing in self._backed(heads[space], keys) if backing is None]
                self._entries.drop(space, stale)
                dropped += len(stale)
            else:
                foreign += keys.values()
                dropped += len(keys.keys() - BOOKS)
        self._entries.unlink(foreign)
        return dropped

    def holds(self, gallery_id: str, slots: Collection[int] = (), numbers: Collection[int] = ()) -> list[str]:
        """Names of those entries of some templates and blocks that Redis holds, in whichever space of the gallery."""
        asked = {*map(template_name, slots), *map(block_name, numbers)}
        return sorted(name for keys in self._listed(gallery_id).values() for name in asked & keys.keys())

    def check(self, gallery_id: str, drop: bool = False) -> Holding:
        """Compare every entry of a gallery with the record's digest of it.

        Args:
            gallery_id: the gallery; it need not be in the record.
            drop: whether to drop what is not right.
        """
        head = next((head for head in self._galleries.heads() if head.gallery == gallery_id), None)
        right: list[str] = []
        stale: list[str] = []
        damaged: list[str] = []
        for space, keys in self._listed(gallery_id).items():
            if head is None or space != space_of(head):
                stale += keys.keys() - BOOKS
                if drop:
                    self._entries.unlink(list(keys.values()))
                continue
            wrong = []
            for name, backing in self._backed(head, keys):
                if backing is None:
                    stale.append(name)
                    wrong.append(name)
                elif not backing.fits(self._entries.get(space, {name: backing.size}).get(name, b"")):
                    damaged.append(name)
                    wrong.append(name)
                else:
                    right.append(name)
            if drop:
                self._entries.drop(space, wrong)
        return Holding(tuple(sorted(right)), tuple(sorted(stale)), tuple(sorted(damaged)))

    def _listed(self, gallery_id: str = "") -> dict[str, dict[str, bytes]]:
        """Keys by space and name, of one gallery or of all."""
        found: dict[str, dict[str, bytes]] = defaultdict(dict)
        for key in self._entries.keys(f"{PREFIX}{{{gallery_id}/" if gallery_id else PREFIX):
            space, _, name = key.decode(errors="surrogateescape").rpartition(":")
            found[space][name] = key
        return found

    def _backed(self, head: Head, names: Iterable[str]) -> Iterator[tuple[str, Fingerprint | None]]:
        """Each name of an entry with what the record says of it."""
        listed = [name for name in names if name not in BOOKS]
        for start in range(0, len(listed), _BATCH):
            part = listed[start : start + _BATCH]
            numbers: dict[str, dict[int, str]] = {"t": {}, "b": {}}
            for name in part:
                if match := _NAME.fullmatch(name):
                    numbers[match[1]][int(match[2])] = name
            known = self._galleries.fingerprints(head.gallery, numbers["t"], numbers["b"])
            backing: dict[str, Fingerprint] = {}
            if known is not None and space_of(known.head) == space_of(head):
                backing |= {numbers["t"][slot]: found for slot, found in known.templates.items()}
                backing |= {numbers["b"][number]: found for number, found in known.blocks.items()}
            yield from ((name, backing.get(name)) for name in part)
