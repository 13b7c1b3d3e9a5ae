"""The asyncio client; `sync` wraps it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from sealface_protos.enrollment.v1 import enrollment_service_pb2_grpc, gallery_pb2
from sealface_protos.keys.v1 import caller_pb2, decision_pb2, key_pb2, key_service_pb2, key_service_pb2_grpc
from sealface_protos.matching.v1 import matching_service_pb2 as matching
from sealface_protos.matching.v1 import matching_service_pb2_grpc

from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Ckks, Encryptor, Scheme
from sealface.errors import InvalidInput, NotFound
from sealface.protocol import convert, names
from sealface.protocol.decision import Decision
from sealface.protocol.policy import Policy
from sealface.protocol.sealing import DecisionNotGenuine
from sealface.protocol.signing import Credential
from sealface.recognition import models
from sealface_client.channels import OperatorSigner, open_channel
from sealface_client.decisions import PendingDecision
from sealface_client.endpoints import Endpoints
from sealface_client.errors import ServiceError, from_status, translated
from sealface_client.faces import Face, Faces, pipeline_of
from sealface_client.held_keys import KeyFolder, LocalJudge
from sealface_client.policies import default_policy
from sealface_client.results import Enrolled, Identification, Named, Verification
from sealface_client.slots import SlotTable

_T = TypeVar("_T")
_ATTEMPTS = 4
DEADLINE_S = 60.0


class SubjectNotFound(NotFound):
    """The gallery has no such subject."""


class CredentialMissing(InvalidInput):
    """The call needs a signing credential."""


class AsyncClient:
    """Sealface's services, seen from a caller.

    Args:
        endpoints: where they are.
        credential: who asks; needed for decisions and for making keys.
        keys: folder of the secret keys of client-held galleries.
        pins: key version -> SHA-256 of the public key it must have, for callers that pin.
        scheme: the cipher; tests bring their own.
        timeout_s: deadline of each call.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        credential: Credential | None = None,
        *,
        keys: Path | None = None,
        pins: dict[str, bytes] | None = None,
        scheme: Scheme | None = None,
        timeout_s: float = DEADLINE_S,
    ) -> None:
        self.timeout_s = timeout_s
        self.scheme: Scheme = scheme or Ckks()
        self.faces = Faces()
        self.key_folder = KeyFolder(keys or Path.home() / ".sealface" / "keys")
        self._credential = credential
        self._pins = pins or {}
        signer = OperatorSigner(credential) if credential else None
        self._channels = [
            open_channel(endpoints.keys, signer),
            open_channel(endpoints.enrollment),
            open_channel(endpoints.matching),
        ]
        self.keys: key_service_pb2_grpc.KeyServiceAsyncStub = key_service_pb2_grpc.KeyServiceStub(self._channels[0])
        self.enrollment: enrollment_service_pb2_grpc.EnrollmentServiceAsyncStub = (
            enrollment_service_pb2_grpc.EnrollmentServiceStub(self._channels[1])
        )
        self.matching: matching_service_pb2_grpc.MatchingServiceAsyncStub = (
            matching_service_pb2_grpc.MatchingServiceStub(self._channels[2])
        )
        self._verifying_key: bytes | None = None

    @classmethod
    def connect(cls, state: str | Path | None = None, *, scheme: Scheme | None = None) -> Self:
        """A client of the services that `sealface serve --state DIR` runs, or that the environment names.

        The credential is SEALFACE_CREDENTIAL's file, else the state folder's operator.

        Raises:
            NoServices: nothing says where they are.
        """
        chosen = state or os.environ.get("SEALFACE_STATE")
        folder = Path(chosen) if chosen else None
        edge = folder / "edge" if folder else None
        file = Path(os.environ.get("SEALFACE_CREDENTIAL") or (edge / "operator.pem" if edge else "operator.pem"))
        return cls(
            Endpoints.discover(folder),
            Credential.load(file) if file.exists() else None,
            keys=edge / "keys" if edge else None,
            scheme=scheme,
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

        Raises:
            ServiceError: what a service refused.
            SealfaceError: what is wrong with the arguments.
        """
        metric = Metric(metric)
        policy = policy or default_policy(model, metric)
        norm = largest_norm or 4 * policy.verification_threshold if metric is Metric.EUCLIDEAN else 1.0
        layout = Layout.of("", models.dimension(model), metric, norm)
        await self._create_key(gallery_id, layout, policy, client_held)
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
        )
        request = enrollment.CreateGalleryRequest(gallery_id=gallery_id, gallery=gallery)
        with translated("enrollment"):
            await self.enrollment.CreateGallery(request, timeout=self.timeout_s)
        return await self.gallery(gallery_id)

    async def _create_key(self, key_id: str, layout: Layout, policy: Policy, client_held: bool) -> None:
        _ = self.credential  # fail before anything is made
        key = key_pb2.Key(
            custody=key_pb2.CUSTODY_CLIENT_HELD if client_held else key_pb2.CUSTODY_MANAGED,
            parameter_set=layout.parameters.name,
            score_format=convert.layout_to_proto(layout),
            policy=convert.policy_to_proto(policy),
        )
        if not client_held:
            with translated("keys"):
                await self.keys.CreateKey(
                    key_service_pb2.CreateKeyRequest(key_id=key_id, key=key), timeout=self.timeout_s
                )
            return
        material = await asyncio.to_thread(self.scheme.generate, layout.parameters)
        with translated("keys"):
            registered = await self.keys.RegisterKey(
                key_service_pb2.RegisterKeyRequest(key_id=key_id, key=key, public_key=material.public),
                timeout=self.timeout_s,
            )
            self.key_folder.save(registered.primary_version, material.secret)
            for element, evaluation_key in material.evaluation.items():
                await self.keys.UploadEvaluationKey(
                    key_service_pb2.UploadEvaluationKeyRequest(
                        key_version=registered.primary_version, galois_element=element, evaluation_key=evaluation_key
                    ),
                    timeout=self.timeout_s,
                )

    async def gallery(self, gallery_id: str) -> AsyncGallery:
        """A gallery, with its key's public material fetched and checked.

        Raises:
            ServiceError: there is none of that id, or a service is away.
            DecisionNotGenuine: the public key is not the one its digest or the caller's pin names.
        """
        names.check_id(gallery_id, "gallery_id")
        request = enrollment.GetGalleryRequest(name=f"galleries/{gallery_id}")
        with translated("enrollment"):
            gallery = await self.enrollment.GetGallery(request, timeout=self.timeout_s)
        with translated("keys"):
            key = await self.keys.GetKey(key_service_pb2.GetKeyRequest(name=gallery.key), timeout=self.timeout_s)
            material = self.keys.GetMaterial(
                key_service_pb2.GetMaterialRequest(key_version=gallery.key_version), timeout=self.timeout_s
            )
            public = b"".join([chunk.data async for chunk in material])
        digest = hashlib.sha256(public).digest()
        if digest != self._pins.get(gallery.key_version, key.public_key_digest):
            raise DecisionNotGenuine(
                "the public key is not the pinned one: do not encrypt, and tell the operator of the key service"
            )
        return AsyncGallery(self, gallery, key, public)

    async def galleries(self) -> list[gallery_pb2.Gallery]:
        """All galleries, by name."""
        found: list[gallery_pb2.Gallery] = []
        token = ""
        while True:
            request = enrollment.ListGalleriesRequest(page_size=1000, page_token=token)
            with translated("enrollment"):
                page = await self.enrollment.ListGalleries(request, timeout=self.timeout_s)
            found += page.galleries
            token = page.next_page_token
            if not token:
                return found

    async def delete_gallery(self, gallery_id: str) -> int:
        """Erase a gallery with all that is in it; returns how many templates that were."""
        request = enrollment.DeleteGalleryRequest(name=f"galleries/{gallery_id}")
        with translated("enrollment"):
            return (await self.enrollment.DeleteGallery(request, timeout=self.timeout_s)).templates

    async def list_keys(self) -> list[key_pb2.Key]:
        """All keys, by name."""
        found: list[key_pb2.Key] = []
        token = ""
        while True:
            with translated("keys"):
                page = await self.keys.ListKeys(
                    key_service_pb2.ListKeysRequest(page_size=1000, page_token=token), timeout=self.timeout_s
                )
            found += page.keys
            token = page.next_page_token
            if not token:
                return found

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

    async def create_caller(self, caller_id: str, verifying_key: bytes) -> None:
        """Register a caller that may ask for decisions."""
        caller = caller_pb2.Caller(verifying_key=verifying_key, role=caller_pb2.CALLER_ROLE_VERIFIER)
        request = key_service_pb2.CreateCallerRequest(caller_id=caller_id, caller=caller)
        with translated("keys"):
            await self.keys.CreateCaller(request, timeout=self.timeout_s)

    async def verifying_key(self) -> bytes:
        """The key that the key service signs decisions with, fetched once."""
        if self._verifying_key is None:
            with translated("keys"):
                identity = await self.keys.GetServiceIdentity(
                    key_service_pb2.GetServiceIdentityRequest(), timeout=self.timeout_s
                )
            self._verifying_key = identity.verifying_key
        return self._verifying_key


class AsyncGallery:
    """One gallery; made by `AsyncClient.gallery` and `create_gallery`."""

    def __init__(self, client: AsyncClient, gallery: gallery_pb2.Gallery, key: key_pb2.Key, public_key: bytes) -> None:
        self.info = gallery
        self.policy = convert.policy_from_proto(key.policy)
        self.layout = convert.layout_from_proto(gallery.parameter_set, gallery.score_format)
        self.managed = gallery.custody == key_pb2.CUSTODY_MANAGED
        self._client = client
        self._pipeline = pipeline_of(gallery.recognition)
        self._encryptor: Encryptor = client.scheme.encryptor(self.layout, public_key)
        self._encrypting = asyncio.Lock()  # SEAL objects are for one thread at a time
        self._slots = SlotTable(gallery.name, client.enrollment)
        self._updating = asyncio.Lock()  # calls run at once, the table is for one at a time
        self._judge: LocalJudge | None = None

    @property
    def id(self) -> str:
        """The gallery's id."""
        return self.info.name.removeprefix("galleries/")

    async def warm(self) -> None:
        """Load the recognition model now rather than at the first face."""
        await asyncio.to_thread(self._client.faces.embedder(self._pipeline).warm)

    async def embed(self, face: Face) -> NDArray[np.float64]:
        """The embedding (d,) of a face, by the gallery's model."""
        return await self._client.faces.embed(face, self._pipeline)

    async def enroll(self, subject: str, face: Face, *, request_id: str | None = None) -> Enrolled:
        """Add a template to a subject, who is made if new.

        Args:
            subject: an opaque id of yours, 1 to 64 of [A-Za-z0-9._-].
            face: a path, a picture's bytes, or an embedding.
            request_id: give the same one when you repeat a call that may have succeeded.

        Raises:
            ServiceError, SealfaceError: what is wrong.
        """
        request = await self._enroll_request(subject, face, request_id)
        with translated("enrollment"):
            response = await self._client.enrollment.Enroll(request, timeout=self._client.timeout_s)
        return Enrolled(response.template.name, response.template.slot, request.ByteSize())

    async def enroll_many(self, faces: Iterable[tuple[str, Face]]) -> AsyncIterator[Enrolled | ServiceError]:
        """Enrol many; yields a result for each, in order."""
        sizes: list[int] = []

        async def requests() -> AsyncIterator[enrollment.BatchEnrollRequest]:
            for subject, face in faces:
                request = await self._enroll_request(subject, face, None)
                sizes.append(request.ByteSize())
                yield enrollment.BatchEnrollRequest(request=request)

        with translated("enrollment"):
            done = 0
            async for response in self._client.enrollment.BatchEnroll(requests()):
                if response.HasField("error"):
                    yield from_status(response.error)
                else:
                    template = response.enrolled.template
                    yield Enrolled(template.name, template.slot, sizes[done])
                done += 1

    async def _enroll_request(self, subject: str, face: Face, request_id: str | None) -> enrollment.EnrollRequest:
        names.check_opaque(subject, "subject")
        return enrollment.EnrollRequest(
            gallery=self.info.name,
            subject_id=subject,
            ciphertext=await self._encrypt(self._encryptor.template, await self.embed(face)),
            key_version=self.info.key_version,
            parameter_set=self.info.parameter_set,
            request_id=request_id or uuid.uuid4().hex,
        )

    async def verify(self, subject: str, face: Face) -> Verification:
        """Whether a face is a subject's.

        Raises:
            SubjectNotFound: the gallery has no such subject.
            ServiceError, SealfaceError: what else is wrong.
        """
        embedding = await self.embed(face)
        started = time.perf_counter()
        sent = 0

        async def attempt() -> Decision:
            nonlocal sent
            claimed = self._slots.slots(subject)
            if not claimed:
                await self._update_slots()
                claimed = self._slots.slots(subject)
            if not claimed:
                raise SubjectNotFound("the gallery has no such subject: list its subjects, or enrol it")
            probe = await self._encrypt(self._encryptor.probe, embedding)
            pending = self._ask(probe, claimed_slots=claimed)
            request = matching.VerifyRequest(
                gallery=self.info.name,
                probe=self._probe(probe),
                claimed_slots=claimed,
                decision_request=pending.signed if pending else None,
            )
            sent += request.ByteSize()
            with translated("matching"):
                response = await self._client.matching.Verify(request, timeout=self._client.timeout_s)
            if pending:
                decision, _ = pending.read(response.decision, await self._client.verifying_key())
            else:
                decision = self._local_judge().verify(response.scores.results, claimed)
            if response.layout_epoch != self._slots.epoch:
                await self._update_slots()
                if not decision.candidates and self._slots.slots(subject) != claimed:
                    return await attempt()  # the subject has gained a template since
            return decision

        decision = await self._insist(attempt)
        nearest = decision.candidates[0] if decision.candidates else None
        distance = nearest.distance if nearest else decision.distance
        return Verification(
            match=nearest is not None,
            distance=distance,
            confidence=self._confidence(distance),
            ms=(time.perf_counter() - started) * 1e3,
            bytes_sent=sent,
        )

    async def identify(self, face: Face, most: int | None = None) -> Identification:
        """Who in the gallery a face is; nobody is an answer.

        Args:
            face: a path, a picture's bytes, or an embedding.
            most: most subjects to name, 1 to 10; default and bound the policy's.

        Raises:
            ServiceError, SealfaceError: what is wrong.
        """
        embedding = await self.embed(face)
        started = time.perf_counter()
        most = min(most or self.policy.max_candidates, self.policy.max_candidates)
        sent = 0

        async def attempt() -> tuple[Decision, float]:
            nonlocal sent
            probe = await self._encrypt(self._encryptor.probe, embedding)
            pending = self._ask(probe, max_candidates=most)
            request = matching.IdentifyRequest(
                gallery=self.info.name,
                probe=self._probe(probe),
                decision_request=pending.signed if pending else None,
                request_id=uuid.uuid4().hex,
            )
            sent += request.ByteSize()
            results: list[decision_pb2.ScoreResult] = []
            leads: dict[int, int] = {}
            sealed, epoch, searched = None, 0, 0.0
            with translated("matching"):
                async for part in self._client.matching.Identify(request, timeout=self._client.timeout_s):
                    epoch, searched = part.layout_epoch, part.share_searched
                    if part.HasField("decision"):
                        sealed = part.decision
                    results.extend(part.scores.results)
                    leads.update((link.slot, link.lead) for link in part.scores.links)
            # whatever the answer, so that asking tells compute nothing of it
            if epoch != self._slots.epoch:
                await self._update_slots()
            if pending is None:
                return self._local_judge().identify(results, leads, most), searched
            if sealed is None:
                raise DecisionNotGenuine("the matching service sent no decision: ask again")
            return pending.read(sealed, await self._client.verifying_key())

        decision, searched = await self._insist(attempt)
        named = [(self._slots.subject(c.slot), c.distance) for c in decision.candidates]
        return Identification(
            # a subject erased since the search is nobody
            candidates=tuple(Named(who, d, self._confidence(d)) for who, d in named if who is not None),
            searched=searched,
            ms=(time.perf_counter() - started) * 1e3,
            bytes_sent=sent,
        )

    async def distance(self, subject: str, face: Face) -> float:
        """Exact distance to a subject's nearest template; for the holder of the key alone.

        Raises:
            SubjectNotFound: the gallery has no such subject.
            SecretKeyMissing: the key is not held here.
        """
        judge = self._local_judge()
        if not self._slots.slots(subject):
            await self._update_slots()
        claimed = self._slots.slots(subject)
        if not claimed:
            raise SubjectNotFound("the gallery has no such subject: list its subjects, or enrol it")
        probe = await self._encrypt(self._encryptor.probe, await self.embed(face))
        request = matching.VerifyRequest(gallery=self.info.name, probe=self._probe(probe), claimed_slots=claimed)
        with translated("matching"):
            response = await self._client.matching.Verify(request, timeout=self._client.timeout_s)
        return float(judge.distances(response.scores.results)[1].min())

    async def subjects(self) -> list[gallery_pb2.Subject]:
        """All subjects, by id."""
        found: list[gallery_pb2.Subject] = []
        token = ""
        while True:
            request = enrollment.ListSubjectsRequest(parent=self.info.name, page_size=1000, page_token=token)
            with translated("enrollment"):
                page = await self._client.enrollment.ListSubjects(request, timeout=self._client.timeout_s)
            found += page.subjects
            token = page.next_page_token
            if not token:
                return found

    async def erase(self, subject: str) -> int:
        """Erase a subject: no search finds it from now on; returns how many templates it had."""
        names.check_opaque(subject, "subject")
        request = enrollment.EraseSubjectRequest(name=f"{self.info.name}/subjects/{subject}")
        with translated("enrollment"):
            response = await self._client.enrollment.EraseSubject(request, timeout=self._client.timeout_s)
        await self._update_slots()
        return response.templates

    async def _encrypt(self, encrypt: Callable[[NDArray[np.float64]], bytes], embedding: NDArray[np.float64]) -> bytes:
        async with self._encrypting:
            return await asyncio.to_thread(encrypt, embedding)

    async def _update_slots(self) -> None:
        async with self._updating:
            with translated("enrollment"):
                await self._slots.update(self._client.timeout_s)

    def _probe(self, ciphertext: bytes) -> matching.Probe:
        return matching.Probe(
            ciphertext=ciphertext, key_version=self.info.key_version, parameter_set=self.info.parameter_set
        )

    def _ask(
        self, probe: bytes, claimed_slots: list[int] | None = None, max_candidates: int = 0
    ) -> PendingDecision | None:
        if not self.managed:
            return None
        return PendingDecision.ask(
            self._client.credential,
            gallery=self.info.name,
            key_version=self.info.key_version,
            probe=probe,
            claimed_slots=claimed_slots or (),
            max_candidates=max_candidates,
        )

    def _local_judge(self) -> LocalJudge:
        if self._judge is None:
            secret = self._client.key_folder.load(self.info.key_version)
            self._judge = LocalJudge(self._client.scheme, self.layout, secret, self.policy)
        return self._judge

    def _confidence(self, distance: float | None) -> float | None:
        if distance is None:
            return None
        return models.confidence(
            self._pipeline.model, self.layout.metric.value, distance, self.policy.verification_threshold
        )

    async def _insist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat an attempt that failed for a while, each with a probe and a nonce of its own."""
        for retry in range(_ATTEMPTS):
            try:
                return await attempt()
            except ServiceError as error:
                stale = error.reason == "SLOT_NOT_FOUND"
                if retry == _ATTEMPTS - 1 or not (
                    stale or error.reason == "KEY_SERVICE_UNAVAILABLE" or error.retryable
                ):
                    raise
                if stale:
                    await self._update_slots()
                else:
                    await asyncio.sleep(0.2 * 2**retry)
        raise AssertionError("unreachable")
