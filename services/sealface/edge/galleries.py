"""The galleries this service serves: opened once, looked at again after a while, and when something does not fit."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sealface.edge.client import EdgeClient
from sealface.errors import SealfaceError, WrongState
from sealface.protocol.policy import Policy
from sealface_client import AsyncGallery
from sealface_client.errors import translated
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from sealface_protos.enrollment.v1 import gallery_pb2

_T = TypeVar("_T")
# What the services, and the check of a decision, say of a call made for a gallery or key that is another by now.
_OUTDATED = frozenset(
    {
        "GALLERY_NOT_FOUND",
        "KEY_NOT_FOUND",
        "WRONG_KEY_VERSION",
        "WRONG_PARAMETER_SET",
        "DECISION_NOT_GENUINE",
    }
)
_KEY_VERSION_REFUSED = "REFUSAL_KEY_VERSION"


class NotAnEdgeGallery(WrongState):
    """The gallery's privacy level is not `edge`: its callers embed and encrypt themselves."""


@dataclass
class _Held:
    gallery: AsyncGallery
    looked: float


class OpenGalleries:
    """Open galleries by id, the most recently used ones.

    Args:
        client: the other services.
        most: galleries held open.
        fresh_s: seconds after which a gallery is looked at again.
    """

    def __init__(self, client: EdgeClient, most: int = 64, fresh_s: float = 60.0) -> None:
        self._client = client
        self._most = most
        self._fresh_s = fresh_s
        self._held: OrderedDict[str, _Held] = OrderedDict()

    async def admit(self, gallery_id: str) -> None:
        """Have compute say that whoever calls has something to do with a gallery, before pictures are looked at.

        Raises:
            ServiceError: they have not, or it is none.
        """
        request = messages.GetGalleryRequest(name=f"galleries/{gallery_id}")
        with translated("enrollment"):
            await self._client.enrollment.GetGallery(request, timeout=self._client.timeout_s)

    async def use(self, gallery_id: str, act: Callable[[AsyncGallery], Awaitable[_T]]) -> _T:
        """Do something with a gallery; once more if it turns out that it was another than the one held open.

        Args:
            gallery_id: the gallery's id.
            act: what to do; may be called twice.

        Raises:
            NotAnEdgeGallery: see there.
            SealfaceError: what else is wrong.
        """
        gallery = await self._get(gallery_id)
        try:
            return await act(gallery)
        except SealfaceError as error:
            if not _outdated(error):
                raise
            self._client.forget_verifying_key()
            self._forget(gallery_id, gallery)
        return await act(await self._get(gallery_id))

    async def _get(self, gallery_id: str) -> AsyncGallery:
        held = self._held.get(gallery_id)
        if held is None:
            return self._hold(gallery_id, await self._open(gallery_id))
        self._held.move_to_end(gallery_id)
        if time.monotonic() - held.looked < self._fresh_s:
            return held.gallery
        held.looked = time.monotonic()  # others go on with it meanwhile
        try:
            found = await self._open(gallery_id)
        except BaseException:
            self._forget(gallery_id, held.gallery)
            raise
        if _lasting(found) == _lasting(held.gallery):
            return held.gallery  # with its table of slots
        return self._hold(gallery_id, found)

    async def _open(self, gallery_id: str) -> AsyncGallery:
        gallery = await self._client.gallery(gallery_id)
        if gallery.info.privacy_level != gallery_pb2.PRIVACY_LEVEL_EDGE:
            raise NotAnEdgeGallery(
                "the gallery's callers embed and encrypt themselves: use a client library, or make a gallery for the "
                "edge service (`sealface gallery create --edge`)"
            )
        return gallery

    def _hold(self, gallery_id: str, gallery: AsyncGallery) -> AsyncGallery:
        self._held[gallery_id] = _Held(gallery, time.monotonic())
        self._held.move_to_end(gallery_id)
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return gallery

    def _forget(self, gallery_id: str, gallery: AsyncGallery) -> None:
        held = self._held.get(gallery_id)
        if held is not None and held.gallery is gallery:
            del self._held[gallery_id]


def _outdated(error: SealfaceError) -> bool:
    return error.reason in _OUTDATED or error.metadata.get("refusal") == _KEY_VERSION_REFUSED


def _lasting(gallery: AsyncGallery) -> tuple[gallery_pb2.Gallery, Policy]:
    info = gallery_pb2.Gallery()
    info.CopyFrom(gallery.info)
    info.layout_epoch = info.subjects = info.templates = 0  # these change as faces are enrolled
    return info, gallery.policy
