"""Seeds of transforms, for a service that cannot read the operator's key folder."""

from __future__ import annotations

from pathlib import Path

from sealface.edge.credential import FOLDER
from sealface.protocol.signing import write_private


def seed_folder(state: Path) -> Path:
    """Where this service's seeds are; `sealface keys import FILE --folder` puts one there."""
    return state / FOLDER / "keys"


def hand_over(state: Path) -> None:
    """Copy the seeds that lie in the state folder's edge, and no key; repeated at every start.

    The service goes by the digest that a gallery tells, so that one too many does no harm.
    """
    folder = seed_folder(state)
    for path in (state / "edge" / "keys").glob("galleries-*.secret"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder / path.name, path.read_bytes())
