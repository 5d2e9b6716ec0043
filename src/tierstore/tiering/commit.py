"""The commit protocol: how a row and the blobs it may point to change together, without a shared transaction.

What each rule in brackets prevents is in ``docs/protocol.md``. R is the revision that an operation writes, X the one
that the row points to (if it is a tombstone), "the log" the change log. Arms of a step: *done*, *lost* (a race),
*error*, *cancelled* (the task ended; the process may as well have died).

Large put, `Committer.put_blob`
    1. Read the row: the base, and X.
         error, cancelled: nothing has been touched.
    2. Record (R, me, new) and (X, me, old) together [record-old].
         error, cancelled: an entry may be there; the sweeper finds nothing to delete and forgets it.
    3. Write the blob of R.
         error: if the store says that nothing will appear, delete R and forget the entries, off the caller's path;
         if it cannot say so, the entries are left to the sweeper, at once.
         cancelled: as with an error of the body: the store lets go of what it had.
         not whole by ``operation_deadline``: the write is given up, as if cancelled [time].
    4. Point the row to R, if it has not been fenced since the base was read [token] and no blob has come or gone
       meanwhile [pointer]. Inline writes and deletes that came between are overwritten. **Commit point.**
         done: 5.
         lost: read the row again, record what it points to now [record-old]; that fails if a sweeper has condemned
         (R, me, new) [revalidate], and then this write has been given up. Repeat 4, a bounded number of times: R is
         only in our hands, so of several writers the last one to finish wins.
         Given up, or error, certain that nothing happened: delete R and forget the entries, as in 3.
         error, outcome unknown: look. The row has R: done. Otherwise nobody can say whether the write still arrives:
         nothing is deleted on a guess, the caller is told to try again, the entries are left to the sweeper, which
         fences the row [fence] before it deletes anything.
         cancelled, or any other error: as with an unknown outcome, without the look.
    5. Off the caller's path: if an upload made X, mark its entry done [mark-done]; delete X; forget my entries.
         error, cancelled: the sweeper does it.

Small put and delete, `Committer.put_inline` and `Committer.delete`
    1. One blind conditional write. No tombstone there: done; that was the **commit point**.
    2. It met a tombstone X: record (X, me, old).
    3. Compare-and-write from the version seen [version-cas] to the new content (delete: `Gone` [gone-marker]).
       **Commit point.**
         done: as 5 above.
         lost: begin again with 1.
         error: the caller is told to try again; the row shows what happened, the entry is left to the sweeper.

Bringing a small blob inline, `Committer.bring_inline`, when an upload that may have made one has been committed
    1. Read the row. It does not point to R: nothing to do.
    2. Record (R, me, old) [record-old]: R is about to be replaced by its own bytes.
    3. Read the blob, all of it, which verifies it.
    4. Put its bytes in its place in the row, from the version seen [version-cas]; metadata and deadline stay as they
       are at that moment. **Commit point**, of which readers notice nothing.
         done: as 5 of a large put: the upload's entry is done [mark-done] before the blob goes.
         lost: somebody else has replaced R, or fenced the row: it stays as it is. Forget my entry.
       Any error, of 3 too, cancelled: the entry is left to the sweeper, which keeps R if the row has it, and deletes it
       if not. The object is what it was in either case.

Settling an expired object, `Committer.settle_expired`
    As a delete from the version and deadline that were seen: an extension that came first wins.

No blob appears and no compare-and-write takes effect later than ``operation_deadline`` after the operation began
[time]: the store itself looks at the clock when it writes, so that no pause and no suspended machine can come between.
`Gone` rows remember the version sequence for longer than that, so "the row never existed" cannot be mistaken, and the
sweeper keeps (R, new) for longer than that, so a blob that appears after its first visit is still in the log.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import assert_never

from tierstore import telemetry
from tierstore.backends.high_volume.contract import (
    Content,
    FoundRow,
    Gone,
    HighVolumeBackend,
    Inline,
    InlineHead,
    RowHead,
    Tombstone,
    TombstoneRow,
)
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import (
    ClientDisconnected,
    ClientMistake,
    GivenUp,
    InvariantBroken,
    OutcomeUnknown,
    StorageFull,
    Unavailable,
)
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.tiering.operations import Operation, Operations, pointed_to
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.metadata import Metadata, deadline
from tierstore.types.metadata_storage import encode_metadata
from tierstore.types.streams import Body

_NO_BLOB_APPEARS = (ClientMistake, ClientDisconnected, InvariantBroken, StorageFull, GivenUp, asyncio.CancelledError)
"""What ends a put of the long-term store with the promise that no blob appears, then or later."""


class Committer:
    """Changes rows by the protocol above."""

    def __init__(
        self,
        high_volume: HighVolumeBackend,
        long_term: LongTermBackend,
        changelog: ChangeLog,
        operations: Operations,
        *,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._high_volume = high_volume
        self._long_term = long_term
        self._changelog = changelog
        self._operations = operations
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._conflicts = {
            name: telemetry.commit_conflicts.labels(name) for name in ("put_blob", "put_inline", "delete")
        }

    async def put_blob(self, object_id: ObjectId, metadata: Metadata, body: Body) -> None:
        """Store ``body`` as a blob and commit it. Time of creation and deadline count from the commit.

        Raises what ``body`` raises, `StorageFull`, `GivenUp`, `OutcomeUnknown` and the other `Unavailable`. A retry is
        a new write, and safe.
        """
        operation = self._operations.begin()
        revision = Revision(object_id, self._ids.uuid())
        base = await self._high_volume.head(object_id)
        await self._changelog.record(
            operation.owner, new=revision, old=pointed_to(object_id, base), not_before=self._operations.grace_end()
        )
        try:
            blob = await self._operations.in_time(
                operation, self._long_term.put(revision, body, body.size, not_after=operation.not_after)
            )
        except BaseException as error:
            await self._abandon(operation, revision, certain=isinstance(error, _NO_BLOB_APPEARS))
            raise
        try:
            await self._commit_blob(operation, revision, base, metadata, blob.size)
        except BaseException as error:
            not_committed = isinstance(error, Unavailable) and not isinstance(error, OutcomeUnknown)
            await self._abandon(operation, revision, certain=not_committed)
            raise

    async def _commit_blob(
        self, operation: Operation, revision: Revision, base: RowHead | None, metadata: Metadata, size: int
    ) -> None:
        """Step 4 of a large put: point the row to the blob until that is done, lost for good, or unknown."""
        object_id = revision.object_id
        for _ in range(self._limits.commit_attempts_max):
            created = self._clock.now()
            tombstone = Tombstone(encode_metadata(metadata, size=size, time_created=created), revision.uuid)
            expires = deadline(metadata.expiration, created)
            self._operations.check_time(operation)
            try:
                committed = await self._high_volume.point(
                    object_id, base, tombstone, expires, not_after=operation.not_after
                )
            except OutcomeUnknown:
                if not await self._has(revision):
                    raise
                committed = True
            if committed:
                await self._operations.off_path(
                    "clean_up", self._operations.clean_up(operation, pointed_to(object_id, base))
                )
                return
            self._conflicts["put_blob"].inc()
            base = await self._high_volume.head(object_id)
            if not await self._changelog.record_again(
                operation.owner, new=revision, old=pointed_to(object_id, base), not_before=self._operations.grace_end()
            ):
                raise GivenUp("the write was settled as abandoned (it took long, or an operator asked); try again")
        raise Unavailable("too many concurrent writers of this object; try again")

    async def put_inline(self, object_id: ObjectId, metadata: Metadata, payload: bytes) -> None:
        """Store ``payload`` in the row. Raises `OutcomeUnknown` and the other `Unavailable`. A retry is safe."""
        created = self._clock.now()
        content = Inline(encode_metadata(metadata, size=len(payload), time_created=created), payload)
        expires = deadline(metadata.expiration, created)

        async def blindly() -> TombstoneRow | None:
            return await self._high_volume.put_inline(object_id, content, expires)

        await self._replace("put_inline", object_id, blindly, content, expires)

    async def delete(self, object_id: ObjectId) -> None:
        """Delete the object, if there is one. Raises `OutcomeUnknown` and the other `Unavailable`. A retry is safe."""

        async def blindly() -> TombstoneRow | None:
            return await self._high_volume.delete_inline(object_id)

        await self._replace("delete", object_id, blindly, Gone(), None)

    async def _replace(
        self,
        name: str,
        object_id: ObjectId,
        blindly: Callable[[], Awaitable[TombstoneRow | None]],
        content: Content,
        expires: UnixMicros | None,
    ) -> None:
        """Small put and delete: ``blindly``, and where that meets a tombstone, by compare-and-write."""
        row = await blindly()
        if row is None:
            return
        operation = self._operations.begin()
        old = pointed_to(object_id, row)
        await self._changelog.record(operation.owner, new=None, old=old, not_before=self._operations.grace_end())
        try:
            for _ in range(self._limits.commit_attempts_max):
                if await self._compare_and_write(operation, object_id, row, content, expires):
                    await self._operations.off_path("clean_up", self._operations.clean_up(operation, old))
                    return
                self._conflicts[name].inc()
                row = await blindly()
                if row is None:
                    await self._operations.off_path("clean_up", self._operations.clean_up(operation, None))
                    return
                old = pointed_to(object_id, row)
                await self._changelog.record_again(
                    operation.owner, new=None, old=old, not_before=self._operations.grace_end()
                )
            raise Unavailable("too many concurrent writers of this object; try again")
        except BaseException:
            await self._operations.off_path("expedite", self._operations.expedite(operation.owner))
            raise

    async def bring_inline(self, revision: Revision) -> bool:
        """Move the object that ``revision`` holds into its row, if it still does; readers see one object throughout.

        Returns False if it does not, or somebody else was faster. Raises `CorruptObject`, `OutcomeUnknown` and the
        other `Unavailable`; nothing is lost by that.
        """
        object_id = revision.object_id
        row = await self._high_volume.head(object_id)
        if row is None or pointed_to(object_id, row) != revision:
            return False
        operation = self._operations.begin()
        await self._changelog.record(operation.owner, new=None, old=revision, not_before=self._operations.grace_end())
        try:
            payload = await self._operations.in_time(operation, self._payload(revision))
            self._operations.check_time(operation)
            written = payload is not None and await self._high_volume.bring_inline(
                object_id, row.version, payload, not_after=operation.not_after
            )
        except BaseException:
            await self._operations.off_path("expedite", self._operations.expedite(operation.owner))
            raise
        await self._operations.clean_up(operation, revision if written else None)
        return written

    async def _payload(self, revision: Revision) -> bytes | None:
        """All bytes of a blob that is small; None if it is not there any more. Raises `CorruptObject`."""
        stream = await self._long_term.get(revision)
        if stream is None:
            return None
        try:
            invariant(stream.size <= self._limits.inline_bytes_max, "what is brought inline is small")
            return b"".join([chunk async for chunk in stream])
        finally:
            await stream.aclose()

    async def settle_expired(self, found: FoundRow, by: UnixMicros) -> bool:
        """Turn a row that had expired at ``by`` into `Gone`, and delete its blob. Returns False when it has changed.

        Raises `OutcomeUnknown` and the other `Unavailable`; what was left undone is found again by the sweeper.
        """
        object_id, row = found.object_id, found.row
        match row.content:
            case InlineHead():
                version = await self._high_volume.compare_and_write(
                    object_id, row.version, Gone(), None, if_expired_by=by
                )
                return version is not None
            case Tombstone():
                operation, old = self._operations.begin(), pointed_to(object_id, row)
                await self._changelog.record(
                    operation.owner, new=None, old=old, not_before=self._operations.grace_end()
                )
                version = await self._high_volume.compare_and_write(
                    object_id, row.version, Gone(), None, if_expired_by=by, not_after=operation.not_after
                )
                await self._operations.clean_up(operation, None if version is None else old)
                return version is not None
            case Gone():
                return False
            case _:
                assert_never(row.content)

    async def _compare_and_write(
        self,
        operation: Operation,
        object_id: ObjectId,
        base: TombstoneRow,
        content: Content,
        expires: UnixMicros | None,
    ) -> bool:
        self._operations.check_time(operation)
        version = await self._high_volume.compare_and_write(
            object_id, base.version, content, expires, not_after=operation.not_after
        )
        return version is not None

    async def _has(self, revision: Revision) -> bool:
        """Whether the row points to ``revision``; False also when nobody can tell."""
        try:
            row = await self._high_volume.head(revision.object_id)
        except Unavailable:
            return False
        return pointed_to(revision.object_id, row) == revision

    async def _discard(self, operation: Operation, revision: Revision) -> None:
        """Undo a large put of which it is certain that it was not and will not be committed."""
        await self._long_term.delete(revision)
        await self._changelog.forget(operation.owner)

    async def _abandon(self, operation: Operation, revision: Revision, *, certain: bool) -> None:
        """Let go of a large put that failed: undo it if it is certain that it cannot take effect any more."""
        if certain:
            await self._operations.off_path("discard", self._discard(operation, revision))
        else:
            await self._operations.off_path("expedite", self._operations.expedite(operation.owner))
