"""Public material from the key service."""

from __future__ import annotations

import hashlib
from collections import defaultdict

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

    async def fetch(self, name: str) -> tuple[key_pb2.Key, bytes, dict[int, bytes]]:
        """A key, and the public key and the Galois keys, by element, of its primary version.

        Raises:
            KeyServiceUnavailable: try again.
            SealfaceError: what the key service said, an unknown key for one.
        """
        try:
            key = await self._stub.GetKey(key_service_pb2.GetKeyRequest(name=name), timeout=_DEADLINE_S)
            request = key_service_pb2.GetMaterialRequest(
                key_version=key.primary_version,
                kinds=[key_pb2.MATERIAL_KIND_PUBLIC_KEY, key_pb2.MATERIAL_KIND_GALOIS_KEY],
            )
            found: dict[int, bytes] = defaultdict(bytes)  # the public key has element 0
            async for chunk in self._stub.GetMaterial(request, timeout=_DEADLINE_S):
                found[chunk.galois_element] += chunk.data
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, KeyServiceUnavailable("the key service does not answer: try again")) from None
        public = found.pop(0, b"")
        if hashlib.sha256(public).digest() != key.public_key_digest:
            raise KeyServiceUnavailable("the public key arrived incomplete: try again")
        return key, public, dict(found)
