"""Galleries tell the digest of their callers' transform."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the change."""
    op.add_column("galleries", sa.Column("transform_digest", sa.LargeBinary(32), nullable=True))
