"""The sweeper: settles what crashes, given-up writes and the clock have left.

It may run under live operations and in any number of processes at once: it can only make an operation fail cleanly,
never make one lose what it has acknowledged. When it comes is a matter of politeness. Its work is bounded, may stop
anywhere, and begins again.

Settling an entry of the log whose ``not_before`` has passed (R its revision; arms as in `tierstore.tiering.commit`)
    1. Condemn it: from the state and epoch that were read, for the length of a lease.
         lost: somebody else has it. error, cancelled: nothing has happened, or it is condemned and taken again later.
    2. Fence the row: the same content with a new version, whatever it is ("none" becomes `Gone`). Every
       compare-and-write still under way that is based on an older version dies now [fence].
         error, cancelled: a fence more or less does no harm.
    3. The row points to R: the blob is kept, the entry forgotten.
    4. Otherwise nobody can commit R any more: delete its blob.
         error, cancelled: the entry is there and condemned; it is taken again when its lease is over.
    5. Give the entry back for a second visit, which repeats all of it. If the blob has stayed away until then, the
       entry is forgotten: a store that was still finishing a write when told to delete cannot leave garbage behind.
       In role new the second visit is not before ``operation_deadline`` has passed since the entry was recorded, for
       until then a live owner may still be writing the blob that it will not be able to commit [time].

Besides: expired objects are settled like deletes, markers are removed when they have been kept long enough, and the
long-term store removes the debris of crashed writers.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from tierstore import telemetry
from tierstore.backends.high_volume.contract import FoundRow, HighVolumeBackend
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Entry, Role
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import CorruptObject
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.tasks import for_each
from tierstore.tiering.commit import Committer, pointed_to
from tierstore.types.ids import Revision

log = structlog.get_logger(__name__)

Item = TypeVar("Item")


class Sweeper:
    """Settles entries, expired objects, markers and debris of one pair of stores."""

    def __init__(
        self,
        high_volume: HighVolumeBackend,
        long_term: LongTermBackend,
        changelog: ChangeLog,
        committer: Committer,
        *,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._high_volume = high_volume
        self._long_term = long_term
        self._changelog = changelog
        self._committer = committer
        self._limits = limits
        self._clock = clock
        self._ids = ids

    async def run(self, period_seconds: float) -> None:
        """Sweep soon and then every ``period_seconds`` (spread by up to a fifth), until cancelled.

        The first run begins after up to a second, so that the sweepers of several processes do not begin with the same
        items. A run that fails is logged and counted; the next one begins where it stopped.
        """
        await self._clock.sleep(self._ids.jitter())
        while True:
            try:
                await self.run_once()
            except Exception:
                telemetry.sweep_runs.labels("failed").inc()
                log.exception("sweep failed; it will be tried again")
            await self._clock.sleep(period_seconds * (0.9 + 0.2 * self._ids.jitter()))

    async def run_once(self) -> Counter[str]:
        """Settle everything that is due now; return how many of what.

        An item that fails is logged, counted as ``error`` and left for a later run. A step that fails (a store that
        cannot be listed) does not keep the others from running; an `ExceptionGroup` with what they raised comes last.
        """
        begun = self._clock.monotonic()
        results: Counter[str] = Counter()
        failures: list[Exception] = []
        for step in (self._sweep_entries, self._sweep_expired, self._remove_markers, self._remove_debris):
            try:
                await step(results)
            except Exception as error:  # noqa: BLE001  # because one step must not keep the sweeper from the others
                failures.append(error)
        for result, count in results.items():
            telemetry.sweep_results.labels(result).inc(count)
        seconds = self._clock.monotonic() - begun
        telemetry.sweep_seconds.observe(seconds)
        log.log(logging.INFO if results else logging.DEBUG, "sweep", seconds=round(seconds, 3), **results)
        if failures:
            raise ExceptionGroup("steps of a sweep failed", failures)
        telemetry.sweep_runs.labels("ok").inc()
        return results

    async def _sweep_entries(self, results: Counter[str]) -> None:
        await self._in_batches(self._due, self._settle_entry, results)

    async def _sweep_expired(self, results: Counter[str]) -> None:
        await self._in_batches(self._expired, self._settle_expired, results)

    async def _remove_debris(self, results: Counter[str]) -> None:
        if removed := await self._long_term.remove_debris():
            results["debris_removed"] += removed

    async def _in_batches(
        self,
        listing: Callable[[], Awaitable[Sequence[Item]]],
        settle: Callable[[Item], Awaitable[str]],
        results: Counter[str],
    ) -> None:
        """Settle what ``listing`` finds, batch after batch, while there is more and it gets less."""
        for _ in range(self._limits.sweep_batches_max):
            batch = await listing()
            outcomes = Counter(await for_each(batch, settle, at_once=self._limits.sweep_concurrency))
            results.update(outcomes)
            progress = outcomes.total() - outcomes["error"] - outcomes["lost"]
            if len(batch) < self._limits.sweep_batch or not progress:
                return

    async def _due(self) -> Sequence[Entry]:
        return await self._changelog.due(self._clock.now(), self._limits.sweep_batch)

    async def _settle_entry(self, entry: Entry) -> str:
        try:
            return await self.settle(entry)
        except Exception:  # one bad entry must not keep the sweeper from the others
            log.exception("entry could not be settled", revision=entry.revision.storage_path)
            return "error"

    async def settle(self, entry: Entry) -> str:
        """Settle one entry by the steps above, now, whatever its ``not_before``; return what became of it.

        ``lost`` (somebody else has it), ``kept`` (its blob is live), ``deleted`` (its blob has gone; a second visit
        follows) or ``forgotten`` (that second visit). Raises `Unavailable`; safe to repeat.
        """
        condemned = await self._changelog.condemn(entry, self._in(self._limits.sweep_lease_seconds))
        if condemned is None:
            return "lost"
        revision = condemned.revision
        row = await self._high_volume.fence(revision.object_id)
        if pointed_to(revision.object_id, row) == revision:
            await self._changelog.forget_condemned(condemned)
            return "kept"
        if condemned.sweeps and not await self._is_there(revision):
            await self._changelog.forget_condemned(condemned)
            return "forgotten"
        await self._long_term.delete(revision)
        await self._changelog.resume_later(condemned, self._second_visit(condemned))
        return "deleted"

    def _second_visit(self, entry: Entry) -> UnixMicros:
        """When nobody can be writing the blob of ``entry`` any more, and the store has had time to finish."""
        if entry.role is Role.OLD:
            return self._in(self._limits.sweep_second_visit_seconds)
        seconds = self._limits.operation_deadline_seconds + self._limits.sweep_second_visit_seconds
        return max(self._in(self._limits.sweep_second_visit_seconds), entry.recorded + int(seconds * MICROS_PER_SECOND))

    async def _is_there(self, revision: Revision) -> bool:
        try:
            return await self._long_term.head(revision) is not None
        except CorruptObject:  # something is, and it has to go
            return True

    async def _expired(self) -> Sequence[FoundRow]:
        return await self._high_volume.expired(self._clock.now(), self._limits.sweep_batch)

    async def _settle_expired(self, found: FoundRow) -> str:
        try:
            settled = await self._committer.settle_expired(found, self._clock.now())
        except Exception:
            log.exception("expired object could not be settled", object=found.object_id.storage_path)
            return "error"
        return "expired" if settled else "lost"

    async def _remove_markers(self, results: Counter[str]) -> None:
        before = self._in(-self._limits.marker_retention_seconds)
        for _ in range(self._limits.sweep_batches_max):
            if removed := await self._high_volume.remove_markers(before, self._limits.sweep_batch):
                results["marker_removed"] += removed
            if removed < self._limits.sweep_batch:
                return

    def _in(self, seconds: float) -> UnixMicros:
        return self._clock.now() + int(seconds * MICROS_PER_SECOND)
