"""What compute sees of an answer: a hit, a miss and a refusal are the same calls, in one order, of the same sizes.

Threat model, rule 6. Taps stand before enrollment, before matching, and between matching and the key service; they keep
the method, direction and length of every message. How long answers take is printed, not asserted: `pytest -s`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealface.cipher.scheme import Ckks
from sealface.protocol.policy import Budget
from sealface_client import AsyncGallery
from sealface_client.decisions import DecisionRefused
from tests.conftest import POLICY, Suite, execute, person
from tests.edge.proxy import Tap

ROUNDS = 12
TEMPLATES = 90
Seen = list[tuple[str, str, str, int]]
Act = Callable[[], Awaitable[Any]]


class View:
    """What compute sees, between two points in time."""

    def __init__(self) -> None:
        self.taps: dict[str, Tap] = {}

    async def before(self, name: str, address: str) -> str:
        """Put a tap before a service; returns its address."""
        self.taps[name] = Tap(address)
        return await self.taps[name].start()

    def clear(self) -> None:
        for tap in self.taps.values():
            tap.seen.clear()

    def seen(self) -> Seen:
        """By tap: within each in order."""
        return [(name, *event) for name, tap in self.taps.items() for event in tap.seen]


@pytest.fixture
async def view() -> AsyncIterator[View]:
    made = View()
    yield made
    for tap in made.taps.values():
        await tap.stop()


@pytest.fixture
async def tapped(tmp_path: Path, view: View) -> AsyncIterator[Suite]:
    """Real services, with CKKS, and taps wherever compute receives or sends."""
    suite = Suite(tmp_path, Ckks())
    await suite.start("keys")
    keys = suite.addresses["keys"]
    suite.addresses["keys"] = await view.before("matching to keys", keys)
    await suite.start("enrollment", "matching")
    suite.addresses["keys"] = keys  # what callers ask the key service is not compute's to see
    for name in ("enrollment", "matching"):
        suite.addresses[name] = await view.before(f"caller to {name}", suite.addresses[name])
    yield suite
    await suite.close()


async def filled(suite: Suite, **options: Any) -> AsyncGallery:
    """People in sealed blocks and in the open tail, some with several templates."""
    gallery = await suite.client().create_gallery("door", policy=POLICY, **options)
    async for _ in gallery.import_many([(f"s{i}", person(i)) for i in range(TEMPLATES)]):
        pass
    for i in range(4):
        await gallery.enroll(f"s{i % 2}", person(i % 2) + 0.01 * person(500 + i))
    return gallery


async def attempt(act: Act) -> str:
    try:
        return "hit" if (await act()).match else "miss"
    except DecisionRefused:
        return "refused"


async def record(view: View, acts: dict[str, Act]) -> tuple[dict[str, list[Seen]], dict[str, list[float]]]:
    """Each kind of answer several times, in turns, so that what else goes on in the machine meets all of them."""
    seen: dict[str, list[Seen]] = {kind: [] for kind in acts}
    took: dict[str, list[float]] = {kind: [] for kind in acts}
    for act in acts.values():  # channels, kernels, tables, pools
        await attempt(act)
    for _ in range(ROUNDS):
        for kind, act in acts.items():
            view.clear()
            started = time.perf_counter()
            assert await attempt(act) == kind
            took[kind].append((time.perf_counter() - started) * 1e3)
            seen[kind].append(view.seen())
    return seen, took


def report(what: str, took: dict[str, list[float]]) -> None:
    """Median and spread of each kind, in milliseconds."""
    quartiles = {kind: np.percentile(times, [25, 50, 75]).round(2).tolist() for kind, times in took.items()}
    print(json.dumps({"what": what, "quartiles_ms": quartiles, "rounds": len(next(iter(took.values())))}))


def same(seen: dict[str, list[Seen]]) -> Seen:
    """The one thing that was seen, whatever the answer."""
    first, *others = (events for kind in seen.values() for events in kind)
    for events in others:
        assert events == first
    return first


@pytest.mark.parametrize("client_held", [False, True])
async def test_verifications(tapped: Suite, view: View, client_held: bool) -> None:
    gallery = await filled(tapped, client_held=client_held)
    acts: dict[str, Act] = {
        "hit": lambda: gallery.verify("s1", person(1)),
        "miss": lambda: gallery.verify("s1", person(700)),
    }
    seen, took = await record(view, acts)
    events = same(seen)
    methods = [(where, method) for where, method, direction, _ in events if direction == "end"]
    assert ("caller to matching", "Verify") in methods
    assert (("matching to keys", "Decide") in methods) is not client_held
    assert sum(size for *_, size in events) > 61_440
    report("verify, client-held" if client_held else "verify", took)


@pytest.mark.parametrize("client_held", [False, True])
async def test_searches(tapped: Suite, view: View, client_held: bool) -> None:
    gallery = await filled(tapped, client_held=client_held)
    acts: dict[str, Act] = {
        "hit": lambda: gallery.identify(person(7)),
        "miss": lambda: gallery.identify(person(700)),
    }
    seen, took = await record(view, acts)
    methods = [(where, method) for where, method, direction, _ in same(seen) if direction == "end"]
    assert ("caller to matching", "Identify") in methods
    assert (("matching to keys", "Decide") in methods) is not client_held
    report("identify, client-held" if client_held else "identify", took)


async def test_a_search_of_many(tapped: Suite, view: View) -> None:
    """Hits and misses in one call, in either order; the answers come in the order of the questions."""
    gallery = await filled(tapped)

    async def ask(*numbers: int) -> list[bool]:
        view.clear()
        return [found.match async for found in gallery.identify_many([person(n) for n in numbers])]  # type: ignore[union-attr]

    await ask(3, 700)
    found: list[Seen] = []
    for numbers, expected in (((3, 700, 4), [True, False, True]), ((700, 3, 701), [False, True, False])):
        assert await ask(*numbers) == expected
        found.append(sorted(view.seen()))  # which of the shared pass's decisions comes first is chance
    assert found[0] == found[1]


@pytest.mark.parametrize("reason", ["quarantine", "budget"])
@pytest.mark.parametrize("what", ["verify", "identify"])
async def test_refusals(tapped: Suite, view: View, reason: str, what: str) -> None:
    """The reason is in the box, and nothing is asked again."""
    gallery = await filled(tapped)
    operator = tapped.client()
    act: Act = (lambda: gallery.verify("s1", person(1))) if what == "verify" else (lambda: gallery.identify(person(7)))

    async def refuse(refused: bool) -> None:
        if reason == "quarantine":
            state = "quarantined" if refused else "enabled"
            execute(tapped.keys / "keys.db", "UPDATE key_versions SET state = ?", state)
        else:
            budget = Budget(decisions_per_hour=1 if refused else 1000)
            await operator.update_policy("door", replace(await operator.policy("door"), budget=budget))

    await attempt(act)
    await attempt(act)
    seen: dict[str, list[Seen]] = {"hit": [], "refused": []}
    took: dict[str, list[float]] = {"hit": [], "refused": []}
    for kind in ["hit", "refused"] * 4:
        await refuse(kind == "refused")
        view.clear()
        started = time.perf_counter()
        assert await attempt(act) == kind
        took[kind].append((time.perf_counter() - started) * 1e3)
        seen[kind].append(view.seen())
    same(seen)
    report(f"{what}, refused by {reason}", took)
