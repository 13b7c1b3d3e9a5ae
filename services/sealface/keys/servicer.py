"""gRPC to the key service's domain: validate, convert, call, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
import numpy as np

from sealface.errors import LimitExceeded
from sealface.keys import messages
from sealface.keys.audit import AuditLog, outcome_of
from sealface.keys.callers import Callers, Credentials
from sealface.keys.deadlines import Deadlines
from sealface.keys.judge import Hearing, Judge, Request, Verdict
from sealface.keys.keyring import Keyring
from sealface.keys.lifecycle import Lifecycle
from sealface.keys.renewal import Announced, Renewal
from sealface.keys.rewrap import Rewrapped
from sealface.protocol import convert, names, sealing
from sealface.protocol.scores import result_from_wire
from sealface.runtime.timing import SERVER_TIMING, format_timing
from sealface_protos.keys.v1 import audit_pb2, caller_pb2, decision_pb2, key_pb2, key_service_pb2, key_service_pb2_grpc

_MOST_LINKS = 1 << 20
_NO_NUMBER = 1 << 31

Context = grpc.aio.ServicerContext[Any, Any]


class TooManyLinks(LimitExceeded):
    """A decision was asked for with more links between slots than one request may hold."""


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """See `KeyService` in the contract. Operator methods are authenticated by `operator.OperatorInterceptor`."""

    def __init__(
        self,
        keyring: Keyring,
        lifecycle: Lifecycle,
        callers: Callers,
        judge: Judge,
        log: AuditLog,
        deadlines: Deadlines,
        rewrap: Callable[..., Rewrapped],
    ) -> None:
        self._keyring = keyring
        self._lifecycle = lifecycle
        self._callers = callers
        self._judge = judge
        self._log = log
        self._deadlines = deadlines
        self._rewrap = rewrap

    async def CreateKey(self, request: key_service_pb2.CreateKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        key_id = names.check_id(request.key_id, "key_id")
        if request.key.custody != key_pb2.CUSTODY_MANAGED:
            raise convert.missing("key.custody: CUSTODY_MANAGED")
        layout = convert.layout_from_proto(request.key.parameter_set, request.key.score_format)
        policy = convert.policy_from_proto(request.key.policy)
        exportable = request.key.exportable
        create = partial(self._keyring.create, key_id, layout, policy, exportable=exportable)
        return messages.key_to_proto(await asyncio.to_thread(create))

    async def RegisterKey(self, request: key_service_pb2.RegisterKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        key_id = names.check_id(request.key_id, "key_id")
        if request.key.custody != key_pb2.CUSTODY_CLIENT_HELD:
            raise convert.missing("key.custody: CUSTODY_CLIENT_HELD")
        layout = convert.layout_from_proto(request.key.parameter_set, request.key.score_format)
        policy = convert.policy_from_proto(request.key.policy)
        key = await asyncio.to_thread(self._keyring.register, key_id, layout, policy, request.public_key)
        return messages.key_to_proto(key)

    async def UploadEvaluationKey(
        self, request: key_service_pb2.UploadEvaluationKeyRequest, context: Context
    ) -> key_service_pb2.UploadEvaluationKeyResponse:
        """See the contract."""
        key_id, number = names.key_version(request.key_version)
        await asyncio.to_thread(
            self._keyring.add_evaluation_key, key_id, number, request.galois_element, request.evaluation_key
        )
        return key_service_pb2.UploadEvaluationKeyResponse()

    async def RotateKey(self, request: key_service_pb2.RotateKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        key_id, current = _primary(request.name, request.primary_version)
        return messages.key_to_proto(await asyncio.to_thread(self._keyring.rotate, key_id, current))

    async def RegisterKeyVersion(
        self, request: key_service_pb2.RegisterKeyVersionRequest, context: Context
    ) -> key_pb2.Key:
        """See the contract."""
        key_id, current = _primary(request.name, request.primary_version)
        register = self._keyring.register_version
        return messages.key_to_proto(await asyncio.to_thread(register, key_id, current, request.public_key))

    async def UpdateKey(self, request: key_service_pb2.UpdateKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        key_id = names.id_of(request.name, "keys")
        key = await asyncio.to_thread(self._keyring.get, key_id)
        if request.oldest_version:
            key = await asyncio.to_thread(self._lifecycle.set_oldest, key_id, request.oldest_version)
        if request.forbid_export:
            key = await asyncio.to_thread(self._lifecycle.forbid_export, key_id)
        return messages.key_to_proto(key)

    async def GetKeyVersion(
        self, request: key_service_pb2.GetKeyVersionRequest, context: Context
    ) -> key_pb2.KeyVersion:
        """See the contract."""
        return messages.version_to_proto(
            await asyncio.to_thread(self._keyring.version, *names.key_version(request.name))
        )

    async def ListKeyVersions(
        self, request: key_service_pb2.ListKeyVersionsRequest, context: Context
    ) -> key_service_pb2.ListKeyVersionsResponse:
        """See the contract."""
        limit = convert.page_limit(request.page_size)
        before = int(request.page_token) if request.page_token.isdecimal() else _NO_NUMBER
        key_id = names.id_of(request.parent, "keys")
        versions = await asyncio.to_thread(self._keyring.versions, key_id, min(before, _NO_NUMBER), limit + 1)
        return key_service_pb2.ListKeyVersionsResponse(
            versions=[messages.version_to_proto(version) for version in versions[:limit]],
            next_page_token=str(versions[limit - 1].number) if len(versions) > limit else "",
        )

    async def UpdateKeyVersion(
        self, request: key_service_pb2.UpdateKeyVersionRequest, context: Context
    ) -> key_pb2.KeyVersion:
        """See the contract."""
        changes = {
            key_pb2.KEY_VERSION_STATE_ENABLED: self._lifecycle.enable,
            key_pb2.KEY_VERSION_STATE_DISABLED: self._lifecycle.disable,
        }
        change = changes.get(request.state)
        if change is None:
            raise convert.missing("state: KEY_VERSION_STATE_ENABLED or KEY_VERSION_STATE_DISABLED")
        return messages.version_to_proto(await asyncio.to_thread(change, *names.key_version(request.name)))

    async def DestroyKeyVersion(
        self, request: key_service_pb2.DestroyKeyVersionRequest, context: Context
    ) -> key_pb2.KeyVersion:
        """See the contract."""
        undo = messages.undo_window(request)
        name = names.key_version(request.name)
        return messages.version_to_proto(await asyncio.to_thread(self._lifecycle.schedule_destruction, *name, undo))

    async def RestoreKeyVersion(
        self, request: key_service_pb2.RestoreKeyVersionRequest, context: Context
    ) -> key_pb2.KeyVersion:
        """See the contract."""
        restored = await asyncio.to_thread(self._lifecycle.restore, *names.key_version(request.name))
        return messages.version_to_proto(restored)

    async def ExportKeyVersion(
        self, request: key_service_pb2.ExportKeyVersionRequest, context: Context
    ) -> key_service_pb2.ExportKeyVersionResponse:
        """See the contract."""
        name = names.key_version(request.name)
        box = await asyncio.to_thread(self._lifecycle.export, *name, request.hpke_public_key)
        return key_service_pb2.ExportKeyVersionResponse(box=box)

    async def RewrapKeys(
        self, request: key_service_pb2.RewrapKeysRequest, context: Context
    ) -> key_service_pb2.RewrapKeysResponse:
        """See the contract."""
        return messages.rewrapped_to_proto(await asyncio.to_thread(self._rewrap, only_count=request.validate_only))

    async def GetKey(self, request: key_service_pb2.GetKeyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        return messages.key_to_proto(await asyncio.to_thread(self._keyring.get, names.id_of(request.name, "keys")))

    async def ListKeys(
        self, request: key_service_pb2.ListKeysRequest, context: Context
    ) -> key_service_pb2.ListKeysResponse:
        """See the contract."""
        limit = convert.page_limit(request.page_size)
        keys = await asyncio.to_thread(self._keyring.page, request.page_token, limit + 1)
        return key_service_pb2.ListKeysResponse(
            keys=[messages.key_to_proto(key) for key in keys[:limit]],
            next_page_token=keys[limit - 1].id if len(keys) > limit else "",
        )

    async def UpdatePolicy(self, request: key_service_pb2.UpdatePolicyRequest, context: Context) -> key_pb2.Key:
        """See the contract."""
        policy = convert.policy_from_proto(request.policy)
        key_id = names.id_of(request.name, "keys")
        return messages.key_to_proto(await asyncio.to_thread(self._keyring.update_policy, key_id, policy))

    async def GetMaterial(
        self, request: key_service_pb2.GetMaterialRequest, context: Context
    ) -> AsyncIterator[key_pb2.MaterialChunk]:
        """See the contract."""
        key_id, number = names.key_version(request.key_version)
        kinds = set(request.kinds) or {key_pb2.MATERIAL_KIND_PUBLIC_KEY}
        if key_pb2.MATERIAL_KIND_PUBLIC_KEY in kinds:
            public = await asyncio.to_thread(self._keyring.public_key, key_id, number)
            for chunk in messages.chunks(key_pb2.MATERIAL_KIND_PUBLIC_KEY, 0, public):
                yield chunk
        if key_pb2.MATERIAL_KIND_GALOIS_KEY in kinds:
            evaluation = self._keyring.evaluation_keys(key_id, number)
            while item := await asyncio.to_thread(next, evaluation, None):
                for chunk in messages.chunks(key_pb2.MATERIAL_KIND_GALOIS_KEY, *item):
                    yield chunk

    async def CreateCaller(self, request: key_service_pb2.CreateCallerRequest, context: Context) -> caller_pb2.Caller:
        """See the contract."""
        caller_id = names.check_id(request.caller_id, "caller_id")
        role = messages.ROLES.get(request.caller.role)
        if role is None:
            raise convert.missing("caller.role")
        new = request.caller
        known = Credentials(new.verifying_key, new.token_digest, new.oidc.issuer, new.oidc.subject)
        grants = [convert.grant_from_proto(grant) for grant in new.grants]
        return messages.caller_to_proto(await asyncio.to_thread(self._callers.create, caller_id, known, role, grants))

    async def UpdateCaller(self, request: key_service_pb2.UpdateCallerRequest, context: Context) -> caller_pb2.Caller:
        """See the contract."""
        grants = [convert.grant_from_proto(grant) for grant in request.grants]
        return messages.caller_to_proto(await asyncio.to_thread(self._callers.grant, request.name, grants))

    async def FindCaller(self, request: key_service_pb2.FindCallerRequest, context: Context) -> caller_pb2.Caller:
        """See the contract."""
        by = request.WhichOneof("by")
        if by is None:
            raise convert.missing("name, token_digest or oidc")
        if by == "name":
            caller = await asyncio.to_thread(self._callers.get, request.name)
        else:
            issuer, subject = request.oidc.issuer, request.oidc.subject
            find = partial(self._callers.find, token_digest=request.token_digest, issuer=issuer, subject=subject)
            caller = await asyncio.to_thread(find)
        return messages.caller_to_proto(caller)

    async def ListCallers(
        self, request: key_service_pb2.ListCallersRequest, context: Context
    ) -> key_service_pb2.ListCallersResponse:
        """See the contract."""
        limit = convert.page_limit(request.page_size)
        callers = await asyncio.to_thread(self._callers.page, request.page_token, limit + 1)
        return key_service_pb2.ListCallersResponse(
            callers=[messages.caller_to_proto(caller) for caller in callers[:limit]],
            next_page_token=callers[limit - 1].id if len(callers) > limit else "",
        )

    async def DeleteCaller(
        self, request: key_service_pb2.DeleteCallerRequest, context: Context
    ) -> key_service_pb2.DeleteCallerResponse:
        """See the contract."""
        await asyncio.to_thread(self._callers.delete, request.name)
        return key_service_pb2.DeleteCallerResponse()

    async def ListUsage(self, request: audit_pb2.ListUsageRequest, context: Context) -> audit_pb2.ListUsageResponse:
        """See the contract."""
        key_id = names.id_of(request.parent, "keys")
        key = await asyncio.to_thread(self._keyring.get, key_id)
        spent = await asyncio.to_thread(self._judge.usage, key_id)
        return audit_pb2.ListUsageResponse(
            usage=[messages.usage_to_proto(one) for one in spent], budget=convert.budget_to_proto(key.policy.budget)
        )

    async def GetAuditHead(self, request: audit_pb2.GetAuditHeadRequest, context: Context) -> audit_pb2.AuditHead:
        """See the contract."""
        head = (await asyncio.to_thread(self._log.head)).signed(self._judge.signing_key)
        return audit_pb2.AuditHead(number=head.number, digest=head.digest, signature=head.signature)

    async def ExportAudit(
        self, request: audit_pb2.ExportAuditRequest, context: Context
    ) -> AsyncIterator[audit_pb2.ExportAuditResponse]:
        """See the contract."""
        pages = self._log.pages(request.after, request.act)
        while page := await asyncio.to_thread(next, pages, None):
            yield audit_pb2.ExportAuditResponse(lines=page)

    async def GetPseudonym(
        self, request: audit_pb2.GetPseudonymRequest, context: Context
    ) -> audit_pb2.GetPseudonymResponse:
        """See the contract."""
        names.id_of(request.gallery, "galleries")
        pseudonym = await asyncio.to_thread(self._log.pseudonym, request.gallery, request.slot)
        return audit_pb2.GetPseudonymResponse(pseudonym=pseudonym)

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
        try:
            async for message in request_iterator:
                if first is None or hearing is None:
                    first, signed = message, message.request
                    request = messages.request_from_proto(signed.decision_request)
                    admit = self._judge.admit
                    hearing = await asyncio.to_thread(admit, request, signed.decision_request, signed.signature)
                links.extend((link.slot, link.lead) for link in message.links)
                if len(links) > _MOST_LINKS:
                    raise TooManyLinks(f"a decision takes at most {_MOST_LINKS:,} links", limit=_MOST_LINKS)
                if message.results:
                    results = [result_from_wire(item.columns, item.ciphertext, item.slots) for item in message.results]
                    await asyncio.to_thread(hearing.hear, results)
                share = message.share_searched or share
            if first is None or hearing is None:
                raise convert.missing("request")
            arrived = self._deadlines.clock()
            linked = np.array(links, np.uint32).reshape(-1, 2)
            verdict = await asyncio.to_thread(self._judge.conclude, hearing, linked)
        except BaseException as error:
            if hearing is not None:
                await asyncio.shield(asyncio.to_thread(self._judge.abandon, hearing, outcome_of(error)))
            raise
        answer = self._seal(hearing.request, verdict, first.layout_epoch, share)
        context.set_trailing_metadata(((SERVER_TIMING, format_timing({"open": hearing.opening_s * 1e3})),))
        await self._deadlines.wait(arrived)
        return answer

    async def RenewBlock(
        self, request_iterator: AsyncIterator[key_service_pb2.RenewBlockRequest], context: Context
    ) -> AsyncIterator[key_service_pb2.RenewBlockResponse]:
        """See the contract."""
        renewal: Renewal | None = None
        data = bytearray()
        async for message in request_iterator:
            if renewal is None:
                header = message.header
                announced = Announced(
                    header.key_version, header.columns, header.cleared, header.target_version, header.templates
                )
                renewal = await asyncio.to_thread(Renewal.expect, self._keyring, announced)
            elif message.WhichOneof("part") != "data":
                raise convert.missing("data")
            data += message.data
            renewal.check_size(len(data))
        if renewal is None:
            raise convert.missing("header")
        renewed = await asyncio.to_thread(renewal.renew, bytes(data))
        for at in range(0, len(renewed), messages.CHUNK_BYTES):
            yield key_service_pb2.RenewBlockResponse(data=renewed[at : at + messages.CHUNK_BYTES])

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
        decision = messages.decision_to_proto(verdict, share_searched).SerializeToString()
        box = sealing.seal(decision, binding, request.hpke_public_key)
        signature = sealing.sign_box(self._judge.signing_key, binding, box)
        return decision_pb2.SealedDecision(binding=binding, box=box, signature=signature)


def _primary(key: str, primary_version: str) -> tuple[str, int]:
    """Key id, and number of the version that its caller takes for the primary one."""
    key_id, current = names.key_version(primary_version)
    if key_id != names.id_of(key, "keys"):
        raise convert.missing("primary_version: of the same key")
    return key_id, current
