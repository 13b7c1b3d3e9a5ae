"""Image bytes from a stranger to pixels, every limit checked before a pixel is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealface.errors import InvalidInput, LimitExceeded
from sealface.recognition import _deepface

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Pillow's names; PPM covers PGM and PPM.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")


class NotAnImage(InvalidInput):
    """The bytes are no image of a known format, or a damaged or truncated one."""


class ImageTooLarge(LimitExceeded):
    """The image has too many bytes or too many pixels."""


class ImageTooSmall(InvalidInput):
    """No face can be recognised in so few pixels."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What `decode` accepts."""

    max_bytes: int = 20 * 1024 * 1024
    """Encoded size, in bytes."""
    max_pixels: int = 40_000_000
    """Width times height."""
    min_side: int = 32
    """Pixels of the shorter side."""


DEFAULT_LIMITS = Limits()


def decode(image: bytes, limits: Limits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode an image into the very pixels DeepFace reads from its file.

    DeepFace reads a file with cv2.imread, which turns the image as its EXIF orientation says. cv2.imdecode
    does the same from memory, but refuses a truncated JPEG where cv2.imread would fill the rest with grey.

    Args:
        image: an encoded JPEG, PNG, WebP, BMP, PGM or PPM.
        limits: what to accept.

    Returns:
        uint8, shape (height, width, 3), in the order blue, green, red.

    Raises:
        NotAnImage, ImageTooLarge, ImageTooSmall: as their names say.
        DeepfaceMissing: OpenCV is not installed.
    """
    if len(image) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has more than {limits.max_bytes} bytes: send a smaller one",
            max_bytes=limits.max_bytes,
        )
    width, height = _declared_size(image, limits)
    if width * height > limits.max_pixels:
        raise _too_many_pixels(limits)
    if min(width, height) < limits.min_side:
        raise ImageTooSmall(
            f"the image is less than {limits.min_side} pixels wide or high: send a larger one",
            min_side=limits.min_side,
        )
    return _pixels(image)


def _declared_size(image: bytes, limits: Limits) -> tuple[int, int]:
    """Read width and height out of the header; decodes nothing."""
    pillow = _deepface.load("PIL.Image")
    try:
        with pillow.open(io.BytesIO(image), formats=FORMATS) as header:
            width, height = header.size
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise _too_many_pixels(limits) from None
    except Exception:  # whatever a parser makes of hostile bytes, it means one thing
        raise _not_an_image() from None
    return int(width), int(height)


def _pixels(image: bytes) -> NDArray[np.uint8]:
    import numpy as np

    cv2 = _deepface.load("cv2")
    cv2.utils.logging.setLogLevel(0)  # else OpenCV writes to stderr of every bad image a stranger sends
    try:
        pixels: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise _not_an_image()
    return pixels


def _not_an_image() -> NotAnImage:
    return NotAnImage("the bytes are no complete image: send a whole JPEG, PNG, WebP, BMP, PGM or PPM file")


def _too_many_pixels(limits: Limits) -> ImageTooLarge:
    return ImageTooLarge(
        f"the image has more than {limits.max_pixels} pixels: send a smaller one",
        max_pixels=limits.max_pixels,
    )
