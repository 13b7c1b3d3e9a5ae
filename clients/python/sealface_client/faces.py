"""Faces to embeddings, on the caller's machine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sealface.errors import InvalidInput
from sealface.recognition import Embedder, FaceRule, Pipeline
from sealface_protos.enrollment.v1 import gallery_pb2

Face = str | Path | bytes | NDArray[np.floating]
"""A path, an encoded picture, or an embedding (d,)."""

_RULES = {
    gallery_pb2.FACE_RULE_REFUSE: FaceRule.REFUSE,
    gallery_pb2.FACE_RULE_LARGEST: FaceRule.LARGEST,
}


class ImageUnreadable(InvalidInput):
    """The file of a picture cannot be read."""


def pipeline_of(recognition: gallery_pb2.Recognition) -> Pipeline:
    """How a gallery's faces are embedded."""
    return Pipeline(
        model=recognition.model,
        detector=recognition.detector,
        align=not recognition.unaligned,
        anti_spoofing=recognition.anti_spoofing,
        several=_RULES.get(recognition.face_rule, FaceRule.REFUSE),
    )


class Faces:
    """Embedders by pipeline, each loaded once."""

    def __init__(self) -> None:
        self._embedders: dict[Pipeline, Embedder] = {}

    def embedder(self, pipeline: Pipeline) -> Embedder:
        """The embedder of a pipeline."""
        return self._embedders.setdefault(pipeline, Embedder(pipeline))

    async def embed(self, face: Face, pipeline: Pipeline) -> NDArray[np.float64]:
        """The embedding (d,) of a face.

        Raises:
            ImageUnreadable: there is no such file.
            SealfaceError: what recognition found wrong: no face, several faces, no image.
        """
        if isinstance(face, np.ndarray):
            return np.asarray(face, np.float64)
        return await asyncio.to_thread(self._embed, face, pipeline)

    async def embed_all(self, picture: str | Path | bytes, pipeline: Pipeline) -> list[NDArray[np.float64]]:
        """The embeddings (d,) of every face in a picture, the largest first; errors as for `embed`."""

        def embed() -> list[NDArray[np.float64]]:
            image = picture if isinstance(picture, bytes) else _read(Path(picture))
            every = replace(pipeline, several=FaceRule.ALL)
            return [face.embedding for face in self.embedder(every).embed(image)]

        return await asyncio.to_thread(embed)

    def _embed(self, face: str | Path | bytes, pipeline: Pipeline) -> NDArray[np.float64]:
        image = face if isinstance(face, bytes) else _read(Path(face))
        return self.embedder(pipeline).embed(image)[0].embedding


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(f"{path}: {error.strerror or 'cannot be read'}: name a picture") from None
