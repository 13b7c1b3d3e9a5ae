"""Real services on free ports of this process, an edge service on top, and a caller of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from sealface.cipher.distance import Metric
from sealface.cipher.scheme import Scheme
from sealface.edge.credential import provide
from sealface.edge.seeds import hand_over
from sealface.edge.server import EdgeConfig
from sealface.edge.server import build as build_edge
from sealface.enrollment.server import EnrollmentConfig
from sealface.enrollment.server import build as build_enrollment
from sealface.keys.server import KeyConfig
from sealface.keys.server import build as build_keys
from sealface.matching.server import MatchingConfig
from sealface.matching.server import build as build_matching
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Signed
from sealface.recognition import Limits
from sealface.runtime.server import Server, ServerConfig
from sealface_client import AsyncClient
from sealface_client.channels import Bearing
from sealface_client.policies import default_policy
from sealface_protos.edge.v1 import edge_service_pb2 as messages
from sealface_protos.edge.v1 import edge_service_pb2_grpc

DIMENSION = 128
_BIG = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def embedding(person: int, picture: int = 0) -> NDArray[np.float64]:
    """Pictures of one person are 0.01 apart by cosine, people about 1."""
    of_person = np.random.default_rng(person).normal(size=DIMENSION)
    of_picture = np.random.default_rng([person, picture]).normal(size=DIMENSION)
    return of_person + 0.1 * of_picture


def face(values: NDArray[np.float64] | list[float] | bytes) -> messages.Face:
    if isinstance(values, bytes):
        return messages.Face(image=values)
    return messages.Face(embedding=messages.Embedding(values=values))


@dataclass(frozen=True)
class Refused:
    """What a caller sees of a refusal; `infos` are all its ErrorInfos."""

    code: grpc.StatusCode
    message: str
    infos: list[error_details_pb2.ErrorInfo] = field(default_factory=list)

    @property
    def reason(self) -> str:
        (info,) = self.infos
        return info.reason


async def refused(call: Any) -> Refused:
    """The refusal that a call must end with."""
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        infos = []
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in status_pb2.Status.FromString(value).details:
                    infos.append(error_details_pb2.ErrorInfo())
                    assert detail.Unpack(infos[-1])
        return Refused(error.code(), error.details() or "", infos)
    raise AssertionError(f"not refused: {response}")


class Zones:
    """Keys, enrollment, matching and edge, with their state below one folder."""

    def __init__(self, state: Path, scheme: Scheme) -> None:
        self.state = state
        self.scheme = scheme
        self.addresses: dict[str, str] = {}
        self.servers: dict[str, Server] = {}
        self._channels: list[grpc.aio.Channel] = []

    async def start(self) -> None:
        operator = self.operator = Credential.generate("callers/operator")
        for zone in ("keys", "compute", "edge"):
            (self.state / zone).mkdir(parents=True)
        operator.save(self.state / "edge")
        public = operator.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.operator_public = self.state / "keys" / "operator.pub"
        self.operator_public.write_bytes(public)
        for name in ("keys", "enrollment", "matching"):
            await self.start_service(name)
        self.write_services()
        self.client = AsyncClient.connect(self.state, scheme=self.scheme)
        await self.create_gallery("door", edge=True)
        await self.start_edge()

    async def create_gallery(self, gallery_id: str, **options: Any) -> None:
        """A gallery whose default threshold is not asked of DeepFace, which may be missing."""
        policy = default_policy("Dlib", Metric.COSINE, verification_threshold=0.07)
        await self.client.create_gallery(gallery_id, policy=policy, **options)

    async def start_service(self, name: str) -> None:
        config = ServerConfig(self.addresses.get(name, "127.0.0.1:0"))
        keys = self.addresses.get("keys", "")
        if name == "keys":
            server = build_keys(KeyConfig(self.state / "keys", config, self.operator_public), self.scheme)
        elif name == "enrollment":
            server = build_enrollment(EnrollmentConfig(self.state / "compute", config, keys), self.scheme)
        else:
            server = build_matching(MatchingConfig(self.state / "compute", config, keys), self.scheme)
        self.addresses[name] = await server.start()
        self.servers[name] = server

    def write_services(self, **others: str) -> None:
        (self.state / "services.json").write_text(json.dumps(self.addresses | others))

    async def start_edge(self, limits: Limits | None = None, *, warm: bool = False) -> None:
        """The edge service; in place of the one there is."""
        await self.stop_service("edge")
        config = ServerConfig(grace_s=5)
        chosen = EdgeConfig(self.state, config, limits, warm) if limits else EdgeConfig(self.state, config, warm=warm)
        await provide(self.state)  # what `sealface serve edge` has a process of its own do
        hand_over(self.state)
        self.servers["edge"] = await build_edge(chosen, self.scheme)
        self.addresses["edge"] = await self.servers["edge"].start()
        self.channel = grpc.aio.insecure_channel(self.addresses["edge"], options=_BIG)
        self._channels.append(self.channel)
        bearing = Bearing(self.channel, Signed(self.operator))
        self.edge: edge_service_pb2_grpc.EdgeServiceAsyncStub = edge_service_pb2_grpc.EdgeServiceStub(bearing)

    async def stop_service(self, name: str) -> None:
        server = self.servers.pop(name, None)
        if server is not None:
            await server.stop()

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        if hasattr(self, "client"):
            await self.client.close()
        for name in ("edge", "matching", "enrollment", "keys"):
            await self.stop_service(name)

    async def enroll(self, subject: str, what: Any, gallery: str = "door", request_id: str = "", **options: Any) -> str:
        request = messages.EnrollRequest(
            gallery=f"galleries/{gallery}",
            subject_id=subject,
            face=face(what),
            request_id=request_id or np.random.default_rng().bytes(8).hex(),
        )
        return (await self.edge.Enroll(request, **options)).template

    async def verify(self, subject: str, what: Any, gallery: str = "door", **options: Any) -> str:
        request = messages.VerifyRequest(gallery=f"galleries/{gallery}", subject_id=subject, face=face(what))
        return messages.Decision.Name((await self.edge.Verify(request, **options)).decision)

    async def identify(
        self, what: Any, gallery: str = "door", most: int = 0, **options: Any
    ) -> messages.IdentifyResponse:
        request = messages.IdentifyRequest(gallery=f"galleries/{gallery}", face=face(what), max_candidates=most)
        return await self.edge.Identify(request, **options)
