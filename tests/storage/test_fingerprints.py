"""What the record says of ciphertexts without giving them out."""

import os

import numpy as np
import pytest

from sealface.storage.galleries import Head
from tests.storage.conftest import new_gallery

KEY = "keys/door/versions/1"


@pytest.fixture
def door(record, galleries):
    record.create_gallery(new_gallery())
    return galleries.get("door")


def test_heads_are_of_all_galleries(door, record, galleries):
    record.create_gallery(new_gallery("gate"))
    record.enroll("gate", "keys/gate/versions/1", "s", b"x", "r")
    assert galleries.heads() == [Head("door", KEY, 0, 0, 1), Head("gate", "keys/gate/versions/1", 0, 1, 1)]
    record.delete_gallery("gate")
    record.create_gallery(new_gallery("gate"))
    record.import_block("door", KEY, ["s"], 8, 12, b"block", "r")
    assert galleries.heads() == [Head("door", KEY, 0, 1, 2), Head("gate", "keys/gate/versions/1", 2, 2, 1)]


def test_a_template_has_the_fingerprint_of_its_ciphertext(door, record, galleries):
    data = [os.urandom(100 + i) for i in range(3)]
    for i, each in enumerate(data):
        record.enroll("door", KEY, f"s{i}", each, f"r{i}")
    found = galleries.fingerprints("door", [1, 3, 9])
    assert found.head == Head("door", KEY, 0, 3, 1)
    assert found.blocks == {}
    assert {slot: one.size for slot, one in found.templates.items()} == {1: 100, 3: 102}
    assert found.templates[1].fits(data[0]) and found.templates[3].fits(data[2])
    for wrong in (b"", data[0][:-1], data[0] + b"x", data[1], bytes([data[0][0] ^ 1]) + data[0][1:]):
        assert not found.templates[1].fits(wrong)
    record.erase_subject("door", "s0")
    assert galleries.fingerprints("door", [1, 3, 9]).templates.keys() == {3}


def test_a_block_has_that_of_its_shape_slots_and_ciphertext(door, record, galleries):
    data = os.urandom(5000)
    record.import_block("door", KEY, ["a", "b"], 8, 12, data, "r1")
    record.import_block("door", KEY, ["c", "d"], 8, 12, data, "r2")
    found = galleries.fingerprints("door", [1, 2], [1, 2, 3])
    assert found.templates == {}  # these have no ciphertexts of their own
    assert found.blocks.keys() == {1, 2}
    one, other = found.blocks[1], found.blocks[2]
    assert (one.size, one.slots.tolist(), one.slots.dtype) == (5000, [1, 2] + [0] * 10, np.uint32)
    assert one.fits(data) and not one.fits(data[:-1])
    assert other.fits(data) and one.digest != other.digest


def test_of_nothing_there_is_nothing(door, galleries):
    assert galleries.fingerprints("none", [1], [1]) is None
    found = galleries.fingerprints("door")
    assert (found.templates, found.blocks) == ({}, {})
