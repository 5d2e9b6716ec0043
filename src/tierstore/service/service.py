"""The object service: what the wire calls, once a request has been admitted.

Guarantees: a mutation that has begun, and whose payload has arrived, runs to its end even when its caller goes away (a
dropped connection, a cancelled request); one whose payload has not arrived is ended, and stores nothing. The number of
mutations is bounded, and so is that of operations of all kinds that are under way on the stores or wait for their turn
(`tierstore.service.concurrency`).
Of completions of uploads, which may wait for each other for long, only few go on without their callers, of one use case
and scopes and of all together, so that those of a client that comes and goes leave room for the completions of others,
and for everybody's writes. Of what fails without its caller, mistakes of the caller are passed over.
Does not: decide who may do what (admission), or where objects live (tiering).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Backlog
from tierstore.errors import Busy, ClientDisconnected, ClientMistake
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.service.concurrency import OperationKind, OperationLimiter, Turn
from tierstore.service.departures import mutation_has_begun
from tierstore.tasks import TaskOwner
from tierstore.tiering.objects import OpenObject
from tierstore.tiering.tiered import TieredStore
from tierstore.tiering.uploads import Uploads
from tierstore.types.ids import ObjectId, Scope
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.objects import FoundObject, Tier
from tierstore.types.ranges import ByteRange
from tierstore.types.streams import Body

T = TypeVar("T")


class ObjectService:
    """Runs operations on the tiered store and on uploads. ``mutations`` owns those that must outlive their callers."""

    def __init__(
        self,
        store: TieredStore,
        uploads: Uploads,
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
        self._high_volume = high_volume
        self._long_term = long_term
        self._changelog = changelog
        self._limits = limits
        self._ids = ids
        self._mutations = mutations
        self._operations = OperationLimiter(limits)
        self._left_completions: Counter[tuple[str, tuple[Scope, ...]]] = Counter()
        """How many completions of uploads go on without their callers, by use case and scopes."""

    def new_key(self) -> str:
        """A key for an object whose client gave none: unique, URL-safe, 36 characters."""
        return str(self._ids.uuid())

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
        turn = await self._operations.turn()
        try:
            return await self._store.get(object_id, byte_range)
        finally:
            turn.end()

    async def head(self, object_id: ObjectId) -> FoundObject:
        """What is known of an object, without its payload. Raises `ObjectNotFound`, `Unavailable`. Safe to repeat."""
        turn = await self._operations.turn()
        try:
            return await self._store.head(object_id)
        finally:
            turn.end()

    async def delete(self, object_id: ObjectId) -> None:
        """Delete an object, if there is one. Raises `Busy`, `Unavailable`. Safe to repeat."""
        await self._to_completion("delete", lambda _: self._store.delete(object_id))

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
        object_id = upload.revision.object_id
        owner = object_id.usecase, object_id.scopes
        if (
            self._left_completions[owner] >= self._limits.left_completions_max
            or self._left_completions.total() >= self._limits.left_completions_total_max
        ):
            raise Busy("too many uploads are being completed for callers that have gone; try again")

        def left(task: asyncio.Task[None]) -> None:
            self._left_completions[owner] += 1
            task.add_done_callback(lambda _: self._left_ended(owner))

        await self._to_completion(
            "complete_upload",
            lambda _: self._uploads.complete(upload, parts),
            kind=OperationKind.BULK,  # it may take long
            left=left,
        )

    def _left_ended(self, owner: tuple[str, tuple[Scope, ...]]) -> None:
        self._left_completions[owner] -= 1
        if not self._left_completions[owner]:
            del self._left_completions[owner]

    async def abort_upload(self, upload: UploadId) -> None:
        """End an upload and remove its parts. Raises `NoSuchUpload`, `Busy` and the other `Unavailable`.

        Safe to repeat.
        """
        await self._to_completion("abort_upload", lambda _: self._uploads.abort(upload))

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
        kind: OperationKind = OperationKind.SINGLE,
        left: Callable[[asyncio.Task[T]], None] = lambda _: None,
    ) -> T:
        """The result of ``work``. If its caller goes away once the body has come, it goes on, and ``left`` is told."""
        turn = await self._operations.turn(kind)
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
            self._mutations.disown(task, ClientMistake, ClientDisconnected)
            left(task)
            raise
