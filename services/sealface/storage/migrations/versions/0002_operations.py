"""Operations, leases, and how long templates are kept."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Id = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the change."""
    op.add_column("galleries", sa.Column("retention_s", Number, nullable=True))
    op.create_table(
        "operations",
        sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
        sa.Column("id", Id, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("done", Number, nullable=False),
        sa.Column("total", Number, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("operations_by_state", "operations", ["gallery", "state"])
    op.create_table(
        "leases",
        sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("fence", Number, nullable=False),
        sa.Column("beat", Number, nullable=False),
    )
