"""The high-volume backend on one SQLite file: the default for one box.

Guarantees what `tierstore.backends.high_volume.contract` says, for any number of processes with the file open. Waiting
writes share commits (see `tierstore.embedded.database`). Payloads are in a table of their own, so that moving a
deadline, fencing or listing does not touch them, and each is kept with its XXH3-128 checksum, verified by every read.

It does not expire anything by itself (`SqliteHighVolume.expired` and `SqliteHighVolume.remove_markers` are for the
sweeper), and it does not shrink the file: the pages of what is removed are used again.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, assert_never
from uuid import UUID

import xxhash

from tierstore import telemetry
from tierstore.backends.high_volume.contract import (
    Content,
    FoundRow,
    Gone,
    HeadContent,
    HighVolumeBackend,
    Inline,
    InlineHead,
    Row,
    RowHead,
    Tombstone,
    TombstoneRow,
)
from tierstore.clock import Clock, UnixMicros
from tierstore.embedded.database import Connection, Database, Schema
from tierstore.embedded.identity import MIGRATION as IDENTITY_MIGRATION
from tierstore.embedded.identity import keep_identity, kept_identity
from tierstore.errors import CorruptObject, InvalidRequest
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.listing import readable
from tierstore.types.ids import AS_STORED, ObjectId, Version

_INLINE, _TOMBSTONE, _GONE = 0, 1, 2
"""Values of ``rows.kind``; the statements below have them as literals, so that the partial indexes are used."""
_REVISION_BYTES = 16

SCHEMA = Schema(
    application_id=0x74734856,  # "tsHV"
    name="high_volume",
    migrations=(
        """
        CREATE TABLE rows (
            id INTEGER PRIMARY KEY,
            path BLOB NOT NULL UNIQUE,  -- the object's storage path in UTF-8: compared byte by byte, may hold NUL
            version BLOB NOT NULL,
            kind INTEGER NOT NULL,      -- 0 inline, 1 tombstone, 2 gone
            metadata BLOB,              -- NULL for gone
            revision BLOB,              -- 16 bytes, tombstones only
            expires INTEGER,            -- microseconds since the Unix epoch
            changed INTEGER NOT NULL    -- when the version was written, likewise
        ) STRICT;
        CREATE TABLE payloads (
            row INTEGER PRIMARY KEY,    -- rows.id of an inline row
            checksum BLOB NOT NULL,     -- XXH3-128, big-endian
            payload BLOB NOT NULL
        ) STRICT;
        CREATE INDEX rows_by_deadline ON rows (expires) WHERE kind != 2 AND expires IS NOT NULL;
        CREATE INDEX rows_by_removal ON rows (changed) WHERE kind = 2;
        """,
        IDENTITY_MIGRATION,
        "ALTER TABLE rows ADD COLUMN fenced BLOB NOT NULL DEFAULT x''",  # RowHead.fenced
    ),
)

_READ = """
    SELECT version, kind, metadata, revision, expires, checksum, payload
    FROM rows LEFT JOIN payloads ON payloads.row = rows.id WHERE path = ?
"""
_HEAD = "SELECT version, kind, metadata, revision, expires, fenced FROM rows WHERE path = ?"
_TOMBSTONE_ROW = "SELECT version, metadata, revision, expires FROM rows WHERE path = ? AND kind = 1"
_PUT_INLINE = """
    INSERT INTO rows (path, version, kind, metadata, expires, changed, fenced) VALUES (?1, ?2, 0, ?3, ?4, ?5, ?2)
    ON CONFLICT (path) DO UPDATE SET version = excluded.version, kind = 0, metadata = excluded.metadata,
        expires = excluded.expires, changed = excluded.changed
    WHERE kind != 1
    RETURNING id
"""
_DELETE_INLINE = """
    UPDATE rows SET version = ?, kind = 2, metadata = NULL, expires = NULL, changed = ? WHERE path = ? AND kind = 0
    RETURNING id
"""
_INSERT = """
    INSERT INTO rows (version, kind, metadata, revision, expires, changed, path, fenced)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?1)
    ON CONFLICT (path) DO NOTHING
    RETURNING id
"""
_REPLACE = """
    UPDATE rows SET version = ?1, kind = ?2, metadata = ?3, revision = ?4, expires = ?5, changed = ?6,
        fenced = CASE WHEN kind = 1 OR ?2 = 1 THEN ?1 ELSE fenced END
    WHERE path = ?7 AND version = ?8
    RETURNING id
"""
_REPLACE_EXPIRED = """
    UPDATE rows SET version = ?1, kind = ?2, metadata = ?3, revision = ?4, expires = ?5, changed = ?6,
        fenced = CASE WHEN kind = 1 OR ?2 = 1 THEN ?1 ELSE fenced END
    WHERE path = ?7 AND version = ?8 AND expires <= ?9
    RETURNING id
"""
_FENCE = """
    INSERT INTO rows (version, changed, path, kind, fenced) VALUES (?1, ?2, ?3, 2, ?1)
    ON CONFLICT (path) DO UPDATE SET version = excluded.version, changed = excluded.changed, fenced = excluded.fenced
    RETURNING version, kind, metadata, revision, expires, fenced
"""
_POINT = """
    UPDATE rows SET version = ?1, kind = ?2, metadata = ?3, revision = ?4, expires = ?5, changed = ?6, fenced = ?1
    WHERE path = ?7 AND fenced = ?8
    RETURNING id
"""
_BRING_INLINE = """
    UPDATE rows SET version = ?1, kind = 0, revision = NULL, changed = ?2, fenced = ?1
    WHERE path = ?3 AND version = ?4 AND kind = 1
    RETURNING id
"""
_EXTEND = "UPDATE rows SET expires = ? WHERE path = ? AND version = ? AND expires > ? AND expires < ?"
_PUT_PAYLOAD = "INSERT OR REPLACE INTO payloads (row, checksum, payload) VALUES (?, ?, ?)"
_REMOVE_PAYLOAD = "DELETE FROM payloads WHERE row = ?"
_SCAN_FROM = """
    SELECT path, version, kind, metadata, revision, expires, fenced FROM rows WHERE path >= ? AND path < ? ORDER BY path
"""
_SCAN_AFTER = """
    SELECT path, version, kind, metadata, revision, expires, fenced FROM rows WHERE path > ? AND path < ? ORDER BY path
"""
_EXPIRED = """
    SELECT path, version, kind, metadata, revision, expires, fenced FROM rows INDEXED BY rows_by_deadline
    WHERE kind != 2 AND expires <= ? ORDER BY expires
"""
_REMOVE_MARKERS = """
    DELETE FROM rows WHERE id IN (
        SELECT id FROM rows INDEXED BY rows_by_removal WHERE kind = 2 AND changed <= ? ORDER BY changed LIMIT ?
    )
"""
_CHECK = "SELECT 1 FROM rows LIMIT 1"

_PATH_END = b"\xff"
"""Follows every storage path: UTF-8 has no such byte."""


_corrupt_reads = telemetry.corrupt_reads.labels("high_volume")


class SqliteHighVolume(HighVolumeBackend):
    """One high-volume store in a SQLite file."""

    def __init__(self, database: Database, clock: Clock, ids: IdSource, reserve_bytes: int) -> None:
        self._database = database
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self._ids = ids

    @classmethod
    async def open(
        cls, path: Path, *, limits: Limits, clock: Clock, ids: IdSource, readers: int = 2, reserve_bytes: int = 0
    ) -> "SqliteHighVolume":
        """Open the file with ``readers`` reading threads, making or migrating it as needed. Raises `StartupError`.

        A write of an inline object that would leave less than ``reserve_bytes`` of the disk free is refused with
        `StorageFull`, so that what makes room, deletes above all, has the room that it needs itself.
        """
        database = await Database.open(path, SCHEMA, limits=limits, clock=clock, readers=readers)
        return cls(database, clock, ids, reserve_bytes)

    async def read(self, object_id: ObjectId) -> Row | None:
        path = object_id.storage_path.encode()

        def work(connection: Connection) -> Row | None:
            record = connection.execute(_READ, (path,)).fetchone()
            if record is None:
                return None
            version, kind, metadata, revision, expires, checksum, payload = record
            content = _head_content(kind, metadata, revision)
            if isinstance(content, InlineHead):
                if payload is None or xxhash.xxh3_128_digest(payload) != checksum:
                    _corrupt_reads.inc()
                    raise CorruptObject(f"the payload of {object_id} does not match its checksum")
                return Row(version, Inline(metadata, payload), expires)
            return Row(version, content, expires)

        return await self._database.read(work)

    async def head(self, object_id: ObjectId) -> RowHead | None:
        path = object_id.storage_path.encode()

        def work(connection: Connection) -> RowHead | None:
            record = connection.execute(_HEAD, (path,)).fetchone()
            return None if record is None else _row_head(record)

        return await self._database.read(work)

    async def put_inline(self, object_id: ObjectId, content: Inline, expires: UnixMicros | None) -> TombstoneRow | None:
        path = object_id.storage_path.encode()
        version = self._ids.version()
        checksum = xxhash.xxh3_128_digest(content.payload)

        weight = _weight(path, content)

        def work(connection: Connection) -> TombstoneRow | None:
            self._database.check_room(connection, weight, self._reserve_bytes)
            row = (path, version, content.metadata, expires, self._clock.now())
            written = connection.execute(_PUT_INLINE, row).fetchone()
            if written is None:
                return _tombstone_row(connection, path)
            connection.execute(_PUT_PAYLOAD, (written[0], checksum, content.payload))
            return None

        return await self._database.write(work, weight=weight)

    async def delete_inline(self, object_id: ObjectId) -> TombstoneRow | None:
        path = object_id.storage_path.encode()
        version = self._ids.version()

        def work(connection: Connection) -> TombstoneRow | None:
            deleted = connection.execute(_DELETE_INLINE, (version, self._clock.now(), path)).fetchone()
            if deleted is None:
                return _tombstone_row(connection, path)
            connection.execute(_REMOVE_PAYLOAD, deleted)
            return None

        return await self._database.write(work, weight=len(path))

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
        if expected is None and if_expired_by is not None:
            return None  # no row has no deadline
        path = object_id.storage_path.encode()
        version = self._ids.version()
        columns = _columns(content)
        weight = _weight(path, content)
        checksum = xxhash.xxh3_128_digest(content.payload) if isinstance(content, Inline) else b""

        def work(connection: Connection) -> Version | None:
            now = self._clock.now()
            if not_after is not None and now > not_after:  # with the write lock held, so that nothing can come between
                return None
            if isinstance(content, Inline):
                self._database.check_room(connection, weight, self._reserve_bytes)
            row = (version, *columns, expires, now, path)
            if expected is None:
                cursor = connection.execute(_INSERT, row)
            elif if_expired_by is None:
                cursor = connection.execute(_REPLACE, (*row, expected))
            else:
                cursor = connection.execute(_REPLACE_EXPIRED, (*row, expected, if_expired_by))
            written = cursor.fetchone()
            if written is None:
                return None
            if isinstance(content, Inline):
                connection.execute(_PUT_PAYLOAD, (written[0], checksum, content.payload))
            else:
                connection.execute(_REMOVE_PAYLOAD, written)
            return version

        return await self._database.write(work, weight=weight)

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        path = object_id.storage_path.encode()
        version = self._ids.version()
        columns = _columns(content)

        def work(connection: Connection) -> bool:
            now = self._clock.now()
            if now > not_after:
                return False
            row = (version, *columns, expires, now, path)
            if base is None:
                written = connection.execute(_INSERT, row).fetchone()
            else:
                written = connection.execute(_POINT, (*row, base.fenced)).fetchone()
            if written is not None:
                connection.execute(_REMOVE_PAYLOAD, written)
            return written is not None

        return await self._database.write(work, weight=_weight(path, content))

    async def bring_inline(
        self, object_id: ObjectId, expected: Version, payload: bytes, *, not_after: UnixMicros
    ) -> bool:
        path = object_id.storage_path.encode()
        version = self._ids.version()
        checksum = xxhash.xxh3_128_digest(payload)
        weight = len(path) + len(payload)

        def work(connection: Connection) -> bool:
            now = self._clock.now()
            if now > not_after:
                return False
            self._database.check_room(connection, weight, self._reserve_bytes)
            written = connection.execute(_BRING_INLINE, (version, now, path, expected)).fetchone()
            if written is None:
                return False
            connection.execute(_PUT_PAYLOAD, (written[0], checksum, payload))
            return True

        return await self._database.write(work, weight=weight)

    async def fence(self, object_id: ObjectId) -> RowHead:
        path = object_id.storage_path.encode()
        version = self._ids.version()

        def work(connection: Connection) -> RowHead:
            (record,) = connection.execute(_FENCE, (version, self._clock.now(), path)).fetchall()
            return _row_head(record)

        return await self._database.write(work, weight=len(path))

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        path = object_id.storage_path.encode()

        def work(connection: Connection) -> bool:
            connection.execute(_EXTEND, (expires, path, version, self._clock.now(), expires))
            return connection.changes() > 0

        return await self._database.write(work, weight=len(path))

    async def scan(self, prefix: str, after: str | None, limit: int) -> Sequence[FoundRow]:
        first = prefix.encode()
        end = first[:-1] + bytes([first[-1] + 1]) if first else _PATH_END  # the byte is below 255 in UTF-8
        last_seen = None if after is None else after.encode()
        if last_seen is None or last_seen < first:
            return await self._list(_SCAN_FROM, (first, end), limit)
        return await self._list(_SCAN_AFTER, (last_seen, end), limit)

    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        return await self._list(_EXPIRED, (by,), limit)

    async def _list(self, statement: str, bindings: tuple[bytes | int, ...], limit: int) -> Sequence[FoundRow]:
        def work(connection: Connection) -> list[FoundRow]:
            with closing(connection.cursor()) as cursor:
                return readable(cursor.execute(statement, bindings), _found_row, limit)

        return await self._database.read(work)

    async def remove_markers(self, before: UnixMicros, limit: int) -> int:
        def work(connection: Connection) -> int:
            connection.execute(_REMOVE_MARKERS, (before, limit))
            return connection.changes()

        return await self._database.write(work)

    async def identity(self) -> UUID | None:
        return await kept_identity(self._database)

    async def adopt(self, identity: UUID) -> UUID:
        return await keep_identity(self._database, identity)

    async def check(self) -> None:
        await self._database.read(lambda connection: connection.execute(_CHECK).fetchall())

    async def close(self) -> None:
        await self._database.close()


def _found_row(record: Sequence[Any]) -> FoundRow:
    path, *columns = record
    try:
        return FoundRow(ObjectId.from_storage_path(path.decode(), AS_STORED), _row_head(columns))
    except (InvalidRequest, ValueError) as error:  # ValueError: no UTF-8, or no UUID
        raise CorruptObject(f"a row of the high-volume store cannot be read: its path is {path!r}") from error


def _row_head(record: Sequence[Any]) -> RowHead:
    version, kind, metadata, revision, expires, fenced = record
    return RowHead(version, _head_content(kind, metadata, revision), expires, fenced)


def _head_content(kind: int, metadata: bytes | None, revision: bytes | None) -> HeadContent:
    """What a row holds, but for a payload. Raises `CorruptObject` for columns that were never written so."""
    if kind == _INLINE and metadata is not None:
        return InlineHead(metadata)
    if kind == _TOMBSTONE:
        return _tombstone(metadata, revision)
    if kind == _GONE:
        return Gone()
    raise _damaged()


def _tombstone(metadata: bytes | None, revision: bytes | None) -> Tombstone:
    """The content of a row that points to a blob. Raises `CorruptObject` for columns that were never written so."""
    if metadata is None or revision is None or len(revision) != _REVISION_BYTES:
        raise _damaged()
    return Tombstone(metadata, UUID(bytes=revision))


def _damaged() -> CorruptObject:
    _corrupt_reads.inc()
    return CorruptObject("a row of the high-volume store is damaged: its columns do not fit its kind")


def _tombstone_row(connection: Connection, path: bytes) -> TombstoneRow | None:
    record = connection.execute(_TOMBSTONE_ROW, (path,)).fetchone()
    if record is None:
        return None
    version, metadata, revision, expires = record
    return TombstoneRow(version, _tombstone(metadata, revision), expires)


def _columns(content: Content) -> tuple[int, bytes | None, bytes | None]:
    """``kind``, ``metadata`` and ``revision`` of a row with ``content``."""
    match content:
        case Inline(metadata):
            return _INLINE, metadata, None
        case Tombstone(metadata, revision):
            return _TOMBSTONE, metadata, revision.bytes
        case Gone():
            return _GONE, None, None
        case _:
            assert_never(content)


def _weight(path: bytes, content: Content) -> int:
    match content:
        case Inline(metadata, payload):
            return len(path) + len(metadata) + len(payload)
        case Tombstone(metadata):
            return len(path) + len(metadata)
        case Gone():
            return len(path)
        case _:
            assert_never(content)
