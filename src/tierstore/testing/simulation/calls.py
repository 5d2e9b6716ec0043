"""How the clients of a simulated run call: one server each time, for so long, and again at another."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import IncompleteBody, Unavailable
from tierstore.service.batch import BatchRun
from tierstore.testing.simulation.history import History
from tierstore.testing.simulation.judge import Judge
from tierstore.testing.simulation.plan import Plan
from tierstore.testing.simulation.servers import Server, ServerGone
from tierstore.testing.traces import Kind as TraceKind
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.metadata import MANUAL, Expiration, Metadata, TimeToIdle, TimeToLive
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.resumable import SessionId
from tierstore.types.streams import Body

T = TypeVar("T")


class NoAnswer(Exception):
    """The client does not know what became of its call, or is told to try again."""


class Payload(Body):
    """A payload in chunks, two if nothing else is said. Where it is cut, its sender is gone."""

    def __init__(self, payload: bytes, chunks: Sequence[bytes] | None = None, *, cut: bool = False) -> None:
        self.size = len(payload)
        half = len(payload) // 2
        self._chunks = [chunk for chunk in chunks or (payload[:half], payload[half:]) if chunk]
        self._cut = cut
        self.complete = not self._chunks and not cut

    async def __anext__(self) -> bytes:
        if self._chunks:
            chunk = self._chunks.pop(0)
            self.complete = not self._chunks and not self._cut
            return chunk
        if self._cut:
            raise IncompleteBody("simulated")
        raise StopAsyncIteration


@dataclass(slots=True)
class Begun:
    """An upload with all its parts sent."""

    key: str
    value: str
    upload: UploadId
    parts: Sequence[PartName]
    outcome: str = ""
    """``complete`` or ``failed`` once a client has been told so."""


@dataclass(slots=True)
class Session:
    """A resumable upload that has been begun."""

    key: str
    value: str
    size: int
    session: SessionId
    stored: int = 0
    """Bytes of which a client was told that they are stored."""


class Surroundings(Protocol):
    """What clients see of a run."""

    plan: Plan
    batch_run: type[BatchRun]
    """What runs batches."""
    history: History
    judge: Judge
    counts: Counter[str]
    uploads: dict[int, Begun]
    """By the action that began them."""
    sessions: dict[int, Session]
    """Likewise."""
    sizes: dict[str, int]
    """How many bytes stand for each value."""

    def operation(
        self, kind: TraceKind, server: int, object_id: ObjectId | None = None, upload: Revision | None = None
    ) -> AbstractContextManager[object]:
        """What is called in the body is one operation, if it is recorded."""

    def server(self, random: Random) -> Server:
        """The server that a client reaches now."""

    def earliest_clock(self) -> UnixMicros:
        """The least that any server's clock shows now."""

    def latest_clock(self) -> UnixMicros:
        """The most."""


def object_id(key: str) -> ObjectId:
    """The id of a simulated object."""
    return ObjectId("simulated", (Scope("org", "1"),), key)


def payload_of(value: str, size: int) -> bytes:
    """The payload that stands for ``value``; no piece of it is like another."""
    pieces = range(size // (len(value) + 2) + 1)
    return "".join([f"{value}:{piece};" for piece in pieces]).encode()[:size]


class Caller:
    """What all clients do."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    async def _ask(
        self,
        random: Random,
        kind: TraceKind,
        key: str,
        work: Callable[[Server], Coroutine[Any, Any, T]],
        upload: Revision | None = None,
        *,
        patience_seconds: float | None = None,
        accept: Callable[[T], None] = lambda _: None,
    ) -> T:
        """One call to one server. Raises `NoAnswer`, and what the client is told that it did wrong.

        What ``accept`` raises for an answer that is not the end of what was to be done is raised likewise.
        """
        around = self._around
        around.counts["operations"] += 1

        async def call(server: Server) -> T:
            with around.operation(kind, server.number, object_id(key), upload):
                answer = await server.request(kind.value, work(server))
                accept(answer)
                return answer

        return await self._reach(random, call, patience_seconds)

    async def _reach(
        self, random: Random, call: Callable[[Server], Awaitable[T]], patience_seconds: float | None = None
    ) -> T:
        """What a server answers to ``call``. Raises `NoAnswer`, and what the client is told that it did wrong."""
        around = self._around
        server = around.server(random)
        try:
            async with asyncio.timeout(patience_seconds or around.plan.client_timeout):
                return await call(server)
        except (Unavailable, ServerGone, TimeoutError) as error:
            around.counts["no answer"] += 1
            raise NoAnswer from error

    async def _pause(self, random: Random) -> None:
        await asyncio.sleep(self._around.plan.latency * random.choice([0, 1, 10]))

    def _expiration(self, random: Random) -> Expiration:
        ttl = self._around.plan.ttl
        if not ttl or random.random() < 0.5:
            return MANUAL
        return TimeToLive(ttl) if random.random() < 0.5 else TimeToIdle(ttl)

    def _value(self, value: str, size: int, expiration: Expiration) -> Metadata:
        """What an object of ``value`` is stored with."""
        self._around.sizes[value] = size
        return Metadata(origin=value, expiration=expiration)

    def _mind_deadline(self, value: str, expiration: Expiration) -> None:
        """Note when ``value`` may expire, counting from now."""
        around = self._around
        earliest = None
        if isinstance(expiration, TimeToLive | TimeToIdle):
            jumpy = around.plan.clocks_jump
            earliest = 0 if jumpy else around.earliest_clock() + expiration.seconds * MICROS_PER_SECOND
        around.history.earliest_deadlines.setdefault(value, earliest)

    async def _persist(
        self,
        random: Random,
        kind: TraceKind,
        key: str,
        work: Callable[[Server], Coroutine[Any, Any, T]],
        upload: Revision | None = None,
    ) -> T | None:
        """Ask until there is an answer, or the attempts are used up."""
        for _ in range(self._around.plan.attempts):
            try:
                return await self._ask(random, kind, key, work, upload)
            except NoAnswer:
                await self._pause(random)
        return None
