"""What a change log promises: entries that are durable before the call returns, and change hands atomically.

An operation records every revision that it may leave unreferenced *before* it does anything that could, and forgets
its entries when all is done. What a crash leaves behind is found by age, and settled by the sweeper, which takes an
entry over by condemning it. All revisions that one owner records are of one object, or break an invariant where a store
looks: an operation changes one row.

Every method is atomic and linearizable from any process, and durable when it returns. Errors: `Unavailable`, `Busy`,
`StorageFull` (nothing happened), `OutcomeUnknown` (it may have happened). All are safe to repeat unless a method says
otherwise. The laws are in `tierstore.testing.laws.changelog`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from uuid import UUID

from tierstore.changelog.entries import Backlog, Claim, Entry
from tierstore.clock import UnixMicros
from tierstore.types.ids import Revision


class ChangeLog(ABC):
    """One change log. Built open by its factory; `close` ends it. Used from one event loop."""

    @abstractmethod
    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        """Record ``owner``'s entries, both or none: ``new`` in role new, ``old`` in role old.

        They begin open, with epoch 0. At least one is given, and they differ (else `InvariantBroken`). An entry of the
        same revision and owner is replaced, so that repeating after `OutcomeUnknown` is safe (owners are never reused):
        it keeps the time it was first recorded, and its epoch, which grows if a sweeper has condemned it meanwhile. A
        condemned entry of role new stays condemned, because its sweeper may be about to delete the blob: then nothing
        is changed and `GivenUp` is raised.
        """

    @abstractmethod
    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        """After a conflict, replace what ``owner`` has recorded as old by ``old`` (or by nothing).

        If ``new`` is given, its entry must still be there and open: otherwise a sweeper has taken it over, nothing is
        changed, and False is returned: the write has been given up and must fail. Entries of role old are replaced
        even if condemned, and are open again. The epochs of ``new``, and of ``old`` if it was recorded before, grow, so
        that a sweeper that has condemned them, or has only seen them, no longer changes them. ``not_before`` is set on
        all of the owner's entries. ``new`` and ``old`` differ (else `InvariantBroken`).
        """

    @abstractmethod
    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        """Record an upload's own entry: role new, open, epoch 0, owner the revision's UUID, with ``upload``.

        One that is there is left as it is, so that repeating after `OutcomeUnknown` is safe.
        """

    @abstractmethod
    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        """Let an upload's own entry hold ``upload`` in place of ``expected``, if it is open and holds just that.

        Its ``not_before`` becomes the given one if that is later; all else stays, its epoch too, so that who condemns
        it wins over any number of these. Returns whether it was changed. After `OutcomeUnknown`, look what it holds.
        """

    @abstractmethod
    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        """Begin, or begin again, ``owner``'s attempt to complete the upload of ``revision``; all in one atomic step.

        In this order: some entry lists the revision in role old: it was committed before and is being swapped out:
        `Committed`. Its own entry is done: `Committed`; condemned: `Condemned`, swept if ``sweeps`` is above 0; absent:
        `Unknown`. In all of these nothing is changed.

        Otherwise the own entry's epoch grows, and its ``not_before`` becomes the given one if that is later; what
        ``owner`` has recorded as old is replaced by ``old`` (or by nothing), as `record_again` does it, with
        ``not_before``: `Claimed`. ``old`` is another revision (else `InvariantBroken`). Safe to repeat.
        """

    @abstractmethod
    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        """Turn the upload's own entry, open or condemned, into done, with epoch + 1, and let go of ``upload``.

        Done is final: from ``not_before`` on a sweeper may forget it, and nothing else changes it. One that is done is
        left as it is; absent is fine. Safe to repeat.
        """

    @abstractmethod
    async def forget(self, owner: UUID) -> None:
        """Remove all entries of ``owner``, whatever their state. Absent is fine."""

    @abstractmethod
    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        """Let a sweeper take the open entries of ``owner`` from ``not_before`` on. For operations given up half-way."""

    @abstractmethod
    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        """Take ``entry`` over for a sweeper: condemned, epoch + 1, not to be taken by another before ``lease_until``.

        Only if state and epoch are still as in ``entry``, and the state is not done; a condemned entry may be condemned
        again, by a sweeper that found its lease to be over. Returns the entry as it is now, or None when somebody else
        was faster. After `OutcomeUnknown`, do not repeat: find the entry again.
        """

    @abstractmethod
    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        """Give a condemned ``entry`` back for another visit after ``not_before``, with ``sweeps`` + 1 and epoch + 1.

        Only if state and epoch are as in ``entry``. It stays condemned. Returns whether it was changed. A repetition
        after `OutcomeUnknown` changes nothing twice; its False then says nothing.
        """

    @abstractmethod
    async def forget_settled(self, entry: Entry) -> bool:
        """Remove a condemned or done ``entry``, if state and epoch are as in ``entry``. Returns whether it did."""

    @abstractmethod
    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        """Entries of any state whose ``not_before`` is at or before ``now``, at most ``limit``, earliest first.

        An entry that cannot be read is logged and passed over, so that it does not keep the sweeper from the others.
        """

    @abstractmethod
    async def find(self, revision: Revision) -> Sequence[Entry]:
        """All entries of ``revision``, in the order of their owners."""

    @abstractmethod
    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        """List entries in the order in which they were recorded (then by revision and owner), at most ``limit``.

        ``after`` is the last one of the page before, whether it is still there or not. With ``uploads`` only uploads'
        own entries that are not done. An entry that is there throughout a paged listing is listed exactly once. One
        that cannot be read is logged and passed over. For operators' tools.
        """

    @abstractmethod
    async def backlog(self) -> Backlog:
        """How many entries there are, and how old the oldest is that an operation has recorded."""

    @abstractmethod
    async def identity(self) -> UUID | None:
        """The identity that the store keeps, or None if it was never given one. Safe to repeat.

        A store and the two that belong to it keep the same one: by that they know each other.
        """

    @abstractmethod
    async def adopt(self, identity: UUID) -> UUID:
        """Give the store ``identity`` if it has none, durably; return the one that it has.

        Atomic: of any number of calls, from any process, one wins, and all return what that one gave. Safe to repeat.
        """

    @abstractmethod
    async def check(self) -> None:
        """Raise `Unavailable` unless the log answers. For readiness."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was accepted, then release everything. Nothing may be called afterwards. Safe to repeat."""
