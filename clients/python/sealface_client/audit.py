"""What the key service tells operators: its audit log, checked on this side, alarms, and what callers have spent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealface.protocol import convert
from sealface.protocol.audit import Chain, Entry, Head
from sealface.protocol.policy import Budget
from sealface_client.channels import OperatorSigner
from sealface_client.errors import translated
from sealface_protos.keys.v1 import audit_pb2

if TYPE_CHECKING:
    from sealface_client.aio import AsyncClient

_EXPORT = "/sealface.keys.v1.KeyService/ExportAudit"
_ALARM = "Alarm"


@dataclass(frozen=True)
class Usage:
    """What callers have spent of a key.

    Attributes:
        budget: of each.
        spent: by caller and key version.
    """

    budget: Budget
    spent: list[audit_pb2.Usage]


class Audit:
    """The key service's records of what was asked of it; for operators.

    Args:
        client: whose.
        signer: signs for the operator.
    """

    def __init__(self, client: AsyncClient, signer: OperatorSigner | None) -> None:
        self._client = client
        self._signer = signer

    async def head(self) -> Head:
        """The last entry, to be kept elsewhere; its signature is checked.

        Raises:
            AuditLogBroken: the key service has not signed it.
        """
        with translated("keys"):
            request = audit_pb2.GetAuditHeadRequest()
            answer = await self._client.keys.GetAuditHead(request, timeout=self._client.timeout_s)
        head = Head(answer.number, answer.digest, answer.signature)
        head.verify(await self._client.verifying_key())
        return head

    async def lines(self, after: int = 0, act: str = "") -> AsyncIterator[bytes]:
        """The log behind an entry's number, line by line; of one act, if one is named."""
        _ = self._client.credential  # fail here where there is none
        request = audit_pb2.ExportAuditRequest(after=after, act=act)
        metadata = self._signer.metadata(_EXPORT, request.SerializeToString()) if self._signer else None
        with translated("keys"):
            async for answer in self._client.keys.ExportAudit(request, metadata=metadata):
                for line in answer.lines:
                    yield line

    async def verify(self, kept: Head | None = None) -> Chain:
        """Fetch the whole log and check its chain, up to the signed head of now and past one that was kept.

        Raises:
            AuditLogBroken: it was changed, cut short, or is another.
        """
        now = await self.head()
        chain, known = Chain(kept), Chain(now)
        async for line in self.lines():
            chain.add(line)
            known.add(line)
        known.finish()
        chain.finish()
        return chain

    async def alarms(self) -> list[Entry]:
        """All alarms, the oldest first."""
        return [Entry.parse(line) async for line in self.lines(act=_ALARM)]

    async def usage(self, key_id: str) -> Usage:
        """What callers have spent of a key."""
        with translated("keys"):
            request = audit_pb2.ListUsageRequest(parent=f"keys/{key_id}")
            answer = await self._client.keys.ListUsage(request, timeout=self._client.timeout_s)
        return Usage(convert.budget_from_proto(answer.budget), list(answer.usage))

    async def pseudonym(self, gallery_id: str, slot: int) -> str:
        """What the log has in the place of a slot of a gallery."""
        with translated("keys"):
            request = audit_pb2.GetPseudonymRequest(gallery=f"galleries/{gallery_id}", slot=slot)
            return (await self._client.keys.GetPseudonym(request, timeout=self._client.timeout_s)).pseudonym
