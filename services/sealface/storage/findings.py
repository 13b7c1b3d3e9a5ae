"""What can be wrong with a gallery, and what to do then."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

_RESTORE = "restore the gallery from a backup (`sealface restore --replace`)"
_AGAIN = f"erase the subject and enrol it again, or {_RESTORE}"


class Damage(StrEnum):
    """Kinds of damage."""

    DATABASE_DAMAGED = "database_damaged"
    ORPHANED_ROWS = "orphaned_rows"
    KEY_SHARED = "key_shared"
    ROW_MALFORMED = "row_malformed"
    GALLERY_MALFORMED = "gallery_malformed"
    COUNTER_BEHIND = "counter_behind"
    PUBLIC_KEY_DAMAGED = "public_key_damaged"
    EVALUATION_KEY_DAMAGED = "evaluation_key_damaged"
    EVALUATION_KEY_MISSING = "evaluation_key_missing"
    TEMPLATE_DAMAGED = "template_damaged"
    TEMPLATE_LOST = "template_lost"
    ERASED_BUT_PRESENT = "erased_but_present"
    SUBJECT_INCONSISTENT = "subject_inconsistent"
    BLOCK_DAMAGED = "block_damaged"
    BLOCK_INCONSISTENT = "block_inconsistent"
    BLOCK_MISSING = "block_missing"
    ERASED_COUNT_WRONG = "erased_count_wrong"
    CIPHERTEXT_LEFT = "ciphertext_left"
    MOVED_CIPHERTEXT_DAMAGED = "moved_ciphertext_damaged"
    REQUEST_INCONSISTENT = "request_inconsistent"
    KEY_UNKNOWN = "key_unknown"
    CACHE_ENTRY_DAMAGED = "cache_entry_damaged"


class Severity(StrEnum):
    """How bad it is.

    Attributes:
        ERROR: something is lost or wrong, and the record does not hold what would heal it.
        WARNING: the record holds what heals it.
    """

    ERROR = "error"
    WARNING = "warning"


_ADVICE = {
    Damage.DATABASE_DAMAGED: "replace the disk, make a new record and restore all galleries from backups",
    Damage.ORPHANED_ROWS: "make a new record and restore its galleries from backups",
    Damage.TEMPLATE_DAMAGED: _AGAIN,
    Damage.TEMPLATE_LOST: f"enrol whoever is missing again, or {_RESTORE}",
    Damage.ERASED_BUT_PRESENT: "erase the subject again",
    Damage.SUBJECT_INCONSISTENT: _AGAIN,
    Damage.KEY_UNKNOWN: "bring back the key service's state, without which nobody can open a score",
    Damage.CACHE_ENTRY_DAMAGED: "nothing is lost: `sealface doctor --repair` drops it from the cache",
}
_HEALS = "run `sealface doctor --repair`"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        what: kind of damage.
        gallery: id of the gallery; empty if it is the whole record's.
        slot, block: where, if it is a template or a block.
        detail: more of where and what, for people.
        healable: whether the record itself holds what heals it.
        repaired: whether it is healed.
    """

    what: Damage
    gallery: str
    slot: int | None = None
    block: int | None = None
    detail: str = ""
    healable: bool = False
    repaired: bool = False

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return Severity.WARNING if self.healable or self.what is Damage.CACHE_ENTRY_DAMAGED else Severity.ERROR

    @property
    def advice(self) -> str:
        """What to do."""
        if self.repaired:
            return "nothing: it is repaired"
        return _HEALS if self.healable else _ADVICE.get(self.what, _RESTORE)

    @property
    def where(self) -> str:
        """The place, for people."""
        place = [("slot", self.slot), ("block", self.block)]
        return ", ".join([self.gallery or "the record", *(f"{name} {at}" for name, at in place if at is not None)])

    def described(self) -> dict[str, Any]:
        """All of it, for programs."""
        return asdict(self) | {"severity": self.severity, "advice": self.advice}
