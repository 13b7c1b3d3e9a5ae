"""What services may rely on, whichever scheme they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from sealface.cipher.distance import Metric
from sealface.cipher.layout import (
    EmbeddingNotFinite,
    EmbeddingTooLong,
    Layout,
    WrongDimension,
    ZeroEmbedding,
)
from sealface.cipher.parameters import N4096, N8192
from sealface.cipher.scheme import Ckks, Encryptor, Evaluator, KeyMaterial, Opener, Scheme
from sealface.cipher.wire import MalformedCiphertext
from tests.cipher.conftest import key, units
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


def world(scheme: Scheme, keys: tuple[KeyMaterial, KeyMaterial], layout: Layout) -> World:
    """See `World`."""
    return World(
        scheme,
        *keys,
        layout,
        scheme.encryptor(layout, keys[0].public),
        scheme.evaluator(layout, keys[0].public),
        scheme.opener(layout, keys[0].secret),
    )


@pytest.fixture(scope="module", params=[Plain, Ckks], ids=["plain", "ckks"])
def made(request: pytest.FixtureRequest) -> Callable[[Metric], World]:
    scheme: Scheme = request.param()
    keys = (key(N4096), key(N4096, 1)) if isinstance(scheme, Ckks) else (scheme.generate(N4096), scheme.generate(N4096))
    return lambda metric: world(scheme, keys, Layout(N4096, 128, metric, 1.0 if metric.normalised else BOUND))


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_of_requested_positions(
    made: Callable[[Metric], World], metric: Metric, rng: np.random.Generator
) -> None:
    w = made(metric)
    vectors = 1.9 * units(rng, w.layout.capacity, 128)
    q = 1.5 * units(rng, 1, 128)[0]
    group = w.evaluator.assemble(
        {i: w.evaluator.admit(w.encryptor.template(v)) for i, v in enumerate(vectors) if i % 3}
    )
    probe = w.evaluator.admit_probe(w.encryptor.probe(q))
    requested = [1, 4, w.layout.capacity - 1]
    results = [w.evaluator.score(group, probe, requested) for _ in range(20)]
    opened = w.opener.open(results)
    assert opened.scores.shape == (20, w.layout.capacity)
    assert opened.checks.shape == (20, w.layout.checks)
    for i in requested:
        t = vectors[i]
        expected = t @ q / 1.9 / 1.5 if metric.normalised else ((t - q) ** 2).sum() / BOUND**2
        assert np.abs(opened.scores[:, i] - expected).max() < 2e-4
    assert w.opener.genuine(opened.checks)
    others = np.delete(opened.scores, requested, axis=1)  # live and empty positions alike
    assert others.std() == pytest.approx(16 / 12**0.5, rel=0.15)
    assert len(np.unique(others)) > 0.99 * others.size


def test_a_group_grows(made: Callable[[Metric], World], rng: np.random.Generator) -> None:
    w = made(Metric.COSINE)
    vectors = units(rng, 5, 128)
    sealed = [w.evaluator.admit(w.encryptor.template(v)) for v in vectors]
    first = w.evaluator.assemble({0: sealed[0], 1: sealed[1]})
    grown = w.evaluator.assemble({3: sealed[3], 2: sealed[2]}, first)
    grown = w.evaluator.assemble({4: sealed[4]}, grown)
    probe = w.evaluator.admit_probe(w.encryptor.probe(vectors[3]))
    opened = w.opener.open([w.evaluator.score(g, probe, range(5)) for g in (first, grown)])
    assert np.abs(opened.scores[1, :5] - vectors @ vectors[3]).max() < 2e-4
    assert np.abs(opened.scores[0, 2:5]).max() < 2e-4  # the first is as it was
    assert w.opener.genuine(opened.checks)


def test_no_two_ciphertexts_are_equal(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    v = np.ones(128)
    template = w.encryptor.template(v)
    seen = [template, w.encryptor.template(v), w.encryptor.probe(v), w.encryptor.probe(v)]
    seen += [w.evaluator.admit(template), w.evaluator.admit(template)]
    probe = w.evaluator.admit_probe(seen[2])
    group = w.evaluator.assemble({0: template})
    seen += [w.evaluator.score(group, probe, [0]), w.evaluator.score(group, probe, [0])]
    assert len(set(seen)) == len(seen)
    assert len({len(data) for data in seen[:2]}) == 1


def test_an_empty_group_and_nothing_requested(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    opened = w.opener.open([w.evaluator.score(w.evaluator.assemble({}), probe, ())])
    assert w.opener.genuine(opened.checks)
    assert w.opener.open([]).scores.shape == (0, w.layout.capacity)
    assert w.opener.genuine(w.opener.open([]).checks)


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
    for side in (w.encryptor.template, w.encryptor.probe):
        with pytest.raises(error):
            side(embedding)


@pytest.mark.parametrize("magnitude", [1e-300, 1.0, 1e300])
def test_any_magnitude_will_do_for_cosine(made: Callable[[Metric], World], magnitude: float) -> None:
    w = made(Metric.COSINE)
    v = np.linspace(-1, 1, 128)
    group = w.evaluator.assemble({2: w.encryptor.template(v * magnitude)})
    probe = w.evaluator.admit_probe(w.encryptor.probe(v / magnitude))
    opened = w.opener.open([w.evaluator.score(group, probe, [2])])
    assert opened.scores[0, 2] == pytest.approx(1, abs=2e-4)


def test_malformed_bytes(made: Callable[[Metric], World]) -> None:
    w, euclidean = made(Metric.COSINE), made(Metric.EUCLIDEAN)
    template = w.encryptor.template(np.ones(128))
    result = w.evaluator.score(
        w.evaluator.assemble({0: template}),
        w.evaluator.admit_probe(w.encryptor.probe(np.ones(128))),
        [0],
    )
    other = euclidean.encryptor.template(np.full(128, 0.1))
    for bad in (b"", template[:-1], template + b"\0", b"\xff" * len(template), other, result):
        with pytest.raises(MalformedCiphertext):
            w.evaluator.admit(bad)
        with pytest.raises(MalformedCiphertext):
            w.evaluator.admit_probe(bad)
        with pytest.raises(MalformedCiphertext):
            w.evaluator.assemble({0: bad})
    for bad in (b"", result[:-1], result + b"\0", b"\xff" * len(result), template):
        with pytest.raises(MalformedCiphertext):
            w.opener.open([bad])


@pytest.mark.parametrize("position", [-1, 30])
def test_positions_outside_a_group(made: Callable[[Metric], World], position: int) -> None:
    w = made(Metric.COSINE)
    template = w.encryptor.template(np.ones(128))
    probe = w.evaluator.admit_probe(w.encryptor.probe(np.ones(128)))
    with pytest.raises(ValueError, match="outside"):
        w.evaluator.assemble({position: template})
    with pytest.raises(ValueError, match="outside"):
        w.evaluator.score(w.evaluator.assemble({0: template}), probe, [position])


@pytest.mark.parametrize("at", [0.02, 0.4, 0.7, 0.95])
def test_a_tampered_result_is_not_genuine(made: Callable[[Metric], World], at: float) -> None:
    w = made(Metric.COSINE)
    template, probe = w.encryptor.template(np.ones(128)), w.encryptor.probe(np.ones(128))
    result = bytearray(w.evaluator.score(w.evaluator.assemble({0: template}), w.evaluator.admit_probe(probe), [0]))
    # an NTT value in the first half of the prime's range stays in range when its top bit but one is flipped
    result[int(at * len(result)) // 15 * 15 + 2] ^= 0x40
    try:
        opened = w.opener.open([bytes(result)])
    except MalformedCiphertext:
        return
    assert not w.opener.genuine(opened.checks)


def test_another_key(made: Callable[[Metric], World]) -> None:
    w = made(Metric.COSINE)
    scheme, layout = w.scheme, w.layout
    assert w.key.public != w.other.public
    foreign = scheme.encryptor(layout, w.other.public)
    v = np.ones(128)

    def opens(template: Encryptor, probe: Encryptor, evaluator: Evaluator, opener: Opener) -> bool:
        group = evaluator.assemble({0: evaluator.admit(template.template(v))})
        result = evaluator.score(group, evaluator.admit_probe(probe.probe(v)), [0])
        return opener.genuine(opener.open([result]).checks)

    assert opens(w.encryptor, w.encryptor, w.evaluator, w.opener)
    assert not opens(foreign, w.encryptor, w.evaluator, w.opener)
    assert not opens(w.encryptor, foreign, w.evaluator, w.opener)
    assert not opens(w.encryptor, w.encryptor, scheme.evaluator(layout, w.other.public), w.opener)
    assert not opens(w.encryptor, w.encryptor, w.evaluator, scheme.opener(layout, w.other.secret))
    theirs = scheme.evaluator(layout, w.other.public)
    assert opens(foreign, foreign, theirs, scheme.opener(layout, w.other.secret))


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
    for material in w.key.evaluation.values():
        scheme.check_evaluation(N4096, material)
        for bad in (b"", material[:-1], material + b"\0", b"\xff" * len(material)):
            with pytest.raises(MalformedCiphertext):
                scheme.check_evaluation(N4096, bad)
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
