"""What a call took, told to its caller as trailing metadata in the form of W3C Server-Timing.

Only steps whose time does not depend on secrets or on what was found are told.
"""

from __future__ import annotations

from collections.abc import Mapping

SERVER_TIMING = "server-timing"


def format_timing(milliseconds: Mapping[str, float]) -> str:
    """`name;dur=1.25, other;dur=3.5`."""
    return ", ".join(f"{name};dur={value:.3f}" for name, value in milliseconds.items())


def parse_timing(value: str) -> dict[str, float]:
    """Milliseconds by name; what is no timing is left out."""
    found: dict[str, float] = {}
    for item in value.split(","):
        name, _, duration = item.strip().partition(";dur=")
        try:
            found[name] = found.get(name, 0.0) + float(duration)
        except ValueError:
            continue
    return found
