"""A pass gives what one block and one probe at a time give, in whatever order and number they are scored."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.workers import scan
from sealface.workers.scan import Loaded, Scanner
from sealface.workers.task import Timing
from tests.conftest import both_schemes, person

PROBES = 3


class Gallery:
    """Parts of several shapes, some positions of them not asked for, and what each slot scores."""

    def __init__(self, scheme, metric=Metric.COSINE, threads=1):
        self.layout = Layout.of("", 128, metric, 4.0)
        made = scheme.generate(self.layout.parameters)
        self.encryptor = scheme.encryptor(self.layout, made.public)
        self.evaluator = scheme.evaluator(self.layout, made.public, made.evaluation, threads)
        self.opener = scheme.opener(self.layout, made.secret)
        self.probes = [self.evaluator.admit_probe(self.encryptor.probe(person(900 + i))) for i in range(PROBES)]
        self.vectors = {}
        self.blocks = []
        self.slots = []  # asked for, by block and position

    def add(self, shape, count, asked=None):
        first = len(self.vectors) + 1
        stored = {}
        slots = np.zeros(shape.capacity, np.uint32)
        for i in range(count):
            self.vectors[first + i] = person(first + i)
            stored[i] = self.encryptor.template(person(first + i))
            slots[i] = first + i
        if asked is not None:
            slots[asked:] = 0
        block = (
            self.evaluator.load(shape, self.evaluator.seal(shape, stored))
            if shape.sealed
            else self.evaluator.assemble(stored)
        )
        self.blocks.append(Loaded(shape, block, slots > 0))
        self.slots.append(slots)

    def score(self, number, slot):
        t, q = self.vectors[slot], person(900 + number)
        return float(t @ q) if self.layout.metric.normalised else float(((t - q) ** 2).sum()) / 16

    def check(self, passed):
        """What came of a pass is the blocks' scores, for each probe, each once."""
        places = [place for tile in passed for place in tile.places]
        assert sorted(places) == list(range(len(self.blocks)))
        for tile in passed:
            for number, of_probe in enumerate(tile.results):
                for place, data in zip(tile.places, of_probe, strict=True):
                    self.check_result(number, self.blocks[place].shape, data, self.slots[place])

    def check_result(self, number, shape, data, slots):
        opened = self.opener.open(shape, [data])
        assert self.opener.genuine(shape, opened.checks)
        for position in np.flatnonzero(slots):
            assert opened.scores[0, position] == pytest.approx(self.score(number, int(slots[position])), abs=5e-4)


@both_schemes
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
@pytest.mark.parametrize(("threads", "count"), [(1, 1), (1, PROBES), (3, 1), (3, PROBES)])
def test_a_pass_equals_scores_one_by_one(scheme, metric, threads, count):
    gallery = Gallery(scheme, metric, threads)
    group, small, larger = gallery.layout.group, *gallery.layout.sealed_shapes[:2]
    for shape, held, asked in (
        (group, 3, None),
        (larger, 2, 1),
        (small, 5, None),
        (group, 2, 0),
        (small, 1, None),
        (group, 4, 2),
        (small, 2, None),
    ):
        gallery.add(shape, held, asked)
    timing = Timing()
    passed = list(Scanner(threads).scan(gallery.evaluator, gallery.blocks, gallery.probes[:count], timing))
    assert all(len(tile.results) == count for tile in passed)
    gallery.check(passed)
    assert min(timing.expand_ms, timing.multiply_ms, timing.pass_ms) > 0


@pytest.mark.parametrize("threads", [1, 4])
def test_many_tiles_come_each_once_and_in_order(scheme, threads):
    """More than are scored ahead; sealed blocks first, the largest shape of all first."""
    gallery = Gallery(scheme)
    group, small, larger = gallery.layout.group, *gallery.layout.sealed_shapes[:2]
    for i in range(70):
        gallery.add((group, larger, small)[i % 3], 1)
    passed = list(Scanner(threads).scan(gallery.evaluator, gallery.blocks, gallery.probes[:2], Timing()))
    gallery.check(passed)
    places = [place for tile in passed for place in tile.places]
    columns = [gallery.blocks[place].shape.columns for place in places]
    assert columns == sorted(columns, reverse=True)
    for shape in (group, small, larger):
        of_shape = [place for place in places if gallery.blocks[place].shape == shape]
        assert of_shape == sorted(of_shape)
    assert {len({gallery.blocks[place].shape for place in tile.places}) for tile in passed} == {1}


@both_schemes
def test_a_gallery_without_templates_gives_nothing(scheme):
    gallery = Gallery(scheme)
    assert list(Scanner(2).scan(gallery.evaluator, [], gallery.probes, Timing())) == []


@both_schemes
def test_two_passes_give_no_result_twice(scheme):
    gallery = Gallery(scheme)
    gallery.add(gallery.layout.group, 2)
    gallery.add(gallery.layout.sealed_shapes[0], 2)
    scanner = Scanner(2)
    seen = {
        data
        for _ in range(2)
        for tile in scanner.scan(gallery.evaluator, gallery.blocks, [gallery.probes[0]] * 2, Timing())
        for results in tile.results
        for data in results
    }
    assert len(seen) == 2 * 2 * len(gallery.blocks)


def test_a_block_that_fails_fails_the_pass_and_no_other(scheme):
    gallery = Gallery(scheme)
    for _ in range(30):
        gallery.add(gallery.layout.sealed_shapes[0], 1)
    whole = gallery.blocks[10]
    scanner = Scanner(2)
    gallery.blocks[10] = Loaded(whole.shape, whole.block, whole.requested[:-1])
    with pytest.raises(ValueError, match="positions"):
        list(scanner.scan(gallery.evaluator, gallery.blocks, gallery.probes, Timing()))
    gallery.blocks[10] = whole
    gallery.check(list(scanner.scan(gallery.evaluator, gallery.blocks, gallery.probes, Timing())))


def test_a_pass_that_nobody_waits_for_computes_little_ahead(scheme, monkeypatch):
    """What was given up leaves the threads to others, and what nobody takes is not piled up."""
    gallery = Gallery(scheme)
    for _ in range(200):
        gallery.add(gallery.layout.sealed_shapes[0], 1)
    scored, counting = [], threading.Lock()
    score = scan._score

    def counted(evaluator, leaves, tile, multiplied, seeds):
        with counting:
            scored.append(len(tile))
        return score(evaluator, leaves, tile, multiplied, seeds)

    monkeypatch.setattr(scan, "_score", counted)
    scanner = Scanner(2)
    results = scanner.scan(gallery.evaluator, gallery.blocks, gallery.probes[:1], Timing())
    next(results)
    results.close()
    gallery.blocks = gallery.blocks[:1]
    gallery.check(list(scanner.scan(gallery.evaluator, gallery.blocks, gallery.probes, Timing())))
    assert sum(scored) < 30


def test_passes_at_once_do_not_disturb_each_other(scheme):
    gallery = Gallery(scheme)
    for i in range(24):
        gallery.add((gallery.layout.group, gallery.layout.sealed_shapes[0])[i % 2], 2)
    scanner, failures = Scanner(3), []

    def search():
        try:
            for _ in range(4):
                gallery.check(list(scanner.scan(gallery.evaluator, gallery.blocks, gallery.probes, Timing())))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=search) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


@pytest.mark.parametrize("held", [0, 1])
def test_what_a_pass_does_depends_on_no_slot(scheme, held):
    """As many tiles and results whether positions are asked for or not: compute's work tells nothing."""
    gallery = Gallery(scheme)
    for _ in range(5):
        gallery.add(gallery.layout.sealed_shapes[0], 3, 3 * held)
    passed = list(Scanner(1).scan(gallery.evaluator, gallery.blocks, gallery.probes[:1], Timing()))
    assert [len(tile.results[0]) for tile in passed] == [2, 2, 1]
    gallery.check(passed)
