from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sealface.cipher.layout import Shape
from sealface_client import AsyncClient, AsyncGallery
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from sealface_protos.enrollment.v1 import gallery_pb2
from tests.conftest import Vector, person
from tests.keys.conftest import create_key


def description(key: str = "keys/door", **changed: Any) -> gallery_pb2.Gallery:
    fields = {
        "key": key,
        "recognition": gallery_pb2.Recognition(model="Dlib", detector="dlib", face_rule=gallery_pb2.FACE_RULE_REFUSE),
        "privacy_level": gallery_pb2.PRIVACY_LEVEL_EMBEDDING,
        "fusion": gallery_pb2.FUSION_NEAREST,
    }
    return gallery_pb2.Gallery(**fields | changed)


async def create_gallery(
    client: AsyncClient, gallery_id: str = "door", gallery: gallery_pb2.Gallery | None = None
) -> gallery_pb2.Gallery:
    request = messages.CreateGalleryRequest(gallery_id=gallery_id, gallery=gallery or description())
    return await client.enrollment.CreateGallery(request)


def enroll_request(
    to: AsyncGallery, subject: str = "4711", vector: Vector | None = None, **changed: Any
) -> messages.EnrollRequest:
    vector = person(1) if vector is None else vector
    fields = {
        "gallery": to.info.name,
        "subject_id": subject,
        "ciphertext": to._keyed.encryptor.template(vector),
        "key_version": to.info.key_version,
        "parameter_set": to.info.parameter_set,
        "request_id": uuid.uuid4().hex,
    }
    return messages.EnrollRequest(**fields | changed)


def import_header(to: AsyncGallery, subjects: Sequence[str], **changed: Any) -> messages.ImportBlockHeader:
    """Says that a block of the smallest shape comes."""
    fields = {
        "gallery": to.info.name,
        "columns": to.layout.sealed_shapes[0].columns,
        "subject_ids": subjects,
        "key_version": to.info.key_version,
        "parameter_set": to.info.parameter_set,
        "request_id": uuid.uuid4().hex,
    }
    return messages.ImportBlockHeader(**fields | changed)


def import_data(to: AsyncGallery, vectors: Sequence[Vector], shape: Shape | None = None) -> bytes:
    """A block of these, of the smallest shape unless told otherwise."""
    return to._keyed.encryptor.block(shape or to.layout.sealed_shapes[0], np.stack(vectors))


def import_messages(
    header: messages.ImportBlockHeader, data: bytes, size: int = 1 << 20
) -> list[messages.ImportBlockRequest]:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    first = messages.ImportBlockRequest(header=header)
    return [first, *(messages.ImportBlockRequest(data=part) for part in parts)]


@pytest.fixture
async def door_key(client: AsyncClient) -> None:
    """A managed key `door`, no gallery."""
    await create_key(client)
