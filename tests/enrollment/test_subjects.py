import pytest

from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from tests.conftest import POLICY, person, refused
from tests.enrollment.conftest import enroll_request


async def listed(client, size=0, token="", parent="galleries/door"):
    request = messages.ListSubjectsRequest(parent=parent, page_size=size, page_token=token)
    return await client.enrollment.ListSubjects(request)


async def get(client, name="galleries/door/subjects/a"):
    return await client.enrollment.GetSubject(messages.GetSubjectRequest(name=name))


async def erase(client, name="galleries/door/subjects/a"):
    return await client.enrollment.EraseSubject(messages.EraseSubjectRequest(name=name))


async def changes(client, since=0, gallery="galleries/door"):
    request = messages.ListSlotChangesRequest(gallery=gallery, since_epoch=since)
    return [part async for part in client.enrollment.ListSlotChanges(request)]


def rows(part):
    return [(change.slot, change.subject, change.layout_epoch) for change in part.changes]


@pytest.fixture
async def peopled(door):
    """Slots 1 and 3 are a's, 2 is b's, 4 c's."""
    for subject, number in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        await door.enroll(subject, person(number))
    return door


async def test_a_subject_and_its_templates(client, peopled):
    found = await get(client)
    assert found.name == "galleries/door/subjects/a"
    assert [template.name for template in found.templates] == [
        "galleries/door/subjects/a/templates/1",
        "galleries/door/subjects/a/templates/3",
    ]
    assert [template.slot for template in found.templates] == [1, 3]
    assert all(template.create_time.seconds for template in found.templates)


async def test_pages_of_subjects(client, peopled):
    first = await listed(client, 2)
    assert [subject.name[-1] for subject in first.subjects] == ["a", "b"]
    assert [len(subject.templates) for subject in first.subjects] == [2, 1]
    second = await listed(client, 2, first.next_page_token)
    assert ([subject.name[-1] for subject in second.subjects], second.next_page_token) == (["c"], "")
    assert (await listed(client, 3)).next_page_token == ""
    assert len((await listed(client)).subjects) == 3


async def test_an_erased_subject_is_not_found(suite, client, peopled):
    answer = await erase(client)
    assert (answer.templates, answer.layout_epoch) == (2, 5)
    for call in (get, erase):
        before = suite.record()
        with refused("NOT_FOUND", "SUBJECT_NOT_FOUND"):
            await call(client)
        assert suite.record() == before
    assert [subject.name[-1] for subject in (await listed(client)).subjects] == ["b", "c"]
    stored = suite.record()
    assert [row[1] for row in stored["templates"]] == [2, 4]
    # no subject id outlives its erasure
    assert all("a" not in row for table in ("templates", "tombstones", "requests") for row in stored[table])


async def test_an_erased_subject_may_come_back_in_a_slot_of_its_own(client, peopled):
    await erase(client)
    answer = await client.enrollment.Enroll(enroll_request(peopled, "a"))
    assert answer.template.slot == 5


@pytest.mark.parametrize("call", [get, erase])
async def test_names_of_subjects(client, peopled, call):
    for name in ("", "a", "galleries/door", "galleries/door/subjects/", "galleries/door/subjects/a/templates/1"):
        with refused("INVALID_ARGUMENT", "INVALID_NAME"):
            await call(client, name)
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await call(client, "galleries/none/subjects/a")
    with refused("NOT_FOUND", "SUBJECT_NOT_FOUND"):
        await call(client, "galleries/door/subjects/nobody")


async def test_lists_of_an_unknown_gallery(client, door):
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await listed(client, parent="galleries/none")
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await listed(client, parent="none")
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await changes(client, gallery="galleries/none")
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await changes(client, gallery="")


async def test_changes_since_an_epoch(client, peopled):
    (part,) = await changes(client)
    assert rows(part) == [(1, "a", 1), (2, "b", 2), (3, "a", 3), (4, "c", 4)]
    assert (part.layout_epoch, part.reset) == (4, False)
    await erase(client)
    (part,) = await changes(client, 4)
    assert (rows(part), part.layout_epoch, part.reset) == ([(1, "", 5), (3, "", 5)], 5, False)
    (part,) = await changes(client, 5)
    assert (rows(part), part.layout_epoch, part.reset) == ([], 5, False)


async def test_an_empty_table_is_an_answer(client, door):
    (part,) = await changes(client)
    assert (rows(part), part.layout_epoch, part.reset) == ([], 0, False)


@pytest.mark.parametrize("since", [6, 1000, 2**63 - 1, 2**63, 2**64 - 1])
async def test_an_epoch_that_never_was_starts_anew(client, peopled, since):
    (part,) = await changes(client, since)
    assert part.reset
    assert len(part.changes) == 4


async def test_a_gallery_made_anew_resets_tables(client, peopled):
    await client.delete_gallery("door")
    with refused("NOT_FOUND", "GALLERY_NOT_FOUND"):
        await changes(client, 4)
    from tests.enrollment.conftest import create_gallery

    await create_gallery(client)
    for since in (1, 3, 4):
        (part,) = await changes(client, since)
        assert (part.reset, rows(part)) == (True, [])
    await client.enrollment.Enroll(enroll_request(peopled, "d"))
    (part,) = await changes(client, 4)
    assert (part.reset, [row[:2] for row in rows(part)]) == (True, [(5, "d")])
    (again,) = await changes(client, part.layout_epoch)
    assert (again.reset, rows(again)) == (False, [])


async def test_long_tables_come_in_parts_and_reset_in_the_first_only(client, peopled, monkeypatch):
    from sealface.enrollment import servicer

    monkeypatch.setattr(servicer, "_CHANGES_A_MESSAGE", 3)
    parts = await changes(client)
    assert [len(part.changes) for part in parts] == [3, 1]
    assert [part.layout_epoch for part in parts] == [4, 4]
    parts = await changes(client, 99)
    assert [part.reset for part in parts] == [True, False]


async def test_subjects_of_one_gallery_are_not_anothers(client, peopled):
    other = await client.create_gallery("other", policy=POLICY)
    await other.enroll("a", person(9))
    await erase(client)
    assert len((await get(client, "galleries/other/subjects/a")).templates) == 1
