from __future__ import annotations

import uuid
from typing import Any

from sealface_client import AsyncGallery
from sealface_client.decisions import PendingDecision
from sealface_protos.matching.v1 import matching_service_pb2 as messages
from tests.conftest import Vector


def probe_of(gallery: AsyncGallery, vector: Vector) -> messages.Probe:
    return gallery._keyed.probe(gallery._keyed.encryptor.probe(vector))


def verify_request(
    to: AsyncGallery, vector: Vector, claimed: list[int], **changed: Any
) -> tuple[messages.VerifyRequest, PendingDecision | None]:
    probe = probe_of(to, vector)
    pending = to._ask(probe, claimed_slots=claimed)
    fields = {
        "gallery": to.info.name,
        "probe": probe,
        "claimed_slots": claimed,
        "decision_request": pending.signed if pending else None,
    }
    return messages.VerifyRequest(**fields | changed), pending


def identify_request(
    to: AsyncGallery, vector: Vector, **changed: Any
) -> tuple[messages.IdentifyRequest, PendingDecision | None]:
    probe = probe_of(to, vector)
    pending = to._ask(probe, max_candidates=5)
    fields = {
        "gallery": to.info.name,
        "probe": probe,
        "decision_request": pending.signed if pending else None,
        "request_id": uuid.uuid4().hex,
    }
    return messages.IdentifyRequest(**fields | changed), pending
