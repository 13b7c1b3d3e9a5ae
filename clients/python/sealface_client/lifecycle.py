"""Keys and their versions, from an operator's side: made, rotated, disabled, destroyed, exported."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.duration_pb2 import Duration

from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Scheme
from sealface.errors import WrongState
from sealface.protocol import convert, names, sealing
from sealface.protocol.policy import Policy
from sealface_client import secret_file
from sealface_client.errors import ServiceError, translated
from sealface_client.key_folder import SecretKeyExists
from sealface_client.paging import pages
from sealface_client.secret_file import SecretFile
from sealface_client.transform import check_seed
from sealface_protos.keys.v1 import key_pb2
from sealface_protos.keys.v1 import key_service_pb2 as messages

if TYPE_CHECKING:
    from sealface_client.aio import AsyncClient

_ATTEMPTS = 4


class SecretKeyMismatch(WrongState):
    """A secret key is not the one of its key version."""


class KeyMadeElsewhere(WrongState):
    """Somebody else made the key version at the same moment."""


class AsyncLifecycle:
    """Keys of the key service; `AsyncClient.lifecycle`. What changes them needs an operator's credential.

    Every method raises ServiceError for what the key service refuses.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, key_id: str, layout: Layout, policy: Policy, *, client_held: bool = False, exportable: bool = False
    ) -> key_pb2.Key:
        """A key with its first version; the one there is, if it is the same and was not finished.

        Args:
            key_id: 1 to 64 of [a-z0-9-], a letter first.
            layout: of the gallery that it is for.
            policy: the rule of decisions.
            client_held: whether the secret is made and kept here; the key service gets public material only.
            exportable: whether the secret of a managed key may leave the key service; that can be taken back, and never
                given afterwards.

        Raises:
            SecretKeyExists: there is a secret of that name here, of another key.
        """
        _ = self._client.credential  # fail before anything is made
        key = key_pb2.Key(
            custody=key_pb2.CUSTODY_CLIENT_HELD if client_held else key_pb2.CUSTODY_MANAGED,
            parameter_set=layout.parameters.name,
            score_format=convert.layout_to_proto(layout),
            policy=convert.policy_to_proto(policy),
            exportable=exportable,
        )
        if client_held:
            return await self._register(names.check_id(key_id, "key_id"), key, layout)
        try:
            with translated("keys"):
                request = messages.CreateKeyRequest(key_id=key_id, key=key)
                return await self._client.keys.CreateKey(request, timeout=self._client.timeout_s)
        except ServiceError as error:
            # a key that was made before is gone on with, if it is the same
            found = await self._find(key_id) if error.reason == "KEY_EXISTS" else None
            if found is None or not _same(found, key):
                raise
            return found

    async def get(self, key_id: str) -> key_pb2.Key:
        """A key."""
        with translated("keys"):
            return await self._client.keys.GetKey(
                messages.GetKeyRequest(name=f"keys/{key_id}"), timeout=self._client.timeout_s
            )

    async def versions(self, key_id: str) -> list[key_pb2.KeyVersion]:
        """All versions of a key, the newest first."""
        request = messages.ListKeyVersionsRequest(parent=f"keys/{key_id}")
        listed = pages("keys", self._client.keys.ListKeyVersions, request, self._client.timeout_s)
        return [version async for page in listed for version in page.versions]

    async def rotate(self, key_id: str) -> key_pb2.Key:
        """Make the next version, the primary one from now on: by the key service, or here if the key is held here.

        The gallery's templates are encrypted under it by a rotation of the gallery.
        """
        key = await self.get(key_id)
        if key.custody == key_pb2.CUSTODY_CLIENT_HELD:
            return await self._register_next(key)
        request = messages.RotateKeyRequest(name=key.name, primary_version=key.primary_version)
        with translated("keys"):
            return await self._client.keys.RotateKey(request, timeout=self._client.timeout_s)

    async def enable(self, key_id: str, number: int) -> key_pb2.KeyVersion:
        """Have a version open again, one in quarantine too."""
        return await self._set_state(key_id, number, key_pb2.KEY_VERSION_STATE_ENABLED)

    async def disable(self, key_id: str, number: int) -> key_pb2.KeyVersion:
        """Have a version open nothing until it is enabled."""
        return await self._set_state(key_id, number, key_pb2.KEY_VERSION_STATE_DISABLED)

    async def destroy(self, key_id: str, number: int, undo: timedelta | None = None) -> key_pb2.KeyVersion:
        """Have a version open nothing, and destroy it for good when it can no more be undone (default a day).

        Of a key that is held here the file stays: it is the caller's to delete.
        """
        window = None if undo is None else Duration()
        if window is not None and undo is not None:
            window.FromTimedelta(undo)
        request = messages.DestroyKeyVersionRequest(name=version_name(key_id, number), undo_window=window)
        with translated("keys"):
            return await self._client.keys.DestroyKeyVersion(request, timeout=self._client.timeout_s)

    async def restore(self, key_id: str, number: int) -> key_pb2.KeyVersion:
        """Take back a destruction while that can be done; the version is disabled then."""
        request = messages.RestoreKeyVersionRequest(name=version_name(key_id, number))
        with translated("keys"):
            return await self._client.keys.RestoreKeyVersion(request, timeout=self._client.timeout_s)

    async def set_oldest(self, key_id: str, number: int) -> key_pb2.Key:
        """Have versions before one open nothing, for good."""
        request = messages.UpdateKeyRequest(name=f"keys/{key_id}", oldest_version=number)
        with translated("keys"):
            return await self._client.keys.UpdateKey(request, timeout=self._client.timeout_s)

    async def forbid_export(self, key_id: str) -> key_pb2.Key:
        """Never let a secret of the key leave the key service any more."""
        request = messages.UpdateKeyRequest(name=f"keys/{key_id}", forbid_export=True)
        with translated("keys"):
            return await self._client.keys.UpdateKey(request, timeout=self._client.timeout_s)

    async def export(self, key_id: str, number: int, passphrase: str) -> bytes:
        """The secret of a version as a file (`secret_file`), from here, else from the key service if it may leave that.

        Raises:
            PassphraseTooShort, SecretNotForUs: see there.
            PassphraseNeeded, WrongPassphrase, SecretFileDamaged: of the key folder.
        """
        name = version_name(key_id, number)
        folder = self._client.key_folder
        secret = await asyncio.to_thread(folder.load, name) if folder.holds(name) else await self._export(name)
        return await asyncio.to_thread(secret_file.seal, name, secret, passphrase)

    async def receive(self, file: bytes, passphrase: str, *, check: bool = True) -> str:
        """Take the secret in a file into the key folder; returns its name.

        Args:
            file: as `export` made it, or a transform's.
            passphrase: of the file.
            check: whether to ask the key service if it is that version's; a transform is checked in any case.

        Raises:
            WrongPassphrase, SecretFileDamaged, UnknownSecretFile, SecretKeyExists, SecretKeyMismatch: see there.
        """
        read = SecretFile.read(file)
        secret = await asyncio.to_thread(read.open, passphrase)
        if not read.name.startswith("keys/"):
            check_seed(read.name, secret)
        elif check:
            await self._check(read.name, secret)
        await asyncio.to_thread(self._client.key_folder.save, read.name, secret)
        return read.name

    async def _export(self, name: str) -> bytes:
        key = X25519PrivateKey.generate()
        request = messages.ExportKeyVersionRequest(name=name, hpke_public_key=key.public_key().public_bytes_raw())
        with translated("keys"):
            response = await self._client.keys.ExportKeyVersion(request, timeout=self._client.timeout_s)
        return sealing.open_secret(response.box, name, key)

    async def _set_state(
        self, key_id: str, number: int, state: key_pb2.KeyVersionState.ValueType
    ) -> key_pb2.KeyVersion:
        request = messages.UpdateKeyVersionRequest(name=version_name(key_id, number), state=state)
        with translated("keys"):
            return await self._client.keys.UpdateKeyVersion(request, timeout=self._client.timeout_s)

    async def _find(self, key_id: str) -> key_pb2.Key | None:
        try:
            return await self.get(key_id)
        except ServiceError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return None

    async def _register(self, key_id: str, key: key_pb2.Key, layout: Layout) -> key_pb2.Key:
        found = await self._find(key_id)
        if found is not None and _same(found, key) and self._client.key_folder.holds(found.primary_version):
            secret = await self._check(found.primary_version)
            evaluation = await asyncio.to_thread(self._client.scheme.evaluation, layout.parameters, secret)
            await self._upload(found.primary_version, evaluation)  # whoever registered it may not have come to that
            return found
        number = 1 if found is None else names.key_version(found.primary_version)[1] + 1

        async def register(public: bytes) -> key_pb2.Key:
            request = messages.RegisterKeyRequest(key_id=key_id, key=key, public_key=public)
            return await self._client.keys.RegisterKey(request, timeout=self._client.timeout_s)

        return await self._make(version_name(key_id, number), layout, register)

    async def _register_next(self, key: key_pb2.Key) -> key_pb2.Key:
        key_id, number = names.key_version(key.primary_version)
        name = version_name(key_id, number + 1)
        self._client.key_folder.put_aside(name)  # of a rotation that never reached the key service

        async def register(public: bytes) -> key_pb2.Key:
            request = messages.RegisterKeyVersionRequest(
                name=key.name, primary_version=key.primary_version, public_key=public
            )
            return await self._client.keys.RegisterKeyVersion(request, timeout=self._client.timeout_s)

        return await self._make(name, convert.layout_from_proto(key.parameter_set, key.score_format), register)

    async def _make(
        self, name: str, layout: Layout, register: Callable[[bytes], Awaitable[key_pb2.Key]]
    ) -> key_pb2.Key:
        """A version made here: its secret is kept first, for a registered key without its secret is of no use."""
        folder = self._client.key_folder
        if folder.holds(name):
            raise SecretKeyExists("a secret key of that name is here: choose another id, or move its file", key=name)
        material = await asyncio.to_thread(self._client.scheme.generate, layout.parameters)
        await asyncio.to_thread(folder.save, name, material.secret)
        try:
            key = await self._registered(name, material.public, register)
        except ServiceError as error:
            if not error.retryable and error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                folder.remove(name)  # it was refused, so nobody knows this key
            raise
        if key.public_key_digest != hashlib.sha256(material.public).digest():
            folder.remove(name)
            raise KeyMadeElsewhere("somebody else made that key version at the same moment: look, and try again")
        await self._upload(name, material.evaluation)
        return key

    async def _registered(
        self, name: str, public: bytes, register: Callable[[bytes], Awaitable[key_pb2.Key]]
    ) -> key_pb2.Key:
        """Register a public key; a call whose answer was lost may have done it."""
        for retry in range(_ATTEMPTS):
            try:
                with translated("keys"):
                    return await register(public)
            except ServiceError as error:
                found = await self._find(names.key_version(name)[0]) if retry else None
                if found is not None and found.public_key_digest == hashlib.sha256(public).digest():
                    return found
                if not error.retryable or retry == _ATTEMPTS - 1:
                    raise
            await asyncio.sleep(0.2 * 2**retry)
        raise AssertionError("unreachable")

    async def _upload(self, name: str, evaluation: Mapping[int, bytes]) -> None:
        for element, material in evaluation.items():
            request = messages.UploadEvaluationKeyRequest(
                key_version=name, galois_element=element, evaluation_key=material
            )
            with translated("keys"):
                await self._client.keys.UploadEvaluationKey(request, timeout=self._client.timeout_s)

    async def _check(self, name: str, secret: bytes | None = None) -> bytes:
        """A secret, by default the one in the key folder, if it is that of its key version.

        Raises:
            SecretKeyMismatch: it is not.
        """
        if secret is None:
            secret = await asyncio.to_thread(self._client.key_folder.load, name)
        key = await self.get(names.key_version(name)[0])
        layout = convert.layout_from_proto(key.parameter_set, key.score_format)
        with translated("keys"):
            request = messages.GetMaterialRequest(key_version=name)
            chunks = self._client.keys.GetMaterial(request, timeout=self._client.timeout_s)
            public = b"".join([chunk.data async for chunk in chunks])
        if not await asyncio.to_thread(_fits, self._client.scheme, layout, public, secret):
            raise SecretKeyMismatch("the secret key is not the one of its key version: take another file", key=name)
        return secret


def version_name(key_id: str, number: int) -> str:
    """`keys/{key}/versions/{version}`."""
    return f"keys/{key_id}/versions/{number}"


def _same(found: key_pb2.Key, wanted: key_pb2.Key) -> bool:
    policy = key_pb2.Policy()
    policy.CopyFrom(found.policy)
    policy.version = wanted.policy.version
    fields = ("custody", "parameter_set", "score_format", "exportable")
    return policy == wanted.policy and all(getattr(found, field) == getattr(wanted, field) for field in fields)


def _fits(scheme: Scheme, layout: Layout, public: bytes, secret: bytes) -> bool:
    """Whether a secret key opens what is computed under a public one."""
    vector = np.zeros(layout.dimension)
    vector[0] = layout.largest_norm
    encryptor, evaluator, group = scheme.encryptor(layout, public), scheme.evaluator(layout, public), layout.group
    template = evaluator.admit(encryptor.template(vector))
    probe = evaluator.admit_probe(encryptor.probe(vector))
    leaves = evaluator.expand([probe], [group])[group]
    asked = np.arange(group.capacity) == 0
    ((result,),) = evaluator.score([evaluator.assemble({0: template})], leaves, [asked])
    opener = scheme.opener(layout, secret)
    opened = opener.open(group, [result])
    distance = layout.distances(opened.scores[0, :1])[0] / layout.largest_norm
    # the distance of a vector to itself: some metrics have the square root of a score's error there
    return bool(opener.genuine(group, opened.checks) and abs(distance) < 0.05)
