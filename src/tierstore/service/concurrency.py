"""How many operations a worker has under way on the stores, and who waits for a turn.

Guarantees: at most ``operations_max`` run; of the others a bounded number waits, for a bounded time, first come, first
served, and the rest is refused as `Busy`. Operations in bulk (and those that take long) have a share of both and no
more, so that they cannot keep single ones from their turn; nor do single ones keep them from theirs. An operation that
waits for its client gives its place to others meanwhile: clients that are slow take nobody's turn. When it goes on it
does not fail, and of the places that become free every other one is for such operations: so it soon has its turn again,
and clients that are fast, however many, keep nobody from a first one.

Does not: bound what streams to a client out of an object that has been opened; the stores bound that themselves.
"""

import asyncio
from collections import deque
from enum import Enum

from tierstore import telemetry
from tierstore.errors import Busy
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.types.streams import Body, BodyPassedOn


class OperationKind(Enum):
    """Which share an operation is of."""

    SINGLE = "single"
    BULK = "bulk"


_Waiter = asyncio.Future[None]


class OperationLimiter:
    """Gives operations their turn, on one event loop."""

    def __init__(self, limits: Limits) -> None:
        share = limits.operations_bulk_percent / 100
        self._running_max = limits.operations_max
        self._waiting_max = limits.operations_queue_max
        self._bulk_running_max = max(1, int(limits.operations_max * share))
        self._bulk_waiting_max = int(limits.operations_queue_max * share)
        self._wait_seconds_max = limits.operation_wait_seconds_max
        # Counted in plain numbers: each operation looks at them many times.
        self._running = 0
        self._bulk_running = 0
        self._with_clients = 0
        self._resuming: deque[tuple[_Waiter, OperationKind]] = deque()
        self._resumed_last = False
        """Whether the last place that was waited for went to who goes on; the next is then for who came anew."""
        self._waiting: dict[_Waiter, OperationKind] = {}
        """In the order in which they came."""

    @property
    def bulk_running_max(self) -> int:
        """How many operations in bulk may be under way."""
        return self._bulk_running_max

    @property
    def running(self) -> int:
        """Operations under way, without those that wait for their clients."""
        return self._running

    @property
    def with_clients(self) -> int:
        """Operations that wait for their clients."""
        return self._with_clients

    @property
    def waiting(self) -> int:
        """Operations that wait for their first turn."""
        return len(self._waiting)

    async def turn(self, kind: OperationKind = OperationKind.SINGLE) -> "Turn":
        """Wait for a turn, and take it; it is to be ended. Raises `Busy`."""
        if not self._waiting and not self._resuming and self._free(kind):
            self._start(kind)
            return Turn(self, kind)
        await self._wait(kind)
        return Turn(self, kind)

    async def _wait(self, kind: OperationKind) -> None:
        bulk = sum(waiting is OperationKind.BULK for waiting in self._waiting.values())
        if len(self._waiting) >= self._waiting_max or (kind is OperationKind.BULK and bulk >= self._bulk_waiting_max):
            telemetry.operations_refused.labels("queue_full").inc()
            raise Busy("as many operations wait for the stores as may; try again")
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = kind
        telemetry.operations_waiting.inc()
        self._advance()
        try:
            async with asyncio.timeout(self._wait_seconds_max):
                await waiter
        except TimeoutError:
            telemetry.operations_refused.labels("waited_too_long").inc()
            self._give_up(waiter, kind)
            raise Busy("the stores have been busy for too long; try again") from None
        except asyncio.CancelledError:
            self._give_up(waiter, kind)
            raise

    def _give_up(self, waiter: _Waiter, kind: OperationKind) -> None:
        """Leave the line, or the turn that came too late."""
        if self._waiting.pop(waiter, None) is None:
            self._end(kind)
        else:
            telemetry.operations_waiting.dec()

    async def _resume(self, kind: OperationKind) -> None:
        if not self._resuming and self._free(kind):
            self._start(kind)
            return
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        entry = (waiter, kind)
        self._resuming.append(entry)
        try:
            await waiter
        except asyncio.CancelledError:
            if entry in self._resuming:
                self._resuming.remove(entry)
            else:
                self._end(kind)
            raise

    def _free(self, kind: OperationKind) -> bool:
        if self._running >= self._running_max:
            return False
        return kind is OperationKind.SINGLE or self._bulk_running < self._bulk_running_max

    def _start(self, kind: OperationKind) -> None:
        self._running += 1
        self._bulk_running += kind is OperationKind.BULK
        telemetry.operations_in_flight.inc()

    def _end(self, kind: OperationKind) -> None:
        bulk = kind is OperationKind.BULK
        invariant(self._running > 0 and self._bulk_running >= bulk, "what ends was running")
        self._running -= 1
        self._bulk_running -= bulk
        telemetry.operations_in_flight.dec()
        if self._resuming or self._waiting:
            self._advance()

    def _advance(self) -> None:
        """Give free places to those who wait."""
        while self._running < self._running_max and self._give_place():
            pass

    def _give_place(self) -> bool:
        """Give one place, if anybody may have it: in turn to who goes on and to who came first."""
        if not self._resuming and not self._waiting:
            return False
        resuming = next((entry for entry in self._resuming if self._free(entry[1])), None)
        waiting = next((entry for entry in self._waiting.items() if self._free(entry[1])), None)
        if resuming is not None and (waiting is None or not self._resumed_last):
            self._resuming.remove(resuming)
            self._resumed_last = True
            self._admit(*resuming)
            return True
        if waiting is None:
            return False
        del self._waiting[waiting[0]]
        telemetry.operations_waiting.dec()
        self._resumed_last = False
        self._admit(*waiting)
        return True

    def _admit(self, waiter: _Waiter, kind: OperationKind) -> None:
        self._start(kind)
        if not waiter.done():
            waiter.set_result(None)


class Turn:
    """An operation's place among those under way. `end` it, once or more."""

    def __init__(self, limiter: OperationLimiter, kind: OperationKind) -> None:
        self._limiter = limiter
        self._kind = kind
        self._running = True
        self._ended = False

    def end(self) -> None:
        """Leave the place to others, for good."""
        self._ended = True
        self._leave()

    def _leave(self) -> None:
        if self._running:
            self._running = False
            self._limiter._end(self._kind)  # noqa: SLF001  # because a turn is the limiter's other half

    def body(self, body: Body) -> Body:
        """``body``, with the place left to others while its client is waited for."""
        return _PatientBody(body, self)

    async def next_chunk(self, body: Body) -> bytes:
        """The next chunk of ``body``; while it is waited for, the place is left to others.

        If there is none because the body failed, so does the operation, which has no use for the place any more.
        """
        self._leave()
        self._limiter._with_clients += 1  # noqa: SLF001  # because a turn is the limiter's other half
        chunk, ended = b"", False
        try:
            chunk = await anext(body)
        except StopAsyncIteration:
            ended = True
        finally:
            self._limiter._with_clients -= 1  # noqa: SLF001  # because a turn is the limiter's other half
        await self._resume()
        if ended:
            raise StopAsyncIteration
        return chunk

    async def _resume(self) -> None:
        if not self._ended:
            await self._limiter._resume(self._kind)  # noqa: SLF001  # because a turn is the limiter's other half
            self._running = True
            self._leave_if_ended()

    def _leave_if_ended(self) -> None:
        """Nobody else would end it, if the operation has ended while it waited to go on."""
        if self._ended:
            self._leave()


class _PatientBody(BodyPassedOn):
    """A body whose reader leaves its place to others while it waits."""

    def __init__(self, inner: Body, turn: Turn) -> None:
        super().__init__(inner)
        self._turn = turn

    async def __anext__(self) -> bytes:
        return await self._turn.next_chunk(self._inner)
