"""How the record is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.errors import NotFound
from sealface.storage.database import in_utc, reading
from sealface.storage.digests import Fingerprint, block_digest, checked, sha256, slots_of
from sealface.storage.record import (
    block_ciphertexts,
    blocks,
    evaluation_keys,
    galleries,
    template_ciphertexts,
    templates,
    tombstones,
    versions,
)

MOST_TEMPLATES = 16
"""Templates a subject may have: a verification claims all of them."""


class GalleryNotFound(NotFound):
    """No gallery of that name."""


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
        retention_s: seconds that a template is kept; None for ever.
        transform_digest: of the seed of its callers' transform, 32 bytes; None without one.
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
    retention_s: int | None = None
    transform_digest: bytes | None = None

    @property
    def identity(self) -> tuple[str, int, str]:
        """What its ciphertexts belong to: its id, the epoch it was made at, and the key version they are under."""
        return self.id, self.first_epoch, self.key_version


@dataclass(frozen=True)
class Change:
    """A slot taken by a subject, or given up (subject None)."""

    slot: int
    subject: str | None
    epoch: int


@dataclass(frozen=True)
class BlockInfo:
    """A sealed block.

    Attributes:
        number: its number in the gallery.
        columns: of its shape.
        imported: whether its templates have no ciphertexts of their own.
        erased: how many of its templates are erased.
        live: how many are not.
    """

    number: int
    columns: int
    imported: bool
    erased: int
    live: int


@dataclass(frozen=True)
class Placement:
    """Where a gallery's templates lie, at one moment.

    Attributes:
        first_epoch, epoch: the gallery's.
        taken: (n, 2) slot and the subject's first slot, of templates that are new since the epoch asked for.
        given: (n,) slots that were given up since.
        tail: (n,) slots that are in no block.
        blocks: number and columns of each sealed block.
    """

    first_epoch: int
    epoch: int
    taken: NDArray[np.int64]
    given: NDArray[np.int64]
    tail: NDArray[np.int64]
    blocks: dict[int, int]


@dataclass(frozen=True)
class Census:
    """How many templates of a gallery lie where, at one moment.

    Attributes:
        sealed: in blocks.
        open: in the tail.
        groups: of the tail.
        erased: erased, and still in blocks.
        blocks: how many blocks there are.
    """

    sealed: int
    open: int
    groups: int
    erased: int
    blocks: int


@dataclass(frozen=True)
class Head:
    """A gallery at one moment: what names its ciphertexts, and how far its counters are.

    Attributes:
        gallery: its id.
        key_version, first_epoch, epoch: see `Gallery`.
        next_block: number that its next block gets.
    """

    gallery: str
    key_version: str
    first_epoch: int
    epoch: int
    next_block: int


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of some of a gallery's ciphertexts, at one moment.

    Attributes:
        head: the gallery.
        templates: by slot, of those that have a ciphertext of their own.
        blocks: by number.
    """

    head: Head
    templates: dict[int, Fingerprint]
    blocks: dict[int, Fingerprint]


_HEAD = (
    galleries.c.id,
    galleries.c.key_version,
    galleries.c.first_epoch,
    galleries.c.epoch,
    galleries.c.next_block,
)


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
        created=in_utc(row.created),
        retention_s=row.retention_s,
        transform_digest=row.transform_digest,
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

    def count(self, gallery_id: str) -> int:
        """How many templates a gallery holds."""
        query = sa.select(sa.func.count()).select_from(templates).where(templates.c.gallery == gallery_id)
        with self._engine.begin() as transaction:
            return transaction.execute(query).scalar_one()

    def census(self, gallery: Gallery) -> Census:
        """How many templates of a gallery lie where; all 0 if it is gone."""
        of_gallery = templates.c.gallery == gallery.id
        # counted apart, for then an index alone is read
        held = sa.select(sa.func.count(), sa.func.count(templates.c.block)).where(of_gallery)
        group = (templates.c.slot - 1) // gallery.layout.group.capacity
        groups = sa.select(sa.func.count(sa.distinct(group))).where(of_gallery, templates.c.block.is_(None))
        erased = sa.select(sa.func.coalesce(sa.func.sum(blocks.c.erased), 0), sa.func.count())
        with self._engine.begin() as transaction:
            live, sealed = transaction.execute(held).one()
            gone, made = transaction.execute(erased.where(blocks.c.gallery == gallery.id)).one()
            open_groups = transaction.execute(groups).scalar_one()
        return Census(sealed, live - sealed, open_groups, int(gone), made)

    def public_key(self, gallery_id: str, key_version: str | None = None) -> bytes:
        """The public key of a gallery's key version, or of another that it is moved to or from.

        Raises:
            GalleryNotFound: there is no such gallery, or it has no more to do with that version.
            TemplateDamaged: the key does not match its digest.
        """
        query = sa.select(versions.c.public_key, versions.c.public_key_digest).where(
            versions.c.gallery == gallery_id, versions.c.key_version == _version(gallery_id, key_version)
        )
        with self._engine.begin() as transaction:
            row = transaction.execute(query).one_or_none()
        if row is None:
            raise _not_found()
        return checked(row.public_key, sha256(row.public_key), row.public_key_digest)

    def epochs(self, gallery_id: str) -> tuple[int, int]:
        """First and last epoch of a gallery: the cheapest look at whether anything changed."""
        query = sa.select(galleries.c.first_epoch, galleries.c.epoch).where(galleries.c.id == gallery_id)
        with self._engine.begin() as transaction:
            row = transaction.execute(query).one_or_none()
        if row is None:
            raise _not_found()
        return row.first_epoch, row.epoch

    def heads(self) -> list[Head]:
        """All galleries, by id."""
        with self._engine.begin() as transaction:
            return [Head(*row) for row in transaction.execute(sa.select(*_HEAD).order_by(galleries.c.id))]

    def fingerprints(
        self, gallery_id: str, slots: Collection[int] = (), numbers: Collection[int] = ()
    ) -> Fingerprints | None:
        """What the record says of some templates and blocks without giving them out; None if there is no such gallery.

        Args:
            gallery_id: the gallery.
            slots: of templates, a few hundred at most.
            numbers: of blocks, likewise.
        """
        table = template_ciphertexts
        own = sa.select(table.c.slot, sa.func.length(table.c.ciphertext), table.c.digest).where(
            table.c.gallery == gallery_id, table.c.key_version == _version(gallery_id), table.c.slot.in_(slots)
        )
        data = block_ciphertexts.c
        sealed = (
            sa.select(
                blocks.c.number, sa.func.length(data.ciphertext), data.digest, blocks.c["columns"], blocks.c.slots
            )
            .select_from(blocks)
            .join(block_ciphertexts, _of_block(gallery_id))
            .where(blocks.c.gallery == gallery_id, blocks.c.number.in_(numbers))
        )
        with self._engine.begin() as transaction:
            head = transaction.execute(sa.select(*_HEAD).where(galleries.c.id == gallery_id)).one_or_none()
            if head is None:
                return None
            found = transaction.execute(own).all() if slots else ()
            of_blocks = transaction.execute(sealed).all() if numbers else ()
        return Fingerprints(
            Head(*head),
            {slot: Fingerprint(size, bytes(digest)) for slot, size, digest in found},
            {
                number: Fingerprint.of_block(size, bytes(digest), columns, bytes(placed))
                for number, size, digest, columns, placed in of_blocks
            },
        )

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

    def placement(self, gallery_id: str, since: int) -> Placement:
        """Where templates lie, with what changed after an epoch.

        Raises:
            GalleryNotFound: there is none of that id.
        """
        new = sa.select(templates.c.slot, templates.c.lead).where(
            templates.c.gallery == gallery_id, templates.c.epoch > since
        )
        gone = sa.select(tombstones.c.slot).where(tombstones.c.gallery == gallery_id, tombstones.c.epoch > since)
        new, gone = new.order_by(templates.c.slot), gone.order_by(tombstones.c.slot)
        open_ = sa.select(templates.c.slot).where(templates.c.gallery == gallery_id, templates.c.block.is_(None))
        sealed = sa.select(blocks.c.number, blocks.c["columns"]).where(blocks.c.gallery == gallery_id)
        with self._engine.begin() as transaction:
            query = sa.select(galleries.c.first_epoch, galleries.c.epoch).where(galleries.c.id == gallery_id)
            row = transaction.execute(query).one_or_none()
            if row is None:
                raise _not_found()
            return Placement(
                first_epoch=row.first_epoch,
                epoch=row.epoch,
                taken=np.array([tuple(r) for r in transaction.execute(new)], np.int64).reshape(-1, 2),
                given=np.array(transaction.execute(gone).scalars().all(), np.int64),
                tail=np.array(transaction.execute(open_.order_by(templates.c.slot)).scalars().all(), np.int64),
                blocks={r.number: r.columns for r in transaction.execute(sealed)},
            )

    def block(
        self, gallery_id: str, number: int, key_version: str | None = None
    ) -> tuple[NDArray[np.uint32], bytes] | None:
        """Slots by position, and ciphertext, of a sealed block; None if it is not there any more.

        Args:
            gallery_id: the gallery.
            number: the block's.
            key_version: that the ciphertext is to be under; the gallery's if none is named.

        Raises:
            TemplateDamaged: the ciphertext does not match its digest.
        """
        stored = block_ciphertexts.c
        query = (
            sa.select(blocks.c["columns"], blocks.c.slots, stored.ciphertext, stored.digest)
            .select_from(blocks)
            .join(block_ciphertexts, _of_block(gallery_id, key_version))
            .where(blocks.c.gallery == gallery_id, blocks.c.number == number)
        )
        with self._engine.begin() as transaction:
            row = transaction.execute(query).one_or_none()
        if row is None:
            return None
        data = checked(row.ciphertext, block_digest(row.columns, row.slots, row.ciphertext), row.digest)
        return slots_of(row.slots), data

    def block_slots(self, gallery_id: str, number: int) -> NDArray[np.uint32] | None:
        """Slots by position of a sealed block; None if it is not there any more.

        They are not checked against the block's digest: that takes its ciphertext, and who loads that checks both.
        """
        query = sa.select(blocks.c.slots).where(blocks.c.gallery == gallery_id, blocks.c.number == number)
        with self._engine.begin() as transaction:
            found = transaction.execute(query).scalar_one_or_none()
        return None if found is None else slots_of(found)

    def blocks(self, gallery_id: str) -> list[BlockInfo]:
        """A gallery's sealed blocks, by number."""
        query = sa.select(blocks.c.number, blocks.c["columns"], blocks.c.imported, blocks.c.erased, blocks.c.slots)
        with self._engine.begin() as transaction:
            rows = transaction.execute(query.where(blocks.c.gallery == gallery_id).order_by(blocks.c.number)).all()
        return [BlockInfo(*row[:-1], live=int(np.count_nonzero(slots_of(row.slots))) - row.erased) for row in rows]

    def blocks_of(self, gallery_id: str, slots: Collection[int]) -> list[BlockInfo]:
        """The sealed blocks in which some slots lie, live or erased."""
        wanted = np.fromiter(slots, np.uint32)
        query = sa.select(blocks.c.number, blocks.c.slots).where(blocks.c.gallery == gallery_id)
        with self._engine.begin() as transaction:
            found = {row.number for row in transaction.execute(query) if np.isin(wanted, slots_of(row.slots)).any()}
        return [block for block in self.blocks(gallery_id) if block.number in found]

    def gone_blocks(self, gallery_id: str) -> set[int]:
        """Numbers of blocks that were dropped or replaced."""
        query = sa.select(galleries.c.next_block).where(galleries.c.id == gallery_id)
        with self._engine.begin() as transaction:
            next_block = transaction.execute(query).scalar_one_or_none() or 1
            held = transaction.execute(sa.select(blocks.c.number).where(blocks.c.gallery == gallery_id)).scalars()
            return set(range(1, next_block)) - set(held)

    def older(self, gallery_id: str, before: datetime) -> int:
        """How many templates were enrolled before a time."""
        query = sa.select(sa.func.count()).select_from(templates)
        with self._engine.begin() as transaction:
            where = (templates.c.gallery == gallery_id, templates.c.created < before)
            return transaction.execute(query.where(*where)).scalar_one()

    def open_count(self, gallery_id: str) -> int:
        """How many templates lie in the open tail."""
        query = sa.select(sa.func.count()).select_from(templates)
        with self._engine.begin() as transaction:
            where = (templates.c.gallery == gallery_id, templates.c.block.is_(None))
            return transaction.execute(query.where(*where)).scalar_one()

    def unsealed(self, gallery_id: str, limit: int) -> list[int]:
        """The oldest slots of the open tail."""
        query = sa.select(templates.c.slot).where(templates.c.gallery == gallery_id, templates.c.block.is_(None))
        with self._engine.begin() as transaction:
            return list(transaction.execute(query.order_by(templates.c.slot).limit(limit)).scalars())

    def sealed(self, gallery_id: str, number: int) -> list[int]:
        """The live slots of a block."""
        query = sa.select(templates.c.slot).where(templates.c.gallery == gallery_id, templates.c.block == number)
        with self._engine.begin() as transaction:
            return list(transaction.execute(query.order_by(templates.c.slot)).scalars())

    def homes(self, gallery_id: str, slots: Iterable[int]) -> dict[int, int | None]:
        """Where those of the slots that are live are to be had: None for a ciphertext of its own, else the block."""
        table = template_ciphertexts
        of_template = sa.and_(
            table.c.gallery == gallery_id,
            table.c.key_version == _version(gallery_id),
            table.c.slot == templates.c.slot,
        )
        own = table.c.slot.is_not(None).label("own")
        query = sa.select(templates.c.slot, templates.c.block, own).select_from(templates).outerjoin(table, of_template)
        query = query.where(templates.c.gallery == gallery_id, templates.c.slot.in_(list(slots)))
        with self._engine.begin() as transaction:
            return {row.slot: None if row.own else row.block for row in transaction.execute(query)}

    def evaluation_keys(self, gallery_id: str, key_version: str | None = None) -> dict[int, bytes]:
        """Galois keys of a gallery's key version, or of another that it is moved to or from, by element.

        Raises:
            TemplateDamaged: one does not match its digest.
        """
        table = evaluation_keys
        query = sa.select(table.c.galois_element, table.c.material, table.c.digest).where(
            table.c.gallery == gallery_id, table.c.key_version == _version(gallery_id, key_version)
        )
        with self._engine.begin() as transaction:
            rows = transaction.execute(query).all()
        return {row.galois_element: checked(row.material, sha256(row.material), row.digest) for row in rows}

    def ciphertexts(
        self, gallery_id: str, slots: Iterable[int], key_version: str | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Slot and ciphertext of those of the slots that have one of their own, each checked against its digest.

        Args:
            gallery_id: the gallery.
            slots: which.
            key_version: that the ciphertexts are to be under; the gallery's if none is named.

        Raises:
            TemplateDamaged: a ciphertext does not match its digest.
        """
        wanted = sorted(slots)
        table = template_ciphertexts
        query = sa.select(table.c.slot, table.c.ciphertext, table.c.digest)
        for start in range(0, len(wanted), 256):
            part = wanted[start : start + 256]
            with self._engine.begin() as transaction:
                where = (
                    table.c.gallery == gallery_id,
                    table.c.key_version == _version(gallery_id, key_version),
                    table.c.slot.in_(part),
                )
                rows = transaction.execute(query.where(*where)).all()
            for row in rows:
                yield row.slot, checked(row.ciphertext, sha256(row.ciphertext), row.digest)

    def subject(self, gallery_id: str, subject: str) -> list[tuple[int, datetime]]:
        """Slot and time of a subject's templates, by slot; empty for an unknown subject."""
        query = sa.select(templates.c.slot, templates.c.created).where(
            templates.c.gallery == gallery_id, templates.c.subject == subject
        )
        with self._engine.begin() as transaction:
            rows = transaction.execute(query.order_by(templates.c.slot)).all()
        return [(row.slot, in_utc(row.created)) for row in rows]

    def subjects(self, gallery_id: str, after: str, limit: int) -> list[str]:
        """Subject ids in order, from the first after that one."""
        query = sa.select(templates.c.subject).where(templates.c.gallery == gallery_id, templates.c.subject > after)
        with self._engine.begin() as transaction:
            return list(transaction.execute(query.distinct().order_by(templates.c.subject).limit(limit)).scalars())


def _version(gallery_id: str, key_version: str | None = None) -> sa.ColumnElement[str]:
    """A key version, or the one that the gallery is under."""
    if key_version is not None:
        return sa.literal(key_version)
    return sa.select(galleries.c.key_version).where(galleries.c.id == gallery_id).scalar_subquery()


def _of_block(gallery_id: str, key_version: str | None = None) -> sa.ColumnElement[bool]:
    """What joins a block with its ciphertext under a key version."""
    data = block_ciphertexts.c
    version = data.key_version == _version(gallery_id, key_version)
    return sa.and_(data.gallery == blocks.c.gallery, data.number == blocks.c.number, version)


def _not_found() -> GalleryNotFound:
    return GalleryNotFound("no such gallery: create it, or list the galleries there are")
