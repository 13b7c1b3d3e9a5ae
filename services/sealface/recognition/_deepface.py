"""The door to DeepFace: imported late and quietly; and where it looks for weights."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from types import ModuleType

from sealface.errors import WrongState


class DeepfaceMissing(WrongState):
    """DeepFace, or a package it needs, is not installed."""


# Read by DeepFace and TensorFlow while they are imported; an operator's own choice stays.
_ENVIRONMENT = {
    "DEEPFACE_LOG_LEVEL": str(logging.CRITICAL + 1),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_USE_LEGACY_KERAS": "1",
}


def load(module: str) -> ModuleType:
    """Import DeepFace's part of this name, or a package that comes with it.

    Parts of DeepFace are imported, never its facade `deepface.DeepFace`, which on import switches off every
    warning of the process and makes a folder in the home directory.

    Args:
        module: a full name, such as "deepface.modules.detection" or "cv2".

    Raises:
        DeepfaceMissing: it, or something it imports, is not installed.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DeepfaceMissing(
            "DeepFace is not installed: run `pip install 'sealface[faces]'`, "
            "then `pip install --no-deps deepface==0.0.103`"
        ) from None


def weights_home() -> Path:
    """Return the folder DeepFace takes for home: $DEEPFACE_HOME, otherwise the user's."""
    return Path(os.environ.get("DEEPFACE_HOME", "~")).expanduser()


def weights_folder(home: Path | None = None) -> Path:
    """Return the folder below a home where DeepFace looks for weights.

    Args:
        home: `weights_home()` where none is given.
    """
    return (home or weights_home()) / ".deepface" / "weights"
