"""Multipart uploads on two tiers: an upload makes one revision, and is committed exactly once.

The revision R is fixed when the upload begins. Any number of attempts may be made to complete it: one after the other,
at the same time, from any process, and after success. They share one entry of the change log, the upload's own. Arms
of a step as in `tierstore.tiering.commit`.

Initiate, `Uploads.initiate`
    1. Record the upload's own entry, with what its object is to be. A sweeper takes it after ``upload_retention``.
         error, cancelled: an entry may be there; the sweeper finds nothing and forgets it.
    2. Begin the upload in the long-term store, in the operation's time [time].
         error: the entry is left to the sweeper, at once. cancelled: it is found after ``upload_retention``.
         not begun by ``operation_deadline``: as an error. The store itself looks at the clock when it begins it, so
         that none begins when its entry has been settled and forgotten.

Parts are the long-term store's business alone: it knows which uploads are in progress, and refuses parts of others.
Of one that it has assembled already, and that is not committed yet, the client is not told that it is gone: the entry
is open, so the upload is to be completed again.

Complete, `Uploads.complete`
    1. Read the row: the base, and X if it points to one. It points to R: done, by an earlier attempt or a faster one.
    2. Claim the upload's own entry and record (X, me, old), in one step [record-old].
         R is listed as old by somebody: it was committed and swapped out [old-check]. The entry is done: likewise.
         Either way this attempt has succeeded.
         condemned: a sweeper is settling it [condemned-check]: wait for its end and go to 1; in the end, the client is
         told to try again. It has found that R was never committed, and aborted the upload: no such upload.
         unknown: no such upload.
         error, cancelled: nothing has changed for anybody; the upload lives, and can be completed by trying again.
    3. Complete it in the long-term store, in the operation's time [time]. Its answer is not trusted, but for one: 4
       decides.
    4. Look at the blob, in the operation's time; what the store shows of it is durable.
         not there, or it is there and the store has said that this is not what the client asks for (a mistake other
         than "no such upload"): the upload has been committed meanwhile (the row points to R, R is listed as old, or
         the entry is done): success. The entry is condemned: as in 2. Otherwise the store's error if there was one: a
         client's mistake, after which the upload is as it was, or "try again". The entry stays for as long as the
         upload does.
         error: try again. Nothing is deleted that a retry needs.
       The steps 3 and 4 are not repeated once the blob has been seen: with the claim of a later round, it is there.
    5. Point the row to R, if it has not been fenced since the base was read [token], and no blob has come or gone
       meanwhile [pointer]. Inline writes and deletes that came between are overwritten. **Commit point.**
         done: 6.
         lost: go to 1, a bounded number of times and for a bounded time [time].
         error, outcome unknown: look. The row has R: done. Otherwise it may still arrive: the client is told to try
         again, and (X, me, old) is left to the sweeper, which fences the row before it deletes anything.
         cancelled, or any other error: as with an unknown outcome, without the look.
    6. Off the caller's path: mark the upload's own entry done, for ``outcome_retention``; then X as after a large put.
       Then a small object of a resumable upload, whose client cannot know that it could have been a small put, is
       brought inline (`tierstore.tiering.commit`).
         error, cancelled: the row has R; whoever swaps it out marks the entry done before the blob goes [mark-done].

A process has few attempts at one upload under way: more are told to try again before anything is done for them.

Many attempts hold R, and one whose R has been committed and overwritten meanwhile must not commit it again: so the row
tells not only which blob it points to now, but whether one came and went since the base.

Abort, `Uploads.abort`
    The upload's own entry is settled, as by a sweeper (`tierstore.tiering.settling`): only by condemning it can an
    upload be ended, and an attempt to complete that is under way either commits before, or fails cleanly. One that
    somebody else has condemned, who may have died or failed over it, is waited for, and then settled all the same.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from tierstore import telemetry
from tierstore.backends.high_volume.contract import HighVolumeBackend, RowHead, Tombstone
from tierstore.backends.long_term.contract import BlobInfo, LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Claim, Claimed, Committed, Condemned, Entry, Role, State, Unknown
from tierstore.clock import Clock
from tierstore.errors import (
    Busy,
    ClientMistake,
    CorruptObject,
    InvariantBroken,
    NoSuchUpload,
    ObjectTooLarge,
    OutcomeUnknown,
    TierstoreError,
    Unavailable,
)
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.tiering.commit import Committer
from tierstore.tiering.operations import Operation, Operations, pointed_to
from tierstore.tiering.settling import Settler
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.metadata import Metadata, deadline
from tierstore.types.metadata_storage import decode_metadata, encode_metadata
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.resumable import Progress, decode_session, encode_session, is_session
from tierstore.types.streams import Body

ENDED = "there is no such upload: it was aborted, given up, or completed long ago"
BEING_SETTLED = "the upload is being settled; try again"
Parts = Sequence[PartName] | Callable[[], Awaitable[Sequence[PartName]]]
"""The parts that an upload is completed with: as its client names them, or how to find them out."""

_ASSEMBLED = "the upload is being completed, and takes no part any more; complete it again"


class Uploads:
    """Multipart uploads of one pair of stores."""

    def __init__(
        self,
        high_volume: HighVolumeBackend,
        long_term: LongTermBackend,
        changelog: ChangeLog,
        operations: Operations,
        committer: Committer,
        settler: Settler,
        *,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._high_volume = high_volume
        self._long_term = long_term
        self._changelog = changelog
        self._operations = operations
        self._committer = committer
        self._settler = settler
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._conflicts = telemetry.commit_conflicts.labels("complete")
        self._attempts: Counter[Revision] = Counter()
        """How many are under way, of uploads that are being completed."""

    async def initiate(self, object_id: ObjectId, metadata: Metadata, session: Progress | None = None) -> UploadId:
        """Begin an upload of the object, which is to have ``metadata``. Nothing changes for its readers.

        With ``session``, its parts are the server's to make (`tierstore.tiering.resumable`).

        Raises `StorageFull`, `OutcomeUnknown` and the other `Unavailable`. A retry begins another upload; one whose
        answer was lost is aborted after ``upload_retention``.
        """
        operation = self._operations.begin()
        revision = Revision(object_id, self._ids.upload_uuid(session=session is not None))
        wanted = encode_metadata(metadata, size=0, time_created=self._clock.now())
        retention = self._operations.later(self._limits.upload_retention_seconds)
        kept = wanted if session is None else encode_session(session, wanted)
        await self._changelog.begin_upload(revision, kept, retention)
        try:
            store_id = await self._operations.in_time(
                operation, self._long_term.initiate(revision, not_after=operation.not_after)
            )
            self._operations.check_time(operation)  # a process that was paused since may find its upload settled
        except Exception:
            await self._operations.off_path("expedite", self._operations.expedite(revision.uuid))
            raise
        telemetry.uploads_begun.inc()
        return UploadId(revision, store_id)

    async def upload_part(self, upload: UploadId, number: int, body: Body, md5: bytes | None) -> Part:
        """Store ``body``, whose size is known, as part ``number``, in place of an earlier one with that number.

        Raises what ``body`` raises (then no part is stored), `ObjectTooLarge`, `ChecksumMismatch`, `NoSuchUpload`, and
        `Unavailable`. A retry is safe, and may get another ETag.
        """
        size = body.size
        if size is None:
            raise InvariantBroken("the size of a part is known beforehand")
        invariant(1 <= number <= self._limits.parts_max, "a part's number is within bounds")
        if size > self._limits.part_bytes_max:
            raise ObjectTooLarge(f"a part has at most {self._limits.part_bytes_max} bytes")
        try:
            part = await self._long_term.upload_part(upload, number, body, size, md5)
        except NoSuchUpload:
            await self._check_not_assembled(upload.revision)
            raise
        telemetry.upload_parts.inc()
        telemetry.upload_part_bytes.observe(part.size)
        return part

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        """Up to ``limit`` parts with numbers above ``after``. Raises `NoSuchUpload`, `Unavailable`. Safe to repeat."""
        try:
            return await self._long_term.list_parts(upload, after, limit)
        except NoSuchUpload:
            await self._check_not_assembled(upload.revision)
            raise

    async def _check_not_assembled(self, revision: Revision) -> None:
        """Raise `Unavailable` if an upload that the long-term store does not know can still be completed.

        The row is asked as well, for an upload whose process died right after the commit is not marked done yet.
        """
        entry = await self.own_entry(revision)
        if entry is not None and entry.state is State.OPEN and not await self._has(revision):
            raise Unavailable(_ASSEMBLED) from None

    async def complete(self, upload: UploadId, parts: Parts) -> None:
        """Make the object of the named parts, durably and visibly. Its creation and expiry count from the commit.

        Parts that have to be found out are always the same ones: of a blob that is there already, they are the parts.

        Returns as well if this upload was completed before, whatever has become of the object since. Raises
        `NoSuchUpload`; `InvalidPart`, `InvalidPartOrder`, `EntityTooSmall` and `ObjectTooLarge`, with the upload as it
        was; `Busy`, if this process has ``upload_attempts_max`` attempts at it under way; and the other `Unavailable`,
        after which trying again with the same parts is safe and useful.
        """
        with self._one_of_few(upload.revision):
            await self._attempt(upload, parts)

    @contextmanager
    def _one_of_few(self, revision: Revision) -> Iterator[None]:
        """An attempt that counts while it is under way. Raises `Busy`."""
        if self._attempts[revision] >= self._limits.upload_attempts_max:
            telemetry.upload_completes.labels("retry").inc()
            raise Busy("too many attempts to complete this upload are under way; try again")
        self._attempts[revision] += 1
        try:
            yield
        finally:
            self._attempts[revision] -= 1
            if not self._attempts[revision]:
                del self._attempts[revision]

    async def _attempt(self, upload: UploadId, parts: Parts) -> None:
        operation = self._operations.begin()
        try:
            outcome = await self._complete(operation, upload, parts)
        except BaseException as error:
            telemetry.upload_completes.labels(_outcome_of(error)).inc()
            if isinstance(error, TierstoreError) and not isinstance(error, OutcomeUnknown):  # nothing is under way
                await self._operations.off_path("clean_up", self._operations.clean_up(operation, None))
            else:
                await self._operations.off_path("expedite", self._operations.expedite(operation.owner))
            raise
        telemetry.upload_completes.labels(outcome).inc()

    async def _complete(self, operation: Operation, upload: UploadId, parts: Parts) -> str:
        revision = upload.revision
        object_id = revision.object_id
        blob: BlobInfo | None = None
        for _ in range(self._limits.commit_attempts_max):
            base = await self._high_volume.head(object_id)
            old = pointed_to(object_id, base)
            if old == revision:
                return await self._ended(operation, "repeated")
            claim = await self._claim(operation, revision, old)
            match claim:
                case Committed():
                    return await self._ended(operation, "repeated")
                case Unknown() | Condemned(swept=True):
                    return await self._no_such_upload(operation, revision)
                case Condemned():
                    raise Unavailable(BEING_SETTLED)
                case Claimed(entry):
                    if blob is None:
                        blob = await self._assemble(operation, upload, parts)
                    if blob is None:
                        return await self._ended(operation, "repeated")
                    if await self._commit(operation, base, entry, blob):
                        telemetry.upload_claims.observe(entry.epoch)
                        small = is_session(entry.upload or b"") and blob.size <= self._limits.inline_bytes_max
                        await self._operations.off_path(
                            "finish_upload", self._finish(operation, revision, old, small=small)
                        )
                        return "completed"
            self._conflicts.inc()
        raise Unavailable("too many concurrent writers of this object; try again")

    async def _ended(self, operation: Operation, outcome: str) -> str:
        """End an attempt that has succeeded without a commit of its own: what it recorded is not needed."""
        await self._operations.off_path("clean_up", self._operations.clean_up(operation, None))
        return outcome

    async def _no_such_upload(self, operation: Operation, revision: Revision) -> str:
        """The log does not know the upload. It may have been committed so long ago that only the row tells."""
        if await self.row_has(revision):
            return await self._ended(operation, "repeated")
        raise NoSuchUpload(ENDED)

    async def _claim(self, operation: Operation, revision: Revision, old: Revision | None) -> Claim:
        """Step 2, and the wait for a sweeper that is settling the upload.

        When it has waited, the row is another one (it was fenced), and so the answer is never `Claimed`.
        """
        waiting_ends = self._clock.monotonic() + self._limits.complete_wait_seconds_max
        while True:
            claim = await self._changelog.claim(
                revision, operation.owner, old=old, not_before=self._operations.grace_end()
            )
            if claim != Condemned(swept=False) or self._clock.monotonic() >= waiting_ends:
                return claim
            await self._clock.sleep(self._limits.complete_poll_seconds)

    async def _assemble(self, operation: Operation, upload: UploadId, parts: Parts) -> BlobInfo | None:
        """Steps 3 and 4. Returns the blob, or None if there is nothing to do: the upload was committed meanwhile."""
        revision = upload.revision
        answer: TierstoreError | None = None
        try:
            names = parts if isinstance(parts, Sequence) else await parts()
            await self._operations.in_time(operation, self._long_term.complete(upload, names))
        except (ClientMistake, Unavailable) as error:
            answer = error
        blob = await self._operations.in_time(operation, self._long_term.head(revision))
        refused = isinstance(answer, ClientMistake) and not isinstance(answer, NoSuchUpload)
        if blob is not None and not refused:
            return blob
        # In this order: what the row has let go of is listed as old, and then done, before its blob goes.
        if blob is not None and await self.row_has(revision):
            return None
        entries = await self._changelog.find(revision)
        entry = next((entry for entry in entries if entry.owner_is_upload), None)
        if (entry is not None and entry.state is State.DONE) or any(each.role is Role.OLD for each in entries):
            return None
        if entry is None or (entry.state is State.CONDEMNED and entry.sweeps):
            raise NoSuchUpload(ENDED)
        if entry.state is State.CONDEMNED:
            raise Unavailable(BEING_SETTLED) from answer
        raise answer or Unavailable("the long-term store has not assembled the upload yet; try again")

    async def own_entry(self, revision: Revision) -> Entry | None:
        """The upload's own entry; None if the log has none. Raises `Unavailable`."""
        for entry in await self._changelog.find(revision):
            if entry.owner_is_upload:
                return entry
        return None

    async def _commit(self, operation: Operation, base: RowHead | None, entry: Entry, blob: BlobInfo) -> bool:
        """Step 5."""
        revision = entry.revision
        created = self._clock.now()
        metadata = _wanted(entry)
        tombstone = Tombstone(encode_metadata(metadata, size=blob.size, time_created=created), revision.uuid)
        self._operations.check_time(operation)
        try:
            return await self._high_volume.point(
                revision.object_id,
                base,
                tombstone,
                deadline(metadata.expiration, created),
                not_after=operation.not_after,
            )
        except OutcomeUnknown:
            if not await self._has(revision):
                raise
            return True

    async def _has(self, revision: Revision) -> bool:
        """Whether the row points to ``revision``; False also when nobody can tell."""
        try:
            return await self.row_has(revision)
        except Unavailable:
            return False

    async def row_has(self, revision: Revision) -> bool:
        """Whether the object's row points to ``revision``. Raises `Unavailable`."""
        row = await self._high_volume.head(revision.object_id)
        return pointed_to(revision.object_id, row) == revision

    async def _finish(self, operation: Operation, revision: Revision, old: Revision | None, *, small: bool) -> None:
        """Step 6."""
        await self._changelog.mark_done(revision, self._operations.outcome_end())
        await self._operations.clean_up(operation, old)
        if small:
            await self._committer.bring_inline(revision)

    async def abort(self, upload: UploadId) -> None:
        """End the upload and remove its parts; also one that was aborted already.

        Raises `NoSuchUpload` for one that is not known, and for one that was completed: its object is not touched. On
        `Unavailable` trying again is safe, and so it is afterwards.
        """
        revision = upload.revision
        waiting_ends = self._clock.monotonic() + self._limits.complete_wait_seconds_max
        while True:
            entry = await self.own_entry(revision)
            if entry is None:
                raise NoSuchUpload(ENDED)
            if entry.state is State.DONE:
                raise NoSuchUpload("the upload was completed; delete the object to remove it")
            if entry.state is State.CONDEMNED and entry.sweeps:
                return
            late = self._clock.monotonic() >= waiting_ends
            outcome = "lost"
            # Who has condemned it may have died or failed over it, and this can be done by several.
            if entry.state is State.OPEN or late:
                outcome = await self._settler.settle(entry)
            if outcome == "deleted":
                telemetry.upload_aborts.labels("client").inc()
                return
            if outcome == "lost":  # a retry of a claim, a sweeper or another abort was faster, or is at it
                if late:
                    raise Unavailable(BEING_SETTLED)
                await self._clock.sleep(self._limits.complete_poll_seconds)


def _wanted(entry: Entry) -> Metadata:
    """What the object of the upload is to be, as its initiator said. Raises `CorruptObject`."""
    if not entry.upload:
        raise CorruptObject(f"the entry of upload {entry.revision.uuid} does not say what it is to be")
    wanted = decode_session(entry.upload)[1] if is_session(entry.upload) else entry.upload
    return decode_metadata(wanted, None).metadata


def _outcome_of(error: BaseException) -> str:
    match error:
        case NoSuchUpload():
            return "no_such_upload"
        case ClientMistake():
            return "invalid"
        case Unavailable():
            return "retry"
        case _:
            return "error"
