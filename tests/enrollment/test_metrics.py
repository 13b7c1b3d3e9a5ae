"""What Prometheus is told of the record is what is in it."""

from __future__ import annotations

import sqlalchemy as sa

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.enrollment.metrics import RecordMetrics
from sealface.enrollment.sealer import backlog
from sealface.storage.database import RecordUnavailable
from sealface.storage.galleries import Census, Galleries
from sealface.storage.schema import open_record
from tests.conftest import person

STATES = ("open", "sealed", "erased")


def told(suite, gallery):
    """Templates open, sealed, erased; blocks, groups of the tail, backlog, key version."""

    def metric(name, **labels):
        return suite.metric("enrollment", f"sealface_{name}", gallery=gallery, **labels)

    states = [metric("templates", state=state) for state in STATES]
    others = ("blocks", "tail_groups", "sealing_backlog_templates", "gallery_key_version")
    return [*states, *(metric(name) for name in others)]


async def test_templates_are_counted_where_they_lie(suite, client, door, safe):
    capacity = door.layout.group.capacity
    assert told(suite, "door") == [0, 0, 0, 0, 0, 0, 1]
    async for _ in safe.import_many([(f"s{i}", person(i)) for i in range(50)]):
        pass
    for i in range(capacity + 1):
        await door.enroll(f"s{i}", person(i))
    assert told(suite, "door") == [capacity + 1, 0, 0, 0, 2, 0, 1]
    assert told(suite, "safe") == [0, 50, 0, 1, 0, 0, 1]
    await safe.erase("s7")
    await safe.enroll("s8", person(8))
    assert told(suite, "safe") == [1, 49, 1, 1, 1, 0, 1]  # the client renews its blocks
    await client.delete_gallery("safe")
    assert told(suite, "safe") == [None] * 7


def test_the_backlog_is_what_fills_blocks():
    layout = Layout.of("", 128, Metric.COSINE, 1.0)
    capacity = layout.best_shape(10_000).capacity
    for open_, waiting in ((0, 0), (capacity - 1, 0), (capacity, capacity), (2 * capacity + 5, 2 * capacity)):
        census = Census(sealed=10_000, open=open_, groups=1, erased=0, blocks=3)
        assert layout.best_shape(10_000 + open_).capacity == capacity
        assert backlog(layout, census) == waiting


async def test_a_gallery_that_has_not_changed_is_not_counted_again(suite, client, door, safe):
    galleries, counted = Galleries(open_record(suite.compute)), []
    census, galleries.census = galleries.census, lambda gallery: counted.append(gallery.id) or census(gallery)
    metrics = RecordMetrics(galleries)
    for act, wanted in ((None, ["door", "safe"]), (None, []), (door, ["door"]), (None, [])):
        if act is not None:
            await act.enroll("a", person(1))
        counted.clear()
        metrics()
        assert counted == wanted


async def test_while_the_record_is_away_a_scrape_says_so_and_has_the_rest(suite, door, monkeypatch):
    await door.enroll("a", person(1))

    def away(*_):
        raise RecordUnavailable("try again")

    with monkeypatch.context() as patch:
        patch.setattr(sa.Engine, "begin", away)
        assert suite.metric("enrollment", "sealface_scrape_success", part="record") == 0
        assert suite.metric("enrollment", "sealface_templates", gallery="door", state="open") is None
        labels = {"grpc_type": "unary", "grpc_service": "sealface.enrollment.v1.EnrollmentService"}
        assert suite.metric("enrollment", "grpc_server_started_total", grpc_method="Enroll", **labels) == 1
    assert suite.metric("enrollment", "sealface_scrape_success", part="record") == 1
    assert suite.metric("enrollment", "sealface_templates", gallery="door", state="open") == 1


async def test_a_gallery_under_its_second_key_version_says_so(suite, door):
    await door.enroll("a", person(1))
    await door.operations.wait(await door.rotate())
    assert told(suite, "door") == [1, 0, 0, 0, 1, 0, 2]
