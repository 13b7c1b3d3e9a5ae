"""Distances to a decision under a policy. Knows no ciphertext and no caller."""

from __future__ import annotations

import math
from collections.abc import Collection
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


def verify(policy: Policy, slots: NDArray[np.uint32], distances: NDArray[np.float64]) -> Decision:
    """Whether the nearest of a claimed subject's templates is near enough (fusion rule: nearest).

    Args:
        policy: the key's policy.
        slots: (n,) the claimed slots; without any it is no match.
        distances: (n,) their distances.
    """
    if not slots.size:
        return Decision()
    nearest = int(np.argmin(distances))
    told = _disclosed(float(distances[nearest]), policy)
    if distances[nearest] <= policy.verification_threshold:
        return Decision((Candidate(int(slots[nearest]), told),))
    return Decision(distance=told)


def identify(
    policy: Policy,
    slots: NDArray[np.uint32],
    distances: NDArray[np.float64],
    links: NDArray[np.uint32],
    most: int,
) -> Decision:
    """The nearest subjects under the policy's threshold for a search of this size.

    Args:
        policy: the key's policy.
        slots: (n,) the slots compared.
        distances: (n,) their distances.
        links: (m, 2) slot and the subject's first slot, for subjects with several templates.
        most: most subjects to name; the policy may allow fewer.
    """
    # every step does the same work whoever matches: compute sees how long it takes, and chooses slots and links
    if (slots[1:] < slots[:-1]).any():
        order = np.argsort(slots)
        slots, distances = slots[order], distances[order]
    remaining = _nearest_only(slots, distances, links) if links.size and slots.size else distances.copy()
    threshold = policy.search_threshold(distances.size)
    candidates = []
    for _ in range(min(most, policy.max_candidates, slots.size)):
        nearest = int(np.argmin(remaining))  # of equal ones the lowest slot
        distance = float(remaining[nearest])
        remaining[nearest] = np.inf
        candidates.append((distance, Candidate(int(slots[nearest]), _disclosed(distance, policy))))
    return Decision(tuple(candidate for distance, candidate in candidates if distance <= threshold))


def _nearest_only(
    slots: NDArray[np.uint32], distances: NDArray[np.float64], links: NDArray[np.uint32]
) -> NDArray[np.float64]:
    """Distances with all but the nearest template of each linked subject at infinity; slots are sorted."""
    leads = np.unique(links[:, 1])
    pairs = np.unique(np.concatenate([links, np.stack([leads, leads], axis=1)]), axis=0)
    at = np.minimum(np.searchsorted(slots, pairs[:, 0]), slots.size - 1)
    found = slots[at] == pairs[:, 0]
    at, subjects = at[found], pairs[found, 1]
    by_subject = np.lexsort((at, distances[at], subjects))  # a subject's templates together, the nearest first
    first = np.diff(subjects[by_subject].astype(np.int64), prepend=-1) != 0
    kept = distances.copy()
    kept[at[by_subject[~first]]] = np.inf
    return kept


def each_once(slots: NDArray[np.uint32]) -> bool:
    """Whether no slot was scored twice."""
    ordered = np.sort(slots)
    return not bool((ordered[1:] == ordered[:-1]).any())


def exactly(slots: NDArray[np.uint32], claimed: Collection[int]) -> bool:
    """Whether the slots are the claimed ones, each once."""
    return slots.size == len(set(claimed)) and set(slots.tolist()) == set(claimed)
