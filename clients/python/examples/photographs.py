"""The demo's photographs: public ones, fetched at run time, and local ones where there are any."""

from __future__ import annotations

import csv
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# pip runs the setup script of a source archive even to download it, so it is pinned
_PACKAGE = "face_recognition==1.3.0 --hash=sha256:5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec"
_FOLDER = "face_recognition-1.3.0/tests/test_images"
_PUBLIC = {"president-44": ["obama.jpg", "obama2.jpg", "obama3.jpg"], "president-46": ["biden.jpg"]}


@dataclass(frozen=True)
class Person:
    """Photographs of one person; the last is kept back as a probe if there are several."""

    id: str
    photographs: list[Path]

    @property
    def enrolled(self) -> list[Path]:
        """The photographs that are enrolled."""
        return self.photographs[:-1] or self.photographs

    @property
    def probes(self) -> list[Path]:
        """The photographs that are not."""
        return self.photographs[len(self.enrolled) :]


def public_people(folder: Path, tell: Callable[[str], None]) -> list[Person]:
    """Three photographs of one president and one of another, from a source archive on the package index."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [name for names in _PUBLIC.values() for name in names]
    if not all((folder / name).exists() for name in wanted):
        tell("fetching four photographs of two presidents (3 MB)")
        requirements = folder / "requirements.txt"
        requirements.write_text(_PACKAGE + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--requirement", str(requirements), "--dest", str(folder)]
        subprocess.run(command, check=True)  # noqa: S603 - no word of it comes from outside
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            for name in wanted:
                member = archive.extractfile(f"{_FOLDER}/{name}")
                assert member is not None  # noqa: S101 - the archive is pinned
                (folder / name).write_bytes(member.read())
    return [Person(who, [folder / name for name in names]) for who, names in _PUBLIC.items()]


def local_people(folder: Path) -> list[Person]:
    """People of a folder with `pairs.csv` (file_x, file_y, Decision): pictures linked by Yes are one person's."""
    listed = folder / "pairs.csv"
    if not listed.exists():
        return []
    person: dict[str, set[str]] = {}
    with listed.open(newline="") as file:
        for row in csv.DictReader(file):
            x, y = row["file_x"], row["file_y"]
            mine = person.setdefault(x, {x})
            theirs = person.setdefault(y, {y})
            if row["Decision"] == "Yes" and mine is not theirs:
                mine |= theirs
                for name in theirs:
                    person[name] = mine
    groups = sorted({tuple(sorted(group)) for group in person.values()})
    return [Person(f"person-{n:02}", [folder / name for name in group]) for n, group in enumerate(groups, 1)]
