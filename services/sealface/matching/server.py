"""The process of the matching service."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from sealface.cipher.scheme import Scheme
from sealface.matching.decider import Decider
from sealface.matching.matcher import Matcher
from sealface.matching.metrics import SearchMetrics, WorkerMetrics
from sealface.matching.servicer import MatchingServicer
from sealface.matching.transcripts import FILE as TRANSCRIPTS
from sealface.matching.transcripts import Transcripts
from sealface.matching.watch import Watch
from sealface.protocol.zones import Zone
from sealface.runtime.authentication import Authenticator, Issuer
from sealface.runtime.authorisation import CALLER, AuthorisationInterceptor, Rate
from sealface.runtime.channels import connect
from sealface.runtime.metrics import Read
from sealface.runtime.server import Server, ServerConfig
from sealface.storage.cache import CacheConfig
from sealface.storage.galleries import Galleries
from sealface.storage.schema import open_record
from sealface.workers.embedded import Embedded
from sealface.workers.pool import Home, WorkerPool
from sealface.workers.server import WorkerConfig, worker_of
from sealface_protos.matching.v1 import matching_service_pb2, matching_service_pb2_grpc

SERVICE = matching_service_pb2.DESCRIPTOR.services_by_name["MatchingService"].full_name


@dataclass(frozen=True)
class MatchingConfig:
    """What the matching service needs.

    Attributes:
        folder: the compute zone's state, shared with the enrollment service.
        server: how it listens.
        keys: address of the key service, the one for services.
        home: where workers run; if none is named there is one in this process.
        replicas: how many workers hold each block.
        threads: of the worker in this process.
        memory: of the worker in this process, bytes that the blocks of all galleries may take.
        database: address of the record; a file in the folder if none is named.
        cache: of the worker in this process.
        repeatable: whether transcripts of searches are kept for an auditor.
        issuers: whose tokens are taken beside those of registered callers.
        rate: how often a caller may call.
    """

    folder: Path
    server: ServerConfig
    keys: str
    home: Home | None = None
    replicas: int = 1
    threads: int = 1
    memory: int = 1 << 62
    database: str = ""
    cache: CacheConfig | None = None
    repeatable: bool = False
    issuers: tuple[Issuer, ...] = ()
    rate: Rate = field(default_factory=Rate)


def build(config: MatchingConfig, scheme: Scheme) -> Server:
    """The service, ready to start; needs a running event loop."""
    galleries = Galleries(open_record(config.folder, config.database))
    own = WorkerConfig(config.folder, config.server, config.threads, config.memory, config.database, config.cache)
    pool = WorkerPool(config.home or Embedded(worker_of(own, scheme)), config.replicas)
    registry = CollectorRegistry()
    registry.register(Read({"workers": WorkerMetrics(pool)}))
    matcher = Matcher(galleries, scheme, pool, config.repeatable, SearchMetrics(registry).searched)
    transcripts = Transcripts(config.folder / TRANSCRIPTS) if config.repeatable else None
    channel = connect(config.keys, config.server.tls, Zone.KEYS.server_name)
    decider = Decider(channel)
    guard = AuthorisationInterceptor(Authenticator(channel, config.issuers), CALLER, config.rate)
    servicer = MatchingServicer(matcher, decider, transcripts)
    server = Server(config.server, [SERVICE], [guard], background=[pool, Watch(galleries, matcher)], registry=registry)
    matching_service_pb2_grpc.add_MatchingServiceServicer_to_server(servicer, server.grpc)
    return server
