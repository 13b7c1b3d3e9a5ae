from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """The address of a Ray cluster on this machine's loopback, with four CPUs whatever it has."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'sealface[ray]'")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:  # short: sockets
        # without this Ray listens at the machine's outer address
        os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_TMPDIR=folder, RAY_AUTH_MODE="disabled")
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--port=0",
            "--num-cpus=4",
        ]
        command += ["--temp-dir", folder, "--include-dashboard=false", "--disable-usage-stats", "--memory=4000000000"]
        cluster = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        written = Path(folder) / "ray_current_cluster"
        try:
            for _ in range(600):
                if written.exists() and (address := written.read_text().strip()):
                    break
                time.sleep(0.1)
            assert address.startswith("127.0.0.1:")
            yield address
        finally:
            cluster.send_signal(signal.SIGTERM)
            cluster.wait(30)
