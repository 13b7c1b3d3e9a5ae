"""The chain of an audit log: any change of any line is found, and what is not found without a head is with one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealface.protocol.audit import BEGINNING, BEGUN, AuditLogBroken, Entry, Head, check, digest

KEY = Ed25519PrivateKey.generate()


def chained(count: int, spoken: str = "") -> list[bytes]:
    """Acts with their ends, by turns."""
    lines, previous = [], BEGINNING
    for number in range(1, count + 1):
        ends = number % 2 == 0
        entry = Entry(
            number=number,
            time_us=1_700_000_000_000_000 + number,
            actor="callers/alice",
            act="Decide",
            resource="keys/door/versions/1",
            outcome="match" if ends else BEGUN,
            begun=number - 1 if ends else 0,
            request="" if ends else "ab" * 32,
            detail={"policy_version": number} if ends else {"claimed": ["0f" * 16], "spoken": spoken},
            previous=previous.hex(),
        )
        lines.append(entry.line())
        previous = digest(lines[-1])
    return lines


LOG = chained(12, "ünï\u2028\x00")


def test_an_intact_log_is_intact():
    chain = check(LOG)
    assert (chain.number, chain.last, chain.unfinished) == (12, digest(LOG[-1]), {})
    assert check([]).last == BEGINNING
    assert check(LOG[:-1]).unfinished == {11: "Decide"}
    assert all(b"\n" not in line and Entry.parse(line).line() == line for line in LOG)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_found(data):
    at = data.draw(st.integers(0, len(LOG) - 1))
    line = bytearray(LOG[at])
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    changed = [*LOG[:at], bytes(line), *LOG[at + 1 :]]
    with pytest.raises(AuditLogBroken):
        check(changed, Head(len(LOG), digest(LOG[-1])))
    if at < len(LOG) - 1:  # nor is a head needed, but for the last line
        with pytest.raises(AuditLogBroken):
            check(changed)


@pytest.mark.parametrize("at", range(11))
def test_a_deletion_and_another_order_are_found(at):
    with pytest.raises(AuditLogBroken):
        check([*LOG[:at], *LOG[at + 1 :]])
    with pytest.raises(AuditLogBroken):
        check([*LOG[:at], LOG[at + 1], LOG[at], *LOG[at + 2 :]])
    with pytest.raises(AuditLogBroken):
        check([*LOG[: at + 1], *LOG[at:]])


@pytest.mark.parametrize("left", range(12))
def test_a_missing_end_is_found_against_a_head_that_was_kept(left):
    kept = Head(12, digest(LOG[-1]))
    assert check(LOG[:left]).number == left  # the chain itself cannot show it
    for head in (kept, Head(0, kept.digest)):
        with pytest.raises(AuditLogBroken):
            check(LOG[:left], head)
        assert check([*LOG, *after(LOG)], head).number == 13


def after(lines: list[bytes]) -> list[bytes]:
    last = Entry.parse(lines[-1])
    following = replace(last, number=last.number + 1, begun=0, outcome=BEGUN, previous=digest(lines[-1]).hex())
    return [following.line()]


def test_a_log_that_was_written_anew_is_found_against_a_head_that_was_kept():
    anew = chained(12, "nothing happened")
    assert check(anew).number == 12
    with pytest.raises(AuditLogBroken):
        check(anew, Head(12, digest(LOG[-1])))
    with pytest.raises(AuditLogBroken):  # the digest stands there, at another number
        check(LOG, Head(11, digest(LOG[-1])))


def test_another_form_of_the_same_entry_is_no_entry():
    fields = json.loads(LOG[0])
    spaced = json.dumps(fields, sort_keys=True).encode()
    unsorted = json.dumps(dict(reversed(fields.items())), separators=(",", ":")).encode()
    wrong = [spaced, unsorted, LOG[0] + b" ", b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000]
    wrong += [json.dumps(fields | more, sort_keys=True, separators=(",", ":")).encode() for more in ({"x": 1},)]
    wrong += [LOG[0].replace(b'"number":1', b'"number":"1"'), LOG[0].replace(b'"number":1', b'"number":1.0')]
    for line in wrong:
        with pytest.raises(AuditLogBroken):
            check([line])


def test_an_act_ends_once_and_as_what_it_was():
    second = Entry.parse(LOG[1])
    third = replace(second, number=3, previous=digest(LOG[1]).hex())
    for wrong in ([*LOG[:2], third.line()], [LOG[0], replace(second, act="UpdatePolicy").line()]):
        with pytest.raises(AuditLogBroken):
            check(wrong)


def test_a_head_is_the_key_services():
    public = KEY.public_key().public_bytes_raw()
    head = Head(12, digest(LOG[-1])).signed(KEY)
    head.verify(public)
    for wrong in (replace(head, number=11), replace(head, digest=bytes(32)), replace(head, signature=bytes(64))):
        with pytest.raises(AuditLogBroken):
            wrong.verify(public)
    with pytest.raises(AuditLogBroken):
        head.verify(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
