import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sealface.recognition import ImageTooLarge, ImageTooSmall, Limits, NotAnImage, decode

pytestmark = pytest.mark.faces
Encode = Callable[..., bytes]


def declared_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gradient(mode: str = "RGB", width: int = 60, height: int = 40):
    from PIL import Image

    colours = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(colours).convert(mode)


def as_opencv_reads(image: bytes, folder: Path, suffix: str) -> np.ndarray:
    import cv2

    path = folder / f"image.{suffix}"
    path.write_bytes(image)
    return cv2.imread(str(path))


MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "RGBA", "L", "P", "1"),
    "PPM": ("RGB", "L", "1"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in MODES for mode in MODES[kind]])
def test_pixels_are_those_deepface_reads_from_the_file(kind: str, mode: str, encode: Encode, tmp_path: Path) -> None:
    image = encode(gradient(mode), kind)
    pixels = decode(image)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (40, 60, 3)
    np.testing.assert_array_equal(pixels, as_opencv_reads(image, tmp_path, kind.lower()))


def test_channels_come_blue_first(encode: Encode) -> None:
    from PIL import Image

    pixels = decode(encode(Image.new("RGB", (40, 40), (255, 0, 10))))
    assert pixels[0, 0].tolist() == [10, 0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_followed_as_deepface_does(orientation: int, encode: Encode, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x112] = orientation
    image = encode(gradient(), "JPEG", exif=exif)
    pixels = decode(image)
    assert pixels.shape[:2] == ((40, 60) if orientation <= 4 else (60, 40))
    np.testing.assert_array_equal(pixels, as_opencv_reads(image, tmp_path, "jpg"))


@pytest.mark.data
def test_photographs_decode_as_opencv_reads_them(photo: Callable[[str], bytes], tmp_path: Path) -> None:
    for number in range(1, 26):
        image = photo(f"img{number}.jpg")
        np.testing.assert_array_equal(decode(image), as_opencv_reads(image, tmp_path, "jpg"))


@pytest.mark.parametrize(
    "image", [b"", b"\xff" * 1000, b"\xff\xd8\xff\xe0" + bytes(99), b"P6 1 ", b"<svg/>", declared_png(0, 9)]
)
def test_bytes_that_are_no_image(image: bytes) -> None:
    with pytest.raises(NotAnImage, match="send a whole JPEG"):
        decode(image)


def test_a_format_outside_the_list_is_refused(encode: Encode) -> None:
    for kind in ("GIF", "TIFF"):
        with pytest.raises(NotAnImage):
            decode(encode(gradient(), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_image_is_refused(kind: str, share: float, encode: Encode) -> None:
    image = encode(gradient(width=300, height=200), kind)
    with pytest.raises(NotAnImage):
        decode(image[: int(len(image) * share)])


@pytest.mark.parametrize("size", [(10_000, 5_000), (10_000, 10_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    image = declared_png(*size)
    assert len(image) < 100
    with pytest.raises(ImageTooLarge) as caught:
        decode(image)
    assert caught.value.metadata == {"max_pixels": "40000000"}


def test_a_real_blank_image_of_50_megapixels_is_refused(encode: Encode) -> None:
    from PIL import Image

    image = encode(Image.new("L", (10_000, 5_000)))
    assert len(image) < 100_000
    with pytest.raises(ImageTooLarge):
        decode(image)


def test_more_bytes_than_the_limit_are_refused_unread() -> None:
    with pytest.raises(ImageTooLarge) as caught:
        decode(bytes(20 * 1024 * 1024 + 1))
    assert caught.value.metadata == {"max_bytes": "20971520"}


def test_limits_hold_to_the_pixel(encode: Encode) -> None:
    image = encode(gradient(width=60, height=40))
    assert decode(image, Limits(max_bytes=len(image), max_pixels=2400, min_side=40)).shape == (40, 60, 3)
    with pytest.raises(ImageTooLarge):
        decode(image, Limits(max_bytes=len(image) - 1))
    with pytest.raises(ImageTooLarge):
        decode(image, Limits(max_pixels=2399))
    with pytest.raises(ImageTooSmall):
        decode(image, Limits(min_side=41))


def test_a_tiny_image_is_refused(encode: Encode) -> None:
    with pytest.raises(ImageTooSmall, match="send a larger one"):
        decode(encode(gradient(width=200, height=31)))


def test_damage_anywhere_gives_pixels_or_a_typed_error(encode: Encode) -> None:
    random = np.random.default_rng(11)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM"):
        image = np.frombuffer(encode(gradient(), kind), np.uint8)
        for _ in range(50):
            damaged = image.copy()
            spots = random.integers(0, min(len(image), 200), 3)
            damaged[spots] = random.integers(0, 256, 3)
            try:
                pixels = decode(damaged.tobytes())
            except (NotAnImage, ImageTooLarge, ImageTooSmall):
                continue
            assert pixels.ndim == 3


def test_a_bad_image_prints_no_path(capfd: pytest.CaptureFixture[str], encode: Encode) -> None:
    image = encode(gradient(), "BMP")
    with pytest.raises(NotAnImage):
        decode(image[:-100])
    assert capfd.readouterr() == ("", "")


def test_an_animation_gives_its_first_frame(encode: Encode, tmp_path: Path) -> None:
    first, second = gradient(), gradient().rotate(180)
    image = encode(first, "PNG", save_all=True, append_images=[second])
    pixels = decode(image)
    np.testing.assert_array_equal(pixels, np.asarray(first)[:, :, ::-1])
    np.testing.assert_array_equal(pixels, as_opencv_reads(image, tmp_path, "png"))
