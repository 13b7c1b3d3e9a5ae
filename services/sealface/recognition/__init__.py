"""From a photograph to embeddings: the only code of Sealface that imports DeepFace.

Importing this package is cheap: DeepFace, OpenCV and dlib are loaded by `Embedder.warm`, not before.
"""

from sealface.recognition._deepface import DeepfaceMissing, weights_home
from sealface.recognition.embedder import (
    Embedder,
    Face,
    FaceRule,
    NoFace,
    Pipeline,
    SeveralFaces,
    SpoofSuspected,
)
from sealface.recognition.engine import ModelNotLoaded, RecognitionFailed, WeightsMissing
from sealface.recognition.images import ImageTooLarge, ImageTooSmall, Limits, NotAnImage, decode
from sealface.recognition.models import (
    METRICS,
    UnknownDetector,
    UnknownMetric,
    UnknownModel,
    UnknownNormalization,
    confidence,
    dimension,
    distance,
    model_names,
    threshold,
    thresholds,
)

__all__ = [
    "METRICS",
    "DeepfaceMissing",
    "Embedder",
    "Face",
    "FaceRule",
    "ImageTooLarge",
    "ImageTooSmall",
    "Limits",
    "ModelNotLoaded",
    "NoFace",
    "NotAnImage",
    "Pipeline",
    "RecognitionFailed",
    "SeveralFaces",
    "SpoofSuspected",
    "UnknownDetector",
    "UnknownMetric",
    "UnknownModel",
    "UnknownNormalization",
    "WeightsMissing",
    "confidence",
    "decode",
    "dimension",
    "distance",
    "model_names",
    "threshold",
    "thresholds",
    "weights_home",
]
