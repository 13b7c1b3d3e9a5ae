"""The compute zone's tables, and how they are read. Only `enrollment.record` writes them.

Slots and epochs of a gallery's name only ever rise, also when the gallery is erased and made anew, so that no old
slot table or cached group can be taken for the new one's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.errors import DataCorrupted, NotFound
from sealface.storage.database import reading

metadata = sa.MetaData()

galleries = sa.Table(
    "galleries",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("key_version", sa.String(128), nullable=False, unique=True),  # a key serves one gallery
    sa.Column("custody", sa.String(16), nullable=False),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("public_key_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("parameter_set", sa.String(64), nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("metric", sa.String(16), nullable=False),
    sa.Column("largest_norm", sa.Float, nullable=False),
    sa.Column("privacy_level", sa.Integer, nullable=False),
    sa.Column("fusion", sa.Integer, nullable=False),
    sa.Column("recognition", sa.LargeBinary, nullable=False),
    sa.Column("first_epoch", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("next_slot", sa.Integer, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
)

templates = sa.Table(
    "templates",
    metadata,
    sa.Column("gallery", sa.String(64), sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("subject", sa.String(64), nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Index("templates_by_subject", "gallery", "subject"),
    sa.Index("templates_by_epoch", "gallery", "epoch"),
)

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("gallery", sa.String(64), sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Index("tombstones_by_epoch", "gallery", "epoch"),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("gallery", sa.String(64), sa.ForeignKey("galleries.id"), primary_key=True),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("subject_digest", sa.LargeBinary(32), nullable=False),  # no subject id outlives its erasure
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
)

retired = sa.Table(
    "retired_galleries",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("next_slot", sa.Integer, nullable=False),
)


class GalleryNotFound(NotFound):
    """No gallery of that name."""


class TemplateDamaged(DataCorrupted):
    """A stored template does not match its digest."""


@dataclass(frozen=True)
class Gallery:
    """A gallery.

    Attributes:
        id: its id.
        key_version: name of the key version its templates are encrypted under.
        managed: whether the key service decides; otherwise the client holds the key.
        layout: how its vectors are packed.
        privacy_level, fusion: values of the contract's enumerations.
        recognition: the contract's `Recognition` message, serialised; opaque here.
        first_epoch: epoch at which a gallery of this name was made.
        epoch: epoch of its last change.
        created: when.
    """

    id: str
    key_version: str
    managed: bool
    layout: Layout
    privacy_level: int
    fusion: int
    recognition: bytes
    first_epoch: int
    epoch: int
    created: datetime


@dataclass(frozen=True)
class Change:
    """A slot taken by a subject, or given up (subject None)."""

    slot: int
    subject: str | None
    epoch: int


def _gallery(row: sa.Row[Any]) -> Gallery:
    return Gallery(
        id=row.id,
        key_version=row.key_version,
        managed=row.custody == "managed",
        layout=Layout.of(row.parameter_set, row.dimension, Metric(row.metric), row.largest_norm),
        privacy_level=row.privacy_level,
        fusion=row.fusion,
        recognition=row.recognition,
        first_epoch=row.first_epoch,
        epoch=row.epoch,
        created=row.created.replace(tzinfo=UTC),
    )


class Galleries:
    """Reads the record. Every method sees one snapshot."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = reading(engine)

    def get(self, gallery_id: str) -> Gallery:
        """A gallery.

        Raises:
            GalleryNotFound: there is none of that id.
        """
        with self._engine.begin() as transaction:
            row = transaction.execute(sa.select(galleries).where(galleries.c.id == gallery_id)).one_or_none()
        if row is None:
            raise _not_found()
        return _gallery(row)

    def page(self, after: str, limit: int) -> list[Gallery]:
        """Galleries by id, from the first after that one."""
        query = sa.select(galleries).where(galleries.c.id > after).order_by(galleries.c.id).limit(limit)
        with self._engine.begin() as transaction:
            return [_gallery(row) for row in transaction.execute(query)]

    def counts(self, gallery_id: str) -> tuple[int, int]:
        """How many subjects and templates a gallery holds."""
        query = sa.select(sa.func.count(sa.distinct(templates.c.subject)), sa.func.count()).select_from(templates)
        with self._engine.begin() as transaction:
            subjects, held = transaction.execute(query.where(templates.c.gallery == gallery_id)).one()
        return subjects, held

    def public_key(self, gallery_id: str) -> bytes:
        """The public key of a gallery.

        Raises:
            GalleryNotFound, TemplateDamaged: see there.
        """
        query = sa.select(galleries.c.public_key, galleries.c.public_key_digest).where(galleries.c.id == gallery_id)
        with self._engine.begin() as transaction:
            row = transaction.execute(query).one_or_none()
        if row is None:
            raise _not_found()
        return _checked(row.public_key, row.public_key_digest)

    def epochs(self, gallery_id: str) -> tuple[int, int]:
        """First and last epoch of a gallery: the cheapest look at whether anything changed."""
        query = sa.select(galleries.c.first_epoch, galleries.c.epoch).where(galleries.c.id == gallery_id)
        with self._engine.begin() as transaction:
            row = transaction.execute(query).one_or_none()
        if row is None:
            raise _not_found()
        return row.first_epoch, row.epoch

    def changes(self, gallery_id: str, since: int, limit: int | None = None) -> tuple[int, int, list[Change]]:
        """First epoch, last epoch, and the changes after an epoch in order.

        A slot that was taken and given up since appears once, as given up.
        """
        taken = sa.select(templates.c.slot, templates.c.subject, templates.c.epoch)
        given = sa.select(tombstones.c.slot, sa.null(), tombstones.c.epoch)
        union = sa.union_all(
            taken.where(templates.c.gallery == gallery_id, templates.c.epoch > since),
            given.where(tombstones.c.gallery == gallery_id, tombstones.c.epoch > since),
        ).order_by(sa.literal_column("3"), sa.literal_column("1"))
        with self._engine.begin() as transaction:
            query = sa.select(galleries.c.first_epoch, galleries.c.epoch).where(galleries.c.id == gallery_id)
            row = transaction.execute(query).one_or_none()
            if row is None:
                raise _not_found()
            found = [Change(*change) for change in transaction.execute(union.limit(limit))]
        return row.first_epoch, row.epoch, found

    def ciphertexts(self, gallery_id: str, slots: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Slot and ciphertext of those of the slots that are taken, each checked against its digest.

        Raises:
            TemplateDamaged: a ciphertext does not match its digest.
        """
        wanted = sorted(slots)
        query = sa.select(templates.c.slot, templates.c.ciphertext, templates.c.digest)
        for start in range(0, len(wanted), 256):
            part = wanted[start : start + 256]
            with self._engine.begin() as transaction:
                where = (templates.c.gallery == gallery_id, templates.c.slot.in_(part))
                rows = transaction.execute(query.where(*where)).all()
            for row in rows:
                yield row.slot, _checked(row.ciphertext, row.digest)

    def subject(self, gallery_id: str, subject: str) -> list[tuple[int, datetime]]:
        """Slot and time of a subject's templates, by slot; empty for an unknown subject."""
        query = sa.select(templates.c.slot, templates.c.created).where(
            templates.c.gallery == gallery_id, templates.c.subject == subject
        )
        with self._engine.begin() as transaction:
            rows = transaction.execute(query.order_by(templates.c.slot)).all()
        return [(row.slot, row.created.replace(tzinfo=UTC)) for row in rows]

    def subjects(self, gallery_id: str, after: str, limit: int) -> list[str]:
        """Subject ids in order, from the first after that one."""
        query = sa.select(templates.c.subject).where(templates.c.gallery == gallery_id, templates.c.subject > after)
        with self._engine.begin() as transaction:
            return list(transaction.execute(query.distinct().order_by(templates.c.subject).limit(limit)).scalars())


def _not_found() -> GalleryNotFound:
    return GalleryNotFound("no such gallery: create it, or list the galleries there are")


def _checked(data: bytes, digest: bytes) -> bytes:
    if hashlib.sha256(data).digest() != digest:
        raise TemplateDamaged("a stored ciphertext is damaged: restore the record from a backup")
    return bytes(data)
