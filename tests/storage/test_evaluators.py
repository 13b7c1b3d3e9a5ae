import threading

import numpy as np
import pytest

from sealface.storage.digests import TemplateDamaged
from sealface.storage.evaluators import Evaluators, WrongKeyVersion, WrongParameterSet, check_encryption
from tests.conftest import person
from tests.plain import Plain
from tests.storage.conftest import execute, new_gallery


@pytest.fixture
def scheme():
    return Plain()


@pytest.fixture
def secret_of():
    return {}


@pytest.fixture
def make(record, galleries, scheme, secret_of):
    def made(gallery_id="door", key=None):
        layout = new_gallery().layout
        material = scheme.generate(layout.parameters)
        secret_of[key or gallery_id] = material.secret
        record.create_gallery(new_gallery(gallery_id, key, material.public, material.evaluation))
        return galleries.get(gallery_id), scheme.encryptor(layout, material.public)

    return made


def test_the_encryption_said_must_be_the_gallerys(make):
    gallery, _ = make()
    name = gallery.layout.parameters.name
    check_encryption(gallery, "keys/door/versions/1", name)
    for version in ("keys/door/versions/2", "keys/other/versions/1", ""):
        with pytest.raises(WrongKeyVersion) as caught:
            check_encryption(gallery, version, name)
        assert caught.value.metadata == {"expected": "keys/door/versions/1"}
    for parameters in ("ckks-n8192-v1", ""):
        with pytest.raises(WrongParameterSet) as caught:
            check_encryption(gallery, "keys/door/versions/1", parameters)
        assert caught.value.metadata == {"expected": name}


def test_a_gallery_made_anew_gets_an_evaluator_of_its_own_key(make, secret_of, record, galleries, scheme):
    evaluators = Evaluators(galleries, scheme)
    old, other = make()
    first = evaluators.of(old)
    assert evaluators.of(galleries.get("door")) is first
    record.delete_gallery("door")
    new, encryptor = make(key="other")
    second = evaluators.of(new)
    assert second is not first
    opener = scheme.opener(new.layout, secret_of["other"])
    for shape in (new.layout.group, new.layout.sealed_shapes[0]):  # its Galois keys, too
        assert genuine(opener, shape, second, encryptor)
        assert not genuine(opener, shape, first, other)


def genuine(opener, shape, evaluator, encryptor):
    template = {0: evaluator.admit(encryptor.template(person(1)))}
    block = evaluator.load(shape, evaluator.seal(shape, template)) if shape.sealed else evaluator.assemble(template)
    leaves = evaluator.expand([evaluator.admit_probe(encryptor.probe(person(1)))], {shape})
    ((result,),) = evaluator.score([block], leaves[shape], [np.arange(shape.capacity) == 0])
    opened = opener.open(shape, [result])
    if not opener.genuine(shape, opened.checks):
        return False
    assert opened.scores[0, 0] == pytest.approx(1.0)
    return True


def test_only_so_many_are_held(make, galleries, scheme):
    evaluators = Evaluators(galleries, scheme, most=2)
    made = [make(name)[0] for name in ("a", "b", "c")]
    held = [evaluators.of(gallery) for gallery in made]
    assert evaluators.of(made[2]) is held[2]
    assert evaluators.of(made[1]) is held[1]
    assert evaluators.of(made[0]) is not held[0]


def test_a_damaged_public_key_makes_no_evaluator(make, galleries, scheme, engine):
    gallery, _ = make()
    execute(engine, "UPDATE gallery_versions SET public_key = ?", b"x")
    with pytest.raises(TemplateDamaged):
        Evaluators(galleries, scheme).of(gallery)


def test_a_damaged_evaluation_key_makes_no_evaluator(make, galleries, scheme, engine):
    gallery, _ = make()
    assert execute(engine, "UPDATE gallery_evaluation_keys SET material = ? WHERE galois_element = 4097", b"\0") == 1
    with pytest.raises(TemplateDamaged):
        Evaluators(galleries, scheme).of(gallery)


def test_threads_may_ask_at_once(make, galleries, scheme):
    evaluators = Evaluators(galleries, scheme, most=1)
    made = [make(name)[0] for name in ("a", "b", "c")]
    failures = []

    def ask():
        try:
            for i in range(100):
                evaluators.of(made[i % 3])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
