"""Who may do what with galleries: roles, grants, and what each method asks for.

The table is what is enforced (`runtime.authorisation`), what docs/authorisation.md shows, and what the matrix test goes
through. A method that is not in it is refused to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sealface.errors import Denied

ALL = "-"
"""In the place of a gallery's id: all that there are and will be."""


class NotAllowed(Denied):
    """The caller has no role that the method asks for."""


class Role(StrEnum):
    """What a caller may do with a gallery."""

    ADMIN = "admin"
    ENROLLER = "enroller"
    VERIFIER = "verifier"
    AUDITOR = "auditor"


@dataclass(frozen=True)
class Grant:
    """A role for a gallery, or for `ALL`."""

    role: Role
    gallery: str


EVERYTHING = (Grant(Role.ADMIN, ALL),)
"""What an operator of the key service may do."""


def granted(grants: Iterable[Grant], roles: Iterable[Role], gallery: str) -> bool:
    """Whether one of some roles is granted for a gallery; an admin has them all."""
    enough = {*roles, Role.ADMIN}
    return any(grant.role in enough and grant.gallery in (gallery, ALL) for grant in grants)


@dataclass(frozen=True)
class Need:
    """What a method asks for.

    Attributes:
        roles: one of them, for the gallery that a request names; an admin may do everything.
        field: where a message names the gallery, by its id or the name of something in it; empty if all are meant.
    """

    roles: frozenset[Role]
    field: str

    def gallery(self, message: Any) -> str:
        """Id of the gallery that a message is about; empty if it names none: its handler has something to say then."""
        if not self.field:
            return ALL
        for name in self.field.split("."):
            message = getattr(message, name)
        named = str(message)
        return named.removeprefix("galleries/").partition("/")[0]


def _need(field: str, *roles: Role) -> Need:
    return Need(frozenset(roles), field)


_ANYBODY = tuple(Role)
_BOTH = (Role.ENROLLER, Role.VERIFIER)
_PEOPLE = Role.ENROLLER
_LOOKS = (Role.ENROLLER, Role.AUDITOR)
_OF_SERVICE: dict[str, dict[str, Need]] = {
    "sealface.enrollment.v1.EnrollmentService": {
        "CreateGallery": _need("gallery_id", Role.ADMIN),
        "GetGallery": _need("name", *_ANYBODY),
        "ListGalleries": _need("", *_ANYBODY),
        "UpdateGallery": _need("gallery.name", Role.ADMIN),
        "DeleteGallery": _need("name", Role.ADMIN),
        "Enroll": _need("gallery", _PEOPLE),
        "BatchEnroll": _need("request.gallery", _PEOPLE),
        "ImportBlock": _need("header.gallery", _PEOPLE),
        "RenewBlocks": _need("gallery", _PEOPLE),
        "GetSubject": _need("name", _PEOPLE),
        "ListSubjects": _need("parent", _PEOPLE),
        "EraseSubject": _need("name", _PEOPLE),
        "ListSlotChanges": _need("gallery", *_BOTH),
    },
    "sealface.enrollment.v1.OperationService": {
        "BeginImport": _need("gallery", _PEOPLE),
        "BeginCompaction": _need("gallery", _PEOPLE),
        "BeginErasure": _need("name", _PEOPLE),
        "BeginRotation": _need("gallery", Role.ADMIN),
        "GetOperation": _need("name", *_LOOKS),
        "ListOperations": _need("parent", *_LOOKS),
        "CancelOperation": _need("name", _PEOPLE),
    },
    "sealface.matching.v1.MatchingService": {
        "Verify": _need("gallery", Role.VERIFIER),
        "Identify": _need("gallery", Role.VERIFIER),
        "BatchIdentify": _need("request.gallery", Role.VERIFIER),
        "CheckErasure": _need("gallery", *_LOOKS),
    },
}
NEEDS = {f"/{service}/{method}": need for service, methods in _OF_SERVICE.items() for method, need in methods.items()}
"""Full method -> what it asks for."""


@dataclass(frozen=True)
class Right:
    """Who calls, and what they may do: made by nobody but who has seen a credential.

    Attributes:
        caller: resource name, `callers/{caller}`.
        grants: what they were granted.
    """

    caller: str
    grants: tuple[Grant, ...]

    def check(self, need: Need, message: Any) -> None:
        """Refuse what is not allowed.

        Raises:
            NotAllowed: the caller has no such role for the gallery.
        """
        gallery = need.gallery(message)
        if gallery and not granted(self.grants, need.roles, gallery):
            where = "all galleries" if gallery == ALL else "this gallery"
            roles = " or ".join(sorted(need.roles))
            raise NotAllowed(f"this needs the role {roles} for {where}: an operator grants it (`sealface keys grant`)")
