"""Keeps single-use zeros ready for the results of the next search, drawn while no search waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from sealface.cipher.scheme import Evaluator

_MOST = 1024  # of all galleries, 110 kB each


class Reserve:
    """Fills the pools of evaluators in the background."""

    def __init__(self) -> None:
        self._wanted: WeakKeyDictionary[Evaluator, int] = WeakKeyDictionary()
        self._condition = threading.Condition()
        self._searches = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._fill, name="zeros", daemon=True)

    def start(self) -> None:
        """Begin to fill."""
        self._thread.start()

    def stop(self) -> None:
        """Stop filling."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def want(self, evaluator: Evaluator, results: int) -> None:
        """Have as many ready as a search needs; the largest search counts."""
        with self._condition:
            self._wanted[evaluator] = max(results, self._wanted.get(evaluator, 0))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While a search is under way nothing is drawn ahead."""
        with self._condition:
            self._searches += 1
        try:
            yield
        finally:
            with self._condition:
                self._searches -= 1
                self._condition.notify_all()

    def _next(self) -> Evaluator | None:
        """An evaluator that has fewer zeros than a search of its gallery takes, while all together are few enough."""
        if sum(len(evaluator.zeros) for evaluator in self._wanted) >= _MOST:
            return None
        return next((e for e, count in self._wanted.items() if len(e.zeros) < count), None)

    def _fill(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopped or (not self._searches and self._next() is not None))
                if self._stopped:
                    return
                evaluator = self._next()
            if evaluator is not None:
                evaluator.zeros.add_one()
            del evaluator  # a gallery that is gone takes its pool with it
