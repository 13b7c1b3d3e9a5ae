"""What Prometheus is told of decisions and keys. Decisions are told here alone, and not one by one.

Who can read a counter before and after a decision knows how it went: compute must not (threat model, rules 4 and 6),
and may run on the same machine. So what decisions were is told of `TOGETHER` of a key and an operation at once. Against
whoever makes all the others of those itself that is no defence: the endpoint is for those who watch this zone.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from sealface.keys.alarms import Kind
from sealface.keys.judge import Hearing, Operation, Refusal, Verdict
from sealface.keys.keyring import Keyring
from sealface.runtime.metrics import SECONDS

TOGETHER = 32
"""Decisions that are told at once."""


@dataclass
class _Untold:
    """Decisions of a key and an operation that are not told yet."""

    count: int = 0
    outcomes: Tally[str] = field(default_factory=Tally)
    refusals: Tally[str] = field(default_factory=Tally)
    alarms: Tally[str] = field(default_factory=Tally)


class DecisionMetrics:
    """What was decided, without who asked and who was found. Safe for several threads.

    Args:
        registry: the server's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sealface_{name}", text, ("key", *labels), registry=registry)

        self._outcomes = counter("decisions", "Decisions, told 32 at a time.", "operation", "outcome")
        self._refusals = counter("refusals", "Decisions that were refused, told with those.", "reason")
        self._alarms = counter("alarms", "Alarms that were raised, told with those.", "alarm")
        self._opening = Histogram(
            "sealface_opening_seconds",
            "Opening the scores of a decision.",
            ("operation",),
            registry=registry,
            buckets=SECONDS,
        )
        for operation in Operation:
            self._opening.labels(operation.name.lower())
        self._untold: dict[tuple[str, str], _Untold] = defaultdict(_Untold)
        self._lock = threading.Lock()

    def decided(self, hearing: Hearing, verdict: Verdict, alarms: Collection[Kind]) -> None:
        """Take in a decision that is in the audit log."""
        # a key that decides nothing may have any name at all: whoever asks chose it
        key = hearing.key.id if hearing.key else ""
        operation = hearing.request.operation.name.lower()
        self._opening.labels(operation).observe(hearing.opening_s)
        with self._lock:
            if (key, operation) not in self._untold:
                self._make(key, operation)
            untold = self._untold[key, operation]
            untold.count += 1
            if isinstance(verdict.outcome, Refusal):
                untold.outcomes["refused"] += 1
                untold.refusals[verdict.outcome.name.lower()] += 1
            else:
                untold.outcomes["match" if verdict.outcome.candidates else "no_match"] += 1
            untold.alarms.update(_spelled(kind) for kind in alarms)
            if untold.count == TOGETHER:
                self._tell(key, operation, self._untold.pop((key, operation)))
                self._untold[key, operation] = _Untold()

    def _make(self, key: str, operation: str) -> None:
        """All series of a key at 0: which there are tells nothing then."""
        for outcome in ("match", "no_match", "refused"):
            self._outcomes.labels(key, operation, outcome)
        for reason in Refusal:
            self._refusals.labels(key, reason.name.lower())
        for kind in Kind:
            self._alarms.labels(key, _spelled(kind))

    def _tell(self, key: str, operation: str, untold: _Untold) -> None:
        for outcome, count in untold.outcomes.items():
            self._outcomes.labels(key, operation, outcome).inc(count)
        for reason, count in untold.refusals.items():
            self._refusals.labels(key, reason).inc(count)
        for kind, count in untold.alarms.items():
            self._alarms.labels(key, kind).inc(count)


def _spelled(kind: Kind) -> str:
    return kind.name.lower()


class KeyMetrics:
    """Reads the keyring, and whether the service is sealed.

    Args:
        keyring: all keys.
        sealed: whether the service waits for its key-encryption key.
    """

    def __init__(self, keyring: Keyring, sealed: Callable[[], bool]) -> None:
        self._keyring = keyring
        self._sealed = sealed

    def __call__(self) -> list[Metric]:
        """All keys."""
        versions = GaugeMetricFamily("sealface_key_versions", "Key versions by state.", labels=("key", "state"))
        for key, state, count in self._keyring.tally():
            versions.add_metric((key, state.value), count)
        in_memory = GaugeMetricFamily(
            "sealface_key_versions_in_memory", "Key versions whose secret is in memory.", self._keyring.opened
        )
        sealed = GaugeMetricFamily(
            "sealface_sealed", "1 while the service waits for its key-encryption key, else 0.", self._sealed()
        )
        return [versions, in_memory, sealed]
