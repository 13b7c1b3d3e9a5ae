"""Heals what the record itself holds the means to heal, beside whatever goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import sqlalchemy as sa

from sealface.enrollment.audit import OPERATOR, note
from sealface.enrollment.rows import advance, drop_blocks, locked_gallery
from sealface.storage import record as tables
from sealface.storage.beside import erased_slots, replaced_blocks
from sealface.storage.database import forget
from sealface.storage.findings import Damage, Finding
from sealface.storage.galleries import GalleryNotFound


def repair(engine: sa.Engine, findings: Iterable[Finding]) -> list[Finding]:
    """Heal what findings are about, where that can be done; returns them as they are then.

    A sealed block is dropped: its templates have ciphertexts of their own, lie in the open tail again, and are sealed
    anew in the background. A block's number means one block for good, so nothing that was made meanwhile is touched; a
    gallery made anew meanwhile has at most a block sealed twice. A ciphertext that is left of what was erased, or
    damaged under a version that the gallery is moved to, is dropped: the rotation makes the latter again.
    """
    seen = [replace(finding, repaired=True) if _heal(engine, finding) else finding for finding in findings]
    if any(finding.repaired for finding in seen):
        forget(engine)
    return seen


def _heal(engine: sa.Engine, finding: Finding) -> bool:
    if not finding.healable or (finding.block is None and finding.slot is None):
        return False
    try:
        with engine.begin() as transaction:
            row = locked_gallery(transaction, finding.gallery)
            if finding.what in (Damage.CIPHERTEXT_LEFT, Damage.MOVED_CIPHERTEXT_DAMAGED):
                _drop_beside(transaction, finding, row.key_version)
            elif finding.block is None:
                return False
            elif finding.what is Damage.ERASED_COUNT_WRONG:
                _count_erased(transaction, finding.gallery, finding.block)
                advance(transaction, finding.gallery, row.epoch + 1)
            elif _open(transaction, finding.gallery, finding.block):
                advance(transaction, finding.gallery, row.epoch + 1)
            else:
                return False
            told = {"found": str(finding.what), "where": finding.where}
            note(transaction, "Repair", finding.gallery, told, actor=OPERATOR)
    except GalleryNotFound:  # deleted meanwhile
        return False
    return True


def _drop_beside(transaction: sa.Connection, finding: Finding, live: str) -> None:
    """Drop a ciphertext that is left of what was erased, or under another version than the gallery's and damaged."""
    for held, left, name, at in (
        (tables.template_ciphertexts, erased_slots(finding.gallery), "slot", finding.slot),
        (tables.block_ciphertexts, replaced_blocks(finding.gallery), "number", finding.block),
    ):
        damaged = sa.and_(held.c.key_version != live, held.c.key_version == finding.detail)
        wrong = damaged if finding.what is Damage.MOVED_CIPHERTEXT_DAMAGED else left
        transaction.execute(sa.delete(held).where(held.c.gallery == finding.gallery, held.c[name] == at, wrong))


def _count_erased(transaction: sa.Connection, gallery_id: str, number: int) -> None:
    """Count again which slots of a block are erased."""
    of_block = (tables.blocks.c.gallery == gallery_id, tables.blocks.c.number == number)
    slots = transaction.execute(sa.select(tables.blocks.c.slots).where(*of_block)).scalar_one_or_none()
    if slots is None:  # made again meanwhile
        return
    live = sa.select(sa.func.count()).select_from(tables.templates)
    held = transaction.execute(
        live.where(tables.templates.c.gallery == gallery_id, tables.templates.c.block == number)
    ).scalar_one()
    placed = int(np.count_nonzero(np.frombuffer(slots, "<u4")))
    transaction.execute(sa.update(tables.blocks).where(*of_block).values(erased=placed - held))


def _open(transaction: sa.Connection, gallery_id: str, number: int) -> bool:
    """Drop a block and have its templates open again; False if one of them has no ciphertext of its own."""
    table = tables.templates
    of_block = (table.c.gallery == gallery_id, table.c.block == number)
    galleries, own = tables.galleries, tables.template_ciphertexts
    live = sa.select(galleries.c.key_version).where(galleries.c.id == gallery_id).scalar_subquery()
    with_own = sa.select(own.c.slot).where(own.c.gallery == gallery_id, own.c.key_version == live)
    without = sa.select(table.c.slot).where(*of_block, table.c.slot.not_in(with_own))
    if transaction.execute(without.limit(1)).first():
        return False
    transaction.execute(sa.update(table).where(*of_block).values(block=None))
    drop_blocks(transaction, gallery_id, [number])
    return True
