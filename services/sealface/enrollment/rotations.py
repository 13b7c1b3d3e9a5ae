"""Rotations begun: with the public material of the version that a gallery is to be moved to, from the key service."""

from __future__ import annotations

import asyncio
import uuid

from sealface.enrollment.key_source import KeySource
from sealface.enrollment.operations import Operation
from sealface.enrollment.versions import Versions
from sealface.errors import WrongState
from sealface.protocol import names
from sealface.storage.galleries import Galleries, Gallery


class RotatedByClient(WrongState):
    """The client holds the gallery's key, and moves it."""


class Rotations:
    """Begins rotations.

    Args:
        galleries: the record.
        versions: ciphertexts by key version.
        keys: the key service.
    """

    def __init__(self, galleries: Galleries, versions: Versions, keys: KeySource) -> None:
        self._galleries = galleries
        self._versions = versions
        self._keys = keys

    async def begin(self, gallery_id: str, operation_id: str, *, by_client: bool = False) -> Operation:
        """Begin to move a gallery to its key's primary version; see `Versions.begin`.

        Args:
            gallery_id: the gallery.
            operation_id: the caller's; empty for one that is made up. What moves the gallery there already goes on.
            by_client: whether the client does the key holder's part.

        Raises:
            GalleryNotFound, OperationIdReused, RotationUnderWay, KeyServiceUnavailable: see there.
            RotatedByClient: the key service does not hold the key.
        """
        gallery: Gallery = await asyncio.to_thread(self._galleries.get, gallery_id)
        if not gallery.managed and not by_client:
            raise RotatedByClient("the client holds this gallery's key: rotate it with the client library")
        key_id, _ = names.key_version(gallery.key_version)
        key, public, evaluation_keys = await self._keys.fetch(f"keys/{key_id}")
        target = key.primary_version
        name = operation_id or f"rotation-{uuid.uuid4().hex}"
        parts = gallery.layout.parts
        return await asyncio.to_thread(self._versions.begin, gallery_id, name, target, public, evaluation_keys, parts)
