"""Where the services are."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sealface.errors import InvalidInput

SERVICES_FILE = "services.json"


class NoServices(InvalidInput):
    """Nothing says where the services are."""


@dataclass(frozen=True)
class Endpoints:
    """Addresses, `host:port`.

    Attributes:
        keys: the key service.
        enrollment: the enrollment service.
        matching: the matching service.
        ca: PEM file of the authority whose certificates the services show; None for plaintext, on loopback.
    """

    keys: str
    enrollment: str
    matching: str
    ca: Path | None = None

    @classmethod
    def discover(cls, state: Path | None = None) -> Endpoints:
        """From SEALFACE_KEYS, SEALFACE_ENROLLMENT, SEALFACE_MATCHING and SEALFACE_CA, else from a state folder.

        Raises:
            NoServices: neither says it.
        """
        stored = {} if state is None else _stored(state)
        names = ("keys", "enrollment", "matching", "ca")
        found = {name: os.environ.get(f"SEALFACE_{name.upper()}") or stored.get(name, "") for name in names}
        ca = found.pop("ca")
        if not all(found.values()):
            raise NoServices(
                "no services known: start them with `sealface serve --state DIR` and name the same DIR, "
                "or set SEALFACE_KEYS, SEALFACE_ENROLLMENT, SEALFACE_MATCHING and SEALFACE_CA"
            )
        return cls(**found, ca=Path(ca) if ca else None)


def _stored(state: Path) -> dict[str, str]:
    """What `sealface serve` has written down, the authority's file as a path from here."""
    try:
        stored = json.loads((state / SERVICES_FILE).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    found = {str(name): value for name, value in stored.items() if isinstance(value, str) and value}
    return found | ({"ca": str(state / found["ca"])} if "ca" in found else {})
