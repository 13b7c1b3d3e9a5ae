"""What calls return."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Enrolled:
    """A stored template.

    Attributes:
        template: resource name.
        slot: its number in the gallery.
        bytes_sent: bytes of the call's messages.
    """

    template: str
    slot: int
    bytes_sent: int


@dataclass(frozen=True)
class Imported:
    """A block of stored templates.

    Attributes:
        last_subject: subject of the last one: where to go on after a failure.
        first_slot: number of the first one in the gallery.
        templates: how many.
        bytes_sent: bytes of ciphertext.
    """

    last_subject: str
    first_slot: int
    templates: int
    bytes_sent: int


@dataclass(frozen=True)
class Check:
    """A place where something could be left of an erased subject.

    Attributes:
        place: which.
        checked: how many entries were looked at.
        found: how many of them hold something of it.
    """

    place: str
    checked: int
    found: int


@dataclass(frozen=True)
class Erasure:
    """An erasure, and what was looked at after it.

    Attributes:
        operation_id: of the operation that did it, which the service keeps for 30 days.
        templates: how many were erased.
        checks: what was looked at.
    """

    operation_id: str
    templates: int
    checks: tuple[Check, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing was found anywhere."""
        return not any(check.found for check in self.checks)


@dataclass(frozen=True)
class Verification:
    """Whether a probe is a claimed subject.

    Attributes:
        match: the decision.
        distance: distance to the nearest template in the unit of the metric; None where the policy tells none.
        confidence: DeepFace's confidence for that distance, percent; None where there is no distance.
        ms: milliseconds from the embedding to the decision.
        bytes_sent: bytes of the calls' messages.
    """

    match: bool
    distance: float | None
    confidence: float | None
    ms: float
    bytes_sent: int


@dataclass(frozen=True)
class Named:
    """A subject near enough to a probe."""

    subject: str
    distance: float | None
    confidence: float | None


@dataclass(frozen=True)
class Identification:
    """Who in a gallery a probe is.

    Attributes:
        candidates: nearest first; empty is an answer.
        searched: share of the gallery that was searched, 0 to 1.
        ms: milliseconds from the embedding to the decision.
        bytes_sent: bytes of the calls' messages.
    """

    candidates: tuple[Named, ...]
    searched: float
    ms: float
    bytes_sent: int

    @property
    def match(self) -> bool:
        """Whether anybody is named."""
        return bool(self.candidates)
