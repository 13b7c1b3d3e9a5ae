"""The process of the edge service."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sealface.cipher.scheme import Scheme
from sealface.edge.client import EdgeClient
from sealface.edge.credential import FOLDER, own_credential
from sealface.edge.faces import DEFAULT_LIMITS, OneAtATime
from sealface.edge.galleries import OpenGalleries
from sealface.edge.seeds import seed_folder
from sealface.edge.servicer import EdgeServicer
from sealface.errors import SealfaceError
from sealface.recognition import Limits, Pipeline
from sealface.runtime.server import Server, ServerConfig
from sealface_client import Endpoints, ServiceError
from sealface_client.faces import pipeline_of
from sealface_protos.edge.v1 import edge_service_pb2, edge_service_pb2_grpc
from sealface_protos.enrollment.v1 import gallery_pb2

SERVICE = edge_service_pb2.DESCRIPTOR.services_by_name["EdgeService"].full_name
_MARGIN_BYTES = 1 << 20  # for the rest of a message, and to tell of a picture that is somewhat too large

_log = structlog.get_logger("sealface.edge")


@dataclass(frozen=True)
class EdgeConfig:
    """What the edge service needs.

    Attributes:
        state: state folder: says where the services are; its `edge-service` folder is this service's own.
        server: how it listens; the largest message follows from the largest picture.
        limits: what pictures are accepted.
        warm: whether models are loaded before it is ready; not needed where callers send embeddings.
    """

    state: Path
    server: ServerConfig
    limits: Limits = DEFAULT_LIMITS
    warm: bool = True


class EdgeServer(Server):
    """A server that closes its channels when it stops."""

    def __init__(self, config: ServerConfig, client: EdgeClient) -> None:
        super().__init__(config, [SERVICE])
        self._client = client

    async def stop(self) -> None:
        """Refuse new calls, finish those under way, hang up."""
        await super().stop()
        await self._client.close()


async def build(config: EdgeConfig, scheme: Scheme) -> EdgeServer:
    """The service, ready to start.

    Raises:
        NoServices: nothing says where the other services are.
        CredentialMissing, CredentialUnreadable: it has no credential; see `own_credential`.
        PassphraseNeeded: the file that is to hold the passphrase of its seeds does not.
    """
    folder = config.state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    endpoints = Endpoints.discover(config.state)
    faces = OneAtATime(config.limits)
    client = EdgeClient(endpoints, own_credential(folder), faces, scheme, seed_folder(config.state))
    if config.warm:
        await _warm(client, faces)
    largest = config.limits.max_bytes + _MARGIN_BYTES
    server = EdgeServer(replace(config.server, message_limit=largest), client)
    servicer = EdgeServicer(OpenGalleries(client))
    edge_service_pb2_grpc.add_EdgeServiceServicer_to_server(servicer, server.grpc)
    return server


async def _warm(client: EdgeClient, faces: OneAtATime) -> None:
    """Load the models of the galleries there are, else the default ones. Embeddings are served without any."""
    try:
        found = await client.galleries()
    except ServiceError:
        found = []
    level = gallery_pb2.PRIVACY_LEVEL_EDGE
    pipelines = {pipeline_of(gallery.recognition) for gallery in found if gallery.privacy_level == level}
    for pipeline in pipelines or {Pipeline()}:
        try:
            await faces.warm(pipeline)
        except SealfaceError as error:
            _log.warning("pictures are refused", model=pipeline.model, reason=error.reason, message=error.message)
