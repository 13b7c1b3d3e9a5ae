"""The process of a worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sealface.cipher.scheme import Scheme
from sealface.protocol.zones import Zone
from sealface.runtime.server import Server, ServerConfig
from sealface.storage.cache import CacheConfig, open_templates
from sealface.storage.galleries import Galleries
from sealface.storage.schema import open_record
from sealface.workers.remote import LARGEST_MESSAGE
from sealface.workers.servicer import WorkerServicer
from sealface.workers.worker import Worker
from sealface_protos.workers.v1 import worker_service_pb2, worker_service_pb2_grpc

_DESCRIPTOR = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]
SERVICE = _DESCRIPTOR.full_name
_OF_COMPUTE = {f"/{SERVICE}/{method.name}": Zone.COMPUTE.identity for method in _DESCRIPTOR.methods}


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs.

    Attributes:
        folder: the compute zone's state.
        server: how it listens.
        threads: how many score at once.
        memory: bytes that the blocks of all galleries may take.
        database: address of the record; a file in the folder if none is named.
        cache: of the record's ciphertexts.
    """

    folder: Path
    server: ServerConfig
    threads: int = 1
    memory: int = 1 << 62
    database: str = ""
    cache: CacheConfig | None = None


def worker_of(config: WorkerConfig, scheme: Scheme) -> Worker:
    """A worker on the record."""
    galleries = Galleries(open_record(config.folder, config.database))
    return Worker(galleries, scheme, config.threads, config.memory, open_templates(galleries, config.cache))


def build(config: WorkerConfig, scheme: Scheme) -> Server:
    """The service, ready to start; needs a running event loop. It serves its own zone alone."""
    worker = worker_of(config, scheme)
    listening = replace(config.server, message_limit=LARGEST_MESSAGE, mutual=True)
    server = Server(listening, [SERVICE], background=[worker.reserve], peers=_OF_COMPUTE)
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(worker), server.grpc)
    return server
