"""When answers leave. No test looks at a clock of the machine: time stands still until somebody sleeps."""

from __future__ import annotations

import pytest

from sealface.keys import servicer
from sealface.keys.deadlines import STEP_S, Deadlines
from sealface_protos.keys.v1 import decision_pb2
from tests.conftest import near, person, refused
from tests.keys.conftest import ask
from tests.keys.test_decide import _changed, _tampered

ME = person(0)


class Time:
    """A clock that moves when somebody sleeps; the first time a little too short."""

    def __init__(self, now: float, short: float = 0.0) -> None:
        self.now, self.short, self.slept = now, short, []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now, self.short = self.now + seconds - min(self.short, seconds / 2), 0.0


@pytest.mark.parametrize("took", [0.0, 1e-6, 0.0049, 0.005, 0.0051, 0.012, 3.3])
@pytest.mark.parametrize("short", [0.0, 0.0003])
async def test_an_answer_leaves_at_the_next_deadline(took, short):
    time = Time(100.0 + took, short)
    await Deadlines(clock=time.clock, sleep=time.sleep).wait(100.0)
    steps = (time.now - 100.0) / STEP_S
    assert steps == pytest.approx(round(steps), abs=1e-6)
    assert -1e-9 < steps * STEP_S - took <= STEP_S + 1e-9


async def test_every_outcome_waits_in_one_place_and_after_it_is_sealed(suite, client, door_key, alice, monkeypatch):
    done = []
    sealing, waiting = servicer.KeyServicer._seal, Deadlines.wait

    async def wait(self, since):
        done.append("waits")
        await waiting(self, since)

    monkeypatch.setattr(servicer.KeyServicer, "_seal", lambda *a: done.append("sealed") or sealing(*a))
    monkeypatch.setattr(Deadlines, "wait", wait)
    (good,) = door_key.results({1: near(ME, 0.1)})
    (far,) = door_key.results({1: near(ME, 0.9)})
    cases = {
        "match": (ask(alice, door_key.probe, claimed_slots=[1]), [good]),
        "no match": (ask(alice, door_key.probe, claimed_slots=[1]), [far]),
        "search": (ask(alice, door_key.probe), [good]),
        "nobody": (ask(alice, door_key.probe), [far]),
        "slots": (ask(alice, door_key.probe, claimed_slots=[2]), [good]),
        "malformed": (ask(alice, door_key.probe), [_changed(good, ciphertext=b"x")]),
        "not genuine": (ask(alice, door_key.probe), [_tampered(door_key, good)]),
        "no version": (ask(alice, door_key.probe, key_version="keys/door/versions/2"), [good]),
    }
    seen = set()
    for name, (asked, results) in cases.items():
        done.clear()
        decision = await door_key.decide(asked, results)
        seen.add((decision.outcome, decision.refusal))
        assert done == ["sealed", "waits"], name
    assert len(seen) == 6
    assert {refusal for _, refusal in seen} >= {decision_pb2.REFUSAL_NOT_GENUINE, decision_pb2.REFUSAL_KEY_VERSION}
    done.clear()
    with refused("FAILED_PRECONDITION", "NONCE_USED"):  # which compute may know
        await door_key.decide(cases["match"][0], [good])
    assert done == []
