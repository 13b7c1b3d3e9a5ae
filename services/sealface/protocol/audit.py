"""Audit logs: entries, the chain they form, and its check. Whoever has the lines can check them, offline as well.

An entry is one line of JSON in one form: keys sorted, no spaces, ASCII. It names the digest of the line before, so that
a change, a deletion or another order shows in the next line. What a chain cannot show is that its end is missing, or
that all of it was written anew: that shows against a *head*, number and digest of the last entry, kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealface.errors import DataCorrupted

BEGUN = "begun"
"""Outcome of an entry that is written before its act."""
DECIDE = "Decide"
"""The act of a decision."""
BEGINNING = bytes(32)
"""What the first entry has for the digest of the one before."""

_LINE = b"sealface audit v1\0"
_HEAD = b"sealface audit head v1\0"

Detail = str | int | list[str]


class AuditLogBroken(DataCorrupted):
    """An audit log was changed, or is not the one whose head was kept."""


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        number: from 1, without gaps.
        time_us: when it was written, microseconds since 1970.
        actor: who acts: `callers/{caller}`, or `service` for what it does by itself.
        act: what: the method's name, for one.
        resource: on what, where the request names it.
        outcome: `begun` before the act; after it what became of it.
        begun: after an act the number of the entry before it; else 0.
        request: SHA-256 of the request, in hexadecimal digits, where there is one.
        detail: what else is to be known of an act of this kind.
        previous: digest of the line before, in hexadecimal digits.
    """

    number: int
    time_us: int
    actor: str
    act: str
    resource: str
    outcome: str
    begun: int
    request: str
    detail: Mapping[str, Detail]
    previous: str

    def line(self) -> bytes:
        """The line, without its end."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """The entry of a line.

        Raises:
            AuditLogBroken: it is none, or not in the one form.
        """
        try:
            entry = cls(**json.loads(line))
            whole = entry.line() == line and all(isinstance(n, int) for n in (entry.number, entry.begun, entry.time_us))
        except (TypeError, ValueError, RecursionError):
            whole = False
        if not whole:
            raise AuditLogBroken("a line of the audit log is no entry of it: it was changed")
        return entry


def digest(line: bytes) -> bytes:
    """What the next line names: SHA-256 of "sealface audit v1" 0x00 and the line."""
    return hashlib.sha256(_LINE + line).digest()


@dataclass(frozen=True)
class Head:
    """The last entry of a log, signed by who writes it.

    Attributes:
        number: of the entry, 0 if there is none.
        digest: of its line.
        signature: Ed25519, 64 bytes; empty where it is not known.
    """

    number: int
    digest: bytes
    signature: bytes = b""

    def signed(self, key: Ed25519PrivateKey) -> Head:
        """The same with a signature."""
        return Head(self.number, self.digest, key.sign(self._payload()))

    def verify(self, verifying_key: bytes) -> None:
        """Check the signature.

        Raises:
            AuditLogBroken: it does not verify.
        """
        try:
            Ed25519PublicKey.from_public_bytes(verifying_key).verify(self.signature, self._payload())
        except (InvalidSignature, ValueError):
            raise AuditLogBroken(
                "the head of the audit log is not signed by the key service: name its own, or ask who answers for it"
            ) from None

    def _payload(self) -> bytes:
        return _HEAD + struct.pack(">Q", self.number) + self.digest


@dataclass
class Chain:
    """The check of a chain, line by line.

    Args:
        kept: a head that was kept elsewhere: the chain must have that entry. Its number may be unknown, 0.

    Attributes:
        number: of the last entry so far.
        last: digest of its line.
        unfinished: number -> act of what was begun and has no end.
    """

    kept: Head | None = None
    number: int = 0
    last: bytes = BEGINNING
    unfinished: dict[int, str] = field(default_factory=dict)
    _met: bool = False

    def add(self, line: bytes) -> Entry:
        """Check the next line.

        Raises:
            AuditLogBroken: it is not the one that follows, or not the one that was kept.
        """
        entry = Entry.parse(line)
        if entry.number != self.number + 1 or entry.previous != self.last.hex():
            raise AuditLogBroken(
                f"entry {entry.number} does not follow entry {self.number}: the log was changed about there",
                entry=self.number + 1,
            )
        self.number, self.last = entry.number, digest(line)
        if self.kept is not None and self.last == self.kept.digest and self.kept.number in (0, self.number):
            self._met = True
        if entry.outcome == BEGUN:
            self.unfinished[entry.number] = entry.act
        elif entry.begun and self.unfinished.pop(entry.begun, None) != entry.act:
            raise AuditLogBroken(
                f"entry {entry.number} ends what was not begun: the log was changed", entry=entry.number
            )
        return entry

    def finish(self) -> None:
        """Say that there are no more lines.

        Raises:
            AuditLogBroken: the entry that was kept has not come.
        """
        empty = self.kept is not None and self.kept.digest == BEGINNING
        if self.kept is not None and not self._met and not empty:
            raise AuditLogBroken(
                f"the log has {self.number} entries and not the head that was kept: cut short, or another",
                entry=self.number,
            )


def check(lines: Iterable[bytes], kept: Head | None = None) -> Chain:
    """Check all lines of a log.

    Raises:
        AuditLogBroken: see `Chain`.
    """
    chain = Chain(kept)
    for line in lines:
        chain.add(line)
    chain.finish()
    return chain
