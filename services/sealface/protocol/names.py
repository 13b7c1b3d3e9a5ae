"""Resource names (AIP-122)."""

from __future__ import annotations

import re

from sealface.errors import InvalidInput

_ID = re.compile(r"[a-z][a-z0-9-]{0,63}")
_OPAQUE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VERSION = re.compile(r"keys/([a-z][a-z0-9-]{0,63})/versions/([1-9][0-9]{0,8})")
_SUBJECT = re.compile(r"galleries/([a-z][a-z0-9-]{0,63})/subjects/([A-Za-z0-9._-]{1,64})")
_OPERATION = re.compile(r"galleries/([a-z][a-z0-9-]{0,63})/operations/([A-Za-z0-9._-]{1,64})")


class InvalidName(InvalidInput):
    """A resource name or id is not of its form."""


def check_id(value: str, what: str) -> str:
    """An id that names a resource: 1 to 64 of [a-z0-9-], a letter first.

    Raises:
        InvalidName: it is not.
    """
    if not _ID.fullmatch(value):
        raise InvalidName(f"{what} must be 1 to 64 characters of [a-z0-9-], a letter first", field=what)
    return value


def check_opaque(value: str, what: str) -> str:
    """An id that a caller chose (a subject, a request): 1 to 64 of [A-Za-z0-9._-].

    Raises:
        InvalidName: it is not.
    """
    if not _OPAQUE.fullmatch(value):
        raise InvalidName(f"{what} must be 1 to 64 characters of [A-Za-z0-9._-]", field=what)
    return value


def id_of(name: str, collection: str) -> str:
    """The id in `collection/id`.

    Raises:
        InvalidName: the name is not of that form.
    """
    prefix, _, identifier = name.partition("/")
    if prefix != collection or not _ID.fullmatch(identifier):
        raise InvalidName(f"the name must be of the form {collection}/ID", field=collection)
    return identifier


def key_version(name: str) -> tuple[str, int]:
    """Key id and version number of `keys/{key}/versions/{version}`.

    Raises:
        InvalidName: the name is not of that form.
    """
    match = _VERSION.fullmatch(name)
    if not match:
        raise InvalidName("the name must be of the form keys/ID/versions/NUMBER", field="key_version")
    return match[1], int(match[2])


def subject(name: str) -> tuple[str, str]:
    """Gallery id and subject id of `galleries/{gallery}/subjects/{subject}`.

    Raises:
        InvalidName: the name is not of that form.
    """
    match = _SUBJECT.fullmatch(name)
    if not match:
        raise InvalidName("the name must be of the form galleries/ID/subjects/ID", field="subject")
    return match[1], match[2]


def operation(name: str) -> tuple[str, str]:
    """Gallery id and operation id of `galleries/{gallery}/operations/{operation}`.

    Raises:
        InvalidName: the name is not of that form.
    """
    match = _OPERATION.fullmatch(name)
    if not match:
        raise InvalidName("the name must be of the form galleries/ID/operations/ID", field="operation")
    return match[1], match[2]
