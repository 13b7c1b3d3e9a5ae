"""The process of the enrollment service."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from sealface.cipher.scheme import Scheme
from sealface.enrollment.asked import Asked
from sealface.enrollment.audit import ACTOR
from sealface.enrollment.enroller import Enroller
from sealface.enrollment.erasure import Eraser
from sealface.enrollment.housekeeper import Housekeeper
from sealface.enrollment.invalidation import Invalidation
from sealface.enrollment.key_source import KeySource
from sealface.enrollment.leases import Leases
from sealface.enrollment.metrics import RecordMetrics
from sealface.enrollment.operation_servicer import OperationServicer
from sealface.enrollment.operations import Operations
from sealface.enrollment.record import Record
from sealface.enrollment.renewals import Renewals
from sealface.enrollment.rotation import Rotator
from sealface.enrollment.rotations import Rotations
from sealface.enrollment.sealer import Sealer
from sealface.enrollment.servicer import EnrollmentServicer
from sealface.enrollment.versions import Versions
from sealface.protocol.zones import Zone
from sealface.runtime.authentication import Authenticator, Issuer
from sealface.runtime.authorisation import AuthorisationInterceptor, Rate
from sealface.runtime.channels import connect
from sealface.runtime.metrics import Read
from sealface.runtime.server import Background, Server, ServerConfig
from sealface.storage.cache import CacheConfig
from sealface.storage.entries import Entries
from sealface.storage.galleries import Galleries
from sealface.storage.schema import open_record
from sealface.storage.sweep import Sweep
from sealface_protos.enrollment.v1 import (
    enrollment_service_pb2,
    enrollment_service_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
)

SERVICE = enrollment_service_pb2.DESCRIPTOR.services_by_name["EnrollmentService"].full_name
OPERATIONS = operation_pb2.DESCRIPTOR.services_by_name["OperationService"].full_name


@dataclass(frozen=True)
class EnrollmentConfig:
    """What the enrollment service needs.

    Attributes:
        folder: the compute zone's state, shared with the matching service.
        server: how it listens.
        keys: address of the key service, the one for services.
        database: address of the record; a file in the folder if none is named.
        cache: that matching reads through; what is erased is dropped from it.
        issuers: whose tokens are taken beside those of registered callers.
        rate: how often a caller may call.
    """

    folder: Path
    server: ServerConfig
    keys: str
    database: str = ""
    cache: CacheConfig | None = None
    issuers: tuple[Issuer, ...] = ()
    rate: Rate = field(default_factory=Rate)


def build(config: EnrollmentConfig, scheme: Scheme) -> Server:
    """The service, ready to start; needs a running event loop."""
    engine = open_record(config.folder, config.database)
    galleries, record = Galleries(engine), Record(engine)
    channel = connect(config.keys, config.server.tls, Zone.KEYS.server_name)
    keys = KeySource(channel, scheme)
    guard = AuthorisationInterceptor(Authenticator(channel, config.issuers), ACTOR, config.rate)
    loop = asyncio.get_running_loop()

    def ask(asked: Asked) -> Future[bytes]:
        return asyncio.run_coroutine_threadsafe(keys.renew(asked), loop)

    operations, versions = Operations(engine), Versions(engine)
    sealer = Sealer(galleries, record, scheme, ask)
    rotator = Rotator(galleries, versions, operations, scheme)
    renewals = Renewals(galleries, sealer, rotator, lambda: Leases(engine))
    entries = None if config.cache is None else Entries(config.cache.address, config.cache.limit)
    sweep = None if entries is None else Sweep(galleries, entries)
    eraser = Eraser(galleries, record, operations, sealer, sweep)
    housekeeper = Housekeeper(galleries, record, operations, Leases(engine), sealer, eraser, rotator, versions, ask)
    rotations = Rotations(galleries, versions, keys)
    servicer = EnrollmentServicer(
        galleries, record, Enroller(galleries, record, scheme), keys, renewals, rotations, housekeeper.wake
    )
    background: list[Background] = [housekeeper]
    if entries is not None:
        background.append(Invalidation(galleries, entries))
    registry = CollectorRegistry()
    registry.register(Read({"record": RecordMetrics(galleries)}))
    server = Server(config.server, [SERVICE, OPERATIONS], [guard], background, registry=registry)
    operation_pb2_grpc.add_OperationServiceServicer_to_server(
        OperationServicer(operations, record, rotations, housekeeper.wake), server.grpc
    )
    enrollment_service_pb2_grpc.add_EnrollmentServiceServicer_to_server(servicer, server.grpc)
    return server
