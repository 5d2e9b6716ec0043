"""What the mutations of the protocol share: their time, and what they leave behind when they end.

Guarantees: an operation knows when it must have given up, on both clocks; its cleanup runs off its caller's path and
never changes its answer; of an upload's revision that is replaced, the upload's own entry is done before the blob goes.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import structlog

from tierstore.backends.high_volume.contract import RowHead, Tombstone, TombstoneRow
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import GivenUp
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.types.ids import ObjectId, Revision

log = structlog.get_logger(__name__)

T = TypeVar("T")


def pointed_to(object_id: ObjectId, row: RowHead | TombstoneRow | None) -> Revision | None:
    """The revision that ``row`` points to (an expired tombstone still does), or None."""
    if row is None or not isinstance(row.content, Tombstone):
        return None
    return Revision(object_id, row.content.revision)


@dataclass(frozen=True, slots=True)
class Operation:
    """One mutation: the owner of its entries, and when it must have given up."""

    owner: UUID
    ends: float
    """On the monotonic clock."""
    not_after: UnixMicros
    """The same moment on the wall clock, which goes on while a machine is suspended."""


class Operations:
    """Begins operations and does what they leave to be done. ``cleanup`` owns the work off the callers' paths."""

    def __init__(
        self,
        long_term: LongTermBackend,
        changelog: ChangeLog,
        *,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
        cleanup: TaskOwner,
    ) -> None:
        self._long_term = long_term
        self._changelog = changelog
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._cleanup = cleanup

    def begin(self) -> Operation:
        """A new operation, whose time runs from now."""
        seconds = self._limits.operation_deadline_seconds
        return Operation(self._ids.uuid(), self._clock.monotonic() + seconds, self.later(seconds))

    def later(self, seconds: float) -> UnixMicros:
        """The instant ``seconds`` from now."""
        return self._clock.now() + int(seconds * MICROS_PER_SECOND)

    def grace_end(self) -> UnixMicros:
        """Until when a sweeper leaves an entry alone that is recorded now."""
        return self.later(self._limits.entry_grace_seconds)

    def check_time(self, operation: Operation) -> None:
        """Raise `GivenUp` when the operation's time is up.

        Called before each try of a commit point; the store looks at the time once more, when it writes.
        """
        if self._clock.monotonic() > operation.ends or self._clock.now() > operation.not_after:
            raise GivenUp("the write took longer than an operation may; try again")

    async def in_time(self, operation: Operation, work: Awaitable[T]) -> T:
        """Await ``work``, which is cancelled when the operation's time is up: then `GivenUp`."""
        time = asyncio.timeout(operation.ends - self._clock.monotonic())
        try:
            async with time:
                return await work
        except TimeoutError:
            if not time.expired():  # the store's own, which promises nothing
                raise
            raise GivenUp("the write took longer than an operation may; try again") from None

    async def clean_up(self, operation: Operation, old: Revision | None) -> None:
        """What an operation that has committed leaves: the blob of ``old``, which it has replaced, and its entries."""
        if old is not None:
            if old.is_upload:  # an attempt to complete it that finds no blob must learn that there was one
                await self._changelog.mark_done(old, self.outcome_end())
            await self._long_term.delete(old)
        await self._changelog.forget(operation.owner)

    def outcome_end(self) -> UnixMicros:
        """Until when it is remembered that an upload was completed."""
        return self.later(self._limits.outcome_retention_seconds)

    async def expedite(self, owner: UUID) -> None:
        """Leave an operation that cannot go on to the sweeper, at once."""
        await self._changelog.expedite(owner, self._clock.now())

    async def off_path(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Let the cleanup owner do ``work``; when it has too much to do, do it here, which slows its producers."""
        if not self._cleanup.full:
            self._cleanup.spawn(name, work)
            return
        try:
            await work
        except Exception:  # the operation has ended one way or the other, and this must not change its answer
            log.exception("cleanup left to the sweeper", work=name)
