"""The clients of batches in a simulated run, and the requests that carry them.

A batch is run by the production code, `tierstore.service.batch`: its operations begin while others are still to come,
and their outcomes reach the client as they come. Some clients read slowly, some leave in the middle. Each operation is
one of its own to the history, from when it is sent until its client is told of its end; and one to the recorder.

Looked at besides: every operation has one answer, of its own kind; none runs without having been admitted; not more are
in memory, opened or running than a batch may have; and when a batch is over, all that it has opened is closed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import assert_never

from tierstore.backends.long_term.contract import BlobStream
from tierstore.errors import ClientDisconnected, Forbidden, ObjectNotFound, Unavailable
from tierstore.service.batch import (
    BatchKind,
    BatchRun,
    Delete,
    Deleted,
    Get,
    Head,
    HeldBody,
    Insert,
    Operation,
    Outcome,
    Result,
    Stored,
)
from tierstore.testing.simulation.answers import Answers, payload_in
from tierstore.testing.simulation.calls import Caller, NoAnswer, Surroundings, object_id, payload_of
from tierstore.testing.simulation.history import Act, Seen
from tierstore.testing.simulation.judge import Violation
from tierstore.testing.simulation.plan import Action
from tierstore.testing.simulation.servers import Server, dice
from tierstore.testing.traces import Kind as TraceKind
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import Expiration, Metadata
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.ranges import ByteRange
from tierstore.types.streams import Body

_WRITES = frozenset({BatchKind.INSERT, BatchKind.DELETE})
_MIXED = (*[BatchKind.INSERT] * 3, *[BatchKind.GET] * 2, BatchKind.HEAD, BatchKind.DELETE)
_DRAWN = (_MIXED, _MIXED, (BatchKind.INSERT,), (BatchKind.GET,))
_LEAVES = 0.15
"""How many clients leave in the middle, of all; as many are forbidden one kind of operation."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a client wants of one operation."""

    kind: BatchKind
    key: str
    size: int
    expiration: Expiration


@dataclass(slots=True)
class _Sent:
    """An operation that was sent. ``seen`` is None if it is one that its client may not do."""

    wanted: _Wanted
    operation: Operation
    seen: Seen | None


class BatchClients(Caller):
    """Sends batches, each as a client of its own."""

    def __init__(self, around: Surroundings, answers: Answers) -> None:
        super().__init__(around)
        self._answers = answers

    async def act(self, action: Action, random: Random) -> None:
        """Send a batch, and those of its operations that were not answered again."""
        forbidden = random.choice(tuple(BatchKind)) if random.random() < _LEAVES else None
        kinds = random.choice(_DRAWN)
        wanted = [self._draw(random.choice(kinds), key, random) for key in action.keys]
        for attempt in range(self._around.plan.attempts):
            batch = _Batch(self._around, self._answers, f"{action.number}.{attempt}", wanted, Random(random.random()))
            batch.forbidden = forbidden
            batch.take_time()
            hasty = random.random() < _LEAVES
            wanted = await self._send(batch, random, self._around.plan.latency * 4 if hasty else None)
            if not wanted or batch.left:
                return
            await self._pause(random)

    async def insert_all(self, name: str, keys: Sequence[str], random: Random, *, batches_max: int) -> bool:
        """Write an object to each of ``keys``, in batches; return whether all were acknowledged."""
        wanted = [self._draw(BatchKind.INSERT, key, random) for key in keys]
        for attempt in range(batches_max):
            batch = _Batch(self._around, self._answers, f"{name}.{attempt}", wanted, Random(random.random()))
            wanted = await self._send(batch, random, self._around.plan.client_timeout * len(keys))
            if not wanted:
                return True
        return False

    def _draw(self, kind: BatchKind, key: str, random: Random) -> _Wanted:
        size = random.randint(8, 64) if random.random() < 0.5 else random.randint(65, 256)
        return _Wanted(kind, key, size, self._expiration(random))

    async def _send(self, batch: "_Batch", random: Random, patience_seconds: float | None = None) -> list[_Wanted]:
        """Send one batch; return what has not been answered."""
        counts = self._around.counts
        counts["batches"] += 1
        try:
            await self._reach(random, batch.call, patience_seconds)
        except NoAnswer:
            counts["batches broken off"] += 1
        except ClientDisconnected:
            counts["batches left"] += 1
        else:
            batch.check_answered()
        batch.forget_reads()
        return batch.unanswered()


class _Batch(Caller):
    """One request, and what its client sees of it."""

    def __init__(
        self, around: Surroundings, answers: Answers, name: str, wanted: Sequence[_Wanted], random: Random
    ) -> None:
        super().__init__(around)
        self._answers = answers
        self._name = name
        self._wanted = wanted
        self._random = random
        self._sending = Random(random.random())
        self._sent: dict[int, _Sent] = {}
        """By index: what has been sent, and not been answered."""
        self._answered: set[int] = set()
        self._again: set[int] = set()
        """Answered with: try again."""
        self._left = asyncio.Event()
        self._leaves_after_sent = self._leaves_after_told = len(wanted) + 1
        self._pauses: Sequence[int] = (0,)
        """How long its client may wait before it sends or reads on, in latencies of the stores."""
        self.forbidden: BatchKind | None = None
        """What its client has no permission for."""

    def take_time(self) -> None:
        """Let the client send and read slowly. Draw whether it leaves, and when."""
        self._pauses = (0, 0, 1, 10)
        if self._random.random() < _LEAVES:
            self._leaves_after_sent = self._random.randint(1, 2 * len(self._wanted))
            self._leaves_after_told = self._random.randint(1, len(self._wanted))

    @property
    def left(self) -> bool:
        """Whether the client has gone away by itself."""
        return self._left.is_set()

    def check_answered(self) -> None:
        """Raise `Violation` unless a batch that has come to its end has answered every operation."""
        if len(self._answered) != len(self._wanted) and not self.left:
            raise Violation(f"a batch ended without an answer for {[sent.operation for sent in self._sent.values()]}")

    def forget_reads(self) -> None:
        """Reads without an answer say nothing."""
        for sent in self._sent.values():
            if sent.seen is not None and sent.wanted.kind not in _WRITES:
                self._around.history.forget(sent.wanted.key, sent.seen)

    def unanswered(self) -> list[_Wanted]:
        """What its client may want again."""
        return [
            wanted for index, wanted in enumerate(self._wanted) if index in self._again or index not in self._answered
        ]

    async def call(self, server: Server) -> None:
        """Send it to ``server``, and take in the answers. Raises `ClientDisconnected` when its client has left."""
        await server.request("batch", self._serve(server))

    async def _serve(self, server: Server) -> None:
        """As the server does: read and write side by side."""
        limits = self._around.plan.limits
        objects = _Objects(self._around, self._answers, server, self.forbidden, Random(self._random.random()))
        run = self._around.batch_run(objects, limits, server.watchers, gone=self._left.is_set)
        try:
            async with run:
                reading = server.watchers.run("batch reader", self._read(run, objects))
                try:
                    await self._write(run, objects)
                finally:
                    reading.cancel()
                    await asyncio.wait((reading,))
        finally:
            if not server.dead:
                objects.check_closed()

    async def _read(self, run: BatchRun, objects: "_Objects") -> None:
        """Take in the request while it is coming, then wait until its client leaves."""
        try:
            for index, wanted in enumerate(self._wanted):
                await asyncio.sleep(self._around.plan.latency * self._sending.choice(self._pauses[:3]))
                if index >= self._leaves_after_sent:
                    self._left.set()
                if self._left.is_set():
                    break
                if wanted.kind is BatchKind.INSERT:
                    await run.hold()
                    objects.hold()
                run.begin(self._begin(index, wanted))
            else:
                run.end()
            await self._left.wait()
            raise ClientDisconnected("simulated")
        except Exception as error:  # noqa: BLE001  # because the writer raises it, whatever it is
            run.give_up(error)

    def _begin(self, index: int, wanted: _Wanted) -> Operation:
        """The operation, which begins now."""
        self._around.counts["operations"] += 1
        there = object_id(wanted.key)
        operation: Operation
        act, value = Act.READ, None
        match wanted.kind:
            case BatchKind.INSERT:
                act, value = Act.WRITE, f"{self._name}.{index}"
                operation = Insert(
                    index, there, self._metadata(value, wanted), HeldBody(payload_of(value, wanted.size))
                )
            case BatchKind.DELETE:
                act, operation = Act.DELETE, Delete(index, there)
            case BatchKind.GET:
                operation = Get(index, there)
            case BatchKind.HEAD:
                operation = Head(index, there)
            case _:
                assert_never(wanted.kind)
        seen = None if wanted.kind is self.forbidden else self._around.history.begin(wanted.key, act, value)
        self._sent[index] = _Sent(wanted, operation, seen)
        return operation

    def _metadata(self, value: str, wanted: _Wanted) -> Metadata:
        if wanted.kind is self.forbidden:  # nobody has written it then, and nobody may read it
            return Metadata(origin=value)
        self._mind_deadline(value, wanted.expiration)
        return self._value(value, wanted.size, wanted.expiration)

    async def _write(self, run: BatchRun, objects: "_Objects") -> None:
        """Tell the client what came of each operation. Raises what ends the batch early."""
        async with aclosing(run.outcomes()) as outcomes:
            async for outcome in outcomes:
                await self._tell(outcome)
                objects.told(outcome)
                await asyncio.sleep(self._around.plan.latency * self._random.choice(self._pauses))
                if len(self._answered) >= self._leaves_after_told:
                    self._left.set()
                if self._left.is_set() and self._random.random() < 0.5:
                    raise ClientDisconnected("simulated")

    async def _tell(self, outcome: Outcome) -> None:
        """The client is told of an outcome. Raises `Violation`, and what breaks the batch off."""
        if self._left.is_set():
            return
        sent = self._sent.get(outcome.index)
        if sent is None or (outcome.kind, outcome.key) != (sent.wanted.kind, sent.wanted.key):
            raise Violation(f"an operation of a batch has two answers, or another's: {outcome}")
        result = outcome.result
        if isinstance(result, OpenObject):
            try:
                payload = await payload_in(result)
            except Unavailable as error:
                if self._random.random() < 0.5:
                    raise  # some of it had been sent: nothing can follow it
                result = error
            else:
                self._hear_payload(sent, result, payload)
        del self._sent[outcome.index]
        self._answered.add(outcome.index)
        self._hear(outcome.index, sent, result)
        self._around.counts["operations of batches answered"] += 1

    def _hear_payload(self, sent: _Sent, opened: OpenObject, payload: bytes) -> None:
        """The client has an object. Raises `Violation`."""
        if sent.seen is not None:
            self._answers.read(sent.wanted.key, sent.seen, opened.info, payload)

    def _hear(self, index: int, sent: _Sent, result: Result) -> None:
        """The client hears what came of its operation. Raises `Violation`."""
        if isinstance(result, Violation):
            raise result
        if (sent.seen is None) != isinstance(result, Forbidden):
            raise Violation(f"what may be done and what not was mixed up: {sent}, {result!r}")
        if sent.seen is None:
            self._around.counts["operations of batches forbidden"] += 1
        elif isinstance(result, Unavailable):
            self._again.add(index)
            if sent.wanted.kind not in _WRITES:
                self._around.history.forget(sent.wanted.key, sent.seen)
        else:
            self._hear_end(sent.wanted, sent.seen, result)

    def _hear_end(self, wanted: _Wanted, seen: Seen, result: Result) -> None:
        """The client hears that its operation has come to its end. Raises `Violation`."""
        match wanted.kind, result:
            case BatchKind.INSERT, Stored(tier) if tier is self._tier(wanted):
                self._around.history.end(seen)
            case BatchKind.DELETE, Deleted():
                self._around.history.end(seen)
            case BatchKind.GET, OpenObject():
                pass  # it has been read
            case BatchKind.HEAD, FoundObject(info=info):
                self._answers.found(wanted.key, seen, info)
            case ((BatchKind.GET | BatchKind.HEAD), ObjectNotFound()):
                self._answers.absent(seen)
            case _:
                raise Violation(f"no answer to this operation of a batch: {wanted}, {result!r}")

    def _tier(self, wanted: _Wanted) -> Tier:
        inline = wanted.size <= self._around.plan.limits.inline_bytes_max
        return Tier.HIGH_VOLUME if inline else Tier.LONG_TERM


class _Objects:
    """What a batch's operations are run on: the server's objects, for a client that may not do ``forbidden``."""

    def __init__(
        self, around: Surroundings, answers: Answers, server: Server, forbidden: BatchKind | None, random: Random
    ) -> None:
        self._around = around
        self._answers = answers
        self._server = server
        self._service = server.service.in_bulk()
        self._forbidden = forbidden
        self._dice = random
        self._held_max = around.plan.limits.batch_held_max
        self._held = self._opened = self._running = self._admitted = 0
        self._streams: set[_Watched] = set()

    @property
    def bulk_operations_max(self) -> int:
        """As the service's."""
        return self._service.bulk_operations_max

    def hold(self) -> None:
        """Another insert's body is in memory, until it has been stored."""
        self._held += 1
        self._check("in memory", self._held, self._held_max)

    def told(self, outcome: Outcome) -> None:
        """The client has been told of an outcome: what was opened for it is not needed any more."""
        if isinstance(outcome.result, OpenObject):
            self._opened -= 1

    def check_closed(self) -> None:
        """Raise `Violation` if something that was opened is still open, now that the batch is over."""
        if any(not stream.closed for stream in self._streams):
            raise Violation("a batch is over, and has left a payload open")

    def admit_operation(self) -> None:
        """One more operation may run."""
        self._admitted += 1

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        """As the service's."""
        try:
            with self._operation(BatchKind.INSERT, TraceKind.PUT, object_id):
                return await self._service.put(object_id, metadata, body)
        finally:
            self._held -= 1

    async def get(self, object_id: ObjectId, byte_range: ByteRange | None) -> OpenObject:
        """As the service's."""
        with self._operation(BatchKind.GET, TraceKind.READ, object_id):
            clock = self._server.clock.now()
            found = await self._service.get(object_id, byte_range)
        self._opened += 1
        self._check("opened", self._opened, self._held_max)
        self._answers.check_unexpired(found.info, clock)
        if isinstance(found.payload, BlobStream):
            stream = _Watched(found.payload)
            self._streams.add(stream)
            found = replace(found, payload=stream)
        return found

    async def head(self, object_id: ObjectId) -> FoundObject:
        """As the service's."""
        with self._operation(BatchKind.HEAD, TraceKind.READ, object_id):
            return await self._service.head(object_id)

    async def delete(self, object_id: ObjectId) -> None:
        """As the service's."""
        with self._operation(BatchKind.DELETE, TraceKind.DELETE, object_id):
            await self._service.delete(object_id)

    @contextmanager
    def _operation(self, kind: BatchKind, recorded: TraceKind, object_id: ObjectId) -> Iterator[None]:
        """What is done in the body is one operation, whose fate has dice of its own."""
        self._admitted -= 1
        if self._admitted < 0:
            raise Violation("an operation of a batch runs that was not admitted")
        if kind is self._forbidden:
            raise Forbidden("simulated")
        dice.set(Random(self._dice.getrandbits(62)))
        self._running += 1
        try:
            self._check("under way", self._running, min(self._held_max, self.bulk_operations_max))
            with self._around.operation(recorded, self._server.number, object_id):
                yield
        finally:
            self._running -= 1

    def _check(self, what: str, there: int, most: int) -> None:
        if there > most:
            raise Violation(f"{there} operations of a batch are {what}, and {most} may be")


class _Watched(BlobStream):
    """A payload of which it is known whether it was closed."""

    def __init__(self, inner: BlobStream) -> None:
        self._inner = inner
        self.size = inner.size
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._inner)

    async def aclose(self) -> None:
        self.closed = True
        await self._inner.aclose()
