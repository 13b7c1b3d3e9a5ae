import os
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from deploy import servers
from sealface.storage import database
from sealface.storage.database import (
    RecordDamaged,
    RecordUnavailable,
    WrongDatabase,
    forget,
    in_utc,
    open_database,
    open_sqlite,
    reading,
)

metadata = sa.MetaData()
numbers = sa.Table("numbers", metadata, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.Integer))
blobs = sa.Table("blobs", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("data", sa.LargeBinary))


@pytest.fixture
def engine(path):
    engine = open_sqlite(path, metadata)
    with engine.begin() as transaction:
        transaction.execute(sa.insert(numbers).values(name="n", value=0))
    return engine


def value(engine):
    with reading(engine).begin() as transaction:
        return transaction.execute(sa.select(numbers.c.value)).scalar_one()


def test_the_file_is_its_owners_alone(path):
    before = os.umask(0)
    try:
        engine = open_sqlite(path, metadata)
        with engine.begin() as transaction:
            transaction.execute(sa.insert(numbers).values(name="n", value=0))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert len(modes) > 1  # the log that is written ahead, too
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    ("pragma", "wanted"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("secure_delete", 1)]
)
def test_every_connection_is_durable_and_overwrites_what_it_deletes(engine, pragma, wanted):
    only_read = reading(engine)  # others would wait for each other
    with only_read.connect() as one, only_read.connect() as other:
        for connection in (one, other):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == wanted


def test_a_transaction_that_fails_leaves_nothing(engine):
    with pytest.raises(ZeroDivisionError), engine.begin() as transaction:
        transaction.execute(sa.update(numbers).values(value=5))
        _ = 1 // 0
    assert value(engine) == 0


def test_writers_in_many_threads_lose_nothing(engine):
    def add(_):
        for _ in range(25):
            with engine.begin() as transaction:
                held = transaction.execute(sa.select(numbers.c.value)).scalar_one()
                transaction.execute(sa.update(numbers).values(value=held + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert value(engine) == 200


def test_two_processes_writers_lose_nothing(engine, path):
    other = open_sqlite(path, metadata)
    threads = []
    for one in (engine, other):

        def add(one=one):
            for _ in range(40):
                with one.begin() as transaction:
                    held = transaction.execute(sa.select(numbers.c.value)).scalar_one()
                    transaction.execute(sa.update(numbers).values(value=held + 1))

        threads.append(threading.Thread(target=add))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(engine) == 80


def test_a_reader_waits_for_no_writer_and_sees_one_snapshot(engine):
    with reading(engine).begin() as reader:
        assert reader.execute(sa.select(numbers.c.value)).scalar_one() == 0
        with engine.begin() as writer:
            writer.execute(sa.update(numbers).values(value=1))
            assert value(engine) == 0  # not committed yet
        assert reader.execute(sa.select(numbers.c.value)).scalar_one() == 0
    assert value(engine) == 1


def test_what_is_deleted_is_not_in_the_file_any_more(engine, path):
    mark = os.urandom(64)
    with engine.begin() as transaction:
        transaction.execute(sa.insert(blobs), [{"id": i, "data": mark * 200} for i in range(20)])

    def held():
        engine.dispose()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return mark in b"".join(file.read_bytes() for file in path.parent.iterdir())

    assert held()
    with engine.begin() as transaction:
        transaction.execute(sa.delete(blobs))
    assert not held()


def test_opening_again_finds_everything(engine, path):
    with engine.begin() as transaction:
        transaction.execute(sa.update(numbers).values(value=7))
    engine.dispose()
    assert value(open_sqlite(path, metadata)) == 7


# --- what can go wrong, as callers see it


def test_an_address_of_no_database_is_refused():
    for url in ("", "mysql://root@localhost/x", "record.db"):
        with pytest.raises(WrongDatabase, match="postgresql://"):
            open_database(url)


def test_a_locked_file_is_a_matter_of_trying_again(engine, path, monkeypatch):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "_WAIT_S", 0.1)
    impatient = open_database(f"sqlite:///{path}")
    with pytest.raises(RecordUnavailable, match="try again"), impatient.begin():
        pass
    other.close()
    assert value(impatient) == 0


def test_a_file_that_is_no_database_any_more_is_damage(engine, path):
    engine.dispose()
    path.write_bytes(os.urandom(8192))
    for log in path.parent.glob("record.db-*"):
        log.unlink()
    with pytest.raises(RecordDamaged, match="backup"):
        value(open_database(f"sqlite:///{path}"))


def test_a_full_disk_is_a_matter_of_trying_again_and_stores_nothing(engine):
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.rollback()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(RecordUnavailable), engine.begin() as transaction:
        transaction.execute(sa.insert(blobs).values(id=1, data=bytes(1 << 20)))
    with reading(engine).begin() as transaction:
        assert transaction.execute(sa.select(sa.func.count()).select_from(blobs)).scalar_one() == 0


@pytest.mark.servers
class TestPostgresql:
    @pytest.fixture
    def engine(self, postgresql_url):
        engine = open_database(postgresql_url)
        with engine.begin() as transaction:
            metadata.create_all(transaction)
            transaction.execute(sa.insert(numbers).values(name="n", value=0))
        yield engine
        engine.dispose()

    def test_a_reader_sees_one_snapshot_and_writes_nothing(self, engine):
        with reading(engine).begin() as reader:
            assert reader.execute(sa.select(numbers.c.value)).scalar_one() == 0
            with engine.begin() as writer:
                writer.execute(sa.update(numbers).values(value=1))
            assert reader.execute(sa.select(numbers.c.value)).scalar_one() == 0
        assert value(engine) == 1
        with pytest.raises(RecordUnavailable), reading(engine).begin() as reader:
            reader.execute(sa.update(numbers).values(value=2))

    def test_bytes_and_times_come_back_as_they_were(self, engine):
        data = os.urandom(1 << 20)
        with engine.begin() as transaction:
            transaction.execute(sa.insert(blobs).values(id=1, data=data))
            assert transaction.execute(sa.select(blobs.c.data)).scalar_one() == data
            now = transaction.execute(sa.select(sa.func.now())).scalar_one()
            assert in_utc(now).utcoffset().total_seconds() == 0

    def test_a_database_that_refuses_writes_is_a_matter_of_trying_again(self, engine, postgresql_url):
        with engine.begin() as transaction:
            name = postgresql_url.rpartition("/")[2]
            transaction.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        engine.dispose()
        with pytest.raises(RecordUnavailable), engine.begin() as transaction:
            transaction.execute(sa.update(numbers).values(value=2))
        assert value(engine) == 0

    def test_two_writers_that_meet_are_a_matter_of_trying_again(self, engine):
        serial = engine.execution_options(isolation_level="REPEATABLE READ")
        with pytest.raises(RecordUnavailable), serial.begin() as one:
            one.execute(sa.select(numbers.c.value)).all()
            with engine.begin() as other:
                other.execute(sa.update(numbers).values(value=1))
            one.execute(sa.update(numbers).values(value=2))
        assert value(engine) == 1

    def test_erased_rows_can_be_vacuumed_away(self, postgresql_url):
        record = open_database(postgresql_url)
        assert forget(record)
        record.dispose()


@pytest.mark.servers
def test_a_killed_server_is_a_matter_of_trying_again_and_loses_nothing_committed():
    with servers.postgresql() as server:
        engine = open_database(server.url)
        with engine.begin() as transaction:
            metadata.create_all(transaction)
            transaction.execute(sa.insert(numbers).values(name="n", value=7))
        with pytest.raises(RecordUnavailable), engine.begin() as transaction:
            transaction.execute(sa.update(numbers).values(value=8))
            server.kill()
            transaction.execute(sa.select(numbers)).all()
        with pytest.raises(RecordUnavailable):
            value(engine)
        server.start()
        assert value(engine) == 7
        engine.dispose()
