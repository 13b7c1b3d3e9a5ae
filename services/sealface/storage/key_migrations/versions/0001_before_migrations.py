"""The key zone's database as it was before there were migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("custody", sa.String(16), nullable=False),
        sa.Column("parameter_set", sa.String(64), nullable=False),
        sa.Column("dimension", sa.Integer, nullable=False),
        sa.Column("metric", sa.String(16), nullable=False),
        sa.Column("largest_norm", sa.Float, nullable=False),
        sa.Column("policy", sa.JSON, nullable=False),
        sa.Column("primary_version", sa.Integer, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "key_versions",
        sa.Column("key", sa.String(64), sa.ForeignKey("keys.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("public_key_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("wrapped_secret", sa.LargeBinary, nullable=True),
    )
    op.create_table(
        "evaluation_keys",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("galois_element", sa.Integer, primary_key=True),
        sa.Column("material", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.ForeignKeyConstraint(["key", "version"], ["key_versions.key", "key_versions.number"]),
    )
    op.create_table(
        "callers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("verifying_key", sa.LargeBinary(32), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "nonces",
        sa.Column("nonce", sa.LargeBinary(32), primary_key=True),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_index("ix_nonces_expires", "nonces", ["expires"])
    op.create_table(
        "identity",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("wrapped_secret", sa.LargeBinary, nullable=False),
    )
