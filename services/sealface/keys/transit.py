"""A key-encryption key in the Transit engine of HashiCorp Vault or OpenBao: it never leaves there.

The address is `vault+https://host:port/mount/key`. As is usual with Vault's clients, the environment says the rest:
VAULT_TOKEN_FILE (read at each use, so that an agent may renew it) or VAULT_TOKEN, VAULT_CACERT, VAULT_NAMESPACE.
The token's policy needs `update` on `mount/encrypt/key` and `mount/decrypt/key`, no more.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sealface.keys.providers import InvalidKeyEncryption, KeyEncryptionUnavailable, SecretDamaged

try:
    import hvac
    import requests
    from hvac.exceptions import Forbidden, InvalidRequest, VaultDown, VaultError
except ModuleNotFoundError:
    raise InvalidKeyEncryption("Vault needs the library hvac: pip install 'sealface[vault]'") from None

_TIMEOUT_S = 5.0
_CIPHERTEXT = re.compile(rb"vault:v([0-9]{1,9}):[A-Za-z0-9+/=]+")
_NOT_OURS = ("message authentication failed", "invalid ciphertext")


class TransitKey:
    """See `providers.KeyEncryptionKey`.

    Args:
        address: as above.

    Raises:
        InvalidKeyEncryption: it is malformed.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._mount, _, self._name = parts.path.strip("/").rpartition("/")
        if not (parts.hostname and self._mount and self._name) or "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidKeyEncryption("a Vault's key is vault+https://host:port/mount/key, and its token elsewhere")
        self._url = f"https://{parts.netloc}"
        self.id = f"transit:{self._mount}/{self._name}"
        if len(self.id) > 255:
            raise InvalidKeyEncryption("the mount and name of a Vault's key have at most 247 characters together")

    @property
    def reads(self) -> Sequence[Path]:
        """See `KeyEncryptionKey`."""
        return [Path(named) for name in ("VAULT_TOKEN_FILE", "VAULT_CACERT") if (named := os.environ.get(name))]

    def wrap(self, data_key: bytes, associated: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        answer = self._ask("encrypt_data", plaintext=_base64(data_key), associated_data=_base64(associated))
        wrapped: bytes = answer["ciphertext"].encode()
        self.version(wrapped)
        return wrapped

    def unwrap(self, wrapped: bytes, associated: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        self.version(wrapped)
        answer = self._ask("decrypt_data", ciphertext=wrapped.decode(), associated_data=_base64(associated))
        return base64.b64decode(answer["plaintext"])

    def version(self, wrapped: bytes) -> int:
        """See `KeyEncryptionKey`."""
        matched = _CIPHERTEXT.fullmatch(wrapped)
        if matched is None:
            raise _damaged()
        return int(matched[1])

    def _ask(self, method: str, **arguments: str) -> Any:
        """What Vault answers; its own words stay out of ours, they may name hosts and paths."""
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy, no .netrc
                session.verify = os.environ.get("VAULT_CACERT") or True
                client = hvac.Client(
                    self._url,
                    token=self._token(),
                    timeout=_TIMEOUT_S,
                    namespace=os.environ.get("VAULT_NAMESPACE"),
                    session=session,
                    allow_redirects=False,
                )
                call: Callable[..., Any] = getattr(client.secrets.transit, method)
                return call(self._name, mount_point=self._mount, **arguments)["data"]
        except InvalidRequest as error:
            if any(said in str(error) for said in _NOT_OURS):
                raise _damaged() from None
            advice = "see that the key is there, is of type aes256-gcm96, and that its old versions may decrypt"
            raise KeyEncryptionUnavailable(f"Vault's Transit engine refuses the key: {advice}") from None
        except Forbidden:
            advice = "give the key service a token that may update encrypt and decrypt of this key"
            raise KeyEncryptionUnavailable(f"Vault refuses the token: {advice}") from None
        except VaultDown:
            raise KeyEncryptionUnavailable("Vault is sealed or not set up: unseal it") from None
        except (VaultError, requests.RequestException, OSError, KeyError, TypeError, ValueError):
            raise KeyEncryptionUnavailable("Vault does not answer: start it, or see to its address and CA") from None

    def _token(self) -> str:
        named = os.environ.get("VAULT_TOKEN_FILE")
        if not named:
            return os.environ.get("VAULT_TOKEN", "")
        try:
            return Path(named).read_text().strip()
        except OSError:
            raise KeyEncryptionUnavailable(
                "Vault's token cannot be read: put its file back (VAULT_TOKEN_FILE)"
            ) from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _damaged() -> SecretDamaged:
    return SecretDamaged("a stored secret does not open in Vault: restore the key it was wrapped under")
