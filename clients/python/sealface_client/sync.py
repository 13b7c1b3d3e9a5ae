"""The blocking client: the asyncio one on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Scheme
from sealface.errors import SealfaceError
from sealface.protocol.audit import Entry
from sealface.protocol.policy import Policy
from sealface.protocol.rights import ALL, Grant, Role
from sealface.protocol.signing import Credential
from sealface_client.aio import AsyncClient
from sealface_client.audit import Usage
from sealface_client.endpoints import Endpoints
from sealface_client.faces import Face
from sealface_client.gallery import AsyncGallery
from sealface_client.key_folder import KeyFolder
from sealface_client.lifecycle import AsyncLifecycle
from sealface_client.operations import AsyncOperations, Operation
from sealface_client.passphrases import Ask
from sealface_client.results import Enrolled, Erasure, Identification, Imported, Verification
from sealface_protos.enrollment.v1 import gallery_pb2
from sealface_protos.keys.v1 import caller_pb2, key_pb2, key_service_pb2

_T = TypeVar("_T")


class _Loop:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sealface-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def each(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        async def take() -> tuple[_T] | None:
            async for item in items:
                return (item,)
            return None

        while taken := self.run(take()):
            yield taken[0]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """See `AsyncClient`."""

    def __init__(
        self,
        endpoints: Endpoints,
        credential: Credential | None = None,
        *,
        keys: Path | None = None,
        passphrase: str | Ask | None = None,
        pins: dict[str, bytes] | None = None,
        scheme: Scheme | None = None,
        token: str = "",
    ) -> None:
        async def make() -> AsyncClient:  # gRPC binds a channel to the loop that runs where it is made
            return AsyncClient(
                endpoints, credential, keys=keys, passphrase=passphrase, pins=pins, scheme=scheme, token=token
            )

        self._loop = _Loop()
        self._client = self._loop.run(make())

    @classmethod
    def connect(
        cls, state: str | Path | None = None, *, keys: Path | None = None, passphrase: str | Ask | None = None
    ) -> Self:
        """See `AsyncClient.connect`."""

        async def make() -> AsyncClient:
            return AsyncClient.connect(state, keys=keys, passphrase=passphrase)

        self = cls.__new__(cls)
        self._loop = _Loop()
        try:
            self._client = self._loop.run(make())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channels and the thread."""
        self._loop.run(self._client.close())
        self._loop.close()

    def create_gallery(self, gallery_id: str, **options: Any) -> Gallery:
        """See `AsyncClient.create_gallery`."""
        return Gallery(self._loop, self._loop.run(self._client.create_gallery(gallery_id, **options)))

    def gallery(self, gallery_id: str) -> Gallery:
        """See `AsyncClient.gallery`."""
        return Gallery(self._loop, self._loop.run(self._client.gallery(gallery_id)))

    def galleries(self) -> list[gallery_pb2.Gallery]:
        """See `AsyncClient.galleries`."""
        return self._loop.run(self._client.galleries())

    def delete_gallery(self, gallery_id: str) -> int:
        """See `AsyncClient.delete_gallery`."""
        return self._loop.run(self._client.delete_gallery(gallery_id))

    def list_keys(self) -> list[key_pb2.Key]:
        """See `AsyncClient.list_keys`."""
        return self._loop.run(self._client.list_keys())

    def policy(self, key_id: str) -> Policy:
        """See `AsyncClient.policy`."""
        return self._loop.run(self._client.policy(key_id))

    def rewrap_keys(self, *, only_count: bool = False) -> key_service_pb2.RewrapKeysResponse:
        """See `AsyncClient.rewrap_keys`."""
        return self._loop.run(self._client.rewrap_keys(only_count=only_count))

    def create_caller(
        self,
        caller_id: str,
        verifying_key: bytes = b"",
        grants: Iterable[Grant] = (Grant(Role.VERIFIER, ALL),),
        *,
        token_digest: bytes = b"",
        issuer: str = "",
        subject: str = "",
    ) -> None:
        """See `AsyncClient.create_caller`."""
        create = self._client.create_caller
        made = create(caller_id, verifying_key, grants, token_digest=token_digest, issuer=issuer, subject=subject)
        self._loop.run(made)

    def grant(self, caller_id: str, grants: Iterable[Grant]) -> None:
        """See `AsyncClient.grant`."""
        self._loop.run(self._client.grant(caller_id, grants))

    def delete_caller(self, caller_id: str) -> None:
        """See `AsyncClient.delete_caller`."""
        self._loop.run(self._client.delete_caller(caller_id))

    def callers(self) -> list[caller_pb2.Caller]:
        """See `AsyncClient.callers`."""
        return self._loop.run(self._client.callers())

    @property
    def key_folder(self) -> KeyFolder:
        """Secrets that stay on this machine."""
        return self._client.key_folder

    @property
    def lifecycle(self) -> Lifecycle:
        """Keys and their versions."""
        return Lifecycle(self._loop, self._client.lifecycle)

    def update_policy(self, key_id: str, policy: Policy) -> Policy:
        """See `AsyncClient.update_policy`."""
        return self._loop.run(self._client.update_policy(key_id, policy))

    def usage(self, key_id: str) -> Usage:
        """See `Audit.usage`."""
        return self._loop.run(self._client.audit.usage(key_id))

    def alarms(self) -> list[Entry]:
        """See `Audit.alarms`."""
        return self._loop.run(self._client.audit.alarms())


class Gallery:
    """See `AsyncGallery`."""

    def __init__(self, loop: _Loop, gallery: AsyncGallery) -> None:
        self._loop = loop
        self._gallery = gallery

    @property
    def id(self) -> str:
        """The gallery's id."""
        return self._gallery.id

    @property
    def operations(self) -> Operations:
        """Long work on the gallery."""
        return Operations(self._loop, self._gallery.operations)

    @property
    def info(self) -> gallery_pb2.Gallery:
        """The gallery as it was when it was fetched."""
        return self._gallery.info

    @property
    def policy(self) -> Policy:
        """The rule of decisions, as it was when the gallery was fetched."""
        return self._gallery.policy

    @property
    def layout(self) -> Layout:
        """How embeddings are packed: dimension, metric, bound on their length."""
        return self._gallery.layout

    def refresh(self) -> None:
        """See `AsyncGallery.refresh`."""
        self._loop.run(self._gallery.refresh())

    def rotate(self) -> Operation:
        """See `AsyncGallery.rotate`."""
        return self._loop.run(self._gallery.rotate())

    def warm(self) -> None:
        """See `AsyncGallery.warm`."""
        self._loop.run(self._gallery.warm())

    def embed(self, face: Face) -> NDArray[np.float64]:
        """See `AsyncGallery.embed`."""
        return self._loop.run(self._gallery.embed(face))

    def embed_all(self, picture: str | Path | bytes) -> list[NDArray[np.float64]]:
        """See `AsyncGallery.embed_all`."""
        return self._loop.run(self._gallery.embed_all(picture))

    def enroll(self, subject: str, face: Face, *, request_id: str | None = None, unique: bool = False) -> Enrolled:
        """See `AsyncGallery.enroll`."""
        return self._loop.run(self._gallery.enroll(subject, face, request_id=request_id, unique=unique))

    def enroll_many(self, faces: Iterable[tuple[str, Face]]) -> Iterator[Enrolled | SealfaceError]:
        """See `AsyncGallery.enroll_many`."""
        yield from self._loop.each(self._gallery.enroll_many(faces))

    def import_many(
        self, faces: Iterable[tuple[str, NDArray[np.float64]]], expected: int = 0, operation_id: str = ""
    ) -> Iterator[Imported]:
        """See `AsyncGallery.import_many`."""
        yield from self._loop.each(self._gallery.import_many(faces, expected, operation_id))

    def verify(self, subject: str, face: Face) -> Verification:
        """See `AsyncGallery.verify`."""
        return self._loop.run(self._gallery.verify(subject, face))

    def identify(self, face: Face, most: int | None = None) -> Identification:
        """See `AsyncGallery.identify`."""
        return self._loop.run(self._gallery.identify(face, most))

    def identify_many(self, faces: Iterable[Face], most: int | None = None) -> Iterator[Identification | SealfaceError]:
        """See `AsyncGallery.identify_many`."""
        yield from self._loop.each(self._gallery.identify_many(faces, most))

    def distance(self, subject: str, face: Face) -> float:
        """See `AsyncGallery.distance`."""
        return self._loop.run(self._gallery.distance(subject, face))

    def distances(self, face: Face) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
        """See `AsyncGallery.distances`."""
        return self._loop.run(self._gallery.distances(face))

    def subjects(self) -> list[gallery_pb2.Subject]:
        """See `AsyncGallery.subjects`."""
        return self._loop.run(self._gallery.subjects())

    def erase(self, subject: str) -> int:
        """See `AsyncGallery.erase`."""
        return self._loop.run(self._gallery.erase(subject))

    def erase_with_proof(self, subject: str, face: Face | None = None) -> Erasure:
        """See `AsyncGallery.erase_with_proof`."""
        return self._loop.run(self._gallery.erase_with_proof(subject, face))

    def renew_blocks(self) -> int:
        """See `AsyncGallery.renew_blocks`."""
        return self._loop.run(self._gallery.renew_blocks())

    def keep_for(self, retention: timedelta | None) -> None:
        """See `AsyncGallery.keep_for`."""
        self._loop.run(self._gallery.keep_for(retention))


class Operations:
    """See `AsyncOperations`."""

    def __init__(self, loop: _Loop, operations: AsyncOperations) -> None:
        self._loop = loop
        self._operations = operations

    def begin_import(self, templates: int, operation_id: str | None = None) -> Operation:
        """See `AsyncOperations.begin_import`."""
        return self._loop.run(self._operations.begin_import(templates, operation_id))

    def begin_compaction(self, operation_id: str | None = None) -> Operation:
        """See `AsyncOperations.begin_compaction`."""
        return self._loop.run(self._operations.begin_compaction(operation_id))

    def begin_erasure(self, subject: str, operation_id: str | None = None) -> Operation:
        """See `AsyncOperations.begin_erasure`."""
        return self._loop.run(self._operations.begin_erasure(subject, operation_id))

    def get(self, operation_id: str) -> Operation:
        """See `AsyncOperations.get`."""
        return self._loop.run(self._operations.get(operation_id))

    def cancel(self, operation_id: str) -> Operation:
        """See `AsyncOperations.cancel`."""
        return self._loop.run(self._operations.cancel(operation_id))

    def follow(self, operation: Operation) -> Iterator[Operation]:
        """See `AsyncOperations.follow`."""
        yield from self._loop.each(self._operations.follow(operation))

    def wait(self, operation: Operation) -> Operation:
        """See `AsyncOperations.wait`."""
        return self._loop.run(self._operations.wait(operation))

    def list(self) -> list[Operation]:
        """See `AsyncOperations.list`."""
        return self._loop.run(self._operations.list())


class Lifecycle:
    """See `AsyncLifecycle`."""

    def __init__(self, loop: _Loop, lifecycle: AsyncLifecycle) -> None:
        self._loop = loop
        self._lifecycle = lifecycle

    def create(
        self, key_id: str, layout: Layout, policy: Policy, *, client_held: bool = False, exportable: bool = False
    ) -> key_pb2.Key:
        """See `AsyncLifecycle.create`."""
        create = self._lifecycle.create(key_id, layout, policy, client_held=client_held, exportable=exportable)
        return self._loop.run(create)

    def get(self, key_id: str) -> key_pb2.Key:
        """See `AsyncLifecycle.get`."""
        return self._loop.run(self._lifecycle.get(key_id))

    def versions(self, key_id: str) -> list[key_pb2.KeyVersion]:
        """See `AsyncLifecycle.versions`."""
        return self._loop.run(self._lifecycle.versions(key_id))

    def rotate(self, key_id: str) -> key_pb2.Key:
        """See `AsyncLifecycle.rotate`."""
        return self._loop.run(self._lifecycle.rotate(key_id))

    def enable(self, key_id: str, number: int) -> key_pb2.KeyVersion:
        """See `AsyncLifecycle.enable`."""
        return self._loop.run(self._lifecycle.enable(key_id, number))

    def disable(self, key_id: str, number: int) -> key_pb2.KeyVersion:
        """See `AsyncLifecycle.disable`."""
        return self._loop.run(self._lifecycle.disable(key_id, number))

    def destroy(self, key_id: str, number: int, undo: timedelta | None = None) -> key_pb2.KeyVersion:
        """See `AsyncLifecycle.destroy`."""
        return self._loop.run(self._lifecycle.destroy(key_id, number, undo))

    def restore(self, key_id: str, number: int) -> key_pb2.KeyVersion:
        """See `AsyncLifecycle.restore`."""
        return self._loop.run(self._lifecycle.restore(key_id, number))

    def set_oldest(self, key_id: str, number: int) -> key_pb2.Key:
        """See `AsyncLifecycle.set_oldest`."""
        return self._loop.run(self._lifecycle.set_oldest(key_id, number))

    def forbid_export(self, key_id: str) -> key_pb2.Key:
        """See `AsyncLifecycle.forbid_export`."""
        return self._loop.run(self._lifecycle.forbid_export(key_id))

    def export(self, key_id: str, number: int, passphrase: str) -> bytes:
        """See `AsyncLifecycle.export`."""
        return self._loop.run(self._lifecycle.export(key_id, number, passphrase))

    def receive(self, file: bytes, passphrase: str, *, check: bool = True) -> str:
        """See `AsyncLifecycle.receive`."""
        return self._loop.run(self._lifecycle.receive(file, passphrase, check=check))
