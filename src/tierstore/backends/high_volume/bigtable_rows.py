"""How a row of the high-volume store lies in Bigtable, and what can be asked of it in one predicate.

An object's row has these columns; each value that an append may lengthen is read from its end:

- ``row:v``: 16 bytes of version and 8 of the instant of its writing, for each fence since the last write of content. A
  row without it is no row: what else may be there is left from one that was collected in part.
- ``row:h``: what the content is: ``i`` and metadata; ``t``, 16 bytes of revision, and metadata; ``g``, or nothing, for
  gone.
- ``row:d``: the deadline, 8 bytes; none if there is none. Of a deadline that is `sealed`, 8 zeros and the same.
- ``row:f``: `RowHead.fenced`, 16 bytes for each time that it was set by an append.
- ``row:l``: the storage path, where the row's key is not the path itself.
- ``payload:p`` and ``payload:s``: an inline object's payload, and its XXH3-128.

**Timestamps are how long a cell is kept.** The garbage collection of both families removes a cell `KEPT_SECONDS` after
its timestamp, or later, even a week. A tombstone, and what has no deadline, has a timestamp that never comes; an inline
object with a deadline has the deadline; a gone row has the moment at which it was written. Bigtable itself gives an
appended cell the larger of its timestamp and its own clock. As timestamps do not say what was written last, a write
first deletes the columns that it sets.
"""

from dataclasses import dataclass
from typing import assert_never
from uuid import UUID

import xxhash
from google.cloud.bigtable.data import DeleteAllFromFamily, DeleteAllFromRow, DeleteRangeFromColumn, Mutation, SetCell
from google.cloud.bigtable.data.row_filters import RowFilter

from tierstore import telemetry
from tierstore.backends.high_volume.contract import (
    Content,
    Gone,
    HeadContent,
    Inline,
    InlineHead,
    RowHead,
    Tombstone,
)
from tierstore.bigtable.identity import INDEX
from tierstore.bigtable.keys import INSTANT_BYTES, instant_bytes, instant_of, is_long
from tierstore.bigtable.predicates import exists, family, matches, quoted, within
from tierstore.bigtable.table import Cells
from tierstore.clock import UnixMicros
from tierstore.errors import CorruptObject
from tierstore.types.ids import Version

ROW, PAYLOAD = "row", "payload"
FAMILIES = (ROW, PAYLOAD, INDEX)
_VERSION, _HEAD, _DEADLINE, _FENCED, _PATH = b"v", b"h", b"d", b"f", b"l"
_BYTES, _CHECKSUM = b"p", b"s"
_INLINE, _TOMBSTONE, _GONE = b"i", b"t", b"g"

_VERSION_BYTES = 16
_RECORD_BYTES = _VERSION_BYTES + INSTANT_BYTES
_REVISION_BYTES = 16
_FENCES_KEPT = 64
"""Fences since the last write of content, after which their records are written anew as one."""
_SEALED = bytes(INSTANT_BYTES)
_FIRST_INSTANT = bytes(INSTANT_BYTES - 1) + b"\x01"

_NEVER = 253_402_300_799_000_000
"""A timestamp that no cell outlives: the end of the year 9999."""
_GRANULARITY = 1_000
"""Timestamps are whole milliseconds."""

HEADS: RowFilter = family(ROW)
"""For reads: all of a row but the payload."""

_corrupt_reads = telemetry.corrupt_reads.labels("high_volume")


@dataclass(frozen=True, slots=True)
class StoredHead:
    """All of a row but the payload, as it is in the store."""

    head: RowHead
    changed: UnixMicros
    """When the version was written."""
    fences: int
    """How many records the columns that fences append to have."""
    path: bytes | None
    """The storage path, where the key is another."""

    @property
    def deadline(self) -> UnixMicros | None:
        """When it expires."""
        return self.head.expires


def stored_head(cells: Cells | None) -> StoredHead | None:
    """The row, or None if there is none. Raises `CorruptObject` for what was never written so."""
    record = b"" if cells is None else cells.get((ROW, _VERSION), b"")
    if cells is None or not record:
        return None
    deadline = cells.get((ROW, _DEADLINE), b"")
    if len(record) % _RECORD_BYTES or len(deadline) not in (0, INSTANT_BYTES, 2 * INSTANT_BYTES):
        raise damaged()
    latest = record[-_RECORD_BYTES:]
    head = RowHead(
        latest[:_VERSION_BYTES],
        _head_content(cells.get((ROW, _HEAD), b"")),
        instant_of(deadline[-INSTANT_BYTES:]) if deadline else None,
        cells.get((ROW, _FENCED), b"")[-_VERSION_BYTES:],
    )
    return StoredHead(
        head, instant_of(latest[_VERSION_BYTES:]), len(record) // _RECORD_BYTES, cells.get((ROW, _PATH)) or None
    )


def is_row(cells: Cells) -> bool:
    """Whether there is a row, and not only what is left of one that has been collected in part."""
    return bool(cells.get((ROW, _VERSION)))


def lacks_content(cells: Cells) -> bool:
    """Whether there is a row of which the content has been collected, and so is gone, but cannot be asked for."""
    return is_row(cells) and (ROW, _HEAD) not in cells


def has_remains(cells: Cells, stored: StoredHead) -> bool:
    """Whether the row that a fence shows was none before, but for what was left of one: nothing of that is to count."""
    return stored.fences == 1 and bool(cells.get((ROW, _HEAD)) or cells.get((ROW, _DEADLINE)))


def is_sealed(cells: Cells) -> bool:
    """Whether the row's deadline does not move any more."""
    return len(cells.get((ROW, _DEADLINE), b"")) > INSTANT_BYTES


def payload_of(cells: Cells) -> bytes | None:
    """The payload of an inline row, or None if it has been collected. Raises `CorruptObject` if it is another one."""
    payload = cells.get((PAYLOAD, _BYTES))
    checksum = cells.get((PAYLOAD, _CHECKSUM))
    if payload is None or checksum is None:
        return None
    if xxhash.xxh3_128_digest(payload) != checksum:
        raise damaged()
    return payload


def _head_content(encoded: bytes) -> HeadContent:
    kind = encoded[:1]
    if kind == _INLINE:
        return InlineHead(encoded[1:])
    if kind == _TOMBSTONE and len(encoded) > _REVISION_BYTES:
        return Tombstone(encoded[1 + _REVISION_BYTES :], UUID(bytes=encoded[1 : 1 + _REVISION_BYTES]))
    if encoded in {_GONE, b""}:
        return Gone()
    raise damaged()


def damaged() -> CorruptObject:
    """What is raised, and counted, for a row that was never written so."""
    _corrupt_reads.inc()
    return CorruptObject("a row of the high-volume store is damaged")


# What is written


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row to be written."""

    path: bytes
    version: Version
    content: Content
    expires: UnixMicros | None
    changed: UnixMicros
    fenced: Version = b""

    def whole(self) -> list[Mutation]:
        """Mutations that make it all that there is, ``fenced`` included."""
        return [DeleteAllFromRow(), *self._cells(), *self._cell(ROW, _FENCED, self.fenced)]

    def over_inline(self) -> list[Mutation]:
        """Mutations that write it over an inline or gone row, and leave ``fenced`` as it is."""
        columns = (_VERSION, _HEAD, _DEADLINE, *((_PATH,) if is_long(self.path) else ()))
        removed = [DeleteRangeFromColumn(ROW, column) for column in columns]
        return [*removed, DeleteAllFromFamily(PAYLOAD), *self._cells()]

    def _cells(self) -> list[Mutation]:
        cells = self._cell(ROW, _VERSION, self.version + instant_bytes(self.changed))
        match self.content:
            case Inline(metadata, payload):
                cells += self._cell(ROW, _HEAD, _INLINE + metadata)
                cells += self._cell(PAYLOAD, _BYTES, payload)
                cells += self._cell(PAYLOAD, _CHECKSUM, xxhash.xxh3_128_digest(payload))
            case Tombstone(metadata, revision):
                cells += self._cell(ROW, _HEAD, _TOMBSTONE + revision.bytes + metadata)
            case Gone():
                cells += self._cell(ROW, _HEAD, _GONE)
            case _:
                assert_never(self.content)
        if self.expires is not None:
            cells += self._cell(ROW, _DEADLINE, instant_bytes(self.expires))
        if is_long(self.path):
            cells += self._cell(ROW, _PATH, self.path)
        return cells

    def _cell(self, name: str, qualifier: bytes, value: bytes) -> list[Mutation]:
        kept_from = _kept_from(self.content, self.expires, self.changed)
        return [SetCell(name, qualifier, value, timestamp_micros=kept_from)]


def moved_deadline(expires: UnixMicros) -> list[Mutation]:
    """Mutations that give a tombstone another deadline."""
    value = instant_bytes(expires)
    return [DeleteRangeFromColumn(ROW, _DEADLINE), SetCell(ROW, _DEADLINE, value, timestamp_micros=_NEVER)]


def sealed_deadline(content: HeadContent, expires: UnixMicros, now: UnixMicros) -> list[Mutation]:
    """Mutations after which the deadline, which has passed, does not move any more."""
    kept_from = _kept_from(content, expires, now)
    value = _SEALED + instant_bytes(expires)
    return [DeleteRangeFromColumn(ROW, _DEADLINE), SetCell(ROW, _DEADLINE, value, timestamp_micros=kept_from)]


def fence_values(path: bytes, version: Version, now: UnixMicros) -> dict[tuple[str, bytes], bytes]:
    """What a fence appends; appending nothing shows what there is, and makes it a gone row where there is none."""
    values = {
        (ROW, _VERSION): version + instant_bytes(now),
        (ROW, _FENCED): version,
        (ROW, _HEAD): b"",
        (ROW, _DEADLINE): b"",
    }
    return values | ({(ROW, _PATH): b""} if is_long(path) else {})


def after_fence(path: bytes, stored: StoredHead) -> list[Mutation]:
    """Mutations that a fence leaves to be done: none, but for long paths that are new, and after many fences."""
    missing_path = is_long(path) and stored.path is None
    if stored.fences <= _FENCES_KEPT and not missing_path:
        return []
    head = stored.head
    kept_from = _kept_from(head.content, head.expires, stored.changed)
    columns = {_VERSION: head.version + instant_bytes(stored.changed), _FENCED: head.fenced}
    if missing_path:
        columns[_PATH] = path
    return [
        mutation
        for qualifier, value in columns.items()
        for mutation in (
            DeleteRangeFromColumn(ROW, qualifier),
            SetCell(ROW, qualifier, value, timestamp_micros=kept_from),
        )
    ]


def _kept_from(content: Content | HeadContent, expires: UnixMicros | None, now: UnixMicros) -> int:
    """The timestamp of a row's cells: what they are kept for after that, they are kept."""
    if isinstance(content, Gone):
        start = now
    elif isinstance(content, Tombstone) or expires is None:
        start = _NEVER
    else:
        start = max(now, expires)
    return max(0, min(_NEVER, -(-start // _GRANULARITY) * _GRANULARITY))


# What is asked


THERE: RowFilter = exists(ROW, _VERSION)
"""There is a row."""
POINTS: RowFilter = matches(ROW, _HEAD, _TOMBSTONE + rb"\C*")
"""It is a tombstone."""
IS_INLINE: RowFilter = matches(ROW, _HEAD, _INLINE + rb"\C*")
"""It is an inline row."""
POINTS_NOWHERE: RowFilter = matches(ROW, _HEAD, rb"(?:i\C*|g|)")
"""It is an inline row or a gone one."""


def has_version(version: Version) -> RowFilter | None:
    """The row has this version; None if none can have it."""
    if len(version) != _VERSION_BYTES:
        return None
    return matches(ROW, _VERSION, rb"\C*" + quoted(version) + rb"\C{%d}" % INSTANT_BYTES)


def has_fenced(fenced: Version) -> RowFilter | None:
    """The row's ``fenced`` is this one; None if none can have it."""
    if len(fenced) != _VERSION_BYTES:
        return None
    return matches(ROW, _FENCED, rb"\C*" + quoted(fenced))


def has_deadline(cells: Cells) -> RowFilter:
    """The row's deadline is the one that was read, sealed or not; there was one."""
    return matches(ROW, _DEADLINE, quoted(cells[ROW, _DEADLINE]))


def expired_by(instant: UnixMicros) -> RowFilter:
    """The row has a deadline, and it is not later than ``instant``."""
    last = instant_bytes(instant)
    return within(ROW, _DEADLINE, (_FIRST_INSTANT, last), (_SEALED + _FIRST_INSTANT, _SEALED + last))


def can_move(now: UnixMicros, expires: UnixMicros) -> RowFilter:
    """The row has a deadline that is not sealed, lies behind ``now``, and before ``expires``."""
    return within(ROW, _DEADLINE, (instant_bytes(now + 1), instant_bytes(expires - 1)))
