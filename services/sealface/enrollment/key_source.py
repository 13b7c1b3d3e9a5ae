"""What the key service gives to compute: public material, and renewed blocks."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterator

import grpc

from sealface.cipher.scheme import Scheme
from sealface.enrollment.asked import Asked
from sealface.errors import SealfaceError, Unavailable, WrongState
from sealface.protocol import convert
from sealface.runtime.request_ids import passed_on
from sealface.runtime.status import UpstreamError, from_rpc_error
from sealface_protos.keys.v1 import key_pb2, key_service_pb2, key_service_pb2_grpc

_DEADLINE_S = 20.0
_RENEWAL_DEADLINE_S = 60.0
_CHUNK_BYTES = 1 << 20


class KeyServiceUnavailable(Unavailable):
    """The key service does not answer."""


class KeyServiceRefused(WrongState):
    """The key service's state does not allow it; the reason is the key service's."""

    def __init__(self, said: UpstreamError) -> None:
        super().__init__(said.message, **said.metadata)
        self._reason = said.reason

    @property
    def reason(self) -> str:
        """The key service's reason."""
        return self._reason


class KeySource:
    """Asks the key service.

    Args:
        channel: to the key service.
        scheme: the cipher, which checks public keys.
    """

    def __init__(self, channel: grpc.aio.Channel, scheme: Scheme) -> None:
        self._scheme = scheme
        self._stub: key_service_pb2_grpc.KeyServiceAsyncStub = key_service_pb2_grpc.KeyServiceStub(channel)

    async def fetch(self, name: str) -> tuple[key_pb2.Key, bytes, dict[int, bytes]]:
        """A key, and the public key and the Galois keys, by element, of its primary version.

        Raises:
            KeyServiceUnavailable: try again.
            MalformedCiphertext: the public key may have a trapdoor.
            SealfaceError: what the key service said, an unknown key for one.
        """
        try:
            asked = key_service_pb2.GetKeyRequest(name=name)
            key = await self._stub.GetKey(asked, timeout=_DEADLINE_S, metadata=passed_on())
            request = key_service_pb2.GetMaterialRequest(
                key_version=key.primary_version,
                kinds=[key_pb2.MATERIAL_KIND_PUBLIC_KEY, key_pb2.MATERIAL_KIND_GALOIS_KEY],
            )
            found: dict[int, bytes] = defaultdict(bytes)  # the public key has element 0
            async for chunk in self._stub.GetMaterial(request, timeout=_DEADLINE_S, metadata=passed_on()):
                found[chunk.galois_element] += chunk.data
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, KeyServiceUnavailable("the key service does not answer: try again")) from None
        public = found.pop(0, b"")
        if hashlib.sha256(public).digest() != key.public_key_digest:
            raise KeyServiceUnavailable("the public key arrived incomplete: try again")
        layout = convert.layout_from_proto(key.parameter_set, key.score_format)
        await asyncio.to_thread(self._scheme.check_public, layout.parameters, public)
        return key, public, dict(found)

    async def renew(self, asked: Asked) -> bytes:
        """A blinded block, or some templates, encrypted afresh.

        Args:
            asked: what; once, a call that failed is blinded anew.

        Raises:
            KeyServiceUnavailable: try again; also while it is sealed, or its own database is locked.
            KeyServiceRefused: a version is disabled, or not the one to move to any more; or the client holds the key.
            SealfaceError: what else the key service said.
        """
        header = key_service_pb2.RenewBlockHeader(
            key_version=asked.key_version,
            columns=asked.columns,
            cleared=asked.cleared_bits,
            target_version=asked.target_version,
            templates=asked.templates,
        )
        blinded = asked.blinded
        renewed = bytearray()
        try:
            messages = _messages(header, blinded)
            async for part in self._stub.RenewBlock(messages, timeout=_RENEWAL_DEADLINE_S, metadata=passed_on()):
                renewed += part.data
                if len(renewed) > len(blinded):
                    break  # its length is refused where it is parsed
        except grpc.aio.AioRpcError as error:
            raise _of(error) from None
        return bytes(renewed)


def _of(error: grpc.aio.AioRpcError) -> SealfaceError:
    """What a failed renewal means to whoever has it in hand."""
    away = KeyServiceUnavailable("the key service does not answer: try again")
    said = from_rpc_error(error, away)
    if not isinstance(said, UpstreamError) or said.code is grpc.StatusCode.UNAVAILABLE:
        return away
    return KeyServiceRefused(said) if said.code is grpc.StatusCode.FAILED_PRECONDITION else said


def _messages(header: key_service_pb2.RenewBlockHeader, data: bytes) -> Iterator[key_service_pb2.RenewBlockRequest]:
    yield key_service_pb2.RenewBlockRequest(header=header)
    for at in range(0, len(data), _CHUNK_BYTES):
        yield key_service_pb2.RenewBlockRequest(data=data[at : at + _CHUNK_BYTES])
