"""The caller's own secrets: kept, protected, moved aside, never overwritten."""

import pytest

from sealface_client import secret_file
from sealface_client.key_folder import KeyFolder, SecretKeyExists, SecretKeyMissing
from sealface_client.passphrases import PassphraseNeeded, from_environment
from sealface_client.secret_file import Kdf, PassphraseTooShort, SecretFileDamaged, WrongPassphrase

DOOR, GATE, SEED = "keys/door/versions/1", "keys/my-gate/versions/12", "galleries/door/transforms/00112233aabbccdd"
PASSPHRASE = "correct horse battery staple"
OTHER = "another passphrase"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    derive = Kdf.derive
    cheap = Kdf(memory=1 << 13, iterations=1, lanes=1)
    monkeypatch.setattr(Kdf, "derive", lambda kdf, passphrase, salt: derive(cheap, passphrase, salt))


def asked(*answers):
    left = list(answers)
    return lambda: left.pop(0)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_secret_is_kept_for_its_owner_alone(tmp_path):
    folder = KeyFolder(tmp_path / "keys")
    folder.save(DOOR, b"s3cret")
    (file,) = (tmp_path / "keys").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert file.read_bytes() == b"s3cret"
    assert folder.load(DOOR) == b"s3cret"
    with pytest.raises(SecretKeyExists):
        folder.save(DOOR, b"another")
    with pytest.raises(SecretKeyMissing):
        folder.load(GATE)


def test_names_are_told_again(tmp_path):
    folder = KeyFolder(tmp_path)
    for name in (GATE, SEED, DOOR):
        folder.save(name, b"x")
    (tmp_path / "other.secret").write_bytes(b"y")
    assert folder.names() == [SEED, DOOR, GATE]


def test_under_a_passphrase_nothing_is_bare(tmp_path):
    folder = KeyFolder(tmp_path, PASSPHRASE)
    folder.save(DOOR, b"s3cret")
    (file,) = tmp_path.iterdir()
    assert secret_file.is_sealed(file.read_bytes())
    assert file.stat().st_mode & 0o777 == 0o600
    assert KeyFolder(tmp_path, PASSPHRASE).load(DOOR) == b"s3cret"
    with pytest.raises(WrongPassphrase):
        KeyFolder(tmp_path, OTHER).load(DOOR)
    with pytest.raises(PassphraseNeeded):
        KeyFolder(tmp_path).load(DOOR)


def test_who_is_asked_is_asked_once_and_only_if_need_be(tmp_path):
    folder = KeyFolder(tmp_path, asked())
    folder.save(DOOR, b"s3cret")
    assert folder.load(DOOR) == b"s3cret"
    folder.protect(PASSPHRASE)
    again = KeyFolder(tmp_path, asked(OTHER, PASSPHRASE))
    with pytest.raises(WrongPassphrase):
        again.load(DOOR)
    assert again.load(DOOR) == again.load(DOOR) == b"s3cret"


def test_what_is_added_to_a_protected_folder_is_protected_by_the_same_passphrase(tmp_path):
    KeyFolder(tmp_path, PASSPHRASE).save(DOOR, b"one")
    with pytest.raises(WrongPassphrase):
        KeyFolder(tmp_path, OTHER).save(GATE, b"two")
    with pytest.raises(PassphraseNeeded):
        KeyFolder(tmp_path).save(GATE, b"two")
    KeyFolder(tmp_path, asked(PASSPHRASE)).save(GATE, b"two")
    assert all(secret_file.is_sealed(path.read_bytes()) for path in tmp_path.iterdir())


def test_a_folder_is_protected_changed_and_opened_again(tmp_path):
    folder = KeyFolder(tmp_path)
    for name in (DOOR, GATE, SEED):
        folder.save(name, name.encode())
    assert folder.protect(PASSPHRASE) == 3
    assert KeyFolder(tmp_path, PASSPHRASE).protect(OTHER) == 3
    with pytest.raises(WrongPassphrase):
        KeyFolder(tmp_path, PASSPHRASE).unprotect()
    assert KeyFolder(tmp_path, OTHER).unprotect() == 3
    assert all(KeyFolder(tmp_path).load(name) == name.encode() for name in (DOOR, GATE, SEED))


def test_a_change_of_passphrase_that_was_broken_off_is_repeated(tmp_path, monkeypatch):
    folder = KeyFolder(tmp_path, PASSPHRASE)
    for name in (DOOR, GATE, SEED):
        folder.save(name, name.encode())
    write, written = secret_file.seal, []

    def broken(name, *arguments):
        if written:
            raise OSError("no space left")
        written.append(name)
        return write(name, *arguments)

    monkeypatch.setattr(secret_file, "seal", broken)
    with pytest.raises(OSError, match="no space"):
        folder.protect(OTHER)
    monkeypatch.setattr(secret_file, "seal", write)
    assert KeyFolder(tmp_path, PASSPHRASE).protect(OTHER) == 3
    assert KeyFolder(tmp_path, OTHER).load(GATE) == GATE.encode()


def test_too_short_a_passphrase_changes_nothing(tmp_path):
    folder = KeyFolder(tmp_path)
    folder.save(DOOR, b"s3cret")
    with pytest.raises(PassphraseTooShort):
        folder.protect("short")
    assert folder.load(DOOR) == b"s3cret"


def test_a_file_of_another_name_is_not_taken(tmp_path):
    KeyFolder(tmp_path, PASSPHRASE).save(DOOR, b"s3cret")
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "keys-gate-versions-1.secret")
    with pytest.raises(SecretFileDamaged, match="another secret"):
        KeyFolder(tmp_path, PASSPHRASE).load("keys/gate/versions/1")


def test_what_is_put_aside_is_not_lost(tmp_path):
    folder = KeyFolder(tmp_path)
    folder.put_aside(DOOR)
    folder.save(DOOR, b"first")
    folder.put_aside(DOOR)
    folder.save(DOOR, b"second")
    assert folder.load(DOOR) == b"second"
    assert folder.names() == [DOOR]
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"first", b"second"]


def test_the_passphrase_of_the_environment(tmp_path, monkeypatch):
    for name in ("SEALFACE_PASSPHRASE", "SEALFACE_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment() is None
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\r\nsecond line\n")
    monkeypatch.setenv("SEALFACE_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    assert from_environment() == PASSPHRASE
    monkeypatch.setenv("SEALFACE_PASSPHRASE", OTHER)
    assert from_environment() == OTHER
    monkeypatch.delenv("SEALFACE_PASSPHRASE")
    for content in (b"", b"\nx", b"\xff\xfe"):
        (tmp_path / "passphrase").write_bytes(content)
        with pytest.raises(PassphraseNeeded):
            from_environment()
