"""A record with one large gallery, made without the services."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import sqlalchemy as sa

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Ckks
from sealface.enrollment.record import NewGallery, Record
from sealface.storage.galleries import Galleries, Gallery
from sealface.workers.task import Part, Task, slots_digest
from sealface_bench.search import unit_vectors

Tell = Callable[[str], None]
_VERSION = "keys/bench/versions/1"


class Filled:
    """An imported gallery of unit vectors.

    Args:
        engine: the record, empty.
        templates: how many.
        dimension: of a vector.
        tell: told of progress.
        distinct: how many blocks are encrypted; further ones are those again, where nobody looks at the scores.
    """

    def __init__(
        self, engine: sa.Engine, templates: int, dimension: int, tell: Tell, distinct: int | None = None
    ) -> None:
        scheme, self.layout = Ckks(), Layout.of("", dimension, Metric.COSINE, 1.0)
        self.material = scheme.generate(self.layout.parameters)
        record, self.galleries = Record(engine), Galleries(engine)
        new = NewGallery(
            "bench", _VERSION, True, self.material.public, self.material.evaluation, self.layout, 2, 1, b""
        )
        record.create_gallery(new)
        self.encryptor = scheme.encryptor(self.layout, self.material.public)
        shape = self.layout.best_shape(templates)
        encrypted: list[bytes] = []
        vectors = unit_vectors(min(templates, (distinct or templates) * shape.capacity), dimension, 1)
        for number, start in enumerate(range(0, templates, shape.capacity)):
            count = min(shape.capacity, templates - start)
            if distinct is None or number < distinct:
                made = self.encryptor.block(shape, vectors[start : start + count].astype(np.float64))
                encrypted = [*encrypted, made] if distinct else [made]
            subjects = [f"s{start + i}" for i in range(count)]
            data = encrypted[number % len(encrypted)]
            record.import_block("bench", _VERSION, subjects, shape.columns, shape.capacity, data, f"r{start}")
            tell(f"imported {start + count:,} of {templates:,}")
        self.gallery: Gallery = self.galleries.get("bench")

    def task(self, probes: int) -> Task:
        """A search for random probes over all of it; with none, all of it is loaded and nothing scored."""
        faces = unit_vectors(probes, self.layout.dimension, 2).astype(np.float64)
        parts = []
        for block in self.galleries.blocks("bench"):
            slots = self.galleries.block_slots("bench", block.number)
            assert slots is not None
            parts.append(Part(block.columns, block.number, slots_digest(slots), slots > 0 if probes else None))
        encrypted = tuple(self.encryptor.probe(face) for face in faces)
        return Task("bench", self.gallery.first_epoch, self.gallery.key_version, encrypted, tuple(parts), whole=True)
