"""The tiered store: one object store over a high-volume and a long-term one.

Guarantees (proved by the tests that `docs/consistency.md` lists): an acknowledged write is visible to every later read
until another write, a delete or its expiry; readers see whole objects, old or new; an expired object is seen by nobody.
Writes follow `tierstore.tiering.commit`. Does not decide who may do what, nor keep running when its caller is
cancelled (the service does).

Read
    1. Read the row: absent, `Gone` or past its deadline: not found. Inline: that is the object.
    2. Tombstone(R): open the blob of R.
    3. No blob: read the row again. It points to another revision, or to none: follow it. It still points to R: a lost
       blob, since a revision is committed at most once and deleted only after the row has let go of it. It is counted,
       logged and not found. So an overwrite during a read never looks like an absence.

    A row that is past its deadline may have an extension on its way: begun in time, and not visible yet, since to
    commit takes a store some time. So before a read, or an extension, says "not found" of a row whose deadline has just
    passed, it asks the store to extend it to the deadline that it has. That changes nothing, and what was under way is
    done when it returns; then it reads once more. So nobody sees an object vanish and come back.

Extension of an expiry, `TieredStore.extend_expiry`
    1. Read the row: absent, `Gone` or past its deadline: not found. No deadline: a conflict, for good.
         error, cancelled: nothing has been touched.
    2. The target is at or before the deadline: done, and nothing has changed.
    3. Move the deadline, if the row has still this version, and the deadline has not come by the store's own clock.
       **Commit point.** Version and content stay, so no write that is under way is disturbed.
         done: that was all; there is nothing to clean up.
         lost: read the row again. Another content: conflict. The same one, and only fenced or extended by others: 2.
         Neither: the deadline has come: not found.
         error, outcome unknown: look. The deadline is at the target or later: done. Otherwise the caller is told to try
         again, which is safe at any time: an extension never shortens, and one that arrives late finds its version or
         does nothing.
         cancelled: as with an unknown outcome, without the look.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar, assert_never

import structlog

from tierstore import telemetry
from tierstore.backends.high_volume.contract import (
    Gone,
    HighVolumeBackend,
    Inline,
    Row,
    RowHead,
    Tombstone,
)
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import (
    Conflict,
    CorruptObject,
    InvalidRequest,
    ObjectNotFound,
    OutcomeUnknown,
    TierstoreError,
    Unavailable,
)
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.tiering.commit import Committer
from tierstore.tiering.objects import OpenObject
from tierstore.types.durations import format_duration
from tierstore.types.expiry import ExpiryTarget, expiration_until, resolve_target
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.metadata import Expiration, Manual, Metadata, ObjectInfo, TimeToIdle
from tierstore.types.metadata_storage import decode_metadata
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.ranges import ByteRange, Span, resolve
from tierstore.types.streams import Body

log = structlog.get_logger(__name__)

AnyRow = TypeVar("AnyRow", Row, RowHead)


class TieredStore:
    """Objects over two tiers. ``cleanup`` owns deadline bumps, as it owns the committer's work off the path."""

    def __init__(
        self,
        high_volume: HighVolumeBackend,
        long_term: LongTermBackend,
        committer: Committer,
        *,
        limits: Limits,
        clock: Clock,
        cleanup: TaskOwner,
    ) -> None:
        self._high_volume = high_volume
        self._long_term = long_term
        self._committer = committer
        self._limits = limits
        self._clock = clock
        self._cleanup = cleanup
        self._settled_micros = int(limits.extension_settled_seconds * MICROS_PER_SECOND)
        self._extending: set[ObjectId] = set()
        """Objects whose deadline is being moved: accesses at the same time need not do it too."""

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        """Insert or replace the object; return where it went once it is durable and visible.

        Buffers at most ``inline_bytes_max`` of a body of unknown length, to choose the tier. Raises what ``body``
        raises (then nothing is stored) and `Unavailable`; a retry is a new write, and safe.
        """
        inline_max = self._limits.inline_bytes_max
        if body.size is not None and body.size > inline_max:
            await self._committer.put_blob(object_id, metadata, body)
            return Tier.LONG_TERM
        head = bytearray()
        async for chunk in body:
            if body.complete and not head and len(chunk) <= inline_max:  # the whole body in one piece: no copy
                await self._committer.put_inline(object_id, metadata, chunk)
                return Tier.HIGH_VOLUME
            head += chunk
            if len(head) > inline_max:
                await self._committer.put_blob(object_id, metadata, _Resumed(bytes(head), body))
                return Tier.LONG_TERM
        await self._committer.put_inline(object_id, metadata, bytes(head))
        return Tier.HIGH_VOLUME

    async def get(self, object_id: ObjectId, byte_range: ByteRange | None) -> OpenObject:
        """Open the object, or the bytes of it that ``byte_range`` selects. An access: moves a tti deadline.

        Raises `ObjectNotFound`, `RangeNotSatisfiable`, `CorruptObject` and `Unavailable`. Safe to repeat.
        """
        row, info = await self._visible(object_id, self._high_volume.read)
        for _ in range(self._limits.read_attempts_max):
            span = None if byte_range is None else resolve(byte_range, info.size)
            match row.content:
                case Inline(_, payload):
                    found = _open_inline(info, span, payload)
                case Tombstone(_, uuid):
                    revision = Revision(object_id, uuid)
                    opened = await self._open_blob(revision, info, span)
                    if opened is None:
                        row, info = await self._follow(revision)
                        continue
                    found = opened
                case Gone():
                    raise ObjectNotFound("no such object")
                case _:
                    assert_never(row.content)
            self._touch(object_id, row, info)
            return found
        raise Unavailable("the object is being overwritten faster than it can be read; try again")

    async def head(self, object_id: ObjectId) -> FoundObject:
        """What is known of the object, from one read of the high-volume store. An access: moves a tti deadline.

        Raises `ObjectNotFound` and `Unavailable`. Safe to repeat.
        """
        row, info = await self._visible(object_id, self._high_volume.head)
        self._touch(object_id, row, info)
        return FoundObject(info, _tier_of(row))

    async def delete(self, object_id: ObjectId) -> None:
        """Delete the object; absent is fine. Raises `Unavailable`; a retry is safe."""
        await self._committer.delete(object_id)

    async def extend_expiry(
        self, object_id: ObjectId, target: ExpiryTarget, permit: Callable[[Expiration], None]
    ) -> Tier:
        """Move the deadline of the object to ``target``, unless it lies there or later already; return where it lives.

        ``permit`` is asked before anything changes, with the expiration that the object would have to have been
        inserted with, and raises what it has against it. Raises `ObjectNotFound`, `Conflict` for an object that does
        not expire or was replaced meanwhile, `InvalidRequest` beyond ``limits.duration_seconds_max``, `OutcomeUnknown`
        and the other `Unavailable`. A retry is safe; after one that succeeded it finds the deadline where it is to be.
        """
        now = self._clock.now()
        seen: RowHead | None = None
        for _ in range(self._limits.read_attempts_max):
            row, info = await self._visible(object_id, self._high_volume.head)
            if seen is not None and not _is_same(row, seen):
                raise Conflict("the object was replaced while its expiry was being extended")
            if info.time_expires is None:
                raise Conflict("the object does not expire, so there is nothing to extend")
            deadline = resolve_target(target, created=info.time_created, now=now)
            if deadline <= info.time_expires:
                return _tier_of(row)
            if seen is None:
                expiration = expiration_until(
                    info.metadata.expiration, deadline, created=info.time_created, now=self._clock.now()
                )
                self._check_bound(expiration)
                permit(expiration)
            elif (row.version, row.expires) == (seen.version, seen.expires):  # so it has expired by the store's clock
                raise ObjectNotFound("no such object")
            seen = row
            if await self._move_deadline(object_id, row, deadline):
                return _tier_of(row)
        raise Unavailable("the object is being changed faster than its expiry can be extended; try again")

    def _check_bound(self, expiration: Expiration) -> None:
        """Raise `InvalidRequest` for a lifetime that no object can be inserted with."""
        seconds_max = self._limits.duration_seconds_max
        if not isinstance(expiration, Manual) and expiration.seconds > seconds_max:
            raise InvalidRequest(f"an object can be told to live for at most {format_duration(seconds_max)}")

    async def _move_deadline(self, object_id: ObjectId, row: RowHead, deadline: UnixMicros) -> bool:
        """Step 3 of an extension; False if it was lost. Raises `OutcomeUnknown` and the other `Unavailable`."""
        try:
            return await self._high_volume.extend(object_id, row.version, deadline)
        except OutcomeUnknown:
            if not await self._lives_until(object_id, row, deadline):
                raise
            return True

    async def _lives_until(self, object_id: ObjectId, seen: RowHead, deadline: UnixMicros) -> bool:
        """Whether the content that was seen has that deadline, or a later one; False also when nobody can tell."""
        try:
            row = await self._high_volume.head(object_id)
        except Unavailable:
            return False
        return row is not None and _is_same(row, seen) and row.expires is not None and deadline <= row.expires

    async def _visible(
        self, object_id: ObjectId, read: Callable[[ObjectId], Awaitable[AnyRow | None]]
    ) -> tuple[AnyRow, ObjectInfo]:
        """The row and its metadata, by ``read``, if readers may see it now; else `ObjectNotFound`.

        Raises what ``read`` raises, and `Unavailable` if it cannot be told whether an extension is on its way.
        """
        expired = None
        for _ in range(self._limits.read_attempts_max):
            row = await read(object_id)
            if row is None or isinstance(row.content, Gone):
                raise ObjectNotFound("no such object")
            if row.expires is None or (past := self._clock.now() - row.expires) < 0:
                return row, decode_metadata(row.content.metadata, row.expires)
            if past >= self._settled_micros or expired == (row.version, row.expires):
                raise ObjectNotFound("no such object")
            expired = row.version, row.expires
            await self._high_volume.extend(object_id, row.version, row.expires)
        raise Unavailable("the object is being changed faster than it can be read; try again")

    async def _open_blob(self, revision: Revision, info: ObjectInfo, span: Span | None) -> OpenObject | None:
        stream = await self._long_term.get(revision, span)
        if stream is None:
            return None
        if stream.size != info.size:
            await stream.aclose()
            telemetry.corrupt_reads.labels(Tier.LONG_TERM.value).inc()
            raise CorruptObject(f"{revision.uuid}: the blob has {stream.size} bytes, its tombstone says {info.size}")
        return OpenObject(info, Tier.LONG_TERM, span, stream)

    async def _follow(self, missing: Revision) -> tuple[Row, ObjectInfo]:
        """Step 3 of a read: the row as it is now, after the blob that it pointed to was not there."""
        object_id = missing.object_id
        # The blob may have gone because the object has expired or was deleted: then it is not found.
        row, info = await self._visible(object_id, self._high_volume.read)
        if isinstance(row.content, Tombstone) and row.content.revision == missing.uuid:
            telemetry.dangling_tombstones.inc()
            log.error(
                "lost blob: a tombstone points to nothing",
                object=object_id.storage_path,
                revision=str(missing.uuid),
                version=row.version.hex(),
            )
            raise ObjectNotFound("no such object")
        return row, info

    def _touch(self, object_id: ObjectId, row: Row | RowHead, info: ObjectInfo) -> None:
        """Move the deadline of a tti object, off the path, when it has become stale enough."""
        expiration = info.metadata.expiration
        if not isinstance(expiration, TimeToIdle) or info.time_expires is None:
            return
        fresh = self._clock.now() + expiration.seconds * MICROS_PER_SECOND
        stale_max = min(expiration.seconds / 4, self._limits.tti_debounce_seconds_max) * MICROS_PER_SECOND
        if fresh - info.time_expires <= stale_max:
            return
        if object_id in self._extending:  # by an access a moment ago
            return
        if self._cleanup.full:
            telemetry.deadline_bumps.labels("skipped").inc()
            return
        self._extending.add(object_id)
        self._cleanup.spawn("extend", self._extend(object_id, row, fresh))

    async def _extend(self, object_id: ObjectId, seen: Row | RowHead, expires: UnixMicros) -> None:
        """Move the deadline; once more if only a sweeper's fence has come between."""
        try:
            moved = await self._high_volume.extend(object_id, seen.version, expires)
            if not moved:
                row = await self._high_volume.head(object_id)
                if row is not None and row.version != seen.version and _is_same(row, seen):
                    moved = await self._high_volume.extend(object_id, row.version, expires)
        except TierstoreError:
            telemetry.deadline_bumps.labels("failed").inc()
            raise
        finally:
            self._extending.discard(object_id)
        telemetry.deadline_bumps.labels("moved" if moved else "lost").inc()


def _tier_of(row: RowHead) -> Tier:
    return Tier.LONG_TERM if isinstance(row.content, Tombstone) else Tier.HIGH_VOLUME


def _is_same(row: RowHead, seen: Row | RowHead) -> bool:
    """Whether two looks at a row saw one write of content, whatever their versions: its metadata has its time."""
    if isinstance(row.content, Gone) or isinstance(seen.content, Gone):
        return False
    return row.content.metadata == seen.content.metadata  # whatever the tier: a small blob may have been brought inline


def _open_inline(info: ObjectInfo, span: Span | None, payload: bytes) -> OpenObject:
    if len(payload) != info.size:
        telemetry.corrupt_reads.labels(Tier.HIGH_VOLUME.value).inc()
        raise CorruptObject(f"the row has {len(payload)} bytes of payload, its metadata says {info.size}")
    return OpenObject(info, Tier.HIGH_VOLUME, span, payload if span is None else payload[span.start : span.stop])


class _Resumed(Body):
    """A body whose beginning has been read already."""

    def __init__(self, head: bytes, body: Body) -> None:
        self.size = body.size
        self._head = head
        self._body = body

    async def __anext__(self) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        try:
            return await anext(self._body)
        finally:
            self.complete = self._body.complete
