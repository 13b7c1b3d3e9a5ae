"""Alembic's entry: migrates over the connection that `storage.schema` hands it."""

from alembic import context

from sealface.storage.record import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, transaction_per_migration=False
)
context.run_migrations()
