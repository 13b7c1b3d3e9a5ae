"""Erased templates, replaced blocks and deleted galleries leave Redis: within a second, or as soon as it answers again.

The record is the queue. It is looked at as matching looks at it, so nothing has to be told, no writer can forget to,
and what Redis did not take is asked of it again. After a failure, or when another Redis server answers than before, all
that Redis holds is compared with the record: it may have come back with what had been dropped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import structlog

from sealface.runtime.looking import Looking
from sealface.storage.cache import block_name, space_of, template_name
from sealface.storage.entries import CacheUnavailable, Entries
from sealface.storage.galleries import Galleries, GalleryNotFound, Head
from sealface.storage.sweep import Sweep

_log = structlog.get_logger("sealface.cache")
_LOOK_S = 0.5
_SWEEP_S = 600.0


@dataclass
class _Seen:
    """A gallery as of the last look, and the numbers of blocks that are gone from Redis for good."""

    head: Head
    gone: set[int] = field(default_factory=set)


class Invalidation(Looking):
    """Looks for changes in the background.

    Args:
        galleries: the record.
        entries: what Redis holds.
    """

    def __init__(self, galleries: Galleries, entries: Entries) -> None:
        super().__init__("invalidation", _LOOK_S, told=(CacheUnavailable,))
        self._galleries = galleries
        self._entries = entries
        self._sweep = Sweep(galleries, entries)
        self._servers: frozenset[str] | None = None
        self._swept = 0.0
        self._seen: dict[str, _Seen] = {}

    def look(self) -> None:
        """Drop what has left the record since the last look.

        Raises:
            CacheUnavailable: Redis did not take it; the next look begins with all that it holds.
        """
        servers, self._servers = self._servers, None
        answering = self._entries.servers()
        heads = {head.gallery: head for head in self._galleries.heads()}
        if answering != servers or time.monotonic() - self._swept > _SWEEP_S:
            dropped = self._sweep.drop_stale()
            self._swept = time.monotonic()
            self._seen = {name: _Seen(head) for name, head in heads.items()}
            if dropped:
                _log.info("stale entries dropped from Redis", entries=dropped)
        for name in self._seen.keys() - heads.keys():
            self._entries.clear(space_of(self._seen[name].head))
            del self._seen[name]
        for name, head in heads.items():
            seen = self._seen.get(name)
            if seen is not None and space_of(seen.head) != space_of(head):  # made anew, or under another key version
                self._entries.clear(space_of(seen.head))
                seen = None
            self._seen[name] = seen or _Seen(replace(head, epoch=head.first_epoch))
            if self._seen[name].head.epoch != head.epoch:
                self._follow(self._seen[name], head)
        self._servers = answering

    def _follow(self, seen: _Seen, head: Head) -> None:
        """Drop what one gallery has lost."""
        try:
            now = self._galleries.placement(head.gallery, seen.head.epoch)
        except GalleryNotFound:  # the next look finds it gone
            return
        if now.first_epoch != head.first_epoch:
            return
        gone = set(range(1, head.next_block)) - now.blocks.keys() - seen.gone
        names = [template_name(slot) for slot in now.given.tolist()] + [block_name(number) for number in gone]
        self._entries.drop(space_of(head), names)
        seen.head, seen.gone = replace(head, epoch=now.epoch), seen.gone | gone
