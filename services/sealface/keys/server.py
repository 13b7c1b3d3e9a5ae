"""The process of the key service."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from prometheus_client import CollectorRegistry

from sealface.cipher.scheme import Scheme
from sealface.keys.audit import AuditLog
from sealface.keys.callers import Callers
from sealface.keys.deadlines import Deadlines
from sealface.keys.judge import MOST_STRIKES, Judge
from sealface.keys.keyring import Keyring
from sealface.keys.lifecycle import Destroyer, Lifecycle
from sealface.keys.metrics import DecisionMetrics, KeyMetrics
from sealface.keys.occupancy import Occupancy
from sealface.keys.operator import OperatorInterceptor
from sealface.keys.providers import FileKey, open_provider
from sealface.keys.recovery import PUBLIC_FILE, RecoveryRecipient
from sealface.keys.rewrap import rewrap_all
from sealface.keys.sealed import LOOK_S, Seal, SealInterceptor
from sealface.keys.servicer import KeyServicer
from sealface.keys.wrapping import KeyEncryption
from sealface.protocol.zones import Zone
from sealface.runtime.metrics import Read
from sealface.runtime.server import Server, ServerConfig
from sealface.storage.schema import KEYS
from sealface_protos.keys.v1 import key_service_pb2, key_service_pb2_grpc

KEY_FILE = "key-encryption.key"
SERVICE = key_service_pb2.DESCRIPTOR.services_by_name["KeyService"].full_name
_OF_COMPUTE = {f"/{SERVICE}/{method}": Zone.COMPUTE.identity for method in ("Decide", "RenewBlock", "FindCaller")}


@dataclass(frozen=True)
class KeyConfig:
    """What the key service needs.

    Attributes:
        folder: the key zone's state; nobody else may read it.
        server: how it listens.
        operator: PEM file with the operator's Ed25519 public key; its name is the operator's id.
        key_encryption: address of the key-encryption key, see `providers.open_provider`; default a file in `folder`.
        key_encryption_old: address of the one before, for what is not rewrapped yet.
        look_s: seconds between looks at the key-encryption key.
        strikes: requests with results that are not genuine, within an hour, that put a key version into quarantine.
    """

    folder: Path
    server: ServerConfig
    operator: Path | None = None
    key_encryption: str = ""
    key_encryption_old: str = ""
    look_s: float = LOOK_S
    strikes: int = MOST_STRIKES

    @property
    def database(self) -> Path:
        """The key zone's database."""
        return self.folder / "keys.db"

    def encryption(self) -> KeyEncryption:
        """The key-encryption keys; whether they are there is not looked at.

        Raises:
            InvalidKeyEncryption, RecoveryKeyUnreadable: see there.
        """
        own, public = self.folder / KEY_FILE, self.folder / PUBLIC_FILE
        return KeyEncryption(
            open_provider(self.key_encryption or f"file:{own}"),
            [open_provider(self.key_encryption_old)] if self.key_encryption_old else [],
            RecoveryRecipient.load(public) if public.exists() else None,
        )


def build(config: KeyConfig, scheme: Scheme) -> Server:
    """The service, ready to start; sealed until it has its key-encryption key.

    That is made only where it is to be in the service's own folder, and there is no database yet.
    """
    config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file = config.folder / KEY_FILE
    if not config.key_encryption and not config.database.exists() and not key_file.exists():
        FileKey.create(key_file)
    encryption = config.encryption()
    engine = KEYS.open_file(config.database)
    callers = Callers(engine)
    if config.operator is not None:
        public = load_pem_public_key(config.operator.read_bytes())
        if not isinstance(public, Ed25519PublicKey):
            raise ValueError(f"{config.operator}: no Ed25519 public key")
        callers.ensure_operator(config.operator.stem, public.public_bytes_raw())
    keyring = Keyring(engine, scheme, encryption)
    lifecycle = Lifecycle(engine, keyring)
    log = AuditLog(engine, encryption)
    registry = CollectorRegistry()
    decided = DecisionMetrics(registry).decided
    judge = Judge(keyring, lifecycle, callers, log, engine, encryption, config.strikes, decided)

    def report(serving: bool, *names: str) -> None:
        server.report(serving, *names)

    def unseal() -> None:
        judge.unseal()
        log.unseal()

    seal = Seal(unseal, encryption.probe, report, config.look_s)
    registry.register(Read({"keys": KeyMetrics(keyring, lambda: seal.sealed)}))
    server = Server(
        config.server,
        [SERVICE],
        interceptors=[SealInterceptor(seal), OperatorInterceptor(callers, log)],
        background=[Occupancy(config.folder), seal, Destroyer(lifecycle, engine)],
        peers=_OF_COMPUTE,
        registry=registry,
    )
    rewrap = partial(rewrap_all, engine, encryption)
    servicer = KeyServicer(keyring, lifecycle, callers, judge, log, Deadlines(), rewrap)
    key_service_pb2_grpc.add_KeyServiceServicer_to_server(servicer, server.grpc)
    return server
