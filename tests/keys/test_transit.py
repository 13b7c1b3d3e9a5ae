"""A key-encryption key in a real OpenBao, over TLS, with a token that may do no more than it must."""

import asyncio
from pathlib import Path

import pytest

from sealface.cli.processes import LocalServices, _prepare
from sealface.keys.providers import KeyEncryptionUnavailable, SecretDamaged, open_provider
from sealface.keys.wrapping import Envelope
from tests.conftest import both_schemes, person, refused
from tests.keys import openbao
from tests.keys.conftest import ask, create_key
from tests.keys.test_rewrap import blobs, rotate
from tests.keys.test_sealed import NOT_SERVING, SERVING, health, until

pytestmark = pytest.mark.servers
DATA_KEY = bytes(range(32))


@pytest.fixture(scope="module")
def running():
    with openbao.openbao() as bao:
        yield bao


@pytest.fixture
def bao(running, monkeypatch):
    """Unsealed, whatever became of it before, with a key that a test of its own begins with."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VAULT_TOKEN_FILE", raising=False)
    return running


def test_it_wraps_and_unwraps(bao):
    provider = open_provider(bao.address)
    wrapped = provider.wrap(DATA_KEY, b"name")
    assert provider.unwrap(wrapped, b"name") == DATA_KEY
    assert DATA_KEY not in wrapped
    assert provider.version(wrapped) == 1
    assert provider.id == "transit:transit/sealface"
    for other in (wrapped[:-8] + b"AAAAAAA=", b"vault:v1:AAAA", b"vault:v7:" + wrapped[9:], b"", b"\xff", b"vault:v1"):
        with pytest.raises(SecretDamaged):
            provider.unwrap(other, b"name")
    with pytest.raises(SecretDamaged):
        provider.unwrap(wrapped, b"another name")


def test_the_token_may_be_in_a_file_that_changes(bao, tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("none")
    monkeypatch.delenv("VAULT_TOKEN")
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(path))
    provider = open_provider(bao.address)
    assert path in provider.reads
    with pytest.raises(KeyEncryptionUnavailable, match="token"):
        provider.wrap(DATA_KEY, b"")
    path.write_text(bao.token + "\n")
    assert provider.unwrap(provider.wrap(DATA_KEY, b""), b"") == DATA_KEY
    path.unlink()
    with pytest.raises(KeyEncryptionUnavailable, match="VAULT_TOKEN_FILE"):
        provider.wrap(DATA_KEY, b"")


def test_another_servers_certificate_is_refused(bao, monkeypatch):
    monkeypatch.delenv("VAULT_CACERT")
    with pytest.raises(KeyEncryptionUnavailable, match="CA"):
        open_provider(bao.address).wrap(DATA_KEY, b"")


def test_a_key_that_is_not_there_or_too_old_says_what_to_do(bao, monkeypatch):
    with pytest.raises(KeyEncryptionUnavailable, match="token"):
        open_provider(bao.address + "-none").wrap(DATA_KEY, b"")
    monkeypatch.setenv("VAULT_TOKEN", bao.root)
    with pytest.raises(KeyEncryptionUnavailable, match="the key is there"):
        open_provider(bao.address + "-none").unwrap(b"vault:v1:AAAA", b"")
    transit = bao.admin().secrets.transit
    transit.create_key("old")
    provider = open_provider(bao.address.replace("sealface", "old"))
    wrapped = provider.wrap(DATA_KEY, b"")
    transit.rotate_key("old")
    assert provider.version(provider.wrap(DATA_KEY, b"")) == 2
    assert provider.unwrap(wrapped, b"") == DATA_KEY
    transit.update_key_configuration("old", min_decryption_version=2)
    with pytest.raises(KeyEncryptionUnavailable, match="old versions may decrypt"):
        provider.unwrap(wrapped, b"")


@both_schemes
async def test_a_service_moves_from_a_file_to_it_and_on_to_a_new_version(suite, client, door_key, alice, bao):
    results = door_key.results({5: person(0)})
    bodies = {name: Envelope.parse(blob).body for name, blob in blobs(suite).items()}
    await suite.stop("keys")
    file = f"file:{suite.keys / 'key-encryption.key'}"
    suite.key_encryption = {"key_encryption": bao.address, "key_encryption_old": file}
    await suite.start("keys")
    assert (await client.rewrap_keys()).rewrapped == 3
    await suite.stop("keys")
    (suite.keys / "key-encryption.key").unlink()
    suite.key_encryption = {"key_encryption": bao.address}
    await suite.start("keys")
    assert (await door_key.decide(ask(alice, door_key.probe), results)).candidates[0].slot == 5

    before = (await client.rewrap_keys(only_count=True)).key_encryption_key_version
    await asyncio.to_thread(bao.admin().secrets.transit.rotate_key, "sealface")
    await rotate(client, 1)
    counted = await client.rewrap_keys(only_count=True)
    assert (counted.key_encryption_key_version, counted.current, counted.rewrapped) == (before + 1, 1, 3)
    assert (await client.rewrap_keys()).rewrapped == 3
    stored = {name: Envelope.parse(blob) for name, blob in blobs(suite).items()}
    assert all(envelope.wrapped.startswith(b"vault:v%d:" % (before + 1)) for envelope in stored.values())
    assert bodies.items() <= {name: envelope.body for name, envelope in stored.items()}.items()
    assert (await door_key.decide(ask(alice, door_key.probe), results)).candidates[0].slot == 5


async def test_a_service_waits_for_it_through_a_power_failure(suite, client, bao):
    await suite.stop("keys")
    for path in suite.keys.glob("key*"):
        path.unlink()
    bao.server.kill()
    suite.key_encryption = {"key_encryption": bao.address, "look_s": 0.2}
    await suite.start("keys")
    assert await health(suite) == [NOT_SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    with refused("UNAVAILABLE", "KEYS_SEALED") as caught:
        await create_key(client)
    assert "Vault does not answer" in caught.value.details()
    await asyncio.to_thread(bao.server.start)
    while "unseal it" not in caught.value.details():
        with refused("UNAVAILABLE", "KEYS_SEALED") as caught:
            await create_key(client)
    await asyncio.to_thread(bao.unseal)
    await until(suite, [SERVING] * 4)
    assert (await create_key(client)).name == "keys/door"
    await asyncio.to_thread(bao.restart)
    await until(suite, [SERVING, SERVING, SERVING, NOT_SERVING])
    with refused("UNAVAILABLE", "KEY_ENCRYPTION_UNAVAILABLE"):
        await create_key(client, "other")
    await asyncio.to_thread(bao.unseal)
    await until(suite, [SERVING] * 4)
    assert (await create_key(client, "other")).name == "keys/other"


async def test_a_confined_process_reaches_it(suite, bao, tmp_path):
    """With the certificate and the token in files of another folder than its own."""
    files = tmp_path / "mounted"
    files.mkdir()
    (files / "token").write_text(bao.token)
    (files / "ca.crt").write_bytes(bao.authority.read_bytes())
    services = LocalServices(tmp_path / "state", insecure=True)
    services.environment = {"VAULT_TOKEN_FILE": str(files / "token"), "VAULT_CACERT": str(files / "ca.crt")}
    services.environment |= {"SEALFACE_KEY_ENCRYPTION": bao.address, "VAULT_TOKEN": ""}
    _prepare(services.state)
    try:
        await asyncio.to_thread(services.launch, "keys")
        assert services.waiting() == []
        command = await asyncio.to_thread(Path(f"/proc/{services.pid('keys')}/cmdline").read_bytes)
        assert bao.token.encode() not in command
    finally:
        await asyncio.to_thread(services.stop)
    assert "key-encryption.key" not in {path.name for path in (services.state / "keys").iterdir()}
