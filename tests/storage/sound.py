"""A gallery whose rows are all as they should be, of ciphertexts of the right form that hide nothing in particular."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import switching, wire
from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.enrollment.leases import Leases
from sealface.enrollment.record import Record
from sealface.storage.galleries import Galleries, Gallery
from tests.storage.conftest import new_gallery

LAYOUT = Layout.of("", 128, Metric.COSINE, 1.0)
SHAPE = LAYOUT.sealed_shapes[0]
KEY = "keys/door/versions/1"
SEALED = (1, 2, 3)
LIVE = (*SEALED, 4, 5, 6, 7, 8, 11)


@cache
def polynomials(count: int, seed: int, special: bool = False) -> bytes:
    primes = LAYOUT.parameters.primes if special else LAYOUT.parameters.data_primes
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(1, p, (count, LAYOUT.parameters.degree), np.uint64) for p in primes]
    return wire.pack(np.stack(drawn, axis=1), primes)


def template(number: int) -> bytes:
    return polynomials(2, number)


def block(number: int) -> bytes:
    return polynomials(2 * SHAPE.columns, 100 + number)


def evaluation_keys() -> dict[int, bytes]:
    levels = LAYOUT.sealed_shapes[-1].columns.bit_length() - 1
    elements = [switching.element_of_level(level, LAYOUT.parameters.degree) for level in range(levels)]
    return {element: polynomials(4, 1000, special=True) for element in elements}


def create(record: Record, gallery_id: str = "door") -> None:
    record.create_gallery(
        new_gallery(
            gallery_id,
            public_key=polynomials(2, 999, special=True),
            evaluation_keys=evaluation_keys(),
            layout=LAYOUT,
            recognition=b"",
        )
    )


def enroll(record: Record, gallery_id: str, subject: str, number: int, data: bytes | None = None) -> int:
    key = f"keys/{gallery_id}/versions/1"
    return record.enroll(gallery_id, key, subject, data or template(number), f"r-{number}").slot


def seal(
    record: Record, gallery: Gallery, placed: NDArray[np.uint32], data: bytes, replaced: Sequence[int] = ()
) -> None:
    leases = Leases(record._engine)
    lease = leases.take(gallery.id)
    assert lease is not None
    assert record.seal(gallery, lease, SHAPE.columns, placed, data, replaced)
    leases.release(lease)


def fill(record: Record, galleries: Galleries, gallery_id: str = "door") -> None:
    """Nine live templates and two erased ones.

    Slots 1 to 3 are sealed in block 1: ann, bob, ann. 4 to 6 were imported as block 2: cid, bob, dan; 10 and 11
    as block 3: eve, who is erased, and han. 7 to 9 are open: eda, fay, and gus, who is erased.
    """
    create(record, gallery_id)
    for number, subject in enumerate(("ann", "bob", "ann"), 1):
        enroll(record, gallery_id, subject, number)
    placed = np.zeros(SHAPE.capacity, np.uint32)
    placed[: len(SEALED)] = SEALED
    seal(record, galleries.get(gallery_id), placed, block(1))
    key = f"keys/{gallery_id}/versions/1"
    record.import_block(gallery_id, key, ["cid", "bob", "dan"], SHAPE.columns, SHAPE.capacity, block(2), "r-import")
    for number, subject in enumerate(("eda", "fay", "gus"), 7):
        enroll(record, gallery_id, subject, number)
    record.import_block(gallery_id, key, ["eve", "han"], SHAPE.columns, SHAPE.capacity, block(3), "r-import-2")
    record.erase_subject(gallery_id, "eve")
    record.erase_subject(gallery_id, "gus")
