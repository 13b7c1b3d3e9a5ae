import asyncio
import threading

import numpy as np
import pytest

from sealface.protocol.policy import Policy
from sealface_client import Client, Enrolled, ServiceError
from sealface_client.gallery import AlreadyEnrolled
from tests.conftest import POLICY, both_schemes, near, person


@pytest.fixture
async def blocking(suite):
    """Runs a function that uses the blocking client, beside the services' own loop."""

    async def run(use):
        def whole():
            with Client(suite.endpoints, suite.operator, keys=suite.folder / "edge", scheme=suite.scheme) as client:
                return use(client)

        return await asyncio.to_thread(whole)

    return run


@both_schemes
async def test_the_whole_life_of_a_gallery(blocking):
    def use(client):
        door = client.create_gallery("door", policy=POLICY)
        assert (door.id, door.info.name, door.policy) == ("door", "galleries/door", POLICY)
        assert door.enroll("ann", person(1)).slot == 1
        results = list(door.enroll_many([("bob", person(2)), ("bad", np.zeros(128)), ("cyd", person(3))]))
        assert [type(result) is Enrolled for result in results] == [True, False, True]
        assert door.verify("ann", near(person(1), 0.1)).match
        assert not door.verify("ann", person(2)).match
        assert [named.subject for named in door.identify(person(2)).candidates] == ["bob"]
        many = list(door.identify_many([person(3), person(9)]))
        assert [[named.subject for named in found.candidates] for found in many] == [["cyd"], []]
        assert door.erase("ann") == 1
        assert [subject.name[-3:] for subject in door.subjects()] == ["bob", "cyd"]
        assert [gallery.name for gallery in client.galleries()] == ["galleries/door"]
        assert client.update_policy("door", Policy(0.1, 0.1)) == client.policy("door")
        client.create_caller("alice", bytes(32))
        assert [key.name for key in client.list_keys()] == ["keys/door"]
        assert np.array_equal(door.embed(person(1)), person(1))
        blocks = list(door.import_many([("dan", person(4)), ("eve", person(5))], expected=2))
        assert [(block.first_slot, block.templates) for block in blocks] == [(4, 2)]
        assert door.verify("dan", near(person(4), 0.05)).match
        with pytest.raises(AlreadyEnrolled):
            door.enroll("fay", person(5), unique=True)
        assert door.enroll("eve", person(5), unique=True).slot == 6
        assert client.delete_gallery("door") == 5
        with pytest.raises(ServiceError):
            client.gallery("door")
        safe = client.create_gallery("safe", policy=POLICY, client_held=True)
        safe.enroll("ann", person(1))
        assert safe.distance("ann", near(person(1), 0.3)) == pytest.approx(0.3, abs=1e-3)

    await blocking(use)
    assert not [thread for thread in threading.enumerate() if thread.name == "sealface-client"]


async def test_errors_arrive_as_they_are(blocking):
    def use(client):
        with pytest.raises(ServiceError) as caught:
            client.gallery("none")
        return caught.value.reason

    assert await blocking(use) == "GALLERY_NOT_FOUND"


async def test_several_threads_may_share_a_client(blocking):
    def use(client):
        door = client.create_gallery("door", policy=POLICY)
        for i in range(4):
            door.enroll(f"s{i}", person(i))
        found = {}

        def ask(i):
            found[i] = door.verify(f"s{i}", person(i)).match

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert await blocking(use) == dict.fromkeys(range(4), True)
