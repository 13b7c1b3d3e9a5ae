"""Alarms: what a person at a door does raises none, what a program does raises the right one."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from sealface.keys import alarms
from sealface.keys.alarms import Heard, Kind, Watch, suspicious
from tests.conftest import near, person
from tests.keys.conftest import ask

ME = person(0)


def series(reaches, every=5.0, matched=None):
    return [
        Heard(number * every, reach <= 1 if matched is None else matched, float(reach))
        for number, reach in enumerate(reaches)
    ]


def people(count, seed, strangers=0.1):
    """Genuine distances as Dlib's are, in units of the threshold, and some strangers'."""
    rng = np.random.default_rng(seed)
    genuine = rng.normal(0.45, 0.2, count).clip(0.05)
    return np.where(rng.random(count) < strangers, rng.normal(2.5, 0.5, count), genuine)


@pytest.mark.parametrize("seed", range(20))
def test_a_busy_door_raises_none(seed):
    assert suspicious(series(people(110, seed))) == {}
    assert suspicious(series(people(25, seed, strangers=0.5))) == {}


def test_faster_than_people_walk():
    assert Kind.TOO_FAST in suspicious(series(people(200, 1), every=0.1))
    assert Kind.TOO_FAST not in suspicious(series(people(119, 1), every=0.1))


def test_guesses_of_which_few_match():
    rng = np.random.default_rng(3)
    assert suspicious(series(rng.normal(3, 0.5, 80))) == {Kind.FEW_MATCHES: 80}
    assert suspicious(series(rng.normal(3, 0.5, 59))) == {}


def test_a_walk_along_the_threshold():
    rng = np.random.default_rng(4)
    assert Kind.AT_THRESHOLD in suspicious(series(1 + rng.normal(0, 0.03, 30)))


@pytest.mark.parametrize("seed", range(10))
def test_a_climb_towards_the_threshold(seed):
    rng = np.random.default_rng(seed)
    rising = np.linspace(1.9, 1.05, 40) + rng.normal(0, 0.03, 40)
    assert Kind.CLIMBING in suspicious(series(rising))
    level = 1.5 + rng.normal(0, 0.2, 40)
    assert Kind.CLIMBING not in suspicious(series(level))
    assert Kind.CLIMBING not in suspicious(series(rising[::-1]))


def test_nothing_compared_is_nothing_near():
    assert suspicious(series([np.inf] * 40)) == {}


def test_an_alarm_is_raised_once_in_a_while(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch, raised = Watch(), []
    for _ in range(300):
        raised += [(now, kind) for kind in watch.hear("eve", "door", False, 3.0)]
        assert watch.hear("bob", "door", True, 0.5) == {}
        now += 8.0
    # and what is older than the window is forgotten
    assert [kind for _, kind in raised] == [Kind.FEW_MATCHES] * 4
    assert min(b - a for (a, _), (b, _) in pairwise(raised)) >= alarms.WINDOW_S
    assert len(watch._windows["eve", "door"].heard) <= alarms.WINDOW_S / 8 + 1


def test_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr(alarms, "_MOST_CALLERS", 10)
    watch = Watch()
    for number in range(100):
        watch.hear(f"caller{number}", "door", True, 0.5)
    assert len(watch._windows) == 10


async def test_an_alarm_is_in_the_audit_log_and_the_services_log_without_a_score(client, door_key, alice, capsys):
    results = door_key.results({1: near(ME, 0.43), 2: near(ME, 0.9)})
    for _ in range(alarms.LEAST_AT_THRESHOLD):
        await door_key.decide(ask(alice, door_key.probe, claimed_slots=[1, 2]), results)
    (alarm,) = await client.audit.alarms()
    assert alarm.actor == "service"
    assert alarm.resource == alice.caller
    assert alarm.detail == {"alarm": "at the threshold", "decisions": 20, "key_version": "keys/door/versions/1"}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "alarm" in line]
    assert "0.4" not in line
    assert alice.caller in line


async def test_a_version_that_is_nearly_spent_is_to_be_rotated(client, scheme, alice):
    from tests.keys.test_budgets import door_with

    door = await door_with(client, scheme, decisions_per_version=10)
    results = door.results({1: ME})
    for _ in range(8):
        await door.decide(ask(alice, door.probe), results)
    assert await client.audit.alarms() == []
    for _ in range(2):
        await door.decide(ask(alice, door.probe), results)
    assert [alarm.detail["alarm"] for alarm in await client.audit.alarms()] == ["nearly spent"]
