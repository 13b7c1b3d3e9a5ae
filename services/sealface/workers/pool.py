"""A task over many workers: scattered, gathered, and done again elsewhere where a worker is lost.

Blocks are placed by rendezvous hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018): each has an order of
preference among the workers, and goes to the first that is not full, so that workers are equally loaded and few blocks
move when one joins or leaves. A block's second choice is where it is scored when its worker is lost; with two replicas
it is held there already.
"""

from __future__ import annotations

import hashlib
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from sealface.errors import Unavailable
from sealface.workers.task import Part, Task, Tile, Timing
from sealface.workers.usage import Usage

_LOOK_S = 0.05  # how often it is looked for a worker when there is none


class WorkerLost(Exception):
    """A worker does not answer: what it was to score is scored elsewhere."""


class SearchIncomplete(Unavailable):
    """Not all of a gallery could be searched in time."""


class WorkersSilent(Unavailable):
    """A worker could not be asked."""


class Running(Protocol):
    """A task under way at a worker. Every method may raise `WorkerLost`, or what the worker refused it for."""

    def loaded(self) -> None:
        """Wait until all blocks are in memory."""

    def tiles(self) -> Iterator[Tile]:
        """Scores as they come; after them `timing` is there."""

    def cancel(self) -> None:
        """Want no more of it; may be called from another thread."""

    @property
    def timing(self) -> Timing:
        """What it took."""


class Member(Protocol):
    """A worker, wherever it runs."""

    def run(self, task: Task, timeout_s: float) -> Running:
        """Begin a task."""

    def held(self, gallery_id: str, timeout_s: float) -> list[Part]:
        """What it has in memory of a gallery."""

    def usage(self, timeout_s: float) -> Usage:
        """What it has in memory of all galleries."""


class Home(Protocol):
    """Where workers run."""

    def start(self) -> None:
        """Start them; returns when they are ready."""

    def stop(self) -> None:
        """Stop them."""

    def members(self) -> Mapping[str, Member]:
        """Those that run, by a name that a worker keeps when it is started again."""


def placed(
    task: Task, places: Iterable[int], members: Iterable[str], bounded: bool = True
) -> dict[int, tuple[str, ...]]:
    """The workers of some parts of a task, in the order in which they are to score them.

    Args:
        task: the task.
        places: of the parts.
        members: names of workers, at least one.
        bounded: whether to load them equally, rather than to take the one preferred.
    """
    names = tuple(sorted(members))
    order = sorted(places, key=lambda place: (-task.parts[place].columns, place))
    everything = sum(task.parts[place].columns for place in order)
    share = math.ceil(everything / len(names)) if bounded else everything
    room = dict.fromkeys(names, share)
    found = {}
    for place in order:
        part = task.parts[place]
        preferred = _preferred(task.gallery, part.columns == 1, part.number or part.slots, names)
        taker = next(name for name in preferred if room[name] > 0)  # there is one: their room is all that is left
        room[taker] -= part.columns
        found[place] = (taker, *(name for name in preferred if name != taker))
    return found


@lru_cache(maxsize=1 << 17)
def _preferred(gallery: str, group: bool, block: int | bytes, members: tuple[str, ...]) -> tuple[str, ...]:
    def weight(member: str) -> bytes:
        return hashlib.sha256(repr((gallery, group, block, member)).encode()).digest()

    return tuple(sorted(members, key=weight))


class WorkerPool:
    """Scores tasks on the workers of a home. Safe for several threads.

    Args:
        home: where they run.
        replicas: how many workers hold each block.
    """

    def __init__(self, home: Home, replicas: int = 1) -> None:
        self._home = home
        self._replicas = replicas
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the workers."""
        self._home.start()

    def stop(self) -> None:
        """Stop the workers; no search waits for another any more."""
        self._stopping.set()
        self._home.stop()

    def held(self, gallery_id: str, timeout_s: float) -> list[list[Part]]:
        """What each worker has in memory of a gallery.

        Raises:
            WorkersSilent: one does not answer.
        """
        try:
            return [member.held(gallery_id, timeout_s) for member in self._home.members().values()]
        except WorkerLost:
            raise WorkersSilent("a worker does not say what it holds: try again") from None

    def usage(self, timeout_s: float) -> dict[str, Usage | None]:
        """What each worker holds, by its name; None of one that does not say so in its share of the time."""
        found: dict[str, Usage | None] = {}
        members = self._home.members()
        for name, member in members.items():
            try:
                found[name] = member.usage(timeout_s / len(members))
            except WorkerLost:
                found[name] = None
        return found

    def begin(self, task: Task, timeout_s: float, partial: bool = False) -> Gathering:
        """Have all blocks of a task in memory, and their scores under way.

        Args:
            task: what is scored.
            timeout_s: how long it may take, scores included.
            partial: whether to go on without blocks that cannot be scored in time.

        Raises:
            SearchIncomplete: not all blocks could be loaded in time.
            SealfaceError: what a worker refused it for.
        """
        deadline = time.monotonic() + timeout_s
        gathering = Gathering(self._home, task, self._replicas, deadline, partial, self._stopping)
        gathering.load()
        return gathering


@dataclass
class _Job:
    """Some parts of a task at one worker.

    Attributes:
        member: the worker's name.
        places: of the parts that it scores.
        reserve: of parts that it holds, should another be lost.
    """

    member: str
    places: list[int] = field(default_factory=list)
    reserve: list[int] = field(default_factory=list)
    loaded: bool = False
    running: Running | None = None


@dataclass
class _News:
    job: _Job
    tile: Tile | None = None
    loaded: bool = False
    done: Timing | None = None
    error: Exception | None = None


class Gathering:
    """A task under way at many workers; iterate over it for its tiles, once.

    Attributes:
        timing: what it took, when all tiles are taken.
        share: how much of what was asked for has been scored so far, 0 to 1.
    """

    def __init__(
        self, home: Home, task: Task, replicas: int, deadline: float, partial: bool, stopping: threading.Event
    ) -> None:
        self._home, self._task, self._replicas = home, task, replicas
        self._deadline, self._partial, self._stopping = deadline, partial, stopping
        self._missing = {place for place, part in enumerate(task.parts) if part.requested is not None}
        self._jobs: list[_Job] = []
        self._early: list[Tile] = []
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._given_up = False
        self.timing = Timing()
        weights = [0 if part.requested is None else int(np.count_nonzero(part.requested)) for part in task.parts]
        self._weights, self._total = weights, sum(weights)
        self._unscored = self._total  # a number, that other threads may read while it changes

    @property
    def share(self) -> float:
        """See the class."""
        return 1.0 - self._unscored / self._total if self._total else 1.0

    @property
    def scored(self) -> int:
        """Templates that were compared with probes so far, counted for each probe."""
        return (self._total - self._unscored) * len(self._task.probes)

    @property
    def given_up(self) -> frozenset[int]:
        """Places of parts that are not scored, once it is known that they will not be."""
        return frozenset(self._missing) if self._given_up else frozenset()

    def load(self) -> None:
        """Scatter the task, and wait until every worker has its blocks in memory."""
        self._scatter(range(len(self._task.parts)), first=True)
        try:
            while any(not job.loaded for job in self._jobs):
                if not self._take():
                    return
        except BaseException:
            self.cancel()
            raise

    def __iter__(self) -> Iterator[Tile]:
        try:
            while self._early or self._jobs:
                while self._early:
                    yield self._early.pop(0)
                if self._jobs and not self._take():
                    break
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Want no more of it."""
        self._given_up = True
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            if job.running is not None:
                job.running.cancel()

    def _scatter(self, places: Iterable[int], lost: str = "", first: bool = False) -> None:
        """Give parts to workers; to one that was just lost only if there is no other."""
        while not (members := self._home.members()):
            if self._left() <= _LOOK_S or self._stopping.is_set():
                self._give_up()
                return
            time.sleep(_LOOK_S)
        able = [name for name in members if name != lost] or list(members)
        jobs = {name: _Job(name) for name in able}
        # who holds the second copy takes over, even if others have less to do: loading takes longer than scoring
        bounded = first or self._replicas == 1
        for place, (taker, *others) in placed(self._task, places, able, bounded).items():
            jobs[taker].places.append(place)
            if first:
                for name in others[: self._replicas - 1]:
                    jobs[name].reserve.append(place)
        for job in jobs.values():
            if job.places or job.reserve or (first and self._task.whole):
                self._jobs.append(job)
                arguments = self._run, job, members[job.member], first
                # what it logs, and asks workers, is of the call that waits for it
                threading.Thread(target=copy_context().run, args=arguments, daemon=True).start()

    def _run(self, job: _Job, member: Member, first: bool) -> None:
        """Follow one job, in a thread of its own."""
        task = self._task
        parts = [task.parts[place] for place in job.places]
        parts += [replace(task.parts[place], requested=None) for place in job.reserve]
        whole = task.whole and first  # what is taken over from a lost worker comes on top
        try:
            job.running = running = member.run(replace(task, parts=tuple(parts), whole=whole), self._left())
            if self._given_up:
                running.cancel()
            running.loaded()
            self._news.put(_News(job, loaded=True))
            for tile in running.tiles():
                self._news.put(_News(job, Tile(tuple(job.places[place] for place in tile.places), tile.results)))
            self._news.put(_News(job, done=running.timing))
        except Exception as error:
            self._news.put(_News(job, error=error))

    def _take(self) -> bool:
        """Wait for news and act on it; False if time is up and what is missing may be."""
        try:
            if (left := self._left()) <= 0:
                raise queue.Empty
            news = self._news.get(timeout=left)
        except queue.Empty:
            return self._give_up()
        job = news.job
        if job not in self._jobs:
            return True
        if news.loaded:
            job.loaded = True
        elif news.tile is not None:
            scored = self._missing.intersection(news.tile.places)
            self._missing -= scored
            self._unscored -= sum(self._weights[place] for place in scored)
            self._early.append(news.tile)
        elif news.done is not None:
            self.timing.slowest(news.done)
            self._jobs.remove(job)
        else:
            self._jobs.remove(job)
            if not isinstance(news.error, WorkerLost):
                raise news.error or SearchIncomplete("the search was not completed: try again")
            if again := sorted(self._missing & set(job.places)):
                time.sleep(min(_LOOK_S, max(0.0, self._left())))
                self._scatter(again, lost=job.member)
        return True

    def _give_up(self) -> bool:
        if self._partial and self.share > 0:
            self.cancel()
            return False
        raise SearchIncomplete(
            f"only {self.share:.0%} of the gallery could be searched in time: try again, or ask for partial answers",
            share_searched=f"{self.share:.4f}",
        )

    def _left(self) -> float:
        return self._deadline - time.monotonic()
