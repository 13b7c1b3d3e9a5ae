"""Encrypted templates and sealed blocks, from Redis where it has them and from the record where not.

What Redis gives is never believed: every value must fit the digest in the record, which is asked first. So a wrong or
foreign value is a miss, an erased template is not found however long Redis keeps it, and Redis may be lost, emptied or
full at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from sealface.storage.digests import Fingerprint
from sealface.storage.entries import PREFIX, CacheUnavailable, Entries
from sealface.storage.galleries import Fingerprints, Galleries, Head
from sealface.storage.redis_address import RedisAddress

_log = structlog.get_logger("sealface.cache")
_BATCH = 64  # templates: 4 MB


@dataclass(frozen=True)
class CacheConfig:
    """What a cache needs.

    Attributes:
        address: of Redis.
        limit: bytes of one gallery under one key version that Redis may hold.
    """

    address: RedisAddress
    limit: int = 4 << 30


def open_templates(galleries: Galleries, config: CacheConfig | None) -> Galleries | Cache:
    """Where ciphertexts are read: through a cache, if there is one."""
    return galleries if config is None else Cache(galleries, Entries(config.address, config.limit))


def space_of(head: Head) -> str:
    """Where the ciphertexts of a gallery under its key version are; a Redis Cluster has them on one node."""
    return f"{PREFIX}{{{head.gallery}/{head.first_epoch}/{head.key_version}}}"


def template_name(slot: int) -> str:
    """Name of a template in its gallery's space."""
    return f"t{slot}"


def block_name(number: int) -> str:
    """Name of a sealed block there."""
    return f"b{number}"


class Cache:
    """Reads ciphertexts as `Galleries` does, and with the same errors: those of Redis are not among them.

    Args:
        galleries: the record.
        entries: what Redis holds.

    Attributes:
        hits: ciphertexts that Redis had.
        misses: those it had not.
        healed: those it had otherwise than the record; they were overwritten.
    """

    def __init__(self, galleries: Galleries, entries: Entries) -> None:
        self._galleries = galleries
        self._entries = entries
        self._lock = threading.Lock()
        self.hits = self.misses = self.healed = 0

    @property
    def errors(self) -> int:
        """How often Redis did not answer, was slow, or refused."""
        return self._entries.errors

    def block(
        self, gallery_id: str, number: int, key_version: str | None = None
    ) -> tuple[NDArray[np.uint32], bytes] | None:
        """See `Galleries.block`."""
        if not self._entries.answering:
            return self._galleries.block(gallery_id, number, key_version)
        known = self._galleries.fingerprints(gallery_id, numbers=[number])
        if known is None or number not in known.blocks:
            return None
        version = known.head.key_version
        if key_version not in (None, version):  # that Redis does not keep, or no more
            return self._galleries.block(gallery_id, number, key_version)

        def read(_: Collection[int]) -> dict[int, bytes]:
            found = self._galleries.block(gallery_id, number, version)
            return {} if found is None else {number: found[1]}

        found = self._through(known, block_name, known.blocks, read)
        return (known.blocks[number].slots, found[number]) if found else None

    def ciphertexts(
        self, gallery_id: str, slots: Iterable[int], key_version: str | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """See `Galleries.ciphertexts`."""
        wanted = sorted(slots)
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            known = self._galleries.fingerprints(gallery_id, part) if self._entries.answering else None
            if known is None or key_version not in (None, known.head.key_version):
                yield from self._galleries.ciphertexts(gallery_id, part, key_version)
                continue

            def read(missing: Collection[int], version: str = known.head.key_version) -> dict[int, bytes]:
                return dict(self._galleries.ciphertexts(gallery_id, missing, version))

            yield from sorted(self._through(known, template_name, known.templates, read).items())

    def _through(
        self,
        known: Fingerprints,
        name: Callable[[int], str],
        wanted: Mapping[int, Fingerprint],
        read: Callable[[Collection[int]], dict[int, bytes]],
    ) -> dict[int, bytes]:
        """Ciphertexts by number: what Redis has, and the rest from the record and then to Redis."""
        space = space_of(known.head)
        try:
            held = self._entries.get(space, {name(number): fingerprint.size for number, fingerprint in wanted.items()})
        except CacheUnavailable:
            return read(wanted)
        found = {number: held[name(number)] for number in wanted if name(number) in held}
        right = {number: data for number, data in found.items() if wanted[number].fits(data)}
        damaged = len(found) - len(right)
        with self._lock:
            self.hits += len(right)
            self.misses += len(wanted) - len(found)
            self.healed += damaged
        if damaged:
            _log.warning("cached ciphertexts were damaged", entries=damaged, message="read from the record")
        missing = wanted.keys() - right.keys()
        if missing:
            new = read(missing)
            self._store(known, name, {number: new[number] for number in missing & new.keys()})
            right |= new
        return right

    def _store(self, known: Fingerprints, name: Callable[[int], str], values: Mapping[int, bytes]) -> None:
        """To Redis on a lease; kept for long if the record has it still, for then whoever erases it finds it there."""
        space, head = space_of(known.head), known.head
        try:
            self._entries.put(space, {name(number): data for number, data in values.items()})
            now = self._galleries.fingerprints(
                head.gallery,
                values.keys() & known.templates.keys(),
                values.keys() & known.blocks.keys(),
            )
            same = now is not None and space_of(now.head) == space
            live = {*now.templates, *now.blocks} if now is not None and same else set()
            self._entries.keep(space, [name(number) for number in values.keys() & live])
            self._entries.drop(space, [name(number) for number in values.keys() - live])
        except CacheUnavailable:
            pass
