"""Secrets under a passphrase: what opens, what does not, and which of the two reasons is said."""

import base64
import hashlib
import re

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given, settings
from hypothesis import strategies as st

from sealface_client.secret_file import (
    Kdf,
    PassphraseTooShort,
    SecretFile,
    SecretFileDamaged,
    UnknownSecretFile,
    WrongPassphrase,
    is_sealed,
    seal,
)

NAME = "keys/door/versions/3"
SECRET = bytes(range(256)) * 3
PASSPHRASE = "correct horse battery staple"
CHEAP = Kdf(memory=1 << 13, iterations=1, lanes=1)


@pytest.fixture(scope="module")
def file() -> bytes:
    return seal(NAME, SECRET, PASSPHRASE, CHEAP)


def digested(body: str) -> bytes:
    """A file whose digest fits, as somebody makes it who has changed it."""
    return f"{body}SHA-256: {hashlib.sha256(body.encode()).hexdigest()}\n-----END SEALFACE SECRET-----\n".encode()


def body_of(file: bytes) -> str:
    return file.decode().rsplit("SHA-256", 1)[0]


def test_what_was_sealed_opens_under_its_name(file):
    read = SecretFile.read(file)
    assert is_sealed(file)
    assert read.name == NAME
    assert read.open(PASSPHRASE) == SECRET


def test_the_format_is_what_the_page_says(file):
    """Opened with nothing but the libraries that docs/client-held.md names."""
    text = file.decode()
    header, rest = text.split("\n\n")
    fields = dict(line.split(": ") for line in header.splitlines()[1:])
    kdf, *cost = fields["KDF"].split(" ")
    assert (kdf, fields["Format"], fields["Name"]) == ("argon2id", "1", NAME)
    memory, iterations, lanes = (int(item.partition("=")[2]) for item in cost)
    argon2 = Argon2id(
        salt=bytes.fromhex(fields["Salt"]), length=32, iterations=iterations, lanes=lanes, memory_cost=memory
    )
    encrypted = base64.b64decode(rest.split("SHA-256")[0])
    key = AESGCM(argon2.derive(PASSPHRASE.encode()))
    assert key.decrypt(bytes.fromhex(fields["Nonce"]), encrypted, (header + "\n").encode()) == SECRET
    with pytest.raises(InvalidTag):
        moved = header.replace("door", "gate") + "\n"
        key.decrypt(bytes.fromhex(fields["Nonce"]), encrypted, moved.encode())


def test_by_default_it_costs_what_rfc_9106_recommends():
    header = seal(NAME, SECRET, PASSPHRASE).decode()
    assert "KDF: argon2id memory=65536 iterations=3 lanes=4\n" in header


def test_neither_secret_nor_passphrase_is_in_it(file):
    data = base64.b64decode(body_of(file).split("\n\n")[1])
    assert SECRET[:16] not in data
    assert PASSPHRASE.encode() not in file
    again = seal(NAME, SECRET, PASSPHRASE, CHEAP)
    assert again.decode().splitlines()[4:6] != file.decode().splitlines()[4:6]  # salt and nonce are new


def test_a_wrong_passphrase_is_said_to_be_one(file):
    with pytest.raises(WrongPassphrase):
        SecretFile.read(file).open(PASSPHRASE + "r")


@pytest.mark.parametrize("at", [0, 30, 90, 150, 250, 400, 900, -40, -2])
def test_a_damaged_file_is_said_to_be_one(file, at):
    damaged = bytearray(file)
    damaged[at] ^= 1
    with pytest.raises(SecretFileDamaged):
        SecretFile.read(bytes(damaged))


@pytest.mark.parametrize("cut", [0, 10, 200, 700, 1])
def test_a_part_of_a_file_is_damaged(file, cut):
    with pytest.raises(SecretFileDamaged):
        SecretFile.read(file[: len(file) - cut - 30])


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_anything_else_is_no_secret_file(data):
    with pytest.raises(SecretFileDamaged):
        SecretFile.read(data)


def test_line_ends_and_blanks_of_a_mail_do_no_harm(file):
    assert SecretFile.read(b"\r\n" + file.replace(b"\n", b"\r\n") + b"\r\n\r\n").open(PASSPHRASE) == SECRET


@pytest.mark.parametrize(
    ("was", "now"),
    [(NAME, "keys/gate/versions/3"), ("iterations=1", "iterations=2"), ("memory=8192", "memory=8193")],
)
def test_a_header_that_somebody_changed_does_not_open(file, was, now):
    changed = digested(body_of(file).replace(was, now))
    with pytest.raises(WrongPassphrase):
        SecretFile.read(changed).open(PASSPHRASE)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("Format: 1", "Format: 2"),
        ("argon2id", "scrypt"),
        ("memory=8192", "memory=99999999"),
        ("memory=8192", "memory=1024"),
        ("iterations=1", "iterations=99"),
        ("lanes=1", "lanes=17"),
        ("Name: keys", "Name: ../keys"),
    ],
)
def test_what_this_version_does_not_know_is_not_tried(file, was, now):
    with pytest.raises(UnknownSecretFile):
        SecretFile.read(digested(body_of(file).replace(was, now)))


def test_a_file_may_not_be_larger_than_any_secret(file):
    with pytest.raises(SecretFileDamaged):
        SecretFile.read(file + b" " * (1 << 20))


def test_composed_and_decomposed_letters_are_one_passphrase():
    sealed = seal(NAME, SECRET, "m\u00fcnchen-2026", CHEAP)
    assert SecretFile.read(sealed).open("mu\u0308nchen-2026") == SECRET


def test_a_passphrase_of_a_few_letters_is_refused():
    with pytest.raises(PassphraseTooShort, match=re.escape("8 characters")):
        seal(NAME, SECRET, "1234567")
