import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, os, sys
from pathlib import Path
from sealface.runtime.confinement import confine

own, other, readable, away = map(Path, sys.argv[1:5])
confined = confine(("sealface", "sealface_client", "sealface_protos"), [own], [readable])

def tried(act):
    try:
        act()
    except PermissionError:
        return "denied"
    except OSError as error:
        return type(error).__name__
    return "done"

def link():
    os.link(other / "secret", own / "linked")

def child():
    import subprocess
    code = "import sys; open(sys.argv[1]).read()"
    if subprocess.run([sys.executable, "-c", code, str(other / "secret")], stderr=subprocess.DEVNULL).returncode:
        raise PermissionError

print(json.dumps({
    "confined": confined,
    "read other": tried((other / "secret").read_bytes),
    "list other": tried(lambda: list(other.iterdir())),
    "write other": tried(lambda: (other / "new").write_bytes(b"x")),
    "delete other": tried((other / "secret").unlink),
    "link other": tried(link),
    "child reads other": tried(child),
    "read by symlink": tried((own / "way out").read_bytes),
    "write elsewhere": tried(lambda: (away / "new").write_bytes(b"x")),
    "write own": tried(lambda: (own / "new").write_bytes(b"x")),
    "rename own": tried(lambda: (own / "new").rename(own / "renamed")),
    "read own": tried((own / "renamed").read_bytes),
    "truncate own": tried(lambda: os.truncate(own / "renamed", 0)),
    "delete own": tried((own / "renamed").unlink),
    "read readable": tried((readable / "file").read_bytes),
    "write readable": tried(lambda: (readable / "file").write_bytes(b"x")),
    "import": tried(lambda: __import__("sealface.keys.server")),
    "random": tried(lambda: Path("/dev/urandom").open("rb").read(1)),
}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("zones")
    folders = [base / name for name in ("compute", "keys", "weights", "elsewhere")]
    for folder in folders:
        folder.mkdir()
    own, other, readable, away = folders
    (other / "secret").write_bytes(b"key")
    (readable / "file").write_bytes(b"weights")
    (own / "way out").symlink_to(other / "secret")
    run = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, folders)],
        check=True,
        capture_output=True,
        text=True,
        cwd=own,
        env=os.environ | {"NUMBA_CACHE_DIR": str(own), "TMPDIR": str(own)},
    )
    found: dict[str, str] = json.loads(run.stdout)
    if not found["confined"]:
        pytest.skip("this kernel has no Landlock")
    assert (other / "secret").read_bytes() == b"key"  # this process is not confined, and nothing was changed
    assert not list(Path(away).iterdir())
    return found


@pytest.mark.parametrize(
    "act",
    [
        "read other",
        "list other",
        "write other",
        "delete other",
        "child reads other",
        "read by symlink",
        "write elsewhere",
        "write readable",
    ],
)
def test_what_is_another_zones_is_denied(outcome, act):
    assert outcome[act] == "denied"


def test_no_link_brings_another_zones_file_over(outcome):
    assert outcome["link other"] in {"denied", "OSError"}  # EXDEV counts as denied


@pytest.mark.parametrize(
    "act",
    ["write own", "rename own", "read own", "truncate own", "delete own", "read readable", "import", "random"],
)
def test_what_is_its_own_works(outcome, act):
    assert outcome[act] == "done"
