"""Decide, called as compute calls it: rightly, wrongly, and by somebody who has broken into compute."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from sealface.cipher.parameters import N4096
from sealface.keys.judge import LARGEST_LIFETIME_S
from sealface.protocol import convert, sealing
from sealface.protocol.policy import Policy
from sealface.protocol.sealing import DecisionNotGenuine
from sealface.protocol.signing import Credential
from sealface_protos.keys.v1 import decision_pb2, key_pb2, key_service_pb2
from tests.conftest import POLICY, both_schemes, dump, near, person, refused
from tests.keys.conftest import BOX_BYTES, ask, create_key, keyed, new_key

MATCH, NO_MATCH, REFUSED = (
    decision_pb2.OUTCOME_MATCH,
    decision_pb2.OUTCOME_NO_MATCH,
    decision_pb2.OUTCOME_REFUSED,
)
ME = person(0)


def slots(decision):
    return [candidate.slot for candidate in decision.candidates]


def at(**seconds):
    return Timestamp(seconds=int(time.time()) + int(seconds["ahead"]))


# --- decisions


@both_schemes
async def test_a_verification_by_the_nearest_template(door_key, alice):
    gallery = {3: near(ME, 0.6), 9: near(ME, 0.2)}
    decision = await door_key.decide(ask(alice, door_key.probe, claimed_slots=[9, 3]), door_key.results(gallery))
    assert (decision.outcome, slots(decision)) == (MATCH, [9])
    assert not decision.candidates[0].HasField("distance")
    assert decision.share_searched == 1.0


@both_schemes
async def test_a_verification_that_does_not_match(door_key, alice):
    gallery = {3: near(ME, 0.41)}
    decision = await door_key.decide(ask(alice, door_key.probe, claimed_slots=[3]), door_key.results(gallery))
    assert (decision.outcome, slots(decision)) == (NO_MATCH, [])
    assert not decision.HasField("distance")


@both_schemes
async def test_a_search_over_several_groups_names_the_nearest_subjects(door_key, alice):
    gallery = {slot: person(slot) for slot in range(1, 46)}
    gallery |= {40: near(ME, 0.10), 4: near(ME, 0.20), 5: near(ME, 0.25), 41: near(ME, 0.05), 42: near(ME, 0.31)}
    decision = await door_key.decide(ask(alice, door_key.probe), door_key.results(gallery), {41: 4})
    assert (decision.outcome, slots(decision)) == (MATCH, [41, 40, 5])


async def test_nobody_is_an_answer(door_key, alice):
    for gallery in ({}, {slot: person(slot) for slot in range(1, 5)}):
        decision = await door_key.decide(ask(alice, door_key.probe), door_key.results(gallery))
        assert (decision.outcome, slots(decision)) == (NO_MATCH, [])


async def test_a_search_has_a_threshold_of_its_own(door_key, alice):
    gallery = {1: near(ME, 0.35)}  # near enough to verify, not to be named
    search = await door_key.decide(ask(alice, door_key.probe), door_key.results(gallery))
    claim = await door_key.decide(ask(alice, door_key.probe, claimed_slots=[1]), door_key.results(gallery))
    assert (search.outcome, claim.outcome) == (NO_MATCH, MATCH)


async def test_the_threshold_of_a_search_falls_with_its_size(client, scheme, alice):
    ruled = Policy(0.4, 0.4, target_fpir=0.01, curve=((0.1, 1e-4), (0.3, 1e-2)), max_candidates=5)
    door = await keyed(client, scheme, await create_key(client, key=new_key(ruled)))
    gallery = {1: near(ME, 0.25)}
    assert (await door.decide(ask(alice, door.probe), door.results(gallery))).outcome == MATCH
    gallery |= {slot: person(slot) for slot in range(2, 70)}
    assert (await door.decide(ask(alice, door.probe), door.results(gallery))).outcome == NO_MATCH


async def test_k_is_bounded_by_the_request_and_the_policy_in_subjects(door_key, alice):
    gallery = {slot: near(ME, 0.01 * slot) for slot in range(1, 21)}
    results = door_key.results(gallery)
    assert slots(await door_key.decide(ask(alice, door_key.probe, max_candidates=2), results)) == [1, 2]
    assert slots(await door_key.decide(ask(alice, door_key.probe), results)) == [1, 2, 3, 4, 5]
    leads = dict.fromkeys(range(2, 18), 1)
    assert slots(await door_key.decide(ask(alice, door_key.probe), results, leads)) == [1, 18, 19, 20]


@both_schemes
async def test_distances_are_told_rounded_where_the_policy_says_so(client, scheme, alice):
    telling = Policy(0.4, 0.4, max_candidates=2, disclosure_step=0.05)
    door = await keyed(client, scheme, await create_key(client, key=new_key(telling)))
    results = door.results({1: near(ME, 0.213), 2: near(ME, 0.338)})
    decision = await door.decide(ask(alice, door.probe), results)
    assert [candidate.distance for candidate in decision.candidates] == pytest.approx([0.2, 0.35])
    decision = await door.decide(ask(alice, door.probe, claimed_slots=[1]), door.results({1: near(ME, 0.713)}))
    assert decision.outcome == NO_MATCH
    assert decision.distance == pytest.approx(0.7)


@both_schemes
async def test_a_score_that_no_embedding_has_is_no_match_and_no_failure(client, scheme, alice):
    for key_id, policy in (("door", POLICY), ("telling", Policy(0.4, 0.4, disclosure_step=0.05))):
        door = await keyed(client, scheme, await create_key(client, key_id, new_key(policy)))
        # whoever encrypts is not bound to unit vectors
        layout = door.encryptor._layout
        stretched = scheme.encryptor(_Stretched(layout), door.public)
        door.encryptor = stretched
        for claimed in ([1], []):
            asked = ask(alice, door.probe, claimed_slots=claimed, key_version=door.key.primary_version)
            decision = await door.decide(asked, door.results({1: ME}))
            assert decision.outcome == NO_MATCH
            assert not decision.HasField("distance")


class _Stretched:
    """A layout whose templates are 1.5 times too long."""

    def __init__(self, layout):
        self._layout = layout

    def __getattr__(self, name):
        return getattr(self._layout, name)

    def _scaled(self, embedding):
        return 1.5 * self._layout._scaled(embedding)

    def template(self, embedding):
        parts = self._layout.template(embedding)
        return [type(part)((part.coefficients * 3) // 2, part.scale) for part in parts]


async def test_the_policy_that_decides_is_the_stored_one_and_its_version_is_told(client, door_key, alice):
    results = door_key.results({1: near(ME, 0.2)})
    asked = ask(alice, door_key.probe)
    sealed = await door_key.sealed(asked, results)
    assert asked.read(sealed).outcome == MATCH
    assert decision_pb2.DecisionBinding.FromString(sealed.binding).policy_version == 1
    await client.update_policy("door", Policy(0.1, 0.1))
    asked = ask(alice, door_key.probe)
    sealed = await door_key.sealed(asked, results)
    assert asked.read(sealed).outcome == NO_MATCH
    binding = decision_pb2.DecisionBinding.FromString(sealed.binding)
    assert (binding.policy_version, binding.layout_epoch) == (2, 7)


# --- the box


@both_schemes
async def test_a_decision_is_signed_and_opens_with_the_callers_key_alone(client, door_key, alice):
    asked, other = ask(alice, door_key.probe), ask(alice, door_key.probe)
    sealed = await door_key.sealed(asked, door_key.results({1: ME}))
    identity = await client.keys.GetServiceIdentity(key_service_pb2.GetServiceIdentityRequest())
    sealing.verify_box(identity.verifying_key, sealed.binding, sealed.box, sealed.signature)
    assert asked.read(sealed).outcome == MATCH
    with pytest.raises(DecisionNotGenuine):
        sealing.open_box(sealed.box, sealed.binding, other.key)
    with pytest.raises(DecisionNotGenuine):
        sealing.verify_box(alice.verifying_key, sealed.binding, sealed.box, sealed.signature)


@both_schemes
async def test_whatever_is_decided_the_answer_has_one_size(door_key, alice):
    gallery = {slot: near(ME, 0.02 * slot) for slot in range(1, 6)}
    results = door_key.results(gallery)
    cases = {
        "five": (ask(alice, door_key.probe, request_id="same-size"), results),
        "one": (ask(alice, door_key.probe, request_id="same-size"), door_key.results({1: ME})),
        "nobody": (ask(alice, door_key.probe, request_id="same-size"), []),
        "slots": (ask(alice, door_key.probe, request_id="same-size", claimed_slots=[7]), results),
        "malformed": (ask(alice, door_key.probe, request_id="same-size"), [_changed(results[0], ciphertext=b"x")]),
        "not genuine": (ask(alice, door_key.probe, request_id="same-size"), [_tampered(door_key, results[0])]),
    }
    sizes, outcomes = {}, {}
    for name, (asked, sent) in cases.items():
        sealed = await door_key.sealed(asked, sent)
        sizes[name] = sealed.ByteSize()
        outcomes[name] = asked.read(sealed)
        assert len(sealed.box) == BOX_BYTES
    assert len(set(sizes.values())) == 1, sizes
    assert [outcomes[name].outcome for name in cases] == [MATCH, MATCH, NO_MATCH, REFUSED, REFUSED, REFUSED]


def _changed(result, **fields):
    copy = decision_pb2.ScoreResult.FromString(result.SerializeToString())
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def _words(slots):
    return np.array(slots, "<u4").tobytes()


def _named(result):
    return np.frombuffer(result.slots, "<u4").tolist()


def _tampered(door, result):
    """With something else in the middle of what is multiplied with the secret."""
    data = bytearray(result.ciphertext)
    middle = len(data) // 2
    data[middle : middle + 20] = bytes(20)
    return _changed(result, ciphertext=bytes(data))


# --- refused outside the box: what compute may know


@pytest.mark.parametrize(
    ("changed", "code", "reason"),
    [
        ({"caller": "callers/nobody"}, "UNAUTHENTICATED", "UNKNOWN_CALLER"),
        ({"caller": "alice"}, "UNAUTHENTICATED", "UNKNOWN_CALLER"),
        ({"caller": "callers/operator"}, "UNAUTHENTICATED", "BAD_SIGNATURE"),
        ({"nonce": b""}, "FAILED_PRECONDITION", "NONCE_USED"),
        ({"nonce": bytes(33)}, "FAILED_PRECONDITION", "NONCE_USED"),
        ({"expire_time": None}, "UNAUTHENTICATED", "REQUEST_EXPIRED"),
        ({"operation": 0}, "INVALID_ARGUMENT", "MISSING_FIELD"),
        ({"operation": 7}, "INVALID_ARGUMENT", "MISSING_FIELD"),
        ({"request_id": ""}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"gallery": "door"}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"key_version": "keys/door"}, "INVALID_ARGUMENT", "INVALID_NAME"),
        ({"max_candidates": 0}, "INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"),
        ({"max_candidates": 11}, "INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"),
        ({"claimed_slots": list(range(1, 18))}, "INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"),
        ({"operation": decision_pb2.OPERATION_VERIFY}, "INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"),
        ({"probe_digest": bytes(31)}, "INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"),
        ({"hpke_public_key": bytes(32)}, "INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"),
        ({"hpke_public_key": bytes(31)}, "INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"),
        ({"hpke_public_key": (1).to_bytes(32, "little")}, "INVALID_ARGUMENT", "INVALID_RECIPIENT"),
    ],
)
async def test_a_request_that_is_wrong_fails(door_key, alice, changed, code, reason):
    with refused(code, reason):
        await door_key.decide(ask(alice, door_key.probe, **changed), door_key.results({1: ME}))


async def test_a_signature_must_be_the_callers_of_these_bytes(door_key, alice):
    results = door_key.results({1: ME})
    mallory = Credential.generate("callers/mallory")
    forged = ask(alice, door_key.probe, sign_with=mallory)
    changed, other, empty = (ask(alice, door_key.probe) for _ in range(3))
    changed.signed.decision_request += b"\x40\x01"
    other.signed.signature = ask(alice, door_key.probe).signed.signature
    empty.signed.signature = b""
    for asked in (forged, changed, other, empty):
        with refused("UNAUTHENTICATED", "BAD_SIGNATURE"):
            await door_key.sealed(asked, results)


async def test_an_operators_signature_of_another_kind_does_not_decide(suite, door_key):
    asked = ask(suite.operator, door_key.probe)
    data = asked.signed.decision_request
    asked.signed.signature = suite.operator.sign_operator_request("/m", data, 0, bytes(32))
    with refused("UNAUTHENTICATED", "BAD_SIGNATURE"):
        await door_key.sealed(asked)


@pytest.mark.parametrize("ahead", [-1, -3600, LARGEST_LIFETIME_S + 5, 10**9])
async def test_a_request_has_its_time(door_key, alice, ahead):
    with refused("UNAUTHENTICATED", "REQUEST_EXPIRED"):
        await door_key.decide(ask(alice, door_key.probe, expire_time=at(ahead=ahead)))


async def test_an_extreme_time_is_refused_as_well(door_key, alice):
    for stamp in (Timestamp(seconds=2**63 - 1, nanos=2**31 - 1), Timestamp(seconds=-(2**63), nanos=-(2**31))):
        with refused("UNAUTHENTICATED", "REQUEST_EXPIRED"):
            await door_key.decide(ask(alice, door_key.probe, expire_time=stamp))


async def test_a_request_is_decided_once(door_key, alice):
    asked = ask(alice, door_key.probe)
    results = door_key.results({1: ME})
    assert (await door_key.decide(asked, results)).outcome == MATCH
    with refused("FAILED_PRECONDITION", "NONCE_USED"):
        await door_key.decide(asked, results)
    # nor another with its nonce
    with refused("FAILED_PRECONDITION", "NONCE_USED"):
        await door_key.decide(ask(alice, door_key.probe, nonce=asked.request.nonce), results)


async def test_of_many_replays_at_once_one_is_decided(door_key, alice):
    asked = ask(alice, door_key.probe)
    results = door_key.results({1: ME})
    outcomes = await asyncio.gather(*(door_key.sealed(asked, results) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(outcome, decision_pb2.SealedDecision) for outcome in outcomes) == 1


async def test_who_is_refused_costs_no_nonce(suite, door_key, alice):
    before = dump(suite.keys / "keys.db")["nonces"]
    asked = ask(alice, door_key.probe, sign_with=Credential.generate("callers/x"))
    with refused("UNAUTHENTICATED", "BAD_SIGNATURE"):
        await door_key.decide(asked)
    assert dump(suite.keys / "keys.db")["nonces"] == before


async def test_a_withdrawn_caller_is_unknown(client, door_key, alice):
    await client.keys.DeleteCaller(key_service_pb2.DeleteCallerRequest(name=alice.caller))
    with refused("UNAUTHENTICATED", "UNKNOWN_CALLER"):
        await door_key.decide(ask(alice, door_key.probe))


async def test_a_stream_without_a_request_is_refused(client, door_key, alice):
    results = door_key.results({1: ME})
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await client.keys.Decide(iter([]))
    with refused("INVALID_ARGUMENT", "MISSING_FIELD"):
        await client.keys.Decide(iter([key_service_pb2.DecideRequest(results=results)]))
    large = ask(alice, door_key.probe)
    large.signed.decision_request = b"\x0a\x80\x20" + b"a" * 4096
    with refused("INVALID_ARGUMENT", "INVALID_DECISION_REQUEST"):
        await door_key.sealed(large)


async def test_the_first_message_carries_the_request_and_the_last_the_share(client, door_key, alice):
    asked, later = ask(alice, door_key.probe), ask(alice, door_key.probe, claimed_slots=[1])
    parts = [
        key_service_pb2.DecideRequest(request=asked.signed, layout_epoch=1, share_searched=0.5),
        key_service_pb2.DecideRequest(
            request=later.signed, layout_epoch=2, share_searched=1, results=door_key.results({1: ME, 2: ME})
        ),
    ]
    sealed = await client.keys.Decide(iter(parts))
    decision = asked.read(sealed)
    assert (decision.outcome, decision.share_searched) == (MATCH, 1.0)
    assert decision_pb2.DecisionBinding.FromString(sealed.binding).layout_epoch == 1


async def test_there_is_a_most_of_scores_and_of_links(client, door_key, alice, monkeypatch):
    from sealface.keys import judge, servicer

    most = 3 * door_key.layout.group.capacity
    monkeypatch.setattr(judge, "LARGEST_SEARCH", most)
    results = door_key.results({slot: person(slot) for slot in range(1, most + 1)})
    assert (await door_key.decide(ask(alice, door_key.probe), results)).outcome == NO_MATCH
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_SCORES"):
        await door_key.decide(ask(alice, door_key.probe), [*results, results[0]])
    # a result counts for the positions that it names, and for a group's at least: those that name none cost as well
    (sealed,) = door_key.results({1: ME}, shape=door_key.layout.sealed_shapes[0])
    monkeypatch.setattr(judge, "LARGEST_SEARCH", door_key.layout.sealed_shapes[0].capacity)
    assert (await door_key.decide(ask(alice, door_key.probe), [sealed])).outcome == MATCH
    for wrong in ([sealed, results[0]], [_changed(results[0], slots=b"")] * 3, [_changed(sealed, slots=bytes(4000))]):
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_SCORES"):
            await door_key.decide(ask(alice, door_key.probe), wrong)
    monkeypatch.setattr(judge, "LARGEST_SEARCH", most)
    monkeypatch.setattr(servicer, "_MOST_LINKS", 2)
    assert (await door_key.decide(ask(alice, door_key.probe), results, {2: 1, 3: 1})).outcome == NO_MATCH
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_LINKS"):
        await door_key.decide(ask(alice, door_key.probe), results, {2: 1, 3: 1, 4: 1})


# --- refused inside the box: what compute may not know


async def refusal(door, asked, results, leads=None):
    decision = await door.decide(asked, results, leads)
    assert decision.outcome == REFUSED
    assert not decision.candidates
    return decision_pb2.Refusal.Name(decision.refusal).removeprefix("REFUSAL_")


@both_schemes
async def test_scores_under_another_key_are_not_genuine(client, scheme, door_key, alice):
    other = await keyed(client, scheme, await create_key(client, "other"))
    results = door_key.results({1: ME})
    assert await refusal(door_key, ask(alice, door_key.probe), other.results({1: ME})) == "NOT_GENUINE"
    # one of several is enough
    mixed = [*results, *other.results({31: person(1)})]
    assert await refusal(door_key, ask(alice, door_key.probe), mixed) == "NOT_GENUINE"
    wrong_version = ask(alice, door_key.probe, key_version="keys/other/versions/1")
    assert await refusal(door_key, wrong_version, results) == "NOT_GENUINE"


@both_schemes
async def test_tampered_scores_are_not_genuine(door_key, alice):
    (result,) = door_key.results({1: ME})
    for claimed in ([1], []):
        asked = ask(alice, door_key.probe, claimed_slots=claimed)
        assert await refusal(door_key, asked, [_tampered(door_key, result)]) == "NOT_GENUINE"


@both_schemes
async def test_what_is_no_ciphertext_is_malformed(client, scheme, door_key, alice):
    results = door_key.results({1: ME})
    (result,) = results
    wide_key = new_key(score_format=key_pb2.ScoreFormat(dimension=4096, metric=key_pb2.METRIC_COSINE))
    wide = await keyed(client, scheme, await create_key(client, "wide", wide_key))
    data = result.ciphertext
    wrong = [b"", b"x", data[:-1], data + b"\0", b"\xff" * len(data), door_key.probe]
    wrong.append(wide.results({1: person(1, 4096)})[0].ciphertext)
    for ciphertext in wrong:
        bad = _changed(result, ciphertext=ciphertext)
        assert await refusal(door_key, ask(alice, door_key.probe), [bad]) == "MALFORMED"
        assert await refusal(door_key, ask(alice, door_key.probe), [*results, bad]) == "MALFORMED"


@both_schemes
async def test_the_claimed_slots_must_be_scored_exactly(door_key, alice):
    results = door_key.results({1: ME, 2: person(2)})
    for claimed in ([1], [2], [1, 3], [1, 2, 3], [7]):
        asked = ask(alice, door_key.probe, claimed_slots=claimed)
        assert await refusal(door_key, asked, results) == "SLOTS"
    assert await refusal(door_key, ask(alice, door_key.probe, claimed_slots=[1]), []) == "SLOTS"
    good = await door_key.decide(ask(alice, door_key.probe, claimed_slots=[2, 1]), results)
    assert good.outcome == MATCH


@both_schemes
async def test_a_slot_named_twice_or_too_few_positions(door_key, alice):
    (result,) = door_key.results({1: ME, 2: person(2)})
    named = _named(result)
    for wrong in ([1, 1, *named[2:]], named[:-1], [*named, 0], []):
        changed = _changed(result, slots=_words(wrong))
        assert await refusal(door_key, ask(alice, door_key.probe), [changed]) == "SLOTS"
    assert await refusal(door_key, ask(alice, door_key.probe), [result, result]) == "SLOTS"


@both_schemes
async def test_slots_that_are_no_whole_words(door_key, alice):
    (result,) = door_key.results({1: ME, 2: person(2)})
    data = result.slots
    # a slot more or less, and the right length of them but for a byte
    for wrong in (data[:-1], data[:-3], data + b"\0", data + bytes(3), data[1:], b"\1"):
        changed = _changed(result, slots=wrong)
        for claimed in ([1], []):
            asked = ask(alice, door_key.probe, claimed_slots=claimed)
            assert await refusal(door_key, asked, [changed]) == "SLOTS"


@both_schemes
async def test_a_result_of_a_shape_that_the_key_does_not_have(door_key, alice):
    (result,) = door_key.results({1: ME, 2: person(2)})
    known = {1, *(shape.columns for shape in door_key.layout.sealed_shapes)}
    for columns in {0, 2, 3, 7, 12, 64, 128, 256, 2**31, 2**32 - 1} - known:
        assert await refusal(door_key, ask(alice, door_key.probe), [_changed(result, columns=columns)]) == "SLOTS"
        # beside a right one, and before it
        others = [_changed(result, columns=columns), result]
        for results in (others, others[::-1]):
            assert await refusal(door_key, ask(alice, door_key.probe), results) == "SLOTS"


@both_schemes
async def test_a_search_over_blocks_of_several_shapes(door_key, alice):
    group, small, larger = door_key.layout.group, *door_key.layout.sealed_shapes[:2]
    results = door_key.results({901: near(ME, 0.2, 1), 7: person(7)}, shape=small)
    results += door_key.results({5: near(ME, 0.1, 2), 6: person(6)}, shape=larger)
    results += door_key.results({3: near(ME, 0.25, 3), 4: person(4)}, shape=group)
    results += door_key.results({902: near(ME, 0.15, 4)}, shape=small)
    for sent in (results, results[::-1]):
        assert slots(await door_key.decide(ask(alice, door_key.probe), sent)) == [5, 902, 901, 3]
        assert slots(await door_key.decide(ask(alice, door_key.probe), sent, {902: 901, 5: 3})) == [5, 902]
    claimed = ask(alice, door_key.probe, claimed_slots=[901])
    assert slots(await door_key.decide(claimed, door_key.results({901: near(ME, 0.2)}, shape=small))) == [901]
    # a slot in two blocks, of whatever shapes
    for twice in (door_key.results({5: ME}), door_key.results({5: ME}, shape=small)):
        assert await refusal(door_key, ask(alice, door_key.probe), results + twice) == "SLOTS"


@both_schemes
async def test_a_tampered_sealed_result_among_many_is_not_genuine(door_key, alice):
    shape = door_key.layout.sealed_shapes[0]
    (result,) = door_key.results({1: ME}, shape=shape)
    others = door_key.results({slot: person(slot) for slot in range(2, 4 * shape.capacity)}, shape=shape)
    spoilt = [others[0], _tampered(door_key, result), *others[1:]]
    assert await refusal(door_key, ask(alice, door_key.probe), spoilt) == "NOT_GENUINE"


@both_schemes
async def test_a_masked_position_opens_to_nothing_that_matches_somebody(door_key, alice):
    """Compute may claim a slot it did not score: what it gets is random, never the template's score."""
    (result,) = door_key.results({1: ME, 2: person(2)})
    spread = _words([1, 2, *range(3, door_key.layout.group.capacity + 1)])
    decision = await door_key.decide(ask(alice, door_key.probe), [_changed(result, slots=spread)])
    assert decision.outcome == MATCH
    assert 1 in slots(decision)


async def test_a_key_that_does_not_decide_is_refused_inside(client, scheme, door_key, alice):
    safe = new_key(custody=key_pb2.CUSTODY_CLIENT_HELD)
    public = scheme.generate(N4096).public
    await client.keys.RegisterKey(key_service_pb2.RegisterKeyRequest(key_id="safe", key=safe, public_key=public))
    results = door_key.results({1: ME})
    for version in ("keys/safe/versions/1", "keys/none/versions/1", "keys/door/versions/2"):
        asked = ask(alice, door_key.probe, key_version=version)
        sealed = await door_key.sealed(asked, results)
        decision = asked.read(sealed)
        assert (decision.outcome, decision.refusal) == (REFUSED, decision_pb2.REFUSAL_KEY_VERSION)


@pytest.mark.parametrize("metric", [key_pb2.METRIC_EUCLIDEAN, key_pb2.METRIC_EUCLIDEAN_L2, key_pb2.METRIC_ANGULAR])
@both_schemes
async def test_every_metric_decides_by_its_own_distance(client, scheme, alice, metric):
    score_format = key_pb2.ScoreFormat(
        dimension=128, metric=metric, largest_norm=4.0 if metric == key_pb2.METRIC_EUCLIDEAN else 0.0
    )
    other = near(ME, 0.2)
    scale = 2.0 if metric == key_pb2.METRIC_EUCLIDEAN else 1.0
    distance = {
        key_pb2.METRIC_EUCLIDEAN: float(np.linalg.norm(scale * ME - scale * other)),
        key_pb2.METRIC_EUCLIDEAN_L2: float(np.linalg.norm(ME - other)),
        key_pb2.METRIC_ANGULAR: float(np.arccos(ME @ other) / np.pi),
    }[metric]
    away = 0.02 if metric == key_pb2.METRIC_EUCLIDEAN else 2e-3  # more than 8 standard deviations of the dither
    for threshold, outcome in ((distance + away, MATCH), (distance - away, NO_MATCH)):
        policy = convert.policy_to_proto(Policy(threshold, threshold))
        key_id = f"k{outcome}"
        door = await keyed(
            client, scheme, await create_key(client, key_id, new_key(score_format=score_format, policy=policy))
        )
        door.probe = door.encryptor.probe(scale * ME)
        asked = ask(alice, door.probe, key_version=door.key.primary_version)
        assert (await door.decide(asked, door.results({1: scale * other}))).outcome == outcome


async def test_a_caller_that_gives_up_leaves_the_service_working(client, door_key, alice):
    async def never():
        yield key_service_pb2.DecideRequest(request=ask(alice, door_key.probe).signed)
        await asyncio.sleep(60)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.keys.Decide(never(), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await door_key.decide(ask(alice, door_key.probe), door_key.results({1: ME}))).outcome == MATCH


# --- what compute could learn from how a request goes


async def test_results_after_a_refusal_are_opened_all_the_same(door_key, alice, monkeypatch):
    from sealface.keys import judge

    opened = []
    real = judge.open_results
    monkeypatch.setattr(judge, "open_results", lambda *a, **how: opened.append(len(a[2])) or real(*a, **how))
    good = door_key.results({slot: person(slot) for slot in range(1, 200)})
    spoilt = decision_pb2.ScoreResult(columns=good[0].columns, ciphertext=b"x", slots=good[0].slots)
    for results in ([spoilt, *good[1:]], good):
        opened.clear()
        await door_key.decide(ask(alice, door_key.probe), results)
        assert sum(opened) == len(results)


async def test_a_verification_takes_no_more_results_than_it_claims_slots(door_key, alice):
    results = door_key.results({slot: person(slot) for slot in range(1, 17 * door_key.layout.group.capacity + 1)})
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_SCORES"):
        await door_key.decide(ask(alice, door_key.probe, claimed_slots=[1]), results)
