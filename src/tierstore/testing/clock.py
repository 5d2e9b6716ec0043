"""A clock that stands still until a test moves it."""

import asyncio
import heapq
from itertools import count

from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros

_START = 1_700_000_000 * MICROS_PER_SECOND


class ManualClock(Clock):
    """Time moves only by `advance` and `set_now`. `now` and `monotonic` may be read from any thread."""

    def __init__(self, now: UnixMicros = _START) -> None:
        self._now = now
        self._monotonic = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> UnixMicros:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), woken))
        await woken

    def set_now(self, now: UnixMicros) -> None:
        """Set the wall clock, in either direction. Nobody wakes: sleeping is by the monotonic clock."""
        self._now = now

    def advance(self, seconds: float) -> None:
        """Move both clocks forward, and wake who has slept long enough, earliest first."""
        self._now += round(seconds * MICROS_PER_SECOND)
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():  # its sleeper was cancelled
                woken.set_result(None)
