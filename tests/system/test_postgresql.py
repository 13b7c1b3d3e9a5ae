"""The services as processes on a real PostgreSQL, which is killed, and refuses writes, and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from deploy.servers import LocalServer

from deploy import servers
from sealface.cli.processes import LocalServices, local_services
from sealface.storage.database import open_database
from sealface.storage.schema import RECORD
from sealface_client import Client, ServiceError
from tests.system.conftest import POLICY, People
from tests.system.test_cli import DONE, FAILED, Command

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def postgresql() -> Iterator[LocalServer]:
    with servers.postgresql() as server:
        found = Command(None).json("migrate", "--database", server.url)
        assert found == {"before": None, "after": RECORD.newest()}
        yield server


@pytest.fixture(scope="module")
def services(postgresql: LocalServer) -> Iterator[LocalServices]:
    with local_services(SEALFACE_DATABASE=postgresql.url) as started:
        yield started


def insist(call, seconds=30):
    """What comes of a call that is tried again as long as it says so."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except ServiceError as error:
            assert error.retryable, error.reason
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_enrolled_there_and_nowhere_else(services: LocalServices, client: Client, people: People, postgresql):
    door = client.create_gallery("door", policy=POLICY)
    ann, bob = people.somebody(), people.somebody()
    door.enroll("ann", ann)
    door.enroll("bob", bob)
    assert door.verify("ann", people.again(ann)).match
    assert not door.verify("ann", people.again(bob)).match
    assert [named.subject for named in door.identify(people.again(bob)).candidates] == ["bob"]
    assert door.erase("bob") == 1
    assert not door.identify(people.again(bob)).candidates
    assert not list(services.state.glob("compute/record.db*"))
    engine = open_database(postgresql.url)
    with engine.begin() as transaction:
        assert transaction.exec_driver_sql("SELECT subject FROM templates").scalars().all() == ["ann"]
    engine.dispose()


def test_killed_it_loses_nothing_and_every_failure_can_be_tried_again(client: Client, people: People, postgresql):
    hall = client.create_gallery("hall", policy=POLICY)
    known = {f"s{i}": people.somebody() for i in range(12)}
    for i, (subject, face) in enumerate(known.items()):
        hall.enroll(subject, face)
        if i % 4 == 2:
            postgresql.kill()
            with pytest.raises(ServiceError) as caught:
                hall.identify(people.again(face))
            assert caught.value.retryable, caught.value.reason
            postgresql.start()
            insist(lambda: hall.identify(people.somebody()))
    for subject, face in known.items():
        assert [named.subject for named in hall.identify(people.again(face)).candidates] == [subject]


def test_a_database_that_refuses_writes_says_so_and_searches_go_on(client: Client, people: People, postgresql):
    lab = client.create_gallery("lab", policy=POLICY)
    ann, bob = people.somebody(), people.somebody()
    lab.enroll("ann", ann)
    engine = open_database(postgresql.url)

    def read_only(on: bool) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        engine.dispose()
        time.sleep(0.5)

    read_only(True)
    try:
        with pytest.raises(ServiceError) as caught:
            lab.enroll("bob", bob)
        assert (caught.value.reason, caught.value.retryable) == ("RECORD_UNAVAILABLE", True)
        assert [named.subject for named in lab.identify(people.again(ann)).candidates] == ["ann"]
    finally:
        read_only(False)
    insist(lambda: lab.enroll("bob", bob))
    assert lab.verify("bob", people.again(bob)).match


def test_without_the_schema_services_do_not_start_and_say_what_to_do(postgresql, tmp_path):
    engine = open_database(postgresql.url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE empty")
    engine.dispose()
    url = postgresql.url.rpartition("/")[0] + "/empty"
    serve = Command(None, SEALFACE_DATABASE=url)
    process = serve.start("serve", "enrollment", "--state", tmp_path, "--keys", "127.0.0.1:1", "--insecure")
    _, err = process.communicate(timeout=60)
    assert process.returncode == FAILED
    assert "sealface migrate" in err
    assert "Traceback" not in err


def test_migrate_says_what_it_did(postgresql, tmp_path):
    command = Command(None)
    again = command.json("migrate", "--database", postgresql.url)
    assert again == {"before": RECORD.newest(), "after": RECORD.newest()}
    out, _ = command.ran("migrate", "--database", postgresql.url, code=DONE)
    assert "up to date" in out
    assert "--database" in command.error("migrate", "--state", tmp_path, code=2)
