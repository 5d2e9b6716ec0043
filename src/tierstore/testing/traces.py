"""Traces: what operations did to the stores, call by call, at the moments of the effects.

For walking a run through the model of the protocol (``tests/model``). How to record one:

    recorder = Recorder()
    inner = recorded(raw_stores, recorder, clock)       # around the raw stores; ``clock`` is the raw stores' own
    outer = acting(faulty(inner), recorder)             # outermost, around the faults or the network
    tiering = build_tiering(outer, …)
    with recorder.operation(Kind.PUT, "instance 1", object_id):
        await tiering.store.put(object_id, …)
    walk(recorder.records)

- The *actor* of a call is taken from the context, which tasks inherit: what an operation leaves to be done off the path
  counts as its own. A fault wrapper that lets a call have its effect later, out of another task, runs ``bound(effect)``
  in its place, taken when the call was made (a task that was created during the call needs nothing).
- `acting` gives each settling of an entry, and each of an expired object, an actor of its own, whoever settles: it
  sets the context at `condemn`, or at a sweep's `record`. It has to run in the caller's own task, hence outermost.
- `Recorder.operation` records beginning and end: no exception is `Answer.OK`; `NoSuchUpload` is `Answer.REFUSED`; every
  other exception, a cancellation too, `Answer.UNKNOWN`. An operation whose process dies may as well have no end.
- A trace begins with empty stores, and holds every call from then on: all instances share one recorder. The judge's own
  looks at the stores (``high_volume.scan``, ``long_term.list``, ``changelog.list``, of `recorded` stores) are recorded
  like any other, and held against the model in the same way; see `look`.

A call is recorded when it has returned, or failed, at the raw store; so its place in the trace is that of its effect
only where a store has the effect in the same step of the event loop in which it returns. The stores in memory do, with
one exception that is allowed for: `Completing` is recorded before a ``long_term.complete``. A call that is cancelled
before its effect is not recorded. Reads of streams, identities, checks and backlogs are not recorded.

For making the calls again, elsewhere, ``Recorder(keeping=True)`` keeps each call in full (`Called.kept`), with payloads
and what was read of streams, and records identities, checks and backlogs, too. Such a trace is for no walk.

Does not: slow anything down when it is off (without `recorded` there is no wrapper), copy or keep payloads otherwise.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar
from uuid import UUID

from tierstore.backends.high_volume.contract import (
    Content,
    FoundRow,
    HighVolumeBackend,
    Inline,
    InlineHead,
    Row,
    RowHead,
    Tombstone,
    TombstoneRow,
)
from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.build import Stores
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Backlog, Claim, Entry
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import NoSuchUpload, TierstoreError
from tierstore.types.ids import ObjectId, Revision, Version
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.ranges import Span

T = TypeVar("T")

_LISTED_MAX = 1 << 30


class Kind(Enum):
    """What an actor does."""

    PUT = "put"
    DELETE = "delete"
    READ = "read"
    """A get or a head, with the bump of a deadline that it may leave to be done."""
    EXTEND = "extend"
    """An extension of an expiry."""
    INITIATE = "initiate"
    """Of a multipart upload."""
    PARTS = "parts"
    """An upload's parts: sent, or listed."""
    COMPLETE = "complete"
    """One attempt to complete an upload."""
    RESUME = "resume"
    """An append to a resumable upload, or the question for its offset: if the session is full, an attempt to complete
    it, and `Answer.OK` only if it is complete."""
    ABORT = "abort"
    """Of an upload, by its client."""
    SWEEP = "sweep"
    """A run of the sweeper, or an operator's; what it settles is settled by actors of their own."""
    SETTLE = "settle"
    """The settling of one entry, whoever does it. Made by `acting`."""
    EXPIRE = "expire"
    """The settling of one expired tombstone. Made by `acting`."""
    INLINE = "bring inline"
    """What follows when an upload has made a small object. Made by `acting`."""
    LOOK = "look"
    """A look at the stores by the judge."""


@dataclass(frozen=True, slots=True)
class Actor:
    """One operation of one instance."""

    number: int
    """Unique in the trace, ascending."""
    kind: Kind
    instance: str
    object_id: ObjectId | None
    upload: Revision | None
    """What a `Kind.COMPLETE`, `Kind.RESUME` or `Kind.ABORT` is about."""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.number} of {self.instance}"


class Answer(Enum):
    """What the caller of an operation was told."""

    OK = "ok"
    REFUSED = "refused"
    """There is no such upload, or none any more: final."""
    UNKNOWN = "unknown"
    """Nothing: try again, a mistake of the client's, the operation's end without an answer."""


@dataclass(frozen=True, slots=True)
class Begun:
    """An operation began."""

    actor: Actor


@dataclass(frozen=True, slots=True)
class Ended:
    """An operation ended. What it has left to be done goes on."""

    actor: Actor
    answer: Answer


@dataclass(frozen=True, slots=True)
class Completing:
    """``long_term.complete`` was called, and may have its effect from now on."""

    actor: Actor | None
    revision: Revision


class Taken:
    """A source of chunks, and what was taken of it."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = aiter(source)
        self.taken = bytearray()
        self.ended = False
        """Whether it was read to its end."""
        self.error: BaseException | None = None
        """What it failed with."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._source)
        except StopAsyncIteration:
            self.ended = True
            raise
        except BaseException as error:
            self.error = error
            raise
        self.taken += chunk
        return chunk


class Delivered(BlobStream):
    """A stream, and what it has delivered."""

    def __init__(self, stream: BlobStream) -> None:
        self.size = stream.size
        self._stream = stream
        self._chunks = aiter(stream)
        self.delivered = bytearray()
        self.ended = False
        """Whether it was read to its end."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self.ended = True
            raise
        self.delivered += chunk
        return chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


@dataclass(frozen=True, slots=True)
class Kept:
    """A call with nothing left out."""

    arguments: Mapping[str, Any]
    """By the contract's names. In the place of a source stands what was `Taken` of it."""
    answer: Any
    """Of a stream, what it has `Delivered`. None where the call failed."""


@dataclass(frozen=True, slots=True)
class Called:
    """A call of a store had its effect, and answered ``result`` or failed with ``error``."""

    actor: Actor | None
    """None for a call out of every operation."""
    at: UnixMicros
    """By the clock of the store."""
    name: str
    """As in `tierstore.testing.faults`: ``high_volume.point``."""
    arguments: tuple[Any, ...]
    """In the order of the contract. Instants and bodies are left out where nothing is decided by them, and payloads
    always."""
    result: Any
    error: TierstoreError | None
    kept: Kept | None = None
    """All of it, where that was asked for."""


Record = Begun | Ended | Completing | Called

_actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


def bound(effect: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """``effect`` as one that counts as the present actor's, whenever and in whatever task it is awaited."""
    actor = _actor.get()

    async def as_actor() -> T:
        token = _actor.set(actor)
        try:
            return await effect()
        finally:
            _actor.reset(token)

    return as_actor


@dataclass(slots=True)
class Recorder:
    """The trace of a run, in the making."""

    records: list[Record] = field(default_factory=list)
    keeping: bool = False
    """Whether calls are kept in full."""
    _actors: int = 0

    @contextmanager
    def operation(
        self, kind: Kind, instance: str, object_id: ObjectId | None = None, upload: Revision | None = None
    ) -> Iterator[Actor]:
        """What is called in the body, and in tasks that are begun in it, is one operation."""
        actor = self._new(kind, instance, object_id, upload)
        token = _actor.set(actor)
        answer = Answer.UNKNOWN
        try:
            yield actor
            answer = Answer.OK
        except NoSuchUpload:
            answer = Answer.REFUSED
            raise
        finally:
            _actor.reset(token)
            self.records.append(Ended(actor, answer))

    def become(self, kind: Kind, object_id: ObjectId | None = None, instance: str | None = None) -> None:
        """From now on, what the present task calls, and tasks that it begins, is another operation, without an end.

        Of the ``instance``, or of the one that the task has been at work for.
        """
        before = _actor.get()
        if instance is None:
            instance = "nobody" if before is None else before.instance
        _actor.set(self._new(kind, instance, object_id, None))

    def _new(self, kind: Kind, instance: str, object_id: ObjectId | None, upload: Revision | None) -> Actor:
        self._actors += 1
        actor = Actor(self._actors, kind, instance, object_id, upload)
        self.records.append(Begun(actor))
        return actor

    async def called(
        self, clock: Clock, name: str, arguments: tuple[Any, ...], effect: Awaitable[T], /, **all_arguments: Any
    ) -> T:
        """Await ``effect`` and record what it answered."""
        kept = None
        try:
            result = await effect
        except TierstoreError as error:
            if self.keeping:
                kept = Kept(all_arguments, None)
            self.records.append(Called(_actor.get(), clock.now(), name, arguments, None, error, kept))
            raise
        if self.keeping:
            kept = Kept(all_arguments, result)
        self.records.append(Called(_actor.get(), clock.now(), name, arguments, _without_payload(result), None, kept))
        return result

    async def called_in_passing(self, clock: Clock, name: str, effect: Awaitable[T], /, **all_arguments: Any) -> T:
        """Await ``effect``, and record what it answered only where everything is kept."""
        if not self.keeping:
            return await effect
        return await self.called(clock, name, (), effect, **all_arguments)

    def completing(self, revision: Revision) -> None:
        """Record that an assembly is being called."""
        self.records.append(Completing(_actor.get(), revision))


def recorded(stores: Stores, recorder: Recorder, clock: Clock) -> Stores:
    """``stores``, which are raw, with every call recorded. ``clock`` is the one that they look at."""
    return Stores(
        RecordingHighVolume(stores.high_volume, recorder, clock),
        RecordingLongTerm(stores.long_term, recorder, clock),
        RecordingChangeLog(stores.changelog, recorder, clock),
    )


def acting(stores: Stores, recorder: Recorder) -> Stores:
    """``stores``, with an actor of its own for each settling. Outermost: in the task of the caller."""
    return Stores(stores.high_volume, stores.long_term, ActingChangeLog(stores.changelog, recorder))


async def look(stores: Stores, recorder: Recorder) -> None:
    """Look at all that `recorded` ``stores`` hold, so that the walk compares it with the model as a whole."""
    with recorder.operation(Kind.LOOK, "the judge"):
        await stores.high_volume.scan("", None, _LISTED_MAX)
        await stores.long_term.list("", None, _LISTED_MAX)
        await stores.changelog.list(None, _LISTED_MAX)


def _without_payload(result: Any) -> Any:
    match result:
        case Row(version, content, expires):
            return Row(version, _head(content), expires) if isinstance(content, Inline) else result
        case BlobStream():
            return True
        case _:
            return result


def _head(content: Content) -> Any:
    return InlineHead(content.metadata) if isinstance(content, Inline) else content


class RecordingHighVolume(HighVolumeBackend):
    """A high-volume backend whose calls are recorded."""

    def __init__(self, inner: HighVolumeBackend, recorder: Recorder, clock: Clock) -> None:
        self._inner = inner
        self._called = recorder.called
        self._called_in_passing = recorder.called_in_passing
        self._clock = clock

    async def read(self, object_id: ObjectId) -> Row | None:
        effect = self._inner.read(object_id)
        return await self._called(self._clock, "high_volume.read", (object_id,), effect, object_id=object_id)

    async def head(self, object_id: ObjectId) -> RowHead | None:
        effect = self._inner.head(object_id)
        return await self._called(self._clock, "high_volume.head", (object_id,), effect, object_id=object_id)

    async def put_inline(self, object_id: ObjectId, content: Inline, expires: UnixMicros | None) -> TombstoneRow | None:
        effect = self._inner.put_inline(object_id, content, expires)
        every = {"object_id": object_id, "content": content, "expires": expires}
        return await self._called(self._clock, "high_volume.put_inline", (object_id,), effect, **every)

    async def delete_inline(self, object_id: ObjectId) -> TombstoneRow | None:
        effect = self._inner.delete_inline(object_id)
        return await self._called(self._clock, "high_volume.delete_inline", (object_id,), effect, object_id=object_id)

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
        effect = self._inner.compare_and_write(
            object_id, expected, content, expires, if_expired_by=if_expired_by, not_after=not_after
        )
        arguments = (object_id, expected, _head(content), if_expired_by, not_after)
        every = {"object_id": object_id, "expected": expected, "content": content, "expires": expires}
        every |= {"if_expired_by": if_expired_by, "not_after": not_after}
        return await self._called(self._clock, "high_volume.compare_and_write", arguments, effect, **every)

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        effect = self._inner.point(object_id, base, content, expires, not_after=not_after)
        arguments = (object_id, base, content, not_after)
        every = {"object_id": object_id, "base": base, "content": content, "expires": expires, "not_after": not_after}
        return await self._called(self._clock, "high_volume.point", arguments, effect, **every)

    async def bring_inline(
        self, object_id: ObjectId, expected: Version, payload: bytes, *, not_after: UnixMicros
    ) -> bool:
        effect = self._inner.bring_inline(object_id, expected, payload, not_after=not_after)
        arguments = (object_id, expected, not_after)
        every = {"object_id": object_id, "expected": expected, "payload": payload, "not_after": not_after}
        return await self._called(self._clock, "high_volume.bring_inline", arguments, effect, **every)

    async def fence(self, object_id: ObjectId) -> RowHead:
        effect = self._inner.fence(object_id)
        return await self._called(self._clock, "high_volume.fence", (object_id,), effect, object_id=object_id)

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        effect = self._inner.extend(object_id, version, expires)
        every = {"object_id": object_id, "version": version, "expires": expires}
        return await self._called(self._clock, "high_volume.extend", tuple(every.values()), effect, **every)

    async def scan(self, prefix: str, after: str | None, limit: int) -> Sequence[FoundRow]:
        effect = self._inner.scan(prefix, after, limit)
        every = {"prefix": prefix, "after": after, "limit": limit}
        return await self._called(self._clock, "high_volume.scan", tuple(every.values()), effect, **every)

    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        effect = self._inner.expired(by, limit)
        return await self._called(self._clock, "high_volume.expired", (by, limit), effect, by=by, limit=limit)

    async def remove_markers(self, before: UnixMicros, limit: int) -> int:
        effect = self._inner.remove_markers(before, limit)
        every = {"before": before, "limit": limit}
        return await self._called(self._clock, "high_volume.remove_markers", (before, limit), effect, **every)

    async def identity(self) -> UUID | None:
        return await self._called_in_passing(self._clock, "high_volume.identity", self._inner.identity())

    async def adopt(self, identity: UUID) -> UUID:
        effect = self._inner.adopt(identity)
        return await self._called_in_passing(self._clock, "high_volume.adopt", effect, identity=identity)

    async def check(self) -> None:
        await self._called_in_passing(self._clock, "high_volume.check", self._inner.check())

    async def close(self) -> None:
        await self._inner.close()


class RecordingLongTerm(LongTermBackend):
    """A long-term backend whose calls are recorded; of a stream, that it was opened."""

    def __init__(self, inner: LongTermBackend, recorder: Recorder, clock: Clock) -> None:
        self._inner = inner
        self._recorder = recorder
        self._called = recorder.called
        self._called_in_passing = recorder.called_in_passing
        self._clock = clock

    async def put(
        self,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        not_after: UnixMicros | None = None,
    ) -> BlobInfo:
        source = self._watched(source)
        effect = self._inner.put(revision, source, size, not_after=not_after)
        every = {"revision": revision, "source": source, "size": size, "not_after": not_after}
        return await self._called(self._clock, "long_term.put", (revision,), effect, **every)

    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        effect = self._get(revision, span)
        return await self._called(self._clock, "long_term.get", (revision,), effect, revision=revision, span=span)

    async def head(self, revision: Revision) -> BlobInfo | None:
        effect = self._inner.head(revision)
        return await self._called(self._clock, "long_term.head", (revision,), effect, revision=revision)

    async def delete(self, revision: Revision) -> None:
        effect = self._inner.delete(revision)
        await self._called(self._clock, "long_term.delete", (revision,), effect, revision=revision)

    async def initiate(self, revision: Revision, *, not_after: UnixMicros | None = None) -> str:
        effect = self._inner.initiate(revision, not_after=not_after)
        every = {"revision": revision, "not_after": not_after}
        return await self._called(self._clock, "long_term.initiate", (revision,), effect, **every)

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        source = self._watched(source)
        effect = self._inner.upload_part(upload, number, source, size, md5)
        every = {"upload": upload, "number": number, "source": source, "size": size, "md5": md5}
        return await self._called(self._clock, "long_term.upload_part", (upload, number), effect, **every)

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        effect = self._inner.list_parts(upload, after, limit)
        every = {"upload": upload, "after": after, "limit": limit}
        return await self._called(self._clock, "long_term.list_parts", (upload, after, limit), effect, **every)

    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        self._recorder.completing(upload.revision)
        effect = self._inner.complete(upload, parts)
        await self._called(self._clock, "long_term.complete", (upload,), effect, upload=upload, parts=parts)

    async def abort(self, upload: UploadId | Revision) -> None:
        await self._called(self._clock, "long_term.abort", (upload,), self._inner.abort(upload), upload=upload)

    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        effect = self._inner.list(prefix, after, limit)
        every = {"prefix": prefix, "after": after, "limit": limit}
        return await self._called(self._clock, "long_term.list", (prefix, after, limit), effect, **every)

    async def remove_debris(self) -> int:
        return await self._called(self._clock, "long_term.remove_debris", (), self._inner.remove_debris())

    async def identity(self) -> UUID | None:
        return await self._called_in_passing(self._clock, "long_term.identity", self._inner.identity())

    async def adopt(self, identity: UUID) -> UUID:
        effect = self._inner.adopt(identity)
        return await self._called_in_passing(self._clock, "long_term.adopt", effect, identity=identity)

    async def check(self) -> None:
        await self._called_in_passing(self._clock, "long_term.check", self._inner.check())

    async def close(self) -> None:
        await self._inner.close()

    def _watched(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        return Taken(source) if self._recorder.keeping else source

    async def _get(self, revision: Revision, span: Span | None) -> BlobStream | None:
        stream = await self._inner.get(revision, span)
        return Delivered(stream) if stream is not None and self._recorder.keeping else stream


class RecordingChangeLog(ChangeLog):
    """A change log whose calls are recorded."""

    def __init__(self, inner: ChangeLog, recorder: Recorder, clock: Clock) -> None:
        self._inner = inner
        self._called = recorder.called
        self._called_in_passing = recorder.called_in_passing
        self._clock = clock

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        effect = self._inner.record(owner, new=new, old=old, not_before=not_before)
        every = {"owner": owner, "new": new, "old": old, "not_before": not_before}
        await self._called(self._clock, "changelog.record", (owner, new, old), effect, **every)

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        effect = self._inner.record_again(owner, new=new, old=old, not_before=not_before)
        every = {"owner": owner, "new": new, "old": old, "not_before": not_before}
        return await self._called(self._clock, "changelog.record_again", (owner, new, old), effect, **every)

    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        effect = self._inner.begin_upload(revision, upload, not_before)
        every = {"revision": revision, "upload": upload, "not_before": not_before}
        await self._called(self._clock, "changelog.begin_upload", (revision,), effect, **every)

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        effect = self._inner.advance(revision, expected, upload, not_before)
        every = {"revision": revision, "expected": expected, "upload": upload, "not_before": not_before}
        return await self._called(self._clock, "changelog.advance", (revision,), effect, **every)

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        effect = self._inner.claim(revision, owner, old=old, not_before=not_before)
        every = {"revision": revision, "owner": owner, "old": old, "not_before": not_before}
        return await self._called(self._clock, "changelog.claim", (revision, owner, old), effect, **every)

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        effect = self._inner.mark_done(revision, not_before)
        every = {"revision": revision, "not_before": not_before}
        await self._called(self._clock, "changelog.mark_done", (revision,), effect, **every)

    async def forget(self, owner: UUID) -> None:
        await self._called(self._clock, "changelog.forget", (owner,), self._inner.forget(owner), owner=owner)

    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        effect = self._inner.expedite(owner, not_before)
        every = {"owner": owner, "not_before": not_before}
        await self._called(self._clock, "changelog.expedite", (owner,), effect, **every)

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        effect = self._inner.condemn(entry, lease_until)
        every = {"entry": entry, "lease_until": lease_until}
        return await self._called(self._clock, "changelog.condemn", (entry,), effect, **every)

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        effect = self._inner.resume_later(entry, not_before)
        every = {"entry": entry, "not_before": not_before}
        return await self._called(self._clock, "changelog.resume_later", (entry,), effect, **every)

    async def forget_settled(self, entry: Entry) -> bool:
        effect = self._inner.forget_settled(entry)
        return await self._called(self._clock, "changelog.forget_settled", (entry,), effect, entry=entry)

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        effect = self._inner.due(now, limit)
        return await self._called(self._clock, "changelog.due", (now, limit), effect, now=now, limit=limit)

    async def find(self, revision: Revision) -> Sequence[Entry]:
        effect = self._inner.find(revision)
        return await self._called(self._clock, "changelog.find", (revision,), effect, revision=revision)

    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        effect = self._inner.list(after, limit, uploads=uploads)
        every = {"after": after, "limit": limit, "uploads": uploads}
        return await self._called(self._clock, "changelog.list", (after, limit, uploads), effect, **every)

    async def backlog(self) -> Backlog:
        return await self._called_in_passing(self._clock, "changelog.backlog", self._inner.backlog())

    async def identity(self) -> UUID | None:
        return await self._called_in_passing(self._clock, "changelog.identity", self._inner.identity())

    async def adopt(self, identity: UUID) -> UUID:
        effect = self._inner.adopt(identity)
        return await self._called_in_passing(self._clock, "changelog.adopt", effect, identity=identity)

    async def check(self) -> None:
        await self._called_in_passing(self._clock, "changelog.check", self._inner.check())

    async def close(self) -> None:
        await self._inner.close()


_SWEEPING = frozenset({Kind.SWEEP, Kind.SETTLE, Kind.EXPIRE})
_COMPLETING = frozenset({Kind.COMPLETE, Kind.RESUME})


class ActingChangeLog(ChangeLog):
    """A change log that gives each settling an actor of its own, in the task that calls it."""

    def __init__(self, inner: ChangeLog, recorder: Recorder) -> None:
        self._inner = inner
        self._become = recorder.become

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        actor = _actor.get()
        if actor is not None and actor.kind in _SWEEPING and old is not None:  # an expired object is being settled
            self._become(Kind.EXPIRE, old.object_id)
        elif actor is not None and actor.kind in _COMPLETING and old is not None:  # completing claims, and no more
            self._become(Kind.INLINE, old.object_id)
        await self._inner.record(owner, new=new, old=old, not_before=not_before)

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        return await self._inner.record_again(owner, new=new, old=old, not_before=not_before)

    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        await self._inner.begin_upload(revision, upload, not_before)

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        return await self._inner.advance(revision, expected, upload, not_before)

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        return await self._inner.claim(revision, owner, old=old, not_before=not_before)

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        await self._inner.mark_done(revision, not_before)

    async def forget(self, owner: UUID) -> None:
        await self._inner.forget(owner)

    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        await self._inner.expedite(owner, not_before)

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        self._become(Kind.SETTLE, entry.revision.object_id)
        return await self._inner.condemn(entry, lease_until)

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        return await self._inner.resume_later(entry, not_before)

    async def forget_settled(self, entry: Entry) -> bool:
        return await self._inner.forget_settled(entry)

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        return await self._inner.due(now, limit)

    async def find(self, revision: Revision) -> Sequence[Entry]:
        return await self._inner.find(revision)

    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        return await self._inner.list(after, limit, uploads=uploads)

    async def backlog(self) -> Backlog:
        return await self._inner.backlog()

    async def identity(self) -> UUID | None:
        return await self._inner.identity()

    async def adopt(self, identity: UUID) -> UUID:
        return await self._inner.adopt(identity)

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()
