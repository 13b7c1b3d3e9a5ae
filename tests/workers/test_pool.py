"""A task over several workers gives what one gives, whichever of them are lost meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from sealface.cli.authority import Authority
from sealface.errors import SealfaceError
from sealface.matching.matcher import Matcher
from sealface.protocol import zones
from sealface.runtime.tls import Tls
from sealface.workers.embedded import Embedded
from sealface.workers.local import LocalProcesses, WorkerDidNotStart
from sealface.workers.pool import SearchIncomplete, WorkerLost, WorkerPool, placed
from sealface.workers.store import ShardTooLarge
from sealface.workers.task import BlockGone, Part, Task
from sealface.workers.worker import Worker
from tests.conftest import both_schemes
from tests.matching.test_matcher import Zone, distance, search

ROOT = Path(__file__).parents[2]


class Several:
    """A home of real workers in this process, which a test can lose: at a task's beginning, or between two tiles."""

    def __init__(self, *workers):
        self.workers = {f"w{number}": Embedded(worker) for number, worker in enumerate(workers)}
        self.gone = set()
        self.dies_after = {}  # tiles
        self.tasks = []

    def start(self):
        pass

    def stop(self):
        pass

    def members(self):
        return {name: _Mortal(self, name) for name in self.workers if name not in self.gone}

    def lose(self, name):
        self.gone.add(name)


class _Mortal:
    def __init__(self, home, name):
        self.home, self.name = home, name

    def run(self, task, timeout_s):
        self.home.tasks.append((self.name, task))
        running = self.home.workers[self.name].run(task, timeout_s)
        return _MortalRunning(self, running)


class _MortalRunning:
    def __init__(self, mortal, running):
        self.mortal, self.running = mortal, running

    def alive(self):
        if self.mortal.name in self.mortal.home.gone:
            raise WorkerLost

    def loaded(self):
        self.alive()
        self.running.loaded()
        self.alive()

    def tiles(self):
        for count, tile in enumerate(self.running.tiles()):
            if self.mortal.home.dies_after.get(self.mortal.name) == count:
                self.mortal.home.lose(self.mortal.name)
            self.alive()
            yield tile

    def cancel(self):
        self.running.cancel()

    @property
    def timing(self):
        return self.running.timing


@pytest.fixture
def zone(tmp_path, scheme):
    made = Zone(tmp_path, scheme)
    made.create("door")
    return made


def several(zone, count, replicas=1, **options):
    home = Several(*(Worker(zone.galleries, zone.scheme, **options) for _ in range(count)))
    return home, Matcher(zone.galleries, zone.scheme, WorkerPool(home, replicas))


def fill(zone, blocks, enrolled=0):
    for number in range(blocks):
        zone.import_block("door", *range(10 * number, 10 * number + 3))
    if enrolled:
        zone.enroll("door", *range(1000, 1000 + enrolled))


def everybody(zone):
    return {change.slot for change in zone.galleries.changes("door", 0)[2]}


def parts(count, columns=8):
    return tuple(Part(columns, number, b"", np.ones(4, bool)) for number in range(1, count + 1))


# --- who scores what


def test_workers_are_equally_loaded():
    for count, columns in ((100, 128), (64, 8), (7, 16)):
        for members in (1, 2, 3, 8):
            names = [f"w{i}" for i in range(members)]
            found = placed(Task("door", 0, "keys/door/versions/1", (), parts(count, columns)), range(count), names)
            loads = [sum(takers[0] == name for takers in found.values()) for name in names]
            assert sum(loads) == count
            assert max(loads) <= -(-count // members) + 1


def test_every_worker_is_named_once_for_every_part():
    names = [f"w{i}" for i in range(5)]
    found = placed(Task("door", 0, "keys/door/versions/1", (), parts(30)), range(30), reversed(names))
    assert found.keys() == set(range(30))
    assert all(sorted(takers) == names for takers in found.values())


def test_where_a_part_lies_does_not_depend_on_the_order_of_members():
    task = Task("door", 0, "keys/door/versions/1", (), parts(50))
    assert placed(task, range(50), ["a", "b", "c"]) == placed(task, range(50), ["c", "a", "b"])


def test_few_parts_move_when_a_worker_joins():
    task, names = Task("door", 0, "keys/door/versions/1", (), parts(400)), [f"w{i}" for i in range(8)]
    before, after = placed(task, range(400), names), placed(task, range(400), [*names, "new"])
    moved = sum(before[place][0] != after[place][0] for place in range(400))
    assert moved < 2.5 * 400 / 9


# --- a task over several workers


@both_schemes
@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_workers_find_what_one_finds(zone, count):
    fill(zone, 4, 40)
    home, matcher = several(zone, count)
    found = search(zone, matcher, "door")
    assert found.keys() == everybody(zone)
    assert found[4] == distance(10, 1)
    assert {name for name, _ in home.tasks} == set(home.workers)
    asked = [part.name for _, task in home.tasks for part in task.parts]
    assert len(asked) == len(set(asked))  # each block by one worker


@pytest.mark.parametrize("tiles", [0, 1, 3])
def test_what_a_lost_worker_did_not_finish_is_scored_by_another(zone, tiles):
    fill(zone, 30, 40)
    home, matcher = several(zone, 3)
    home.dies_after["w1"] = tiles
    assert search(zone, matcher, "door").keys() == everybody(zone)
    assert home.gone == {"w1"}
    assert search(zone, matcher, "door").keys() == everybody(zone)


def test_all_but_one_may_be_lost(zone):
    fill(zone, 12)
    home, matcher = several(zone, 4)
    home.dies_after |= {"w0": 0, "w1": 1, "w3": 0}
    assert search(zone, matcher, "door").keys() == everybody(zone)
    assert home.gone == {"w0", "w1", "w3"}


def test_what_is_taken_over_drives_out_nothing_of_what_is_held(zone):
    fill(zone, 6)
    home, matcher = several(zone, 2)
    search(zone, matcher, "door")
    held = {name: embedded._worker.store.nbytes for name, embedded in home.workers.items()}
    home.lose("w0")
    search(zone, matcher, "door")
    assert home.workers["w1"]._worker.store.nbytes == sum(held.values())


def test_a_worker_that_comes_back_is_waited_for(zone):
    fill(zone, 3)
    home, matcher = several(zone, 1)
    home.lose("w0")
    threading.Timer(0.3, home.gone.clear).start()
    assert search(zone, matcher, "door").keys() == everybody(zone)


def test_with_no_worker_the_search_ends_in_time_and_says_so(zone):
    fill(zone, 3)
    home, matcher = several(zone, 1)
    home.lose("w0")
    with pytest.raises(SearchIncomplete) as caught:
        matcher.identify("door", [zone.probe("door", 1)], timeout_s=0.2)
    assert caught.value.metadata == {"share_searched": "0.0000"}


def test_a_search_does_not_wait_for_a_worker_of_a_pool_that_stops(zone):
    fill(zone, 3)
    home = Several(Worker(zone.galleries, zone.scheme))
    pool = WorkerPool(home)
    home.lose("w0")
    threading.Timer(0.3, pool.stop).start()
    with pytest.raises(SearchIncomplete):
        Matcher(zone.galleries, zone.scheme, pool).identify("door", [zone.probe("door", 1)], timeout_s=200)


class Fewer(Several):
    """Whoever is lost takes the others with it."""

    def members(self):
        return {} if self.gone else super().members()


def test_a_search_that_loses_its_workers_says_which_share_was_searched(zone):
    fill(zone, 20)
    home = Fewer(*(Worker(zone.galleries, zone.scheme) for _ in range(2)))
    matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(home))
    home.dies_after["w1"] = 2
    with pytest.raises(SearchIncomplete) as caught:  # while the other still loads, or after that
        list(matcher.identify("door", [zone.probe("door", 1)], timeout_s=1.5).results())
    assert 0 < float(caught.value.metadata["share_searched"]) < 1


def test_the_share_may_be_asked_for_while_scores_come(zone):
    """As a search does that tells it with every part of its answer, from another thread than the one that gathers."""
    fill(zone, 60)
    _, matcher = several(zone, 2)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            found = matcher.identify("door", [zone.probe("door", 1)])
            taking = threading.Thread(target=lambda found=found: list(found.results()))
            taking.start()
            shares = [0.0]
            while taking.is_alive():
                shares.append(found.share)
            assert shares == sorted(shares)
            assert found.share == 1.0
    finally:
        sys.setswitchinterval(before)


def test_a_partial_answer_is_given_to_who_asks_for_it_with_its_share(zone):
    fill(zone, 20)
    home = Fewer(*(Worker(zone.galleries, zone.scheme) for _ in range(2)))
    matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(home))
    home.dies_after["w1"] = 2
    found = matcher.identify("door", [zone.probe("door", 1)], timeout_s=1.5, partial=True)
    opened = zone.opened("door", found.results())
    assert opened.keys() < everybody(zone)
    assert found.share == pytest.approx(len(opened) / len(everybody(zone)))


def test_a_refusal_is_no_loss(zone):
    fill(zone, 4)
    home, matcher = several(zone, 2, memory=1)
    with pytest.raises(ShardTooLarge):
        search(zone, matcher, "door")
    assert len(home.tasks) == 2  # nobody else is asked


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_block_is_held_by_as_many_workers_as_there_are_replicas(zone, replicas):
    fill(zone, 6)
    home, matcher = several(zone, 3, replicas)
    search(zone, matcher, "door")
    once = sum(shard.nbytes for embedded in home.workers.values() for shard in embedded._worker.store._shards.values())
    single, alone = several(zone, 1)
    search(zone, alone, "door")
    assert once == replicas * single.workers["w0"]._worker.store.nbytes


def test_with_two_replicas_nothing_is_loaded_when_a_worker_is_lost(zone, monkeypatch):
    fill(zone, 80)
    home, matcher = several(zone, 4, replicas=2)
    search(zone, matcher, "door")
    loaded, block = [], zone.galleries.block
    monkeypatch.setattr(zone.galleries, "block", lambda *a: loaded.append(a) or block(*a))
    home.dies_after["w2"] = 0
    assert search(zone, matcher, "door").keys() == everybody(zone)
    assert loaded == []


def test_who_holds_the_second_copy_takes_over_whatever_others_have_to_do():
    task, names = Task("door", 0, "keys/door/versions/1", (), parts(300)), [f"w{i}" for i in range(12)]
    before = placed(task, range(300), names)
    lost = [place for place, takers in before.items() if takers[0] == "w3"]
    assert len(lost) > 20
    after = placed(task, lost, [name for name in names if name != "w3"], bounded=False)
    assert all(after[place][0] == before[place][1] for place in lost)


def test_a_search_that_is_given_up_stops_at_its_workers(zone):
    fill(zone, 40)
    home, matcher = several(zone, 2)
    found = matcher.identify("door", [zone.probe("door", 1)])
    results = found.results()
    next(results)
    results.close()
    assert found._gathering._jobs == []


def test_searches_at_once_over_workers_that_come_and_go(zone):
    fill(zone, 12, 30)
    home, matcher = several(zone, 3)
    stop, failures, done = threading.Event(), [], []
    expected = everybody(zone)

    def look():
        while not stop.is_set():
            try:
                found = search(zone, matcher, "door")
                assert found.keys() == expected
                done.append(1)
            except SealfaceError as error:
                failures.append(error)
            except AssertionError as error:
                failures.append(error)
                raise

    searching = [threading.Thread(target=look) for _ in range(3)]
    for thread in searching:
        thread.start()
    number = 0
    while len(done) < 40 and not failures:
        home.gone = {f"w{number % 3}"}
        number += 1
        stop.wait(0.02)
    stop.set()
    for thread in searching:
        thread.join()
    assert failures == []


# --- processes

WORKER = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sealface.runtime.server import ServerConfig, run
from sealface.runtime.tls import Tls
from sealface.workers.server import WorkerConfig, build
from tests.plain import Plain

async def main():
    tls = Tls(*map(Path, sys.argv[3:])) if sys.argv[3:] else None
    server = build(WorkerConfig(Path(sys.argv[1]), ServerConfig("127.0.0.1:0", tls=tls)), Plain())
    await run(server, lambda address: print(json.dumps({"address": address}), flush=True), with_stdin=True)

asyncio.run(main())
"""


@pytest.fixture
def processes(zone, tmp_path):
    running = LocalProcesses([sys.executable, "-c", WORKER, os.fspath(tmp_path), os.fspath(ROOT)], 2)
    running.start()
    yield running
    running.stop()


def test_workers_behind_grpc_find_what_one_here_finds_and_are_started_again(zone, processes):
    fill(zone, 6, 40)
    matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(processes))
    assert search(zone, matcher, "door").keys() == everybody(zone)
    assert zone.opened("door", matcher.verify("door", zone.probe("door", 1), [2]).results()) == {2: distance(1, 1)}
    for victim in ("worker-0", "worker-1"):
        before = processes.pids()[victim]
        os.kill(before, signal.SIGKILL)
        assert search(zone, matcher, "door").keys() == everybody(zone)
        until(lambda before=before, victim=victim: processes.pids()[victim] != before)
    assert search(zone, matcher, "door").keys() == everybody(zone)


ZONES = {"worker": zones.Zone.COMPUTE, "matching": zones.Zone.COMPUTE, "edge": zones.Zone.EDGE}


def certified(authority, folder, zone):
    files = Tls(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
    authority.certify(files, zone)
    return files


def foreign(address, files):
    """Neither another zone nor somebody without a certificate gets anything of a worker."""
    request, path = b"", "/sealface.workers.v1.WorkerService/ListBlocks"
    name = [("grpc.ssl_target_name_override", zones.Zone.COMPUTE.server_name)]
    edge, ca = files["edge"], files["edge"].authority.read_bytes()
    credentials = grpc.ssl_channel_credentials(ca, edge.key.read_bytes(), edge.certificate.read_bytes())
    with grpc.secure_channel(address, credentials, name) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    for unknown in (
        grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), name),
        grpc.insecure_channel(address),
    ):
        with unknown as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_workers_serve_nobody_but_their_own_zone(zone, tmp_path):
    fill(zone, 6)
    authority = Authority.create()
    files = {name: certified(authority, tmp_path / name, of) for name, of in ZONES.items()}
    command = [
        sys.executable,
        "-c",
        WORKER,
        os.fspath(tmp_path),
        os.fspath(ROOT),
        *map(os.fspath, files["worker"].files),
    ]
    running = LocalProcesses(command, 1, tls=files["matching"])
    running.start()
    try:
        matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(running))
        assert search(zone, matcher, "door").keys() == everybody(zone)
        (process,) = running._processes.values()
        foreign(process.worker.address, files)
    finally:
        running.stop()


def test_all_workers_killed_while_a_search_waits_for_them(zone, processes):
    fill(zone, 6)
    matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(processes))
    for pid in processes.pids().values():
        os.kill(pid, signal.SIGKILL)
    assert search(zone, matcher, "door").keys() == everybody(zone)


def test_what_a_worker_refuses_is_told_with_its_reason(zone, processes):
    pool = WorkerPool(processes)
    with pytest.raises(BlockGone):  # another gallery of that id
        pool.begin(Task("door", 7, "keys/door/versions/1", (), (), whole=True), 5)
    with pytest.raises(SealfaceError) as caught:
        pool.begin(Task("gate", 0, "keys/gate/versions/1", (), (), whole=True), 5)
    assert caught.value.reason == "GALLERY_NOT_FOUND"


def test_stopping_stops_the_processes(zone, processes):
    pids = processes.pids().values()
    processes.stop()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert processes.members() == {}


ONE_READY = """
import os, sys
open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
try:
    os.mkdir(f"{sys.argv[1]}/first")
    print('{"address": "127.0.0.1:1"}', flush=True)
except FileExistsError:
    print("no", flush=True)
sys.stdin.read()
"""


def test_one_that_does_not_start_is_said_and_the_others_are_stopped(tmp_path):
    broken = LocalProcesses([sys.executable, "-c", ONE_READY, os.fspath(tmp_path)], 3)
    with pytest.raises(WorkerDidNotStart):
        broken.start()
    begun = [path.name for path in tmp_path.iterdir() if path.name.isdigit()]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in begun)
    assert broken.members() == {}


def test_one_that_cannot_be_started_again_at_first_is_tried_until_it_can(tmp_path):
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    (tmp_path / "pids").mkdir()
    running = LocalProcesses([os.fspath(python), "-c", ONE_READY, os.fspath(tmp_path / "pids")], 1)
    running.start()
    try:
        before = running.pids()["worker-0"]
        python.unlink()
        (tmp_path / "pids" / "first").rmdir()
        os.kill(before, signal.SIGKILL)
        time.sleep(0.5)
        assert running.members() == {}
        python.symlink_to(sys.executable)
        until(lambda: running.members() and running.pids()["worker-0"] != before)
    finally:
        running.stop()


def test_a_frozen_worker_is_lost_long_before_the_deadline(zone, processes):
    fill(zone, 6, 40)
    matcher = Matcher(zone.galleries, zone.scheme, WorkerPool(processes))
    assert search(zone, matcher, "door").keys() == everybody(zone)
    frozen = processes.pids()["worker-0"]
    os.kill(frozen, signal.SIGSTOP)
    try:  # a search may take a minute
        assert search(zone, matcher, "door").keys() == everybody(zone)
        assert processes.pids()["worker-0"] == frozen
    finally:
        os.kill(frozen, signal.SIGCONT)


def test_a_worker_that_was_hung_up_on_is_lost(zone, processes):
    fill(zone, 3)
    worker = next(iter(processes.members().values()))
    worker.close()
    with pytest.raises(WorkerLost):
        worker.run(Task("door", 0, "keys/door/versions/1", (), ()), 5)
    with pytest.raises(WorkerLost):
        worker.held("door", 5)


def until(true):
    for _ in range(1500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")
