import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sealface.cipher.scheme import Ckks, Scheme
from sealface.recognition import weights_home
from sealface.recognition.weights import DLIB_WEIGHTS, weights_folder
from tests.edge.zones import Zones
from tests.plain import Plain

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _what_deepface_lacks()
    for item in items:
        if missing and item.get_closest_marker("faces"):
            item.add_marker(pytest.mark.skip(reason=missing))
        if not FACES.is_dir() and item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason="no ../shared/data/faces"))


def _what_deepface_lacks() -> str | None:
    for module in ("deepface", "dlib", "cv2", "PIL"):
        if importlib.util.find_spec(module) is None:
            return f"module {module} is not installed: make install"
    for name in DLIB_WEIGHTS:
        if not (weights_folder() / name).is_file():
            return f"{name} is not below {weights_home()}: python -m sealface.recognition.weights"
    return None


@pytest.fixture(autouse=True)
def _no_services_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEYS", "ENROLLMENT", "MATCHING", "STATE", "CREDENTIAL"):
        monkeypatch.delenv(f"SEALFACE_{name}", raising=False)


@pytest.fixture
def photo() -> Callable[[str], bytes]:
    """Reads a photograph of the test set by its file name."""
    return lambda name: (FACES / name).read_bytes()


async def _zones(state: Path, scheme: Scheme) -> AsyncIterator[Zones]:
    zones = Zones(state, scheme)
    try:
        await zones.start()
        yield zones
    finally:
        await zones.stop()


@pytest.fixture
async def zones(tmp_path: Path) -> AsyncIterator[Zones]:
    """All services, with a cipher that encrypts nothing; a gallery `door` of the level edge."""
    async for running in _zones(tmp_path / "state", Plain()):
        yield running


@pytest.fixture
async def real_zones(tmp_path: Path) -> AsyncIterator[Zones]:
    """The same with CKKS."""
    async for running in _zones(tmp_path / "state", Ckks()):
        yield running
