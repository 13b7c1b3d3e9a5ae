"""The record as it was before there were migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Id = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "galleries",
        sa.Column("id", Id, nullable=False),
        sa.Column("key_version", sa.String(length=128), nullable=False),
        sa.Column("custody", sa.String(length=16), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("public_key_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("parameter_set", sa.String(length=64), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(length=16), nullable=False),
        sa.Column("largest_norm", sa.Float(), nullable=False),
        sa.Column("privacy_level", sa.Integer(), nullable=False),
        sa.Column("fusion", sa.Integer(), nullable=False),
        sa.Column("recognition", sa.LargeBinary(), nullable=False),
        sa.Column("first_epoch", Number, nullable=False),
        sa.Column("epoch", Number, nullable=False),
        sa.Column("next_slot", Number, nullable=False),
        sa.Column("next_block", Number, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key_version"),
    )
    op.create_table(
        "retired_galleries",
        sa.Column("id", Id, nullable=False),
        sa.Column("epoch", Number, nullable=False),
        sa.Column("next_slot", Number, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "blocks",
        sa.Column("gallery", Id, nullable=False),
        sa.Column("number", Number, nullable=False),
        sa.Column("columns", sa.Integer(), nullable=False),
        sa.Column("slots", sa.LargeBinary(), nullable=False),
        sa.Column("imported", sa.Boolean(), nullable=False),
        sa.Column("erased", sa.Integer(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery"],
            ["galleries.id"],
        ),
        sa.PrimaryKeyConstraint("gallery", "number"),
    )
    op.create_table(
        "gallery_evaluation_keys",
        sa.Column("gallery", Id, nullable=False),
        sa.Column("galois_element", sa.Integer(), nullable=False),
        sa.Column("material", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery"],
            ["galleries.id"],
        ),
        sa.PrimaryKeyConstraint("gallery", "galois_element"),
    )
    op.create_table(
        "requests",
        sa.Column("gallery", Id, nullable=False),
        sa.Column("request_id", Id, nullable=False),
        sa.Column("subject_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("slot", Number, nullable=False),
        sa.Column("epoch", Number, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery"],
            ["galleries.id"],
        ),
        sa.PrimaryKeyConstraint("gallery", "request_id"),
    )
    op.create_table(
        "templates",
        sa.Column("gallery", Id, nullable=False),
        sa.Column("slot", Number, nullable=False),
        sa.Column("subject", Id, nullable=False),
        sa.Column("lead", Number, nullable=False),
        sa.Column("block", Number, nullable=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=True),
        sa.Column("epoch", Number, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery"],
            ["galleries.id"],
        ),
        sa.PrimaryKeyConstraint("gallery", "slot"),
    )
    with op.batch_alter_table("templates", schema=None) as batch_op:
        batch_op.create_index("templates_by_block", ["gallery", "block"], unique=False)
        batch_op.create_index("templates_by_epoch", ["gallery", "epoch"], unique=False)
        batch_op.create_index("templates_by_subject", ["gallery", "subject"], unique=False)

    op.create_table(
        "tombstones",
        sa.Column("gallery", Id, nullable=False),
        sa.Column("slot", Number, nullable=False),
        sa.Column("epoch", Number, nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery"],
            ["galleries.id"],
        ),
        sa.PrimaryKeyConstraint("gallery", "slot"),
    )
    with op.batch_alter_table("tombstones", schema=None) as batch_op:
        batch_op.create_index("tombstones_by_epoch", ["gallery", "epoch"], unique=False)
    if op.get_bind().dialect.name == "postgresql":  # ciphertexts do not compress: do not try
        for table in ("templates", "blocks"):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN ciphertext SET STORAGE EXTERNAL")
