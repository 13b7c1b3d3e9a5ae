"""The life of key versions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the change; of the versions that are there N=4096 has 128 bits of security, and N=8192 has 256."""
    columns = {
        "keys": (
            sa.Column("oldest_version", sa.Integer, nullable=False, server_default="1"),
            sa.Column("exportable", sa.Boolean, nullable=False, server_default=sa.false()),
        ),
        "key_versions": (
            sa.Column("state", sa.String(24), nullable=False, server_default="enabled"),
            sa.Column("parameter_set", sa.String(64), nullable=False, server_default=""),
            sa.Column("security_bits", sa.Integer, nullable=False, server_default="128"),
            sa.Column("quantum_secure", sa.Boolean, nullable=False, server_default=sa.true()),
            sa.Column("created", sa.DateTime(timezone=True), nullable=False, server_default="1970-01-01 00:00:00"),
            sa.Column("destroyed", sa.DateTime(timezone=True), nullable=True),
            sa.Column("exported", sa.Boolean, nullable=False, server_default=sa.false()),
        ),
    }
    for table, added in columns.items():
        for column in added:
            op.add_column(table, column)
    for name in ("parameter_set", "created"):
        op.execute(f"UPDATE key_versions SET {name} = (SELECT {name} FROM keys WHERE id = key_versions.key)")  # noqa: S608
    op.execute("UPDATE key_versions SET security_bits = 256 WHERE parameter_set = 'ckks-n8192-v1'")
