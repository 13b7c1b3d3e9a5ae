"""Client-held keys: made here, opened here, decided here. The secret never leaves the caller's machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Layout
from sealface.cipher.scheme import Opener, Scheme
from sealface.errors import AlreadyExists, NotFound
from sealface.protocol import decision
from sealface.protocol.decision import Decision
from sealface.protocol.policy import Policy
from sealface.protocol.scores import ScoresMisplaced, ScoresNotGenuine, open_results, result_from_wire
from sealface.protocol.sealing import DecisionNotGenuine
from sealface.protocol.signing import write_private
from sealface_protos.keys.v1 import decision_pb2


class SecretKeyMissing(NotFound):
    """The secret key of a client-held gallery is not on this machine."""


class SecretKeyExists(AlreadyExists):
    """A secret key of that name is on this machine already."""


class KeyFolder:
    """Secret keys of client-held galleries, one file of mode 0600 each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, key_version: str, secret: bytes) -> None:
        """Keep a secret key.

        Raises:
            SecretKeyExists: one of that name is here; it is not overwritten.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path(key_version).exists():
            raise SecretKeyExists(
                "a secret key of that name is on this machine: choose another id, or move its file away",
                key=key_version,
            )
        write_private(self._path(key_version), secret)

    def remove(self, key_version: str) -> None:
        """Drop a secret key that no service knows."""
        self._path(key_version).unlink(missing_ok=True)

    def load(self, key_version: str) -> bytes:
        """A secret key.

        Raises:
            SecretKeyMissing: it is not here.
        """
        try:
            return self._path(key_version).read_bytes()
        except OSError:
            raise SecretKeyMissing(
                "the gallery's secret key is not on this machine: copy it into the key folder", key=key_version
            ) from None

    def _path(self, key_version: str) -> Path:
        return self._folder / (key_version.replace("/", "-") + ".secret")


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
