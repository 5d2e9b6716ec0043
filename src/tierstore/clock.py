"""Time as a parameter.

Wall-clock instants are `UnixMicros`: whole microseconds since 1970-01-01T00:00:00Z, as an ``int``. They are what the
stores keep and what clients see. They decide how long it is polite to wait, and when an object expires; safety depends
on them in one way only: what is kept for a day must not be forgotten while an operation of six hours lives, so clocks
of different machines must agree to within hours.
No other module reads a clock or sleeps (the tidy test checks it).
"""

import asyncio
import time
from abc import ABC, abstractmethod

UnixMicros = int

MICROS_PER_SECOND = 1_000_000


class Clock(ABC):
    """Where time comes from."""

    @abstractmethod
    def now(self) -> UnixMicros:
        """The wall clock, in microseconds since the Unix epoch. May jump in either direction."""

    @abstractmethod
    def monotonic(self) -> float:
        """Seconds since some fixed moment of this process; never goes back. For durations and deadlines."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Suspend the calling task. Cancellable."""


class SystemClock(Clock):
    """The machine's clocks."""

    def now(self) -> UnixMicros:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
