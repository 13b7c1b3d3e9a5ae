"""Migrations: they make what the program expects, from nothing and from what was there before them."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from sealface.enrollment.record import Record
from sealface.storage import schema
from sealface.storage.database import open_database
from sealface.storage.digests import block_digest, sha256
from sealface.storage.galleries import Galleries
from sealface.storage.record import metadata
from sealface.storage.schema import RECORD
from tests.storage.conftest import dump, new_gallery

NOW = datetime.now(UTC).replace(tzinfo=None)


def differences(engine):
    """What the program expects otherwise than the database has it."""
    plain = sa.create_engine(engine.url)  # SQLAlchemy reads PostgreSQL's catalogue as text
    with plain.begin() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    plain.dispose()
    return found


@pytest.fixture
def empty(engine):
    """A database without tables."""
    with engine.begin() as transaction:
        metadata.drop_all(transaction)
        transaction.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    return engine


def test_migrations_make_the_tables_that_the_program_expects(empty):
    assert RECORD.revision(empty) is None
    assert RECORD.migrate(empty) == (None, RECORD.newest())
    assert RECORD.revision(empty) == RECORD.newest()
    assert differences(empty) == []
    RECORD.check(empty)
    Record(empty).create_gallery(new_gallery())
    assert Galleries(empty).get("door").id == "door"


def test_migrating_again_changes_nothing(empty):
    RECORD.migrate(empty)
    Record(empty).create_gallery(new_gallery())
    before = dump(empty)
    assert RECORD.migrate(empty) == (RECORD.newest(), RECORD.newest())
    assert dump(empty) == before


def test_several_at_once_migrate_once(empty):
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: RECORD.migrate(empty), range(6)))
    assert sorted(str(before) for before, _ in found) == [*[RECORD.newest()] * 5, "None"]


def test_a_record_from_before_migrations_is_brought_up_to_date(tmp_path):
    first = open_database(f"sqlite:///{tmp_path / 'record.db'}")
    config = RECORD._config
    with first.begin() as connection:  # as it was: the tables of the first revision, and no word of it
        schema.command.upgrade(config(connection), "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
    assert RECORD.revision(first) == "0001"
    first.dispose()
    opened = schema.open_record(tmp_path)
    assert RECORD.revision(opened) == RECORD.newest()
    assert differences(opened) == []


def test_ciphertexts_from_before_key_versions_had_tables_are_taken_over(empty):
    with empty.begin() as connection:
        schema.command.upgrade(RECORD._config(connection), "0002")
        for name, key in (("door", "keys/door/versions/1"), ("hall", "keys/hall/versions/3")):
            table = {column["name"]: column for column in sa.inspect(connection).get_columns("galleries")}
            values = {"id": name, "key_version": key, "custody": "managed", "metric": "cosine", "largest_norm": 1.0}
            values |= {"public_key": b"p" + name.encode(), "public_key_digest": sha256(b"p" + name.encode())}
            values |= {"parameter_set": "ckks-n4096-v1", "dimension": 128, "recognition": b"", "created": NOW}
            values |= {column: 1 for column in table if column not in values and column != "retention_s"}
            insert(connection, "galleries", values)
            insert(
                connection, "gallery_evaluation_keys", of(name, galois_element=3, material=b"g", digest=sha256(b"g"))
            )
            template = {"subject": "s", "lead": 1, "epoch": 2, "created": NOW}
            single = template | {"ciphertext": b"t" + name.encode(), "digest": sha256(b"t" + name.encode())}
            insert(connection, "templates", of(name, slot=1, **single))
            insert(connection, "templates", of(name, slot=2, block=1, **template))
            slots = np.array([2], "<u4").tobytes()
            block = {"columns": 4, "slots": slots, "imported": True, "erased": 0, "created": NOW}
            sealed = {"ciphertext": b"b", "digest": block_digest(4, slots, b"b")}
            insert(connection, "blocks", of(name, number=1, **block, **sealed))
    assert RECORD.migrate(empty) == ("0002", RECORD.newest())
    assert differences(empty) == []
    galleries = Galleries(empty)
    for name, key in (("door", "keys/door/versions/1"), ("hall", "keys/hall/versions/3")):
        for version in (None, key):
            assert galleries.public_key(name, version) == b"p" + name.encode()
            assert galleries.evaluation_keys(name, version) == {3: b"g"}
            assert dict(galleries.ciphertexts(name, [1, 2], version)) == {1: b"t" + name.encode()}
            assert galleries.block(name, 1, version)[1] == b"b"
        assert galleries.homes(name, [1, 2]) == {1: None, 2: 1}
        assert dict(galleries.ciphertexts(name, [1, 2], "keys/other/versions/1")) == {}


def of(gallery, **values):
    return {"gallery": gallery, **values}


def insert(connection, table, values):
    columns = sa.table(table, *(sa.column(name) for name in values))
    connection.execute(sa.insert(columns).values(values))


def test_a_service_refuses_a_database_of_another_schema(empty):
    with pytest.raises(schema.SchemaOutOfDate, match="sealface migrate"):
        RECORD.check(empty)
    RECORD.migrate(empty)
    with empty.begin() as transaction:
        transaction.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(schema.SchemaOutOfDate) as caught:
        RECORD.check(empty)
    assert caught.value.metadata == {"found": "9999", "needed": RECORD.newest()}


@pytest.mark.servers
def test_a_named_database_is_not_migrated_by_a_service(postgresql_url, tmp_path):
    engine = open_database(postgresql_url)
    with engine.begin() as transaction:
        transaction.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(schema.SchemaOutOfDate):
        schema.open_record(tmp_path, postgresql_url)
    assert not list(tmp_path.iterdir())
    engine.dispose()


def test_the_embedded_record_is_made_on_opening(tmp_path):
    engine = schema.open_record(tmp_path / "compute")
    assert sa.inspect(engine).has_table("galleries")
    assert (tmp_path / "compute").stat().st_mode & 0o777 == 0o700
