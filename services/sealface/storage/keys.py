"""The key zone's tables. Secrets are stored wrapped; nothing here can open them."""

from __future__ import annotations

import sqlalchemy as sa

from sealface.storage.chain import chain_table

metadata = sa.MetaData()

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("custody", sa.String(16), nullable=False),
    sa.Column("parameter_set", sa.String(64), nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("metric", sa.String(16), nullable=False),
    sa.Column("largest_norm", sa.Float, nullable=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("primary_version", sa.Integer, nullable=False),
    sa.Column("oldest_version", sa.Integer, nullable=False),  # that opens anything
    sa.Column("exportable", sa.Boolean, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
)

versions = sa.Table(
    "key_versions",
    metadata,
    sa.Column("key", sa.String(64), sa.ForeignKey("keys.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("public_key_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("wrapped_secret", sa.LargeBinary, nullable=True),  # none where the client holds it, or when destroyed
    sa.Column("state", sa.String(24), nullable=False),
    sa.Column("parameter_set", sa.String(64), nullable=False),
    sa.Column("security_bits", sa.Integer, nullable=False),
    sa.Column("quantum_secure", sa.Boolean, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Column("destroyed", sa.DateTime(timezone=True), nullable=True),  # when it is to be, or was
    sa.Column("exported", sa.Boolean, nullable=False),  # ever
)

evaluation_keys = sa.Table(
    "evaluation_keys",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("galois_element", sa.Integer, primary_key=True),
    sa.Column("material", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.ForeignKeyConstraint(["key", "version"], ["key_versions.key", "key_versions.number"]),
)

callers = sa.Table(
    "callers",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("verifying_key", sa.LargeBinary(32), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Column("grants", sa.JSON, nullable=False, server_default="[]"),  # pairs of a role and a gallery
    sa.Column("token_digest", sa.LargeBinary(32), nullable=True),
    sa.Column("issuer", sa.String(512), nullable=True),
    sa.Column("subject", sa.String(512), nullable=True),
    sa.Index("callers_by_token", "token_digest", unique=True),
    sa.Index("callers_by_identity", "issuer", "subject", unique=True),
)

nonces = sa.Table(
    "nonces",
    metadata,
    sa.Column("nonce", sa.LargeBinary(32), primary_key=True),
    sa.Column("expires", sa.Float, nullable=False, index=True),  # seconds since 1970
)

identity = sa.Table(
    "identity",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("wrapped_secret", sa.LargeBinary, nullable=False),
)

spending = sa.Table(
    "spending",
    metadata,
    sa.Column("caller", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("slice", sa.Integer, primary_key=True),  # of time, counted since 1970
    sa.Column("decisions", sa.BigInteger, nullable=False),
    sa.Column("comparisons", sa.BigInteger, nullable=False),
)

version_spending = sa.Table(
    "version_spending",
    metadata,
    sa.Column("caller", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("decisions", sa.BigInteger, nullable=False),
    sa.Column("comparisons", sa.BigInteger, nullable=False),
)

strikes = sa.Table(
    "strikes",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("time", sa.Float, nullable=False),  # seconds since 1970
)

audit = chain_table("audit", metadata)
