"""Values in Redis: kept by name in a space of their own, within a bound for each space, and for a limited time.

A value is put on a short lease; only who has found it right afterwards keeps it longer. So what a process put too late,
or did not live to look at again, goes by itself. Every command is asked once, with a short wait; after a failure Redis
is left alone for a second, so that a dead one costs a search nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from redis.exceptions import AskError, ClusterError, ReadOnlyError, ResponseError, TryAgainError

from sealface.errors import Unavailable
from sealface.storage.redis_address import RedisAddress

_T = TypeVar("_T")
_log = structlog.get_logger("sealface.cache")
PREFIX = "sealface:"
BOOKS = frozenset(("used", "sizes"))
"""Names, in each space, under which its books are kept."""
LEASE_MS = 60_000
KEPT_MS = 24 * 3600 * 1000
_RETRY_S = 1.0
_SLOW_S = 1.0
_PIECE = 1 << 19  # a large reply in pieces takes half the time
_NAMES = 256  # in one command
_ELSEWHERE = (ReadOnlyError, ClusterError, AskError, TryAgainError)  # who refuses is not whom to ask

# Names by when they go, and their sizes, with the sum under an empty name. Both are begun anew where one is lost.
_LEDGER = """
local used, sizes, prefix = KEYS[1], KEYS[2], ARGV[1]
if redis.call('TYPE', used).ok ~= 'zset' or redis.call('TYPE', sizes).ok ~= 'hash' then
  redis.call('DEL', used, sizes)
end
local function resize(name, size)
  local was = tonumber(redis.call('HGET', sizes, name) or 0)
  if size > 0 then redis.call('HSET', sizes, name, size) else redis.call('HDEL', sizes, name) end
  if size ~= was then redis.call('HINCRBY', sizes, '', size - was) end
end
local function forget(name)
  redis.call('ZREM', used, name)
  resize(name, 0)
end
"""
# The least recently used go first: those that would expire first, leases before all others.
_KEEP = (
    _LEDGER
    + """
local limit, life = tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 3, #KEYS do
  local name, size = ARGV[i + 1], 0
  if redis.call('PEXPIRE', KEYS[i], life) == 1 then size = redis.pcall('STRLEN', KEYS[i]) end
  if type(size) == 'number' and size > 0 then
    redis.call('ZADD', used, now + life, name)
    resize(name, size)
  else
    forget(name)
  end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', used, '-inf', now, 'LIMIT', 0, 1000)) do forget(name) end
while tonumber(redis.call('HGET', sizes, '') or 0) > limit do
  local name = redis.call('ZPOPMIN', used)[1]
  if not name then redis.call('DEL', sizes) break end
  redis.call('UNLINK', prefix .. name)
  resize(name, 0)
end
redis.call('PEXPIRE', used, life)
redis.call('PEXPIRE', sizes, life)
"""
)
_DROP = (
    _LEDGER
    + """
for i = 3, #KEYS do
  redis.call('UNLINK', KEYS[i])
  forget(ARGV[i - 1])
end
"""
)


class CacheUnavailable(Unavailable):
    """Redis does not answer, or refuses."""


class Entries:
    """Values in Redis. Safe for several threads.

    Every method that asks Redis raises `CacheUnavailable` if it does not answer, or did not a moment ago.

    Args:
        address: of Redis.
        limit: bytes that the values of one space may take; those used least recently leave.

    Attributes:
        errors: how often Redis did not answer, was slow, or refused.
    """

    def __init__(self, address: RedisAddress, limit: int) -> None:
        self._address = address
        self._limit = limit
        self._client: Any = None
        self._lock = threading.Lock()
        self._down = self._full = False
        self._ask_at = self._put_at = 0.0
        self.errors = 0

    def get(self, space: str, sizes: Mapping[str, int]) -> dict[str, bytes]:
        """What is held of some names, each as long as it should be or shorter; what is held is used now."""

        def ask(client: Any) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            self._keep(pipeline, space, sizes)
            for name, size in sizes.items():
                for start in range(0, size, _PIECE):
                    pipeline.getrange(_key(space, name), start, min(start + _PIECE, size) - 1)
            kept, *pieces = pipeline.execute(raise_on_error=False)
            self._refused([kept])
            return [_piece(piece) for piece in pieces]

        found: dict[str, bytes] = {}
        pieces = iter(self._ask(ask))
        for name, size in sizes.items():
            own = [next(pieces) for _ in range(0, size, _PIECE)]
            if any(own):
                found[name] = b"".join(own)
        return found

    def put(self, space: str, values: Mapping[str, bytes]) -> None:
        """Hold these for the time of a lease. A full Redis takes none."""
        fitting = {name: data for name, data in values.items() if len(data) <= self._limit}

        def ask(client: Any) -> None:
            pipeline = client.pipeline(transaction=False)
            for name, data in fitting.items():
                pipeline.set(_key(space, name), data, px=LEASE_MS)
            self._refused(pipeline.execute(raise_on_error=False))

        if fitting and time.monotonic() >= self._put_at:
            self._ask(ask)

    def keep(self, space: str, names: Collection[str]) -> None:
        """Hold what is held of these for long; within the bound."""
        if names:
            self._ask(lambda client: self._keep(client, space, names))

    def drop(self, space: str, names: Sequence[str]) -> None:
        """Hold these no more."""

        def ask(client: Any) -> None:
            for part in _parts(names):
                client.execute_command("EVAL", _DROP, *_books(space, part), "", *part)

        if names:
            self._ask(ask, limited=False)

    def clear(self, space: str) -> None:
        """Hold nothing of a space."""
        self.unlink(self.keys(f"{space}:"))

    def keys(self, begin: str = PREFIX) -> list[bytes]:
        """All keys that begin so: of values, and of their books."""
        return self._ask(lambda client: list(client.scan_iter(f"{begin}*", count=1000)), limited=False)

    def unlink(self, keys: Sequence[bytes]) -> None:
        """Hold these keys no more, whatever they are."""

        def ask(client: Any) -> None:
            for part in _parts(keys):
                client.unlink(*part)

        if keys:
            self._ask(ask, limited=False)

    def nbytes(self, space: str) -> int:
        """Bytes that the values of a space take, as they are counted."""
        return int(self._ask(lambda client: client.hget(_key(space, "sizes"), "")) or 0)

    def servers(self) -> frozenset[str]:
        """What tells the servers that answer from those that did before a failure or a restart."""

        def ask(client: Any) -> frozenset[str]:
            if self._address.kind == "cluster":
                found = client.info("server", target_nodes=client.PRIMARIES)
                return frozenset(one["run_id"] for one in (found.values() if "run_id" not in found else [found]))
            return frozenset([client.info("server")["run_id"]])

        return self._ask(ask)

    @property
    def answering(self) -> bool:
        """Whether it is worth asking now."""
        return not self._down or time.monotonic() >= self._ask_at

    # by its name: a pipeline to a cluster has no method for it
    def _keep(self, client: Any, space: str, names: Collection[str]) -> None:
        client.execute_command("EVAL", _KEEP, *_books(space, names), f"{space}:", self._limit, KEPT_MS, *names)

    def _refused(self, answers: list[Any]) -> None:
        """Put nothing for a while after Redis has refused to write; a master that is none any more is asked for."""
        refusals = [answer for answer in answers if isinstance(answer, Exception)]
        for refusal in refusals:
            if not isinstance(refusal, ResponseError) or isinstance(refusal, _ELSEWHERE):
                raise refusal
        with self._lock:
            full, self._full = self._full, bool(refusals)
            if refusals:
                self.errors += 1
                self._put_at = time.monotonic() + _RETRY_S
        if refusals and not full:
            _log.warning("Redis takes nothing more", reason=type(refusals[0]).__name__)

    def _ask(self, call: Callable[[Any], _T], limited: bool = True) -> _T:
        with self._lock:
            if self._down:
                if time.monotonic() < self._ask_at:
                    raise CacheUnavailable("Redis does not answer: try again")
                self._ask_at = time.monotonic() + _RETRY_S  # others do not wait with this one
            client = self._client
        started = time.monotonic()
        try:
            if client is None:
                client = self._address.connect()
            found = call(client)
        except Exception as error:  # whatever the client makes of what a broken server says
            self._failed(None, type(error).__name__)
            raise CacheUnavailable("Redis does not answer: try again") from None
        if limited and time.monotonic() - started > _SLOW_S:
            self._failed(client, "slow")
        else:
            self._answered(client)
        return found

    def _failed(self, client: Any, reason: str) -> None:
        with self._lock:
            down, self._down = self._down, True
            self._client = client  # begun anew, where it failed
            self._ask_at = time.monotonic() + _RETRY_S
            self.errors += 1
        if not down:
            _log.warning("Redis is not used", reason=reason, message="the record is read")

    def _answered(self, client: Any) -> None:
        with self._lock:
            down, self._down = self._down, False
            self._client = client
        if down:
            _log.info("Redis is used again")


def _piece(answer: Any) -> bytes:
    """What was read; of a value of another type something that is damaged."""
    if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
        return b"damaged"
    if isinstance(answer, Exception):
        raise answer
    return bytes(answer)


def _key(space: str, name: str) -> str:
    return f"{space}:{name}"


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _NAMES):
        yield items[start : start + _NAMES]


def _books(space: str, names: Collection[str]) -> tuple[Any, ...]:
    """The keys of a script, after their number."""
    return 2 + len(names), _key(space, "used"), _key(space, "sizes"), *(_key(space, name) for name in names)
