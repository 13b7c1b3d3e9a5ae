"""What changes the record: one transaction each, durable when it returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from sealface.cipher.layout import Layout
from sealface.errors import AlreadyExists, InvalidInput, LimitExceeded, NotFound
from sealface.storage import galleries as tables
from sealface.storage.database import forget, reading
from sealface.storage.galleries import GalleryNotFound

MOST_TEMPLATES = 16
"""Templates a subject may have: a verification claims all of them."""
_LAST_SLOT = 2**32 - 1


class GalleryExists(AlreadyExists):
    """There is a gallery of that id."""


class KeyTaken(AlreadyExists):
    """Another gallery uses the key."""


class SubjectNotFound(NotFound):
    """The gallery has no such subject."""


class RequestIdReused(InvalidInput):
    """A request id was used before for another subject."""


class TooManyTemplates(LimitExceeded):
    """The subject, or the gallery, holds as many templates as it may."""


@dataclass(frozen=True)
class NewGallery:
    """What a gallery is made of; see `storage.galleries.Gallery`."""

    id: str
    key_version: str
    managed: bool
    public_key: bytes
    layout: Layout
    privacy_level: int
    fusion: int
    recognition: bytes


@dataclass(frozen=True)
class Enrolled:
    """A stored template."""

    slot: int
    epoch: int
    created: datetime


class Record:
    """The writer of the record."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create_gallery(self, new: NewGallery) -> None:
        """Make an empty gallery.

        Raises:
            GalleryExists, KeyTaken: see there.
        """
        table = tables.galleries
        with self._engine.begin() as transaction:
            if transaction.execute(sa.select(table.c.id).where(table.c.id == new.id)).first():
                raise GalleryExists("there is a gallery of that id: choose another")
            if transaction.execute(sa.select(table.c.id).where(table.c.key_version == new.key_version)).first():
                raise KeyTaken("another gallery uses that key: make a key for each gallery")
            before = transaction.execute(
                sa.select(tables.retired.c.epoch, tables.retired.c.next_slot).where(tables.retired.c.id == new.id)
            ).one_or_none()
            epoch, next_slot = (before.epoch + 1, before.next_slot) if before else (0, 1)
            transaction.execute(
                sa.insert(table).values(
                    id=new.id,
                    key_version=new.key_version,
                    custody="managed" if new.managed else "client_held",
                    public_key=new.public_key,
                    public_key_digest=hashlib.sha256(new.public_key).digest(),
                    parameter_set=new.layout.parameters.name,
                    dimension=new.layout.dimension,
                    metric=new.layout.metric.value,
                    largest_norm=new.layout.largest_norm,
                    privacy_level=new.privacy_level,
                    fusion=new.fusion,
                    recognition=new.recognition,
                    first_epoch=epoch,
                    epoch=epoch,
                    next_slot=next_slot,
                    created=datetime.now(UTC),
                )
            )

    def delete_gallery(self, gallery_id: str) -> int:
        """Erase a gallery with all that is in it; returns how many templates that were.

        Raises:
            GalleryNotFound: there is none of that id.
        """
        with self._engine.begin() as transaction:
            row = _locked(transaction, gallery_id)
            erased = transaction.execute(
                sa.delete(tables.templates).where(tables.templates.c.gallery == gallery_id)
            ).rowcount
            for table in (tables.tombstones, tables.requests):
                transaction.execute(sa.delete(table).where(table.c.gallery == gallery_id))
            transaction.execute(sa.delete(tables.galleries).where(tables.galleries.c.id == gallery_id))
            transaction.execute(sa.delete(tables.retired).where(tables.retired.c.id == gallery_id))
            transaction.execute(
                sa.insert(tables.retired).values(id=gallery_id, epoch=row.epoch, next_slot=row.next_slot)
            )
        forget(self._engine)
        return erased

    def known_request(self, gallery_id: str, request_id: str, subject: str) -> Enrolled | None:
        """What a request with that id was answered, if it was.

        Raises:
            RequestIdReused: it was another subject's.
        """
        with reading(self._engine).begin() as transaction:
            return _known(transaction, gallery_id, request_id, subject)

    def enroll(self, gallery_id: str, key_version: str, subject: str, ciphertext: bytes, request_id: str) -> Enrolled:
        """Store an admitted template; a request id seen before gets its first answer and stores nothing.

        Args:
            gallery_id: the gallery.
            key_version: what the template was admitted under; a gallery of that id made meanwhile may have another.
            subject: whose it is.
            ciphertext: the template.
            request_id: the caller's.

        Raises:
            GalleryNotFound, RequestIdReused, TooManyTemplates: see there.
        """
        table = tables.templates
        with self._engine.begin() as transaction:
            known = _known(transaction, gallery_id, request_id, subject)
            if known is not None:
                return known
            row = _locked(transaction, gallery_id)
            if row.key_version != key_version:
                raise _not_found()
            of_subject = (table.c.gallery == gallery_id, table.c.subject == subject)
            held = transaction.execute(sa.select(sa.func.count()).select_from(table).where(*of_subject)).scalar_one()
            if held >= MOST_TEMPLATES:
                raise TooManyTemplates(
                    f"the subject has {held} templates already: erase it and enrol anew", limit=MOST_TEMPLATES
                )
            if row.next_slot > _LAST_SLOT:
                raise TooManyTemplates("the gallery has used all its slots: make a new gallery", limit=_LAST_SLOT)
            enrolled = Enrolled(row.next_slot, row.epoch + 1, datetime.now(UTC))
            transaction.execute(
                sa.insert(table).values(
                    gallery=gallery_id,
                    slot=enrolled.slot,
                    subject=subject,
                    ciphertext=ciphertext,
                    digest=hashlib.sha256(ciphertext).digest(),
                    epoch=enrolled.epoch,
                    created=enrolled.created,
                )
            )
            transaction.execute(
                sa.insert(tables.requests).values(
                    gallery=gallery_id,
                    request_id=request_id,
                    subject_digest=_subject_digest(gallery_id, subject),
                    slot=enrolled.slot,
                    epoch=enrolled.epoch,
                    created=enrolled.created,
                )
            )
            transaction.execute(
                sa.update(tables.galleries)
                .where(tables.galleries.c.id == gallery_id)
                .values(epoch=enrolled.epoch, next_slot=enrolled.slot + 1)
            )
        return enrolled

    def erase_subject(self, gallery_id: str, subject: str) -> tuple[int, int]:
        """Erase a subject's templates; returns how many, and the epoch from which no search finds them.

        Raises:
            GalleryNotFound, SubjectNotFound: see there.
        """
        table = tables.templates
        of_subject = (table.c.gallery == gallery_id, table.c.subject == subject)
        with self._engine.begin() as transaction:
            epoch = _locked(transaction, gallery_id).epoch + 1
            slots = transaction.execute(sa.select(table.c.slot).where(*of_subject)).scalars().all()
            if not slots:
                raise SubjectNotFound("the gallery has no such subject: list its subjects")
            transaction.execute(sa.delete(table).where(*of_subject))
            transaction.execute(
                sa.insert(tables.tombstones),
                [{"gallery": gallery_id, "slot": slot, "epoch": epoch} for slot in slots],
            )
            transaction.execute(
                sa.update(tables.galleries).where(tables.galleries.c.id == gallery_id).values(epoch=epoch)
            )
        forget(self._engine)
        return len(slots), epoch


def _locked(transaction: sa.Connection, gallery_id: str) -> Any:
    table = tables.galleries
    columns = (table.c.key_version, table.c.epoch, table.c.next_slot)
    row = transaction.execute(sa.select(*columns).where(table.c.id == gallery_id).with_for_update()).one_or_none()
    if row is None:
        raise _not_found()
    return row


def _not_found() -> GalleryNotFound:
    return GalleryNotFound("no such gallery: create it, or list the galleries there are")


def _subject_digest(gallery_id: str, subject: str) -> bytes:
    return hashlib.sha256(f"{gallery_id}/{subject}".encode()).digest()


def _known(transaction: sa.Connection, gallery_id: str, request_id: str, subject: str) -> Enrolled | None:
    table = tables.requests
    row = transaction.execute(
        sa.select(table).where(table.c.gallery == gallery_id, table.c.request_id == request_id)
    ).one_or_none()
    if row is None:
        return None
    if row.subject_digest != _subject_digest(gallery_id, subject):
        raise RequestIdReused("this request id was used for another subject: draw a new one")
    return Enrolled(row.slot, row.epoch, row.created.replace(tzinfo=UTC))
