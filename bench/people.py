"""Faces by person, from names such as Person_Name_0001."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def person(name: str) -> str:
    """Whose face it is."""
    return name.rpartition("_")[0]


def by_person(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of faces by person, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        found[person(name)].append(name)
    return dict(found)
