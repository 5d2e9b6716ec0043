"""Settling: decide from the row what becomes of a revision that is in the change log.

Safe at any time, under live operations and in any number of processes at once: it can only make an operation fail
cleanly. Whoever settles, the sweeper, a client that aborts its upload, or an operator, does it by these steps.

Settling an entry of the log (R its revision; arms as in `tierstore.tiering.commit`)
    1. Condemn it: from the state and epoch that were read, for the length of a lease.
         lost: somebody else has it. error, cancelled: nothing has happened, or it is condemned and taken again later.
         An upload's entry that is done is only forgotten, once it has been kept long enough.
    2. Fence the row: the same content with a new version, whatever it is ("none" becomes `Gone`). Every
       compare-and-write still under way that is based on an older version dies now [fence].
         error, cancelled: a fence more or less does no harm.
    3. The row points to R: the blob is kept, the entry forgotten; an upload's own entry is done.
       R is an upload, this is its own entry, and another lists R as old: it was committed, and is being swapped out:
       the other entry's business, and this one is done.
    4. Otherwise nobody can commit R any more. An upload that is to make it is aborted [abort-first], so that no blob
       can appear after this. In role old, the upload's own entry is marked done [mark-done], because R was committed.
       Then the blob is deleted.
         error, cancelled: the entry is there and condemned; it is taken again when its lease is over.
    5. Give the entry back for a second visit, which repeats all of it. If the blob has stayed away until then, the
       entry is forgotten: a store that was still finishing a write when told to delete cannot leave garbage behind.
       In role new the second visit is not before ``operation_deadline`` and half of it have passed since the entry was
       recorded, for until then a live owner may still be writing the blob that it will not be able to commit [time],
       and its clock may be behind.
"""

from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Entry, Role, State
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import CorruptObject
from tierstore.limits import Limits
from tierstore.tiering.operations import pointed_to
from tierstore.types.ids import Revision


class Settler:
    """Settles entries of one pair of stores."""

    def __init__(
        self,
        high_volume: HighVolumeBackend,
        long_term: LongTermBackend,
        changelog: ChangeLog,
        *,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._high_volume = high_volume
        self._long_term = long_term
        self._changelog = changelog
        self._limits = limits
        self._clock = clock

    async def settle(self, entry: Entry) -> str:
        """Settle one entry by the steps above, now, whatever its ``not_before``; return what became of it.

        ``lost`` (somebody else has it), ``kept`` (its blob is live), ``done`` (its upload was committed, and is
        remembered), ``deleted`` (its blob has gone; a second visit follows) or ``forgotten`` (that second visit, or an
        outcome that was remembered long enough). Raises `Unavailable`; safe to repeat.
        """
        if entry.state is State.DONE:
            return "forgotten" if await self._changelog.forget_settled(entry) else "lost"
        condemned = await self._changelog.condemn(entry, self._in(self._limits.sweep_lease_seconds))
        if condemned is None:
            return "lost"
        revision = condemned.revision
        row = await self._high_volume.fence(revision.object_id)
        if pointed_to(revision.object_id, row) == revision:
            return await self._keep(condemned)
        if condemned.owner_is_upload and await self._is_old_elsewhere(revision):
            return await self._keep(condemned)
        if condemned.owner_is_upload:  # at the second visit too: a part may have been on its way
            await self._long_term.abort(revision)
        if condemned.sweeps and not await self._is_there(revision):
            return "forgotten" if await self._changelog.forget_settled(condemned) else "lost"
        if condemned.role is Role.OLD and revision.is_upload:
            await self._changelog.mark_done(revision, self._in(self._limits.outcome_retention_seconds))
        await self._long_term.delete(revision)
        resumed = await self._changelog.resume_later(condemned, self._second_visit(condemned))
        return "deleted" if resumed else "lost"

    async def _keep(self, condemned: Entry) -> str:
        """Step 3."""
        if condemned.owner_is_upload:
            await self._changelog.mark_done(condemned.revision, self._in(self._limits.outcome_retention_seconds))
            return "done"
        await self._changelog.forget_settled(condemned)
        return "kept"

    async def _is_old_elsewhere(self, revision: Revision) -> bool:
        return any(entry.role is Role.OLD for entry in await self._changelog.find(revision))

    def _second_visit(self, entry: Entry) -> UnixMicros:
        """When nobody can be writing the blob of ``entry`` any more, and the store has had time to finish."""
        if entry.role is Role.OLD:
            return self._in(self._limits.sweep_second_visit_seconds)
        kept_until = entry.recorded + int(self._limits.new_entry_kept_seconds_min * MICROS_PER_SECOND)
        return max(self._in(self._limits.sweep_second_visit_seconds), kept_until)

    async def _is_there(self, revision: Revision) -> bool:
        try:
            return await self._long_term.head(revision) is not None
        except CorruptObject:  # something is, and it has to go
            return True

    def _in(self, seconds: float) -> UnixMicros:
        return self._clock.now() + int(seconds * MICROS_PER_SECOND)
