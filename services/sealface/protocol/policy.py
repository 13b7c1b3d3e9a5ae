"""The rule of decisions, stored with a key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sealface.errors import InvalidInput

LARGEST_MAX_CANDIDATES = 10
SMALLEST_DISCLOSURE_STEP = 1e-3


class InvalidPolicy(InvalidInput):
    """A policy contradicts itself or is out of range."""


@dataclass(frozen=True)
class Budget:
    """How much a caller may ask of a key.

    Attributes:
        decisions_per_hour: decisions in an hour; a search counts for each subject it names, for one at least.
        comparisons_per_hour: templates that its probes are compared with in an hour.
        decisions_per_version: decisions of one key version. N = 4,096 ternary coefficients are 6,492 bits, and a
            verification tells one at most: beyond some ten thousand a caller that colludes with compute may hold the
            key (tests/keys/test_attacks.py).
    """

    decisions_per_hour: int = 3_600
    comparisons_per_hour: int = 100_000_000
    decisions_per_version: int = 10_000

    def __post_init__(self) -> None:
        if not all(0 < value < 1 << 53 for value in vars(self).values()):
            raise InvalidPolicy("a budget must be positive: leave a limit out for the default")


AMPLE = Budget(decisions_per_hour=10**9, comparisons_per_hour=10**15, decisions_per_version=10**9)
"""For measurements on galleries of their own: no bound at all."""


@dataclass(frozen=True)
class Policy:
    """Thresholds, largest k, disclosure. Distances are in the unit of the key's metric.

    Attributes:
        verification_threshold: largest distance that verifies a claimed subject.
        identification_threshold: largest distance that a search ever names.
        target_fpir: wanted share of non-mated searches that name anybody; 0 leaves the threshold above alone.
        curve: (distance, false match rate) of the model, rising in both.
        max_candidates: most subjects a search names.
        disclosure_step: step that disclosed distances are rounded to; 0 discloses none.
        version: counts changes, from 1.
        budget: how much a caller may ask.
    """

    verification_threshold: float
    identification_threshold: float
    target_fpir: float = 0.0
    curve: tuple[tuple[float, float], ...] = ()
    max_candidates: int = 1
    disclosure_step: float = 0.0
    version: int = 1
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        thresholds = (self.verification_threshold, self.identification_threshold)
        if not all(math.isfinite(value) and value >= 0 for value in thresholds):
            raise InvalidPolicy("thresholds must be finite and at least 0")
        if not 1 <= self.max_candidates <= LARGEST_MAX_CANDIDATES:
            raise InvalidPolicy(f"max_candidates must be 1 to {LARGEST_MAX_CANDIDATES}")
        if self.disclosure_step and not SMALLEST_DISCLOSURE_STEP <= self.disclosure_step < math.inf:
            raise InvalidPolicy(f"disclosure_step must be at least {SMALLEST_DISCLOSURE_STEP}")
        if not 0 <= self.target_fpir <= 1:
            raise InvalidPolicy("target_fpir must be 0 to 1")
        if self.target_fpir and len(self.curve) < 2:
            raise InvalidPolicy("target_fpir needs a false match rate curve of two points or more")
        if len(self.curve) > 64:
            raise InvalidPolicy("a false match rate curve has at most 64 points")
        if not all(math.isfinite(distance) and 0 < rate <= 1 for distance, rate in self.curve):
            raise InvalidPolicy("a false match rate must be above 0 and at most 1, at a finite distance")
        if any(d1 >= d2 or r1 > r2 for (d1, r1), (d2, r2) in pairwise(self.curve)):
            raise InvalidPolicy("a false match rate curve must rise")

    def search_threshold(self, compared: int) -> float:
        """Largest distance a search over that many templates names; below 0 if none is near enough.

        A non-mated search names somebody with probability 1 - (1 - FMR)^n < n FMR, so FMR must not exceed the
        target over n. Below the curve's first rate nothing was measured: the line through its first two points goes on,
        in log(rate). The rate falls ever faster towards distance 0, so the line errs on the side of naming nobody.
        """
        if not self.target_fpir or not compared:
            return self.identification_threshold
        rate = math.log(self.target_fpir / compared)
        distances, rates = np.array(self.curve).T
        rates = np.log(rates)
        if rate < rates[0]:
            if rates[1] == rates[0]:
                return -1.0
            at_rate = distances[0] - (rates[0] - rate) * (distances[1] - distances[0]) / (rates[1] - rates[0])
            return min(self.identification_threshold, float(at_rate))
        return min(self.identification_threshold, float(np.interp(rate, rates, distances)))
