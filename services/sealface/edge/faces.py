"""Pictures to embeddings, one at a time: detection takes gigabytes where a picture is large."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from sealface.errors import LimitExceeded
from sealface.recognition import Embedder, Limits, Pipeline
from sealface_client.faces import Face, Faces

DEFAULT_LIMITS = Limits(max_pixels=12_000_000)
"""Above 12 megapixels dlib's detector needs more than 2 GB."""
MOST_WAITING = 16


class TooManyPictures(LimitExceeded):
    """More pictures wait to be embedded than may."""


class OneAtATime(Faces):
    """Embedders that share one turn.

    Args:
        limits: what pictures are accepted.
        most_waiting: pictures that may wait for their turn.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, most_waiting: int = MOST_WAITING) -> None:
        super().__init__()
        self._limits = limits
        self._most_waiting = most_waiting
        self._waiting = 0
        self._turn = asyncio.Semaphore(1)

    def embedder(self, pipeline: Pipeline) -> Embedder:
        """The embedder of a pipeline, with this service's limits."""
        found = self._embedders.get(pipeline)
        return found or self._embedders.setdefault(pipeline, Embedder(pipeline, self._limits))

    async def warm(self, pipeline: Pipeline) -> None:
        """Load the models of a pipeline.

        Raises:
            SealfaceError: what is missing.
        """
        await asyncio.to_thread(lambda: self.embedder(pipeline).warm())

    async def embed(self, face: Face, pipeline: Pipeline) -> NDArray[np.float64]:
        """The embedding (d,) of a face; a picture waits for those before it.

        Raises:
            TooManyPictures: try again.
            SealfaceError: what recognition found wrong.
        """
        if isinstance(face, np.ndarray):
            return await super().embed(face, pipeline)
        if self._waiting >= self._most_waiting:
            raise TooManyPictures(
                f"{self._most_waiting} pictures wait to be embedded: try again in a while", limit=self._most_waiting
            )
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        work = asyncio.get_running_loop().run_in_executor(None, self._embed, face, pipeline)
        # the turn ends with the work, which a caller who hangs up does not stop
        work.add_done_callback(self._end_turn)
        return await asyncio.shield(work)

    def _end_turn(self, work: asyncio.Future[NDArray[np.float64]]) -> None:
        self._turn.release()
        if not work.cancelled():
            work.exception()  # seen, also where nobody waits for it any more
