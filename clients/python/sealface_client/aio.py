"""The asyncio client; `sync` wraps it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import grpc

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Ckks, Opener, Scheme
from sealface.cipher.wire import MalformedCiphertext
from sealface.errors import InvalidInput, WrongState
from sealface.protocol import convert, names
from sealface.protocol.policy import Policy
from sealface.protocol.rights import ALL, Grant, Role
from sealface.protocol.signing import Credential
from sealface.protocol.tokens import Signed
from sealface.protocol.zones import Zone
from sealface_client.audit import Audit
from sealface_client.channels import Bearing, OperatorSigner, open_channel
from sealface_client.endpoints import Endpoints
from sealface_client.errors import ServiceError, translated
from sealface_client.faces import Faces
from sealface_client.gallery import AsyncGallery, duration
from sealface_client.held_keys import LocalJudge
from sealface_client.key_folder import KeyFolder
from sealface_client.lifecycle import AsyncLifecycle
from sealface_client.paging import pages
from sealface_client.passphrases import Ask, from_environment
from sealface_client.policies import default_layout, default_policy
from sealface_client.transform import Transform, refuse_left
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from sealface_protos.enrollment.v1 import enrollment_service_pb2_grpc, gallery_pb2, operation_pb2_grpc
from sealface_protos.keys.v1 import caller_pb2, key_pb2, key_service_pb2, key_service_pb2_grpc
from sealface_protos.matching.v1 import matching_service_pb2_grpc

_REWRAP_S = 600.0
DEADLINE_S = 60.0
_REWRAP_S = 600.0


class KeyNotTrusted(WrongState):
    """A gallery's key is not what the key service or the caller's pin says."""


class CredentialMissing(InvalidInput):
    """The call needs a signing credential."""


class AsyncClient:
    """Sealface's services, seen from a caller.

    Args:
        endpoints: where they are, and whose certificates they show.
        credential: who asks; needed for decisions and for making keys.
        keys: folder of the secret keys of client-held galleries, and of transforms.
        passphrase: what these are under, or whom to ask for it once it is needed; see `KeyFolder`.
        pins: key version -> SHA-256 of the public key it must have, for callers that pin.
        scheme: the cipher; tests bring their own.
        timeout_s: deadline of each call.
        token: a static token, or an issuer's, that says who calls, or what gives one that is good now; if left out the
            credential signs tokens.

    Raises:
        AuthorityMissing: services elsewhere are not called in plaintext.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        credential: Credential | None = None,
        *,
        keys: Path | None = None,
        passphrase: str | Ask | None = None,
        pins: dict[str, bytes] | None = None,
        scheme: Scheme | None = None,
        timeout_s: float = DEADLINE_S,
        token: str | Callable[[], str] = "",
    ) -> None:
        self.timeout_s = timeout_s
        self.scheme: Scheme = scheme or Ckks()
        self.faces = Faces()
        self.key_folder = KeyFolder(keys or Path.home() / ".sealface" / "keys", passphrase)
        self._credential = credential
        self._pins = pins or {}
        signer = OperatorSigner(credential) if credential else None
        self.audit = Audit(self, signer)
        self._channels = [
            open_channel(endpoints.keys, Zone.KEYS, endpoints.ca, signer),
            *(
                open_channel(address, Zone.COMPUTE, endpoints.ca)
                for address in (endpoints.enrollment, endpoints.matching)
            ),
        ]
        if bear := token or (Signed(credential) if credential else None):
            self._channels[1:] = [cast(grpc.aio.Channel, Bearing(channel, bear)) for channel in self._channels[1:]]
        self.keys: key_service_pb2_grpc.KeyServiceAsyncStub = key_service_pb2_grpc.KeyServiceStub(self._channels[0])
        self.enrollment: enrollment_service_pb2_grpc.EnrollmentServiceAsyncStub = (
            enrollment_service_pb2_grpc.EnrollmentServiceStub(self._channels[1])
        )
        self.matching: matching_service_pb2_grpc.MatchingServiceAsyncStub = (
            matching_service_pb2_grpc.MatchingServiceStub(self._channels[2])
        )
        self.operations: operation_pb2_grpc.OperationServiceAsyncStub = operation_pb2_grpc.OperationServiceStub(
            self._channels[1]
        )
        self.lifecycle = AsyncLifecycle(self)
        self._verifying_key: bytes | None = None

    @classmethod
    def connect(
        cls,
        state: str | Path | None = None,
        *,
        keys: Path | None = None,
        passphrase: str | Ask | None = None,
        scheme: Scheme | None = None,
    ) -> Self:
        """A client of the services that `sealface serve --state DIR` runs, or that the environment names.

        The credential is SEALFACE_CREDENTIAL's file, else the state folder's operator; SEALFACE_TOKEN holds a token
        that says who calls in its place. The key folder's passphrase
        is SEALFACE_PASSPHRASE, else in SEALFACE_PASSPHRASE_FILE, else what is given.

        Raises:
            NoServices: nothing says where they are.
            AuthorityMissing: services elsewhere are not called in plaintext.
            PassphraseNeeded: SEALFACE_PASSPHRASE_FILE holds none.
        """
        chosen = state or os.environ.get("SEALFACE_STATE")
        folder = Path(chosen) if chosen else None
        edge = folder / "edge" if folder else None
        file = Path(os.environ.get("SEALFACE_CREDENTIAL") or (edge / "operator.pem" if edge else "operator.pem"))
        return cls(
            Endpoints.discover(folder),
            Credential.load(file) if file.exists() else None,
            keys=keys or (edge / "keys" if edge else None),
            passphrase=from_environment() or passphrase,
            scheme=scheme,
            token=os.environ.get("SEALFACE_TOKEN", ""),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    @property
    def credential(self) -> Credential:
        """Who asks.

        Raises:
            CredentialMissing: the client was made without one.
        """
        if self._credential is None:
            raise CredentialMissing(
                "no signing credential: name the state folder of `sealface serve`, or set SEALFACE_CREDENTIAL to a "
                "registered credential's file"
            )
        return self._credential

    async def create_gallery(
        self,
        gallery_id: str,
        *,
        model: str = "Dlib",
        detector: str = "dlib",
        metric: str | Metric = Metric.COSINE,
        policy: Policy | None = None,
        client_held: bool = False,
        largest_face: bool = False,
        align: bool = True,
        anti_spoofing: bool = False,
        largest_norm: float | None = None,
        edge: bool = False,
        retention: timedelta | None = None,
        exportable: bool = False,
        transform: bool = False,
        security_bits: int = 128,
    ) -> AsyncGallery:
        """Make a key and a gallery of the same id.

        Args:
            gallery_id: 1 to 64 of [a-z0-9-], a letter first.
            model: DeepFace's name of the recognition model.
            detector: DeepFace's name of the detector.
            metric: cosine, euclidean, euclidean_l2 or angular.
            policy: the rule of decisions; default `policies.default_policy`.
            client_held: whether the secret key is made and kept here; scores are then opened here.
            largest_face: of several faces in a picture take the largest, instead of refusing it.
            align: whether faces are aligned.
            anti_spoofing: whether pictures of pictures are refused.
            largest_norm: bound on an embedding's length, for the euclidean metric only; default four times the
                verification threshold.
            edge: whether an edge service embeds and encrypts for the gallery's callers.
            retention: how long a template is kept after it was enrolled; None until it is erased.
            exportable: whether the secret of a managed key may leave the key service, see `lifecycle.export`.
            transform: whether embeddings are transformed by a secret matrix before they are encrypted, so that they
                match in no other gallery. Its seed is kept in the key folder: whoever enrols or searches needs it.
            security_bits: 128, 192 or 256, against quantum computers; above 128 ciphertexts are twice as large.

        Raises:
            ServiceError: what a service refused.
            SealfaceError: what is wrong with the arguments.
        """
        metric = Metric(metric)
        policy = policy or default_policy(model, metric)
        layout = default_layout(model, metric, policy, largest_norm, security_bits)
        if transform:
            names.check_id(gallery_id, "gallery_id")  # it becomes part of a file's name
        else:
            refuse_left(self.key_folder, gallery_id)
        await self.lifecycle.create(gallery_id, layout, policy, client_held=client_held, exportable=exportable)
        made = Transform.generate(gallery_id) if transform else None
        if made is not None:  # first: what is enrolled without it cannot be searched by anybody
            await asyncio.to_thread(self.key_folder.save, made.name, made.seed)
        level = (
            gallery_pb2.PRIVACY_LEVEL_CLIENT_KEY
            if client_held
            else gallery_pb2.PRIVACY_LEVEL_EDGE
            if edge
            else gallery_pb2.PRIVACY_LEVEL_EMBEDDING
        )
        gallery = gallery_pb2.Gallery(
            key=f"keys/{gallery_id}",
            recognition=gallery_pb2.Recognition(
                model=model,
                detector=detector,
                unaligned=not align,
                anti_spoofing=anti_spoofing,
                face_rule=gallery_pb2.FACE_RULE_LARGEST if largest_face else gallery_pb2.FACE_RULE_REFUSE,
            ),
            privacy_level=level,
            fusion=gallery_pb2.FUSION_NEAREST,
            retention=duration(retention),
            transform_digest=made.digest if made else b"",
        )
        request = enrollment.CreateGalleryRequest(gallery_id=gallery_id, gallery=gallery)
        try:
            with translated("enrollment"):
                await self.enrollment.CreateGallery(request, timeout=self.timeout_s)
        except ServiceError as error:
            if made is not None and not error.retryable and error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                self.key_folder.remove(made.name)  # it was refused, so that no gallery has it
            raise
        return await self.gallery(gallery_id)

    async def gallery(self, gallery_id: str) -> AsyncGallery:
        """A gallery, with its key's public material fetched and checked.

        Raises:
            ServiceError: there is none of that id, or a service is away.
            KeyNotTrusted: the key is not the one of the gallery's name, or not the one the caller pinned.
        """
        names.check_id(gallery_id, "gallery_id")
        request = enrollment.GetGalleryRequest(name=f"galleries/{gallery_id}")
        with translated("enrollment"):
            gallery = await self.enrollment.GetGallery(request, timeout=self.timeout_s)
        with translated("keys"):
            key = await self.keys.GetKey(key_service_pb2.GetKeyRequest(name=gallery.key), timeout=self.timeout_s)
            version = await self.keys.GetKeyVersion(
                key_service_pb2.GetKeyVersionRequest(name=gallery.key_version), timeout=self.timeout_s
            )
            material = self.keys.GetMaterial(
                key_service_pb2.GetMaterialRequest(key_version=gallery.key_version), timeout=self.timeout_s
            )
            public = b"".join([chunk.data async for chunk in material])
        # compute names the key: what is encrypted under is what the key service, and the caller's pin, say it is
        same = (gallery.key, gallery.custody, gallery.parameter_set, gallery.score_format) == (
            f"keys/{gallery_id}",
            key.custody,
            key.parameter_set,
            key.score_format,
        )
        of_key, number = names.key_version(gallery.key_version)
        same &= of_key == gallery_id and number >= key.oldest_version  # not moved yet, perhaps, and not put back
        digest = hashlib.sha256(public).digest()
        pinned = self._pins.get(gallery.key_version) if self._pins else version.public_key_digest
        if not same or digest != version.public_key_digest or digest != pinned:
            raise KeyNotTrusted(
                "the gallery's key is not the one of its name at the key service, or not the pinned one: "
                "do not encrypt, and tell the operator of the key service"
            )
        layout = convert.layout_from_proto(key.parameter_set, key.score_format)
        try:
            self.scheme.check_public(layout.parameters, public)
        except MalformedCiphertext as error:
            raise KeyNotTrusted(error.message) from None
        return AsyncGallery(self, gallery, key, public)

    async def next_version(self, gallery: gallery_pb2.Gallery) -> str:
        """The key version that a gallery is to be moved to: made here if it is under the primary one."""
        with translated("keys"):
            key = await self.keys.GetKey(key_service_pb2.GetKeyRequest(name=gallery.key), timeout=self.timeout_s)
        if key.primary_version != gallery.key_version:
            return key.primary_version
        return (await self.lifecycle.rotate(key.name.removeprefix("keys/"))).primary_version

    def opener(self, key_version: str, layout: Layout) -> Opener:
        """Opens what is under a version of a client-held key.

        Raises:
            SecretKeyMissing: the key is not held here.
        """
        return self.scheme.opener(layout, self.key_folder.load(key_version))

    def judge(self, key_version: str, layout: Layout, policy: Policy) -> LocalJudge:
        """Decides on what is under a version of a client-held key.

        Raises:
            SecretKeyMissing: the key is not held here.
        """
        _, number = names.key_version(key_version)
        return LocalJudge(self.scheme, layout.under(number), self.key_folder.load(key_version), policy)

    async def galleries(self) -> list[gallery_pb2.Gallery]:
        """All galleries, by name."""
        listed = pages("enrollment", self.enrollment.ListGalleries, enrollment.ListGalleriesRequest(), self.timeout_s)
        return [gallery async for page in listed for gallery in page.galleries]

    async def delete_gallery(self, gallery_id: str) -> int:
        """Erase a gallery with all that is in it; returns how many templates that were."""
        request = enrollment.DeleteGalleryRequest(name=f"galleries/{gallery_id}")
        with translated("enrollment"):
            return (await self.enrollment.DeleteGallery(request, timeout=self.timeout_s)).templates

    async def list_keys(self) -> list[key_pb2.Key]:
        """All keys, by name."""
        listed = pages("keys", self.keys.ListKeys, key_service_pb2.ListKeysRequest(), self.timeout_s)
        return [key async for page in listed for key in page.keys]

    async def update_policy(self, key_id: str, policy: Policy) -> Policy:
        """Replace a key's policy; `policy.version` must be the one it replaces."""
        request = key_service_pb2.UpdatePolicyRequest(name=f"keys/{key_id}", policy=convert.policy_to_proto(policy))
        with translated("keys"):
            return convert.policy_from_proto((await self.keys.UpdatePolicy(request, timeout=self.timeout_s)).policy)

    async def policy(self, key_id: str) -> Policy:
        """A key's policy."""
        request = key_service_pb2.GetKeyRequest(name=f"keys/{key_id}")
        with translated("keys"):
            return convert.policy_from_proto((await self.keys.GetKey(request, timeout=self.timeout_s)).policy)

    async def rewrap_keys(self, *, only_count: bool = False) -> key_service_pb2.RewrapKeysResponse:
        """Put all secrets of the key service under its current key-encryption key; or count what is not."""
        request = key_service_pb2.RewrapKeysRequest(validate_only=only_count)
        with translated("keys"):
            return await self.keys.RewrapKeys(request, timeout=_REWRAP_S)

    async def create_caller(
        self,
        caller_id: str,
        verifying_key: bytes = b"",
        grants: Iterable[Grant] = (Grant(Role.VERIFIER, ALL),),
        *,
        token_digest: bytes = b"",
        issuer: str = "",
        subject: str = "",
    ) -> None:
        """Register a caller.

        Args:
            caller_id: its id.
            verifying_key: of its signing credential, without which it has no decisions.
            grants: what it may do with galleries.
            token_digest: of a static token, see `protocol.tokens.new_static`.
            issuer: whose tokens name it.
            subject: as whom.
        """
        caller = caller_pb2.Caller(
            verifying_key=verifying_key,
            role=caller_pb2.CALLER_ROLE_VERIFIER,
            grants=[convert.grant_to_proto(grant) for grant in grants],
            token_digest=token_digest,
            oidc=caller_pb2.OidcIdentity(issuer=issuer, subject=subject) if issuer or subject else None,
        )
        request = key_service_pb2.CreateCallerRequest(caller_id=caller_id, caller=caller)
        with translated("keys"):
            await self.keys.CreateCaller(request, timeout=self.timeout_s)

    async def grant(self, caller_id: str, grants: Iterable[Grant]) -> None:
        """Replace what a caller may do with galleries."""
        given = [convert.grant_to_proto(grant) for grant in grants]
        request = key_service_pb2.UpdateCallerRequest(name=f"callers/{caller_id}", grants=given)
        with translated("keys"):
            await self.keys.UpdateCaller(request, timeout=self.timeout_s)

    async def delete_caller(self, caller_id: str) -> None:
        """Withdraw a caller's credentials."""
        request = key_service_pb2.DeleteCallerRequest(name=f"callers/{caller_id}")
        with translated("keys"):
            await self.keys.DeleteCaller(request, timeout=self.timeout_s)

    async def callers(self) -> list[caller_pb2.Caller]:
        """All callers, by name."""
        listed = pages("keys", self.keys.ListCallers, key_service_pb2.ListCallersRequest(), self.timeout_s)
        return [caller async for page in listed for caller in page.callers]

    async def verifying_key(self) -> bytes:
        """The key that the key service signs decisions with, fetched once."""
        if self._verifying_key is None:
            with translated("keys"):
                identity = await self.keys.GetServiceIdentity(
                    key_service_pb2.GetServiceIdentityRequest(), timeout=self.timeout_s
                )
            self._verifying_key = identity.verifying_key
        return self._verifying_key
