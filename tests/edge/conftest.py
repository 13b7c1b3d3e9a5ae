from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sealface.cipher.scheme import Ckks, Scheme
from tests.edge.zones import Zones
from tests.plain import Plain

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"


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
