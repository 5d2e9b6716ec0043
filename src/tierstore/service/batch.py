"""The operations of one batch: some at once, each by itself, and what came of them in the order in which it came.

Who reads the request gives operations to a `BatchRun` while it arrives; who writes the response takes `outcomes` at the
same time. Neither waits for the other: a client may send all before it reads anything.

- An insert is in memory from the first byte of its body until it has been stored: at most ``batch_held_max`` are, the
  one that is arriving included, and for more the reader waits (`hold`). What came of it is small, and waits for the
  writer: of a failure its words alone, but for a fault of the server's own.
- Other operations are small until they run; so many wait as a batch may have. A get runs only when fewer than
  ``batch_held_max`` objects wait to be written: it waits for the writer, and nothing waits for it.

Guarantees: one operation's failure is its own outcome; at most ``batch_held_max`` run at once, and no more than all
operations in bulk may, so that a batch that is alone is never refused for being many; when the batch is given up
(`aclose`), what waits is dropped, and a mutation that has begun goes on to its end, for its objects see to that. Two
operations on one object run in any order. Does not: read the wire, or admit anybody (its objects do).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Protocol, Self, assert_never

from tierstore.backends.long_term.contract import BlobStream
from tierstore.errors import Broken, ClientDisconnected, TierstoreError, Unavailable
from tierstore.limits import Limits
from tierstore.service.departures import tell_of_mutation
from tierstore.tasks import TaskOwner
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import Metadata
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.ranges import ByteRange
from tierstore.types.streams import Body


class BatchKind(Enum):
    """What an operation of a batch does."""

    GET = "get"
    HEAD = "head"
    INSERT = "insert"
    DELETE = "delete"


class HeldBody(Body):
    """A body that has come, and is in memory: it is complete before it is read, and so has one chunk at most."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self.size = len(payload)
        self.complete = True

    async def __anext__(self) -> bytes:
        payload, self._payload = self._payload, b""
        if not payload:
            raise StopAsyncIteration
        return payload


@dataclass(frozen=True, slots=True)
class Get:
    """Open an object. ``index``, here and below, is the operation's place in the batch, from 0."""

    index: int
    object_id: ObjectId
    kind = BatchKind.GET


@dataclass(frozen=True, slots=True)
class Head:
    """Look at an object."""

    index: int
    object_id: ObjectId
    kind = BatchKind.HEAD


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object."""

    index: int
    object_id: ObjectId
    kind = BatchKind.DELETE


@dataclass(frozen=True, slots=True)
class Insert:
    """Insert or replace an object."""

    index: int
    object_id: ObjectId
    metadata: Metadata
    body: HeldBody
    kind = BatchKind.INSERT


Operation = Get | Head | Delete | Insert


@dataclass(frozen=True, slots=True)
class Stored:
    """The object has been stored."""

    tier: Tier


@dataclass(frozen=True, slots=True)
class Deleted:
    """The object is not there, or not any more."""


Result = OpenObject | FoundObject | Stored | Deleted | Exception


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one operation; or of what was none, whose kind and key may not be known."""

    index: int
    kind: BatchKind | None
    key: str | None
    result: Result


class BatchObjects(Protocol):
    """What operations are run on. Mutations run to their end although their callers are cancelled."""

    @property
    def bulk_operations_max(self) -> int:
        """How many operations in bulk may be under way at once, of all batches together."""

    def admit_operation(self) -> None:
        """Raise what is against one more operation."""

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        """As `tierstore.service.service.ObjectService.put`."""

    async def get(self, object_id: ObjectId, byte_range: ByteRange | None) -> OpenObject:
        """As `tierstore.service.service.ObjectService.get`."""

    async def head(self, object_id: ObjectId) -> FoundObject:
        """As `tierstore.service.service.ObjectService.head`."""

    async def delete(self, object_id: ObjectId) -> None:
        """As `tierstore.service.service.ObjectService.delete`."""


class BatchRun:
    """Runs the operations of one batch. To be closed, whatever happens: ``async with``.

    ``gone`` tells whether its caller has gone away; then no other operation begins. ``mutates`` is told of the mutation
    that an operation has begun, which may outlive it, with the operation's index.
    """

    def __init__(
        self,
        objects: BatchObjects,
        limits: Limits,
        tasks: TaskOwner,
        *,
        gone: Callable[[], bool] = lambda: False,
        mutates: Callable[[int, asyncio.Task[Any]], None] | None = None,
    ) -> None:
        self._objects = objects
        self._gone = gone
        self._mutates = mutates
        self._tasks = tasks
        self._held_max = limits.batch_held_max
        self._running_max = min(limits.batch_held_max, objects.bulk_operations_max)
        self._held = 0
        self._opened = 0
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: deque[Head | Delete | Insert] = deque()
        self._waiting_gets: deque[Get] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._room = asyncio.Event()
        self._news = asyncio.Event()
        self._ended = False
        self._given_up = False
        self._error: Exception | None = None
        self.begun = 0
        """Operations that were given to it, and outcomes of what was none."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    # For who reads the request

    async def hold(self) -> None:
        """Wait until the body of another insert may be in memory, and count it. `begin` or `let_go` follows."""
        while self._held >= self._held_max:
            self._room.clear()
            await self._room.wait()
        self._held += 1

    def let_go(self) -> None:
        """A body that was held is not in memory any more."""
        self._held -= 1
        self._room.set()

    def begin(self, operation: Operation) -> None:
        """Run the operation when its turn comes. An insert's body is held."""
        self.begun += 1
        if isinstance(operation, Get):
            self._waiting_gets.append(operation)
        else:
            self._waiting.append(operation)
        self._advance()

    def answer(self, outcome: Outcome) -> None:
        """Pass on what came of an operation that is not run."""
        self.begun += 1
        self._deliver(outcome)

    def end(self, error: Exception | None = None) -> None:
        """No operation comes any more. ``error`` is raised for the writer, behind the outcomes of those that came."""
        self._ended = True
        self._error = error
        self._news.set()

    def give_up(self, error: Exception) -> None:
        """Nobody is there any more to be told: ``error`` is raised for the writer at once."""
        self._given_up = True
        self.end(error)

    # For who writes the response

    async def outcomes(self) -> AsyncGenerator[Outcome, None]:
        """What came of each operation, once it is known, until there are no more. Raises what ended the batch.

        The payload of an opened object is closed when the next outcome is asked for.
        """
        while True:
            while self._outcomes and not self._given_up:
                outcome = self._outcomes.popleft()
                try:
                    yield outcome
                finally:
                    await self._taken(outcome)
            idle = not (self._running or self._waiting or self._waiting_gets or self._outcomes)
            if self._given_up or (self._ended and idle):
                if self._error is not None:
                    raise self._error
                return
            self._news.clear()
            await self._news.wait()

    @property
    def ready(self) -> bool:
        """Whether there is an outcome to be taken at once."""
        return bool(self._outcomes)

    async def aclose(self) -> None:
        """Drop what waits, and leave what runs. `left` then has what nobody was told of. Safe to repeat."""
        self._given_up = self._ended = True
        self._waiting.clear()
        self._waiting_gets.clear()
        running = tuple(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        async with AsyncExitStack() as closing:  # each of them, also if one fails
            for outcome in self._outcomes:
                closing.push_async_callback(_close, outcome)

    @property
    def left(self) -> Sequence[Outcome]:
        """Outcomes that have not been taken; of operations that were left, the outcome is `ClientDisconnected`."""
        return tuple(self._outcomes)

    # Inside

    def _advance(self) -> None:
        """Start what may run now, in the order of the batch."""
        while len(self._running) < self._running_max and not self._given_up:
            if self._gone():
                self.give_up(ClientDisconnected("the caller went away before the batch had ended"))
                return
            operation = self._next()
            if operation is None:
                return
            task = self._tasks.run("batch operation", self._run(operation))
            self._running.add(task)
            task.add_done_callback(partial(self._has_run, operation))

    def _next(self) -> Operation | None:
        get_may_run = bool(self._waiting_gets) and self._opened < self._held_max
        if get_may_run and not (self._waiting and self._waiting[0].index < self._waiting_gets[0].index):
            self._opened += 1
            return self._waiting_gets.popleft()
        return self._waiting.popleft() if self._waiting else None

    async def _run(self, operation: Operation) -> None:
        result: Result
        if self._mutates is not None:
            tell_of_mutation(partial(self._mutates, operation.index))  # in the context of this task alone
        try:
            self._objects.admit_operation()
            result = await self._perform(operation)
        except Exception as error:  # noqa: BLE001  # because every failure is the outcome of its operation
            result = error
        self._deliver_of(operation, result)

    async def _perform(self, operation: Operation) -> OpenObject | FoundObject | Stored | Deleted:
        match operation:
            case Get(_, object_id):
                return await self._objects.get(object_id, None)
            case Head(_, object_id):
                return await self._objects.head(object_id)
            case Insert(_, object_id, metadata, body):
                return Stored(await self._objects.put(object_id, metadata, body))
            case Delete(_, object_id):
                await self._objects.delete(object_id)
                return Deleted()
            case _:
                assert_never(operation)

    def _has_run(self, operation: Operation, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if isinstance(operation, Insert):
            self.let_go()
        if task.cancelled():
            error = (
                ClientDisconnected("the caller went away before this had ended")
                if self._given_up
                else Unavailable("the server is stopping; try again")
            )
            self._deliver_of(operation, error)
        self._advance()
        self._news.set()

    def _deliver_of(self, operation: Operation, result: Result) -> None:
        if isinstance(operation, Get) and isinstance(result, Exception):
            self._opened -= 1
        self._deliver(Outcome(operation.index, operation.kind, operation.object_id.key, result))

    def _deliver(self, outcome: Outcome) -> None:
        if isinstance(outcome.result, TierstoreError) and not isinstance(outcome.result, Broken):
            _drop_frames(outcome.result)
        self._outcomes.append(outcome)
        self._news.set()

    async def _taken(self, outcome: Outcome) -> None:
        await _close(outcome)
        if isinstance(outcome.result, OpenObject):
            self._opened -= 1
            self._advance()


def _drop_frames(error: Exception) -> None:
    """Take from ``error``, and from what led to it, the frames that they came through.

    It may wait for the writer, and they hold the headers of its part, and its body, which is no longer counted by then.
    """
    stripped: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in stripped:
        stripped.append(one)
        one.__traceback__ = one.__context__ = None
        one = one.__cause__


async def _close(outcome: Outcome) -> None:
    """Release what an outcome holds."""
    if isinstance(outcome.result, OpenObject) and isinstance(outcome.result.payload, BlobStream):
        await outcome.result.payload.aclose()
