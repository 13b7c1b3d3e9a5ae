import asyncio
import dataclasses
import hashlib

import grpc
import numpy as np
import pytest

from sealface.cipher.layout import EmbeddingNotFinite, WrongDimension, ZeroEmbedding
from sealface.enrollment.record import Record
from sealface.errors import AlreadyExists
from sealface.matching import feed
from sealface.matching.matcher import Matcher
from sealface.protocol.names import InvalidName
from sealface.protocol.policy import Policy
from sealface.protocol.rights import Grant, Role
from sealface.protocol.sealing import DecisionNotGenuine
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Signed, new_static
from sealface.storage.database import RecordUnavailable
from sealface_client import AsyncClient, Enrolled, Identification, Imported, ServiceError
from sealface_client.aio import CredentialMissing, KeyNotTrusted
from sealface_client.decisions import PendingDecision
from sealface_client.faces import ImageUnreadable
from sealface_client.gallery import AlreadyEnrolled, SubjectNotFound
from sealface_client.key_folder import SecretKeyExists, SecretKeyMissing
from sealface_client.keyed import Keyed
from sealface_protos.keys.v1 import decision_pb2
from tests.conftest import POLICY, both_schemes, dump, execute, near, person


def service_error(code, reason):
    def fits(error):
        return (error.code.name, error.reason) == (code, reason)

    return pytest.raises(ServiceError, check=fits)


# --- galleries and keys


@both_schemes
async def test_a_gallery_is_made_found_listed_and_deleted(client):
    for name in ("b", "a"):
        made = await client.create_gallery(name, policy=POLICY)
        assert (made.id, made.managed, made.policy) == (name, True, POLICY)
    assert [gallery.name for gallery in await client.galleries()] == ["galleries/a", "galleries/b"]
    assert [key.name for key in await client.list_keys()] == ["keys/a", "keys/b"]
    found = await client.gallery("a")
    assert found.info.key == "keys/a"
    await found.enroll("x", person(1))
    assert await client.delete_gallery("a") == 1
    with service_error("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await client.gallery("a")


@pytest.mark.faces
async def test_without_a_policy_the_models_own_is_taken(client):
    gallery = await client.create_gallery("door")
    assert gallery.policy.verification_threshold == 0.07
    assert 0 < gallery.policy.target_fpir < 0.1
    assert gallery.policy.curve


async def test_the_options_of_a_gallery_are_what_others_see(suite, client):
    made = await client.create_gallery(
        "door", policy=POLICY, metric="angular", edge=True, largest_face=True, align=False, anti_spoofing=True
    )
    other = Credential.generate("callers/other")
    await client.create_caller("other", other.verifying_key)
    seen = (await suite.client(other).gallery("door")).info
    assert seen == made.info
    assert (seen.recognition.unaligned, seen.recognition.anti_spoofing) == (True, True)
    assert seen.recognition.face_rule == 2
    assert seen.privacy_level == 1


@both_schemes
async def test_a_public_key_that_is_not_the_pinned_one_is_refused(suite, client, door):
    version = door.info.key_version
    right = (await client.list_keys())[0].public_key_digest
    assert (await suite.client(pins={version: right}).gallery("door")).id == "door"
    with pytest.raises(KeyNotTrusted):
        await suite.client(pins={version: bytes(32)}).gallery("door")


async def test_a_public_key_that_is_not_its_digests_is_refused(suite, client, door):
    other = client.scheme.generate(door.layout.parameters).public
    # a key service that lies: the stored row agrees with itself, the pin does not
    right = (await client.list_keys())[0].public_key_digest
    changed = (other, hashlib.sha256(other).digest())
    assert execute(suite.keys / "keys.db", "UPDATE key_versions SET public_key = ?, public_key_digest = ?", *changed)
    await client.gallery("door")
    with pytest.raises(KeyNotTrusted):
        await suite.client(pins={door.info.key_version: right}).gallery("door")


async def test_with_pins_an_unpinned_key_is_refused(suite, client, door):
    with pytest.raises(KeyNotTrusted):
        await suite.client(pins={"keys/other/versions/1": bytes(32)}).gallery("door")


async def test_compute_cannot_name_another_key(suite, client, door):
    """Whoever colludes with compute may have registered a key of their own."""
    await client.create_gallery("mine", policy=POLICY, client_held=True)
    await client.delete_gallery("mine")
    execute(suite.compute / "record.db", "UPDATE galleries SET key_version = 'keys/mine/versions/1'")
    with pytest.raises(KeyNotTrusted):
        await client.gallery("door")


# --- nothing a caller does depends on the answer


@pytest.mark.parametrize("enrolled_since", [False, True])
async def test_compute_sees_the_same_calls_whatever_the_decision(suite, client, door, enrolled_since):
    calls: list[str] = []
    for stub, name in (
        (client.matching, "Verify"),
        (client.matching, "Identify"),
        (client.enrollment, "ListSlotChanges"),
        (client.enrollment, "GetSubject"),
    ):
        method = getattr(stub, name)
        setattr(stub, name, lambda *a, name=name, method=method, **k: calls.append(name) or method(*a, **k))
    other = await suite.client().gallery("door")
    await other.enroll("a", person(1))
    seen: dict[bool, list[list[str]]] = {True: [], False: []}
    for match in (True, False, True, False):
        if enrolled_since:
            await other.enroll("a", person(2))
        calls.clear()
        assert (await door.verify("a", person(1 if match else 9))).match is match
        assert (await door.identify(person(1 if match else 9))).match is match
        seen[match].append(calls.copy())
    assert seen[True][1] == seen[False][0] == seen[False][1]
    assert "Verify" in seen[True][0]


async def test_policies_are_read_and_replaced(client, door):
    changed = await client.update_policy("door", Policy(0.1, 0.05))
    assert (changed.verification_threshold, changed.version) == (0.1, 2)
    assert await client.policy("door") == changed
    with service_error("FAILED_PRECONDITION", "STALE_VERSION"):
        await client.update_policy("door", Policy(0.1, 0.05))


# --- who asks


async def test_without_a_credential_nothing_is_made_and_nothing_decided(suite, client, door):
    await door.enroll("ann", person(1))
    nobody = suite.client(anonymous=True)
    with pytest.raises(CredentialMissing):
        await nobody.create_gallery("other", policy=POLICY)
    assert len(await client.list_keys()) == 1
    with service_error("UNAUTHENTICATED", "TOKEN_MISSING"):
        await nobody.gallery("door")
    token, digest = new_static()
    await client.create_caller("clerk", grants=[Grant(Role.ADMIN, "door")], token_digest=digest)
    gallery = await suite.client(anonymous=True, token=token).gallery("door")
    await gallery.enroll("bob", person(2))  # what only compute is asked for needs no signature
    with pytest.raises(CredentialMissing):
        await gallery.verify("ann", person(1))
    with pytest.raises(CredentialMissing):
        await gallery.identify(person(1))
    with service_error("UNAUTHENTICATED", "SIGNATURE_MISSING"):
        await nobody.update_policy("door", Policy(0.1, 0.1))


async def test_a_verifier_decides_and_makes_no_keys(suite, client, door):
    await door.enroll("ann", person(1))
    alice = Credential.generate("callers/alice")
    verifier = suite.client(alice)
    with service_error("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        await verifier.gallery("door")
    await client.create_caller("alice", alice.verifying_key)
    gallery = await verifier.gallery("door")
    assert (await gallery.verify("ann", person(1))).match
    with service_error("PERMISSION_DENIED", "NOT_ALLOWED"):
        await gallery.enroll("bob", person(2))
    with service_error("PERMISSION_DENIED", "OPERATOR_REQUIRED"):
        await verifier.create_gallery("other", policy=POLICY)


async def test_connecting_by_a_state_folder_or_the_environment(suite, client, tmp_path, monkeypatch, door):
    import json

    from sealface_client.endpoints import NoServices

    for name in ("STATE", "KEYS", "ENROLLMENT", "MATCHING", "CREDENTIAL"):
        monkeypatch.delenv(f"SEALFACE_{name}", raising=False)
    with pytest.raises(NoServices):
        AsyncClient.connect(tmp_path / "none")
    state = tmp_path / "state"
    (state / "edge").mkdir(parents=True)
    suite.operator.save(state / "edge")
    (state / "services.json").write_text(json.dumps(suite.addresses))
    async with AsyncClient.connect(state, scheme=suite.scheme) as found:
        assert found.credential.caller == "callers/operator"
        assert (await found.gallery("door")).id == "door"
    for name, address in suite.addresses.items():
        monkeypatch.setenv(f"SEALFACE_{name.upper()}", address)
    alice = Credential.generate("callers/alice")
    await client.create_caller("alice", alice.verifying_key)
    monkeypatch.setenv("SEALFACE_CREDENTIAL", str(alice.save(tmp_path)))
    async with AsyncClient.connect(scheme=suite.scheme) as found:
        assert found.credential.caller == "callers/alice"
        assert len(await found.galleries()) == 1
    (state / "services.json").write_text("no json")
    for name in suite.addresses:
        monkeypatch.delenv(f"SEALFACE_{name.upper()}")
    with pytest.raises(NoServices):
        AsyncClient.connect(state)


# --- faces


@pytest.mark.parametrize(
    ("face", "error"),
    [
        (np.zeros(128), ZeroEmbedding),
        (np.full(128, np.nan), EmbeddingNotFinite),
        (np.r_[np.inf, np.ones(127)], EmbeddingNotFinite),
        (np.ones(127), WrongDimension),
        (np.ones(512), WrongDimension),
        (np.ones((2, 64)), WrongDimension),
        (np.ones(0), WrongDimension),
        ("/no/such/picture.jpg", ImageUnreadable),
    ],
)
async def test_a_face_that_is_none_never_leaves_the_machine(suite, door, face, error):
    await door.enroll("ann", person(1))
    before = suite.record()
    for call in (lambda: door.enroll("bob", face), lambda: door.verify("ann", face), lambda: door.identify(face)):
        with pytest.raises(error):
            await call()
    assert suite.record() == before


async def test_a_picture_that_cannot_be_read_is_named(door, tmp_path):
    with pytest.raises(ImageUnreadable, match=r"none\.jpg"):
        await door.enroll("ann", tmp_path / "none.jpg")
    with pytest.raises(ImageUnreadable):
        await door.enroll("ann", tmp_path)


@pytest.mark.parametrize("subject", ["", "a/b", "ä", "x" * 65])
async def test_a_subject_is_named_properly(door, subject):
    for call in (lambda: door.enroll(subject, person(1)), lambda: door.erase(subject)):
        with pytest.raises(InvalidName):
            await call()
    with pytest.raises(SubjectNotFound):
        await door.verify(subject, person(1))


async def test_scale_does_not_matter_where_vectors_are_normalised(door):
    await door.enroll("ann", 1e-30 * person(1))
    assert (await door.verify("ann", 1e30 * near(person(1), 0.1))).match


# --- enrolling


async def test_an_enrolment_may_be_repeated(suite, door):
    first = await door.enroll("ann", person(1), request_id="once")
    assert await door.enroll("ann", person(1), request_id="once") == first
    assert len(suite.record()["templates"]) == 1
    assert first.template == "galleries/door/subjects/ann/templates/1"
    assert first.bytes_sent > 100


@both_schemes
async def test_many_are_enrolled_with_a_result_for_each_in_order(suite, door, tmp_path):
    faces = [
        ("a", np.zeros(128)),
        ("b", person(1)),
        ("c", tmp_path / "none.jpg"),
        ("no/name", person(2)),
        ("d", person(3)),
        ("e", np.ones(3)),
    ]
    results = [result async for result in door.enroll_many(faces)]
    assert [type(result) for result in results] == [
        ZeroEmbedding,
        Enrolled,
        ImageUnreadable,
        InvalidName,
        Enrolled,
        WrongDimension,
    ]
    assert [result.slot for result in results if isinstance(result, Enrolled)] == [1, 2]
    assert [row[2] for row in suite.record()["templates"]] == ["b", "d"]


async def test_one_that_the_service_refuses_stops_no_other(suite, door):
    faces = [("ann", near(person(1), 0.01 * i)) for i in range(1, 18)] + [("bob", person(2))]
    results = [result async for result in door.enroll_many(faces)]
    assert [type(result) for result in results] == [Enrolled] * 16 + [ServiceError, Enrolled]
    assert (results[16].code.name, results[16].reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_TEMPLATES")
    assert len({result.bytes_sent for result in results if isinstance(result, Enrolled)}) <= 2


# --- enrolling a person once


@both_schemes
@pytest.mark.parametrize("client_held", [False, True], ids=["managed", "client-held"])
async def test_a_person_who_is_somebody_else_already_is_not_enrolled(suite, client, client_held):
    gallery = await client.create_gallery("door", policy=POLICY, client_held=client_held)
    assert (await gallery.enroll("ann", person(1), unique=True)).slot == 1
    assert (await gallery.enroll("bob", person(2), unique=True)).slot == 2
    before = suite.record()
    with pytest.raises(AlreadyEnrolled) as caught:
        await gallery.enroll("new", near(person(1), 0.1), unique=True)
    assert caught.value.metadata == {"subject": "ann"}
    assert isinstance(caught.value, AlreadyExists)
    assert suite.record() == before
    # the same subject may get another template, and anybody without the check
    assert (await gallery.enroll("ann", near(person(1), 0.1), unique=True)).slot == 3
    assert (await gallery.enroll("new", near(person(1), 0.2))).slot == 4
    # of two who are near the other one counts
    with pytest.raises(AlreadyEnrolled) as caught:
        await gallery.enroll("ann", person(1), unique=True)
    assert caught.value.metadata == {"subject": "new"}
    await gallery.erase("new")
    assert (await gallery.enroll("ann", person(1), unique=True)).slot == 5


async def test_near_enough_is_what_a_search_names(door):
    """The policy's threshold of searches, not of verifications."""
    await door.enroll("ann", person(1))
    with pytest.raises(AlreadyEnrolled):
        await door.enroll("bob", near(person(1), 0.29), unique=True)
    assert (await door.verify("ann", near(person(1), 0.35))).match
    assert (await door.enroll("bob", near(person(1), 0.35), unique=True)).slot == 2


async def test_the_check_needs_what_a_search_needs_and_fails_before_anything_is_stored(suite, client, door):
    await door.enroll("ann", person(1))
    nobody = await suite.client(anonymous=True, token=Signed(suite.operator)()).gallery("door")
    before = suite.record()
    with pytest.raises(CredentialMissing):
        await nobody.enroll("bob", person(2), unique=True)
    with pytest.raises(ZeroEmbedding):
        await door.enroll("bob", np.zeros(128), unique=True)
    with pytest.raises(InvalidName):
        await door.enroll("b/b", person(2), unique=True)
    assert suite.record() == before


# --- importing


def people(numbers):
    return [(f"s{number}", person(number)) for number in numbers]


async def imported(gallery, faces, **options):
    return [block async for block in gallery.import_many(faces, **options)]


@both_schemes
@pytest.mark.parametrize("client_held", [False, True], ids=["managed", "client-held"])
async def test_many_are_imported_a_block_at_a_time(suite, client, client_held):
    gallery = await client.create_gallery("door", policy=POLICY, client_held=client_held)
    await gallery.enroll("first", person(1000))
    capacity = gallery.layout.sealed_shapes[0].capacity
    blocks = await imported(gallery, people(range(2 * capacity + 1)))
    assert [type(block) for block in blocks] == [Imported] * 3
    assert [(block.first_slot, block.templates, block.last_subject) for block in blocks] == [
        (2, capacity, f"s{capacity - 1}"),
        (2 + capacity, capacity, f"s{2 * capacity - 1}"),
        (2 + 2 * capacity, 1, f"s{2 * capacity}"),
    ]
    assert all(block.bytes_sent > 1000 for block in blocks)
    assert [row[2] for row in suite.record()["templates"]] == ["first", *(f"s{i}" for i in range(2 * capacity + 1))]
    faces = [near(person(i), 0.1, i) for i in (0, capacity, 2 * capacity, 1000, 999)]
    found = [[named.subject for named in answer.candidates] async for answer in gallery.identify_many(faces)]
    assert found == [["s0"], [f"s{capacity}"], [f"s{2 * capacity}"], ["first"], []]
    for i in (0, 2 * capacity):
        assert (await gallery.verify(f"s{i}", near(person(i), 0.1))).match


async def test_nobody_is_imported(suite, door):
    before = suite.record()
    assert await imported(door, []) == []
    assert suite.record() == before


@pytest.mark.parametrize(("expected", "held"), [(0, 0), (1000, 0), (0, 300), (1, 300)])
async def test_the_shape_of_blocks_follows_what_is_expected_and_there(suite, client, door, expected, held):
    await imported(door, people(range(held)), expected=held)
    gallery = await client.gallery("door")
    await imported(gallery, people(range(held, held + 3)), expected=expected)
    columns = [row[2] for row in sorted(suite.record()["blocks"], key=lambda row: row[1])][-1]
    assert columns == gallery.layout.best_shape(expected + held).columns


async def test_the_next_block_is_made_while_one_is_sent(client, door):
    """And no more of the caller's list is taken than two blocks."""
    taken = []

    def faces():
        for number in range(10 * capacity):
            taken.append(number)
            yield f"s{number}", person(number)

    capacity = door.layout.sealed_shapes[0].capacity
    blocks = door.import_many(faces())
    assert (await anext(blocks)).first_slot == 1
    assert len(taken) == 2 * capacity
    await blocks.aclose()


@pytest.mark.parametrize(
    ("subject", "face", "error"),
    [
        ("bad", np.zeros(128), ZeroEmbedding),
        ("bad", np.full(128, np.nan), EmbeddingNotFinite),
        ("bad", np.ones(127), WrongDimension),
        ("b/d", np.ones(128), InvalidName),
    ],
)
async def test_one_that_is_wrong_ends_an_import_after_the_blocks_before(suite, door, subject, face, error):
    """What was stored was told, so that it is clear where to go on."""
    capacity = door.layout.sealed_shapes[0].capacity
    faces = [*people(range(capacity + 5)), (subject, face), *people(range(500, 600))]
    blocks = []
    with pytest.raises(error):
        async for block in door.import_many(faces):
            blocks.append(block)
    assert [(block.templates, block.last_subject) for block in blocks] == [(capacity, f"s{capacity - 1}")]
    assert len(suite.record()["templates"]) == capacity
    rest = [face for face in faces if face[0] != subject][capacity:]
    await imported(door, rest)
    assert len(suite.record()["templates"]) == capacity + 105


async def test_what_breaks_the_callers_own_list_ends_an_import_after_the_blocks_before(suite, door):
    capacity = door.layout.sealed_shapes[0].capacity

    def faces():
        yield from people(range(capacity + 5))
        raise KeyError("mine")

    blocks = []
    with pytest.raises(KeyError, match="mine"):
        async for block in door.import_many(faces()):
            blocks.append(block)
    assert [block.templates for block in blocks] == [capacity]
    assert len(suite.record()["templates"]) == capacity


async def test_a_block_that_the_service_refuses_ends_an_import(suite, door):
    faces = [*people(range(100)), *[("ann", person(1))] * 17]
    blocks = []
    with service_error("RESOURCE_EXHAUSTED", "TOO_MANY_TEMPLATES"):
        async for block in door.import_many(faces):
            blocks.append(block)
    assert [block.templates for block in blocks] == [door.layout.sealed_shapes[0].capacity]


async def test_a_block_whose_answer_was_lost_is_stored_once(suite, door, monkeypatch):
    stored, store = [], Record.import_block

    def loses_its_first_answer(record, *arguments, **named):
        stored.append(store(record, *arguments, **named))
        if len(stored) == 1:
            raise RecordUnavailable("the record went away as it was written")
        return stored[-1]

    monkeypatch.setattr(Record, "import_block", loses_its_first_answer)
    (block,) = await imported(door, people(range(9)))
    assert (block.first_slot, block.templates) == (1, 9)
    assert len(suite.record()["templates"]) == 9


async def test_what_breaks_the_callers_own_list_is_the_callers_to_see(suite, door):
    def faces():
        yield "ann", person(1)
        raise KeyError("mine")

    results = []
    with pytest.raises(KeyError, match="mine"):
        async for result in door.enroll_many(faces()):
            results.append(result)
    assert [type(result) for result in results] == [Enrolled]
    assert [result async for result in door.enroll_many([])] == []


# --- asking


@both_schemes
@pytest.mark.parametrize("client_held", [False, True], ids=["managed", "client-held"])
async def test_many_are_searched_with_a_result_for_each_in_order(client, client_held):
    gallery = await client.create_gallery("door", policy=POLICY, client_held=client_held)
    for i in range(40):
        await gallery.enroll(f"s{i}", person(i))
    faces = [np.zeros(128), person(3), np.ones(3), person(39), person(99), "/no/such/file"]
    results = [result async for result in gallery.identify_many(faces)]
    named = [
        [candidate.subject for candidate in result.candidates] if hasattr(result, "candidates") else type(result)
        for result in results
    ]
    assert named == [ZeroEmbedding, ["s3"], WrongDimension, ["s39"], [], ImageUnreadable]


@pytest.mark.parametrize("client_held", [False, True], ids=["managed", "client-held"])
async def test_searches_of_one_call_share_passes_and_answers_stay_in_order(client, client_held, monkeypatch):
    shared = []
    identify = Matcher.identify

    def counted(self, gallery_id, probes, *options):
        search = identify(self, gallery_id, probes, *options)
        shared.append(len(probes))
        return search

    monkeypatch.setattr(Matcher, "identify", counted)
    monkeypatch.setattr(feed, "_LINGER_S", 0.5)
    gallery = await client.create_gallery("door", policy=POLICY, client_held=client_held)
    await imported(gallery, people(range(20)))
    for i in range(20, 40):
        await gallery.enroll(f"s{i}", person(i))
    # some that never leave, in between and at both ends
    numbers = list(range(38))
    faces = [near(person(i), 0.1, i) for i in numbers]
    faces = [np.zeros(128), *faces[:10], np.ones(3), np.full(128, np.nan), *faces[10:], person(77), "/no/such/file"]
    results = [result async for result in gallery.identify_many(faces)]
    named = [
        [candidate.subject for candidate in result.candidates] if isinstance(result, Identification) else type(result)
        for result in results
    ]
    found = [[f"s{i}"] for i in numbers]
    wrong = [WrongDimension, EmbeddingNotFinite]
    assert named == [ZeroEmbedding, *found[:10], *wrong, *found[10:], [], ImageUnreadable]
    assert shared == [16, 16, 7]


async def test_what_the_service_refuses_of_many_stands_in_its_place(client, door, monkeypatch):
    monkeypatch.setattr(feed, "_LINGER_S", 0.5)
    for i in range(5):
        await door.enroll(f"s{i}", person(i))
    probe_of, asked = Keyed.probe, []

    def spoilt(keyed, ciphertext):
        asked.append(ciphertext)
        return probe_of(keyed, b"random" if len(asked) in {2, 5} else ciphertext)

    monkeypatch.setattr(Keyed, "probe", spoilt)
    results = [result async for result in door.identify_many([person(i) for i in range(5)])]
    assert [getattr(result, "reason", None) for result in results] == [
        None,
        "MALFORMED_CIPHERTEXT",
        None,
        None,
        "MALFORMED_CIPHERTEXT",
    ]
    assert [result.candidates[0].subject for result in results if isinstance(result, Identification)] == [
        "s0",
        "s2",
        "s3",
    ]


async def test_a_sealed_decision_of_another_request_is_refused(client, door, monkeypatch):
    """Compute may try to pass an old answer for a new one."""
    await door.enroll("ann", person(1))
    answers = []
    verify = client.matching.Verify

    async def replayed(request, **options):
        answers.append(await verify(request, **options))
        return answers[0]

    monkeypatch.setattr(client.matching, "Verify", replayed)
    assert (await door.verify("ann", person(1))).match
    with pytest.raises(DecisionNotGenuine):
        await door.verify("ann", person(9))


async def test_who_signs_decisions_is_asked_once_and_held_on_to(suite, client, door):
    await door.enroll("ann", person(1))
    await door.verify("ann", person(1))
    execute(suite.keys / "keys.db", "DELETE FROM identity")
    await suite.restart("keys")
    with pytest.raises(DecisionNotGenuine):
        await door.verify("ann", person(1))


async def test_a_restart_of_the_key_service_is_waited_out_with_a_new_nonce(suite, client, door, monkeypatch):
    await door.enroll("ann", person(1))
    await door.verify("ann", person(1))
    asked = []
    ask = PendingDecision.ask.__func__

    def noted(cls, *arguments, **named):
        pending = ask(cls, *arguments, **named)
        asked.append(decision_pb2.DecisionRequest.FromString(pending.signed.decision_request))
        return pending

    monkeypatch.setattr(PendingDecision, "ask", classmethod(noted))
    await suite.stop("keys")
    verifying = asyncio.create_task(door.verify("ann", person(1)))
    while not asked:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await suite.start("keys")
    assert (await verifying).match
    assert len(asked) > 1
    for field in ("nonce", "request_id", "hpke_public_key", "probe_digest"):  # a probe of its own, too
        assert len({getattr(request, field) for request in asked}) == len(asked)
    held = {row[0] for row in dump(suite.keys / "keys.db")["nonces"]}
    assert asked[-1].nonce in held


async def test_a_key_service_that_stays_away_is_said_in_the_end(suite, door):
    await door.enroll("ann", person(1))
    assert (await door.verify("ann", person(1))).match
    await suite.stop("keys")
    with service_error("UNAVAILABLE", "KEY_SERVICE_UNAVAILABLE"):
        await door.verify("ann", person(1))


async def test_a_service_that_is_away_is_named(suite, client, door):
    await suite.stop("enrollment")
    with pytest.raises(ServiceError, match="enrollment service does not answer") as caught:
        await client.galleries()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.retryable


async def test_a_table_that_is_behind_is_brought_up_to_date(suite, client, door):
    other = await suite.client().gallery("door")
    await door.enroll("ann", person(1))
    assert (await other.verify("ann", person(1))).match
    await door.erase("ann")
    await door.enroll("ann", person(2))
    # the slot it knows is gone: it looks again and claims the new one
    assert (await other.verify("ann", person(2))).match
    # a template it has not heard of
    await door.enroll("ann", person(3))
    assert (await other.verify("ann", person(3))).match
    await door.erase("ann")
    with pytest.raises(SubjectNotFound):
        await other.verify("ann", person(3))
    with pytest.raises(SubjectNotFound):
        await other.verify("nobody", person(3))


async def test_subjects_are_listed(door):
    for i in range(3):
        await door.enroll(f"s{i}", person(i))
    assert [subject.name for subject in await door.subjects()] == [f"galleries/door/subjects/s{i}" for i in range(3)]


# --- client-held keys


@both_schemes
async def test_a_held_key_never_leaves_and_is_needed(suite, client, safe):
    await safe.enroll("ann", person(1))
    (file,) = (suite.folder / "edge").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    secret = file.read_bytes()
    if len(secret) > 1000:
        files = [path for zone in (suite.keys, suite.compute) for path in zone.rglob("*") if path.is_file()]
        state = b"".join(path.read_bytes() for path in files)
        assert not any(secret[at : at + 12] in state for at in range(0, len(secret) - 12, 1009))
    again = await suite.client().gallery("safe")
    assert (await again.verify("ann", person(1))).match
    file.unlink()
    other = await suite.client().gallery("safe")
    for call in (
        lambda: other.verify("ann", person(1)),
        lambda: other.identify(person(1)),
        lambda: other.distance("ann", person(1)),
    ):
        with pytest.raises(SecretKeyMissing):
            await call()


@both_schemes
async def test_scores_opened_with_another_key_are_not_genuine(suite, client, safe):
    await safe.enroll("ann", person(1))
    (file,) = (suite.folder / "edge").iterdir()
    file.write_bytes(client.scheme.generate(safe.layout.parameters).secret)
    other = await suite.client().gallery("safe")
    for call in (lambda: other.verify("ann", person(1)), lambda: other.identify(person(1))):
        with pytest.raises(DecisionNotGenuine):
            await call()


async def test_scores_of_other_slots_than_claimed_are_not_genuine(client, safe, monkeypatch):
    await safe.enroll("ann", person(1))
    await safe.enroll("bob", person(2))
    verify = client.matching.Verify

    async def moved(request, **options):
        request.claimed_slots[:] = [2]
        return await verify(request, **options)

    monkeypatch.setattr(client.matching, "Verify", moved)
    with pytest.raises(DecisionNotGenuine):
        await safe.verify("ann", person(2))


async def test_a_managed_gallery_has_no_exact_distance(door):
    await door.enroll("ann", person(1))
    with pytest.raises(SecretKeyMissing):
        await door.distance("ann", person(1))


# --- galleries that were half made


async def test_a_gallery_that_was_half_made_is_finished(client, suite):
    await suite.stop("enrollment")
    with pytest.raises(ServiceError):
        await client.create_gallery("half", policy=POLICY)
    await suite.start("enrollment")
    await asyncio.sleep(1.5)  # gRPC's pause before it connects again
    with pytest.raises(ServiceError) as raised:  # another policy is another gallery
        await client.create_gallery("half", policy=dataclasses.replace(POLICY, verification_threshold=0.01))
    assert raised.value.reason == "KEY_EXISTS"
    made = await client.create_gallery("half", policy=POLICY)
    await made.enroll("a", person(1))
    assert (await made.verify("a", person(1))).match


async def test_a_secret_key_is_never_overwritten(client, suite):
    safe = await client.create_gallery("safe", policy=POLICY, client_held=True)
    held = client.key_folder.load(safe.info.key_version)
    with service_error("ALREADY_EXISTS", "GALLERY_EXISTS"):  # the key is there, and the same
        await client.create_gallery("safe", policy=POLICY, client_held=True)
    other = dataclasses.replace(POLICY, verification_threshold=0.01)
    with service_error("ALREADY_EXISTS", "KEY_EXISTS"):
        await client.create_gallery("safe", policy=other, client_held=True)
    assert client.key_folder.load(safe.info.key_version) == held
    client.key_folder.save("keys/lost/versions/1", b"of a key service that is no more")
    with pytest.raises(SecretKeyExists):
        await client.create_gallery("lost", policy=POLICY, client_held=True)


async def test_a_refused_key_leaves_no_secret_behind(client, suite):
    await client.create_gallery("taken", policy=POLICY)
    with pytest.raises(ServiceError):
        await client.create_gallery("taken", policy=POLICY, client_held=True)
    with pytest.raises(SecretKeyMissing):
        client.key_folder.load("keys/taken/versions/1")
