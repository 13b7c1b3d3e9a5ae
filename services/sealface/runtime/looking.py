"""Work beside the serving path that looks again and again."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import structlog

_log = structlog.get_logger("sealface.background")


class Looking(ABC):
    """Looks in a thread of its own, at once and then every so often, until it is stopped (see `server.Background`).

    A look that fails is logged, by the error's type alone, and made again the next time.

    Args:
        name: of the thread, for the log.
        pause_s: seconds between looks; a look may change `self.pause_s`.
        told: errors that are logged where they are found.
    """

    def __init__(self, name: str, pause_s: float, told: tuple[type[Exception], ...] = ()) -> None:
        self.pause_s = pause_s
        self._name = name
        self._told = told
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """Look once, and do what there is to do."""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; returns when a look that is under way is over."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except self._told:
                pass
            except Exception as error:
                _log.error("not finished", work=self._name, error=type(error).__name__)
            self._stopping.wait(self.pause_s)
