"""What compute sends to the key service, made by hand so that a test can make it wrong."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from sealface.cipher.layout import Shape
from sealface.cipher.scheme import Scheme
from sealface.protocol import convert, sealing
from sealface.protocol.policy import Policy
from sealface.protocol.signing import Credential
from sealface_client import AsyncClient
from sealface_protos.keys.v1 import decision_pb2, key_pb2, key_service_pb2
from tests.conftest import DIMENSION, POLICY, Suite, Vector, person

BOX_BYTES = sealing.PADDED_BYTES + 48


def new_key(rule: Policy = POLICY, **changed: Any) -> key_pb2.Key:
    fields = {
        "custody": key_pb2.CUSTODY_MANAGED,
        "score_format": key_pb2.ScoreFormat(dimension=DIMENSION, metric=key_pb2.METRIC_COSINE),
        "policy": convert.policy_to_proto(rule),
    }
    return key_pb2.Key(**fields | changed)


async def create_key(client: AsyncClient, key_id: str = "door", key: key_pb2.Key | None = None) -> key_pb2.Key:
    return await client.keys.CreateKey(key_service_pb2.CreateKeyRequest(key_id=key_id, key=key or new_key()))


async def material(client: AsyncClient, key_version: str, *kinds: key_pb2.MaterialKind.ValueType) -> bytes:
    call = client.keys.GetMaterial(key_service_pb2.GetMaterialRequest(key_version=key_version, kinds=kinds))
    return b"".join([chunk.data async for chunk in call])


@dataclass
class Asked:
    """A signed request, and the key of its answer."""

    signed: decision_pb2.SignedDecisionRequest
    request: decision_pb2.DecisionRequest
    key: X25519PrivateKey

    def read(self, sealed: decision_pb2.SealedDecision) -> decision_pb2.Decision:
        """What is in the box; its size is looked at whatever that is."""
        assert len(sealed.box) == BOX_BYTES
        binding = decision_pb2.DecisionBinding.FromString(sealed.binding)
        for field in ("request_id", "caller", "gallery", "key_version", "probe_digest"):
            assert getattr(binding, field) == getattr(self.request, field)
        return decision_pb2.Decision.FromString(sealing.open_box(sealed.box, sealed.binding, self.key))


def ask(credential: Credential, probe: bytes, *, sign_with: Credential | None = None, **changed: Any) -> Asked:
    """A search of the key `door`; a verification if slots are claimed."""
    key = X25519PrivateKey.generate()
    claimed = changed.get("claimed_slots", ())
    fields = {
        "request_id": uuid.uuid4().hex,
        "nonce": os.urandom(32),
        "caller": credential.caller,
        "gallery": "galleries/door",
        "key_version": "keys/door/versions/1",
        "operation": decision_pb2.OPERATION_VERIFY if claimed else decision_pb2.OPERATION_IDENTIFY,
        "max_candidates": 0 if claimed else 10,
        "probe_digest": hashlib.sha256(probe).digest(),
        "hpke_public_key": key.public_key().public_bytes_raw(),
        "expire_time": Timestamp(seconds=int(time.time()) + 60),
    }
    request = decision_pb2.DecisionRequest(**fields | changed)
    data = request.SerializeToString()
    signature = (sign_with or credential).sign_decision_request(data)
    return Asked(decision_pb2.SignedDecisionRequest(decision_request=data, signature=signature), request, key)


@dataclass
class Keyed:
    """A managed key, seen by compute and by a caller."""

    client: AsyncClient
    scheme: Scheme
    key: key_pb2.Key
    public: bytes
    evaluation: dict[int, bytes]

    def __post_init__(self) -> None:
        self.layout = convert.layout_from_proto(self.key.parameter_set, self.key.score_format)
        self.encryptor = self.scheme.encryptor(self.layout, self.public)
        self.evaluator = self.scheme.evaluator(self.layout, self.public, self.evaluation)
        self.probe = self.encryptor.probe(person(0, self.layout.dimension))

    def results(
        self, templates: Mapping[int, Vector], probe: bytes | None = None, shape: Shape | None = None
    ) -> list[decision_pb2.ScoreResult]:
        """Scores of templates by slot, as the matching service makes them; in groups unless told otherwise."""
        admitted = self.evaluator.admit_probe(probe or self.probe)
        shape = shape or self.layout.group
        leaves = self.evaluator.expand([admitted], {shape})[shape]
        items = list(templates.items())
        made = []
        for start in range(0, len(items), shape.capacity):
            part = items[start : start + shape.capacity]
            stored = {i: self.evaluator.admit(self.encryptor.template(vector)) for i, (_, vector) in enumerate(part)}
            made.append(self.score(shape, self.block(shape, stored), leaves, [slot for slot, _ in part]))
        return made

    def block(self, shape: Shape, stored: Mapping[int, bytes]) -> Any:
        if shape.sealed:
            return self.evaluator.load(shape, self.evaluator.seal(shape, stored))
        return self.evaluator.assemble(stored)

    def score(self, shape: Shape, block: Any, leaves: Any, slots: Sequence[int]) -> decision_pb2.ScoreResult:
        """One block's result, its first positions asked for."""
        placed = np.zeros(shape.capacity, "<u4")
        placed[: len(slots)] = slots
        ((data,),) = self.evaluator.score([block], leaves, [placed > 0])
        return decision_pb2.ScoreResult(columns=shape.columns, ciphertext=data, slots=placed.tobytes())

    async def decide(
        self, asked: Asked, results: Sequence[decision_pb2.ScoreResult] = (), leads: Mapping[int, int] | None = None
    ) -> decision_pb2.Decision:
        """The decision, read by its caller."""
        return asked.read(await self.sealed(asked, results, leads))

    async def sealed(
        self, asked: Asked, results: Sequence[decision_pb2.ScoreResult] = (), leads: Mapping[int, int] | None = None
    ) -> decision_pb2.SealedDecision:
        links = [decision_pb2.SlotLink(slot=slot, lead=lead) for slot, lead in (leads or {}).items()]
        first = key_service_pb2.DecideRequest(request=asked.signed, layout_epoch=7, share_searched=1.0, links=links)
        rest = [key_service_pb2.DecideRequest(results=[result]) for result in results]
        return await self.client.keys.Decide(iter([first, *rest]), timeout=20)


async def keyed(client: AsyncClient, scheme: Scheme, key: key_pb2.Key) -> Keyed:
    request = key_service_pb2.GetMaterialRequest(
        key_version=key.primary_version, kinds=[key_pb2.MATERIAL_KIND_PUBLIC_KEY, key_pb2.MATERIAL_KIND_GALOIS_KEY]
    )
    found: dict[int, bytes] = defaultdict(bytes)
    async for chunk in client.keys.GetMaterial(request):
        found[chunk.galois_element] += chunk.data
    return Keyed(client, scheme, key, found.pop(0), dict(found))


@pytest.fixture
async def door_key(client: AsyncClient, scheme: Scheme) -> Keyed:
    """The managed key `door`."""
    return await keyed(client, scheme, await create_key(client))


@pytest.fixture
async def alice(client: AsyncClient) -> Credential:
    """A registered verifier."""
    credential = Credential.generate("callers/alice")
    await client.create_caller("alice", credential.verifying_key)
    return credential


@pytest.fixture
async def suite(tmp_path: Path, scheme: Scheme) -> AsyncIterator[Suite]:
    """The key service alone."""
    running = Suite(tmp_path, scheme)
    await running.start("keys")
    running.addresses |= {"enrollment": "127.0.0.1:1", "matching": "127.0.0.1:1"}
    yield running
    await running.close()
