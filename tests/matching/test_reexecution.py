"""An auditor computes searches again: the same bits from the same probe, seed and record, and from nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from sealface.matching.matcher import Matcher
from sealface.matching.reexecution import Decided, Finding, Reexecution
from sealface.matching.transcripts import Transcripts
from sealface.protocol.scores import result_digest, results_digest
from sealface.workers.embedded import Embedded
from sealface.workers.pool import WorkerPool
from sealface.workers.worker import Worker
from tests.conftest import both_schemes, person
from tests.matching.test_matcher import Zone, distance
from tests.workers.test_pool import Several


class Audited(Zone):
    """A zone whose searches can be computed again, by workers that each hold some of the blocks."""

    def __init__(self, folder, scheme, workers):
        super().__init__(folder, scheme)
        self.create("door")
        self.home = Several(*(Worker(self.galleries, scheme) for _ in range(workers)))
        self.matching = Matcher(self.galleries, scheme, WorkerPool(self.home), repeatable=True)
        self.transcripts = Transcripts(folder / "transcripts.db")
        self.auditor = Reexecution(self.galleries, scheme, self.transcripts)

    def import_deep(self, *numbers):
        """A block of the deepest shape, where others are shallow."""
        shape = self.layout.sealed_shapes[-1]
        self.count += 1
        data = self.made["door"][0].block(shape, np.stack([person(number) for number in numbers]))
        arguments = ([f"d{n}" for n in numbers], shape.columns, shape.capacity, data, f"r{self.count}")
        self.record.import_block("door", "keys/door/versions/1", *arguments)

    def decide(self, *probes, claimed=(), request="r"):
        """Search, keep the transcripts, and say what the key service would log of the results it got."""
        search = self.matching.verify("door", probes[0], claimed) if claimed else self.matching.identify("door", probes)
        tiles = list(search.results())
        decided = []
        for number, probe in enumerate(probes):
            self.transcripts.keep(f"{request}{number}", search.of(number))
            digests = [result_digest(result) for tile in tiles for result in tile[number]]
            named = hashlib.sha256(probe.ciphertext).digest()
            decided.append(Decided("door", f"{request}{number}", named, results_digest(digests)))
        return tiles, decided


@pytest.fixture(params=[1, 3])
def zone(tmp_path, scheme, request):
    made = Audited(tmp_path, scheme, request.param)
    made.enroll("door", 1, 2)
    for first in range(10, 60, 10):
        made.import_block("door", first, first + 1)
    made.import_deep(70, 71)
    return made


@both_schemes
def test_searches_are_computed_again_bit_for_bit(zone):
    probes = [zone.probe("door", 1), zone.probe("door", 70)]
    tiles, decided = zone.decide(*probes)
    assert zone.opened("door", tiles)[1] == distance(1, 1)
    assert [zone.auditor.check(one) for one in decided] == [Finding.EQUAL] * 2
    for claimed in ([1, 2], [3], [1, 4]):
        _, (one,) = zone.decide(zone.probe("door", 2), claimed=claimed)
        assert zone.auditor.check(one) is Finding.EQUAL


@both_schemes
def test_no_two_searches_are_made_with_the_same_randomness(zone):
    probe = zone.probe("door", 1)
    _, (first,) = zone.decide(probe, request="a")
    _, (second,) = zone.decide(probe, request="b")
    assert first.results != second.results
    seen = [data for _, task in zone.home.tasks for data in (task.seed,)]
    assert len(set(seen)) == 2  # one each, whichever workers took part


@both_schemes
def test_a_forged_score_is_found(zone):
    """Compute encrypts a score of its own, as it can, and has it decided on."""
    probe = zone.probe("door", 500)
    tiles, (honest,) = zone.decide(probe)
    results = [result for tile in tiles for result in tile[0]]
    encryptor, evaluator, _ = zone.made["door"]
    group = zone.layout.group
    block = evaluator.assemble({0: evaluator.admit(encryptor.template(person(500)))})  # is near the probe, of course
    leaves = evaluator.expand([evaluator.admit_probe(probe.ciphertext)], {group})[group]
    ((forged,),) = evaluator.score([block], leaves, [np.arange(group.capacity) == 0])
    at = next(i for i, result in enumerate(results) if result.columns == 1)
    results[at] = replace(results[at], ciphertext=forged)
    assert zone.opened("door", [[results]])[1] == pytest.approx(0, abs=5e-4)  # slot 1 matches a stranger
    decided = replace(honest, results=results_digest(map(result_digest, results)))
    assert zone.auditor.check(decided) is Finding.DIFFERENT
    assert zone.auditor.check(honest) is Finding.EQUAL


@both_schemes
def test_another_probe_than_the_signed_one_is_found(zone):
    _, (mine,) = zone.decide(zone.probe("door", 1))
    _, (other,) = zone.decide(zone.probe("door", 2))  # under the same request id
    assert zone.auditor.check(replace(other, probe_digest=mine.probe_digest)) is Finding.DIFFERENT
    assert zone.auditor.check(replace(other, request_id="none")) is Finding.MISSING


@both_schemes
def test_a_seed_or_a_block_that_is_not_the_one_used_is_found(zone):
    _, (decided,) = zone.decide(zone.probe("door", 1))
    kept = zone.transcripts.find("door", "r0")
    for wrong in (
        replace(kept, seed=bytes(32)),
        replace(kept, seed=b""),
        replace(kept, parts=kept.parts[1:]),
        replace(kept, probes=(kept.probes[0][:-1],)),
        replace(kept, probes=()),
    ):
        zone.transcripts.keep("r0", wrong)
        assert zone.auditor.check(decided) is Finding.DIFFERENT
    zone.transcripts.keep("r0", kept)
    assert zone.auditor.check(decided) is Finding.EQUAL


@both_schemes
def test_what_was_erased_since_cannot_be_said(zone):
    _, (decided,) = zone.decide(zone.probe("door", 1))
    zone.enroll("door", 3)
    assert zone.auditor.check(decided) is Finding.EQUAL  # what is new was not searched
    zone.record.erase_subject("door", "s1")
    assert zone.auditor.check(decided) is Finding.CHANGED
    zone.record.delete_gallery("door")
    assert zone.auditor.check(decided) is Finding.CHANGED


def test_transcripts_are_dropped_when_they_are_old(tmp_path, scheme):
    zone = Audited(tmp_path, scheme, 1)
    zone.enroll("door", 1)
    zone.decide(zone.probe("door", 1), request="old")
    later = Transcripts(tmp_path / "transcripts.db", kept_s=-1)
    task = zone.transcripts.find("door", "old0")
    later.keep("new", task)
    assert later.find("door", "old0") is None
    assert later.find("door", "new") is not None


def test_searches_that_nobody_audits_come_from_no_seed(tmp_path, scheme):
    zone = Audited(tmp_path, scheme, 1)
    zone.enroll("door", 1)
    plain = Matcher(zone.galleries, scheme, WorkerPool(Embedded(Worker(zone.galleries, scheme))))
    assert plain.identify("door", [zone.probe("door", 1)]).of(0) is None
