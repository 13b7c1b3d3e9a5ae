"""The on-premise example: it finds the face, and the cloud's folders hold nothing of the secrets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sealface_client.key_folder import KeyFolder

EXAMPLE = Path(__file__).parents[2] / "clients" / "python" / "examples" / "on_premise.py"


def test_the_cloud_holds_nothing_of_the_secrets(tmp_path: Path) -> None:
    premise, cloud = tmp_path / "premise", tmp_path / "cloud"
    command = [sys.executable, str(EXAMPLE), "--premise", str(premise), "--cloud", str(cloud)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    near, far = (float(found) for found in re.findall(r"[0-9]\.[0-9]{4}", done.stdout))
    assert near < 0.02
    assert far > 0.5
    folder = KeyFolder(premise)
    secrets = [folder.load(name) for name in folder.names()]
    assert len(secrets) == 2  # the key and the transform's seed
    for zone in ("keys", "compute"):
        files = [file for file in (cloud / zone).rglob("*") if file.is_file()]
        assert files
        for data in (file.read_bytes() for file in files):
            for secret in secrets:
                for start in range(0, len(secret) - 31, max(len(secret) // 8, 1)):
                    assert secret[start : start + 32] not in data
