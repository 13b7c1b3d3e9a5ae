"""The compute zone's tables: the record. Only enrollment writes them; `galleries` reads them.

Slots and epochs of a gallery's name only ever rise, also when the gallery is erased and made anew, so that no old
slot table or cached group can be taken for the new one's.

Whatever is made under a key version lies in tables that are keyed by it. A gallery is under one version; while it is
moved to another its ciphertexts gather under that as well, and then the gallery's row names that (docs/adr/0019).
"""

from __future__ import annotations

import sqlalchemy as sa

from sealface.storage.chain import chain_table

metadata = sa.MetaData()

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # a slot needs 32 bits without a sign
Id = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")  # in the order of their bytes
KeyVersion = sa.String(128)

galleries = sa.Table(
    "galleries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("key_version", KeyVersion, nullable=False, unique=True),  # a key serves one gallery
    sa.Column("custody", sa.String(16), nullable=False),
    sa.Column("parameter_set", sa.String(64), nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("metric", sa.String(16), nullable=False),
    sa.Column("largest_norm", sa.Float, nullable=False),
    sa.Column("privacy_level", sa.Integer, nullable=False),
    sa.Column("fusion", sa.Integer, nullable=False),
    sa.Column("recognition", sa.LargeBinary, nullable=False),
    sa.Column("first_epoch", Number, nullable=False),
    sa.Column("epoch", Number, nullable=False),
    sa.Column("next_slot", Number, nullable=False),
    sa.Column("next_block", Number, nullable=False),
    sa.Column("retention_s", Number, nullable=True),  # how long a template is kept; none for ever
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Column(
        "transform_digest", sa.LargeBinary(32), nullable=True
    ),  # of the seed of its callers' transform; none without
)

templates = sa.Table(
    "templates",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("slot", Number, primary_key=True),
    sa.Column("subject", Id, nullable=False),
    sa.Column("lead", Number, nullable=False),  # the subject's first slot
    sa.Column("block", Number, nullable=True),  # the sealed block it lies in; none in the open tail
    sa.Column("epoch", Number, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Index("templates_by_subject", "gallery", "subject"),
    sa.Index("templates_by_epoch", "gallery", "epoch"),
    sa.Index("templates_by_block", "gallery", "block"),
)

blocks = sa.Table(
    "blocks",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("number", Number, primary_key=True),  # never used again in this gallery
    sa.Column("columns", sa.Integer, nullable=False),
    sa.Column("slots", sa.LargeBinary, nullable=False),  # by position, 32 bits each, 0 for none
    sa.Column("imported", sa.Boolean, nullable=False),  # its templates have no ciphertexts of their own
    sa.Column("erased", sa.Integer, nullable=False),  # templates in it that are erased
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
)

versions = sa.Table(
    "gallery_versions",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("key_version", KeyVersion, primary_key=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("public_key_digest", sa.LargeBinary(32), nullable=False),
)

template_ciphertexts = sa.Table(  # none where a whole block was imported
    "template_ciphertexts",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("key_version", KeyVersion, primary_key=True),
    sa.Column("slot", Number, primary_key=True),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
)

block_ciphertexts = sa.Table(
    "block_ciphertexts",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("key_version", KeyVersion, primary_key=True),
    sa.Column("number", Number, primary_key=True),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
)

evaluation_keys = sa.Table(
    "gallery_evaluation_keys",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("key_version", KeyVersion, primary_key=True),
    sa.Column("galois_element", sa.Integer, primary_key=True),
    sa.Column("material", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
)

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("slot", Number, primary_key=True),
    sa.Column("epoch", Number, nullable=False),
    sa.Index("tombstones_by_epoch", "gallery", "epoch"),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("request_id", Id, primary_key=True),
    sa.Column("subject_digest", sa.LargeBinary(32), nullable=False),  # no subject id outlives its erasure
    sa.Column("slot", Number, nullable=False),
    sa.Column("epoch", Number, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
)

operations = sa.Table(
    "operations",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("id", Id, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("done", Number, nullable=False),
    sa.Column("total", Number, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),  # what it works on, and then what came of it; no subject id
    sa.Column("entry", sa.Integer, nullable=False, server_default="0"),  # of the audit log; 0 before there was one
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
    sa.Index("operations_by_state", "gallery", "state"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("gallery", Id, sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),  # empty if nobody has it
    sa.Column("fence", Number, nullable=False),  # one more for each holder
    sa.Column("beat", Number, nullable=False),  # goes on as long as the holder lives
)

retired = sa.Table(
    "retired_galleries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("epoch", Number, nullable=False),
    sa.Column("next_slot", Number, nullable=False),
)

audit = chain_table("audit", metadata)

pseudonym_key = sa.Table(  # one row, made with the table: of the audit log's HMACs of subject ids
    "pseudonym_key",
    metadata,
    sa.Column("secret", sa.LargeBinary(32), primary_key=True),
)
