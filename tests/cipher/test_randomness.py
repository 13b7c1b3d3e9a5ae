from __future__ import annotations

import os
from statistics import NormalDist

import numpy as np
import pytest

from sealface.cipher.parameters import N4096, N8192
from sealface.cipher.randomness import Randomness
from tests.cipher.conftest import assert_uniform

COUNT = 1 << 18


@pytest.mark.parametrize("p", sorted({*N4096.data_primes, *N8192.data_primes, (1 << 29) + 11}))
def test_uniform(p: int) -> None:
    drawn = Randomness().uniform(COUNT, p)
    assert drawn.shape == (COUNT,)
    assert drawn.dtype == np.uint64
    assert int(drawn.max()) < p
    assert_uniform(drawn, p, 256)
    for bit in range(8):  # a modulo instead of a rejection, or a stuck bit, shows here
        assert abs((drawn >> np.uint64(bit) & np.uint64(1)).mean() - 0.5) < 6 * 0.5 / np.sqrt(COUNT)


def test_what_would_bias_a_remainder_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, p = Randomness(), N4096.primes[0]
    words = np.array([p, 5, p + 1, p - 1, (1 << 30) - 1, 0, (1 << 30) + 7], "<u4")  # 30 bits of the last: 7
    monkeypatch.setattr(draw, "_bytes", lambda count: np.resize(words, 700).view(np.uint8))
    assert draw.uniform(8, p).tolist() == [5, p - 1, 0, 7] * 2
    octets = np.array([255, 1, 255, 254, 0], np.uint8)  # 255 = 3 x 85: bytes below it are 85 of each
    monkeypatch.setattr(draw, "_bytes", lambda count: np.resize(octets, 500))
    assert draw.ternary(6).tolist() == [0, 1, -1] * 2
    every = np.arange(255, dtype=np.uint8)
    monkeypatch.setattr(draw, "_bytes", lambda count: every)
    assert np.bincount(draw.ternary(255) + 1).tolist() == [85, 85, 85]


def test_ternary_is_uniform() -> None:
    counts = np.bincount(Randomness().ternary(COUNT) + 1)
    assert counts.size == 3
    assert (np.abs(counts - COUNT / 3) < 6 * np.sqrt(COUNT * 2 / 9)).all()


def test_error_is_the_centred_binomial_of_42_bits() -> None:
    drawn = Randomness().error(COUNT)
    assert np.abs(drawn).max() <= 21
    assert abs(drawn.mean()) < 6 * np.sqrt(10.5 / COUNT)
    assert abs(drawn.var() / 10.5 - 1) < 6 * np.sqrt(2 / COUNT)
    kurtosis = (drawn**4).mean() / drawn.var() ** 2
    assert abs(kurtosis - (3 - 2 / 42)) < 6 * np.sqrt(96 / COUNT)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 6 / np.sqrt(COUNT)


def test_gaussian_is_normal() -> None:
    drawn = Randomness().gaussian(4 * COUNT + 1)
    assert drawn.shape == (4 * COUNT + 1,)
    count = drawn.size
    assert abs(drawn.mean()) < 6 / np.sqrt(count)
    assert abs(drawn.var() - 1) < 6 * np.sqrt(2 / count)
    assert abs((drawn**3).mean()) < 6 * np.sqrt(15 / count)
    assert abs((drawn**4).mean() - 3) < 6 * np.sqrt(96 / count)
    normal = NormalDist()
    for limit in np.linspace(-3.5, 3.5, 15):  # the distribution function, the tails included
        share = normal.cdf(limit)
        assert abs((drawn <= limit).mean() - share) < 6 * np.sqrt(share * (1 - share) / count)
    for apart in (1, 2, 1 << 13):  # nor do the two halves of a part have to do with each other
        assert abs(np.corrcoef(drawn[:-apart], drawn[apart:])[0, 1]) < 6 / np.sqrt(count)
        assert abs(np.corrcoef(drawn[:-apart] ** 2, drawn[apart:] ** 2)[0, 1]) < 6 / np.sqrt(count)


@pytest.mark.parametrize("n", [0, 1, 2, 3, (1 << 14) - 1, 1 << 14, (1 << 14) + 1])
def test_gaussian_gives_as_many_as_were_asked_for(n: int) -> None:
    drawn = Randomness().gaussian(n)
    assert drawn.shape == (n,)
    assert np.unique(drawn).size == n


def test_gaussian_reaches_as_far_as_its_bits_and_is_never_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Randomness()
    monkeypatch.setattr(draw, "_bytes", lambda count: np.zeros(count, np.uint8))
    assert draw.gaussian(2).tolist() == pytest.approx([np.sqrt(2 * 53 * np.log(2)), 0])
    monkeypatch.setattr(draw, "_bytes", lambda count: np.full(count, 255, np.uint8))
    assert draw.gaussian(2).tolist() == [0, 0]


def test_streams_never_repeat() -> None:
    one = Randomness()
    drawn = [one.uniform(64, N4096.primes[0]).tobytes() for _ in range(100)]
    drawn += [Randomness().uniform(64, N4096.primes[0]).tobytes() for _ in range(100)]
    assert len(set(drawn)) == 200


def test_every_stream_is_keyed_with_32_bytes_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom

    def urandom(count: int) -> bytes:
        asked.append(count)
        return real(count)

    monkeypatch.setattr(os, "urandom", urandom)
    Randomness(), Randomness()
    assert asked == [32, 32]
    monkeypatch.setattr(os, "urandom", bytes)  # and nothing else goes in
    assert np.array_equal(Randomness().error(64), Randomness().error(64))
