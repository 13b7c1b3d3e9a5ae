"""What changes the record: one transaction each, durable when it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from sealface.cipher.layout import Layout
from sealface.enrollment.audit import note, pseudonym, pseudonyms
from sealface.enrollment.leases import Lease, check_fence
from sealface.enrollment.operations import (
    Kind,
    Operation,
    count_imported,
    insert_operation,
    known_operation,
)
from sealface.enrollment.rows import (
    SLOTS_A_STATEMENT,
    Enrolled,
    TooManyTemplates,
    advance,
    drop_blocks,
    erase_templates,
    first_slots,
    import_name,
    insert_block,
    insert_request,
    insert_template_ciphertexts,
    insert_version,
    known_request,
    lead_again,
    locked_gallery,
    not_found,
    remove_gallery,
)
from sealface.errors import AlreadyExists, NotFound
from sealface.protocol.audit import Detail
from sealface.storage import record as tables
from sealface.storage.database import forget, reading
from sealface.storage.evaluators import wrong_key_version
from sealface.storage.galleries import MOST_TEMPLATES, Gallery

_LAST_SLOT = 2**32 - 1


class GalleryExists(AlreadyExists):
    """There is a gallery of that id."""


class KeyTaken(AlreadyExists):
    """Another gallery uses the key."""


class SubjectNotFound(NotFound):
    """The gallery has no such subject."""


@dataclass(frozen=True)
class NewGallery:
    """What a gallery is made of; see `storage.galleries.Gallery`."""

    id: str
    key_version: str
    managed: bool
    public_key: bytes
    evaluation_keys: Mapping[int, bytes]
    layout: Layout
    privacy_level: int
    fusion: int
    recognition: bytes
    retention_s: int | None = None
    transform_digest: bytes | None = None


class Record:
    """The writer of the record."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._forgotten = False  # whoever wrote before may not have come to it

    def forget(self, again: bool = False) -> bool:
        """Have erased rows out of the database's files; False if a reader prevents it: try again.

        Args:
            again: also if nothing was erased here since the last time: another process may have.
        """
        self._forgotten = (self._forgotten and not again) or forget(self._engine)
        return self._forgotten

    @property
    def keeps_log(self) -> bool:
        """Whether the database has a log of its own that `forget` empties: SQLite's. PostgreSQL's is its operator's."""
        return self._engine.dialect.name == "sqlite"

    def _forget(self) -> None:
        self._forgotten = False
        if self.keeps_log:  # a vacuum is left to the background
            self.forget()

    def create_gallery(self, new: NewGallery) -> None:
        """Make an empty gallery.

        Raises:
            GalleryExists, KeyTaken: see there.
        """
        try:
            self._create_gallery(new)
        except sa.exc.IntegrityError:  # another was made between the look and the write: now it is seen
            self._create_gallery(new)

    def _create_gallery(self, new: NewGallery) -> None:
        table = tables.galleries
        with self._engine.begin() as transaction:
            if transaction.execute(sa.select(table.c.id).where(table.c.id == new.id)).first():
                raise GalleryExists("there is a gallery of that id: choose another")
            key, _, _ = new.key_version.partition("/versions/")
            of_key = table.c.key_version.startswith(f"{key}/versions/", autoescape=True)
            if transaction.execute(sa.select(table.c.id).where(of_key)).first():
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
                    next_block=1,
                    retention_s=new.retention_s,
                    transform_digest=new.transform_digest,
                    created=datetime.now(UTC),
                )
            )
            insert_version(transaction, new.id, new.key_version, new.public_key, new.evaluation_keys)
            note(transaction, "CreateGallery", new.id, {"key_version": new.key_version})

    def delete_gallery(self, gallery_id: str) -> int:
        """Erase a gallery with all that is in it; returns how many templates that were.

        Raises:
            GalleryNotFound: there is none of that id.
        """
        with self._engine.begin() as transaction:
            erased = remove_gallery(transaction, gallery_id)
            note(transaction, "DeleteGallery", gallery_id, {"templates": erased})
        self._forget()
        return erased

    def known_request(self, gallery_id: str, request_id: str, subject: str) -> Enrolled | None:
        """What a request with that id was answered, if it was.

        Raises:
            RequestIdReused: it was another subject's.
        """
        with reading(self._engine).begin() as transaction:
            return known_request(transaction, gallery_id, request_id, subject)

    def enroll(self, gallery_id: str, key_version: str, subject: str, ciphertext: bytes, request_id: str) -> Enrolled:
        """Store an admitted template; a request id seen before gets its first answer and stores nothing.

        Args:
            gallery_id: the gallery.
            key_version: what the template was admitted under; the gallery may be under another by now.
            subject: whose it is.
            ciphertext: the template.
            request_id: the caller's.

        Raises:
            GalleryNotFound, WrongKeyVersion, RequestIdReused, TooManyTemplates: see there.
        """
        table = tables.templates
        with self._engine.begin() as transaction:
            row = locked_gallery(transaction, gallery_id)  # first: an equal request may be under way
            known = known_request(transaction, gallery_id, request_id, subject)
            if known is not None:
                return known
            _check_version(row.key_version, key_version)
            of_subject = (table.c.gallery == gallery_id, table.c.subject == subject)
            held, lead = transaction.execute(
                sa.select(sa.func.count(), sa.func.min(table.c.lead)).where(*of_subject)
            ).one()
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
                    lead=enrolled.slot if lead is None else lead,
                    epoch=enrolled.epoch,
                    created=enrolled.created,
                )
            )
            insert_template_ciphertexts(transaction, gallery_id, key_version, {enrolled.slot: ciphertext})
            insert_request(transaction, gallery_id, request_id, subject, enrolled)
            advance(transaction, gallery_id, enrolled.epoch, next_slot=enrolled.slot + 1)
            whom = pseudonym(transaction, gallery_id, subject)
            note(transaction, "Enroll", gallery_id, {"subject": whom, "slot": enrolled.slot})
        return enrolled

    def erase_subject(self, gallery_id: str, subject: str) -> tuple[int, int]:
        """Erase a subject's templates; returns how many, and the epoch from which no search finds them.

        Raises:
            GalleryNotFound, SubjectNotFound: see there.
        """
        with self._engine.begin() as transaction:
            slots, epoch = self._erase_subject(transaction, gallery_id, subject)
            note(transaction, "EraseSubject", gallery_id, _erased(transaction, gallery_id, subject, slots))
        self._forget()
        return len(slots), epoch

    def begin_erasure(self, gallery_id: str, subject: str, operation_id: str) -> Operation:
        """The same, with an operation that goes on until nothing of the ciphertexts is left; or the one of that id.

        Raises:
            GalleryNotFound, SubjectNotFound, OperationIdReused: see there.
        """
        with self._engine.begin() as transaction:
            locked_gallery(transaction, gallery_id)
            known = known_operation(transaction, gallery_id, operation_id, Kind.ERASURE)
            if known is not None:
                return known
            slots, epoch = self._erase_subject(transaction, gallery_id, subject)
            detail = {"slots": slots, "epoch": epoch}
            told = _erased(transaction, gallery_id, subject, slots)
            begun = insert_operation(transaction, gallery_id, operation_id, Kind.ERASURE, 0, detail, told)
        self._forget()
        return begun

    @staticmethod
    def _erase_subject(transaction: sa.Connection, gallery_id: str, subject: str) -> tuple[list[int], int]:
        table = tables.templates
        of_subject = (table.c.gallery == gallery_id, table.c.subject == subject)
        epoch = locked_gallery(transaction, gallery_id).epoch + 1
        held = transaction.execute(sa.select(table.c.slot, table.c.block).where(*of_subject)).all()
        if not held:
            raise SubjectNotFound("the gallery has no such subject: list its subjects")
        erase_templates(transaction, gallery_id, {row.slot: row.block for row in held}, epoch)
        return sorted(row.slot for row in held), epoch

    def keep_for(self, gallery_id: str, retention_s: int | None) -> None:
        """Set how long templates of a gallery are kept, from when each was enrolled; None for ever.

        Raises:
            GalleryNotFound: there is none of that id.
        """
        with self._engine.begin() as transaction:
            locked_gallery(transaction, gallery_id)
            table = tables.galleries
            transaction.execute(sa.update(table).where(table.c.id == gallery_id).values(retention_s=retention_s))
            note(transaction, "UpdateGallery", gallery_id, {"retention_s": retention_s or "none"})

    def expire(self, gallery_id: str, lease: Lease, before: datetime) -> int:
        """Erase some templates that were enrolled before a time; returns how many, 0 if there are none.

        Of a subject that keeps others, the first of these leads from now on.

        Raises:
            GalleryNotFound, LeaseLost: see there.
        """
        table = tables.templates
        with self._engine.begin() as transaction:
            epoch = locked_gallery(transaction, gallery_id).epoch + 1
            check_fence(transaction, lease)
            query = sa.select(table.c.slot, table.c.block, table.c.subject).limit(SLOTS_A_STATEMENT)
            where = (table.c.gallery == gallery_id, table.c.created < before)
            old = transaction.execute(query.where(*where).order_by(table.c.slot)).all()
            if not old:
                return 0
            erase_templates(transaction, gallery_id, {row.slot: row.block for row in old}, epoch)
            lead_again(transaction, gallery_id, {row.subject for row in old}, epoch)
            note(transaction, "Expire", gallery_id, {"slots": [str(row.slot) for row in old]})
        self._forget()
        return len(old)

    def import_block(
        self,
        gallery_id: str,
        key_version: str,
        subjects: Sequence[str],
        columns: int,
        capacity: int,
        ciphertext: bytes,
        request_id: str,
        operation_id: str = "",
    ) -> Enrolled:
        """Store an admitted block whose first positions hold one template each of some subjects.

        Args:
            gallery_id: the gallery.
            key_version: what the block was admitted under.
            subjects: by position, at most `capacity`.
            columns: of its shape.
            capacity: of its shape.
            ciphertext: the block.
            request_id: the caller's; seen before it gets its first answer and stores nothing.
            operation_id: of the import that it is part of, if it is.

        Returns:
            The first slot; the others follow.

        Raises:
            GalleryNotFound, WrongKeyVersion, RequestIdReused, TooManyTemplates, OperationNotFound, OperationEnded: see
            there.
        """
        named = import_name(subjects)
        with self._engine.begin() as transaction:
            row = locked_gallery(transaction, gallery_id)
            known = known_request(transaction, gallery_id, request_id, named)
            if known is not None:
                return known
            _check_version(row.key_version, key_version)
            first, last = row.next_slot, row.next_slot + len(subjects) - 1
            if last > _LAST_SLOT:
                raise TooManyTemplates("the gallery has no slots left for these: make a new gallery", limit=_LAST_SLOT)
            imported = Enrolled(first, row.epoch + 1, datetime.now(UTC))
            leads = first_slots(transaction, gallery_id, subjects, first)
            common = {
                "gallery": gallery_id,
                "block": row.next_block,
                "epoch": imported.epoch,
                "created": imported.created,
            }
            transaction.execute(
                sa.insert(tables.templates),
                [
                    {"slot": first + i, "subject": subject, "lead": lead, **common}
                    for i, (subject, lead) in enumerate(zip(subjects, leads, strict=True))
                ],
            )
            slots = np.zeros(capacity, "<u4")
            slots[: len(subjects)] = np.arange(first, last + 1)
            placed, number = slots.tobytes(), row.next_block
            insert_block(transaction, gallery_id, key_version, number, columns, placed, ciphertext, imported=True)
            insert_request(transaction, gallery_id, request_id, named, imported)
            advance(transaction, gallery_id, imported.epoch, next_slot=last + 1, next_block=row.next_block + 1)
            whom = "\n".join(pseudonyms(transaction, gallery_id, subjects))
            told = {"subjects": hashlib.sha256(whom.encode()).hexdigest(), "slot": first, "templates": len(subjects)}
            note(transaction, "ImportBlock", gallery_id, told | ({"operation": operation_id} if operation_id else {}))
            if operation_id:
                count_imported(transaction, gallery_id, operation_id, len(subjects))
        return imported

    def seal(
        self,
        gallery: Gallery,
        lease: Lease,
        columns: int,
        slots: NDArray[np.uint32],
        ciphertext: bytes,
        replaced: Collection[int],
        *,
        imported: bool = False,
    ) -> bool:
        """Put a sealed block in the place of open templates, and of blocks whose templates are in it.

        Templates that were erased since the block was begun stay erased; the block counts them, and is made again.

        Args:
            gallery: as it was when the block was begun.
            lease: of whoever made it.
            columns: of its shape.
            slots: (capacity,) by position, 0 for none.
            ciphertext: the block.
            replaced: blocks that are dropped.
            imported: whether its templates have no ciphertexts of their own.

        Returns:
            Whether it was stored; not if the gallery was made anew or moved to another key version, or a replaced
            block is gone.

        Raises:
            GalleryNotFound, LeaseLost: see there.
        """
        table = tables.templates
        held = slots[slots > 0].tolist()
        with self._engine.begin() as transaction:
            row = locked_gallery(transaction, gallery.id)
            if (row.first_epoch, row.key_version) != (gallery.first_epoch, gallery.key_version):
                return False
            check_fence(transaction, lease)
            if drop_blocks(transaction, gallery.id, replaced) != len(replaced):
                transaction.rollback()
                return False
            live = 0
            for start in range(0, len(held), SLOTS_A_STATEMENT):
                part = held[start : start + SLOTS_A_STATEMENT]
                where = (table.c.gallery == gallery.id, table.c.slot.in_(part))
                live += transaction.execute(sa.update(table).where(*where).values(block=row.next_block)).rowcount
            if live:
                insert_block(
                    transaction,
                    gallery.id,
                    gallery.key_version,
                    row.next_block,
                    columns,
                    slots.astype("<u4").tobytes(),
                    ciphertext,
                    imported=imported,
                    erased=len(held) - live,
                )
            advance(transaction, gallery.id, row.epoch + 1, next_block=row.next_block + 1)
        if replaced:
            self._forget()
        return True

    def drop_block(self, gallery: Gallery, lease: Lease, number: int) -> None:
        """Drop a block whose templates are all erased."""
        with self._engine.begin() as transaction:
            row = locked_gallery(transaction, gallery.id)
            check_fence(transaction, lease)
            drop_blocks(transaction, gallery.id, [number])
            advance(transaction, gallery.id, row.epoch + 1)
        self._forget()


def _erased(transaction: sa.Connection, gallery_id: str, subject: str, slots: Sequence[int]) -> dict[str, Detail]:
    """What the audit log has of an erasure."""
    return {"subject": pseudonym(transaction, gallery_id, subject), "slots": [str(slot) for slot in slots]}


def _check_version(stored: str, admitted: str) -> None:
    """Refuse what was admitted under another key version than the gallery's; one of another key if it was made anew."""
    if stored != admitted:
        same_key = stored.partition("/versions/")[0] == admitted.partition("/versions/")[0]
        raise wrong_key_version(stored) if same_key else not_found()
