"""A record whose ciphertexts are known, and caches of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import redis

from sealface.enrollment.leases import Lease, Leases
from sealface.enrollment.record import Record
from sealface.storage.cache import Cache, space_of
from sealface.storage.entries import Entries
from sealface.storage.galleries import Galleries
from sealface.storage.redis_address import RedisAddress
from tests.conftest import execute, select
from tests.storage.conftest import new_gallery, open_quickly

SIZE = 5000
BLOCK = 3 * (1 << 19) + 17  # several pieces, the last one short


class Kept:
    """A gallery `door` in the record, and what each of its slots and blocks holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        engine = open_quickly(path)
        self.record, self.galleries, self.leases = Record(engine), Galleries(engine), Leases(engine)
        self.record.create_gallery(new_gallery())
        self.templates: dict[int, bytes] = {}
        self.blocks: dict[int, tuple[list[int], bytes]] = {}

    def enroll(self, count: int, size: int = SIZE) -> list[int]:
        slots = []
        for _ in range(count):
            data, name = os.urandom(size), f"r{len(self.templates)}-{os.urandom(4).hex()}"
            slot = self.record.enroll("door", "keys/door/versions/1", f"s{name}", data, name).slot
            self.templates[slot] = data
            slots.append(slot)
        return slots

    def erase(self, slot: int) -> None:
        ((subject,),) = select(self.path, "SELECT subject FROM templates WHERE slot = ?", slot)
        self.record.erase_subject("door", subject)
        del self.templates[slot]

    def lease(self) -> Lease:
        taken = self.leases.take("door")
        assert taken is not None
        return taken

    def import_block(self, count: int = 3, size: int = BLOCK) -> int:
        data, name = os.urandom(size), os.urandom(4).hex()
        first = self.record.import_block(
            "door", "keys/door/versions/1", [f"{name}-{i}" for i in range(count)], 8, 12, data, name
        ).slot
        number = max(self.blocks, default=0) + 1
        self.blocks[number] = ([*range(first, first + count)] + [0] * (12 - count), data)
        return number

    @property
    def space(self) -> str:
        return space_of(self.galleries.heads()[0])

    def lose_ciphertexts(self) -> None:
        """From now on the record has digests alone: what is read right comes from elsewhere."""
        execute(self.path, "UPDATE template_ciphertexts SET ciphertext = zeroblob(length(ciphertext))")
        execute(self.path, "UPDATE block_ciphertexts SET ciphertext = zeroblob(length(ciphertext))")


def open_cache(kept: Kept, url: str, limit: int = 1 << 30) -> Cache:
    return Cache(kept.galleries, Entries(RedisAddress.parse(url), limit))


def counts(cache: Cache) -> tuple[int, int, int, int]:
    return cache.hits, cache.misses, cache.healed, cache.errors


def read_all(kept: Kept, cache: Cache) -> None:
    """All is read, and is right."""
    assert dict(cache.ciphertexts("door", kept.templates)) == kept.templates
    for number, (slots, data) in kept.blocks.items():
        found = cache.block("door", number)
        assert found is not None
        assert (found[0].tolist(), found[0].dtype, found[1]) == (slots, np.uint32, data)


def held(raw: redis.Redis, space: str) -> set[str]:
    return {key.decode().rpartition(":")[2] for key in raw.scan_iter(f"{space}:[tb]*")}
