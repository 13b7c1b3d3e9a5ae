import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from sealface.workers.convert import task_to_proto
from sealface.workers.pool import placed
from sealface.workers.task import Part, Task
from sealface_bench import scatter
from sealface_bench.scatter import POLICIES, Costs, Load, Plant, Simulation, Stragglers, simulate, slowest

CALM = Stragglers(sigma=0.0, slow=0.0, lost=0.0)
PLANT, COSTS = Plant(), Costs()


def passes(stragglers, plant=PLANT, searches=20_000, hedge_ms=1e9, costs=COSTS):
    return Simulation(plant, costs, stragglers).passes(np.random.default_rng(3), searches, hedge_ms)


# --- against closed forms


def test_the_mean_of_the_slowest_of_n_exponentials_is_the_harmonic_number():
    drawn = np.random.default_rng(1).exponential(1.0, (100_000, 64))
    assert slowest(drawn).mean() == pytest.approx(sum(1 / k for k in range(1, 65)), rel=0.01)  # 4.74; of one alone: 1


@pytest.mark.parametrize("workers", [1, 8, 64])
@pytest.mark.parametrize("share", [0.5, 0.99, 0.999])
def test_quantiles_of_a_search_are_those_of_the_slowest_of_n_lognormals(workers, share):
    sigma, plant = 0.4, replace(PLANT, workers=workers)
    found = np.quantile(passes(replace(CALM, sigma=sigma), plant, 100_000)["two_copies"], share)
    each = share ** (1 / workers)  # P(all <= x) = P(one <= x)^n
    exact = np.exp(sigma * NormalDist().inv_cdf(each)) * Simulation(plant, COSTS, CALM).pass_ms
    assert found == pytest.approx(exact, rel=0.03)


def test_one_slow_worker_in_a_hundred_slows_half_of_the_searches_over_64():
    found = passes(replace(CALM, slow=0.01, slow_factor=5.0), searches=50_000)["two_copies"]
    calm = Simulation(PLANT, COSTS, CALM).pass_ms
    assert (found > 2 * calm).mean() == pytest.approx(1 - 0.99**64, abs=0.01)
    assert found.max() == pytest.approx(5 * calm)


def test_searches_meet_a_loss_as_often_as_one_of_n_workers_is_lost():
    calm = Simulation(PLANT, COSTS, CALM).pass_ms
    found = passes(replace(CALM, lost=0.002, notice_ms=calm), searches=50_000)["two_copies"]
    assert (found > calm).mean() == pytest.approx(1 - 0.998**64, abs=0.005)
    soon = passes(replace(CALM, lost=0.002, notice_ms=0.0), searches=50_000)["two_copies"]
    assert (soon > calm).mean() < (found > calm).mean()  # one that is lost early costs nothing


# --- what policies do


def test_where_nothing_happens_all_policies_are_one():
    for times in passes(CALM).values():
        assert times == pytest.approx(Simulation(PLANT, COSTS, CALM).pass_ms)


def test_what_a_lost_worker_left_is_done_by_the_others_at_once():
    plant = Plant(templates=4032 * 120, workers=4, threads=1)
    simulation = Simulation(plant, Costs(expand_ms=10, block_ms=2), CALM)
    left, begin = np.array([[0.0, 30.0, 0.0, 0.0]]), np.array([[0.0, 100.0, 0.0, 0.0]])
    done = simulation.again(np.ones((1, 4)), begin, left, 2.0)
    assert done[0, 1] == 100 + 10 + 30 / 3 * 2
    assert np.isinf(done[0, [0, 2, 3]]).all()
    fetched = simulation.again(np.ones((1, 4)), begin, left, 2.0, fetch_ms=3.0)
    assert fetched[0, 1] == done[0, 1] + 30 * 3
    busy = simulation.again(np.array([[1.0, 9.0, 1.0, 1.5]]), begin, left, 2.0)
    assert busy[0, 1] == 100 + 2 * 1.5 * 30  # waits for the slowest of them, who has its own part to do, not for itself


def test_a_second_copy_saves_loading_and_does_not_help_against_a_slow_worker():
    found = passes(replace(CALM, lost=0.01), searches=5_000)
    assert np.all(found["one_copy"] >= found["two_copies"])
    assert np.quantile(found["one_copy"], 0.99) > np.quantile(found["two_copies"], 0.99)
    slow = passes(replace(CALM, slow=0.01), searches=5_000)
    assert np.array_equal(slow["one_copy"], slow["two_copies"])


def test_hedging_cuts_the_slow_ones_and_never_costs_time():
    calm = Simulation(PLANT, COSTS, CALM).pass_ms
    found = passes(replace(CALM, slow=0.01, slow_factor=10.0), hedge_ms=1.2 * calm)
    assert np.all(found["hedged"] <= found["two_copies"])
    assert np.quantile(found["two_copies"], 0.5) == pytest.approx(calm)
    assert np.quantile(found["two_copies"], 0.9) == pytest.approx(10 * calm)
    assert np.quantile(found["hedged"], 0.9) < 4 * calm
    assert found["hedged"].min() == pytest.approx(calm)


# --- what a search moves


def test_bytes_of_a_search_are_those_of_its_results_and_probes():
    load = Load.of(PLANT)
    assert load.blocks == 24_802  # of 4,032
    assert load.block_bytes == 7_864_320
    assert load.gather_bytes == 24_802 * 46_080
    assert load.decide_bytes == 24_802 * (46_080 + 4 * 4_032)
    assert load.scatter_bytes == 64 * 61_440 + 24_802 * (32 + 504)


def test_what_is_reckoned_for_a_task_is_what_its_message_takes():
    load, places = Load.of(PLANT), 388
    parts = [Part(128, 60_000 + i, bytes(32), np.ones(4_032, bool)) for i in range(places)]
    task = Task("door", 1, "keys/door/versions/1", (bytes(61_440),), tuple(parts), whole=True)
    reckoned = load.scatter_bytes / PLANT.workers
    assert task_to_proto(task).ByteSize() == pytest.approx(reckoned, rel=0.05)


def test_a_search_is_no_faster_than_the_narrowest_place():
    plant = replace(PLANT, gbit=1.0)
    found = simulate(plant, replace(COSTS, plan_ms=7.0), CALM, 100, 1)
    slowest_stream = max(Simulation(plant, COSTS, CALM).streams_ms().values())
    assert found["two_copies"]["search"]["p50"] == pytest.approx(7.0 + found["scatter_ms"] + slowest_stream)
    assert slowest_stream >= found["decide_bytes"] * 8 / 1e6


def test_planning_is_measured_with_the_code_that_plans(monkeypatch):
    asked = []
    monkeypatch.setattr(scatter, "placed", lambda *given: asked.append(given) or placed(*given))
    assert scatter.planning(replace(PLANT, templates=4_032 * 500, workers=4)) > 0
    assert {len(task.parts) for task, *_ in asked} == {500}
    assert {len(members) for *_, members in asked} == {4}


def test_a_seed_repeats_a_simulation_and_json_holds_it():
    found = simulate(PLANT, COSTS, Stragglers(), 6_000, 5)
    assert found == simulate(PLANT, COSTS, Stragglers(), 6_000, 5)
    assert found != simulate(PLANT, COSTS, Stragglers(), 6_000, 6)
    assert set(json.loads(json.dumps(found))) >= {*POLICIES, "hedge_ms", "sigma", "gather_bytes"}
    for policy in POLICIES:
        values = found[policy]["pass"]
        assert values["p50"] <= values["p99"] <= values["p999"]


def test_the_cross_check_would_see_that_the_slowest_was_not_taken(monkeypatch):
    monkeypatch.setattr(scatter, "slowest", lambda times: times.mean(axis=1))
    with pytest.raises(AssertionError):
        test_quantiles_of_a_search_are_those_of_the_slowest_of_n_lognormals(64, 0.99)
