"""What is made under a key version lies in tables keyed by it, so that a gallery can be moved to another."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Id = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
KeyVersion = sa.String(128)


def upgrade() -> None:
    """Make the change."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "gallery_versions",
        sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
        sa.Column("key_version", KeyVersion, primary_key=True),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("public_key_digest", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "evaluation_keys_by_version",
        sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
        sa.Column("key_version", KeyVersion, primary_key=True),
        sa.Column("galois_element", sa.Integer, primary_key=True),
        sa.Column("material", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
    )
    for table, name in (("template_ciphertexts", "slot"), ("block_ciphertexts", "number")):
        op.create_table(
            table,
            sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
            sa.Column("key_version", KeyVersion, primary_key=True),
            sa.Column(name, Number, primary_key=True),
            sa.Column("ciphertext", sa.LargeBinary, nullable=False),
            sa.Column("digest", sa.LargeBinary(32), nullable=False),
        )
        if postgresql:  # ciphertexts do not compress: do not try
            op.execute(f"ALTER TABLE {table} ALTER COLUMN ciphertext SET STORAGE EXTERNAL")
    op.execute("INSERT INTO gallery_versions SELECT id, key_version, public_key, public_key_digest FROM galleries")
    op.execute(
        "INSERT INTO evaluation_keys_by_version SELECT gallery, key_version, galois_element, material, digest "
        "FROM gallery_evaluation_keys JOIN galleries ON galleries.id = gallery"
    )
    op.execute(
        "INSERT INTO template_ciphertexts SELECT gallery, key_version, slot, ciphertext, digest "
        "FROM templates JOIN galleries ON galleries.id = gallery WHERE ciphertext IS NOT NULL"
    )
    op.execute(
        "INSERT INTO block_ciphertexts SELECT gallery, key_version, number, ciphertext, digest "
        "FROM blocks JOIN galleries ON galleries.id = gallery"
    )
    if postgresql:  # a column that is dropped keeps its values' place
        op.execute("UPDATE templates SET ciphertext = NULL WHERE ciphertext IS NOT NULL")
        op.execute("UPDATE blocks SET ciphertext = ''")
    op.drop_table("gallery_evaluation_keys")
    op.rename_table("evaluation_keys_by_version", "gallery_evaluation_keys")
    for table, columns in (
        ("galleries", ("public_key", "public_key_digest")),
        ("templates", ("ciphertext", "digest")),
        ("blocks", ("ciphertext", "digest")),
    ):
        for column in columns:
            op.drop_column(table, column)
