"""What a long-term backend promises: blobs under revisions, invisible until whole.

A revision names at most one blob, ever, so a blob is immutable: it appears whole, and it goes. Promises, all of them
laws in `tierstore.testing.laws.long_term`:

- A blob becomes visible, to every process and at once, when `put` has stored all of it durably, and never in part.
- `get`, `head` and `delete` of an absent blob are ordinary answers, not errors.
- A checksum of the payload is stored with the blob. A read of the whole payload verifies it and raises `CorruptObject`
  before it hands out the last chunk, so that damaged bytes are never delivered as a whole object.
- A stream that was opened before a `delete` either goes on to the end or fails: never other bytes, never a short one
  that looks whole.
- Errors: `Unavailable`, `Busy` and `StorageFull` from any method; `CorruptObject` from reads, and from what goes on
  with an upload when what the store keeps of it is damaged. Each method says what may have happened.
- An upload is one more way in which a blob comes to be: in parts, in any order, through any number of processes, and
  kept through restarts until it is completed or aborted. Until it is completed there is no blob: `get`, `head` and
  `list` do not see it. The blob of a completed upload is like any other: read, ranged, verified and deleted as one.
- Once an upload has been aborted, no blob of its revision appears through it; once it has been completed, its parts
  cannot be changed. Of any number of `complete` and `abort` calls at the same time, one takes effect.
- What repeating `complete` or `abort` answers, stores differ in: success, or `NoSuchUpload`. So nothing is ever decided
  by that answer: look at the blob. But a store that can tell of which parts it has made a blob refuses to be asked for
  another one of the same upload.
- The user's key is data: names in the store are derived from the revision's UUID or encoded.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from tierstore.clock import UnixMicros
from tierstore.types.ids import Revision
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.ranges import Span


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What the store knows of a whole blob."""

    revision: Revision
    size: int
    """Bytes of the payload."""
    stored: UnixMicros
    """When the blob became visible, by the store's clock, to the second at least. For people; nothing is decided by it,
    and what `put` says of it may be a second or two from what is said later."""


class BlobStream(ABC):
    """The payload of one blob, or a span of it, opened for reading: an async iterator of non-empty chunks.

    Holds an open file or connection until it is exhausted, has failed or `aclose` was called; closing twice is fine.
    """

    size: int
    """Bytes of the whole blob, whatever span was asked for."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks in order. Raises `CorruptObject` in place of the last one if a full read does not verify."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release what the stream holds."""


class LongTermBackend(ABC):
    """One long-term store. Built open by its factory; `close` ends it. Used from one event loop."""

    @abstractmethod
    async def put(
        self,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        not_after: UnixMicros | None = None,
    ) -> BlobInfo:
        """Store everything that ``source`` yields as the blob of ``revision``; return when it is durable and visible.

        ``size`` is the payload's length in bytes when it is known beforehand; a source that yields another number of
        bytes fails the put with `InvariantBroken`. Holds at most a few chunks in memory.

        An exception out of ``source``, or cancellation, ends the put: the exception goes through, and no blob appears,
        then or later. `StorageFull`: likewise nothing. `GivenUp`: likewise, because the store's clock was past
        ``not_after`` when the blob was about to become visible, however long the call was on its way. `Unavailable`: a
        blob may appear, even some time later, but not past ``not_after``; the caller leaves it to the sweeper.

        Putting a revision that exists replaces it atomically (a revision is never
        reused, so only a repeated attempt of the same write can do this).
        """

    @abstractmethod
    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        """Open the blob for reading, or return None if it is absent. ``span`` selects bytes; None means all.

        A span lies within the blob (see `tierstore.types.ranges.resolve`); one that does not raises `InvariantBroken`.
        Safe to repeat.
        """

    @abstractmethod
    async def head(self, revision: Revision) -> BlobInfo | None:
        """What is known of the blob, without reading it; None if it is absent. Safe to repeat.

        The blob of an upload is durable when this returns, whatever `complete` has answered, or has not answered yet:
        by this its object is committed. If that cannot be had, `Unavailable`, and never `StorageFull`.
        """

    @abstractmethod
    async def delete(self, revision: Revision) -> None:
        """Remove the blob, durably; absent is fine. Safe to repeat.

        All that belongs to it goes with it. An upload of the revision that is still in progress may be aborted by
        this, or not: whoever deletes has aborted it before, or knows that it was completed.
        """

    @abstractmethod
    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        """List blobs whose revision's storage path starts with ``prefix``, at most ``limit`` (1 or more).

        In an order of the backend's own that does not change; ``after`` is the last one of the page before. A blob
        that is there throughout a paged listing is listed exactly once. One that cannot be read is logged and passed
        over. For tests and operators' tools.
        """

    @abstractmethod
    async def initiate(self, revision: Revision, *, not_after: UnixMicros | None = None) -> str:
        """Begin a multipart upload of the blob of ``revision``; return the store's own id of it, visible ASCII.

        The upload is durable when this returns. On `Unavailable` there may be one, or come one: `abort` without an id
        ends it. `GivenUp`: there is none, and will be none, because the store's clock was past ``not_after`` when it
        was about to begin. Called once for a revision.
        """

    @abstractmethod
    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        """Store the ``size`` bytes that ``source`` yields as part ``number`` (1 to ``parts_max``), durably.

        With None for ``size``, as many as it yields: asked for only of a store that has no ``part_bytes_min``. A store
        that has to know the length before it takes the first byte buffers them, and refuses more than it may buffer
        with `ObjectTooLarge`.

        In place of the part that had the number: whole, and from then on only the new one's ETag names it. Parts with
        other content have other ETags. Holds at most a few chunks in memory. A source that yields another number of
        bytes fails with `InvariantBroken`. With ``md5``, the bytes must have that digest, else `ChecksumMismatch`.

        Raises `NoSuchUpload`, if possible before anything is read from ``source``, and `CorruptObject`, before that,
        if what the store keeps of the upload is damaged: then it can only be aborted. Then, and on an exception out of
        ``source``, cancellation, `ChecksumMismatch` and `StorageFull`, no part is stored, and the one before stays.
        `Unavailable`: it may be stored, even some time later. Safe to repeat with an equal source.

        Of a part and a `complete` at the same time, either the part is stored before the upload is completed, and then
        names that it has made stale are an `InvalidPart`, or it is refused with `NoSuchUpload`. Where a store keeps
        what was replaced, the part may also be stored, and the blob made of the part that was named.
        """

    @abstractmethod
    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        """The parts whose numbers are above ``after``, at most ``limit`` (1 or more), ascending.

        With an empty ``store_id``, of the upload of the revision that is in progress, whatever its id is: for
        operators, who know the revision alone. The page has the id.

        Raises `NoSuchUpload`, also when the upload has been completed; `CorruptObject` if what the store keeps of the
        upload is damaged. Safe to repeat.
        """

    @abstractmethod
    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        """Make the blob: exactly the named parts (1 or more), one after the other. Other parts are removed.

        The blob is durable and visible when this returns, if the upload was in progress. Raises, with the upload as it
        was: `InvalidPartOrder`; `InvalidPart` for a part that is not there or has another ETag; `EntityTooSmall` for
        one below ``part_bytes_min`` that is not the last; `ObjectTooLarge` when all together are beyond
        ``object_bytes_max``; `CorruptObject` if what the store keeps of the upload is damaged: then it can only be
        aborted. For an upload that is not in progress: as a repetition, see above; one that was completed with other
        parts is `InvalidPart` or `InvalidPartOrder` where the store can tell. A list that is out of order may be
        `InvalidPartOrder` whatever has become of the upload. `Unavailable`: the blob may be there, or appear later.
        Safe to repeat; with other parts only after a client's mistake.
        """

    @abstractmethod
    async def abort(self, upload: UploadId | Revision) -> None:
        """End the upload, or all uploads of a revision, and remove their parts, durably. A blob is never touched.

        A damaged upload is ended like any other. For one that is not in progress: as a repetition, see above. Given a
        revision, always success, also where there is nothing, or only what is another object's. Safe to repeat.
        """

    @abstractmethod
    async def remove_debris(self) -> int:
        """Remove what crashed writers left behind that never became a blob; return how many things were removed.

        Never touches what a living writer, of this or another process, still needs. Safe to repeat.
        """

    @abstractmethod
    async def identity(self) -> UUID | None:
        """The identity that the store keeps, or None if it was never given one. Safe to repeat.

        A store and the two that belong to it keep the same one: by that they know each other. Raises `Broken` if what
        is kept is damaged.
        """

    @abstractmethod
    async def adopt(self, identity: UUID) -> UUID:
        """Give the store ``identity`` if it has none, durably; return the one that it has.

        Atomic: of any number of calls, from any process, one wins, and all return what that one gave. Safe to repeat.
        """

    @abstractmethod
    async def check(self) -> None:
        """Raise `Unavailable` unless the store answers. For readiness; does not write: a full store still serves."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was accepted, then release everything. Nothing may be called afterwards. Safe to repeat."""
