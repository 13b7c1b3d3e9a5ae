"""Metrics and logs of real processes: as docs/metrics.md has them, and with nothing of a face in them."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sealface.cli.processes import SERVICES, LocalServices, local_services
from sealface_client import Client
from tests.system.conftest import POLICY, People, Vector, cosine, logs, revived

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
SUBJECTS = ("Subject.7f3a9c51-e2d0", "somebody-else", "imported-0", "imported-1", "imported-2")
OF_ALL = "all"
FIELDS = {
    "call": {"method", "code", "ms", "request_id", "reason"},
    "sealed": {"templates", "columns", "replaced", "stored"},
    "renewed": {"templates", "cleared", "stored"},
}
ALWAYS = {"event", "level", "service", "timestamp"}
LABELS = {
    "gallery": r"managed|held",
    "key": r"managed|held|",
    "worker": r"worker-[0-9]+",
    "state": r"[a-z_]+",
    "operation": r"verify|identify",
    "outcome": r"match|no_match|refused",
    "reason": r"[a-z_]+",
    "alarm": r"[a-z_]+",
    "part": r"record|workers|keys",
    "grpc_type": r"unary|client_stream|server_stream|bidi_stream",
    "grpc_service": r"sealface\.[a-z]+\.v1\.[A-Za-z]+|grpc\.[A-Za-z0-9.]+",
    "grpc_method": r"[A-Za-z]+",
    "grpc_code": r"[A-Za-z]+",
    "le": r"[0-9.]+|\+Inf",
}


@dataclass(frozen=True)
class Lived:
    """Services that faces went through, and what nobody may be told of them."""

    services: LocalServices
    faces: list[Vector]
    distances: list[float]

    def private(self) -> dict[str, set[str]]:
        """What no line may hold, by what it is, as it would be written."""
        embeddings = [form for face in self.faces for form in (face, face / np.linalg.norm(face))]
        numbers = {f"{abs(x):.7f}"[:8] for form in embeddings for x in form.tolist()}
        scores = {f"{x:.7f}"[:8] for distance in self.distances for x in (distance, 1 - distance)}
        raw = [form.astype(kind).tobytes()[:24] for form in embeddings for kind in (np.float64, np.float32)]
        encoded = {
            text for data in (*raw, *self.ciphertexts()) for text in (data.hex(), base64.b64encode(data).decode())
        }
        return {"embedding": numbers, "score": scores, "subject": {*SUBJECTS}, "bytes": encoded}

    def ciphertexts(self) -> list[bytes]:
        """Pieces of all that is stored; whole groups of three bytes, so that base64 has them wherever they begin."""
        connection = sqlite3.connect(self.services.state / "compute" / "record.db")
        try:
            tables = ("template_ciphertexts", "block_ciphertexts")
            rows = [row[0] for name in tables for row in connection.execute(f"SELECT ciphertext FROM {name}")]  # noqa: S608
        finally:
            connection.close()
        assert rows
        return [row[at : at + 24] for row in rows for at in (0, 300, 3000, 30000)]

    def leaked(self, text: str) -> set[str]:
        """What of it a text holds."""
        return {what for what, found in self.private().items() for one in found if one in text}


def scrape(services: LocalServices, name: str, accept: str = "") -> str:
    request = urllib.request.Request(f"http://{services.metrics_addresses[name]}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        text: str = answer.read().decode()
    return text


def families(services: LocalServices, name: str) -> list[Metric]:
    return list(parse_text(scrape(services, name)))


@pytest.fixture(scope="module")
def lived() -> Iterator[Lived]:
    people = People(11)
    face, stranger, *others = (people.somebody() for _ in range(5))
    again = people.again(face)
    with local_services(metrics="127.0.0.1:0") as services, Client.connect(services.state) as client:
        distances = [cosine(face, again), cosine(face, stranger)]
        for gallery in (
            client.create_gallery("managed", policy=POLICY),
            client.create_gallery("held", policy=POLICY, client_held=True),
        ):
            list(gallery.import_many(list(zip(SUBJECTS[2:], others, strict=True))))
            gallery.enroll(SUBJECTS[0], face)
            gallery.enroll(SUBJECTS[1], others[0])
            for _ in range(20):  # so many that decisions are told
                assert gallery.verify(SUBJECTS[0], again).match
                assert not gallery.verify(SUBJECTS[0], stranger).match
                assert gallery.identify(again).match
                assert not gallery.identify(stranger).match
            assert [found.match for found in gallery.identify_many([again, stranger])] == [True, False]
            gallery.erase(SUBJECTS[1])
            gallery.erase(SUBJECTS[2])
            if gallery.info.name == "galleries/held":
                distances += [gallery.distance(SUBJECTS[0], probe) for probe in (again, stranger)]
        yield Lived(services, [face, again, stranger, *others], distances)


# --- the table in docs/metrics.md


def documented() -> dict[str, tuple[str, set[str], set[str]]]:
    """Type, labels and services by name."""
    rows = re.findall(
        r"^\| `([a-z_]+)` \| (\w+) \| ([a-z_, ]*) ?\| ([a-z, ]+) \| [^|]+ \|$", DOCS.read_text(), re.MULTILINE
    )
    assert len({name for name, *_ in rows}) == len(rows) > 30

    def split(words: str) -> set[str]:
        return {word.strip() for word in words.split(",") if word.strip()}

    return {name: (kind, split(labels), split(zones)) for name, kind, labels, zones in rows}


def test_what_is_exported_is_documented_and_the_other_way_round(lived: Lived) -> None:
    table = documented()
    for service in SERVICES:
        wanted = {name: kind for name, (kind, _, zones) in table.items() if zones & {service, OF_ALL}}
        found = families(lived.services, service)
        exported = {family.name + ("_total" if family.type == "counter" else ""): family for family in found}
        assert {name: family.type for name, family in exported.items()} == wanted, service
        for name, family in exported.items():
            labels = [set(sample.labels) - {"le"} for sample in family.samples]
            assert all(one == table[name][1] for one in labels), name
            assert labels or name.startswith("sealface_cache_"), name  # there is no Redis here
            assert family.documentation


def test_the_zone_of_every_metric_is_one_there_is(lived: Lived) -> None:
    assert {zone for _, _, zones in documented().values() for zone in zones} == {OF_ALL, *SERVICES}


def test_openmetrics_is_served_as_well(lived: Lived) -> None:
    for service in SERVICES:
        text = scrape(lived.services, service, "application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        plain = {family.name for family in families(lived.services, service)}
        assert {family.name for family in parse_openmetrics(text)} == plain


# --- what they say


def sample(lived: Lived, service: str, name: str, **labels: str) -> float:
    (found,) = [
        one.value
        for family in families(lived.services, service)
        for one in family.samples
        if (one.name, one.labels) == (name, labels)
    ]
    return found


def test_they_say_what_has_happened(lived: Lived) -> None:
    assert sample(lived, "enrollment", "sealface_templates", gallery="managed", state="open") == 1
    assert sample(lived, "enrollment", "sealface_templates", gallery="held", state="erased") == 1
    scored = sample(lived, "matching", "sealface_scored_templates_total", gallery="managed", operation="identify")
    assert scored == 42 * 5
    worker = {"worker": "worker-0"}
    assert sample(lived, "matching", "sealface_worker_shards", **worker) == 2
    assert sample(lived, "matching", "sealface_worker_memory_bytes", gallery="managed", **worker) > 61_440
    told = {
        outcome: sample(lived, "keys", "sealface_decisions_total", key="managed", operation="verify", outcome=outcome)
        for outcome in ("match", "no_match", "refused")
    }
    assert told == {"match": 16, "no_match": 16, "refused": 0}  # of 40


def test_decisions_are_told_in_the_key_zone_alone(lived: Lived) -> None:
    words = ("decision", "match", "refus", "alarm", "hit_rate")
    for service in ("enrollment", "matching"):
        for family in families(lived.services, service):
            if family.name.startswith("sealface_"):
                told = [family.name, *(value for one in family.samples for value in one.labels.values())]
                assert not [word for word in words for text in told if word in text], family.name


def test_a_service_that_was_started_again_tells_at_the_same_address(lived: Lived) -> None:
    before = dict(lived.services.metrics_addresses)
    with revived(lived.services, "enrollment"), pytest.raises(OSError):  # noqa: PT011
        scrape(lived.services, "enrollment")
    assert lived.services.metrics_addresses == before
    assert sample(lived, "enrollment", "sealface_templates", gallery="managed", state="open") == 1


# --- what they do not


def test_the_search_finds_what_is_there(lived: Lived) -> None:
    """Otherwise finding nothing would prove nothing."""
    face = lived.faces[0]
    for what, text in {
        "embedding": f'{{"x": [{", ".join(map(str, face.tolist()))}]}}',
        "score": f"distance={lived.distances[0]}",
        "subject": f"subjects/{SUBJECTS[1]}",
        "bytes": f"b'{base64.b64encode(face.tobytes()).decode()}'",
    }.items():
        assert what in lived.leaked(text), what
    assert "bytes" in lived.leaked(lived.ciphertexts()[1].hex())


def test_no_metric_holds_anything_of_a_face(lived: Lived) -> None:
    for service in SERVICES:
        for accept in ("", "application/openmetrics-text; version=1.0.0"):
            text = scrape(lived.services, service, accept)
            # numbers that stand for themselves may look like anything: seconds, bytes
            named = re.sub(r"(?m)^([^#].*) \S+$", r"\1", text)
            assert lived.leaked(named) == set(), service
            assert not lived.private()["subject"] & set(re.findall(r'"([^"]*)"', text))
        for family in families(lived.services, service):
            for one in family.samples:
                for label, value in one.labels.items():
                    assert re.fullmatch(LABELS[label], value), (one.name, label, value)


def lines(lived: Lived) -> dict[str, list[dict[str, Any]]]:
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in logs(lived.services).items()}


def test_no_line_of_a_log_holds_anything_of_a_face(lived: Lived) -> None:
    for service, text in logs(lived.services).items():
        assert lived.leaked(re.sub(r'"(ms|timestamp)": [^,}]+', "", text)) == set(), service
    for service, found in lines(lived).items():
        assert found, service
        for line in found:
            told = line.keys() - ALWAYS
            assert told <= FIELDS.get(line["event"], {"message", "reason", "work", "error", "worker"}), line
            # no list of slots, no ciphertext: short words and counts
            assert all(isinstance(value, str | int | float | bool) and len(str(value)) < 200 for value in line.values())


def test_a_call_has_one_id_in_all_services(lived: Lived) -> None:
    found = lines(lived)
    calls = [line for of_service in found.values() for line in of_service if line["event"] == "call"]
    assert all(re.fullmatch("[0-9a-f]{32}", line["request_id"]) for line in calls)

    def ids(service: str, *methods: str) -> list[str]:
        of_service = [line for line in found[service] if line["event"] == "call"]
        return [line["request_id"] for line in of_service if line["method"].rpartition("/")[2] in methods]

    asked = ids("matching", "Verify", "Identify", "BatchIdentify")
    assert len(set(asked)) == len(asked) == 2 * 81 + 2
    decided = ids("keys", "Decide")
    assert len(decided) == 82
    assert set(decided) <= set(asked)
    assert set(asked) <= set(ids("matching", "Score"))  # of workers, which share matching's log
    fetched = ids("keys", "GetMaterial")
    assert fetched
    assert set(fetched) & set(ids("enrollment", "CreateGallery"))


def test_a_worker_that_died_is_told_again_when_it_is_back(lived: Lived) -> None:
    """Last, for what it held is loaded anew."""
    (worker,) = lived.services.worker_pids()
    os.kill(worker, signal.SIGKILL)
    assert sample(lived, "matching", "sealface_scrape_success", part="workers") == 1
    while lived.services.worker_pids() in ([], [worker]) or 'worker_up{worker="worker-0"} 1.0' not in scrape(
        lived.services, "matching"
    ):
        time.sleep(0.1)  # the test's own time limit ends the wait
    assert sample(lived, "matching", "sealface_worker_memory_limit_bytes", worker="worker-0") > 0
