"""Public material from the key service."""

from __future__ import annotations

import hashlib

import grpc

from sealface.errors import Unavailable
from sealface.runtime.status import from_rpc_error
from sealface_protos.keys.v1 import key_pb2, key_service_pb2, key_service_pb2_grpc

_DEADLINE_S = 20.0


class KeyServiceUnavailable(Unavailable):
    """The key service does not answer."""


class KeySource:
    """Reads keys from the key service.

    Args:
        channel: to the key service.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = key_service_pb2_grpc.KeyServiceStub(channel)

    async def fetch(self, name: str) -> tuple[key_pb2.Key, bytes]:
        """A key and the public key of its primary version.

        Raises:
            KeyServiceUnavailable: try again.
            SealfaceError: what the key service said, an unknown key for one.
        """
        try:
            key = await self._stub.GetKey(key_service_pb2.GetKeyRequest(name=name), timeout=_DEADLINE_S)
            chunks = self._stub.GetMaterial(
                key_service_pb2.GetMaterialRequest(key_version=key.primary_version), timeout=_DEADLINE_S
            )
            public = b"".join([chunk.data async for chunk in chunks])
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, KeyServiceUnavailable("the key service does not answer: try again")) from None
        if hashlib.sha256(public).digest() != key.public_key_digest:
            raise KeyServiceUnavailable("the public key arrived incomplete: try again")
        return key, public
