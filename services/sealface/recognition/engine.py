"""DeepFace behind one lock, offline, and with its errors turned into ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sealface.errors import InvalidInput, SealfaceError, WrongState
from sealface.recognition import _deepface

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class WeightsMissing(WrongState):
    """A model's weights are not on this machine."""


class ModelNotLoaded(WrongState):
    """DeepFace could not load a model: a package it wants is missing, or its weights are damaged."""


class RecognitionFailed(InvalidInput):
    """DeepFace broke on an image or face for a reason of its own."""


# One for the whole process: DeepFace keeps its models in module globals, and dlib's networks hold state.
_LOCK = threading.RLock()


def load_model(task: str, name: str) -> None:
    """Load a model into DeepFace's own cache; a second call costs nothing.

    Args:
        task: "facial_recognition", "face_detector" or "spoofing".
        name: a model of that task.

    Raises:
        WeightsMissing: its weights are not on this machine; nothing is ever downloaded here.
        ModelNotLoaded: loading it failed.
        DeepfaceMissing: DeepFace is not installed.
    """
    modeling = _deepface.load("deepface.modules.modeling")
    with _LOCK, _offline():
        try:
            modeling.build_model(task=task, model_name=name)
        except SealfaceError:
            raise
        except Exception:
            raise ModelNotLoaded(
                f"DeepFace could not load {name}: install the packages it wants "
                "(`pip install 'sealface[faces-all]'`) and check its weights files",
                model=name,
            ) from None


def extract_faces(
    pixels: NDArray[np.uint8], *, detector: str, align: bool, expand_percentage: int, anti_spoofing: bool
) -> list[dict[str, Any]]:
    """Find and align every face, as DeepFace.verify does.

    Args:
        pixels: BGR, shape (height, width, 3).
        detector: a loaded detector, or "skip".
        align: rotate faces so that the eyes are level.
        expand_percentage: enlarge each facial area by so much.
        anti_spoofing: also judge whether each face is a live one.

    Returns:
        DeepFace's records: "face" (RGB float in 0..1), "facial_area", "confidence", "is_real" where asked.
        Empty where there is no face.

    Raises:
        RecognitionFailed: DeepFace broke on the image.
    """
    faces: list[dict[str, Any]]
    detection = _deepface.load("deepface.modules.detection")
    exceptions = _deepface.load("deepface.modules.exceptions")
    with _LOCK, _offline():
        try:
            faces = detection.extract_faces(
                pixels,
                detector_backend=detector,
                align=align,
                expand_percentage=expand_percentage,
                anti_spoofing=anti_spoofing,
            )
        except (exceptions.FaceNotDetected, exceptions.ImgNotFound):
            return []
        except SealfaceError:
            raise
        except Exception:
            raise _failed() from None
    return faces


def represent(face: NDArray[np.floating], *, model: str, normalization: str) -> NDArray[np.float64]:
    """Embed one face that `extract_faces` cut out.

    Args:
        face: RGB in 0..1, shape (height, width, 3).
        model: a loaded recognition model.
        normalization: what DeepFace does to the pixels before the model.

    Returns:
        The embedding, shape (d,), as the model gives it: not of unit length.

    Raises:
        RecognitionFailed: DeepFace broke on the face.
    """
    import numpy as np

    representation = _deepface.load("deepface.modules.representation")
    with _LOCK:
        try:
            (record,) = representation.represent(
                face[:, :, ::-1], model_name=model, detector_backend="skip", normalization=normalization
            )
        except Exception:
            raise _failed() from None
    return np.asarray(record["embedding"], dtype=np.float64)


def _failed() -> RecognitionFailed:
    return RecognitionFailed("DeepFace failed on this image: send another one, or use another detector")


@contextmanager
def _offline() -> Iterator[None]:
    """Keep DeepFace from fetching weights that are missing: a service must not run what it was not given.

    Hold the lock: this replaces a function of DeepFace for a while.
    """
    weight_utils: Any = _deepface.load("deepface.commons.weight_utils")
    downloader: Callable[..., str] = weight_utils.download_weights_if_necessary

    def local_file(file_name: str, *_: object, **__: object) -> str:
        path = _deepface.weights_folder() / file_name
        if not path.is_file():
            raise WeightsMissing(
                f"the file {file_name} is missing: run `python -m sealface.recognition.weights` for the "
                "Dlib models, or add `--from DIR` with a folder that holds the file",
                file=file_name,
            )
        return str(path)

    weight_utils.download_weights_if_necessary = local_file
    try:
        yield
    finally:
        weight_utils.download_weights_if_necessary = downloader
