"""What is known of people from the answers, and what each further answer says against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.system.conftest import Vector


class State(Enum):
    """Of a person in a gallery."""

    OPEN = auto()  # a change is under way, or was not answered: it may have happened
    ENROLLED = auto()
    ERASED = auto()


@dataclass
class Person:
    """Somebody whom one client alone enrols and erases.

    Attributes:
        subject: the id.
        face: the embedding.
        request_id: of the enrolment; none of who was imported.
        state: what is known.
        slot: of the template, once it is acknowledged.
        erasing: whether the erasure was asked for.
        changes: grows when a change begins and when it is answered.
    """

    subject: str
    face: Vector
    request_id: str | None
    state: State = State.OPEN
    slot: int | None = None
    erasing: bool = False
    changes: int = 0

    def begin(self) -> None:
        """A change is asked for."""
        self.state = State.OPEN
        self.changes += 1

    def settle(self, state: State) -> None:
        """A change is acknowledged."""
        self.state = state
        self.changes += 1


@dataclass(frozen=True)
class Before:
    """What was known of a person when a call began."""

    person: Person
    state: State
    changes: int

    @classmethod
    def of(cls, person: Person) -> Before:
        return cls(person, person.state, person.changes)

    @property
    def certain(self) -> State:
        """What the answer is held against: a call that overlaps a change may see either."""
        return self.state if self.changes == self.person.changes else State.OPEN


FAULTS = ("lost", "wrong", "resurrected", "not_retryable", "hung", "unexpected")
"""What must not be: an acknowledged enrolment that is not found, another wrong answer, an erased subject that is found,
a failed call that does not say that it may be repeated, what does not come to an end, and what a service's log
calls unexpected."""


@dataclass
class Findings:
    """What came of it.

    Attributes:
        counts: of acknowledged enrolments, of failed calls that may be repeated, and of faults.
        calls: by kind, answered or not.
        reasons: of failed calls.
        kills: by component.
        details: a line for each fault.
    """

    counts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether there is no fault."""
        return not any(self.counts[fault] for fault in FAULTS)

    def fault(self, kind: str, what: str) -> None:
        """Count one, and say what it was."""
        self.counts[kind] += 1
        self.details.append(f"{kind}: {what}")

    def add(self, other: Findings) -> None:
        """Take over what came of something else."""
        for name in ("counts", "calls", "reasons", "kills"):
            getattr(self, name).update(getattr(other, name))
        self.details += other.details

    def named(self, before: Before, candidates: Iterable[str]) -> None:
        """Judge whom a search for a person names."""
        subject = before.person.subject
        found = list(candidates)
        if others := [candidate for candidate in found if candidate != subject]:
            self.fault("wrong", f"a search for {subject} names {others}")
        if before.certain is State.ENROLLED and subject not in found:
            self.fault("lost", f"a search does not name {subject}")
        if before.certain is State.ERASED and subject in found:
            self.fault("resurrected", f"a search names {subject}")

    def verified(self, before: Before, genuine: bool, match: bool | None) -> None:
        """Judge a verification of a person's face, or of somebody else's; None where there is no such subject."""
        subject = before.person.subject
        if match is None:
            if before.certain is State.ENROLLED:
                self.fault("lost", f"a verification does not know {subject}")
        elif before.certain is State.ERASED:
            self.fault("resurrected", f"a verification knows {subject}")
        elif match != genuine:
            self.fault("wrong", f"a verification of {subject} says {match}, not {genuine}")

    def fields(self) -> dict[str, object]:
        """As one JSON object."""
        return {
            "kills": self.kills.total(),
            **{name: self.counts[name] for name in ("acknowledged", *FAULTS[:3], "retryable_errors", *FAULTS[3:])},
            "calls": dict(self.calls),
            "reasons": dict(self.reasons),
            "kills_by_component": dict(self.kills),
        }
