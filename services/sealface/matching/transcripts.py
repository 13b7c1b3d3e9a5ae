"""What searches were computed from, kept for a while for an auditor who computes some of them again (docs/adr/0022).

A transcript holds the probe as it came, which blocks were searched, and the seed of the search's randomness: who has
it, and what the key service opened, can take masks off. It stays in the compute zone, and is written only where the
service was told to.
"""

from __future__ import annotations

import time
from pathlib import Path

import sqlalchemy as sa

from sealface.storage.database import open_sqlite, reading
from sealface.workers.convert import task_from_proto, task_to_proto
from sealface.workers.task import Task
from sealface_protos.workers.v1 import worker_service_pb2

KEPT_S = 86_400.0
FILE = "transcripts.db"

metadata = sa.MetaData()

_transcripts = sa.Table(
    "transcripts",
    metadata,
    sa.Column("gallery", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("created", sa.Float, nullable=False, index=True),  # seconds since 1970
    sa.Column("task", sa.LargeBinary, nullable=False),
)


class Transcripts:
    """Transcripts of one matching service.

    Args:
        path: their file.
        kept_s: for how long they are kept, seconds.
    """

    def __init__(self, path: Path, kept_s: float = KEPT_S) -> None:
        self._engine = open_sqlite(path, metadata)
        self._kept_s = kept_s

    def keep(self, request_id: str, task: Task) -> None:
        """Keep what a request is answered from; drop what is too old."""
        now = time.time()
        row = {"gallery": task.gallery, "request_id": request_id, "created": now}
        with self._engine.begin() as transaction:
            transaction.execute(sa.delete(_transcripts).where(_transcripts.c.created < now - self._kept_s))
            named = (_transcripts.c.gallery == task.gallery, _transcripts.c.request_id == request_id)
            transaction.execute(sa.delete(_transcripts).where(*named))
            data = task_to_proto(task).SerializeToString()
            transaction.execute(sa.insert(_transcripts).values(**row, task=data))

    def find(self, gallery_id: str, request_id: str) -> Task | None:
        """What a request was answered from, if it is kept."""
        named = (_transcripts.c.gallery == gallery_id, _transcripts.c.request_id == request_id)
        with reading(self._engine).begin() as transaction:
            data = transaction.execute(sa.select(_transcripts.c.task).where(*named)).scalar_one_or_none()
        return None if data is None else task_from_proto(worker_service_pb2.ScoreRequest.FromString(data))
