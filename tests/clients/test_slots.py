import pytest

from sealface_client.slots import SlotTable
from tests.conftest import person


@pytest.fixture
def table(client, door):
    return SlotTable(door.info.name, client.enrollment)


async def test_a_table_follows_the_gallery_by_what_changed(client, door, table):
    await table.update(5)
    assert (table.epoch, table.slots("ann"), table.subject(1)) == (0, [], None)
    for subject in ("ann", "bob", "ann"):
        await door.enroll(subject, person(1))
    assert table.slots("ann") == []
    await table.update(5)
    assert (table.epoch, table.slots("ann"), table.slots("bob")) == (3, [1, 3], [2])
    assert [table.subject(slot) for slot in (1, 2, 3, 4)] == ["ann", "bob", "ann", None]
    await door.erase("ann")
    await door.enroll("cyd", person(1))
    await table.update(5)
    assert (table.epoch, table.slots("ann"), table.slots("cyd")) == (5, [], [4])
    assert [table.subject(slot) for slot in (1, 2, 3, 4)] == [None, "bob", None, "cyd"]


async def test_nothing_but_changes_is_asked_for(suite, client, door, table, monkeypatch):
    asked = []
    whole = client.enrollment.ListSlotChanges

    def noted(request, **options):
        asked.append(request.since_epoch)
        return whole(request, **options)

    monkeypatch.setattr(client.enrollment, "ListSlotChanges", noted)
    for i in range(3):
        await door.enroll("ann", person(i))
        await table.update(5)
    assert asked == [0, 1, 2]
    assert table.slots("ann") == [1, 2, 3]


async def test_a_gallery_made_anew_resets_the_table(client, door, table):
    await door.enroll("ann", person(1))
    await table.update(5)
    await client.delete_gallery("door")
    from tests.enrollment.conftest import create_gallery

    await create_gallery(client)
    await table.update(5)
    assert (table.slots("ann"), table.subject(1)) == ([], None)
    await door.enroll("bob", person(2))
    await table.update(5)
    assert (table.slots("bob"), table.subject(2)) == ([2], "bob")


async def test_an_answer_that_breaks_off_is_asked_for_again(client, door, table, monkeypatch):
    from sealface.enrollment import servicer

    monkeypatch.setattr(servicer, "_CHANGES_A_MESSAGE", 2)
    for i in range(5):
        await door.enroll(f"s{i}", person(i))
    whole = client.enrollment.ListSlotChanges

    def broken(request, **options):
        async def parts():
            async for part in whole(request, **options):
                yield part
                raise ConnectionError

        return parts()

    monkeypatch.setattr(client.enrollment, "ListSlotChanges", broken)
    with pytest.raises(ConnectionError):
        await table.update(5)
    monkeypatch.undo()
    await table.update(5)
    assert [table.subject(slot) for slot in range(1, 6)] == [f"s{i}" for i in range(5)]
