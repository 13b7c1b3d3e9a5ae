"""Budgets, strikes and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the change."""
    for name, sliced in (("spending", True), ("version_spending", False)):
        op.create_table(
            name,
            sa.Column("caller", sa.String(64), primary_key=True),
            sa.Column("key", sa.String(64), primary_key=True),
            sa.Column("version", sa.Integer, primary_key=True),
            *([sa.Column("slice", sa.Integer, primary_key=True)] if sliced else []),
            sa.Column("decisions", sa.BigInteger, nullable=False),
            sa.Column("comparisons", sa.BigInteger, nullable=False),
        )
    op.create_table(
        "strikes",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("act", sa.String(64), nullable=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
    )
    op.create_index("ix_audit_act", "audit", ["act"])
    for change in ("UPDATE", "DELETE"):  # a slip of ours does not get past; who may write the file does
        op.execute(
            f"CREATE TRIGGER audit_no_{change.lower()} BEFORE {change} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
