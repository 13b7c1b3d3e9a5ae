"""Work that looks again and again."""

from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from sealface.runtime.looking import Looking

WAIT_S = 10


class Counting(Looking):
    """Counts its looks; fails at some of them."""

    def __init__(self, failures: dict[int, Exception], pause_s: float = 0.01, **options) -> None:
        super().__init__("counting", pause_s, **options)
        self.looks, self.failures, self.enough = 0, failures, threading.Event()

    def look(self) -> None:
        self.looks += 1
        if self.looks >= 5:
            self.enough.set()
        if error := self.failures.get(self.looks):
            raise error


def test_it_looks_at_once_and_again_until_it_is_stopped():
    work = Counting({})
    work.start()
    assert work.enough.wait(WAIT_S)
    work.stop()
    assert work.looks >= 5
    assert not work._thread.is_alive()


def test_a_look_that_fails_is_made_again_and_its_text_is_not_logged():
    work = Counting({1: ValueError("a secret"), 3: KeyError("another")})
    with capture_logs() as logs:
        work.start()
        assert work.enough.wait(WAIT_S)
        work.stop()
    assert [(line["work"], line["error"]) for line in logs] == [("counting", "ValueError"), ("counting", "KeyError")]
    assert "secret" not in str(logs)


def test_what_is_told_elsewhere_is_not_told_again():
    work = Counting({2: ValueError("x"), 3: KeyError("y")}, told=(KeyError,))
    with capture_logs() as logs:
        work.start()
        assert work.enough.wait(WAIT_S)
        work.stop()
    assert [line["error"] for line in logs] == ["ValueError"]


def test_a_pause_is_cut_short_when_it_is_stopped():
    work = Counting({}, pause_s=3600)
    work.start()
    work.stop()
    assert work.looks <= 1
    assert not work._thread.is_alive()


def test_what_was_never_started_can_be_stopped():
    Counting({}).stop()


def test_what_looks_for_nothing_cannot_be_made():
    with pytest.raises(TypeError):
        Looking("nothing", 1.0)  # type: ignore[abstract]
