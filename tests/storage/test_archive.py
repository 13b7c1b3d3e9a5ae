"""Nothing of an archive can be missing, changed or moved without being found, and nothing is read without bound."""

import hashlib
import io
import os
import stat
import struct

import pytest

from sealface.storage.archive import (
    BackupDamaged,
    BackupNotWritten,
    NotABackup,
    Reader,
    Writer,
    existing_file,
    new_file,
)

ENTRIES = [({"a": 1}, [b"one", b"two"]), ({"b": [1, 2]}, []), ({"c": None}, [b"x" * 100])]


def whole():
    file = io.BytesIO()
    writer = Writer(file)
    for header, data in ENTRIES:
        writer.add(header, data)
    writer.close()
    return file.getvalue()


def read(data):
    return [(header, bytes(part)) for header, part in Reader(io.BytesIO(data))]


def entry(before, header, data=b"", lengths=None):
    """An entry with the right digest, whatever is in it."""
    body = struct.pack("<II", *(lengths or (len(header), len(data)))) + header + data
    return body + hashlib.sha256(before + body).digest()


def first():
    line = b"sealface backup 1\n"
    return line, hashlib.sha256(line).digest()


def test_what_is_written_is_read():
    assert read(whole()) == [(header, b"".join(data)) for header, data in ENTRIES]


def test_the_digest_stands_for_the_whole_file():
    file = io.BytesIO()
    writer = Writer(file)
    writer.add({"a": 1}, [b"one"])
    digest = writer.close()
    reader = Reader(io.BytesIO(file.getvalue()))
    list(reader)
    assert reader.digest == digest == file.getvalue()[-32:]


def test_every_bit_counts():
    data = whole()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises((BackupDamaged, NotABackup)):
            read(bytes(damaged))


def test_every_byte_counts():
    data = whole()
    for size in range(len(data)):
        with pytest.raises((BackupDamaged, NotABackup)):
            read(data[:size])
    with pytest.raises(BackupDamaged):
        read(data + b"\0")


def test_entries_left_out_or_in_another_order_are_found():
    line, _ = first()
    parts, at = [], len(line)
    data = whole()
    while at < len(data):
        size = 8 + sum(struct.unpack_from("<II", data, at)) + 32
        parts.append(data[at : at + size])
        at += size
    assert len(parts) == 4
    for changed in (
        [parts[1], parts[0], *parts[2:]],
        parts[1:],
        [parts[0], *parts[2:]],
        [*parts[:2], parts[1], *parts[2:]],
    ):
        with pytest.raises(BackupDamaged):
            read(line + b"".join(changed))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b"[" * 100_000,
        b'{"entries":1}',
        b'{"entries":"0"}',
        b'{"entries":' + b"9" * 5000 + b"}",
    ],
)
def test_a_digest_that_fits_makes_no_sense_of_nonsense(header):
    line, digest = first()
    with pytest.raises(BackupDamaged):
        read(line + entry(digest, header))


def test_an_end_with_data_is_none():
    line, digest = first()
    assert read(line + entry(digest, b'{"entries":0}')) == []
    with pytest.raises(BackupDamaged):
        read(line + entry(digest, b'{"entries":0}', b"more"))


@pytest.mark.parametrize("lengths", [(1 << 20 | 1, 0), (2, 1 << 26), (2**32 - 1, 2**32 - 1)])
def test_lengths_are_bounded_before_anything_is_read(lengths):
    line, digest = first()

    class Asked(io.BytesIO):
        most = 0

        def read(self, size=-1):
            self.most = max(self.most, size)
            return super().read(size)

    file = Asked(line + entry(digest, b"{}", lengths=lengths))
    with pytest.raises(BackupDamaged):
        list(Reader(file))
    assert file.most < 100


def test_an_entry_that_no_reader_takes_is_not_written():
    writer = Writer(io.BytesIO())
    with pytest.raises(ValueError, match="larger"):
        writer.add({}, [bytes(1 << 24)] * 3)


@pytest.mark.parametrize("data", [b"", b"sealface backup 2\n", b"PK\3\4", bytes(1000)])
def test_what_is_no_backup_says_so(data):
    with pytest.raises(NotABackup):
        read(data)


# --- files


def test_a_file_is_there_when_it_is_whole_and_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        with new_file(tmp_path / "b") as file:
            file.write(b"data")
            assert not (tmp_path / "b").exists()
    finally:
        os.umask(before)
    assert (tmp_path / "b").read_bytes() == b"data"
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["b"]


def test_what_fails_leaves_the_older_file_and_nothing_else(tmp_path):
    (tmp_path / "b").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "b") as file:
        file.write(b"newer")
        raise KeyboardInterrupt
    assert (tmp_path / "b").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["b"]


def test_where_nothing_can_be_written_it_says_so(tmp_path):
    for path in (tmp_path / "none" / "b", tmp_path):
        with pytest.raises(BackupNotWritten), new_file(path):
            pass
    assert os.listdir(tmp_path) == []


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BackupNotWritten), new_file(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_only_a_file_is_read(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotABackup), existing_file(path):
            pass
