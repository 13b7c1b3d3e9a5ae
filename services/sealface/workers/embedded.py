"""A worker in the process of the matching service itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sealface.workers.pool import Member, Running
from sealface.workers.task import Part, Task, Tile, Timing
from sealface.workers.usage import Usage
from sealface.workers.worker import Pass, Worker


class Embedded:
    """A home of one worker.

    Args:
        worker: the worker.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def start(self) -> None:
        """Begin to draw zeros ahead."""
        self._worker.reserve.start()

    def stop(self) -> None:
        """Stop that."""
        self._worker.reserve.stop()

    def members(self) -> Mapping[str, Member]:
        """The one."""
        return {"embedded": self}

    def run(self, task: Task, timeout_s: float) -> Running:
        """Begin a task."""
        return _Running(self._worker, task)

    def held(self, gallery_id: str, timeout_s: float) -> list[Part]:
        """What it has in memory of a gallery."""
        return self._worker.store.held(gallery_id)

    def usage(self, timeout_s: float) -> Usage:
        """What it holds of all galleries."""
        return self._worker.usage()


class _Running:
    def __init__(self, worker: Worker, task: Task) -> None:
        self._worker, self._task = worker, task
        self._pass: Pass | None = None
        self._cancelled = False

    def loaded(self) -> None:
        self._pass = self._worker.begin(self._task)

    def tiles(self) -> Iterator[Tile]:
        if self._pass is not None:
            for tile in self._pass.tiles:
                if self._cancelled:
                    return
                yield tile

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def timing(self) -> Timing:
        return self._pass.timing if self._pass else Timing()
