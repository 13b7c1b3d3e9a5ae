"""Results of blocks of several shapes to slots and distances."""

import numpy as np
import pytest

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.wire import MalformedCiphertext
from sealface.protocol.scores import DITHER, Result, ScoresMisplaced, ScoresNotGenuine, open_results, result_from_wire
from tests.conftest import both_schemes, near, person

ME = person(0)


class Scored:
    """Results of templates at distances that a test chooses."""

    def __init__(self, scheme, metric=Metric.COSINE):
        self.layout = Layout.of("", 128, metric, 4.0)
        made = scheme.generate(self.layout.parameters)
        self.encryptor = scheme.encryptor(self.layout, made.public)
        self.evaluator = scheme.evaluator(self.layout, made.public, made.evaluation)
        self.opener = scheme.opener(self.layout, made.secret)
        self.group, self.small, self.larger = self.layout.group, *self.layout.sealed_shapes[:2]

    def result(self, shape, distances, claim=()):
        """Slot -> distance, in the order of positions; slots of `claim` are named and were not asked for."""
        stored = {i: self.encryptor.template(near(ME, d, slot)) for i, (slot, d) in enumerate(distances.items())}
        block = (
            self.evaluator.load(shape, self.evaluator.seal(shape, stored))
            if shape.sealed
            else self.evaluator.assemble(stored)
        )
        leaves = self.evaluator.expand([self.evaluator.admit_probe(self.encryptor.probe(ME))], {shape})[shape]
        slots = np.zeros(shape.capacity, np.uint32)
        slots[: len(distances)] = list(distances)
        ((data,),) = self.evaluator.score([block], leaves, [slots > 0])
        slots[len(distances) : len(distances) + len(claim)] = claim
        return Result(shape.columns, data, slots)

    def open(self, *results, dithered=False):
        slots, distances = open_results(self.opener, self.layout, results, dithered=dithered)
        assert (slots.dtype, distances.dtype, slots.shape) == (np.uint32, np.float64, distances.shape)
        return dict(zip(slots.tolist(), distances.tolist(), strict=True))


@pytest.fixture
def scored(scheme):
    return Scored(scheme)


def test_slots_come_as_little_endian_words():
    result = result_from_wire(8, b"data", b"\1\0\0\0\0\0\0\0\0\1\0\0\xff\xff\xff\xff")
    assert (result.columns, result.ciphertext) == (8, b"data")
    assert (result.slots.tolist(), result.slots.dtype) == ([1, 0, 256, 2**32 - 1], np.uint32)


@pytest.mark.parametrize("slots", [b"", b"\1", b"\1\0\0", b"\1\0\0\0\2", bytes(4093)])
def test_slots_that_are_no_whole_words_count_as_none(slots):
    assert result_from_wire(1, b"", slots).slots.size == 0


@both_schemes
def test_results_of_several_shapes_open_to_what_each_slot_scored(scored):
    results = [
        scored.result(scored.group, {1: 0.1, 2: 0.9}),
        scored.result(scored.small, {7: 0.3}),
        scored.result(scored.group, {3: 0.2}),
        scored.result(scored.larger, {2**32 - 1: 0.4, 5: 0.5}),
        scored.result(scored.small, {8: 0.6}),
    ]
    expected = {1: 0.1, 2: 0.9, 7: 0.3, 3: 0.2, 2**32 - 1: 0.4, 5: 0.5, 8: 0.6}
    for sent in (results, results[::-1]):
        assert scored.open(*sent) == pytest.approx(expected, abs=3e-4)


def test_nothing_opens_to_nothing(scored):
    assert scored.open() == {}
    unasked = scored.result(scored.small, {1: 0.1})
    assert scored.open(Result(unasked.columns, unasked.ciphertext, np.zeros_like(unasked.slots))) == {}


@both_schemes
def test_a_position_without_a_slot_is_not_told(scored):
    """What is there opens to something; only named positions count."""
    assert set(scored.open(scored.result(scored.small, {4: 0.1}))) == {4}
    found = scored.open(scored.result(scored.small, {4: 0.1}, claim=(9,)))
    assert set(found) == {4, 9}
    assert abs(found[9] - 0.1) > 1e-6


@pytest.mark.parametrize("columns", [0, 2, 3, 5, 256, 2**32 - 1])
def test_an_unknown_shape_is_misplaced(scored, columns):
    good = scored.result(scored.group, {1: 0.1})
    with pytest.raises(ScoresMisplaced):
        scored.open(good, Result(columns, good.ciphertext, good.slots))


def test_slots_of_another_number_than_positions_are_misplaced(scored):
    for shape in (scored.group, scored.small):
        good = scored.result(shape, {1: 0.1})
        for slots in (good.slots[:-1], np.append(good.slots, 0), good.slots[:0]):
            with pytest.raises(ScoresMisplaced):
                scored.open(good, Result(shape.columns, good.ciphertext, slots.astype(np.uint32)))


@both_schemes
def test_another_keys_results_are_not_genuine(scored, scheme):
    other = Scored(scheme)
    for shape in (scored.group, scored.small):
        foreign = other.result(shape, {1: 0.1})
        with pytest.raises(ScoresNotGenuine):
            scored.open(foreign)
        with pytest.raises(ScoresNotGenuine):
            scored.open(scored.result(scored.larger, {2: 0.2}), foreign, scored.result(scored.group, {3: 0.2}))


@both_schemes
def test_what_is_no_ciphertext_is_malformed(scored):
    good = scored.result(scored.small, {1: 0.1})
    for data in (b"", good.ciphertext[:-1], good.ciphertext + b"\0"):
        with pytest.raises(MalformedCiphertext):
            scored.open(Result(good.columns, data, good.slots))


@both_schemes
@pytest.mark.parametrize("first", ["group", "small"])
def test_how_much_is_opened_does_not_show_what_was_found(scored, scheme, first, monkeypatch):
    """Compute chooses the results and their order: what it sees of the time must not say that one was refused."""
    foreign = Scored(scheme).result(getattr(scored, first), {1: 0.1})
    others = [scored.result(scored.larger, {2: 0.2}), scored.result(scored.group, {3: 0.2})]
    opened = []
    opening = scored.opener.open
    monkeypatch.setattr(scored.opener, "open", lambda shape, data: opened.append(len(data)) or opening(shape, data))
    with pytest.raises(ScoresNotGenuine):
        scored.open(foreign, *others)
    assert sum(opened) == 3


@both_schemes
def test_dither_is_fresh_gaussian_noise_of_four_times_the_shapes(scored):
    for shape in (scored.group, scored.small):
        wanted = {slot: 0.2 + slot / 100 for slot in range(1, 21)}
        results = [scored.result(shape, {slot: d}) for slot, d in wanted.items()]
        exact = scored.open(*results)
        drawn = [scored.open(*results, dithered=True) for _ in range(50)]
        moved = np.array([[found[slot] - exact[slot] for slot in wanted] for found in drawn]) / (DITHER * shape.noise)
        assert abs(moved.mean()) < 6 / np.sqrt(moved.size)
        assert abs(moved.var() - 1) < 6 * np.sqrt(2 / moved.size)
        assert len(np.unique(moved)) == moved.size  # of each score, and anew each time


@both_schemes
@pytest.mark.parametrize("metric", list(Metric))
def test_dither_takes_no_score_out_of_range(scheme, metric):
    """Two pictures that are one and the same match, whatever is drawn."""
    scored = Scored(scheme, metric)
    results = [scored.result(scored.group, {slot: 0.0}) for slot in range(1, 40)]
    for _ in range(10):
        found = np.array(list(scored.open(*results, dithered=True).values()))
        assert (found >= 0).all()
        assert found.max() < {Metric.COSINE: 1e-3, Metric.EUCLIDEAN: 0.15}.get(metric, 0.05)
