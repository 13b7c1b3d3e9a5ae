"""Where a key-encryption key may be, and what an address means."""

import base64
import os
import subprocess
import sys

import pytest

from sealface.keys import wrapping
from sealface.keys.providers import (
    FileKey,
    InvalidKeyEncryption,
    KeyEncryptionKeyMissing,
    SecretDamaged,
    open_provider,
)
from sealface.keys.wrapping import KeyEncryption

KEY = bytes(range(32))
PLUG_IN = """
from sealface.keys.providers import LocalKey

class CloudKey(LocalKey):
    def __init__(self, address):
        super().__init__(lambda: address.removeprefix("cloudkms://").encode().ljust(32, b"."))
"""


@pytest.fixture
def variable(monkeypatch):
    monkeypatch.setenv("OUR_KEY", base64.b64encode(KEY).decode())


def test_the_same_key_is_the_same_wherever_it_is_kept(tmp_path, variable):
    path = tmp_path / "key"
    FileKey.create(path)
    path.write_bytes(KEY)
    file, environment = open_provider(f"file:{path}"), open_provider("env:OUR_KEY")
    assert file.id == environment.id
    assert KEY.hex()[:8] not in file.id
    wrapped = wrapping.wrap(KeyEncryption(file), b"secret", "name")
    assert wrapping.unwrap(KeyEncryption(environment), wrapped, "name") == b"secret"


@pytest.mark.parametrize("value", [None, "", "not Base64!", base64.b64encode(KEY[:31]).decode(), KEY.hex()])
def test_a_variable_that_holds_no_key_is_refused(monkeypatch, value):
    monkeypatch.delenv("OUR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OUR_KEY", value)
    with pytest.raises(KeyEncryptionKeyMissing) as caught:
        open_provider("env:OUR_KEY").wrap(KEY, b"")
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "file:",
        "env:",
        "/etc/key",
        "nosuch:thing",
        "vault+http://127.0.0.1/transit/key",
        "vault+https://127.0.0.1/key",
        "vault+https://token@127.0.0.1/transit/key",
        "vault+https://127.0.0.1/transit/key?token=secret",
        "vault+https:///transit/key",
    ],
)
def test_an_address_that_names_no_provider_is_refused(address):
    with pytest.raises(InvalidKeyEncryption) as caught:
        open_provider(address)
    assert "secret" not in str(caught.value)


def test_a_file_may_come_later_and_change(tmp_path):
    provider = open_provider(f"file:{tmp_path / 'key'}")
    with pytest.raises(KeyEncryptionKeyMissing):
        provider.wrap(KEY, b"")
    FileKey.create(tmp_path / "key")
    wrapped = provider.wrap(KEY, b"a")
    assert provider.unwrap(wrapped, b"a") == KEY
    FileKey.create(tmp_path / "key")
    with pytest.raises(SecretDamaged):
        provider.unwrap(wrapped, b"a")


def test_a_package_may_bring_a_scheme_of_its_own(tmp_path, monkeypatch):
    """As a package for a cloud KMS would: an entry point of the group `sealface.key_encryption`."""
    described = tmp_path / "sealface_cloud-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: sealface-cloud\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[sealface.key_encryption]\ncloudkms = sealface_cloud:CloudKey\n")
    (tmp_path / "sealface_cloud.py").write_text(PLUG_IN)
    code = """
from sealface.keys.providers import open_provider
from sealface.keys import wrapping
keys = wrapping.KeyEncryption(open_provider("cloudkms://projects/p/keys/k"))
assert type(keys.current).__name__ == "CloudKey"
print(wrapping.unwrap(keys, wrapping.wrap(keys, b"secret", "name"), "name").decode(), keys.probe())
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "secret 1\n"


def test_without_the_library_a_vault_says_what_to_install(monkeypatch):
    code = """
import sys
sys.modules["hvac"] = None
from sealface.keys.providers import InvalidKeyEncryption, open_provider
try:
    open_provider("vault+https://127.0.0.1/transit/key")
except InvalidKeyEncryption as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sealface[vault]'" in ran.stdout
