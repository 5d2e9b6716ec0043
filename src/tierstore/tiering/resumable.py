"""Resumable uploads on two tiers: one stream, sent in as many attempts as it takes, through any process.

A *session* is a multipart upload (`tierstore.tiering.uploads`) whose parts the server makes. The bytes of an attempt
are stored in *units*, one part each, as they come. The upload's own entry in the change log says how far the session
has come, and which parts count: it is changed by compare-and-swap alone, so that nothing but the stores arbitrates
between attempts, whichever processes they reach. All that ends a session is what ends an upload: complete, abort,
retention.

Append, `ResumableUploads.append`
    1. Find the entry. Done: the upload is complete. Full, and this is a repetition of what made it so: finish. Its
       offset is another one than the caller's: refused, with the true one. Nothing has been read by then.
    2. When the first byte has come, take a part number that nobody was given before: a swap of the entry.
         lost to another who took a number: try again with the next one. Lost to one who stored bytes: refused, as in 1.
    3. Store a unit as a part with that number.
         error: nothing of this unit counts. The part, if there is one, goes with the end of the upload.
         the body was cut off: where the store takes parts of any size, what has come is a unit; elsewhere, if it is
         less than announced, nothing of it counts.
         no such upload: it was ended, or it has been assembled, by a faster attempt: look, as in 1.
    4. Count the part, and take the number for the next unit: a swap of the entry, which holds the offset that the unit
       begins at. **From here on the bytes are the session's** [progress-cas].
         lost to another who took a number: try again. Lost to one who stored bytes: refused, with the true offset.
         unknown: look. The part counts: done; but if another attempt has gone on from there, this one is refused, for
         what comes next is not what this caller sends. Otherwise trying again is safe, for no two of such swaps can
         both happen.
         error, cancelled: the bytes may count or not; the caller asks for the offset, and goes on from there.
    5. Repeat 3 and 4. All bytes are stored: finish.

Finish
    Complete the upload of the parts that count, which no one can change any more: they were stored once, under numbers
    of their own, and the entry that names them is full. A process that dies between the last swap and the commit leaves
    a full session: whoever asks for its offset, or repeats the last piece, finishes it.
         no such upload, and no blob, though nobody has ended the session: another attempt has the store assemble it,
         and the blob is not to be seen yet. Refused; the caller asks again.

So a part is never replaced: what a process that was slow, or was thought dead, still writes has a number that nobody
names. Numbers that count ascend, for each was taken after the one before it was counted. They are finite: pieces that
are shorter than a unit are refused, and what was cut off is no longer kept, when the numbers run short; only a client
that is cut off thousands of times within one upload meets that. Its session is ended then, as by cancelling it: nobody
is told that there is none while another attempt may still complete it.

Each swap pushes the retention out: a session is aborted when nobody has stored anything for ``upload_retention``.
"""

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from tierstore import telemetry
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import State
from tierstore.errors import (
    CorruptObject,
    EntityTooSmall,
    InvalidRequest,
    InvariantBroken,
    NoSuchUpload,
    NotOffered,
    ObjectTooLarge,
    OffsetMismatch,
    OutcomeUnknown,
    Unavailable,
)
from tierstore.limits import Limits
from tierstore.tiering.operations import Operations
from tierstore.tiering.uploads import BEING_SETTLED, ENDED, Uploads
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import Part, PartName, UploadId
from tierstore.types.resumable import (
    Advance,
    Completed,
    Progress,
    SessionId,
    Stored,
    decode_session,
    encode_session,
    is_session,
)
from tierstore.types.streams import Body

_BEING_ASSEMBLED = "another attempt is making an object of the upload; ask again"
_BESIEGED = "too many attempts at this upload are under way; try again"
_SHARE_OF_UNITS = 2
"""One part number in so many is enough for whole units; the others are for what is cut off or sent in short pieces."""
_SHORT_OF_NUMBERS = 20
"""When the numbers left beyond those for whole units are one in so many of all, no more short pieces are kept."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An open session as the change log has it."""

    raw: bytes
    progress: Progress
    wanted: bytes


class ResumableUploads:
    """Resumable uploads of one pair of stores."""

    def __init__(
        self,
        long_term: LongTermBackend,
        changelog: ChangeLog,
        uploads: Uploads,
        operations: Operations,
        *,
        limits: Limits,
    ) -> None:
        self._long_term = long_term
        self._changelog = changelog
        self._uploads = uploads
        self._operations = operations
        self._limits = limits

    async def create(self, object_id: ObjectId, metadata: Metadata, length: int) -> SessionId:
        """Begin an upload of ``length`` bytes, which are to have ``metadata``. Nothing changes for readers.

        Raises `NotOffered` if the bounds on parts leave none that units could be, whatever the length;
        `ObjectTooLarge`, `StorageFull`, `OutcomeUnknown` and the other `Unavailable`. A retry begins another one; one
        whose answer was lost is aborted after ``upload_retention``.
        """
        if self._limits.parts_max < _SHARE_OF_UNITS or not self._takes_units(0):
            raise NotOffered("this store takes no parts of a size that resumable uploads could have")
        if length > self._limits.object_bytes_max:
            raise ObjectTooLarge(f"an object has at most {self._limits.object_bytes_max} bytes")
        if not self._takes_units(length):
            raise ObjectTooLarge("the object is longer than this store takes in a resumable upload")
        return SessionId(await self._uploads.initiate(object_id, metadata, Progress(length)))

    def _takes_units(self, length: int) -> bool:
        """Whether the store takes the units of an upload of ``length`` bytes, the last of which may be longer."""
        return self._unit_bytes(length) + self._limits.part_bytes_min <= self._limits.part_bytes_max

    def granularity(self, length: int) -> int:
        """The fewest bytes of a piece that is not the last, for an upload of ``length`` bytes; 0 if any will do."""
        least = self._limits.part_bytes_min
        return max(least, self._least_unit_bytes(length)) if least else 0

    def _least_unit_bytes(self, length: int) -> int:
        return math.ceil(length / (self._limits.parts_max // _SHARE_OF_UNITS))

    def _unit_bytes(self, length: int) -> int:
        """How many bytes of an upload of ``length`` bytes are stored at a time."""
        return max(self._limits.session_unit_bytes_min, self._limits.part_bytes_min, self._least_unit_bytes(length))

    async def append(self, session: SessionId, offset: int, body: Body) -> Advance:
        """Store ``body``, whose size is known, from ``offset`` on, or as much of it as comes before it ends.

        Returns once that is durable, and, with the last byte, the object committed. Raises `OffsetMismatch`;
        `InvalidRequest` for more than the announced length; `EntityTooSmall` for too short a piece; `NoSuchUpload`;
        `StorageFull`, `Busy`, `OutcomeUnknown` and the other `Unavailable`: then the offset tells where to go on.
        Safe to repeat.
        """
        size = body.size
        if size is None:
            raise InvariantBroken("the size of a piece is known beforehand")
        upload, end = session.upload, offset + size
        held = await self._held(upload)
        if held is None:
            return Completed()
        length = held.progress.length
        self._check_piece(held.progress, offset, end)
        if not held.progress.full:
            try:
                held = await self._store(upload, held, _Reader(body), end)
            except (NoSuchUpload, OffsetMismatch):
                held = await self._held(upload)  # raises it again for a session that was ended
                if held is None and end == length:
                    return Completed()
                if held is None or (held.progress.full and end != length):  # then a faster attempt was longer
                    raise OffsetMismatch(length) from None
                if not held.progress.full:
                    if held.progress.offset != offset:
                        raise OffsetMismatch(held.progress.offset) from None
                    raise
        if not held.progress.full:
            return Stored(held.progress.offset)
        return await self._finish(upload, held)

    async def query(self, session: SessionId) -> Advance:
        """What has become of the session. One that has all its bytes and is not committed yet is finished.

        Raises `NoSuchUpload`, and what finishing raises. Safe to repeat.
        """
        held = await self._held(session.upload)
        if held is None:
            return Completed()
        if held.progress.full:
            return await self._finish(session.upload, held)
        return Stored(held.progress.offset)

    async def cancel(self, session: SessionId) -> None:
        """End the session and remove its bytes; also one that was cancelled already.

        Raises `NoSuchUpload` for one that is not known, and for one that is complete: its object is not touched.
        `Unavailable`: try again. Safe to repeat.
        """
        await self._uploads.abort(session.upload)

    async def _held(self, upload: UploadId) -> _Held | None:
        """The session, if it is open; None if it is complete. Raises `NoSuchUpload`, and `Unavailable` if unclear."""
        entry = await self._uploads.own_entry(upload.revision)
        if entry is None or (entry.state is State.CONDEMNED and entry.sweeps):
            if await self._uploads.row_has(upload.revision):  # committed so long ago that only the row tells
                return None
            raise NoSuchUpload(ENDED)
        if entry.state is State.DONE:
            return None
        if entry.state is State.CONDEMNED:
            raise Unavailable(BEING_SETTLED)
        raw = entry.upload or b""
        if not is_session(raw):
            raise NoSuchUpload("there is no such session: this upload is sent in parts by its client")
        return _Held(raw, *decode_session(raw))

    def _check_piece(self, progress: Progress, offset: int, end: int) -> None:
        """Refuse a piece that cannot be stored."""
        if end > progress.length:
            raise InvalidRequest(f"the upload has {progress.length} bytes, and this piece goes beyond its end")
        if progress.full and end == progress.length:
            return
        if offset != progress.offset:
            raise OffsetMismatch(progress.offset)
        least = self.granularity(progress.length)
        if not self._limits.part_bytes_min and not self._keeps_short_pieces(progress):
            least = self._unit_bytes(progress.length)
        if end not in {progress.length, offset} and end - offset < least:
            raise EntityTooSmall(f"send {least} bytes or more at a time, but for the last ones")

    def _keeps_short_pieces(self, progress: Progress) -> bool:
        """Whether a unit may count that is shorter than it was to be: the store takes it, and numbers are left."""
        if self._limits.part_bytes_min:
            return False
        left = self._limits.parts_max + 1 - progress.next_number
        needed = math.ceil((progress.length - progress.offset) / self._unit_bytes(progress.length))
        return left - needed > self._limits.parts_max // _SHORT_OF_NUMBERS

    async def _store(self, upload: UploadId, held: _Held, reader: "_Reader", end: int) -> _Held:
        """Steps 2 to 5: store what comes, to ``end`` at most."""
        number: int | None = None
        while held.progress.offset < end or not (held.progress.length or held.progress.full):
            size = self._next_unit(held.progress, end)
            if size and not await reader.has_more():
                break
            if number is None:
                held, number = await self._take_number(upload, held)
            try:
                part = await self._store_unit(upload, number, held.progress, reader, size)
            except _CutOff:
                break
            held, number = await self._count(upload, held, part, end)
        return held

    def _next_unit(self, progress: Progress, end: int) -> int:
        """How many bytes the next unit is to have: a little more in place of a last one that would be too short."""
        left, unit = end - progress.offset, self._unit_bytes(progress.length)
        return left if left < unit + max(self._limits.part_bytes_min, 1) else unit

    async def _store_unit(
        self, upload: UploadId, number: int, progress: Progress, reader: "_Reader", size: int
    ) -> Part:
        """Step 3. Raises `_CutOff` if the body ended before there was a unit that may count."""
        short = self._keeps_short_pieces(progress)
        unit = _Unit(reader, size, may_be_short=short)
        part = await self._long_term.upload_part(upload, number, unit, None if short else size, None)
        telemetry.upload_parts.inc()
        telemetry.upload_part_bytes.observe(part.size)
        return part

    async def _take_number(self, upload: UploadId, held: _Held) -> tuple[_Held, int]:
        """Step 2: the session, and a part number that nobody else has."""
        offset = held.progress.offset
        for _ in range(self._limits.commit_attempts_max):
            number = held.progress.next_number
            if number > self._limits.parts_max:
                await self._uploads.abort(upload)  # so that no attempt with one of the last numbers completes it yet
                raise NoSuchUpload("the session was cut off too often, and cannot be completed; begin another one")
            if (swapped := await self._swap(upload, held, held.progress.with_number_given())) is not None:
                return swapped, number
            held = self._at(await self._held(upload), held, offset)
        raise Unavailable(_BESIEGED)

    async def _count(self, upload: UploadId, held: _Held, part: Part, end: int) -> tuple[_Held, int | None]:
        """Step 4: the session, and the number for the next unit, if one was taken."""
        offset = held.progress.offset
        for _ in range(self._limits.commit_attempts_max):
            progress = held.progress.with_part(part.number, part.size)
            number = progress.next_number
            more = progress.offset < end and number <= self._limits.parts_max
            try:
                swapped = await self._swap(upload, held, progress.with_number_given() if more else progress)
            except OutcomeUnknown:
                swapped = None
            if swapped is not None:
                return swapped, number if more else None
            found = await self._held(upload)
            if found is not None and found.progress.counts(part.number):
                if found.progress.offset != progress.offset:  # another attempt has gone on meanwhile
                    raise OffsetMismatch(found.progress.offset)
                return found, None
            held = self._at(found, held, offset)
        raise Unavailable(_BESIEGED)

    async def _swap(self, upload: UploadId, held: _Held, progress: Progress) -> _Held | None:
        """What the session is now, if it was as ``held``; else None, and nothing was changed."""
        raw = encode_session(progress, held.wanted)
        retention = self._operations.later(self._limits.upload_retention_seconds)
        if await self._changelog.advance(upload.revision, held.raw, raw, retention):
            return _Held(raw, progress, held.wanted)
        return None

    def _at(self, found: _Held | None, held: _Held, offset: int) -> _Held:
        """The session as it was ``found``, if it is still at ``offset``; else another attempt was faster."""
        if found is None:
            raise OffsetMismatch(held.progress.length)
        if found.progress.full or found.progress.offset != offset:  # one of no bytes is full at its first offset
            raise OffsetMismatch(found.progress.offset)
        return found

    async def _finish(self, upload: UploadId, held: _Held) -> Completed:
        try:
            await self._uploads.complete(upload, partial(self._counted_parts, upload, held.progress))
        except NoSuchUpload:
            if await self._held(upload) is not None:  # raises it again for a session that was ended
                raise Unavailable(_BEING_ASSEMBLED) from None
        return Completed()

    async def _counted_parts(self, upload: UploadId, progress: Progress) -> Sequence[PartName]:
        """The names of the parts that count. Raises `NoSuchUpload` when they have been assembled already."""
        numbers = set(progress.numbers())
        found: list[Part] = []
        after, truncated = 0, True
        while truncated:
            page = await self._long_term.list_parts(upload, after, self._limits.parts_listed_max)
            found += [part for part in page.parts if part.number in numbers]
            after, truncated = page.parts[-1].number if page.parts else 0, page.truncated
        if len(found) != len(numbers) or sum(part.size for part in found) != progress.length:
            if await self._long_term.head(upload.revision) is not None:  # some stores take the parts away one by one
                raise NoSuchUpload("the upload has been assembled")
            raise CorruptObject(f"upload {upload.revision.uuid}: a part that counts is missing, or is another")
        return [PartName(part.number, part.etag) for part in found]


class _CutOff(Exception):
    """A body ended before a unit was whole that is to be whole or not at all."""


class _Reader:
    """Reads a body, and keeps what is left of a chunk."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._rest = b""

    async def has_more(self) -> bool:
        """Whether there is another byte; waits for it."""
        if not self._rest:
            self._rest = await anext(self._body, b"")
        return bool(self._rest)

    async def take(self, most: int) -> bytes:
        """The next bytes, at most so many; none at the end of the body."""
        if not await self.has_more():
            return b""
        chunk, self._rest = (self._rest, b"") if len(self._rest) <= most else (self._rest[:most], self._rest[most:])
        return chunk


class _Unit(AsyncIterator[bytes]):
    """The next ``size`` bytes of a body. If it ends before, they end with it, or in `_CutOff`."""

    def __init__(self, reader: _Reader, size: int, *, may_be_short: bool) -> None:
        self._reader = reader
        self._left = size
        self._may_be_short = may_be_short

    async def __anext__(self) -> bytes:
        chunk = await self._reader.take(self._left) if self._left else b""
        self._left -= len(chunk)
        if chunk:
            return chunk
        if self._left and not self._may_be_short:
            raise _CutOff
        raise StopAsyncIteration
