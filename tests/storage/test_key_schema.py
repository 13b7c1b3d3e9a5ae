"""Migrations of the key zone's database."""

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from sealface.storage.database import open_database
from sealface.storage.keys import metadata
from sealface.storage.schema import KEYS


def differences(engine):
    with engine.begin() as connection:
        return compare_metadata(MigrationContext.configure(connection), metadata)


def test_migrations_make_the_tables_that_the_program_expects(tmp_path):
    engine = KEYS.open_file(tmp_path / "keys" / "keys.db")
    assert differences(engine) == []
    assert KEYS.migrate(engine) == (KEYS.newest(), KEYS.newest())


def test_keys_from_before_migrations_are_brought_up_to_date(tmp_path):
    path = tmp_path / "keys.db"
    engine = open_database(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(KEYS._config(connection), "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
        connection.exec_driver_sql(
            "INSERT INTO keys VALUES ('door', 'managed', 'ckks-n4096-v1', 128, 'cosine', 1.0, '{}', 1, '2026-11-01')"
        )
        connection.exec_driver_sql("INSERT INTO key_versions VALUES ('door', 1, x'01', x'02', x'03')")
    engine.dispose()
    engine = KEYS.open_file(path)
    assert differences(engine) == []
    with engine.begin() as connection:
        version = connection.execute(sa.text("SELECT * FROM key_versions")).mappings().one()
    assert (version["state"], version["parameter_set"], version["security_bits"]) == ("enabled", "ckks-n4096-v1", 128)
    assert version["created"] == "2026-11-01"
    assert version["destroyed"] is None
    assert version["wrapped_secret"] == b"\x03"
