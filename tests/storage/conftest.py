from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa
from deploy.servers import LocalServer

from deploy import servers
from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.enrollment.record import NewGallery, Record
from sealface.storage.cache import Cache
from sealface.storage.database import open_database, open_sqlite, reading
from sealface.storage.galleries import Galleries
from sealface.storage.record import metadata, pseudonym_key
from sealface.storage.schema import RECORD, open_record
from tests.storage import redis_servers

if TYPE_CHECKING:
    from tests.storage.cached import Kept


def new_gallery(
    gallery_id: str = "door",
    key: str | None = None,
    public_key: bytes = b"public",
    evaluation_keys: Mapping[int, bytes] | None = None,
    layout: Layout | None = None,
    recognition: bytes = b"recognition",
) -> NewGallery:
    return NewGallery(
        id=gallery_id,
        key_version=f"keys/{key or gallery_id}/versions/1",
        managed=True,
        public_key=public_key,
        evaluation_keys=evaluation_keys or {},
        layout=layout or Layout.of("", 128, Metric.COSINE, 1.0),
        privacy_level=2,
        fusion=1,
        recognition=recognition,
    )


def made(path: Path) -> sa.Engine:
    """An empty record in a file, made at once; what migrations make is the same (test_schema)."""
    engine = open_sqlite(path, metadata)
    with engine.begin() as transaction:
        transaction.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        transaction.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (RECORD.newest(),))
        transaction.execute(sa.insert(pseudonym_key).values(secret=os.urandom(32)))
    return engine


def open_quickly(path: Path) -> sa.Engine:
    """The record without waiting for the disk, for tests that write much and do not crash."""
    engine = made(path)
    engine.dispose()

    @sa.event.listens_for(engine, "connect")
    def _relax(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    return engine


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[LocalServer]:
    """A server that does not wait for its disk, with a migrated database to copy."""
    with servers.postgresql("fsync=off", "synchronous_commit=off") as server:
        engine = open_database(server.url)
        RECORD.migrate(engine)
        engine.dispose()
        yield server


def _database(server: LocalServer, name: str) -> str:
    return f"{server.url.rpartition('/')[0]}/{name}"


@pytest.fixture
def postgresql_url(postgresql_server: LocalServer) -> Iterator[str]:
    """A migrated database of its own."""
    name = f"t{uuid.uuid4().hex[:12]}"
    admin = open_database(_database(postgresql_server, "postgres"))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE sealface")
    admin.dispose()
    return _database(postgresql_server, name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.db"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def engine(request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """An empty record, in each database that is supported."""
    if request.param == "sqlite":
        opened = made(request.getfixturevalue("path"))
    else:
        opened = open_record(Path(), request.getfixturevalue("postgresql_url"))
    yield opened
    opened.dispose()


def dump(engine: sa.Engine) -> dict[str, list[Any]]:
    """All rows by table, but for who works on what, and the log of it."""
    with reading(engine).begin() as transaction:
        return {
            table.name: sorted(tuple(row) for row in transaction.execute(sa.select(table)))
            for table in metadata.sorted_tables
            if table.name not in ("leases", "audit", "pseudonym_key")
        }


def execute(engine: sa.Engine, statement: str, *values: Any) -> int:
    """Change a record behind its service's back; returns how many rows."""
    if engine.dialect.name == "postgresql":
        statement = statement.replace("?", "%s")
    with engine.begin() as transaction:
        return transaction.exec_driver_sql(statement, values).rowcount


@pytest.fixture
def record(engine: sa.Engine) -> Record:
    return Record(engine)


@pytest.fixture
def galleries(engine: sa.Engine) -> Galleries:
    return Galleries(engine)


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[LocalServer]:
    """A Redis that no test kills."""
    with servers.redis() as server:
        yield server


@pytest.fixture
def server(shared_redis: LocalServer) -> LocalServer:
    """A Redis that is empty."""
    with redis_servers.client(shared_redis) as one:
        one.flushall()
        one.config_set("maxmemory", 0)
    return shared_redis


@pytest.fixture
def raw(server: LocalServer) -> Iterator[redis.Redis]:
    """Redis itself."""
    with redis_servers.client(server) as one:
        yield one


@pytest.fixture
def kept(path: Path) -> Kept:
    """A gallery whose ciphertexts are known."""
    from tests.storage.cached import Kept

    return Kept(path)


@pytest.fixture
def cache(kept: Kept, server: LocalServer) -> Cache:
    """A cache of it."""
    from tests.storage.cached import open_cache

    return open_cache(kept, server.url)
