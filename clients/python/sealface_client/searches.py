"""A search under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from sealface_client.decisions import PendingDecision
from sealface_client.keyed import Keyed
from sealface_protos.keys.v1 import decision_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as matching


@dataclass
class Search:
    """A search under way: what was asked, and what has come back of the answer."""

    request: matching.IdentifyRequest
    pending: PendingDecision | None
    most: int
    keyed: Keyed
    sealed: decision_pb2.SealedDecision | None = None
    results: list[decision_pb2.ScoreResult] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    epoch: int = 0
    searched: float = 0.0

    def take(self, part: matching.IdentifyResponse) -> None:
        """Add a part of the answer."""
        self.epoch, self.searched = part.layout_epoch, part.share_searched
        if part.HasField("decision"):
            self.sealed = part.decision
        self.results.extend(part.scores.results)
        self.links.extend((link.slot, link.lead) for link in part.scores.links)
