"""What services may rely on, whichever scheme they are given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealface.cipher.distance import Metric
from sealface.cipher.evaluator import EvaluationKeyMissing, block_size
from sealface.cipher.layout import (
    EmbeddingNotFinite,
    EmbeddingTooLong,
    Layout,
    Shape,
    WrongDimension,
    ZeroEmbedding,
)
from sealface.cipher.parameters import N4096, N8192
from sealface.cipher.scheme import Ckks, Encryptor, Evaluator, KeyMaterial, Opener, Scheme
from sealface.cipher.wire import MalformedCiphertext
from tests.cipher.conftest import asked, key, units
from tests.plain import Plain

BOUND = 2.0


@dataclass(frozen=True)
class World:
    """A scheme, two keys of it, and every side of a gallery under the first."""

    scheme: Scheme
    key: KeyMaterial
    other: KeyMaterial
    layout: Layout
    encryptor: Encryptor
    evaluator: Evaluator
    opener: Opener

    def block(self, shape: Shape, templates: dict[int, bytes]) -> Any:
        """See `block_of`."""
        return block_of(self.evaluator, shape, templates)


def block_of(evaluator: Evaluator, shape: Shape, templates: dict[int, bytes]) -> Any:
    """A block of templates: a group, or sealed."""
    if not shape.sealed:
        return evaluator.assemble(templates)
    return evaluator.load(shape, evaluator.seal(shape, templates))


def score(
    evaluator: Evaluator, shape: Shape, block: Any, probe: Any, positions: Iterable[int], times: int = 1
) -> list[bytes]:
    """Results of one block and one probe."""
    leaves = evaluator.expand([probe], [shape])[shape]
    return [evaluator.score([block], leaves, [asked(shape, positions)])[0][0] for _ in range(times)]


def world(scheme: Scheme, keys: tuple[KeyMaterial, KeyMaterial], layout: Layout) -> World:
    """See `World`."""
    return World(
        scheme,
        *keys,
        layout,
        scheme.encryptor(layout, keys[0].public),
        scheme.evaluator(layout, keys[0].public, keys[0].evaluation),
        scheme.opener(layout, keys[0].secret),
    )


@pytest.fixture(scope="module", params=[Plain, Ckks], ids=["plain", "ckks"])
def made(request: pytest.FixtureRequest) -> Callable[[Metric], World]:
    scheme: Scheme = request.param()
    keys = (key(N4096), key(N4096, 1)) if isinstance(scheme, Ckks) else (scheme.generate(N4096), scheme.generate(N4096))
    return lambda metric: world(scheme, keys, Layout(N4096, 128, metric, 1.0 if metric.normalised else BOUND))


COLUMNS = pytest.mark.parametrize("columns", [1, 8])


@COLUMNS
@pytest.mark.parametrize("metric", list(Metric))
def test_scores_of_requested_positions(
    made: Callable[[Metric], World], metric: Metric, columns: int, rng: np.random.Generator
) -> None:
    w = made(metric)
    shape = w.layout.shape(columns)
    vectors = 1.9 * units(rng, 30, 128)
    q = 1.5 * units(rng, 1, 128)[0]
    positions = {i: i for i in range(29)} | {29: shape.capacity - 1}
    templates = {positions[i]: w.evaluator.admit(w.encryptor.template(v)) for i, v in enumerate(vectors) if i % 3}
    block = w.block(shape, templates)
    probe = w.evaluator.admit_probe(w.encryptor.probe(q))
    requested = [1, 4, 28]
    results = score(w.evaluator, shape, block, probe, [positions[i] for i in requested], times=20)
    opened = w.opener.open(shape, results)
    assert opened.scores.shape == (20, shape.capacity)
    assert opened.checks.shape == (20, shape.checks)
    for i in requested:
        t = vectors[i]
        expected = t @ q / 1.9 / 1.5 if metric.normalised else ((t - q) ** 2).sum() / BOUND**2
        assert np.abs(opened.scores[:, positions[i]] - expected).max() < 2e-4
    assert w.opener.genuine(shape, opened.checks)
    others = np.delete(opened.scores, [positions[i] for i in requested], axis=1)  # live and empty positions alike
    assert others.std() == pytest.approx(16 / 12**0.5, rel=0.15)
    assert len(np.unique(others)) > 0.99 * others.size


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_several_probes_and_blocks_at_once(
    made: Callable[[Metric], World], metric: Metric, rng: np.random.Generator
) -> None:
    """Five probes, blocks of three shapes, one expansion: results by probe and block, and what each took."""
    w = made(metric)
    vectors, q = 1.9 * units(rng, 8, 128), 1.5 * units(rng, 5, 128)
    probes = [w.evaluator.admit_probe(w.encryptor.probe(one)) for one in q]
    templates = [w.evaluator.admit(w.encryptor.template(v)) for v in vectors]
    group, small, large = (w.layout.shape(columns) for columns in (1, 8, 32))
    imported = w.evaluator.admit_block(large, w.encryptor.block(large, vectors[4:]))
    assert len(imported) <= block_size(large)
    blocks: dict[Shape, list[tuple[Any, slice]]] = {
        group: [(w.block(group, dict(enumerate(templates[:2]))), slice(0, 2))],
        small: [
            (w.block(small, dict(enumerate(templates[2:5]))), slice(2, 5)),
            (w.block(small, dict(enumerate(templates[5:]))), slice(5, 8)),
        ],
        large: [(w.evaluator.load(large, imported), slice(4, 8))],
    }
    leaves = w.evaluator.expand(probes, blocks)
    assert set(leaves) == set(blocks)
    if metric.normalised:
        expected = q @ vectors.T / 1.9 / 1.5
    else:
        expected = ((q[:, None] - vectors) ** 2).sum(axis=2) / BOUND**2
    seconds: list[float] = []
    for shape, of_shape in blocks.items():
        requested = [asked(shape, range(where.stop - where.start)) for _, where in of_shape]
        results = w.evaluator.score([block for block, _ in of_shape], leaves[shape], requested, seconds)
        assert len(results) == 5
        for scores, of_probe in zip(expected, results, strict=True):
            opened = w.opener.open(shape, of_probe)
            for found, (_, where) in zip(opened.scores, of_shape, strict=True):
                assert np.abs(found[: where.stop - where.start] - scores[where]).max() < 2e-4
            assert w.opener.genuine(shape, opened.checks)
    assert len(seconds) == 3
    assert all(taken > 0 for taken in seconds)


@COLUMNS
def test_a_result_uses_what_was_drawn_ahead(made: Callable[[Metric], World], columns: int) -> None:
    w = made(Metric.COSINE)
    shape = w.layout.shape(columns)
    block = w.block(shape, {0: w.encryptor.template(np.ones(128))})
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    assert len(w.evaluator.zeros) == 0
    for count in range(1, 4):
        w.evaluator.zeros.add_one()
        assert len(w.evaluator.zeros) == count
    results = score(w.evaluator, shape, block, probe, [0], times=2)
    assert len(w.evaluator.zeros) == 1
    results += score(w.evaluator, shape, block, probe, [0], times=3)  # drawn as they are needed
    assert len(w.evaluator.zeros) == 0
    assert len(set(results)) == 5
    opened = w.opener.open(shape, results)
    assert np.abs(opened.scores[:, 0] - 1).max() < 2e-4
    assert w.opener.genuine(shape, opened.checks)


def test_sealed_blocks_need_the_galois_keys(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    shape, group = w.layout.shape(8), w.layout.group
    template = w.encryptor.template(np.ones(128))
    fewer = dict(list(w.key.evaluation.items())[-2:])
    for keys in (None, {}, fewer):
        evaluator = w.scheme.evaluator(w.layout, w.key.public, keys)
        probe = evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
        with pytest.raises(EvaluationKeyMissing):
            evaluator.seal(shape, {0: template})
        with pytest.raises(EvaluationKeyMissing):
            evaluator.expand([probe], [shape])
        assert set(evaluator.expand([probe], [group])) == {group}
        assert not evaluator.expand([probe], [])


def test_sealing_pauses_and_can_be_stopped(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    shape = w.layout.shape(8)
    template = w.encryptor.template(np.ones(128))
    pauses: list[int] = []
    stored = w.evaluator.seal(shape, {0: template, 1: template}, lambda: pauses.append(1))
    assert pauses
    assert len(stored) <= block_size(shape)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        w.evaluator.seal(shape, {0: template}, stop)


def test_a_result_opened_as_one_of_another_shape_is_not_genuine(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    shapes: Sequence[Shape] = [w.layout.shape(columns) for columns in (1, 8, 32)]
    for shape in shapes:
        block = w.block(shape, {0: w.encryptor.template(np.ones(128))})
        (result,) = score(w.evaluator, shape, block, probe, [0])
        for other in shapes[1:]:
            assert w.opener.genuine(other, w.opener.open(other, [result]).checks) == (other == shape)


def test_a_group_grows(made: Callable[[Metric], World], rng: np.random.Generator) -> None:
    w = made(Metric.COSINE)
    group = w.layout.group
    vectors = units(rng, 5, 128)
    sealed = [w.evaluator.admit(w.encryptor.template(v)) for v in vectors]
    first = w.evaluator.assemble({0: sealed[0], 1: sealed[1]})
    grown = w.evaluator.assemble({3: sealed[3], 2: sealed[2]}, first)
    grown = w.evaluator.assemble({4: sealed[4]}, grown)
    probe = w.evaluator.admit_probe(w.encryptor.probe(vectors[3]))
    results = [score(w.evaluator, group, block, probe, range(5))[0] for block in (first, grown)]
    opened = w.opener.open(group, results)
    assert np.abs(opened.scores[1, :5] - vectors @ vectors[3]).max() < 2e-4
    assert np.abs(opened.scores[0, 2:5]).max() < 2e-4  # the first is as it was
    assert w.opener.genuine(group, opened.checks)


def test_no_two_ciphertexts_are_equal(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    v = np.ones(128)
    shape = w.layout.shape(8)
    template, block = w.encryptor.template(v), w.encryptor.block(shape, v[None])
    seen = [template, w.encryptor.template(v), w.encryptor.probe(v), w.encryptor.probe(v)]
    seen += [w.evaluator.admit(template), w.evaluator.admit(template)]
    probe = w.evaluator.admit_probe(seen[2])
    group = w.evaluator.assemble({0: template})
    seen += score(w.evaluator, w.layout.group, group, probe, [0], times=2)
    blocks = [block, w.encryptor.block(shape, v[None])]
    blocks += [w.evaluator.admit_block(shape, block), w.evaluator.admit_block(shape, block)]
    seen += score(w.evaluator, shape, w.evaluator.load(shape, block), probe, [0], times=2)
    assert len(set(seen + blocks)) == len(seen + blocks)
    assert len({len(data) for data in seen[:2]}) == 1
    assert len({len(data) for data in blocks}) == 1


def test_an_empty_group_and_nothing_requested(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    group = w.layout.group
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    opened = w.opener.open(group, score(w.evaluator, group, w.evaluator.assemble({}), probe, ()))
    assert w.opener.genuine(group, opened.checks)
    for shape in (group, w.layout.shape(8)):
        assert w.opener.open(shape, []).scores.shape == (0, shape.capacity)
        assert w.opener.genuine(shape, w.opener.open(shape, []).checks)


@pytest.mark.parametrize(
    ("metric", "embedding", "error"),
    [
        (Metric.COSINE, np.ones(127), WrongDimension),
        (Metric.ANGULAR, np.full(128, np.nan), EmbeddingNotFinite),
        (Metric.EUCLIDEAN_L2, np.full(128, np.inf), EmbeddingNotFinite),
        (Metric.COSINE, np.zeros(128), ZeroEmbedding),
        (Metric.EUCLIDEAN, np.ones(128), EmbeddingTooLong),
    ],
)
def test_what_is_no_embedding(
    made: Callable[[Metric], World], metric: Metric, embedding: np.ndarray, error: type[Exception]
) -> None:
    w = made(metric)
    shape = w.layout.shape(8)
    good = np.full(128, 0.01)
    for side in (w.encryptor.template, w.encryptor.probe, lambda v: w.encryptor.block(shape, [good, v])):
        with pytest.raises(error):
            side(embedding)


def test_a_block_of_none_or_too_many(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    shape = w.layout.shape(8)
    for count in (0, shape.capacity + 1):
        with pytest.raises(ValueError, match="holds 1 to 192"):
            w.encryptor.block(shape, np.ones((count, 128)))


@COLUMNS
@pytest.mark.parametrize("magnitude", [1e-300, 1.0, 1e300])
def test_any_magnitude_will_do_for_cosine(made: Callable[[Metric], World], magnitude: float, columns: int) -> None:
    w = made(Metric.COSINE)
    shape = w.layout.shape(columns)
    v = np.linspace(-1, 1, 128)
    block = w.block(shape, {2: w.encryptor.template(v * magnitude)})
    probe = w.evaluator.admit_probe(w.encryptor.probe(v / magnitude))
    opened = w.opener.open(shape, score(w.evaluator, shape, block, probe, [2]))
    assert opened.scores[0, 2] == pytest.approx(1, abs=2e-4)


def test_malformed_bytes(made: Callable[[Metric], World]) -> None:
    w, euclidean = made(Metric.COSINE), made(Metric.EUCLIDEAN)
    group, shape = w.layout.group, w.layout.shape(8)
    template, block = w.encryptor.template(np.ones(128)), w.encryptor.block(shape, np.ones((1, 128)))
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    (result,) = score(w.evaluator, group, w.evaluator.assemble({0: template}), probe, [0])
    other = euclidean.encryptor.template(np.full(128, 0.1))
    for bad in (b"", template[:-1], template + b"\0", b"\xff" * len(template), other, result, block):
        with pytest.raises(MalformedCiphertext):
            w.evaluator.admit(bad)
        with pytest.raises(MalformedCiphertext):
            w.evaluator.admit_probe(bad)
        with pytest.raises(MalformedCiphertext):
            w.evaluator.assemble({0: bad})
        with pytest.raises(MalformedCiphertext):
            w.evaluator.seal(shape, {0: bad})
    others = (
        euclidean.encryptor.block(shape, np.full((1, 128), 0.1)),
        w.encryptor.block(w.layout.shape(16), np.ones((1, 128))),
    )
    for bad in (b"", block[:-1], block + b"\0", b"\xff" * len(block), template, result, *others):
        with pytest.raises(MalformedCiphertext):
            w.evaluator.admit_block(shape, bad)
        with pytest.raises(MalformedCiphertext):
            w.evaluator.load(shape, bad)
    for bad in (b"", result[:-1], result + b"\0", b"\xff" * len(result), template):
        with pytest.raises(MalformedCiphertext):
            w.opener.open(group, [bad])


@pytest.mark.parametrize(("columns", "position"), [(1, -1), (1, 30), (8, -1), (8, 192), (8, 255)])
def test_positions_outside_a_block(made: Callable[[Metric], World], columns: int, position: int) -> None:
    w = made(Metric.COSINE)
    shape = w.layout.shape(columns)
    template = w.encryptor.template(np.ones(128))
    with pytest.raises(ValueError, match="outside"):
        w.block(shape, {position: template})
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    leaves = w.evaluator.expand([probe], [shape])[shape]
    block = w.block(shape, {0: template})
    for size in (0, shape.capacity - 1, shape.capacity + 1, shape.positions):
        with pytest.raises(ValueError, match="positions to ask for"):
            w.evaluator.score([block], leaves, [np.ones(size, bool)])
    with pytest.raises(ValueError, match="shorter"):
        w.evaluator.score([block], leaves, [])


@COLUMNS
@pytest.mark.parametrize("at", [0.02, 0.4, 0.7, 0.95])
def test_a_tampered_result_is_not_genuine(made: Callable[[Metric], World], at: float, columns: int) -> None:
    w = made(Metric.COSINE)
    shape = w.layout.shape(columns)
    block = w.block(shape, {0: w.encryptor.template(np.ones(128))})
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    result = bytearray(score(w.evaluator, shape, block, probe, [0])[0])
    # an NTT value in the first half of the prime's range stays in range when its top bit but one is flipped
    result[int(at * len(result)) // 15 * 15 + 2] ^= 0x40
    try:
        opened = w.opener.open(shape, [bytes(result)])
    except MalformedCiphertext:
        return
    assert not w.opener.genuine(shape, opened.checks)


@COLUMNS
def test_another_key(made: Callable[[Metric], World], columns: int) -> None:
    w = made(Metric.COSINE)
    scheme, layout = w.scheme, w.layout
    shape = layout.shape(columns)
    assert w.key.public != w.other.public
    foreign = scheme.encryptor(layout, w.other.public)
    v = np.ones(128)

    def opens(template: Encryptor, probe: Encryptor, evaluator: Evaluator, opener: Opener) -> bool:
        admitted = {0: evaluator.admit(template.template(v))}
        block = block_of(evaluator, shape, admitted)
        results = score(evaluator, shape, block, evaluator.admit_probe(probe.probe(v)), [0])
        return opener.genuine(shape, opener.open(shape, results).checks)

    assert opens(w.encryptor, w.encryptor, w.evaluator, w.opener)
    assert not opens(foreign, w.encryptor, w.evaluator, w.opener)
    assert not opens(w.encryptor, foreign, w.evaluator, w.opener)
    theirs = scheme.evaluator(layout, w.other.public, w.other.evaluation)
    assert not opens(w.encryptor, w.encryptor, theirs, w.opener)
    assert not opens(w.encryptor, w.encryptor, w.evaluator, scheme.opener(layout, w.other.secret))
    assert opens(foreign, foreign, theirs, scheme.opener(layout, w.other.secret))
    if shape.sealed:  # the Galois keys of another version
        mixed = scheme.evaluator(layout, w.key.public, w.other.evaluation)
        assert not opens(w.encryptor, w.encryptor, mixed, w.opener)
        whole = w.evaluator.admit_block(shape, foreign.block(shape, v[None]))
        probe = w.evaluator.admit_probe(w.encryptor.probe(v))
        results = score(w.evaluator, shape, w.evaluator.load(shape, whole), probe, [0])
        assert not w.opener.genuine(shape, w.opener.open(shape, results).checks)


def test_keys_that_are_none(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    scheme, layout = w.scheme, w.layout
    scheme.check_public(N4096, w.key.public)
    for bad in (b"", w.key.public[:-1], w.key.public + b"\0", w.key.secret, b"\xff" * len(w.key.public)):
        with pytest.raises(MalformedCiphertext):
            scheme.check_public(N4096, bad)
        with pytest.raises(MalformedCiphertext):
            scheme.encryptor(layout, bad)
        with pytest.raises(MalformedCiphertext):
            scheme.evaluator(layout, bad)
    with pytest.raises(MalformedCiphertext):
        scheme.check_public(N8192, w.key.public)
    with pytest.raises(MalformedCiphertext):
        scheme.check_public(N4096, bytes(len(w.key.public)))
    for bad in (b"", w.key.secret[:-1], w.key.public):
        with pytest.raises(MalformedCiphertext):
            scheme.opener(layout, bad)
    for element, material in w.key.evaluation.items():
        scheme.check_evaluation(N4096, material)
        for bad in (b"", material[:-1], material + b"\0", b"\xff" * len(material)):
            with pytest.raises(MalformedCiphertext):
                scheme.check_evaluation(N4096, bad)
            with pytest.raises(MalformedCiphertext):
                scheme.evaluator(layout, w.key.public, {element: bad})
        with pytest.raises(MalformedCiphertext):
            scheme.check_evaluation(N8192, material)


def test_keys_are_fresh(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    for own, other in (
        (w.key.secret, w.other.secret),
        (w.key.public, w.other.public),
        *zip(w.key.evaluation.values(), w.other.evaluation.values(), strict=True),
    ):
        assert own != other
        assert len(own) == len(other)
    assert w.key.evaluation


def test_nothing_is_left_to_compile_once_it_is_warm() -> None:
    """The first search would wait for it, for seconds where nothing is cached."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.cipher.warmed"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    found = json.loads(printed)
    assert found["warmed"]
    assert found["later"] == []
