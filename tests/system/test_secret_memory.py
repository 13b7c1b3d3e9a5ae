"""Secret keys, and what opens them, are in no process but the key service's: searched for in memory, byte by byte."""

from __future__ import annotations

import base64
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealface.cli.processes import LocalServices, local_services
from sealface.keys import wrapping
from sealface.keys.providers import EnvironmentKey
from sealface.keys.wrapping import KeyEncryption
from sealface_client import AsyncClient, Client
from sealface_protos.keys.v1 import key_service_pb2
from tests.system.conftest import POLICY, People
from tests.system.search import Patterns, memory
from tests.system.test_leaks import pids, secret_forms

VARIABLE = "SECRET_MEMORY_TEST_KEY"
FIRST, SECOND = "keys/door/versions/1", "keys/door/versions/2"


@dataclass(frozen=True)
class Scanned:
    """What each service's processes hold of all that is looked for."""

    wanted: dict[str, list[bytes]]
    found: dict[str, set[str]]


def secrets_of(state: Path) -> dict[str, bytes]:
    """All secrets of the key zone, as only the key service can have them."""
    keys = KeyEncryption(EnvironmentKey(VARIABLE))
    with closing(sqlite3.connect(state / "keys" / "keys.db")) as connection:
        query = "SELECT 'keys/' || key || '/versions/' || number, wrapped_secret FROM key_versions"
        stored = connection.execute(query).fetchall()
        stored += connection.execute("SELECT name, wrapped_secret FROM identity").fetchall()
    return {name: wrapping.unwrap(keys, blob, name) for name, blob in stored}


def work(services: LocalServices) -> None:
    """Everything that a key is used for: enrolment, both searches, a new version, a rewrapping."""
    people = People(11)
    ada, bob = people.somebody(), people.somebody()
    with Client.connect(services.state) as client:
        gallery = client.create_gallery("door", policy=POLICY)
        gallery.enroll("ada", ada)
        gallery.enroll("bob", bob)
        assert gallery.verify("ada", people.again(ada)).match
        assert [named.subject for named in gallery.identify(people.again(bob)).candidates] == ["bob"]
        client.rewrap_keys()
        client._loop.run(rotate(client._client))
        assert gallery.verify("ada", people.again(ada)).match


async def rotate(client: AsyncClient) -> None:
    request = key_service_pb2.RotateKeyRequest(name="keys/door", primary_version=FIRST)
    assert (await client.keys.RotateKey(request)).primary_version == SECOND


@pytest.fixture(scope="module")
def scanned() -> Iterator[Scanned]:
    key = os.urandom(32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, base64.b64encode(key).decode())
        with local_services(SEALFACE_KEY_ENCRYPTION=f"env:{VARIABLE}") as services:
            work(services)
            secrets = secrets_of(services.state)
            wanted = secret_forms("first", secrets.pop(FIRST)) | secret_forms("second", secrets.pop(SECOND))
            wanted |= {name: [secret] for name, secret in secrets.items()}
            wanted |= {"key-encryption key": [key], "key-encryption key, as it is named": [base64.b64encode(key)]}
            patterns, found = Patterns(wanted), {}
            try:
                for name in ("keys", "enrollment", "matching"):
                    found[name] = set().union(*(patterns.found_in_parts(memory(pid)) for pid in pids(services, name)))
            except PermissionError:
                pytest.skip("the memory of another process may not be read here: run as root")
            yield Scanned(wanted, found)


def test_the_key_service_has_them_so_that_they_can_be_found(scanned: Scanned) -> None:
    """In the very forms in which they would be found elsewhere."""
    expected = {"first: words", "first: its square", "decision signing key", "key-encryption key, as it is named"}
    assert expected <= scanned.found["keys"]
    assert "decision signing key" in scanned.wanted and "second: packed" in scanned.wanted


@pytest.mark.parametrize("name", ["enrollment", "matching"])
def test_no_other_process_has_any_of_them(scanned: Scanned, name: str) -> None:
    assert scanned.found[name] == set()
