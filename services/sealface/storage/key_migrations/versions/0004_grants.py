"""What callers may do with galleries, and other credentials than signing keys."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the change; who might ask for decisions may go on to, of all galleries."""
    op.add_column("callers", sa.Column("grants", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("callers", sa.Column("token_digest", sa.LargeBinary(32), nullable=True))
    op.add_column("callers", sa.Column("issuer", sa.String(512), nullable=True))
    op.add_column("callers", sa.Column("subject", sa.String(512), nullable=True))
    op.create_index("callers_by_token", "callers", ["token_digest"], unique=True)
    op.create_index("callers_by_identity", "callers", ["issuer", "subject"], unique=True)
    op.execute("UPDATE callers SET grants = '[[\"verifier\", \"-\"]]' WHERE role = 'verifier'")
