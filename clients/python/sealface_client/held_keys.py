"""Scores of client-held galleries, opened here and decided here. The secret never leaves the caller's machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Opener, Scheme
from sealface.protocol import decision
from sealface.protocol.decision import Decision
from sealface.protocol.policy import Policy
from sealface.protocol.scores import ScoresMisplaced, ScoresNotGenuine, open_results, result_from_wire
from sealface.protocol.sealing import DecisionNotGenuine
from sealface_protos.keys.v1 import decision_pb2


class LocalJudge:
    """Opens scores and applies the policy, as the key service does for managed keys.

    Args:
        scheme: the cipher.
        layout: the gallery's layout.
        secret: the secret key.
        policy: the rule of decisions.
    """

    def __init__(self, scheme: Scheme, layout: Layout, secret: bytes, policy: Policy) -> None:
        self.opener: Opener = scheme.opener(layout, secret)
        self._layout = layout
        self._policy = policy

    def distances(
        self, results: Sequence[decision_pb2.ScoreResult], *, dithered: bool = False
    ) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
        """Slots and their distances, (n,) each; exact ones are for nobody but the holder of the key.

        Args:
            results: as they came.
            dithered: as decisions are made on, see `open_results`.

        Raises:
            DecisionNotGenuine: the results were made with another key, or are not what they claim.
        """
        try:
            received = [result_from_wire(item.columns, item.ciphertext, item.slots) for item in results]
            slots, found = open_results(self.opener, self._layout, received, dithered=dithered)
        except (ScoresNotGenuine, ScoresMisplaced) as error:
            raise DecisionNotGenuine(error.message) from None
        if not decision.each_once(slots):
            raise DecisionNotGenuine("the scores name a slot twice: ask again")
        return slots, found

    def verify(self, results: Sequence[decision_pb2.ScoreResult], claimed: Sequence[int]) -> Decision:
        """See `protocol.decision.verify`.

        Raises:
            DecisionNotGenuine: the results are not of the claimed slots.
        """
        slots, found = self.distances(results, dithered=True)
        if not decision.exactly(slots, claimed):
            raise DecisionNotGenuine("the scores are not of the claimed subject: ask again")
        return decision.verify(self._policy, slots, found)

    def identify(
        self, results: Sequence[decision_pb2.ScoreResult], links: Sequence[tuple[int, int]], most: int
    ) -> Decision:
        """See `protocol.decision.identify`."""
        slots, found = self.distances(results, dithered=True)
        return decision.identify(self._policy, slots, found, np.array(links, np.uint32).reshape(-1, 2), most)
