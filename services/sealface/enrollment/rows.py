"""The statements that the record's transactions are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from sealface.errors import InvalidInput, LimitExceeded
from sealface.storage import record as tables
from sealface.storage.database import in_utc
from sealface.storage.digests import block_digest, sha256, subject_digest
from sealface.storage.galleries import MOST_TEMPLATES, GalleryNotFound

SLOTS_A_STATEMENT = 500
_OF_GALLERY = (
    tables.tombstones,
    tables.requests,
    tables.blocks,
    tables.template_ciphertexts,
    tables.block_ciphertexts,
    tables.evaluation_keys,
    tables.versions,
    tables.operations,
    tables.leases,
)


class RequestIdReused(InvalidInput):
    """A request id was used before for another subject."""


class TooManyTemplates(LimitExceeded):
    """The subject, or the gallery, holds as many templates as it may."""


@dataclass(frozen=True)
class Enrolled:
    """A stored template."""

    slot: int
    epoch: int
    created: datetime


def import_name(subjects: Sequence[str]) -> str:
    """What a request to import stands under: no subject's id holds a line break, so it is no enrolment's."""
    return "\n".join(["", *subjects])


def erase_templates(transaction: sa.Connection, gallery_id: str, blocks: Mapping[int, int | None], epoch: int) -> None:
    """Erase some slots, given with the block that each lies in; under all key versions."""
    slots = list(blocks)
    for start in range(0, len(slots), SLOTS_A_STATEMENT):
        part = slots[start : start + SLOTS_A_STATEMENT]
        for table in (tables.template_ciphertexts, tables.templates):
            transaction.execute(sa.delete(table).where(table.c.gallery == gallery_id, table.c.slot.in_(part)))
    _count_erased(transaction, gallery_id, Counter(block for block in blocks.values() if block is not None))
    rows = [{"gallery": gallery_id, "slot": slot, "epoch": epoch} for slot in slots]
    transaction.execute(sa.insert(tables.tombstones), rows)
    advance(transaction, gallery_id, epoch)


def lead_again(transaction: sa.Connection, gallery_id: str, subjects: Iterable[str], epoch: int) -> None:
    """Have what is left of some subjects lead by the first slot that is left."""
    table = tables.templates
    for subject in subjects:
        where = (table.c.gallery == gallery_id, table.c.subject == subject)
        first, lead = transaction.execute(
            sa.select(sa.func.min(table.c.slot), sa.func.min(table.c.lead)).where(*where)
        ).one()
        if first != lead:
            transaction.execute(sa.update(table).where(*where).values(lead=first, epoch=epoch))


def _count_erased(transaction: sa.Connection, gallery_id: str, erased: Mapping[int, int]) -> None:
    """Add to the number of erased templates of some blocks."""
    table = tables.blocks
    for number, count in erased.items():
        where = (table.c.gallery == gallery_id, table.c.number == number)
        transaction.execute(sa.update(table).where(*where).values(erased=table.c.erased + count))


def first_slots(transaction: sa.Connection, gallery_id: str, subjects: Sequence[str], first: int) -> list[int]:
    """The first slot of each subject, when they get slots from `first` on.

    Raises:
        TooManyTemplates: one has as many as it may.
    """
    table = tables.templates
    held: dict[str, tuple[int, int]] = {}
    distinct = list(dict.fromkeys(subjects))
    for start in range(0, len(distinct), SLOTS_A_STATEMENT):
        part = distinct[start : start + SLOTS_A_STATEMENT]
        query = sa.select(table.c.subject, sa.func.count(), sa.func.min(table.c.lead)).group_by(table.c.subject)
        where = (table.c.gallery == gallery_id, table.c.subject.in_(part))
        held |= {row[0]: (row[1], row[2]) for row in transaction.execute(query.where(*where))}
    leads = []
    for i, subject in enumerate(subjects):
        count, lead = held.get(subject, (0, first + i))
        if count >= MOST_TEMPLATES:
            raise TooManyTemplates(f"a subject has {count} templates already: import fewer of it", limit=MOST_TEMPLATES)
        held[subject] = (count + 1, lead)
        leads.append(lead)
    return leads


def drop_blocks(transaction: sa.Connection, gallery_id: str, numbers: Collection[int]) -> int:
    """Drop some blocks, under all key versions; returns how many were there."""
    found = 0
    for table in (tables.block_ciphertexts, tables.blocks):
        where = (table.c.gallery == gallery_id, table.c.number.in_(list(numbers)))
        found = transaction.execute(sa.delete(table).where(*where)).rowcount
    return found


def insert_template_ciphertexts(
    transaction: sa.Connection, gallery_id: str, key_version: str, ciphertexts: Mapping[int, bytes]
) -> None:
    """Store templates' own ciphertexts under a key version, by slot."""
    rows = [
        {"gallery": gallery_id, "key_version": key_version, "slot": slot, "ciphertext": data, "digest": sha256(data)}
        for slot, data in ciphertexts.items()
    ]
    if rows:
        transaction.execute(sa.insert(tables.template_ciphertexts), rows)


def insert_block_ciphertext(
    transaction: sa.Connection,
    gallery_id: str,
    key_version: str,
    number: int,
    columns: int,
    slots: bytes,
    ciphertext: bytes,
) -> None:
    """Store a block's ciphertext under a key version."""
    transaction.execute(
        sa.insert(tables.block_ciphertexts).values(
            gallery=gallery_id,
            key_version=key_version,
            number=number,
            ciphertext=ciphertext,
            digest=block_digest(columns, slots, ciphertext),
        )
    )


def insert_version(
    transaction: sa.Connection,
    gallery_id: str,
    key_version: str,
    public_key: bytes,
    evaluation_keys: Mapping[int, bytes],
) -> None:
    """Store the public material of a key version."""
    name = {"gallery": gallery_id, "key_version": key_version}
    transaction.execute(
        sa.insert(tables.versions).values(name | {"public_key": public_key, "public_key_digest": sha256(public_key)})
    )
    for element, material in evaluation_keys.items():
        transaction.execute(
            sa.insert(tables.evaluation_keys).values(
                name | {"galois_element": element, "material": material, "digest": sha256(material)}
            )
        )


def insert_block(
    transaction: sa.Connection,
    gallery_id: str,
    key_version: str,
    number: int,
    columns: int,
    slots: bytes,
    ciphertext: bytes,
    *,
    imported: bool,
    erased: int = 0,
) -> None:
    """Store a block with its ciphertext; see the columns of the table."""
    transaction.execute(
        sa.insert(tables.blocks).values(
            gallery=gallery_id,
            number=number,
            columns=columns,
            slots=slots,
            imported=imported,
            erased=erased,
            created=datetime.now(UTC),
        )
    )
    insert_block_ciphertext(transaction, gallery_id, key_version, number, columns, slots, ciphertext)


def insert_request(
    transaction: sa.Connection, gallery_id: str, request_id: str, subject: str, enrolled: Enrolled
) -> None:
    """Remember what a request was answered."""
    transaction.execute(
        sa.insert(tables.requests).values(
            gallery=gallery_id,
            request_id=request_id,
            subject_digest=subject_digest(gallery_id, subject),
            slot=enrolled.slot,
            epoch=enrolled.epoch,
            created=enrolled.created,
        )
    )


def advance(transaction: sa.Connection, gallery_id: str, epoch: int, **counters: int) -> None:
    """Set a gallery's epoch, and counters of it."""
    table = tables.galleries
    transaction.execute(sa.update(table).where(table.c.id == gallery_id).values(epoch=epoch, **counters))


def locked_gallery(transaction: sa.Connection, gallery_id: str) -> Any:
    """Key version, epochs and counters of a gallery, locked until the transaction ends.

    Raises:
        GalleryNotFound: there is none of that id.
    """
    table = tables.galleries
    columns = (table.c.key_version, table.c.first_epoch, table.c.epoch, table.c.next_slot, table.c.next_block)
    row = transaction.execute(sa.select(*columns).where(table.c.id == gallery_id).with_for_update()).one_or_none()
    if row is None:
        raise not_found()
    return row


def remove_gallery(transaction: sa.Connection, gallery_id: str) -> int:
    """Erase a gallery and remember how far its counters were; returns how many templates it had.

    Raises:
        GalleryNotFound: there is none of that id.
    """
    row = locked_gallery(transaction, gallery_id)
    erased = transaction.execute(sa.delete(tables.templates).where(tables.templates.c.gallery == gallery_id)).rowcount
    for table in _OF_GALLERY:
        transaction.execute(sa.delete(table).where(table.c.gallery == gallery_id))
    transaction.execute(sa.delete(tables.galleries).where(tables.galleries.c.id == gallery_id))
    transaction.execute(sa.delete(tables.retired).where(tables.retired.c.id == gallery_id))
    transaction.execute(sa.insert(tables.retired).values(id=gallery_id, epoch=row.epoch, next_slot=row.next_slot))
    return erased


def not_found() -> GalleryNotFound:
    """The error for a gallery."""
    return GalleryNotFound("no such gallery: create it, or list the galleries there are")


def known_request(transaction: sa.Connection, gallery_id: str, request_id: str, subject: str) -> Enrolled | None:
    """What a request with that id was answered, if it was.

    Raises:
        RequestIdReused: it was another subject's.
    """
    table = tables.requests
    row = transaction.execute(
        sa.select(table).where(table.c.gallery == gallery_id, table.c.request_id == request_id)
    ).one_or_none()
    if row is None:
        return None
    if row.subject_digest != subject_digest(gallery_id, subject):
        raise RequestIdReused("this request id was used for another subject: draw a new one")
    return Enrolled(row.slot, row.epoch, in_utc(row.created))
