"""Workers as Ray actors, on a real cluster: found, lost, started again, and more of them when there is room."""

from __future__ import annotations

import os
import signal

import pytest

from sealface.cipher.scheme import Ckks
from sealface.cli.authority import Authority
from sealface.matching.matcher import Matcher
from sealface.runtime.server import ServerConfig
from sealface.workers.actors import RayActors, RayConfig, RayUnavailable
from sealface.workers.pool import WorkerPool
from sealface.workers.server import WorkerConfig
from tests.matching.test_matcher import Zone, search
from tests.workers.test_pool import ZONES, certified, everybody, fill, foreign, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


@pytest.fixture
def zone(tmp_path):
    made = Zone(tmp_path, Ckks())
    made.create("door")
    return made


def home(address, tmp_path, **asked):
    return RayActors(RayConfig(address, **asked), WorkerConfig(tmp_path, ServerConfig()))


def test_actors_find_what_is_there_and_are_started_again_when_they_die(ray_cluster, zone, tmp_path):
    fill(zone, 6, 40)
    actors = home(ray_cluster, tmp_path, workers=2)
    actors.start()
    try:
        until(lambda: len(actors.members()) == 2)
        matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(actors))
        assert search(zone, matcher, "door").keys() == everybody(zone)
        for name, pid in actors.pids().items():
            os.kill(pid, signal.SIGKILL)
            assert search(zone, matcher, "door").keys() == everybody(zone)
            until(lambda name=name, pid=pid: actors.pids().get(name, pid) != pid)
        for pid in actors.pids().values():
            os.kill(pid, signal.SIGKILL)
        assert search(zone, matcher, "door").keys() == everybody(zone)
    finally:
        actors.stop()
    assert actors.members() == {}


def test_actors_serve_nobody_but_their_own_zone(ray_cluster, zone, tmp_path):
    fill(zone, 6)
    authority = Authority.create()
    files = {name: certified(authority, tmp_path / name, of) for name, of in ZONES.items()}
    actors = RayActors(
        RayConfig(ray_cluster, workers=1), WorkerConfig(tmp_path, ServerConfig(tls=files["worker"])), files["matching"]
    )
    actors.start()
    try:
        matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(actors))
        assert search(zone, matcher, "door").keys() == everybody(zone)
        (place,) = (actor.place for actor in actors._actors.values())
        foreign(place[0], files)
    finally:
        actors.stop()


def test_as_many_actors_as_there_is_room_for(ray_cluster, zone, tmp_path):
    actors = home(ray_cluster, tmp_path, threads=2)
    actors.start()
    try:
        until(lambda: len(actors.members()) == 2)  # four CPUs
    finally:
        actors.stop()


def test_no_room_and_no_cluster_are_said(ray_cluster, zone, tmp_path, monkeypatch):
    monkeypatch.setattr("sealface.workers.actors._START_S", 3.0)
    crowded = home(ray_cluster, tmp_path, threads=8)
    with pytest.raises(RayUnavailable, match="room"):
        crowded.start()
    crowded.stop()
    with pytest.raises(RayUnavailable, match="cluster"):
        home("127.0.0.1:1", tmp_path).start()
