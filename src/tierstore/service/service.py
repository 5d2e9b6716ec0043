"""The object service: what the wire calls, once a request has been admitted.

Guarantees: a mutation that has begun, and whose payload has arrived, runs to its end even when its caller goes away (a
dropped connection, a cancelled request); one whose payload has not arrived is ended, and stores nothing. The number of
mutations is bounded, and so is that of operations of all kinds that are under way on the stores or wait for their turn
(`tierstore.service.concurrency`).
Of completions of uploads, which may wait for each other for long, only few go on without their callers, of one use case
and scopes and of all together, so that those of a client that comes and goes leave room for the completions of others,
and for everybody's writes. Of what fails without its caller, mistakes of the caller, and conflicts, are passed over.
Does not: decide who may do what (admission), or where objects live (tiering).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from typing import Any, Self, TypeVar

from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Backlog
from tierstore.errors import Busy, ClientDisconnected, ClientMistake, Conflict
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.service.concurrency import OperationKind, OperationLimiter, Turn
from tierstore.service.departures import mutation_has_begun
from tierstore.tasks import TaskOwner
from tierstore.tiering.objects import OpenObject
from tierstore.tiering.resumable import ResumableUploads
from tierstore.tiering.tiered import TieredStore
from tierstore.tiering.uploads import Uploads
from tierstore.types.expiry import ExpiryTarget
from tierstore.types.ids import ObjectId, Scope
from tierstore.types.metadata import Expiration, Metadata
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.ranges import ByteRange
from tierstore.types.resumable import Advance, SessionId
from tierstore.types.streams import Body, BodyUntilCut

T = TypeVar("T")


class ObjectService:
    """Runs operations on the tiered store and on uploads. ``mutations`` owns those that must outlive their callers."""

    def __init__(
        self,
        store: TieredStore,
        uploads: Uploads,
        resumable: ResumableUploads,
        high_volume: HighVolumeBackend,
        long_term: LongTermBackend,
        changelog: ChangeLog,
        *,
        limits: Limits,
        ids: IdSource,
        mutations: TaskOwner,
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._resumable = resumable
        self._high_volume = high_volume
        self._long_term = long_term
        self._changelog = changelog
        self._limits = limits
        self._ids = ids
        self._mutations = mutations
        self._operations = OperationLimiter(limits)
        self._kind = OperationKind.SINGLE
        self._left_completions: Counter[tuple[str, tuple[Scope, ...]]] = Counter()
        """How many completions of uploads go on without their callers, by use case and scopes."""

    def new_key(self) -> str:
        """A key for an object whose client gave none: unique, URL-safe, 36 characters."""
        return str(self._ids.uuid())

    @property
    def bulk_operations_max(self) -> int:
        """How many operations in bulk may be under way at once."""
        return self._operations.bulk_running_max

    def in_bulk(self) -> Self:
        """The same service for operations that come in bulk: their turns are of that share."""
        bulk = copy(self)
        bulk._kind = OperationKind.BULK  # noqa: SLF001  # because it is another one of the same class
        return bulk

    async def put(self, object_id: ObjectId, metadata: Metadata, body: Body) -> Tier:
        """Insert or replace an object; return where it went once it is durable and visible to every reader.

        Raises what ``body`` raises (nothing is stored), `Busy`, `StorageFull`, `OutcomeUnknown` and the other
        `Unavailable`. Safe to repeat.
        """
        return await self._to_completion(
            "put", lambda turn: self._store.put(object_id, metadata, turn.body(body)), body
        )

    async def get(self, object_id: ObjectId, byte_range: ByteRange | None) -> OpenObject:
        """Open an object, or the bytes of it that ``byte_range`` selects; the caller reads or closes the payload.

        Raises `ObjectNotFound`, `RangeNotSatisfiable`, `CorruptObject`, `Busy`, `Unavailable`. Safe to repeat.
        """
        turn = await self._operations.turn(self._kind)
        try:
            return await self._store.get(object_id, byte_range)
        finally:
            turn.end()

    async def head(self, object_id: ObjectId) -> FoundObject:
        """What is known of an object, without its payload. Raises `ObjectNotFound`, `Unavailable`. Safe to repeat."""
        turn = await self._operations.turn(self._kind)
        try:
            return await self._store.head(object_id)
        finally:
            turn.end()

    async def delete(self, object_id: ObjectId) -> None:
        """Delete an object, if there is one. Raises `Busy`, `Unavailable`. Safe to repeat."""
        await self._to_completion("delete", lambda _: self._store.delete(object_id))

    async def extend_expiry(
        self, object_id: ObjectId, target: ExpiryTarget, permit: Callable[[Expiration], None]
    ) -> Tier:
        """Let an object live until ``target``, never less long than now, if ``permit`` raises nothing against it.

        Raises `ObjectNotFound`, `Conflict`, `InvalidRequest`, `Busy`, `OutcomeUnknown` and the other `Unavailable`.
        Safe to repeat.
        """
        return await self._to_completion(
            "extend_expiry", lambda _: self._store.extend_expiry(object_id, target, permit)
        )

    async def initiate_upload(self, object_id: ObjectId, metadata: Metadata) -> UploadId:
        """Begin a multipart upload of an object, which is to have ``metadata``; readers see nothing of it.

        Raises `Busy`, `StorageFull`, `OutcomeUnknown` and the other `Unavailable`. A retry begins another upload.
        """
        return await self._to_completion("initiate_upload", lambda _: self._uploads.initiate(object_id, metadata))

    async def upload_part(self, upload: UploadId, number: int, body: Body, md5: bytes | None) -> Part:
        """Store ``body``, whose size is known, as part ``number``; return it once it is durable.

        Raises what ``body`` raises, `ChecksumMismatch`, `ObjectTooLarge`, `StorageFull` (no part is stored),
        `NoSuchUpload`, `Busy`, and the other `Unavailable`. Safe to repeat.
        """
        return await self._to_completion(
            "upload_part", lambda turn: self._uploads.upload_part(upload, number, turn.body(body), md5), body
        )

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        """Up to ``limit`` parts with numbers above ``after``. Raises `NoSuchUpload`, `Unavailable`. Safe to repeat."""
        turn = await self._operations.turn()
        try:
            return await self._uploads.list_parts(upload, after, limit)
        finally:
            turn.end()

    async def complete_upload(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        """Make the object of the named parts; return once it is durable and visible, or has been, by this upload.

        Raises `NoSuchUpload`, `InvalidPart`, `InvalidPartOrder`, `EntityTooSmall`, `ObjectTooLarge`, `Busy` and the
        other `Unavailable`. Safe to repeat.
        """
        await self._to_completion(
            "complete_upload",
            lambda _: self._uploads.complete(upload, parts),
            kind=OperationKind.BULK,  # it may take long
            left=self._left_completion(upload.revision.object_id),
        )

    def _left_completion(self, object_id: ObjectId) -> Callable[[asyncio.Task[Any]], None]:
        """What counts a completion that goes on without its caller. Raises `Busy` when there are too many already."""
        owner = object_id.usecase, object_id.scopes
        if (
            self._left_completions[owner] >= self._limits.left_completions_max
            or self._left_completions.total() >= self._limits.left_completions_total_max
        ):
            raise Busy("too many uploads are being completed for callers that have gone; try again")

        def left(task: asyncio.Task[Any]) -> None:
            self._left_completions[owner] += 1
            task.add_done_callback(lambda _: self._left_ended(owner))

        return left

    def _left_ended(self, owner: tuple[str, tuple[Scope, ...]]) -> None:
        self._left_completions[owner] -= 1
        if not self._left_completions[owner]:
            del self._left_completions[owner]

    async def abort_upload(self, upload: UploadId) -> None:
        """End an upload and remove its parts. Raises `NoSuchUpload`, `Busy` and the other `Unavailable`.

        Safe to repeat.
        """
        await self._to_completion("abort_upload", lambda _: self._uploads.abort(upload))

    async def create_session(self, object_id: ObjectId, metadata: Metadata, length: int) -> SessionId:
        """Begin a resumable upload of an object of ``length`` bytes; readers see nothing of it.

        Raises `NotOffered`, `ObjectTooLarge`, `Busy`, `StorageFull`, `OutcomeUnknown` and the other `Unavailable`. A
        retry begins another one.
        """
        return await self._to_completion(
            "create_session", lambda _: self._resumable.create(object_id, metadata, length)
        )

    def granularity(self, length: int) -> int:
        """The fewest bytes of a piece of a resumable upload of ``length`` bytes, but for the last; 0 if any will do."""
        return self._resumable.granularity(length)

    async def append(self, session: SessionId, offset: int, body: Body) -> Advance:
        """Store ``body``, whose size is known, from ``offset`` of a resumable upload on; the last byte commits it.

        Of a body whose sender goes away or is too slow, what has come is stored as far as the store can, and then its
        error is raised: `IncompleteBody`, `ClientDisconnected` or `RequestTimeout`. Else as `ResumableUploads.append`,
        and `Busy`. Safe to repeat.
        """
        sent = BodyUntilCut(body)
        advance: Advance = await self._to_completion(
            "append",
            lambda turn: self._resumable.append(session, offset, turn.body(sent)),
            sent,
            left=self._left_completion(session.upload.revision.object_id),
        )
        if sent.error is not None:
            raise sent.error
        return advance

    async def query_session(self, session: SessionId) -> Advance:
        """What has become of a resumable upload; one that has all its bytes is committed.

        Raises `NoSuchUpload`, `Busy` and the other `Unavailable`. Safe to repeat.
        """
        return await self._to_completion(
            "query_session",
            lambda _: self._resumable.query(session),
            left=self._left_completion(session.upload.revision.object_id),
        )

    async def cancel_session(self, session: SessionId) -> None:
        """End a resumable upload and remove its bytes. Raises `NoSuchUpload`, `Busy` and the other `Unavailable`.

        Safe to repeat.
        """
        await self._to_completion("cancel_session", lambda _: self._resumable.cancel(session))

    async def check(self) -> None:
        """Raise `Unavailable` unless all stores answer."""
        await self._high_volume.check()
        await self._changelog.check()
        await self._long_term.check()

    async def backlog(self) -> Backlog:
        """How much is in the change log. Raises `Unavailable`."""
        return await self._changelog.backlog()

    async def _to_completion(
        self,
        name: str,
        work: Callable[[Turn], Coroutine[Any, Any, T]],
        body: Body | None = None,
        *,
        kind: OperationKind | None = None,
        left: Callable[[asyncio.Task[T]], None] = lambda _: None,
    ) -> T:
        """The result of ``work``. If its caller goes away once the body has come, it goes on, and ``left`` is told."""
        turn = await self._operations.turn(kind or self._kind)
        if self._mutations.full_besides(self._operations.with_clients):
            turn.end()
            raise Busy("too many writes are under way; try again")
        task = self._mutations.run(name, work(turn))
        task.add_done_callback(lambda _: turn.end())
        mutation_has_begun(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if body is not None and not body.complete:
                task.cancel()
            self._mutations.disown(task, ClientMistake, ClientDisconnected, Conflict)
            left(task)
            raise
