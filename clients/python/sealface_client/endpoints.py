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
    """Addresses, `host:port`."""

    keys: str
    enrollment: str
    matching: str

    @classmethod
    def discover(cls, state: Path | None = None) -> Endpoints:
        """From SEALFACE_KEYS, SEALFACE_ENROLLMENT and SEALFACE_MATCHING, else from a state folder.

        Raises:
            NoServices: neither says it.
        """
        found = {name: os.environ.get(f"SEALFACE_{name.upper()}", "") for name in ("keys", "enrollment", "matching")}
        if not all(found.values()) and state is not None:
            try:
                stored = json.loads((state / SERVICES_FILE).read_text())
            except (OSError, ValueError):
                stored = {}
            if not isinstance(stored, dict):
                stored = {}
            found = {name: found[name] or str(stored.get(name, "")) for name in found}
        if not all(found.values()):
            raise NoServices(
                "no services known: start them with `sealface serve --state DIR` and name the same DIR, "
                "or set SEALFACE_KEYS, SEALFACE_ENROLLMENT and SEALFACE_MATCHING"
            )
        return cls(**found)
