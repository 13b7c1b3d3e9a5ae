"""What a worker holds, and what it has had from its cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """What is held of one gallery.

    Attributes:
        gallery: its id.
        nbytes: bytes of memory.
        blocks: how many, groups of open templates among them.
    """

    gallery: str
    nbytes: int
    blocks: int


@dataclass(frozen=True)
class Cached:
    """Ciphertexts since the worker started; see `storage.cache.Cache`."""

    hits: int = 0
    misses: int = 0
    healed: int = 0
    errors: int = 0


@dataclass(frozen=True)
class Usage:
    """A worker at one moment.

    Attributes:
        limit: bytes that all shards may take.
        shards: what is held.
        cached: None without a cache.
    """

    limit: int
    shards: tuple[Shard, ...]
    cached: Cached | None = None
