import os
import stat
import struct

import pytest

from sealface.keys import wrapping
from sealface.keys.wrapping import FileKey, KeyEncryptionKeyMissing, SecretDamaged

SECRET = b"the secret of a key" * 40
NAME = "keys/door/versions/1"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "key-encryption.key"
    FileKey.create(path)
    return path


@pytest.fixture
def provider(path):
    return FileKey(path)


def test_a_fresh_key_is_32_bytes_for_its_owner_alone(path, tmp_path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    FileKey.create(tmp_path / "other")
    assert path.read_bytes() != (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("secret", [b"", b"x", SECRET, bytes(100_000)])
def test_a_secret_comes_back_also_to_the_same_key_read_again(path, provider, secret):
    blob = wrapping.wrap(provider, secret, NAME)
    assert wrapping.unwrap(FileKey(path), blob, NAME) == secret


def test_the_blob_holds_neither_the_secret_nor_the_key(path, provider):
    secret = os.urandom(64)
    blobs = [wrapping.wrap(provider, secret, NAME) for _ in range(2)]
    assert blobs[0] != blobs[1]
    for blob in blobs:
        for hidden in (secret, path.read_bytes()):
            assert not any(hidden[i : i + 8] in blob for i in range(len(hidden) - 7))


@pytest.mark.parametrize("name", ["", "keys/door/versions/2", "keys/doo/versions/1", NAME + " "])
def test_a_secret_opens_under_its_own_name_only(provider, name):
    with pytest.raises(SecretDamaged):
        wrapping.unwrap(provider, wrapping.wrap(provider, SECRET, NAME), name)


def test_another_key_encryption_key_does_not_open_it(provider, tmp_path):
    FileKey.create(tmp_path / "other")
    with pytest.raises(SecretDamaged):
        wrapping.unwrap(FileKey(tmp_path / "other"), wrapping.wrap(provider, SECRET, NAME), NAME)


def test_any_changed_byte_is_noticed(provider):
    blob = wrapping.wrap(provider, b"short", NAME)
    for at in range(len(blob)):
        changed = blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :]
        with pytest.raises(SecretDamaged):
            wrapping.unwrap(provider, changed, NAME)
    for cut in range(len(blob)):
        with pytest.raises(SecretDamaged):
            wrapping.unwrap(provider, blob[:cut], NAME)


def test_a_data_key_cannot_be_moved_to_another_secret(provider):
    one, two = (wrapping.wrap(provider, secret, NAME) for secret in (b"one", b"two"))
    (size,) = struct.unpack_from(">H", one, 1)
    with pytest.raises(SecretDamaged):
        wrapping.unwrap(provider, one[: 3 + size] + two[3 + size :], NAME)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_file_that_others_may_use_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(KeyEncryptionKeyMissing, match="0600"):
        FileKey(path)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_file_of_another_size_is_refused(path, size):
    path.write_bytes(bytes(size))
    with pytest.raises(KeyEncryptionKeyMissing, match="32 bytes"):
        FileKey(path)


def test_no_file_is_said_without_its_path(tmp_path):
    with pytest.raises(KeyEncryptionKeyMissing) as caught:
        FileKey(tmp_path / "none")
    assert str(tmp_path) not in str(caught.value)
