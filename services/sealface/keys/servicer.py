"""gRPC to the key service's domain: validate, convert, call, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np

from sealface.errors import LimitExceeded
from sealface.keys.callers import Caller, Callers, Role
from sealface.keys.judge import Hearing, InvalidDecisionRequest, Judge, Operation, Refusal, Request, Verdict
from sealface.keys.keyring import Custody, Key, Keyring, version_name
from sealface.keys.renewal import Renewal
from sealface.protocol import convert, names, sealing
from sealface.protocol.scores import result_from_wire
from sealface.runtime.timing import SERVER_TIMING, format_timing
from sealface_protos.keys.v1 import caller_pb2, decision_pb2, key_pb2, key_service_pb2, key_service_pb2_grpc

_CHUNK_BYTES = 1 << 20
_LARGEST_REQUEST_BYTES = 4096
_MOST_LINKS = 1 << 20
_OPERATIONS = {
    decision_pb2.OPERATION_VERIFY: Operation.VERIFY,
    decision_pb2.OPERATION_IDENTIFY: Operation.IDENTIFY,
}
_REFUSALS = {
    Refusal.KEY_VERSION: decision_pb2.REFUSAL_KEY_VERSION,
    Refusal.NOT_GENUINE: decision_pb2.REFUSAL_NOT_GENUINE,
    Refusal.SLOTS: decision_pb2.REFUSAL_SLOTS,
    Refusal.MALFORMED: decision_pb2.REFUSAL_MALFORMED,
}
_CUSTODIES = {
    Custody.MANAGED: key_pb2.CUSTODY_MANAGED,
    Custody.CLIENT_HELD: key_pb2.CUSTODY_CLIENT_HELD,
}
_ROLES = {
    caller_pb2.CALLER_ROLE_VERIFIER: Role.VERIFIER,
    caller_pb2.CALLER_ROLE_OPERATOR: Role.OPERATOR,
}
_ROLE_VALUES = {role: value for value, role in _ROLES.items()}

Context = grpc.aio.ServicerContext[Any, Any]


class TooManyLinks(LimitExceeded):
    """A decision was asked for with more links between slots than one request may hold."""


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """See `KeyService` in the contract. Operator methods are authenticated by `operator.OperatorInterceptor`."""

    def __init__(self, keyring: Keyring, callers: Callers, judge: Judge) -> None:
        self._keyring = keyring
        self._callers = callers
        self._judge = judge

    async def CreateKey(self, request: key_service_pb2.CreateKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        key_id = names.check_id(request.key_id, "key_id")
        if request.key.custody != key_pb2.CUSTODY_MANAGED:
            raise convert.missing("key.custody: CUSTODY_MANAGED")
        layout = convert.layout_from_proto(request.key.parameter_set, request.key.score_format)
        policy = convert.policy_from_proto(request.key.policy)
        return _key_to_proto(await asyncio.to_thread(self._keyring.create, key_id, layout, policy))

    async def RegisterKey(self, request: key_service_pb2.RegisterKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        key_id = names.check_id(request.key_id, "key_id")
        if request.key.custody != key_pb2.CUSTODY_CLIENT_HELD:
            raise convert.missing("key.custody: CUSTODY_CLIENT_HELD")
        layout = convert.layout_from_proto(request.key.parameter_set, request.key.score_format)
        policy = convert.policy_from_proto(request.key.policy)
        key = await asyncio.to_thread(self._keyring.register, key_id, layout, policy, request.public_key)
        return _key_to_proto(key)

    async def UploadEvaluationKey(
        self, request: key_service_pb2.UploadEvaluationKeyRequest, context: Context
    ) -> key_service_pb2.UploadEvaluationKeyResponse:
        """See the contract."""
        key_id, number = names.key_version(request.key_version)
        await asyncio.to_thread(
            self._keyring.add_evaluation_key, key_id, number, request.galois_element, request.evaluation_key
        )
        return key_service_pb2.UploadEvaluationKeyResponse()

    async def GetKey(self, request: key_service_pb2.GetKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        return _key_to_proto(await asyncio.to_thread(self._keyring.get, names.id_of(request.name, "keys")))

    async def ListKeys(
        self, request: key_service_pb2.ListKeysRequest, context: Context
    ) -> key_service_pb2.ListKeysResponse:
        """See the contract."""
        limit = convert.page_limit(request.page_size)
        keys = await asyncio.to_thread(self._keyring.page, request.page_token, limit + 1)
        return key_service_pb2.ListKeysResponse(
            keys=[_key_to_proto(key) for key in keys[:limit]],
            next_page_token=keys[limit - 1].id if len(keys) > limit else "",
        )

    async def UpdatePolicy(self, request: key_service_pb2.UpdatePolicyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        policy = convert.policy_from_proto(request.policy)
        key_id = names.id_of(request.name, "keys")
        return _key_to_proto(await asyncio.to_thread(self._keyring.update_policy, key_id, policy))

    async def GetMaterial(
        self, request: key_service_pb2.GetMaterialRequest, context: Context
    ) -> AsyncIterator[key_pb2.MaterialChunk]:
        """See the contract."""
        key_id, number = names.key_version(request.key_version)
        kinds = set(request.kinds) or {key_pb2.MATERIAL_KIND_PUBLIC_KEY}
        if key_pb2.MATERIAL_KIND_PUBLIC_KEY in kinds:
            public = await asyncio.to_thread(self._keyring.public_key, key_id, number)
            for chunk in _chunks(key_pb2.MATERIAL_KIND_PUBLIC_KEY, 0, public):
                yield chunk
        if key_pb2.MATERIAL_KIND_GALOIS_KEY in kinds:
            evaluation = self._keyring.evaluation_keys(key_id, number)
            while item := await asyncio.to_thread(next, evaluation, None):
                for chunk in _chunks(key_pb2.MATERIAL_KIND_GALOIS_KEY, *item):
                    yield chunk

    async def CreateCaller(self, request: key_service_pb2.CreateCallerRequest, context: Context) -> caller_pb2.Caller:
        """See the contract."""
        caller_id = names.check_id(request.caller_id, "caller_id")
        role = _ROLES.get(request.caller.role)
        if role is None:
            raise convert.missing("caller.role")
        caller = await asyncio.to_thread(self._callers.create, caller_id, request.caller.verifying_key, role)
        return _caller_to_proto(caller)

    async def ListCallers(
        self, request: key_service_pb2.ListCallersRequest, context: Context
    ) -> key_service_pb2.ListCallersResponse:
        """See the contract."""
        limit = convert.page_limit(request.page_size)
        callers = await asyncio.to_thread(self._callers.page, request.page_token, limit + 1)
        return key_service_pb2.ListCallersResponse(
            callers=[_caller_to_proto(caller) for caller in callers[:limit]],
            next_page_token=callers[limit - 1].id if len(callers) > limit else "",
        )

    async def DeleteCaller(
        self, request: key_service_pb2.DeleteCallerRequest, context: Context
    ) -> key_service_pb2.DeleteCallerResponse:
        """See the contract."""
        await asyncio.to_thread(self._callers.delete, request.name)
        return key_service_pb2.DeleteCallerResponse()

    async def GetServiceIdentity(
        self, request: key_service_pb2.GetServiceIdentityRequest, context: Context
    ) -> key_service_pb2.GetServiceIdentityResponse:
        """See the contract."""
        verifying_key = self._judge.signing_key.public_key().public_bytes_raw()
        return key_service_pb2.GetServiceIdentityResponse(verifying_key=verifying_key)

    async def Decide(
        self, request_iterator: AsyncIterator[key_service_pb2.DecideRequest], context: Context
    ) -> decision_pb2.SealedDecision:
        """See the contract."""
        first: key_service_pb2.DecideRequest | None = None
        hearing: Hearing | None = None
        links: list[tuple[int, int]] = []
        share = 0.0
        async for message in request_iterator:
            if first is None or hearing is None:
                first, signed = message, message.request
                request = _request_from_proto(signed.decision_request)
                hearing = await asyncio.to_thread(self._judge.admit, request, signed.decision_request, signed.signature)
            links.extend((link.slot, link.lead) for link in message.links)
            if len(links) > _MOST_LINKS:
                raise TooManyLinks(f"a decision takes at most {_MOST_LINKS:,} links", limit=_MOST_LINKS)
            if message.results:
                results = [result_from_wire(item.columns, item.ciphertext, item.slots) for item in message.results]
                await asyncio.to_thread(hearing.hear, results)
            share = message.share_searched or share
        if first is None or hearing is None:
            raise convert.missing("request")
        verdict = await asyncio.to_thread(hearing.verdict, np.array(links, np.uint32).reshape(-1, 2))
        context.set_trailing_metadata(((SERVER_TIMING, format_timing({"open": hearing.opening_s * 1e3})),))
        return self._seal(hearing.request, verdict, first.layout_epoch, share)

    async def RenewBlock(
        self, request_iterator: AsyncIterator[key_service_pb2.RenewBlockRequest], context: Context
    ) -> AsyncIterator[key_service_pb2.RenewBlockResponse]:
        """See the contract."""
        renewal: Renewal | None = None
        data = bytearray()
        async for message in request_iterator:
            if renewal is None:
                header = message.header
                renewal = await asyncio.to_thread(
                    Renewal.expect, self._keyring, header.key_version, header.columns, header.cleared
                )
            elif message.WhichOneof("part") != "data":
                raise convert.missing("data")
            data += message.data
            renewal.check_size(len(data))
        if renewal is None:
            raise convert.missing("header")
        renewed = await asyncio.to_thread(renewal.renew, bytes(data))
        for at in range(0, len(renewed), _CHUNK_BYTES):
            yield key_service_pb2.RenewBlockResponse(data=renewed[at : at + _CHUNK_BYTES])

    def _seal(
        self, request: Request, verdict: Verdict, layout_epoch: int, share_searched: float
    ) -> decision_pb2.SealedDecision:
        binding = decision_pb2.DecisionBinding(
            request_id=request.request_id,
            caller=request.caller,
            gallery=request.gallery,
            key_version=request.key_version,
            policy_version=verdict.policy_version,
            layout_epoch=layout_epoch,
            probe_digest=request.probe_digest,
        ).SerializeToString()
        decision = _decision_to_proto(verdict, share_searched).SerializeToString()
        box = sealing.seal(decision, binding, request.hpke_public_key)
        signature = sealing.sign_box(self._judge.signing_key, binding, box)
        return decision_pb2.SealedDecision(binding=binding, box=box, signature=signature)


def _chunks(kind: key_pb2.MaterialKind.ValueType, element: int, data: bytes) -> list[key_pb2.MaterialChunk]:
    return [
        key_pb2.MaterialChunk(
            kind=kind, galois_element=element, data=data[at : at + _CHUNK_BYTES], total_bytes=len(data)
        )
        for at in range(0, len(data), _CHUNK_BYTES)
    ]


def _request_from_proto(data: bytes) -> Request:
    if len(data) > _LARGEST_REQUEST_BYTES:
        raise InvalidDecisionRequest(f"a decision request has at most {_LARGEST_REQUEST_BYTES} bytes")
    try:
        message = decision_pb2.DecisionRequest.FromString(data)
    except Exception:  # protobuf's DecodeError differs between its implementations
        raise InvalidDecisionRequest("decision_request is no serialised DecisionRequest") from None
    operation = _OPERATIONS.get(message.operation)
    if operation is None:
        raise convert.missing("decision_request.operation")
    return Request(
        request_id=message.request_id,
        nonce=message.nonce,
        caller=message.caller,
        gallery=message.gallery,
        key_version=message.key_version,
        operation=operation,
        claimed_slots=tuple(message.claimed_slots),
        max_candidates=message.max_candidates,
        probe_digest=message.probe_digest,
        hpke_public_key=message.hpke_public_key,
        expires=message.expire_time.seconds + message.expire_time.nanos / 1e9,
    )


def _decision_to_proto(verdict: Verdict, share_searched: float) -> decision_pb2.Decision:
    outcome = verdict.outcome
    if isinstance(outcome, Refusal):
        return decision_pb2.Decision(
            outcome=decision_pb2.OUTCOME_REFUSED, refusal=_REFUSALS[outcome], share_searched=share_searched
        )
    return decision_pb2.Decision(
        outcome=decision_pb2.OUTCOME_MATCH if outcome.candidates else decision_pb2.OUTCOME_NO_MATCH,
        candidates=[decision_pb2.Candidate(slot=c.slot, distance=c.distance) for c in outcome.candidates],
        distance=outcome.distance,
        share_searched=share_searched,
    )


def _key_to_proto(key: Key) -> key_pb2.Key:
    return key_pb2.Key(
        name=f"keys/{key.id}",
        custody=_CUSTODIES[key.custody],
        parameter_set=key.layout.parameters.name,
        score_format=convert.layout_to_proto(key.layout),
        policy=convert.policy_to_proto(key.policy),
        primary_version=version_name(key.id, key.version),
        public_key_digest=key.public_key_digest,
        create_time=convert.timestamp(key.created),
    )


def _caller_to_proto(caller: Caller) -> caller_pb2.Caller:
    return caller_pb2.Caller(
        name=f"callers/{caller.id}",
        verifying_key=caller.verifying_key,
        role=_ROLE_VALUES[caller.role],
        create_time=convert.timestamp(caller.created),
    )
