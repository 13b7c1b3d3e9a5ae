"""The table that turns slots into subjects, kept on the caller's side.

Asking the enrollment service who a slot is would tell compute who matched (threat model, rule 6).
"""

from __future__ import annotations

from collections import defaultdict

from sealface_protos.enrollment.v1 import enrollment_service_pb2 as messages
from sealface_protos.enrollment.v1 import enrollment_service_pb2_grpc


class SlotTable:
    """Slots of one gallery. Not for several tasks at once.

    Args:
        gallery: resource name.
        stub: the enrollment service.
    """

    def __init__(self, gallery: str, stub: enrollment_service_pb2_grpc.EnrollmentServiceAsyncStub) -> None:
        self._gallery = gallery
        self._stub = stub
        self._subjects: dict[int, str] = {}
        self._slots: dict[str, set[int]] = defaultdict(set)
        self.epoch = 0

    async def update(self, timeout_s: float) -> None:
        """Fetch what changed since the last time."""
        request = messages.ListSlotChangesRequest(gallery=self._gallery, since_epoch=self.epoch)
        epoch = self.epoch
        async for part in self._stub.ListSlotChanges(request, timeout=timeout_s):
            if part.reset:
                self._subjects.clear()
                self._slots.clear()
            for change in part.changes:
                before = self._subjects.pop(change.slot, None)
                if before is not None:
                    self._slots[before].discard(change.slot)
                if change.subject:
                    self._subjects[change.slot] = change.subject
                    self._slots[change.subject].add(change.slot)
            epoch = part.layout_epoch
        self.epoch = epoch  # only now: a stream that breaks off is asked for again from the old one

    def subject(self, slot: int) -> str | None:
        """Whose slot it is; None if nobody's any more."""
        return self._subjects.get(slot)

    def slots(self, subject: str) -> list[int]:
        """A subject's slots in order; empty for an unknown subject."""
        return sorted(self._slots.get(subject, ()))
