"""The sweeper: settles what crashes, given-up writes and the clock have left.

It may run under live operations and in any number of processes at once: it can only make an operation fail cleanly,
never make one lose what it has acknowledged. When it comes is a matter of politeness. Its work is bounded, may stop
anywhere, and begins again.

Entries of the log whose ``not_before`` has passed are settled as `tierstore.tiering.settling` says: what crashed
writers left, uploads that nobody completed, and outcomes of uploads that have been remembered long enough.

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
from tierstore.changelog.entries import Entry
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.tasks import for_each
from tierstore.tiering.commit import Committer
from tierstore.tiering.settling import Settler

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
        settler: Settler,
        *,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._high_volume = high_volume
        self._long_term = long_term
        self._changelog = changelog
        self._committer = committer
        self._settler = settler
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
            outcome = await self._settler.settle(entry)
        except Exception:  # one bad entry must not keep the sweeper from the others
            log.exception("entry could not be settled", revision=entry.revision.storage_path)
            return "error"
        if outcome == "deleted" and entry.owner_is_upload and not entry.sweeps:
            telemetry.upload_aborts.labels("retention").inc()
            log.info("upload aborted: nobody has completed it", revision=entry.revision.storage_path)
        return outcome

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
