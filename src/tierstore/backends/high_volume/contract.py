"""What a high-volume backend promises: one row per object id, linearizable from any process.

Words: a row has a *version* (the identity of its content, new with every write of content, never used twice), a
*content* and a *deadline* (``expires``, an instant in Unix microseconds, or None). The content is `Inline` (the object
itself), `Tombstone` (points to a blob) or `Gone` (remembers a delete).

The backend reports rows as they are on disk. It does **not** decide what a reader sees: a `Gone` row and a row past its
deadline read as absent, and that is tiering's business, with its own clock. Two operations look at a deadline here:
`extend`, which refuses to revive an expired row, and `expired`, which finds them.

Promises, all of them laws in `tierstore.testing.laws.high_volume`:

- Every method is atomic per row, and linearizable: what it returned or wrote is what any later call, from any process,
  starts from. Nothing is returned before it is durable.
- An acknowledged row stays until a later write replaces it or `remove_markers` takes it away. A store with native
  expiry may remove an *inline* row or a marker by itself, no sooner than ``marker_retention`` after its deadline or its
  delete, never a tombstone.
- Errors: `Unavailable` (nothing happened, retry is safe), `Busy` and `StorageFull` (likewise), `OutcomeUnknown` (a
  write that may have happened: read the row), `CorruptObject` (a payload that does not match its checksum). Each
  method says whether repeating it blindly is safe.
- Cancelling the caller does not undo a write that was under way: it has happened, or will, or never does, as after
  `OutcomeUnknown`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from tierstore.clock import UnixMicros
from tierstore.types.ids import ObjectId, Version


@dataclass(frozen=True, slots=True)
class Inline:
    """Row content that is the object. ``metadata`` is opaque here: see `tierstore.types.metadata_storage`."""

    metadata: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class InlineHead:
    """An `Inline` without its payload, as `HighVolumeBackend.head` returns it."""

    metadata: bytes


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Row content that points to the blob named by the row's object id and ``revision``."""

    metadata: bytes
    revision: UUID


@dataclass(frozen=True, slots=True)
class Gone:
    """Row content that remembers a delete, so that the version sequence does not start anew."""


Content = Inline | Tombstone | Gone
HeadContent = InlineHead | Tombstone | Gone


@dataclass(frozen=True, slots=True)
class Row:
    """A whole row."""

    version: Version
    content: Content
    expires: UnixMicros | None


@dataclass(frozen=True, slots=True)
class RowHead:
    """A row without an inline payload.

    ``fenced`` tells apart what `HighVolumeBackend.point` has to: it is new with the row, with every fence, and with
    every write that makes the row point to a blob, to another one, or no longer to one. It stays through all other
    writes, and takes no part in comparisons.
    """

    version: Version
    content: HeadContent
    expires: UnixMicros | None
    fenced: Version = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True)
class TombstoneRow:
    """A row whose content is known to be a tombstone."""

    version: Version
    content: Tombstone
    expires: UnixMicros | None


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A row as a listing returns it."""

    object_id: ObjectId
    row: RowHead


class HighVolumeBackend(ABC):
    """One high-volume store. Built open by its factory; `close` ends it. Used from one event loop."""

    @abstractmethod
    async def read(self, object_id: ObjectId) -> Row | None:
        """Return the row with its payload, or None if there is none. One round trip. Safe to repeat.

        Raises `CorruptObject` when the payload does not match the checksum it was stored with.
        """

    @abstractmethod
    async def head(self, object_id: ObjectId) -> RowHead | None:
        """Return the row without its payload, or None if there is none. One round trip, no payload read."""

    @abstractmethod
    async def put_inline(self, object_id: ObjectId, content: Inline, expires: UnixMicros | None) -> TombstoneRow | None:
        """Make ``content`` the row's content, whatever it was, unless a tombstone is there.

        Returns None when written (with a new version), or the tombstone row that was met (an expired one too), and
        then nothing is written. One round trip. Safe to repeat: the last one stands.
        """

    @abstractmethod
    async def delete_inline(self, object_id: ObjectId) -> TombstoneRow | None:
        """Turn an inline row (an expired one too) into `Gone`, unless a tombstone is there.

        Returns None when there is no object now, or the tombstone row that was met, and then nothing is written. An
        absent or `Gone` row is left as it is. One round trip. Safe to repeat.
        """

    @abstractmethod
    async def compare_and_write(
        self,
        object_id: ObjectId,
        expected: Version | None,
        content: Content,
        expires: UnixMicros | None,
        *,
        if_expired_by: UnixMicros | None = None,
        not_after: UnixMicros | None = None,
    ) -> Version | None:
        """Write ``content`` with a new version, if the row's version is ``expected`` (None: there is no row).

        With ``if_expired_by``, the row's deadline must also be set and not later than that instant, so that settling
        an expired object loses against a concurrent `extend`. With ``not_after``, nothing is written when the backend's
        clock is past that instant at the moment of the write, however long the call was on its way. Returns the new
        version, or None on a conflict or when it is too late, and then nothing is written. Not safe to repeat after
        `OutcomeUnknown`: read the row first.
        """

    @abstractmethod
    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        """Make the row a tombstone, with a new version, unless it was fenced or has changed its blob since ``base``.

        Written if ``fenced`` is still as in ``base``, whatever inline writes and deletes of inline rows came between:
        they are overwritten, so that a large write is not kept from its end by small ones. A blob that came and went
        again meanwhile is a change too. With None for ``base`` there must be no row. ``not_after`` as with
        `compare_and_write`. Returns whether it was written. Not safe to repeat after `OutcomeUnknown`: read the row
        first.
        """

    @abstractmethod
    async def bring_inline(
        self, object_id: ObjectId, expected: Version, payload: bytes, *, not_after: UnixMicros
    ) -> bool:
        """Put ``payload`` in the place of what a tombstone points to, if the row has the version ``expected``.

        The row is an inline one then, with a new version, and with the metadata and the deadline that the tombstone has
        at that moment: an extension that came since it was read is kept. Of a row that is no tombstone nothing is
        changed. ``not_after`` as with `compare_and_write`. Returns whether it was written. Not safe to repeat after
        `OutcomeUnknown`: read the row first.
        """

    @abstractmethod
    async def fence(self, object_id: ObjectId) -> RowHead:
        """Give the row a new version, whatever it is, leave content and deadline alone, and return it as it then is.

        Where there is no row, a `Gone` row is written; one that was there counts as written anew. Every
        compare-and-write, `point` and extension that is still under way from before, or from no row, fails from now on.
        Does not move, copy or read the payload. Safe to repeat.
        """

    @abstractmethod
    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        """Move the deadline of a row to ``expires`` and leave version and content alone.

        Only if the row has ``version``, has a deadline, that deadline lies in the future by the backend's own clock
        and is earlier than ``expires``: never shortens, never revives. Returns whether it moved. Safe to repeat.

        A store looks at its clock before it commits, so an extension that was in time may become visible a moment after
        the old deadline. But not after any other call of this method for the row that began after that deadline has
        returned: by such a call a reader learns that a deadline which it finds passed will not move any more.
        """

    @abstractmethod
    async def scan(self, prefix: str, after: str | None, limit: int) -> Sequence[FoundRow]:
        """List rows whose storage path starts with ``prefix`` and follows ``after``, in the byte order of UTF-8.

        All kinds of rows, `Gone` and expired ones too; at most ``limit`` (1 or more). Not a snapshot: a row that is
        there throughout a paged scan is listed exactly once, one that comes or goes meanwhile may be or not. A row that
        cannot be read is logged and passed over; a page is short only when no readable rows are left. For tests and
        operators' tools.
        """

    @abstractmethod
    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        """List inline and tombstone rows whose deadline is at or before ``by``, at most ``limit``, earliest first.

        A store that removes inline rows by itself may list only tombstones. A row that cannot be read is logged and
        passed over, so that it does not keep the sweeper from the others.
        """

    @abstractmethod
    async def remove_markers(self, before: UnixMicros, limit: int) -> int:
        """Physically remove at most ``limit`` `Gone` rows written at or before ``before``; return how many.

        The caller keeps ``before`` at least ``marker_retention`` in the past. Safe to repeat.
        """

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
        """Raise `Unavailable` unless the store answers. For readiness; reads, does not write."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was accepted, then release everything. Nothing may be called afterwards. Safe to repeat."""
