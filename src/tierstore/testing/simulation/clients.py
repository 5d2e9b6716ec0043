"""The clients of a simulated run: they call, wait so long, try again at another server, and note what they saw."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar, assert_never

from tierstore.backends.long_term.contract import BlobStream
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import ClientMistake, NoSuchUpload, ObjectNotFound, Unavailable
from tierstore.testing.simulation.history import Act, History, Seen
from tierstore.testing.simulation.judge import Judge, Violation
from tierstore.testing.simulation.plan import Action, Kind, Plan
from tierstore.testing.simulation.servers import Server, ServerGone, dice
from tierstore.testing.traces import Kind as TraceKind
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.metadata import MANUAL, Expiration, Metadata, ObjectInfo, TimeToIdle, TimeToLive
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.streams import Body

T = TypeVar("T")

_UNNAMED_PART = 8
"""The number of a part that no list names."""


class NoAnswer(Exception):
    """The client does not know what became of its call, or is told to try again."""


class Payload(Body):
    """A payload in two chunks."""

    def __init__(self, payload: bytes) -> None:
        self.size = len(payload)
        half = len(payload) // 2
        self._chunks = iter([chunk for chunk in (payload[:half], payload[half:]) if chunk])

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        self.complete = True
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


class Surroundings(Protocol):
    """What clients see of a run."""

    plan: Plan
    history: History
    judge: Judge
    counts: Counter[str]
    uploads: dict[int, Begun]
    """By the action that began them."""

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
    """The payload that stands for ``value``."""
    return (value.encode() * (size // len(value) + 1))[:size]


class Clients:
    """Carries out actions, each as a client of its own."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._sizes: dict[str, int] = {}

    async def act(self, action: Action) -> None:
        """Carry out ``action``."""
        random = Random(action.seed)
        dice.set(random)
        match action.kind:
            case Kind.PUT_SMALL | Kind.PUT_LARGE | Kind.DELETE:
                await self._write(action, random)
            case Kind.GET:
                await self.read(action.key, random)
            case Kind.HEAD:
                await self._head(action, random)
            case Kind.UPLOAD:
                await self._upload(action, random)
            case Kind.COMPLETE | Kind.ABORT | Kind.LATE_PART:
                if (begun := self._around.uploads.get(action.upload)) is not None:
                    await self._meddle(action.kind, begun, random)
            case _:
                assert_never(action.kind)

    async def _meddle(self, kind: Kind, begun: Begun, random: Random) -> None:
        """Do something to an upload that another client has begun."""
        if kind is Kind.COMPLETE:
            await self._complete(begun, random)
        elif kind is Kind.ABORT:
            await self._abort(begun, random)
        else:
            await self._late_part(begun, random)

    async def _ask(
        self,
        random: Random,
        kind: TraceKind,
        key: str,
        work: Callable[[Server], Coroutine[Any, Any, T]],
        upload: Revision | None = None,
    ) -> T:
        """One call to one server. Raises `NoAnswer`, and what the client is told that it did wrong."""
        around = self._around
        around.counts["operations"] += 1
        server = around.server(random)
        try:
            async with asyncio.timeout(around.plan.client_timeout):
                with around.operation(kind, server.number, object_id(key), upload):
                    return await server.request(kind.value, work(server))
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

    def _value(self, value: str, size: int, random: Random) -> Metadata:
        """What an object of ``value`` is stored with."""
        self._sizes[value] = size
        return Metadata(origin=value, expiration=self._expiration(random))

    def _mind_deadline(self, value: str, expiration: Expiration) -> None:
        """Note when ``value`` may expire, counting from now."""
        around = self._around
        earliest = None
        if isinstance(expiration, TimeToLive | TimeToIdle):
            jumpy = around.plan.clocks_jump
            earliest = 0 if jumpy else around.earliest_clock() + expiration.seconds * MICROS_PER_SECOND
        around.history.earliest_deadlines.setdefault(value, earliest)

    async def _write(self, action: Action, random: Random) -> None:
        for attempt in range(self._around.plan.attempts):
            if await self.write_once(action.kind, action.key, f"{action.number}.{attempt}", random):
                return
            await self._pause(random)

    async def write_once(self, kind: Kind, key: str, value: str, random: Random) -> bool:
        """Put ``value`` or delete; return whether it was acknowledged."""
        seen, work = self._prepared(kind, key, value, random)
        try:
            await self._ask(random, TraceKind.DELETE if kind is Kind.DELETE else TraceKind.PUT, key, work)
        except NoAnswer:
            return False
        self._around.history.end(seen)
        self._around.counts["deletes acknowledged" if kind is Kind.DELETE else "puts acknowledged"] += 1
        return True

    def _prepared(
        self, kind: Kind, key: str, value: str, random: Random
    ) -> tuple[Seen, Callable[[Server], Coroutine[Any, Any, object]]]:
        """The operation, which begins now, and what it asks of a server."""
        history = self._around.history
        if kind is Kind.DELETE:
            return history.begin(key, Act.DELETE), lambda server: server.service.delete(object_id(key))
        size = random.randint(8, 64) if kind is Kind.PUT_SMALL else random.randint(65, 300)
        metadata = self._value(value, size, random)
        self._mind_deadline(value, metadata.expiration)
        payload = payload_of(value, size)
        return (
            history.begin(key, Act.WRITE, value),
            lambda server: server.service.put(object_id(key), metadata, Payload(payload)),
        )

    async def read(self, key: str, random: Random) -> bool:
        """Read the object once, whole; return whether there was an answer."""

        async def get(server: Server) -> tuple[ObjectInfo, bytes]:
            clock = server.clock.now()
            found = await server.service.get(object_id(key), None)
            self._check_unexpired(found.info, clock)
            return found.info, await _payload(found)

        history = self._around.history
        seen = history.begin(key, Act.READ)
        try:
            info, payload = await self._ask(random, TraceKind.READ, key, get)
        except NoAnswer:
            history.forget(key, seen)
            return False
        except ObjectNotFound:
            seen.latest_clock = self._around.latest_clock()
        else:
            seen.value = info.metadata.origin
            self._check_payload(seen.value, info, payload)
        history.end(seen)
        return True

    async def _head(self, action: Action, random: Random) -> None:
        history = self._around.history
        seen = history.begin(action.key, Act.READ)
        try:
            found = await self._ask(
                random, TraceKind.READ, action.key, lambda server: server.service.head(object_id(action.key))
            )
        except NoAnswer:
            history.forget(action.key, seen)
            return
        except ObjectNotFound:
            seen.latest_clock = self._around.latest_clock()
        else:
            seen.value = found.info.metadata.origin
        history.end(seen)

    def _check_unexpired(self, info: ObjectInfo, clock: UnixMicros) -> None:
        if info.time_expires is not None and info.time_expires <= clock and not self._around.plan.clocks_jump:
            raise Violation(f"(7) an object was read at {clock} that had expired at {info.time_expires}")

    def _check_payload(self, value: str | None, info: ObjectInfo, payload: bytes) -> None:
        if value is None or value not in self._sizes:
            raise Violation(f"(6) an object was read that nobody has written: {info}")
        if payload != payload_of(value, self._sizes[value]) or info.size != len(payload):
            raise Violation(f"(6) the object {value} was read with a payload that is not its own: {payload!r}, {info}")

    async def _upload(self, action: Action, random: Random) -> None:
        value, size = f"{action.number}.u", random.randint(1, 240)
        metadata = self._value(value, size, random)
        payload = payload_of(value, size)
        upload = await self._persist(
            random,
            TraceKind.INITIATE,
            action.key,
            lambda server: server.service.initiate_upload(object_id(action.key), metadata),
        )
        if upload is None:
            return
        pieces = [payload[start : start + 100] for start in range(0, size, 100)]
        names = []
        for number, piece in enumerate(pieces, start=1):
            name = await self._part(random, upload, number, piece)
            if name is None:
                return
            names.append(name)
        begun = Begun(action.key, value, upload, names)
        self._around.uploads[action.number] = begun
        self._mind_upload(begun, metadata.expiration)
        together = [self._complete(begun, Random(random.random())) for _ in range(random.choice([0, 1, 1, 1, 2, 3]))]
        async with asyncio.TaskGroup() as attempts:
            for attempt in together:
                attempts.create_task(attempt)

    def _mind_upload(self, begun: Begun, expiration: Expiration) -> None:
        """From now on somebody may complete it: one write, whatever the number of attempts."""
        self._mind_deadline(begun.value, expiration)
        self._around.history.begin(begun.key, Act.WRITE, begun.value)

    async def _part(self, random: Random, upload: UploadId, number: int, piece: bytes) -> PartName | None:
        try:
            part = await self._persist(
                random,
                TraceKind.PARTS,
                upload.revision.object_id.key,
                lambda server: server.service.upload_part(upload, number, Payload(piece), None),
            )
        except NoSuchUpload:
            self._around.judge.failed(upload.revision.uuid)
            return None
        return None if part is None else PartName(part.number, part.etag)

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

    async def _complete(self, begun: Begun, random: Random) -> None:
        for _ in range(self._around.plan.attempts):
            if await self.complete_once(begun, random):
                return
            await self._pause(random)

    async def complete_once(self, begun: Begun, random: Random) -> bool:
        """One attempt to complete an upload; return whether there was a final answer."""
        revision = begun.upload.revision.uuid
        judge = self._around.judge
        try:
            await self._ask(
                random,
                TraceKind.COMPLETE,
                begun.key,
                lambda server: server.service.complete_upload(begun.upload, begun.parts),
                begun.upload.revision,
            )
        except NoAnswer:
            return False
        except NoSuchUpload:
            judge.failed(revision)
            begun.outcome = begun.outcome or "failed"
            self._around.counts["uploads failed"] += 1
            return True
        except ClientMistake as error:
            raise Violation(f"(4) the list of parts is right, and was refused: {error!r}") from error
        judge.succeeded(revision)
        history = self._around.history
        for seen in history.by_key[begun.key]:
            if seen.value == begun.value and seen.act is Act.WRITE and not seen.answered:
                history.end(seen)
        begun.outcome = "complete"
        self._around.counts["uploads complete"] += 1
        return True

    async def _abort(self, begun: Begun, random: Random) -> None:
        try:
            answer = await self._persist(
                random, TraceKind.ABORT, begun.key, lambda server: _abort(server, begun.upload), begun.upload.revision
            )
        except NoSuchUpload:
            return
        if answer:
            self._around.judge.failed(begun.upload.revision.uuid)

    async def _late_part(self, begun: Begun, random: Random) -> None:
        body = payload_of(f"{begun.value}.late", 40)
        try:
            await self._persist(
                random,
                TraceKind.PARTS,
                begun.key,
                lambda server: server.service.upload_part(begun.upload, _UNNAMED_PART, Payload(body), None),
            )
        except NoSuchUpload:
            self._around.counts["late parts refused"] += 1


async def _abort(server: Server, upload: UploadId) -> bool:
    await server.service.abort_upload(upload)
    return True


async def _payload(found: OpenObject) -> bytes:
    if isinstance(found.payload, bytes):
        return found.payload
    return await _read_all(found.payload)


async def _read_all(stream: BlobStream) -> bytes:
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()
