"""The compute zone's audit log, and the key of its pseudonyms."""

import os

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
_REFUSAL = "the audit log is append-only"


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("act", sa.String(64), nullable=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
    )
    op.create_index("ix_audit_act", "audit", ["act"])
    op.add_column("operations", sa.Column("entry", sa.Integer, nullable=False, server_default="0"))
    secret = op.create_table("pseudonym_key", sa.Column("secret", sa.LargeBinary(32), primary_key=True))
    op.bulk_insert(secret, [{"secret": os.urandom(32)}])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        op.execute("CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit EXECUTE FUNCTION audit_refuse()")
        return
    for change in ("UPDATE", "DELETE"):  # a slip of ours does not get past; who may write the file does
        op.execute(
            f"CREATE TRIGGER audit_no_{change.lower()} BEFORE {change} ON audit "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )
