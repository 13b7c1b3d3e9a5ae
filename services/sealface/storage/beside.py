"""What lies beside a gallery's own rows: ciphertexts of what is erased, and damaged ones under another key version.

Backups do not look at it: nothing of it is searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from sealface.storage.digests import block_digest, sha256
from sealface.storage.findings import Damage, Finding
from sealface.storage.record import block_ciphertexts, blocks, galleries, template_ciphertexts, templates, tombstones

_AT_ONCE = 64


def examine_beside(transaction: sa.Connection, gallery_id: str) -> Iterator[Finding]:
    """What is wrong with it; all of it can be dropped, and what a rotation needs is made again by that."""
    for held, left, name, place in (
        (template_ciphertexts, erased_slots(gallery_id), "slot", "slot"),
        (block_ciphertexts, replaced_blocks(gallery_id), "number", "block"),
    ):
        query = sa.select(held.c[name]).where(held.c.gallery == gallery_id, left).distinct()
        for at in transaction.execute(query.order_by(held.c[name])).scalars():
            yield Finding(Damage.CIPHERTEXT_LEFT, gallery_id, healable=True, **{place: at})
    yield from _damaged(transaction, gallery_id)


def erased_slots(gallery_id: str) -> sa.ColumnElement[bool]:
    """Ciphertexts of templates that are erased; of one that is merely not there it may be all that is left."""
    slot = template_ciphertexts.c.slot
    live = sa.select(templates.c.slot).where(templates.c.gallery == gallery_id)
    erased = sa.select(tombstones.c.slot).where(tombstones.c.gallery == gallery_id)
    return sa.and_(slot.in_(erased), slot.not_in(live))


def replaced_blocks(gallery_id: str) -> sa.ColumnElement[bool]:
    """Ciphertexts of blocks that are not there, and that no template names."""
    number = block_ciphertexts.c.number
    there = sa.select(blocks.c.number).where(blocks.c.gallery == gallery_id)
    named = sa.select(templates.c.block).where(templates.c.gallery == gallery_id, templates.c.block.is_not(None))
    return sa.and_(number.not_in(there), number.not_in(named))


def _damaged(transaction: sa.Connection, gallery_id: str) -> Iterator[Finding]:
    what = Damage.MOVED_CIPHERTEXT_DAMAGED
    for row in _rows(transaction, gallery_id, template_ciphertexts, "slot", sa.select(template_ciphertexts)):
        if sha256(row.ciphertext) != row.digest:
            yield Finding(what, gallery_id, slot=row.slot, detail=row.key_version, healable=True)
    of_block = (blocks.c.gallery == block_ciphertexts.c.gallery) & (blocks.c.number == block_ciphertexts.c.number)
    query = sa.select(block_ciphertexts, blocks.c["columns"], blocks.c.slots).join(blocks, of_block)
    for row in _rows(transaction, gallery_id, block_ciphertexts, "number", query):
        if block_digest(row.columns, row.slots, row.ciphertext) != row.digest:
            yield Finding(what, gallery_id, block=row.number, detail=row.key_version, healable=True)


def _rows(
    transaction: sa.Connection, gallery_id: str, table: sa.Table, name: str, query: sa.Select[Any]
) -> Iterator[sa.Row[Any]]:
    """Rows under other versions than the gallery's, a few at a time."""
    live = sa.select(galleries.c.key_version).where(galleries.c.id == gallery_id).scalar_subquery()
    place = sa.tuple_(table.c.key_version, table.c[name])
    query = query.where(table.c.gallery == gallery_id, table.c.key_version != live).order_by(*place).limit(_AT_ONCE)
    page = query
    while found := transaction.execute(page).all():
        yield from found
        page = query.where(place > sa.tuple_(found[-1].key_version, found[-1]._mapping[name]))
