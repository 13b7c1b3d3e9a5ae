"""What Prometheus is told of searches and workers: what was done, and nothing of what was found."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from sealface.errors import SealfaceError
from sealface.matching.matcher import Matcher
from sealface.matching.metrics import SearchMetrics, WorkerMetrics
from sealface.workers.pool import WorkerLost, WorkerPool
from sealface.workers.usage import Cached, Shard, Usage
from tests.conftest import person
from tests.workers.test_pool import Several, fill, several, zone  # noqa: F401

PEOPLE = 9


@pytest.fixture
async def peopled(door):
    for number in range(PEOPLE):
        await door.enroll(f"s{number}", person(number))
    return door


def scored(suite, operation, gallery="door"):
    return suite.metric("matching", "sealface_scored_templates_total", gallery=gallery, operation=operation)


def passes(suite, operation):
    names = ("sealface_expansion_seconds_count", "sealface_scoring_seconds_count")
    return {suite.metric("matching", name, operation=operation) for name in names}


async def test_a_search_counts_every_template_and_a_verification_those_claimed(suite, peopled):
    assert (passes(suite, "identify"), passes(suite, "verify")) == ({0}, {0})
    await peopled.identify(person(1))
    assert (scored(suite, "identify"), passes(suite, "identify")) == (PEOPLE, {1})
    assert scored(suite, "verify") is None
    await peopled.enroll("s1", person(1))
    await peopled.verify("s1", person(1))
    assert (scored(suite, "verify"), passes(suite, "verify")) == (2, {1})
    await peopled.erase("s2")
    await peopled.identify(person(1))
    assert (scored(suite, "identify"), passes(suite, "identify")) == (PEOPLE + PEOPLE, {2})
    assert suite.metric("matching", "sealface_share_searched_ratio_bucket", le="0.999") == 0
    assert suite.metric("matching", "sealface_share_searched_ratio_bucket", le="1.0") == 2


async def test_searches_that_share_a_pass_count_their_templates_each(suite, peopled, client):
    found = [one async for one in peopled.identify_many([person(n) for n in range(5)])]
    assert len(found) == 5
    assert scored(suite, "identify") == 5 * PEOPLE
    (count,) = passes(suite, "identify")
    assert 1 <= count <= 5


async def test_a_search_of_a_client_held_gallery_counts_as_well(suite, safe):
    await safe.enroll("a", person(1))
    await safe.identify(person(1))
    assert scored(suite, "identify", "safe") == 1


async def test_a_hit_and_a_miss_are_told_alike(suite, peopled):
    async def told(probe):
        before = suite.metrics("matching")
        await peopled.identify(probe)
        await peopled.verify("s1", probe)
        after = suite.metrics("matching")
        assert before.keys() <= after.keys()
        timed = ("_bucket", "_sum")  # how long it took, which a machine does not repeat
        return {
            name: value - before.get(name, 0.0)
            for name, value in after.items()
            if not name[0].endswith(timed) or name[0].startswith("sealface_share")
        }

    await told(person(3))
    hit, miss = await told(person(1)), await told(person(700))
    assert hit == miss
    assert hit["sealface_scored_templates_total", "door", "identify"] == PEOPLE


def test_a_share_of_a_gallery_is_told_as_such(zone, scheme):  # noqa: F811
    home, _ = several(zone, 1)
    registry = CollectorRegistry()
    matcher = Matcher(zone.galleries, scheme, WorkerPool(home), done=SearchMetrics(registry).searched)
    fill(zone, 6)
    probe = zone.probe("door", 1)
    home.dies_after["w0"] = 1
    search = matcher.identify("door", [probe], 1.0, partial=True)
    assert list(search.results())
    assert 0 < search.share < 1
    total = registry.get_sample_value("sealface_scored_templates_total", {"gallery": "door", "operation": "identify"})
    assert total == round(search.share * 18)
    assert registry.get_sample_value("sealface_share_searched_ratio_bucket", {"le": "0.999"}) == 1
    assert registry.get_sample_value("sealface_share_searched_ratio_sum") == search.share


def test_a_search_that_is_given_up_is_none(zone, scheme):  # noqa: F811
    home, _ = several(zone, 1)
    registry = CollectorRegistry()
    matcher = Matcher(zone.galleries, scheme, WorkerPool(home), done=SearchMetrics(registry).searched)
    fill(zone, 6)
    results = matcher.identify("door", [zone.probe("door", 1)]).results()
    next(results)
    results.close()
    home.dies_after["w0"] = 1
    with pytest.raises(SealfaceError):
        list(matcher.identify("door", [zone.probe("door", 1)], 0.5).results())
    assert registry.get_sample_value("sealface_share_searched_ratio_count") == 0


# --- workers


async def test_what_the_worker_in_the_process_holds_is_told(suite, peopled, safe):
    await safe.enroll("a", person(1))
    await peopled.identify(person(1))
    await safe.identify(person(1))

    def told(name, **labels):
        return suite.metric("matching", f"sealface_worker_{name}", worker="embedded", **labels)

    assert told("up") == 1
    assert told("shards") == 2
    assert told("memory_limit_bytes") == suite.memory
    assert told("blocks", gallery="door") == 1
    assert told("memory_bytes", gallery="door") == told("memory_bytes", gallery="safe") > 0
    assert suite.metric("matching", "sealface_cache_hits_total", worker="embedded") is None  # there is no cache


def test_a_worker_that_is_silent_is_down_and_the_others_are_told():
    class Home:
        def members(self):
            return {"w0": self, "w1": Silent()}

        def usage(self, timeout_s):
            return Usage(100, (Shard("door", 60, 2), Shard("safe", 30, 1)), Cached(5, 3, 1, 2))

    class Silent:
        def usage(self, timeout_s):
            raise WorkerLost

    found = {
        (sample.name.removeprefix("sealface_"), *sample.labels.values()): sample.value
        for family in WorkerMetrics(WorkerPool(Home()))()
        for sample in family.samples
    }
    assert found == {
        ("worker_up", "w0"): 1,
        ("worker_up", "w1"): 0,
        ("worker_memory_limit_bytes", "w0"): 100,
        ("worker_shards", "w0"): 2,
        ("worker_memory_bytes", "w0", "door"): 60,
        ("worker_memory_bytes", "w0", "safe"): 30,
        ("worker_blocks", "w0", "door"): 2,
        ("worker_blocks", "w0", "safe"): 1,
        ("cache_hits_total", "w0"): 5,
        ("cache_misses_total", "w0"): 3,
        ("cache_healed_total", "w0"): 1,
        ("cache_errors_total", "w0"): 2,
    }
