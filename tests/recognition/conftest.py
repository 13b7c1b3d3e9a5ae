import io
from collections.abc import Callable
from pathlib import Path

import pytest

from sealface.recognition import Embedder, FaceRule, Pipeline

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"


@pytest.fixture(scope="session")
def photo() -> Callable[[str], bytes]:
    """Reads a photograph of the test set by its file name."""
    return lambda name: (FACES / name).read_bytes()


@pytest.fixture(scope="session")
def largest() -> Embedder:
    embedder = Embedder(Pipeline(several=FaceRule.LARGEST))
    embedder.warm()
    return embedder


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encodes a Pillow image."""

    def encoded(image: object, kind: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)  # type: ignore[attr-defined]
        return buffer.getvalue()

    return encoded


@pytest.fixture
def two_people(photo: Callable[[str], bytes], encode: Callable[..., bytes]) -> bytes:
    """One photograph beside another of somebody else, the larger face on the right."""
    from PIL import Image

    left = Image.open(io.BytesIO(photo("img25.jpg"))).convert("RGB").resize((200, 200))
    right = Image.open(io.BytesIO(photo("img21.jpg"))).convert("RGB")
    both = Image.new("RGB", (left.width + right.width, right.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return encode(both)
