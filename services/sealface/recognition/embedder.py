"""Image bytes to embeddings, through the pipeline a gallery was made with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sealface.errors import InvalidInput
from sealface.recognition import engine, images, models

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ANTI_SPOOFING_MODEL = "Fasnet"


class NoFace(InvalidInput):
    """No face was found in the image."""


class SeveralFaces(InvalidInput):
    """More than one face was found where one is wanted."""


class SpoofSuspected(InvalidInput):
    """A face looks like a picture of a face."""


class FaceRule(StrEnum):
    """What to do with an image of several faces."""

    LARGEST = "largest"
    """Take the one of the largest area."""
    ALL = "all"
    """Take every one."""
    REFUSE = "refuse"
    """Take none: raise SeveralFaces."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How an image becomes embeddings; only embeddings of one pipeline can be compared."""

    model: str = "Dlib"
    """Recognition model, one of `models.model_names()`."""
    detector: str = "dlib"
    """Face detector, one of `models.detector_names()`."""
    align: bool = True
    """Rotate each face so that its eyes are level."""
    expand_percentage: int = 0
    """Enlarge each facial area by so much, at least 0."""
    normalization: str = "base"
    """What is done to the pixels before the model, one of `models.NORMALIZATIONS`."""
    anti_spoofing: bool = False
    """Refuse faces that look like pictures of faces."""
    several: FaceRule = FaceRule.REFUSE
    """What to do with several faces."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face of an image. Never log or store one: it is what Sealface encrypts."""

    embedding: NDArray[np.float64]
    """Shape (d,), as the model gives it: not of unit length."""
    area: tuple[int, int, int, int]
    """x, y of the upper left corner, width, height, in pixels."""
    detection_confidence: float
    """The detector's, 0..1; always 0 for the detector "skip"."""

    def __repr__(self) -> str:
        """Tell nothing of the face, so that a log line or a traceback cannot."""
        return f"Face({len(self.embedding)} numbers)"


class Embedder:
    """Embeds faces with DeepFace. Safe to share between threads, which take turns.

    Args:
        pipeline: how to embed.
        limits: what images to accept.

    Raises:
        UnknownModel, UnknownDetector, UnknownNormalization, InvalidInput: DeepFace has no such pipeline.
        DeepfaceMissing: DeepFace is not installed.
    """

    def __init__(self, pipeline: Pipeline | None = None, limits: images.Limits = images.DEFAULT_LIMITS) -> None:
        self.pipeline = pipeline or Pipeline()
        self.dimension = models.dimension(self.pipeline.model)
        self._limits = limits
        self._warm = False
        _require_known(self.pipeline)

    def warm(self) -> None:
        """Load every model and run each once, so that the first image is as fast as the rest.

        Raises:
            WeightsMissing, ModelNotLoaded: a model cannot be loaded.
        """
        if self._warm:
            return
        import numpy as np

        engine.load_model("facial_recognition", self.pipeline.model)
        if self.pipeline.detector != "skip":
            engine.load_model("face_detector", self.pipeline.detector)
        if self.pipeline.anti_spoofing:
            engine.load_model("spoofing", _ANTI_SPOOFING_MODEL)
        self._faces(np.zeros((64, 64, 3), np.uint8))
        self._represent(np.zeros((64, 64, 3)))
        self._warm = True

    def embed(self, image: bytes) -> list[Face]:
        """Embed the faces of one image.

        Args:
            image: an encoded image, see `images.decode`.

        Returns:
            At least one face, largest first; at most one unless the pipeline's rule is ALL.

        Raises:
            NotAnImage, ImageTooLarge, ImageTooSmall: from decoding.
            NoFace, SeveralFaces, SpoofSuspected, RecognitionFailed: the image is not fit for this pipeline.
            WeightsMissing, ModelNotLoaded: from loading the models, see `warm`.
        """
        pixels = images.decode(image, self._limits)
        self.warm()
        chosen = self._choose(self._faces(pixels))
        return [
            Face(
                embedding=self._represent(record["face"]),
                area=_area(record),
                detection_confidence=float(record["confidence"]),
            )
            for record in chosen
        ]

    def _choose(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not records:
            raise NoFace("no face was found: send a sharp, upright photograph of one")
        if len(records) > 1 and self.pipeline.several is FaceRule.REFUSE:
            raise SeveralFaces("several faces were found: send an image of one person", faces=len(records))
        records = sorted(records, key=_size, reverse=True)
        if self.pipeline.several is FaceRule.LARGEST:
            records = records[:1]
        if any(not record.get("is_real", True) for record in records):
            raise SpoofSuspected("the face looks like a picture of a face: take a photograph of the person")
        return records

    def _faces(self, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        return engine.extract_faces(
            pixels,
            detector=self.pipeline.detector,
            align=self.pipeline.align,
            expand_percentage=self.pipeline.expand_percentage,
            anti_spoofing=self.pipeline.anti_spoofing,
        )

    def _represent(self, face: NDArray[np.floating]) -> NDArray[np.float64]:
        return engine.represent(face, model=self.pipeline.model, normalization=self.pipeline.normalization)


def _require_known(pipeline: Pipeline) -> None:
    detectors = models.detector_names()
    if pipeline.detector not in detectors:
        raise models.UnknownDetector(f"unknown detector: choose one of {', '.join(detectors)}")
    if pipeline.normalization not in models.NORMALIZATIONS:
        raise models.UnknownNormalization(f"unknown normalization: choose one of {', '.join(models.NORMALIZATIONS)}")
    if pipeline.expand_percentage < 0:
        raise InvalidInput("expand_percentage is negative: give 0 or more")


def _area(record: dict[str, Any]) -> tuple[int, int, int, int]:
    area = record["facial_area"]
    return int(area["x"]), int(area["y"]), int(area["w"]), int(area["h"])


def _size(record: dict[str, Any]) -> int:
    _, _, width, height = _area(record)
    return width * height
