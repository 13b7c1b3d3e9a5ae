"""Generates the Python stubs of the contract at install time; used by both setup.py files.

The package `sealface_protos` mirrors protos/sealface: `sealface.keys.v1` becomes `sealface_protos.keys.v1`. protoc
writes imports by proto package, which would collide with the services' own package; they are rewritten here, and
nothing else. Nobody edits or commits the result.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google.api
import grpc_tools

PROTOS = Path(__file__).resolve().parent
_IMPORT = re.compile(r"^(from |import )sealface\.", re.MULTILINE)


def generate(stubs: Path) -> None:
    """Write the package into a folder `sealface_protos`, in place of what is there."""
    googleapis = Path(next(iter(google.api.__path__))).parent.parent
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            *(f"-I{include}" for include in (PROTOS, Path(grpc_tools.__path__[0], "_proto"), googleapis)),
            *(f"--plugin={name}={_plugin(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            *(f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            *map(str, sorted(PROTOS.rglob("*.proto"))),
        ]
        subprocess.run(command, check=True)  # noqa: S603 - our own files, no shell
        generated = Path(out, "sealface")
        shutil.rmtree(stubs, ignore_errors=True)
        for source in sorted(generated.rglob("*.py*")):
            target = stubs / source.relative_to(generated)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_IMPORT.sub(r"\1sealface_protos.", source.read_text()))
        for folder in (stubs, *(path for path in stubs.rglob("*") if path.is_dir())):
            (folder / "__init__.py").write_text('"""Generated from protos/; see protos/generate.py."""\n')
        (stubs / "py.typed").touch()


def _plugin(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing: pip install mypy-protobuf")
    return found
