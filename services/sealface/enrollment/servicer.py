"""gRPC to the enrollment service's domain: validate, convert, call, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import duration_pb2

from sealface.enrollment.enroller import Enroller, NewBlock, NewTemplate
from sealface.enrollment.exchange import BlockExchange
from sealface.enrollment.key_source import KeySource
from sealface.enrollment.record import NewGallery, Record, SubjectNotFound
from sealface.enrollment.renewals import Renewals
from sealface.enrollment.rotations import Rotations
from sealface.errors import InvalidInput, SealfaceError
from sealface.protocol import convert, names
from sealface.runtime.status import to_status
from sealface.storage.galleries import Galleries, Gallery
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from sealface_protos.enrollment.v1 import enrollment_service_pb2_grpc, gallery_pb2
from sealface_protos.keys.v1 import key_pb2

_CHANGES_A_MESSAGE = 10_000
TRANSFORM_DIGEST_BYTES = 32
LONGEST_RETENTION_S = 1000 * 366 * 86_400
_LARGEST_EPOCH = 2**63 - 1  # that the record can hold
# Which custody of the key each privacy level asks for; the level `image` comes with the inference service.
_CUSTODY_OF_LEVEL = {
    gallery_pb2.PRIVACY_LEVEL_EDGE: key_pb2.CUSTODY_MANAGED,
    gallery_pb2.PRIVACY_LEVEL_EMBEDDING: key_pb2.CUSTODY_MANAGED,
    gallery_pb2.PRIVACY_LEVEL_CLIENT_KEY: key_pb2.CUSTODY_CLIENT_HELD,
}

Context = grpc.aio.ServicerContext[Any, Any]


class WrongPrivacyLevel(InvalidInput):
    """The privacy level does not go with the key's custody, or is not offered."""


class WrongRetention(InvalidInput):
    """Templates cannot be kept for that long, or that short."""


class WrongTransformDigest(InvalidInput):
    """The digest of a transform has not the length of one."""


class BlockTooLong(InvalidInput):
    """More bytes were sent than a block of its shape has."""


class EnrollmentServicer(enrollment_service_pb2_grpc.EnrollmentServiceServicer):
    """See `EnrollmentService` in the contract."""

    def __init__(
        self,
        galleries: Galleries,
        record: Record,
        enroller: Enroller,
        keys: KeySource,
        renewals: Renewals,
        rotations: Rotations,
        changed: Callable[[], None],
    ) -> None:
        self._galleries = galleries
        self._record = record
        self._enroller = enroller
        self._keys = keys
        self._renewals = renewals
        self._rotations = rotations
        self._changed = changed

    async def CreateGallery(self, request: messages.CreateGalleryRequest, context: Context) -> gallery_pb2.Gallery:
        """See the contract."""
        gallery_id = names.check_id(request.gallery_id, "gallery_id")
        gallery = request.gallery
        _check_gallery(gallery)
        names.id_of(gallery.key, "keys")
        key, public, evaluation_keys = await self._keys.fetch(gallery.key)
        if _CUSTODY_OF_LEVEL.get(gallery.privacy_level) != key.custody:
            raise WrongPrivacyLevel(
                "the privacy level does not go with the key: `client-key` needs a key the client holds, "
                "`edge` and `embedding` a managed one; `image` is not offered yet"
            )
        new = NewGallery(
            id=gallery_id,
            key_version=key.primary_version,
            managed=key.custody == key_pb2.CUSTODY_MANAGED,
            public_key=public,
            evaluation_keys=evaluation_keys,
            layout=convert.layout_from_proto(key.parameter_set, key.score_format),
            privacy_level=gallery.privacy_level,
            fusion=gallery.fusion,
            recognition=_recognition(gallery.recognition),
            retention_s=_retention_s(gallery),
            transform_digest=gallery.transform_digest or None,
        )
        await asyncio.to_thread(self._record.create_gallery, new)
        return await self._gallery(gallery_id)

    async def GetGallery(self, request: messages.GetGalleryRequest, context: Context) -> gallery_pb2.Gallery:
        """See the contract."""
        return await self._gallery(names.id_of(request.name, "galleries"))

    async def ListGalleries(
        self, request: messages.ListGalleriesRequest, context: Context
    ) -> messages.ListGalleriesResponse:
        """See the contract."""
        limit = convert.page_limit(request.page_size)
        found = await asyncio.to_thread(self._galleries.page, request.page_token, limit + 1)
        return messages.ListGalleriesResponse(
            galleries=[await self._counted(gallery) for gallery in found[:limit]],
            next_page_token=found[limit - 1].id if len(found) > limit else "",
        )

    async def UpdateGallery(self, request: messages.UpdateGalleryRequest, context: Context) -> gallery_pb2.Gallery:
        """See the contract."""
        gallery_id = names.id_of(request.gallery.name, "galleries")
        if list(request.update_mask.paths) != ["retention"]:
            raise convert.missing("update_mask: `retention` is what can be changed")
        await asyncio.to_thread(self._record.keep_for, gallery_id, _retention_s(request.gallery))
        self._changed()
        return await self._gallery(gallery_id)

    async def DeleteGallery(
        self, request: messages.DeleteGalleryRequest, context: Context
    ) -> messages.DeleteGalleryResponse:
        """See the contract."""
        gallery_id = names.id_of(request.name, "galleries")
        return messages.DeleteGalleryResponse(
            templates=await asyncio.to_thread(self._record.delete_gallery, gallery_id)
        )

    async def Enroll(self, request: messages.EnrollRequest, context: Context) -> messages.EnrollResponse:
        """See the contract."""
        new = NewTemplate(
            gallery=names.id_of(request.gallery, "galleries"),
            subject=request.subject_id,
            ciphertext=request.ciphertext,
            key_version=request.key_version,
            parameter_set=request.parameter_set,
            request_id=request.request_id,
        )
        enrolled = await asyncio.to_thread(self._enroller.enroll, new)
        self._changed()
        return messages.EnrollResponse(
            template=gallery_pb2.Template(
                name=_template_name(new.gallery, new.subject, enrolled.slot),
                slot=enrolled.slot,
                create_time=convert.timestamp(enrolled.created),
            ),
            layout_epoch=enrolled.epoch,
        )

    async def BatchEnroll(
        self, request_iterator: AsyncIterator[messages.BatchEnrollRequest], context: Context
    ) -> AsyncIterator[messages.BatchEnrollResponse]:
        """See the contract."""
        async for item in request_iterator:
            response = messages.BatchEnrollResponse(request_id=item.request.request_id)
            try:
                response.enrolled.CopyFrom(await self.Enroll(item.request, context))
            except SealfaceError as error:
                response.error.CopyFrom(to_status(error))
            yield response

    async def ImportBlock(
        self, request_iterator: AsyncIterator[messages.ImportBlockRequest], context: Context
    ) -> messages.ImportBlockResponse:
        """See the contract."""
        block: NewBlock | None = None
        data = bytearray()
        async for message in request_iterator:
            if block is None:
                block = await asyncio.to_thread(self._enroller.expect, _block(message.header))
            elif message.WhichOneof("part") != "data":
                raise convert.missing("data")
            data += message.data
            if len(data) > block.size:
                raise BlockTooLong(f"more than the {block.size} bytes of a block of this shape", limit=block.size)
        if block is None:
            raise convert.missing("header")
        imported = await asyncio.to_thread(self._enroller.import_block, block, bytes(data))
        self._changed()
        return messages.ImportBlockResponse(first_slot=imported.slot, layout_epoch=imported.epoch)

    async def RenewBlocks(
        self, request_iterator: AsyncIterator[messages.RenewBlocksRequest], context: Context
    ) -> AsyncIterator[messages.RenewBlocksResponse]:
        """See the contract."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or not first.gallery:
            raise convert.missing("gallery")
        gallery_id = names.id_of(first.gallery, "galleries")
        rotation = await self._rotations.begin(gallery_id, "", by_client=True) if first.rotate else None
        exchange = BlockExchange(requests)
        work = asyncio.ensure_future(
            asyncio.to_thread(self._renewals.run, gallery_id, exchange.ask, lambda: exchange.ended, rotation)
        )
        work.add_done_callback(exchange.end)
        try:
            async for message in exchange.messages():
                yield message
            await work
        finally:
            exchange.end()
            self._changed()  # an erasure may wait for it

    async def GetSubject(self, request: messages.GetSubjectRequest, context: Context) -> gallery_pb2.Subject:
        """See the contract."""
        gallery_id, subject = names.subject(request.name)
        await asyncio.to_thread(self._galleries.get, gallery_id)
        found = await self._subject(gallery_id, subject)
        if not found.templates:
            raise SubjectNotFound("the gallery has no such subject: list its subjects")
        return found

    async def ListSubjects(
        self, request: messages.ListSubjectsRequest, context: Context
    ) -> messages.ListSubjectsResponse:
        """See the contract."""
        gallery_id = names.id_of(request.parent, "galleries")
        await asyncio.to_thread(self._galleries.get, gallery_id)
        limit = convert.page_limit(request.page_size)
        found = await asyncio.to_thread(self._galleries.subjects, gallery_id, request.page_token, limit + 1)
        return messages.ListSubjectsResponse(
            subjects=[await self._subject(gallery_id, subject) for subject in found[:limit]],
            next_page_token=found[limit - 1] if len(found) > limit else "",
        )

    async def EraseSubject(
        self, request: messages.EraseSubjectRequest, context: Context
    ) -> messages.EraseSubjectResponse:
        """See the contract."""
        erased, epoch = await asyncio.to_thread(self._record.erase_subject, *names.subject(request.name))
        self._changed()
        return messages.EraseSubjectResponse(templates=erased, layout_epoch=epoch)

    async def ListSlotChanges(
        self, request: messages.ListSlotChangesRequest, context: Context
    ) -> AsyncIterator[messages.ListSlotChangesResponse]:
        """See the contract."""
        gallery_id = names.id_of(request.gallery, "galleries")
        since = min(request.since_epoch, _LARGEST_EPOCH)
        first, last, changes = await asyncio.to_thread(self._galleries.changes, gallery_id, since)
        reset = since > last or 0 < since < first
        if reset:
            first, last, changes = await asyncio.to_thread(self._galleries.changes, gallery_id, 0)
        for start in range(0, max(1, len(changes)), _CHANGES_A_MESSAGE):
            yield messages.ListSlotChangesResponse(
                changes=[
                    gallery_pb2.SlotChange(slot=c.slot, subject=c.subject or "", layout_epoch=c.epoch)
                    for c in changes[start : start + _CHANGES_A_MESSAGE]
                ],
                layout_epoch=last,
                reset=reset and start == 0,
            )

    async def _gallery(self, gallery_id: str) -> gallery_pb2.Gallery:
        return await self._counted(await asyncio.to_thread(self._galleries.get, gallery_id))

    async def _counted(self, gallery: Gallery) -> gallery_pb2.Gallery:
        subjects, templates = await asyncio.to_thread(self._galleries.counts, gallery.id)
        retention = None if gallery.retention_s is None else duration_pb2.Duration(seconds=gallery.retention_s)
        return gallery_pb2.Gallery(
            name=f"galleries/{gallery.id}",
            key=gallery.key_version.split("/versions/")[0],
            recognition=gallery_pb2.Recognition.FromString(gallery.recognition),
            privacy_level=gallery_pb2.PrivacyLevel.ValueType(gallery.privacy_level),
            fusion=gallery_pb2.Fusion.ValueType(gallery.fusion),
            key_version=gallery.key_version,
            parameter_set=gallery.layout.parameters.name,
            score_format=convert.layout_to_proto(gallery.layout),
            custody=key_pb2.CUSTODY_MANAGED if gallery.managed else key_pb2.CUSTODY_CLIENT_HELD,
            layout_epoch=gallery.epoch,
            subjects=subjects,
            templates=templates,
            create_time=convert.timestamp(gallery.created),
            retention=retention,
            transform_digest=gallery.transform_digest or b"",
        )

    async def _subject(self, gallery_id: str, subject: str) -> gallery_pb2.Subject:
        templates = await asyncio.to_thread(self._galleries.subject, gallery_id, subject)
        return gallery_pb2.Subject(
            name=f"galleries/{gallery_id}/subjects/{subject}",
            templates=[
                gallery_pb2.Template(
                    name=_template_name(gallery_id, subject, slot), slot=slot, create_time=convert.timestamp(created)
                )
                for slot, created in templates
            ],
        )


def _block(header: messages.ImportBlockHeader) -> NewBlock:
    if not header.gallery:
        raise convert.missing("header")
    return NewBlock(
        gallery=names.id_of(header.gallery, "galleries"),
        columns=header.columns,
        subjects=tuple(header.subject_ids),
        key_version=header.key_version,
        parameter_set=header.parameter_set,
        request_id=header.request_id,
        operation=_operation_id(header),
    )


def _operation_id(header: messages.ImportBlockHeader) -> str:
    if not header.operation:
        return ""
    gallery_id, operation_id = names.operation(header.operation)
    if f"galleries/{gallery_id}" != header.gallery:
        raise names.InvalidName("the operation is another gallery's: begin an import of this one", field="operation")
    return operation_id


def _retention_s(gallery: gallery_pb2.Gallery) -> int | None:
    if not gallery.HasField("retention"):
        return None
    retention = gallery.retention
    if retention.nanos or not 1 <= retention.seconds <= LONGEST_RETENTION_S:
        raise WrongRetention("a retention is 1 second to 1,000 years, in whole seconds", limit=LONGEST_RETENTION_S)
    return retention.seconds


def _template_name(gallery_id: str, subject: str, slot: int) -> str:
    return f"galleries/{gallery_id}/subjects/{subject}/templates/{slot}"


def _recognition(message: gallery_pb2.Recognition) -> bytes:
    """The fields this version knows; what else came with them is not kept."""
    known = gallery_pb2.Recognition()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.SerializeToString()


def _check_gallery(gallery: gallery_pb2.Gallery) -> None:
    recognition = gallery.recognition
    for field in ("model", "detector"):
        if not 1 <= len(getattr(recognition, field)) <= 64:
            raise convert.missing(f"gallery.recognition.{field} (1 to 64 characters)")
    if recognition.face_rule not in (gallery_pb2.FACE_RULE_REFUSE, gallery_pb2.FACE_RULE_LARGEST):
        raise convert.missing("gallery.recognition.face_rule: FACE_RULE_REFUSE or FACE_RULE_LARGEST")
    if gallery.fusion != gallery_pb2.FUSION_NEAREST:
        raise convert.missing("gallery.fusion: FUSION_NEAREST")
    if len(gallery.transform_digest) not in (0, TRANSFORM_DIGEST_BYTES):
        raise WrongTransformDigest(
            f"a transform's digest has {TRANSFORM_DIGEST_BYTES} bytes: leave it out for a gallery without a transform"
        )
