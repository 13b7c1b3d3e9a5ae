"""Which blocks are scored for a probe, and which galleries are in memory."""

from __future__ import annotations

import numpy as np
import pytest

from sealface.cipher.evaluator import block_memory
from sealface.cipher.wire import MalformedCiphertext
from sealface.enrollment.record import Record
from sealface.enrollment.restore import restore
from sealface.matching.matcher import Matcher, Probe, SlotNotFound
from sealface.matching.shard import Shard
from sealface.protocol.scores import open_results
from sealface.storage.backup import back_up, verify
from sealface.storage.evaluators import WrongKeyVersion, WrongParameterSet
from sealface.storage.galleries import Galleries, GalleryNotFound
from sealface.workers.embedded import Embedded
from sealface.workers.pool import WorkerPool
from sealface.workers.store import ShardTooLarge
from sealface.workers.worker import Worker
from tests.conftest import both_schemes, person
from tests.storage.conftest import new_gallery, open_quickly


class Zone:
    """A record of several galleries, and a matcher over it."""

    def __init__(self, folder, scheme):
        engine = open_quickly(folder / "record.db")
        self.engine = engine
        self.record, self.galleries, self.scheme = Record(engine), Galleries(engine), scheme
        self.layout = new_gallery().layout
        self.made = {}
        self.count = 0

    def create(self, name):
        material = self.scheme.generate(self.layout.parameters)
        new = new_gallery(name, None, material.public, material.evaluation, recognition=b"")
        self.record.create_gallery(new)
        self.made[name] = (
            self.scheme.encryptor(self.layout, material.public),
            self.scheme.evaluator(self.layout, material.public, material.evaluation),
            self.scheme.opener(self.layout, material.secret),
        )

    def enroll(self, name, *numbers):
        encryptor, evaluator, _ = self.made[name]
        for number in numbers:
            self.count += 1
            data = evaluator.admit(encryptor.template(person(number)))
            self.record.enroll(name, f"keys/{name}/versions/1", f"s{number}", data, f"r{self.count}")

    def import_block(self, name, *numbers):
        shape = self.layout.sealed_shapes[0]
        self.count += 1
        data = self.made[name][0].block(shape, np.stack([person(number) for number in numbers]))
        subjects = [f"s{number}" for number in numbers]
        arguments = (subjects, shape.columns, shape.capacity, data, f"r{self.count}")
        self.record.import_block(name, f"keys/{name}/versions/1", *arguments)

    def matcher(self, **options):
        self.worker = Worker(self.galleries, self.scheme, **options)
        return Matcher(self.galleries, self.scheme, WorkerPool(Embedded(self.worker)))

    def probe(self, name, number, **changed):
        fields = {"key_version": f"keys/{name}/versions/1", "parameter_set": self.layout.parameters.name}
        return Probe(self.made[name][0].probe(person(number)), **fields | changed)

    def opened(self, name, tiles, number=0):
        """Slot -> distance of one probe of a search's results; every slot once."""
        results = [result for tile in tiles for result in tile[number]]
        slots, distances = open_results(self.made[name][2], self.layout, results, dithered=False)
        assert len(set(slots.tolist())) == slots.size
        return dict(zip(slots.tolist(), distances.tolist(), strict=True))


@pytest.fixture
def zone(tmp_path, scheme):
    made = Zone(tmp_path, scheme)
    made.create("door")
    return made


@pytest.fixture
def matcher(zone):
    return zone.matcher()


def distance(one, other):
    return pytest.approx(1 - float(person(one) @ person(other)), abs=5e-4)


@both_schemes
def test_a_search_scores_every_template_for_every_probe(zone, matcher):
    zone.enroll("door", 1, 2)
    zone.import_block("door", 3, 4, 1)
    search = matcher.identify("door", [zone.probe("door", 1), zone.probe("door", 3)])
    assert (search.epoch, search.links.tolist()) == (3, [[5, 1]])
    tiles = list(search.results())
    people = {1: 1, 2: 2, 3: 3, 4: 4, 5: 1}
    for number, probe in enumerate((1, 3)):
        found = zone.opened("door", tiles, number)
        assert found == {slot: distance(who, probe) for slot, who in people.items()}


@both_schemes
def test_a_verification_scores_what_is_claimed_and_nothing_else(zone, matcher):
    zone.enroll("door", 1, 2)
    zone.import_block("door", 3, 4, 1)
    zone.import_block("door", 5)
    for claimed in ([1], [1, 2], [4], [5, 1], [6, 3, 5], [1, 2, 3, 4, 5, 6]):
        search = matcher.verify("door", zone.probe("door", 1), claimed)
        results = [result for tile in search.results() for result in tile[0]]
        slots = [slot for result in results for slot in result.slots.tolist() if slot]
        assert sorted(slots) == sorted(claimed)
        assert search.links.size == 0


def test_who_names_other_positions_of_a_verification_opens_nothing_of_them(zone, matcher):
    zone.import_block("door", 3, 4, 1, 5)
    search = matcher.verify("door", zone.probe("door", 1), [2])
    [[[result]]] = list(search.results())
    opened = zone.made["door"][2].open(zone.layout.shape(result.columns), [result.ciphertext]).scores[0]
    scores = [float(person(number) @ person(1)) for number in (3, 4, 1, 5)]
    assert [abs(found - score) < 1e-9 for found, score in zip(opened[:4], scores, strict=True)] == [0, 1, 0, 0]


def test_a_verification_of_templates_with_ciphertexts_needs_no_gallery_in_memory(zone, matcher, monkeypatch):
    zone.enroll("door", *range(1, 41))
    zone.import_block("door", 50)
    refreshed = []
    refresh = Shard.refresh
    monkeypatch.setattr(Shard, "refresh", lambda self: refreshed.append(1) or refresh(self))
    assert zone.opened("door", matcher.verify("door", zone.probe("door", 2), [2, 35]).results()).keys() == {2, 35}
    assert refreshed == []
    # sealed ones keep theirs
    assert zone.opened("door", matcher.verify("door", zone.probe("door", 2), [41]).results()).keys() == {41}
    assert refreshed == [1]


def test_more_claims_than_a_group_holds(zone, matcher, monkeypatch):
    zone.enroll("door", *range(1, 71))
    claimed = list(range(3, 70))
    found = zone.opened("door", matcher.verify("door", zone.probe("door", 5), claimed).results())
    assert found == {slot: distance(slot, 5) for slot in claimed}


@pytest.mark.parametrize("claimed", [[3], [1, 3], [2, 9], [0], [2**32 - 1]])
def test_a_slot_that_is_not_there_is_not_found(zone, matcher, claimed):
    zone.enroll("door", 1)
    zone.import_block("door", 2, 3)
    zone.record.erase_subject("door", "s3")
    with pytest.raises(SlotNotFound):
        matcher.verify("door", zone.probe("door", 1), claimed)


def test_a_slot_that_is_erased_while_its_block_is_looked_for_is_not_found(zone, matcher, monkeypatch):
    zone.import_block("door", 1, 2)
    homes = zone.galleries.homes

    def then_erased(*arguments):
        found = homes(*arguments)
        zone.record.erase_subject("door", "s2")
        return found

    monkeypatch.setattr(zone.galleries, "homes", then_erased)
    with pytest.raises(SlotNotFound):
        matcher.verify("door", zone.probe("door", 1), [2])


def test_one_wrong_probe_of_several_is_refused_before_anything_is_scored(zone, matcher):
    zone.enroll("door", 1)
    good = zone.probe("door", 1)
    for wrong, error in (
        (Probe(b"x", good.key_version, good.parameter_set), MalformedCiphertext),
        (zone.probe("door", 1, key_version="keys/door/versions/2"), WrongKeyVersion),
        (zone.probe("door", 1, parameter_set="ckks-n8192-v1"), WrongParameterSet),
    ):
        for probes in ([wrong], [good, wrong], [wrong, good]):
            with pytest.raises(error):
                matcher.identify("door", probes)
        with pytest.raises(error):
            matcher.verify("door", wrong, [1])
    assert zone.opened("door", matcher.identify("door", [good]).results()).keys() == {1}


def test_a_search_tells_what_it_took_when_it_is_done(zone, matcher):
    zone.enroll("door", 1)
    search = matcher.identify("door", [zone.probe("door", 1)])
    assert search.timing.pass_ms == 0
    list(search.results())
    assert min(search.timing.expand_ms, search.timing.multiply_ms, search.timing.pass_ms) > 0


def test_zeros_are_wanted_for_as_many_results_as_a_search_has(zone, matcher, monkeypatch):
    wanted = []
    monkeypatch.setattr(zone.worker.reserve, "want", lambda evaluator, results: wanted.append(results))
    zone.enroll("door", 1)
    zone.import_block("door", 2)
    for search in (
        matcher.identify("door", [zone.probe("door", 1)]),
        matcher.identify("door", [zone.probe("door", 1)] * 3),
        matcher.verify("door", zone.probe("door", 1), [1]),
    ):
        list(search.results())
    assert wanted == [2, 6, 1]


def test_a_block_that_is_replaced_after_it_was_looked_for_is_looked_for_again(zone, matcher, monkeypatch):
    zone.enroll("door", 1, 2)
    begin, moved = zone.worker.begin, []

    def begun(task):
        if not moved:
            moved.append(zone.record.erase_subject("door", "s2"))
        return begin(task)

    monkeypatch.setattr(zone.worker, "begin", begun)
    assert search(zone, matcher, "door").keys() == {1}
    assert moved == [(1, 3)]


def test_what_is_erased_leaves_memory_without_a_search(zone, matcher):
    zone.enroll("door", *range(1, 40))
    search(zone, matcher, "door")
    held = zone.worker.store.nbytes
    assert matcher.stale() == []
    for number in range(1, 32):
        zone.record.erase_subject("door", f"s{number}")
    assert matcher.stale() == ["door"]
    matcher.hold("door")
    assert matcher.stale() == []
    assert zone.worker.store.nbytes == held // 2
    zone.record.delete_gallery("door")
    assert matcher.stale() == ["door"]
    with pytest.raises(GalleryNotFound):
        matcher.hold("door")
    assert (zone.worker.store.nbytes, matcher.stale()) == (0, [])


# --- memory


class Loads:
    """Which galleries' templates are read."""

    def __init__(self, galleries, monkeypatch):
        self.read = []
        ciphertexts = galleries.ciphertexts

        def noted(gallery_id, slots, key_version):
            self.read.append(gallery_id)
            return ciphertexts(gallery_id, slots, key_version)

        monkeypatch.setattr(galleries, "ciphertexts", noted)

    def taken(self):
        found, self.read = self.read, []
        return found


def search(zone, matcher, name):
    return zone.opened(name, matcher.identify(name, [zone.probe(name, 1)]).results())


def test_the_gallery_not_searched_for_longest_makes_room(zone, monkeypatch):
    group = block_memory(zone.layout.group)
    matcher = zone.matcher(memory=2 * group)
    for name in ("one", "two", "three"):
        zone.create(name)
        zone.enroll(name, 1)
    loads = Loads(zone.galleries, monkeypatch)
    for name in ("one", "two", "one", "two"):
        assert len(search(zone, matcher, name)) == 1
    assert loads.taken() == ["one", "two"]
    search(zone, matcher, "one")
    search(zone, matcher, "three")  # two goes
    search(zone, matcher, "one")
    assert loads.taken() == ["three"]
    search(zone, matcher, "two")  # three goes
    search(zone, matcher, "one")
    assert loads.taken() == ["two"]
    assert len(search(zone, matcher, "three")) == 1


def test_a_gallery_that_does_not_fit_drives_no_other_out(zone, monkeypatch):
    group = block_memory(zone.layout.group)
    matcher = zone.matcher(memory=2 * group)
    for name in ("one", "two", "large"):
        zone.create(name)
        zone.enroll(name, 1)
    zone.import_block("large", 2)
    for name in ("one", "two"):
        search(zone, matcher, name)
    loads = Loads(zone.galleries, monkeypatch)
    for _ in range(2):
        with pytest.raises(ShardTooLarge):
            search(zone, matcher, "large")
        for name in ("one", "two"):
            search(zone, matcher, name)
    assert loads.taken() == []


def test_a_deleted_gallery_is_not_kept(zone, matcher):
    zone.enroll("door", 1)
    search(zone, matcher, "door")
    assert zone.worker.store.nbytes > 0
    zone.record.delete_gallery("door")
    for _ in range(2):
        with pytest.raises(GalleryNotFound):
            search(zone, matcher, "door")
    assert zone.worker.store.nbytes == 0
    zone.create("door")
    zone.enroll("door", 2)
    assert search(zone, matcher, "door") == {2: distance(1, 2)}


def test_what_is_only_held_drives_nothing_out(zone, monkeypatch):
    group = block_memory(zone.layout.group)
    matcher = zone.matcher(memory=group)
    for name in ("one", "two"):
        zone.create(name)
        zone.enroll(name, 1)
    search(zone, matcher, "one")
    loads = Loads(zone.galleries, monkeypatch)
    with pytest.raises(ShardTooLarge):
        matcher.hold("two")
    search(zone, matcher, "one")
    assert loads.taken() == []
    search(zone, matcher, "two")
    assert loads.taken() == ["two"]


@pytest.mark.parametrize("scheme", ["ckks"], indirect=True)  # what is no ciphertext is not backed up
@pytest.mark.parametrize("moment", ["get", "epochs", "placement", "ciphertexts"])
@pytest.mark.parametrize("searched_before", [False, True])
def test_a_gallery_exchanged_under_a_search_is_searched_as_it_is_then(
    zone, tmp_path, monkeypatch, moment, searched_before
):
    """`restore --replace`: another one of that id and key, in one transaction, at any step of the search."""
    zone.enroll("door", 1, 2)
    matcher = zone.matcher()
    file = tmp_path / "door.backup"
    back_up(zone.engine, "door", file)
    if searched_before:
        list(matcher.identify("door", [zone.probe("door", 1)]).results())
        zone.enroll("door", 3)
    ask, exchanged = getattr(Galleries, moment), []

    def asked(*arguments, **named):
        answer = ask(*arguments, **named)
        if not exchanged:
            exchanged.append(moment)
            restore(zone.engine, file, verify(file), replace=True)
        return answer

    monkeypatch.setattr(Galleries, moment, asked)
    search = matcher.identify("door", [zone.probe("door", 1)])
    found = zone.opened("door", list(search.results()))
    assert exchanged == [moment]
    assert found == {1: distance(1, 1), 2: distance(2, 1)}
