from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.enrollment.record import NewGallery, Record
from sealface.storage.database import open_sqlite
from sealface.storage.galleries import Galleries, metadata


def new_gallery(gallery_id: str = "door", key: str | None = None, public_key: bytes = b"public") -> NewGallery:
    return NewGallery(
        id=gallery_id,
        key_version=f"keys/{key or gallery_id}/versions/1",
        managed=True,
        public_key=public_key,
        layout=Layout.of("", 128, Metric.COSINE, 1.0),
        privacy_level=2,
        fusion=1,
        recognition=b"recognition",
    )


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
