"""Listings that take several pages."""

from __future__ import annotations

import pytest

from sealface_client import paging
from tests.conftest import POLICY, person


@pytest.mark.parametrize("most", [1, 2, 5, 6])
async def test_all_pages_are_listed_once_and_in_order(client, most, monkeypatch):
    monkeypatch.setattr(paging, "MOST", most)
    names = [f"door{i}" for i in range(5)]
    for name in names:
        await client.create_gallery(name, policy=POLICY)
        await client.create_caller(name, bytes(32))
    assert [gallery.name for gallery in await client.galleries()] == [f"galleries/{name}" for name in names]
    assert [key.name for key in await client.list_keys()] == [f"keys/{name}" for name in names]
    assert [caller.name for caller in await client.callers()] == [f"callers/{name}" for name in [*names, "operator"]]
    door = await client.gallery("door0")
    for i in range(5):
        await door.enroll(f"s{i}", person(i))
        await door.operations.begin_compaction(f"o{i}")
        await client.lifecycle.rotate("door1")
    assert [subject.name.rpartition("/")[2] for subject in await door.subjects()] == [f"s{i}" for i in range(5)]
    assert len({operation.name for operation in await door.operations.list()}) == 5
    assert [version.name[-1] for version in await client.lifecycle.versions("door1")] == ["6", "5", "4", "3", "2", "1"]


async def test_of_nothing_there_is_one_empty_page(client):
    assert await client.galleries() == []
