"""Alarms: callers that ask as no person at a door does. Known in the key zone alone, which alone sees decisions.

By caller and key, over the last ten minutes:

- TOO_FAST: more than 120 decisions in a minute. A person takes a second at least, and steps aside for the next.
- FEW_MATCHES: of 60 decisions or more, less than one in ten is a match.
- AT_THRESHOLD: of 20 decisions or more, more than half lie within a tenth of the threshold of it, on either side.
  Somebody who gets decisions alone and changes a probe bit by bit walks along the threshold; faces do not.
- CLIMBING: the last 16 that did not match lie within twice the threshold, and the later eight are nearer than the
  earlier eight, by more than three standard errors of the difference.

And of a key version: QUARANTINE (see `judge`), and NEARLY_SPENT: a caller has had nine tenths of its decisions.

An alarm of a kind is raised once in ten minutes for a caller and key. It is an entry of the audit log and a line of the
service's log, with counts and no distance; nothing is refused for it. What the rules look at is in memory alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

WINDOW_S = 600.0
_MOST_HEARD = 4096  # decisions of a caller and key that are held
_MOST_CALLERS = 1024

FASTEST_A_MINUTE = 120
LEAST_FOR_RATE, LEAST_RATE = 60, 0.1
LEAST_AT_THRESHOLD, NEAR, MOST_NEAR = 20, 0.1, 0.5
CLIMB, CLIMB_REACH, CLIMB_ERRORS = 16, 2.0, 3.0
NEARLY = 0.9


class Kind(StrEnum):
    """What an alarm says."""

    TOO_FAST = "too fast"
    FEW_MATCHES = "few matches"
    AT_THRESHOLD = "at the threshold"
    CLIMBING = "climbing"
    NEARLY_SPENT = "nearly spent"
    QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Heard:
    """One decision.

    Attributes:
        time: when, seconds.
        matched: whether it named somebody.
        reach: the nearest distance over the threshold; infinite where nothing was compared.
    """

    time: float
    matched: bool
    reach: float


@dataclass
class _Window:
    heard: deque[Heard] = field(default_factory=lambda: deque(maxlen=_MOST_HEARD))
    raised: dict[Kind, float] = field(default_factory=dict)


class Watch:
    """Looks at what callers are decided. Safe for several threads."""

    def __init__(self) -> None:
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()
        self._lock = threading.Lock()

    def hear(self, caller: str, key: str, matched: bool, reach: float, spent: float = 0.0) -> dict[Kind, int]:
        """Take in a decision; returns what is to be raised, with the number of decisions that it rests on.

        Args:
            caller: whose.
            key: under which key.
            matched: see `Heard`.
            reach: see `Heard`.
            spent: share of the caller's decisions of the key version.
        """
        now = time.monotonic()
        with self._lock:
            window = self._windows.setdefault((caller, key), _Window())
            self._windows.move_to_end((caller, key))
            if len(self._windows) > _MOST_CALLERS:
                self._windows.popitem(last=False)
            window.heard.append(Heard(now, matched, reach))
            while window.heard[0].time < now - WINDOW_S:
                window.heard.popleft()
            found = suspicious(list(window.heard))
            if spent >= NEARLY:
                found[Kind.NEARLY_SPENT] = len(window.heard)
            fresh = {
                kind: count for kind, count in found.items() if window.raised.get(kind, -math.inf) < now - WINDOW_S
            }
            window.raised.update(dict.fromkeys(fresh, now))
        return fresh


def suspicious(heard: list[Heard]) -> dict[Kind, int]:
    """The rules, on the decisions of a window, the last one last; each with how many decisions it rests on."""
    found: dict[Kind, int] = {}
    last_minute = sum(one.time > heard[-1].time - 60 for one in heard)
    if last_minute > FASTEST_A_MINUTE:
        found[Kind.TOO_FAST] = last_minute
    if len(heard) >= LEAST_FOR_RATE and sum(one.matched for one in heard) < LEAST_RATE * len(heard):
        found[Kind.FEW_MATCHES] = len(heard)
    near = sum(abs(one.reach - 1) <= NEAR for one in heard)
    if len(heard) >= LEAST_AT_THRESHOLD and near > MOST_NEAR * len(heard):
        found[Kind.AT_THRESHOLD] = len(heard)
    missed = np.array([one.reach for one in heard if not one.matched][-CLIMB:])
    if missed.size == CLIMB and (missed <= CLIMB_REACH).all():
        before, after = missed.reshape(2, -1)
        error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / before.size)
        if before.mean() - after.mean() > CLIMB_ERRORS * error:
            found[Kind.CLIMBING] = CLIMB
    return found
