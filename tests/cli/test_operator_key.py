"""`sealface keys operator-key`: the operator's credential of a key zone that nobody else set up."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from typer.testing import CliRunner

from sealface.cli.main import app
from sealface.protocol.signing import Credential


def test_both_halves_are_written_for_their_owner_alone_and_not_over_others(tmp_path: Path) -> None:
    folder = tmp_path / "operator"
    made = CliRunner().invoke(app, ["keys", "operator-key", str(folder), "--json"])
    assert made.exit_code == 0
    written = {name: Path(path) for name, path in json.loads(made.stdout).items()}
    assert {name: path.name for name, path in written.items()} == {"private": "operator.pem", "public": "operator.pub"}
    assert {path.stat().st_mode & 0o077 for path in written.values()} == {0}
    credential = Credential.load(written["private"])
    assert credential.caller == "callers/operator"
    assert load_pem_public_key(written["public"].read_bytes()).public_bytes_raw() == credential.verifying_key
    before = written["private"].read_bytes()
    assert CliRunner().invoke(app, ["keys", "operator-key", str(folder)]).exit_code != 0
    assert written["private"].read_bytes() == before
