"""The process of the key service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sealface.cipher.scheme import Scheme
from sealface.keys.callers import Callers
from sealface.keys.judge import Judge
from sealface.keys.keyring import Keyring
from sealface.keys.lifecycle import Destroyer, Lifecycle
from sealface.keys.operator import OperatorInterceptor
from sealface.keys.servicer import KeyServicer
from sealface.keys.wrapping import FileKey
from sealface.runtime.server import Server, ServerConfig
from sealface.storage.schema import KEYS
from sealface_protos.keys.v1 import key_service_pb2, key_service_pb2_grpc

SERVICE = key_service_pb2.DESCRIPTOR.services_by_name["KeyService"].full_name


@dataclass(frozen=True)
class KeyConfig:
    """What the key service needs.

    Attributes:
        folder: the key zone's state; nobody else may read it.
        server: how it listens.
        operator: PEM file with the operator's Ed25519 public key; its name is the operator's id.
    """

    folder: Path
    server: ServerConfig
    operator: Path | None = None


def build(config: KeyConfig, scheme: Scheme) -> Server:
    """The service, ready to start. A missing key-encryption key is made only where there is no database yet."""
    config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database, key_file = config.folder / "keys.db", config.folder / "key-encryption.key"
    if not database.exists() and not key_file.exists():
        FileKey.create(key_file)
    provider = FileKey(key_file)
    engine = KEYS.open_file(database)
    callers = Callers(engine)
    if config.operator is not None:
        public = load_pem_public_key(config.operator.read_bytes())
        if not isinstance(public, Ed25519PublicKey):
            raise ValueError(f"{config.operator}: no Ed25519 public key")
        callers.ensure_operator(config.operator.stem, public.public_bytes_raw())
    keyring = Keyring(engine, scheme, provider)
    judge = Judge(keyring, callers, engine, provider)
    lifecycle = Lifecycle(engine, keyring)
    server = Server(
        config.server,
        [SERVICE],
        interceptors=[OperatorInterceptor(callers)],
        background=[Destroyer(lifecycle, engine)],
    )
    servicer = KeyServicer(keyring, lifecycle, callers, judge)
    key_service_pb2_grpc.add_KeyServiceServicer_to_server(servicer, server.grpc)
    return server
