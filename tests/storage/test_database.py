import os
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from sealface.storage.database import open_sqlite, reading

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
