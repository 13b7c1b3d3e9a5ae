"""Alembic's entry: migrates over the connection that `storage.schema` hands it."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=attributes["metadata"],
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
