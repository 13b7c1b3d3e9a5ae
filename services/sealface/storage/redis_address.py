"""Addresses of Redis: one server, a cluster, or whatever server a sentinel says is the master."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from sealface.errors import InvalidInput

_FORMS = (
    "redis://[user:password@]host:port/db, redis+cluster://host:port,host:port or "
    "redis+sentinel://host:port,host:port/service[/db]; rediss for TLS"
)
_PORTS = {"": 6379, "cluster": 6379, "sentinel": 26379}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINELS_OWN = {"sentinel_username": "username", "sentinel_password": "password"}
_WAIT_S = 0.5  # a cache that takes longer is slower than none


class WrongRedisAddress(InvalidInput):
    """The address is none of a Redis."""


@dataclass(frozen=True)
class RedisAddress:
    """Where Redis is, and who asks.

    Attributes:
        kind: empty for one server, or `cluster`, or `sentinel`.
        nodes: host and port of the server, or of some nodes of the cluster, or of the sentinels.
        service: the sentinels' name of the master.
        options: user, password, database and TLS, as redis-py names them.
        sentinel_options: the same for the sentinels themselves.
    """

    kind: str
    nodes: tuple[tuple[str, int], ...]
    service: str
    options: Mapping[str, Any] = field(repr=False)
    sentinel_options: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """An address as a URL.

        Args:
            url: `redis://[user:password@]host:port/db`, `redis+cluster://host:port,host:port`, or
                `redis+sentinel://host:port,host:port/service[/db]`; `rediss` in place of `redis` for TLS. The query may
                name files, `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`, and what sentinels want to know,
                `sentinel_username` and `sentinel_password`.

        Raises:
            WrongRedisAddress: it is none of these, or names a file that cannot be read.
        """
        try:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            scheme, _, kind = parts.scheme.partition("+")
            nodes = _nodes(parts, _PORTS[kind])
            service, database = _path(parts, kind)
        except (ValueError, KeyError):
            raise WrongRedisAddress(f"no such Redis address: use {_FORMS}") from None
        known = {*_FILES} if scheme == "rediss" else set()
        known |= _SENTINELS_OWN.keys() if kind == "sentinel" else set()
        if scheme not in ("redis", "rediss") or query.keys() - known:
            raise WrongRedisAddress(f"no such Redis address: use {_FORMS}")
        for name in _FILES:
            if name in query and not os.access(query[name], os.R_OK):
                raise WrongRedisAddress(f"the file that the Redis address names as {name} cannot be read", field=name)
        tls: dict[str, Any] = {"ssl": True} if scheme == "rediss" else {}
        tls |= {name: query[name] for name in _FILES if name in query}
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        options = tls | _named(username=unquote(user), password=unquote(password), db=database)
        asked = {own: query[name] for name, own in _SENTINELS_OWN.items() if name in query}
        return cls(kind, nodes, service, options, tls | asked)

    @property
    def files(self) -> list[str]:
        """Files that a process reads to connect."""
        return [self.options[name] for name in _FILES if name in self.options]

    def connect(self) -> Any:
        """A client. It asks once, waits briefly, and says what went wrong: trying again is its user's.

        Raises:
            RedisError, RedisClusterException: the cluster does not answer; one server is not asked yet.
        """
        once = Retry(NoBackoff(), 0)
        limits: dict[str, Any] = {
            "socket_timeout": _WAIT_S,
            "socket_connect_timeout": _WAIT_S,
            "socket_read_size": 1 << 18,
            "protocol": 2,
            "driver_info": None,
        }
        if self.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in self.nodes]  # type: ignore[no-untyped-call]
            return RedisCluster(startup_nodes=nodes, retry=once, **limits, **self.options)
        limits["retry"] = once
        if self.kind == "sentinel":
            own = {**limits, **self.sentinel_options}
            sentinels: Any = Sentinel(self.nodes, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
            return sentinels.master_for(self.service, **limits, **self.options)
        ((host, port),) = self.nodes
        return Redis(host=host, port=port, **limits, **self.options)


def _nodes(parts: SplitResult, default: int) -> tuple[tuple[str, int], ...]:
    """Hosts and ports.

    Raises:
        ValueError: there are none, or several where one is meant.
    """
    found = []
    for named in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{named}")
        if not one.hostname or one.path:
            raise ValueError(named)
        found.append((one.hostname, one.port or default))
    if len(found) > 1 and "+" not in parts.scheme:
        raise ValueError("several")
    return tuple(found)


def _path(parts: SplitResult, kind: str) -> tuple[str, int]:
    """The sentinels' name of the master, and the number of the database.

    Raises:
        ValueError: they are not there, or too much is.
    """
    words = [unquote(word) for word in parts.path.strip("/").split("/") if word]
    service = words.pop(0) if kind == "sentinel" and words else ""
    if (kind == "sentinel") != bool(service) or len(words) > (kind != "cluster") or parts.fragment:
        raise ValueError(parts.path)
    if words and not words[0].isdecimal():
        raise ValueError(words[0])
    return service, int(words[0]) if words else 0


def _named(**values: str | int) -> dict[str, Any]:
    """What is not left out."""
    return {name: value for name, value in values.items() if value}
