import os
import stat
import struct
from dataclasses import replace

import pytest

from sealface.keys import wrapping
from sealface.keys.providers import FileKey, KeyEncryptionKeyMissing, SecretDamaged, encrypt
from sealface.keys.recovery import RecoveryKey, RecoveryKeyUnreadable, RecoveryRecipient
from sealface.keys.wrapping import Envelope, KeyEncryption

SECRET = b"the secret of a key" * 40
NAME = "keys/door/versions/1"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "key-encryption.key"
    FileKey.create(path)
    return path


@pytest.fixture(params=[False, True], ids=["without a recovery key", "with one"])
def keys(path, request):
    return KeyEncryption(FileKey(path), recipient=RecoveryKey.generate().recipient if request.param else None)


@pytest.fixture
def other(tmp_path):
    FileKey.create(tmp_path / "other")
    return FileKey(tmp_path / "other")


def first_form(path, secret, name):
    """As secrets were stored before envelopes said which key they are under."""
    data_key = os.urandom(32)
    wrapped = encrypt(path.read_bytes(), data_key, name.encode())
    return struct.pack(">BH", 1, len(wrapped)) + wrapped + encrypt(data_key, secret, name.encode())


def test_a_fresh_key_is_32_bytes_for_its_owner_alone(path, tmp_path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    FileKey.create(tmp_path / "other")
    assert path.read_bytes() != (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("secret", [b"", b"x", SECRET, bytes(100_000)])
def test_a_secret_comes_back_also_to_the_same_key_read_again(path, keys, secret):
    blob = wrapping.wrap(keys, secret, NAME)
    assert wrapping.unwrap(KeyEncryption(FileKey(path)), blob, NAME) == secret
    assert wrapping.unwrap(keys, first_form(path, secret, NAME), NAME) == secret


def test_the_blob_holds_neither_the_secret_nor_the_key(path, keys):
    secret = os.urandom(64)
    blobs = [wrapping.wrap(keys, secret, NAME) for _ in range(2)]
    assert blobs[0] != blobs[1]
    for blob in blobs:
        for hidden in (secret, path.read_bytes()):
            assert not any(hidden[i : i + 8] in blob for i in range(len(hidden) - 7))


@pytest.mark.parametrize("name", ["", "keys/door/versions/2", "keys/doo/versions/1", NAME + " "])
def test_a_secret_opens_under_its_own_name_only(path, keys, name):
    for blob in (wrapping.wrap(keys, SECRET, NAME), first_form(path, SECRET, NAME)):
        with pytest.raises(SecretDamaged):
            wrapping.unwrap(keys, blob, name)


def test_another_key_encryption_key_does_not_open_it(path, keys, other):
    for blob in (wrapping.wrap(keys, SECRET, NAME), first_form(path, SECRET, NAME)):
        with pytest.raises(SecretDamaged):
            wrapping.unwrap(KeyEncryption(other), blob, NAME)


@pytest.mark.parametrize("form", [1, 2])
def test_any_changed_byte_is_noticed(path, keys, form):
    blob = wrapping.wrap(keys, b"short", NAME) if form == 2 else first_form(path, b"short", NAME)
    for at in range(len(blob)):
        for bit in (0x10, 0x01, 0x03):
            changed = blob[:at] + bytes([blob[at] ^ bit]) + blob[at + 1 :]
            with pytest.raises(SecretDamaged):
                wrapping.unwrap(keys, changed, NAME)
    for cut in range(len(blob)):
        with pytest.raises(SecretDamaged):
            wrapping.unwrap(keys, blob[:cut], NAME)


def test_a_data_key_cannot_be_moved_to_another_secret(keys):
    one, two = (Envelope.parse(wrapping.wrap(keys, secret, NAME)) for secret in (b"one", b"two"))
    with pytest.raises(SecretDamaged):
        wrapping.unwrap(keys, replace(one, body=two.body).pack(), NAME)
    with pytest.raises(SecretDamaged):
        wrapping.unwrap(keys, replace(one, wrapped=two.wrapped).pack(), NAME)


@pytest.mark.parametrize("form", [1, 2])
def test_a_rewrapping_touches_the_data_key_alone(path, keys, other, form):
    before = wrapping.wrap(keys, SECRET, NAME) if form == 2 else first_form(path, SECRET, NAME)
    moving = replace(keys, current=other, old=[keys.current])
    after = wrapping.rewrap(moving, before, NAME)
    assert Envelope.parse(after).body == Envelope.parse(before).body
    assert len(Envelope.parse(after).body) == 12 + len(SECRET) + 16
    assert Envelope.parse(after).key == other.id != keys.current.id
    assert wrapping.unwrap(KeyEncryption(other), after, NAME) == SECRET
    with pytest.raises(SecretDamaged):
        wrapping.unwrap(keys, after, NAME)
    for blob in (before, after):
        assert wrapping.unwrap(moving, blob, NAME) == SECRET
    assert (moving.is_current(Envelope.parse(before), 1), moving.is_current(Envelope.parse(after), 1)) == (False, True)


def test_what_is_damaged_is_not_rewrapped(keys, other):
    blob = wrapping.wrap(keys, SECRET, NAME)
    with pytest.raises(SecretDamaged):
        wrapping.rewrap(replace(keys, current=other, old=[keys.current]), blob[:-1] + b"?", NAME)


def test_a_provider_that_is_away_is_not_asked_for_what_another_wrapped(path, keys, other, tmp_path):
    blob = wrapping.wrap(keys, SECRET, NAME)
    assert wrapping.unwrap(KeyEncryption(FileKey(tmp_path / "none"), [keys.current]), blob, NAME) == SECRET
    path.unlink()
    for absent in (keys, KeyEncryption(other, [keys.current])):
        with pytest.raises((KeyEncryptionKeyMissing, SecretDamaged)):
            wrapping.unwrap(absent, blob, NAME)


def test_the_recovery_key_opens_what_is_for_it_alone(path, other):
    recovery, stranger = RecoveryKey.generate(), RecoveryKey.generate()
    keys = KeyEncryption(FileKey(path), recipient=recovery.recipient)
    blob = wrapping.wrap(keys, SECRET, NAME)
    path.unlink()
    lost = KeyEncryption(other, recovery=recovery, recipient=recovery.recipient)
    recovered = wrapping.rewrap(lost, blob, NAME)
    assert wrapping.unwrap(KeyEncryption(other), recovered, NAME) == SECRET
    with pytest.raises(SecretDamaged):
        wrapping.rewrap(replace(lost, recovery=stranger), blob, NAME)
    with pytest.raises(SecretDamaged):
        wrapping.rewrap(lost, blob, NAME + "0")


def test_a_recovery_key_has_a_passphrase(tmp_path):
    made = RecoveryKey.generate()
    private, public = made.save(tmp_path, "four words")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert made.private.private_bytes_raw() not in private.read_bytes()
    assert RecoveryKey.load(private, "four words").id == made.id == RecoveryRecipient.load(public).id
    for path, passphrase in ((private, ""), (private, "five"), (public, "four words"), (tmp_path / "none", "")):
        with pytest.raises(RecoveryKeyUnreadable):
            RecoveryKey.load(path, passphrase)
    with pytest.raises(RecoveryKeyUnreadable):
        RecoveryRecipient.load(private)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_file_that_others_may_use_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(KeyEncryptionKeyMissing, match="0600"):
        FileKey(path).wrap(bytes(32), b"")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_file_of_another_size_is_refused(path, size):
    path.write_bytes(bytes(size))
    with pytest.raises(KeyEncryptionKeyMissing, match="32 bytes"):
        FileKey(path).unwrap(bytes(60), b"")


def test_no_file_is_said_without_its_path(tmp_path):
    with pytest.raises(KeyEncryptionKeyMissing) as caught:
        FileKey(tmp_path / "none").wrap(bytes(32), b"")
    assert str(tmp_path) not in str(caught.value)
