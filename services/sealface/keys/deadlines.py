"""When an answer leaves: at the next of regular deadlines after its last message came, whatever was found.

What is decided takes the same work whoever matches; what is left of a difference (a branch, a cache, the disk) is below
a few hundred microseconds and disappears in the step. The step is fixed: it does not depend on the load or the gallery.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

STEP_S = 0.005


@dataclass(frozen=True)
class Deadlines:
    """Regular deadlines.

    Attributes:
        step_s: seconds between two.
        clock: seconds, monotonic.
        sleep: waits so many seconds.
    """

    step_s: float = STEP_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def wait(self, since: float) -> None:
        """Wait for the next deadline; they are counted from a time of the clock."""
        steps = math.floor((self.clock() - since) / self.step_s) + 1
        while (left := since + steps * self.step_s - self.clock()) > 0:
            await self.sleep(left)
