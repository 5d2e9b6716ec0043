"""Turns at a row, for changes that read it first and are lost if it has changed since.

Guarantees: of the changes of one row that this process makes, one is under way at a time, in the order in which they
came; so many at once do not make each other begin anew, which would cost the square of their number. Nobody waits for
longer than ``seconds_max``: then it is `Busy`, and nothing has happened.

Does not: keep other processes out. The changes compare, and lose against those of a few others now and then.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tierstore.errors import Busy


class _Queue:
    """Those who have a turn at one row, or wait for it."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.length = 0


class Turns:
    """The turns at all rows of one table. Used from one event loop."""

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._queues: dict[bytes, _Queue] = {}

    @asynccontextmanager
    async def at(self, key: bytes) -> AsyncIterator[None]:
        """Within, it is the caller's turn at a row. Not to be nested. Raises `Busy`."""
        queue = self._queues.setdefault(key, _Queue())
        queue.length += 1
        try:
            try:
                async with asyncio.timeout(self._seconds_max):
                    await queue.turn.acquire()
            except TimeoutError:
                raise Busy("too many others change entries of the object at the same time") from None
            try:
                yield
            finally:
                queue.turn.release()
        finally:
            queue.length -= 1
            if not queue.length:
                del self._queues[key]
