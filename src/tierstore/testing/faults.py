"""Scripted faults at the contracts: wrappers around any backend that fail as stores and networks do.

A `FaultScript` says what happens at the next calls of a method, by name (``high_volume.read``, ``long_term.put``,
``changelog.record``, …). A fault happens once; a call without one goes through. The script keeps a trace of all calls.
The wrappers are total: each passes on every method of its contract.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar, assert_never
from uuid import UUID

from tierstore.backends.high_volume.contract import (
    Content,
    FoundRow,
    HighVolumeBackend,
    Inline,
    Row,
    RowHead,
    Tombstone,
    TombstoneRow,
)
from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Backlog, Claim, Entry
from tierstore.clock import UnixMicros
from tierstore.errors import TierstoreError
from tierstore.types.ids import ObjectId, Revision, Version
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.ranges import Span

T = TypeVar("T")


@dataclass(frozen=True)
class FailBefore:
    """The call fails without any effect."""

    error: BaseException


@dataclass(frozen=True)
class LoseReply:
    """The call has its effect, and then fails."""

    error: BaseException


@dataclass(frozen=True)
class Answer:
    """The call has no effect and answers ``value``: a conflict, an absence."""

    value: Any


@dataclass(frozen=True)
class Pause:
    """The call waits for ``release``, before its effect or after it; ``reached`` tells that it has come so far."""

    after_effect: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def around(self, effect: Callable[[], Awaitable[T]]) -> T:
        """Run ``effect`` after or before the wait."""
        if self.after_effect:
            result = await effect()
            await self._wait()
            return result
        await self._wait()
        return await effect()

    async def _wait(self) -> None:
        self.reached.set()
        await self.release.wait()


@dataclass(frozen=True)
class Interpose:
    """``action`` runs between the caller's decision to call and the call's effect: a race, made certain.

    Or between the effect and its answer, with ``after_effect``.
    """

    action: Callable[[], Awaitable[object]]
    after_effect: bool = False

    async def around(self, effect: Callable[[], Awaitable[T]]) -> T:
        """Run ``effect`` after or before the action."""
        if self.after_effect:
            result = await effect()
            await self.action()
            return result
        await self.action()
        return await effect()


@dataclass(frozen=True)
class ArriveLate:
    """The call fails, and has its effect later: when `FaultScript.arrive` says so, or never."""

    error: BaseException


class Effect(Enum):
    """What becomes of the call in which a process dies."""

    NEVER = "never"
    DONE = "done"
    LATE = "late"
    """It happens when `FaultScript.arrive` says so, or never."""


@dataclass(frozen=True)
class Crash:
    """The process dies in this call: no later call of it has any effect, until `FaultScript.restart`."""

    effect: Effect
    before: Callable[[], Awaitable[object]] | None = None
    """What happens before it does, while it stands still in the call."""


Fault = FailBefore | LoseReply | Answer | Pause | Interpose | ArriveLate | Crash


class FaultScript:
    """What goes wrong, and what was called."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self._faults: defaultdict[str, deque[Fault | None]] = defaultdict(deque)
        self._crashed = False
        self._late: list[Callable[[], Awaitable[object]]] = []

    def at(self, call: str, *faults: Fault | None) -> None:
        """Script the next calls of ``call``, one fault each; None lets a call through."""
        self._faults[call].extend(faults)

    @property
    def unused(self) -> list[str]:
        """Calls with faults that have not happened: a test that scripted them tested less than it says."""
        return [call for call, faults in self._faults.items() if any(fault is not None for fault in faults)]

    async def around(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        """Run ``effect`` as ``call``, with its next fault."""
        if self._crashed:
            raise asyncio.CancelledError
        self.trace.append(call)
        faults = self._faults[call]
        return await self._suffer(faults.popleft() if faults else None, effect)

    async def _suffer(self, fault: Fault | None, effect: Callable[[], Awaitable[T]]) -> T:
        """Run ``effect`` with ``fault``."""
        match fault:
            case None:
                return await effect()
            case Answer(value):
                return value  # type: ignore[no-any-return]  # because the script's author knows the method
            case Pause() | Interpose():
                return await fault.around(effect)
            case _:
                raise await self._failure(fault, effect)

    async def _failure(
        self, fault: FailBefore | LoseReply | ArriveLate | Crash, effect: Callable[[], Awaitable[object]]
    ) -> BaseException:
        """What the caller of a failing call gets, once the call has had what effect it has."""
        match fault:
            case FailBefore(error):
                return error
            case LoseReply(error):
                await effect()
                return error
            case ArriveLate(error):
                self._late.append(effect)
                return error
            case Crash(what, before):
                if before is not None:
                    await before()
                self._crashed = True
                if what is Effect.DONE:
                    await effect()
                elif what is Effect.LATE:
                    self._late.append(effect)
                return asyncio.CancelledError()
            case _:
                assert_never(fault)

    def restart(self) -> None:
        """A new process after a `Crash`: calls have effects again."""
        self._crashed = False

    async def arrive(self) -> int:
        """Let everything that is late arrive now, in the order of the calls; return how many that were.

        What a call raises then, nobody hears.
        """
        late, self._late = self._late, []
        for effect in late:
            with suppress(TierstoreError):
                await effect()
        return len(late)


class FaultyHighVolume(HighVolumeBackend):
    """A high-volume backend with the script's faults."""

    def __init__(self, inner: HighVolumeBackend, script: FaultScript) -> None:
        self._inner = inner
        self._around = script.around

    async def read(self, object_id: ObjectId) -> Row | None:
        return await self._around("high_volume.read", lambda: self._inner.read(object_id))

    async def head(self, object_id: ObjectId) -> RowHead | None:
        return await self._around("high_volume.head", lambda: self._inner.head(object_id))

    async def put_inline(self, object_id: ObjectId, content: Inline, expires: UnixMicros | None) -> TombstoneRow | None:
        return await self._around("high_volume.put_inline", lambda: self._inner.put_inline(object_id, content, expires))

    async def delete_inline(self, object_id: ObjectId) -> TombstoneRow | None:
        return await self._around("high_volume.delete_inline", lambda: self._inner.delete_inline(object_id))

    async def compare_and_write(
        self,
        object_id: ObjectId,
        expected: Version | None,
        content: Content,
        expires: UnixMicros | None,
        *,
        if_expired_by: UnixMicros | None = None,
        not_after: UnixMicros | None = None,
    ) -> Version | None:
        return await self._around(
            "high_volume.compare_and_write",
            lambda: self._inner.compare_and_write(
                object_id, expected, content, expires, if_expired_by=if_expired_by, not_after=not_after
            ),
        )

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        return await self._around(
            "high_volume.point", lambda: self._inner.point(object_id, base, content, expires, not_after=not_after)
        )

    async def bring_inline(
        self, object_id: ObjectId, expected: Version, payload: bytes, *, not_after: UnixMicros
    ) -> bool:
        return await self._around(
            "high_volume.bring_inline",
            lambda: self._inner.bring_inline(object_id, expected, payload, not_after=not_after),
        )

    async def fence(self, object_id: ObjectId) -> RowHead:
        return await self._around("high_volume.fence", lambda: self._inner.fence(object_id))

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        return await self._around("high_volume.extend", lambda: self._inner.extend(object_id, version, expires))

    async def scan(self, prefix: str, after: str | None, limit: int) -> Sequence[FoundRow]:
        return await self._around("high_volume.scan", lambda: self._inner.scan(prefix, after, limit))

    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        return await self._around("high_volume.expired", lambda: self._inner.expired(by, limit))

    async def remove_markers(self, before: UnixMicros, limit: int) -> int:
        return await self._around("high_volume.remove_markers", lambda: self._inner.remove_markers(before, limit))

    async def identity(self) -> UUID | None:
        return await self._around("high_volume.identity", self._inner.identity)

    async def adopt(self, identity: UUID) -> UUID:
        return await self._around("high_volume.adopt", lambda: self._inner.adopt(identity))

    async def check(self) -> None:
        await self._around("high_volume.check", self._inner.check)

    async def close(self) -> None:
        await self._inner.close()


class FaultyLongTerm(LongTermBackend):
    """A long-term backend with the script's faults. ``long_term.stream`` is called for each chunk of a read,
    ``long_term.aclose`` at its end.
    """

    def __init__(self, inner: LongTermBackend, script: FaultScript) -> None:
        self._inner = inner
        self._around = script.around

    async def put(
        self,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        not_after: UnixMicros | None = None,
    ) -> BlobInfo:
        return await self._around("long_term.put", lambda: self._inner.put(revision, source, size, not_after=not_after))

    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        stream = await self._around("long_term.get", lambda: self._inner.get(revision, span))
        return None if stream is None else _FaultyStream(stream, self._around)

    async def head(self, revision: Revision) -> BlobInfo | None:
        return await self._around("long_term.head", lambda: self._inner.head(revision))

    async def delete(self, revision: Revision) -> None:
        await self._around("long_term.delete", lambda: self._inner.delete(revision))

    async def initiate(self, revision: Revision, *, not_after: UnixMicros | None = None) -> str:
        return await self._around("long_term.initiate", lambda: self._inner.initiate(revision, not_after=not_after))

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        return await self._around(
            "long_term.upload_part", lambda: self._inner.upload_part(upload, number, source, size, md5)
        )

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        return await self._around("long_term.list_parts", lambda: self._inner.list_parts(upload, after, limit))

    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        await self._around("long_term.complete", lambda: self._inner.complete(upload, parts))

    async def abort(self, upload: UploadId | Revision) -> None:
        await self._around("long_term.abort", lambda: self._inner.abort(upload))

    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        return await self._around("long_term.list", lambda: self._inner.list(prefix, after, limit))

    async def remove_debris(self) -> int:
        return await self._around("long_term.remove_debris", self._inner.remove_debris)

    async def identity(self) -> UUID | None:
        return await self._around("long_term.identity", self._inner.identity)

    async def adopt(self, identity: UUID) -> UUID:
        return await self._around("long_term.adopt", lambda: self._inner.adopt(identity))

    async def check(self) -> None:
        await self._around("long_term.check", self._inner.check)

    async def close(self) -> None:
        await self._inner.close()


class _FaultyStream(BlobStream):
    def __init__(
        self, inner: BlobStream, around: Callable[[str, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]
    ) -> None:
        self.size = inner.size
        self._inner = inner
        self._chunks = aiter(inner)
        self._around = around

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await self._around("long_term.stream", lambda: anext(self._chunks))

    async def aclose(self) -> None:
        await self._around("long_term.aclose", self._close)

    async def _close(self) -> bytes:
        await self._inner.aclose()
        return b""


class FaultyChangeLog(ChangeLog):
    """A change log with the script's faults."""

    def __init__(self, inner: ChangeLog, script: FaultScript) -> None:
        self._inner = inner
        self._around = script.around

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        await self._around(
            "changelog.record", lambda: self._inner.record(owner, new=new, old=old, not_before=not_before)
        )

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        return await self._around(
            "changelog.record_again", lambda: self._inner.record_again(owner, new=new, old=old, not_before=not_before)
        )

    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        await self._around("changelog.begin_upload", lambda: self._inner.begin_upload(revision, upload, not_before))

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        return await self._around(
            "changelog.advance", lambda: self._inner.advance(revision, expected, upload, not_before)
        )

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        return await self._around(
            "changelog.claim", lambda: self._inner.claim(revision, owner, old=old, not_before=not_before)
        )

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        await self._around("changelog.mark_done", lambda: self._inner.mark_done(revision, not_before))

    async def forget(self, owner: UUID) -> None:
        await self._around("changelog.forget", lambda: self._inner.forget(owner))

    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        await self._around("changelog.expedite", lambda: self._inner.expedite(owner, not_before))

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        return await self._around("changelog.condemn", lambda: self._inner.condemn(entry, lease_until))

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        return await self._around("changelog.resume_later", lambda: self._inner.resume_later(entry, not_before))

    async def forget_settled(self, entry: Entry) -> bool:
        return await self._around("changelog.forget_settled", lambda: self._inner.forget_settled(entry))

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        return await self._around("changelog.due", lambda: self._inner.due(now, limit))

    async def find(self, revision: Revision) -> Sequence[Entry]:
        return await self._around("changelog.find", lambda: self._inner.find(revision))

    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        return await self._around("changelog.list", lambda: self._inner.list(after, limit, uploads=uploads))

    async def backlog(self) -> Backlog:
        return await self._around("changelog.backlog", self._inner.backlog)

    async def identity(self) -> UUID | None:
        return await self._around("changelog.identity", self._inner.identity)

    async def adopt(self, identity: UUID) -> UUID:
        return await self._around("changelog.adopt", lambda: self._inner.adopt(identity))

    async def check(self) -> None:
        await self._around("changelog.check", self._inner.check)

    async def close(self) -> None:
        await self._inner.close()
