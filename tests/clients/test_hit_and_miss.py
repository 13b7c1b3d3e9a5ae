"""What compute sees of a hit, a miss and a refusal is the same: which calls, in which order, of which sizes (rule 6).

Time is the key service's to even out (tests/keys/test_deadlines.py); `pytest -rP` prints what it was here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from sealface.protocol.policy import Budget, Policy
from sealface_client.decisions import DecisionRefused
from tests.conftest import both_schemes, person

OPEN = Policy(0.4, 0.3, max_candidates=5, budget=Budget(10**6, 10**9, 10**6))
SPENT = Policy(0.4, 0.3, max_candidates=5, budget=Budget(10**6, 10**9, 4))
PEOPLE = 6


class Watched:
    """A stub of a service in the compute zone that notes what passes: method, direction, bytes."""

    def __init__(self, stub: Any, seen: list[tuple[str, str, int]]) -> None:
        self._stub, self._seen = stub, seen

    def __getattr__(self, method: str) -> Callable[..., Any]:
        call = getattr(self._stub, method)

        def watched(request: Any = None, **options: Any) -> Any:
            if not isinstance(request, Message):
                return call(request, **options)
            self._seen.append((method, "asked", request.ByteSize()))
            made = call(request, **options)
            return self._parts(method, made) if hasattr(made, "__aiter__") else self._one(method, made)

        return watched

    async def _one(self, method: str, call: Any) -> Any:
        response = await call
        self._seen.append((method, "answered", response.ByteSize()))
        return response

    async def _parts(self, method: str, call: Any) -> AsyncIterator[Any]:
        async for part in call:
            self._seen.append((method, "answered", part.ByteSize()))
            yield part


@pytest.fixture
async def seen(client) -> list[tuple[str, str, int]]:
    found: list[tuple[str, str, int]] = []
    for service in ("enrollment", "matching", "operations"):
        setattr(client, service, Watched(getattr(client, service), found))
    return found


async def filled(client, name: str, policy: Policy):
    gallery = await client.create_gallery(name, policy=policy)
    for number in range(PEOPLE):
        await gallery.enroll(f"s{number}", person(number))
    await gallery.verify("s0", person(0))  # its table of slots is there
    return gallery


async def view(seen, act) -> tuple[list[tuple[str, str, int]], float]:
    """What compute sees of an act, and how long it takes."""
    seen.clear()
    started = time.perf_counter()
    await act()
    return list(seen), (time.perf_counter() - started) * 1e3


@both_schemes
async def test_a_hit_and_a_miss_look_the_same(client, seen):
    gallery = await filled(client, "door", OPEN)
    views, times = {"verify": [], "identify": []}, {}
    for round_ in range(4):
        for outcome, vector in (("hit", person(round_)), ("miss", person(900 + round_))):
            for operation in views:

                async def act(operation=operation, vector=vector, round_=round_):
                    if operation == "verify":
                        return await gallery.verify(f"s{round_}", vector)
                    return await gallery.identify(vector)

                looked, ms = await view(seen, act)
                views[operation].append(looked)
                times.setdefault((operation, outcome), []).append(ms)
                assert (await act()).match == (outcome == "hit")
    for operation, looked in views.items():
        assert looked[0], operation
        assert all(one == looked[0] for one in looked), operation
    for (operation, outcome), ms in times.items():
        print(f"{operation}, {outcome}: {statistics.median(ms):.1f} ms")


@both_schemes
async def test_a_refusal_looks_as_a_decision_does(client, seen):
    gallery = await filled(client, "door", SPENT)

    async def verify():
        return await gallery.verify("s1", person(1))

    looked = []
    while True:
        try:
            looked.append((await view(seen, verify))[0])
        except DecisionRefused as error:
            assert error.metadata["refusal"] == "REFUSAL_BUDGET"
            looked.append(list(seen))
            break
    assert len(looked) == 4  # one was spent before
    assert looked[0]
    assert all(one == looked[0] for one in looked)


async def test_the_watch_sees_what_differs(client, seen):
    """Or nothing above would mean anything: somebody with two templates is another claim, and shows as such."""
    gallery = await filled(client, "door", OPEN)
    await gallery.enroll("s1", person(1))
    await gallery.verify("s1", person(1))
    one, _ = await view(seen, lambda: gallery.verify("s0", person(0)))
    two, _ = await view(seen, lambda: gallery.verify("s1", person(1)))
    assert one != two
    assert [method for method, _, _ in one] == [method for method, _, _ in two]
