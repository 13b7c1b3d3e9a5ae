"""One gallery, seen from a caller: enrol, verify, identify, erase."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from numpy.typing import NDArray

from sealface.cipher.scheme import Encryptor
from sealface.errors import AlreadyExists, NotFound, SealfaceError
from sealface.protocol import convert, names
from sealface.protocol.decision import Decision
from sealface.protocol.sealing import DecisionNotGenuine
from sealface.recognition import models
from sealface_client.bulk import BulkImport
from sealface_client.decisions import PendingDecision
from sealface_client.errors import ServiceError, from_status, translated
from sealface_client.faces import Face, pipeline_of
from sealface_client.keyed import Keyed
from sealface_client.operations import AsyncOperations, Operation
from sealface_client.outgoing import Outgoing
from sealface_client.paging import pages
from sealface_client.renewal import renew_blocks
from sealface_client.results import Check, Enrolled, Erasure, Identification, Imported, Named, Verification
from sealface_client.searches import Search
from sealface_client.slots import SlotTable
from sealface_client.transform import transformed
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from sealface_protos.enrollment.v1 import gallery_pb2
from sealface_protos.enrollment.v1.operation_pb2 import OPERATION_KIND_ROTATION
from sealface_protos.keys.v1 import key_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as matching

if TYPE_CHECKING:
    from sealface_client.aio import AsyncClient

_T = TypeVar("_T")
_ATTEMPTS = 4


class SubjectNotFound(NotFound):
    """The gallery has no such subject."""


def duration(retention: timedelta | None) -> Duration | None:
    """A retention as the contract has it: whole seconds."""
    return None if retention is None else Duration(seconds=int(retention.total_seconds()))


class AlreadyEnrolled(AlreadyExists):
    """The person is in the gallery as another subject."""


def _moved(error: SealfaceError) -> bool:
    """Whether it is because the gallery is under another key version than was thought."""
    return error.reason == "WRONG_KEY_VERSION" or error.metadata.get("refusal") == "REFUSAL_KEY_VERSION"


class AsyncGallery:
    """One gallery; made by `AsyncClient.gallery` and `create_gallery`."""

    def __init__(self, client: AsyncClient, gallery: gallery_pb2.Gallery, key: key_pb2.Key, public_key: bytes) -> None:
        self.info = gallery
        self.policy = convert.policy_from_proto(key.policy)
        self.layout = convert.layout_from_proto(gallery.parameter_set, gallery.score_format)
        self.managed = gallery.custody == key_pb2.CUSTODY_MANAGED
        self._client = client
        self._pipeline = pipeline_of(gallery.recognition)
        encryptor: Encryptor = client.scheme.encryptor(self.layout, public_key)
        encryptor = transformed(encryptor, client.key_folder, gallery, self.layout)
        self._encrypting = asyncio.Lock()  # SEAL objects are for one thread at a time
        self._slots = SlotTable(gallery.name, client.enrollment)
        self._refreshing = asyncio.Lock()
        self._updating = asyncio.Lock()  # calls run at once, the table is for one at a time
        make_judge = partial(client.judge, gallery.key_version, self.layout, self.policy)
        self._keyed = Keyed(gallery, encryptor, make_judge)
        self.operations = AsyncOperations(client.operations, gallery.name, client.timeout_s)

    @property
    def id(self) -> str:
        """The gallery's id."""
        return self.info.name.removeprefix("galleries/")

    async def refresh(self) -> None:
        """Fetch the gallery again, with the key that it is under by now; its table of slots stays.

        Raises:
            ServiceError, KeyNotTrusted: as for `AsyncClient.gallery`.
        """
        now = await self._client.gallery(self.id)
        self.info, self.policy, self.layout, self.managed = now.info, now.policy, now.layout, now.managed
        self._keyed = now._keyed

    async def rotate(self) -> Operation:
        """Move the gallery to a new version of its key while it is searched.

        A rotation that was broken off goes on. For the operator where the key service holds the key, who then follows
        the operation; for the holder of the key alone otherwise, and then it is done when this returns.

        Raises:
            SecretKeyMissing: the key is not held here.
            ServiceError: what is wrong; it may be repeated.
        """
        await self.refresh()
        target = await self._client.next_version(self.info)
        if self.managed:
            return await self.operations.begin_rotation()
        old, new = (self._client.opener(name, self.layout) for name in (self.info.key_version, target))
        stub, version = self._client.enrollment, self.info.key_version
        await renew_blocks(stub, self.info.name, version, self.layout, old, (target, new))
        await self.refresh()
        return next(one for one in await self.operations.list() if one.kind == OPERATION_KIND_ROTATION)

    async def warm(self) -> None:
        """Load the recognition model now rather than at the first face."""
        await asyncio.to_thread(self._client.faces.embedder(self._pipeline).warm)

    async def embed(self, face: Face) -> NDArray[np.float64]:
        """The embedding (d,) of a face, by the gallery's model."""
        return await self._client.faces.embed(face, self._pipeline)

    async def embed_all(self, picture: str | Path | bytes) -> list[NDArray[np.float64]]:
        """The embeddings of every face in a picture, the largest first; for `identify_many`."""
        return await self._client.faces.embed_all(picture, self._pipeline)

    async def enroll(
        self, subject: str, face: Face, *, request_id: str | None = None, unique: bool = False
    ) -> Enrolled:
        """Add a template to a subject, who is made if new.

        Args:
            subject: an opaque id of yours, 1 to 64 of [A-Za-z0-9._-].
            face: a path, a picture's bytes, or an embedding.
            request_id: give the same one when you repeat a call that may have succeeded.
            unique: search first, and refuse a person that the gallery holds as another subject. Compute sees that an
                enrolment follows a search or not; two callers that enrol one person at once are not noticed.

        Raises:
            AlreadyEnrolled: asked for `unique`, and somebody else is near enough to be named by a search.
            ServiceError, SealfaceError: what is wrong.
        """
        names.check_opaque(subject, "subject")
        embedding = await self.embed(face)
        if unique:
            found = await self.identify(embedding)
            others = [candidate.subject for candidate in found.candidates if candidate.subject != subject]
            if others:
                raise AlreadyEnrolled(
                    "the person is enrolled already: add to that subject, or enrol without the check", subject=others[0]
                )
        request_id = request_id or uuid.uuid4().hex

        async def attempt() -> Enrolled:
            request = await self._enroll_request(subject, embedding, request_id)
            with translated("enrollment"):
                response = await self._client.enrollment.Enroll(request, timeout=self._client.timeout_s)
            return Enrolled(response.template.name, response.template.slot, request.ByteSize())

        return await self._under_its_key(attempt)

    async def enroll_many(self, faces: Iterable[tuple[str, Face]]) -> AsyncIterator[Enrolled | SealfaceError]:
        """Enrol many in one call; yields a result, or what went wrong, for each, in order."""

        async def make(item: tuple[str, Face]) -> tuple[enrollment.BatchEnrollRequest, tuple[int, str, Face]]:
            request = await self._enroll_request(*item, None)
            return enrollment.BatchEnrollRequest(request=request), (request.ByteSize(), *item)

        outgoing = Outgoing(faces, make)
        with translated("enrollment"):
            async for response in self._client.enrollment.BatchEnroll(outgoing.messages()):
                for failure in outgoing.failed():
                    yield failure
                size, subject, face = outgoing.take()
                if response.HasField("error"):
                    failed: SealfaceError | Enrolled = from_status(response.error)
                    if isinstance(failed, SealfaceError) and _moved(failed):
                        failed = await self._tried(self.enroll(subject, face))
                    yield failed
                else:
                    template = response.enrolled.template
                    yield Enrolled(template.name, template.slot, size)
        for failure in outgoing.failed():
            yield failure
        outgoing.close()

    async def import_many(
        self, faces: Iterable[tuple[str, NDArray[np.float64]]], expected: int = 0, operation_id: str = ""
    ) -> AsyncIterator[Imported]:
        """Import embeddings as whole sealed blocks, much faster than one by one; yields after each block.

        For the trusted side that holds the embeddings. An imported template that is erased is masked at once, and
        physically gone when the key service has renewed its block, soon after; of a client-held key, after
        `renew_blocks`. A call that failed may be repeated from the first subject that was not yielded.

        Args:
            faces: subject and embedding (d,), taken a block at a time.
            expected: about how many there are; chooses the shape of the blocks, with what the gallery holds already.
            operation_id: of the import that they are part of (`operations.begin_import`), which then counts them.

        Raises:
            ServiceError, SealfaceError: what is wrong.
        """
        shape = self.layout.best_shape(expected + self.info.templates)

        async def encrypt(embeddings: NDArray[np.float64]) -> tuple[gallery_pb2.Gallery, bytes]:
            keyed = self._keyed
            return keyed.info, await self._encrypt(partial(keyed.encryptor.block, shape), embeddings)

        operation = f"{self.info.name}/operations/{operation_id}" if operation_id else ""
        stub, timeout_s = self._client.enrollment, self._client.timeout_s
        bulk = BulkImport(stub, shape, encrypt, self._under_its_key, timeout_s, operation)
        async for imported in bulk.run(faces):
            yield imported

    async def _enroll_request(self, subject: str, face: Face, request_id: str | None) -> enrollment.EnrollRequest:
        names.check_opaque(subject, "subject")
        embedding, keyed = await self.embed(face), self._keyed
        return enrollment.EnrollRequest(
            gallery=keyed.info.name,
            subject_id=subject,
            ciphertext=await self._encrypt(keyed.encryptor.template, embedding),
            key_version=keyed.info.key_version,
            parameter_set=keyed.info.parameter_set,
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
            # before every call and whatever comes of it: a table brought up to date, or a call
            # repeated, only on one of the answers would tell compute which it was
            await self._update_slots()
            claimed = self._slots.slots(subject)
            if not claimed:
                raise SubjectNotFound("the gallery has no such subject: list its subjects, or enrol it")
            keyed = self._keyed
            probe = keyed.probe(await self._encrypt(keyed.encryptor.probe, embedding))
            pending = self._ask(probe, claimed_slots=claimed)
            request = matching.VerifyRequest(
                gallery=self.info.name,
                probe=probe,
                claimed_slots=claimed,
                decision_request=pending.signed if pending else None,
            )
            sent += request.ByteSize()
            with translated("matching"):
                response = await self._client.matching.Verify(request, timeout=self._client.timeout_s)
            if pending:
                decision, _ = pending.read(response.decision, await self._client.verifying_key())
            else:
                decision = keyed.judge.verify(response.scores.results, claimed)
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
        sent = 0

        async def attempt() -> tuple[Decision, float]:
            nonlocal sent
            search = await self._search(embedding, most)
            sent += search.request.ByteSize()
            with translated("matching"):
                async for part in self._client.matching.Identify(search.request, timeout=self._client.timeout_s):
                    search.take(part)
            return await self._read(search)

        decision, searched = await self._insist(attempt)
        return self._identification(decision, searched, (time.perf_counter() - started) * 1e3, sent)

    async def identify_many(
        self, faces: Iterable[Face], most: int | None = None
    ) -> AsyncIterator[Identification | SealfaceError]:
        """Search for many faces in one call; yields a result, or what went wrong, for each, in order.

        Nothing is tried again but what met a gallery that had moved; a result's time runs from its own encryption.
        """

        async def make(face: Face) -> tuple[matching.BatchIdentifyRequest, tuple[Search, float, Face]]:
            embedding = await self.embed(face)
            started = time.perf_counter()
            search = await self._search(embedding, most)
            return matching.BatchIdentifyRequest(request=search.request), (search, started, embedding)

        outgoing = Outgoing(faces, make)
        parts: list[matching.IdentifyResponse] = []
        with translated("matching"):
            async for response in self._client.matching.BatchIdentify(outgoing.messages()):
                if response.HasField("response"):
                    parts.append(response.response)
                if not response.last:
                    continue
                for failure in outgoing.failed():
                    yield failure
                search, started, face = outgoing.take()
                for part in parts:
                    search.take(part)
                parts.clear()
                try:
                    if response.HasField("error"):
                        raise from_status(response.error)
                    decision, searched = await self._read(search)
                except SealfaceError as error:
                    yield await self._tried(self.identify(face, most)) if _moved(error) else error
                    continue
                ms = (time.perf_counter() - started) * 1e3
                yield self._identification(decision, searched, ms, search.request.ByteSize())
        for failure in outgoing.failed():
            yield failure
        outgoing.close()

    async def distance(self, subject: str, face: Face, *, dithered: bool = False) -> float:
        """Exact distance to a subject's nearest template; for the holder of the key alone.

        Args:
            subject: whose.
            face: a path, a picture's bytes, or an embedding.
            dithered: with the noise that is added before distances are compared, fresh for each call.

        Raises:
            SubjectNotFound: the gallery has no such subject.
            SecretKeyMissing: the key is not held here.
        """
        _ = self._keyed.judge  # before anything is sent
        if not self._slots.slots(subject):
            await self._update_slots()
        claimed = self._slots.slots(subject)
        if not claimed:
            raise SubjectNotFound("the gallery has no such subject: list its subjects, or enrol it")
        embedding = await self.embed(face)

        async def attempt() -> float:
            keyed = self._keyed
            probe = keyed.probe(await self._encrypt(keyed.encryptor.probe, embedding))
            request = matching.VerifyRequest(gallery=self.info.name, probe=probe, claimed_slots=claimed)
            with translated("matching"):
                response = await self._client.matching.Verify(request, timeout=self._client.timeout_s)
            return float(keyed.judge.distances(response.scores.results, dithered=dithered)[1].min())

        return await self._under_its_key(attempt)

    async def distances(self, face: Face) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
        """Slots and exact distances (n,) of all templates; for the holder of the key alone.

        Raises:
            SecretKeyMissing: the key is not held here.
        """
        _ = self._keyed.judge  # before anything is sent
        embedding = await self.embed(face)

        async def attempt() -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
            search = await self._search(embedding, None)
            with translated("matching"):
                async for part in self._client.matching.Identify(search.request, timeout=self._client.timeout_s):
                    search.take(part)
            return search.keyed.judge.distances(search.results)

        return await self._under_its_key(attempt)

    async def subjects(self) -> list[gallery_pb2.Subject]:
        """All subjects, by id."""
        request = enrollment.ListSubjectsRequest(parent=self.info.name)
        listed = pages("enrollment", self._client.enrollment.ListSubjects, request, self._client.timeout_s)
        return [subject async for page in listed for subject in page.subjects]

    async def erase(self, subject: str) -> int:
        """Erase a subject: no search finds it from now on; returns how many templates it had."""
        names.check_opaque(subject, "subject")
        request = enrollment.EraseSubjectRequest(name=f"{self.info.name}/subjects/{subject}")
        with translated("enrollment"):
            response = await self._client.enrollment.EraseSubject(request, timeout=self._client.timeout_s)
        await self._update_slots()
        return response.templates

    async def erase_with_proof(self, subject: str, face: Face | None = None) -> Erasure:
        """Erase a subject, and look for what may be left of it: in the record, its blocks, the cache, workers' memory.

        It may take as long as it takes to make again the blocks that its templates lie in.

        Args:
            subject: whom.
            face: another picture of it, if there is one: it is searched for, too.

        Raises:
            ServiceError, SealfaceError: what is wrong; the subject may be erased all the same.
        """
        embedding = None if face is None else await self.embed(face)
        begun = await self.operations.begin_erasure(subject)
        if not self.managed:
            await self.renew_blocks()
        ended = await self.operations.wait(begun)
        proof = ended.erased
        request = matching.CheckErasureRequest(gallery=self.info.name, slots=proof.slots)
        with translated("matching"):
            memory = await self._client.matching.CheckErasure(request, timeout=self._client.timeout_s)
        checks = [Check(check.place, check.checked, check.found) for check in proof.checks]
        checks.append(Check(f"memory of {memory.workers} workers", memory.blocks, memory.found))
        await self._update_slots()
        if embedding is not None:
            found = await self.identify(embedding)
            checks.append(Check("search", 1, sum(named.subject == subject for named in found.candidates)))
        return Erasure(ended.name.rpartition("/")[2], len(proof.slots), tuple(checks))

    async def renew_blocks(self) -> int:
        """Have erased templates out of the blocks they were imported with; returns how many blocks were renewed.

        For the holder of the key; the key service does it by itself where it holds the key.

        Raises:
            SecretKeyMissing: the key is not held here.
            ServiceError: what is wrong; it may be repeated.
        """
        keyed, stub = self._keyed, self._client.enrollment
        return await renew_blocks(stub, self.info.name, keyed.info.key_version, self.layout, keyed.judge.opener)

    async def keep_for(self, retention: timedelta | None) -> None:
        """Set how long templates are kept after they were enrolled; None until they are erased."""
        gallery = gallery_pb2.Gallery(name=self.info.name, retention=duration(retention))
        request = enrollment.UpdateGalleryRequest(gallery=gallery, update_mask=FieldMask(paths=["retention"]))
        with translated("enrollment"):
            changed = await self._client.enrollment.UpdateGallery(request, timeout=self._client.timeout_s)
        if changed.key_version == self.info.key_version:
            self.info = changed
        else:  # it was moved meanwhile
            await self.refresh()

    async def _search(self, embedding: NDArray[np.float64], most: int | None) -> Search:
        most = min(most or self.policy.max_candidates, self.policy.max_candidates)
        keyed = self._keyed
        probe = keyed.probe(await self._encrypt(keyed.encryptor.probe, embedding))
        pending = self._ask(probe, max_candidates=most)
        request = matching.IdentifyRequest(
            gallery=self.info.name,
            probe=probe,
            decision_request=pending.signed if pending else None,
            request_id=uuid.uuid4().hex,
        )
        return Search(request, pending, most, keyed)

    async def _read(self, search: Search) -> tuple[Decision, float]:
        """The decision of a search whose answer is complete, and the share that was searched."""
        # whatever the answer, so that asking tells compute nothing of it
        if search.epoch != self._slots.epoch:
            await self._update_slots()
        if search.pending is None:
            return search.keyed.judge.identify(search.results, search.links, search.most), search.searched
        if search.sealed is None:
            raise DecisionNotGenuine("the matching service sent no decision: ask again")
        return search.pending.read(search.sealed, await self._client.verifying_key())

    def _identification(self, decision: Decision, searched: float, ms: float, sent: int) -> Identification:
        named = [(self._slots.subject(c.slot), c.distance) for c in decision.candidates]
        return Identification(
            # a subject erased since the search is nobody
            candidates=tuple(Named(who, d, self._confidence(d)) for who, d in named if who is not None),
            searched=searched,
            ms=ms,
            bytes_sent=sent,
        )

    async def _encrypt(self, encrypt: Callable[[NDArray[np.float64]], bytes], embedding: NDArray[np.float64]) -> bytes:
        async with self._encrypting:
            return await asyncio.to_thread(encrypt, embedding)

    async def _update_slots(self) -> None:
        async with self._updating:
            with translated("enrollment"):
                await self._slots.update(self._client.timeout_s)

    def _ask(
        self, probe: matching.Probe, claimed_slots: list[int] | None = None, max_candidates: int = 0
    ) -> PendingDecision | None:
        if not self.managed:
            return None
        return PendingDecision.ask(
            self._client.credential,
            gallery=self.info.name,
            key_version=probe.key_version,
            probe=probe.ciphertext,
            claimed_slots=claimed_slots or (),
            max_candidates=max_candidates,
        )

    def _confidence(self, distance: float | None) -> float | None:
        if distance is None:
            return None
        return models.confidence(
            self._pipeline.model, self.layout.metric.value, distance, self.policy.verification_threshold
        )

    async def _under_its_key(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat an attempt if the gallery has been moved to another key version meanwhile."""
        version = self._keyed.info.key_version
        try:
            return await attempt()
        except SealfaceError as error:
            if not _moved(error):
                raise
            await self._follow(version)
            if self._keyed.info.key_version == version:  # it is not that
                raise
        return await attempt()

    @staticmethod
    async def _tried(call: Awaitable[_T]) -> _T | SealfaceError:
        """What comes of a call, or what went wrong."""
        try:
            return await call
        except SealfaceError as error:
            return error

    async def _follow(self, version: str) -> None:
        """Fetch the gallery again if it is not known yet that it is under another version than that."""
        async with self._refreshing:
            if self._keyed.info.key_version == version:
                await self.refresh()

    async def _insist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat an attempt that failed for a while, each with a probe and a nonce of its own."""
        for retry in range(_ATTEMPTS):
            try:
                return await self._under_its_key(attempt)
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
