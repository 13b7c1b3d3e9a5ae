"""One process at a time has the key zone's database: the service, or a restore."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sealface.errors import WrongState


class KeyZoneInUse(WrongState):
    """A key service, or a restore, has this folder."""


class Occupancy:
    """A lock on the folder; the kernel takes it back when the process ends, however that ends.

    Args:
        folder: the key zone's state.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor = -1

    def start(self) -> None:
        """Take it.

        Raises:
            KeyZoneInUse: somebody has it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise KeyZoneInUse("a key service runs on this state folder: stop it, or name another folder") from None
        self._descriptor = descriptor

    def stop(self) -> None:
        """Give it back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
