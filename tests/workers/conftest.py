from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from deploy import servers


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """The address of a Ray cluster on this machine's loopback, with four CPUs whatever it has."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'sealface[ray]'")
    with servers.ray_cluster() as cluster:
        yield cluster.url
