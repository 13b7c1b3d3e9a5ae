"""Distances to a decision under a policy. Knows no ciphertext and no caller."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealface.protocol.policy import Policy


@dataclass(frozen=True)
class Candidate:
    """A subject near enough: the slot of its nearest template, and the distance where it may be told."""

    slot: int
    distance: float | None


@dataclass(frozen=True)
class Decision:
    """MATCH if there are candidates, NO_MATCH otherwise.

    Attributes:
        candidates: nearest first, one a subject.
        distance: rounded distance of a verification that did not match, where it may be told.
    """

    candidates: tuple[Candidate, ...] = ()
    distance: float | None = None


def _disclosed(distance: float, policy: Policy) -> float | None:
    step = policy.disclosure_step
    # an impossible score is at an infinite distance, and there is none to tell
    return round(distance / step) * step if step and math.isfinite(distance) else None


def verify(policy: Policy, slots: NDArray[np.int64], distances: NDArray[np.float64]) -> Decision:
    """Whether the nearest of a claimed subject's templates is near enough (fusion rule: nearest).

    Args:
        policy: the key's policy.
        slots: (n,) the claimed slots, n at least 1.
        distances: (n,) their distances.
    """
    nearest = int(np.argmin(distances))
    told = _disclosed(float(distances[nearest]), policy)
    if distances[nearest] <= policy.verification_threshold:
        return Decision((Candidate(int(slots[nearest]), told),))
    return Decision(distance=told)


def identify(
    policy: Policy,
    slots: NDArray[np.int64],
    distances: NDArray[np.float64],
    leads: Mapping[int, int],
    most: int,
) -> Decision:
    """The nearest subjects under the policy's threshold for a search of this size.

    Args:
        policy: the key's policy.
        slots: (n,) the slots compared.
        distances: (n,) their distances.
        leads: slot -> the subject's first slot, for subjects with several templates.
        most: most subjects to name; the policy may allow fewer.
    """
    # every step does the same work whoever matches: compute sees how long it takes, and chooses slots and links
    linked = np.array(sorted(leads.items()), np.int64).reshape(-1, 2)
    at = np.minimum(np.searchsorted(linked[:, 0], slots), max(len(linked) - 1, 0))
    subjects = np.where(linked[at, 0] == slots, linked[at, 1], slots) if len(linked) else slots
    order = np.lexsort((slots, distances, subjects))  # a subject's templates together, the nearest first
    nearest = order[np.flatnonzero(np.diff(subjects[order], prepend=-1))]
    best = nearest[np.lexsort((slots[nearest], distances[nearest]))][: min(most, policy.max_candidates)]
    threshold = policy.search_threshold(distances.size)
    return Decision(
        tuple(
            Candidate(int(slots[i]), _disclosed(float(distances[i]), policy)) for i in best if distances[i] <= threshold
        )
    )


def each_once(slots: NDArray[np.int64]) -> bool:
    """Whether no slot was scored twice."""
    return np.unique(slots).size == slots.size


def exactly(slots: NDArray[np.int64], claimed: Collection[int]) -> bool:
    """Whether the slots are the claimed ones, each once."""
    return slots.size == len(set(claimed)) and set(slots.tolist()) == set(claimed)
