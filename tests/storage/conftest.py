from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.enrollment.record import NewGallery, Record
from sealface.storage.database import open_sqlite
from sealface.storage.galleries import Galleries
from sealface.storage.record import metadata


def new_gallery(
    gallery_id: str = "door",
    key: str | None = None,
    public_key: bytes = b"public",
    evaluation_keys: Mapping[int, bytes] | None = None,
    layout: Layout | None = None,
) -> NewGallery:
    return NewGallery(
        id=gallery_id,
        key_version=f"keys/{key or gallery_id}/versions/1",
        managed=True,
        public_key=public_key,
        evaluation_keys=evaluation_keys or {},
        layout=layout or Layout.of("", 128, Metric.COSINE, 1.0),
        privacy_level=2,
        fusion=1,
        recognition=b"recognition",
    )


def open_quickly(path: Path) -> sa.Engine:
    """The record without waiting for the disk, for tests that write much and do not crash."""
    engine = open_sqlite(path, metadata)
    engine.dispose()

    @sa.event.listens_for(engine, "connect")
    def _relax(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    return engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.db"


@pytest.fixture
def engine(path: Path) -> sa.Engine:
    return open_sqlite(path, metadata)


@pytest.fixture
def record(engine: sa.Engine) -> Record:
    return Record(engine)


@pytest.fixture
def galleries(engine: sa.Engine) -> Galleries:
    return Galleries(engine)
