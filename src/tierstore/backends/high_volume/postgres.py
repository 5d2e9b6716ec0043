"""The high-volume backend in a PostgreSQL database, for any number of servers.

Guarantees what `tierstore.backends.high_volume.contract` says. Each method is one statement, which is a transaction of
its own and one round trip (see `tierstore.postgresql.pool`), and is durable when it returns. All of them change at most
one row, so that READ COMMITTED is enough: PostgreSQL looks at the conditions again when it had to wait for the row.

A row has its payload with it, stored out of line from about 2 KiB on (TOAST), and uncompressed, so that `head`,
`fence`, `extend` and the listings do not touch it. Each payload has its XXH3-128 checksum, which every read verifies.

Time. The clock given to `open` is the backend's: its instant goes into the statement. What keeps a statement that is
late from believing it:

- One with ``not_after``, an extension, a small write and a delete do nothing if the server's clock says that they were
  on their way for longer than ``postgres_lateness_seconds_max`` (30 s). So nothing is written later than that after
  ``not_after``, however long the process stood still or the network held it back; and a small write or a delete whose
  outcome is unknown has happened by then, or never does.
- A call of `extend` that finds the deadline passed leaves a mark in the row (``lapsed``): from then on no extension of
  that deadline is carried out, whatever instant it came with.

It does not expire anything by itself: `PostgresHighVolume.expired` and `remove_markers` are for the sweeper.
"""

from collections.abc import Iterable, Sequence
from typing import Any, assert_never, cast
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
from tierstore.errors import CorruptObject, InvalidRequest
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.postgresql.listing import listed
from tierstore.postgresql.names import halves, key_of
from tierstore.postgresql.pool import Pool, Record, Server
from tierstore.postgresql.schema import Namespace, Tables, opened, statement
from tierstore.types.ids import AS_STORED, ObjectId, Version

_INLINE, _TOMBSTONE, _GONE = 0, 1, 2
"""Values of ``rows.kind``; the statements below have them as literals, so that the partial indexes are used."""

TABLES = Tables(
    "high_volume",
    (
        """
        CREATE TABLE {schema}.rows (
            changed bigint NOT NULL,                -- when the version was written; microseconds since the Unix epoch
            expires bigint,                         -- likewise
            removable bigint,                       -- ``changed`` of what is gone; apart, so that most writes are HOT
            revision uuid,                          -- of a tombstone
            kind smallint NOT NULL,                 -- 0 inline, 1 tombstone, 2 gone
            lapsed boolean NOT NULL DEFAULT false,  -- ``expires`` was found passed, and is not extended any more
            first bytea NOT NULL,                   -- the object's storage path in UTF-8 begins so
            digest bytea NOT NULL,                  -- of the whole path, if it goes on; empty otherwise
            rest bytea NOT NULL DEFAULT '',         -- how it goes on
            version bytea NOT NULL,
            fenced bytea NOT NULL,                  -- RowHead.fenced
            checksum bytea,                         -- XXH3-128 of the payload, big-endian
            metadata bytea,                         -- null for what is gone
            payload bytea,                          -- of an inline row
            PRIMARY KEY (first, digest)
        ) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05);
        ALTER TABLE {schema}.rows ALTER payload SET STORAGE EXTERNAL, ALTER metadata SET STORAGE MAIN;
        CREATE INDEX rows_by_deadline ON {schema}.rows (expires) WHERE kind != 2 AND expires IS NOT NULL;
        CREATE INDEX rows_by_removal ON {schema}.rows (removable) WHERE removable IS NOT NULL;
        """,
    ),
)

_READ = """
    SELECT version, kind, metadata, revision, expires, checksum, payload
    FROM {schema}.rows WHERE first = $1 AND digest = $2
"""
_HEAD = """
    SELECT version, kind, metadata, revision, expires, fenced FROM {schema}.rows WHERE first = $1 AND digest = $2
"""
# A tombstone that is met is written over with itself: so the row is returned as it is at that moment, whoever else
# writes, which no condition on the update could do in one statement.
_PUT_INLINE = """
    INSERT INTO {schema}.rows AS held
        (first, digest, rest, version, fenced, kind, metadata, expires, changed, checksum, payload)
    VALUES ($1, $2, $3, $4, $4, 0, $5, $6, $7, $8, $9)
    ON CONFLICT (first, digest) DO UPDATE SET
        kind = CASE held.kind WHEN 1 THEN 1 ELSE 0 END,
        version = CASE held.kind WHEN 1 THEN held.version ELSE excluded.version END,
        metadata = CASE held.kind WHEN 1 THEN held.metadata ELSE excluded.metadata END,
        expires = CASE held.kind WHEN 1 THEN held.expires ELSE excluded.expires END,
        lapsed = held.lapsed AND held.kind = 1,
        changed = CASE held.kind WHEN 1 THEN held.changed ELSE excluded.changed END,
        removable = NULL,
        checksum = CASE held.kind WHEN 1 THEN NULL ELSE excluded.checksum END,
        payload = CASE held.kind WHEN 1 THEN NULL ELSE excluded.payload END
    RETURNING kind, CASE kind WHEN 1 THEN version END, CASE kind WHEN 1 THEN metadata END, revision, expires,
        1 / (clock_timestamp() <= to_timestamp($10::float8))::int
"""
_DELETE_INLINE = """
    UPDATE {schema}.rows SET
        kind = CASE kind WHEN 1 THEN 1 ELSE 2 END,
        version = CASE kind WHEN 1 THEN version ELSE $3 END,
        metadata = CASE kind WHEN 1 THEN metadata END,
        expires = CASE kind WHEN 1 THEN expires END,
        lapsed = lapsed AND kind = 1,
        changed = CASE kind WHEN 1 THEN changed ELSE $4 END,
        removable = CASE kind WHEN 1 THEN NULL ELSE $4 END,
        checksum = NULL,
        payload = NULL
    WHERE first = $1 AND digest = $2 AND kind != 2
    RETURNING kind, CASE kind WHEN 1 THEN version END, CASE kind WHEN 1 THEN metadata END, revision, expires,
        1 / (clock_timestamp() <= to_timestamp($5::float8))::int
"""
# The clock is looked at once more when the row is in its place, for which the statement may have had to wait: division
# by zero is what undoes it then (see `Pool.write`). It is the same with the next ones.
_INSERT = """
    INSERT INTO {schema}.rows
        (first, digest, version, fenced, kind, metadata, revision, expires, changed, removable, checksum, payload, rest)
    SELECT $1::bytea, $2::bytea, $3::bytea, $3::bytea, $4::smallint, $5::bytea, $6::uuid, $7::bigint, $8::bigint,
        CASE $4::smallint WHEN 2 THEN $8::bigint END, $9::bytea, $10::bytea, $12::bytea
    WHERE clock_timestamp() <= to_timestamp($11::float8)
    ON CONFLICT (first, digest) DO NOTHING
    RETURNING 1 / (clock_timestamp() <= to_timestamp($11::float8))::int
"""
_REPLACE = """
    UPDATE {schema}.rows SET version = $3, kind = $4, metadata = $5, revision = $6, expires = $7, lapsed = false,
        changed = $8, removable = CASE $4::smallint WHEN 2 THEN $8::bigint END, checksum = $9, payload = $10,
        fenced = CASE WHEN kind = 1 OR $4::smallint = 1 THEN $3 ELSE fenced END
    WHERE first = $1 AND digest = $2 AND version = $12 AND ($13::bigint IS NULL OR expires <= $13)
        AND clock_timestamp() <= to_timestamp($11::float8)
    RETURNING 1 / (clock_timestamp() <= to_timestamp($11::float8))::int
"""
_POINT = """
    UPDATE {schema}.rows SET version = $3, kind = 1, metadata = $4, revision = $5, expires = $6, lapsed = false,
        changed = $7, removable = NULL, checksum = NULL, payload = NULL, fenced = $3
    WHERE first = $1 AND digest = $2 AND fenced = $9 AND clock_timestamp() <= to_timestamp($8::float8)
    RETURNING 1 / (clock_timestamp() <= to_timestamp($8::float8))::int
"""
_BRING_INLINE = """
    UPDATE {schema}.rows SET version = $3, kind = 0, revision = NULL, changed = $4, checksum = $5, payload = $6,
        fenced = $3
    WHERE first = $1 AND digest = $2 AND version = $8 AND kind = 1 AND clock_timestamp() <= to_timestamp($7::float8)
    RETURNING 1 / (clock_timestamp() <= to_timestamp($7::float8))::int
"""
_FENCE = """
    INSERT INTO {schema}.rows AS held (first, digest, rest, version, fenced, kind, changed, removable)
    VALUES ($1, $2, $3, $4, $4, 2, $5, $5)
    ON CONFLICT (first, digest) DO UPDATE SET version = excluded.version, fenced = excluded.fenced,
        changed = excluded.changed, removable = CASE held.kind WHEN 2 THEN excluded.changed END
    RETURNING version, kind, metadata, revision, expires, fenced
"""
# Takes the row's lock whenever its answer could still be another one, which is how it waits for an extension that has
# looked at the clock before.
_EXTEND = """
    UPDATE {schema}.rows SET expires = CASE WHEN expires > $4 THEN $5 ELSE expires END, lapsed = expires <= $4
    WHERE first = $1 AND digest = $2 AND version = $3 AND NOT lapsed
        AND (expires <= $4 OR (expires < $5 AND clock_timestamp() <= to_timestamp($6::float8)))
    RETURNING NOT lapsed AND 1 / (lapsed OR clock_timestamp() <= to_timestamp($6::float8))::int = 1
"""
_SCAN_FROM = """
    SELECT first, rest, version, kind, metadata, revision, expires, fenced FROM {schema}.rows
    WHERE (first, rest) >= ($1, $2) AND (first, rest) < ($3, $4)
    ORDER BY first, rest LIMIT $5 OFFSET $6
"""
_SCAN_AFTER = _SCAN_FROM.replace("(first, rest) >= ($1, $2)", "(first, rest) > ($1, $2)")
_EXPIRED = """
    SELECT first, rest, version, kind, metadata, revision, expires, fenced FROM {schema}.rows
    WHERE kind != 2 AND expires <= $1 ORDER BY expires LIMIT $2 OFFSET $3
"""
_REMOVE_MARKERS = """
    WITH removed AS (
        DELETE FROM {schema}.rows USING (
            SELECT first, digest FROM {schema}.rows
            WHERE removable <= $1 ORDER BY removable LIMIT $2 FOR UPDATE SKIP LOCKED
        ) AS old
        WHERE rows.first = old.first AND rows.digest = old.digest AND rows.removable <= $1
        RETURNING 1
    ) SELECT count(*) FROM removed
"""
_CHECK = "SELECT 1 FROM {schema}.rows LIMIT 1"

_NEVER = 1e11
"""An instant that does not come: the year 5138."""
_PATH_END = b"\xff"
"""Follows every storage path: UTF-8 has no such byte."""

_corrupt_reads = telemetry.corrupt_reads.labels("high_volume")


class PostgresHighVolume(HighVolumeBackend):
    """One high-volume store in a schema of a PostgreSQL database."""

    def __init__(self, pool: Pool, namespace: Namespace, schema: str, clock: Clock, ids: IdSource) -> None:
        self._pool = pool
        self._namespace = namespace
        self._clock = clock
        self._ids = ids
        self._read = statement(_READ, schema)
        self._head = statement(_HEAD, schema)
        self._put_inline = statement(_PUT_INLINE, schema)
        self._delete_inline = statement(_DELETE_INLINE, schema)
        self._insert = statement(_INSERT, schema)
        self._replace = statement(_REPLACE, schema)
        self._point = statement(_POINT, schema)
        self._bring_inline = statement(_BRING_INLINE, schema)
        self._fence = statement(_FENCE, schema)
        self._extend = statement(_EXTEND, schema)
        self._scan_from = statement(_SCAN_FROM, schema)
        self._scan_after = statement(_SCAN_AFTER, schema)
        self._expired = statement(_EXPIRED, schema)
        self._remove_markers = statement(_REMOVE_MARKERS, schema)
        self._check = statement(_CHECK, schema)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        schema: str = "tierstore",
        connections_max: int = 16,
        timeout_seconds: float = 10.0,
        prepared_statements: bool = True,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> "PostgresHighVolume":
        """Connect, and make or migrate the tables in ``schema`` as needed. Raises `StartupError`.

        ``prepared_statements`` is to be false behind a transaction pooler that does not keep them; every call has two
        round trips then.
        """
        server = Server(
            url=url,
            connections_max=connections_max,
            timeout_seconds=timeout_seconds,
            prepared_statements=prepared_statements,
        )
        pool, namespace = await opened(server, schema, TABLES, limits=limits, clock=clock)
        return cls(pool, namespace, schema, clock, ids)

    async def read(self, object_id: ObjectId) -> Row | None:
        try:
            records = await self._pool.read(self._read, *key_of(object_id.storage_path.encode()))
        except CorruptObject:  # the server itself has found it
            _corrupt_reads.inc()
            raise
        if not records:
            return None
        version, kind, metadata, revision, expires, checksum, payload = records[0]
        content = _head_content(kind, metadata, revision)
        if isinstance(content, InlineHead):
            if payload is None or xxhash.xxh3_128_digest(payload) != checksum:
                _corrupt_reads.inc()
                raise CorruptObject(f"the payload of {object_id} does not match its checksum")
            return Row(version, Inline(metadata, payload), expires)
        return Row(version, content, expires)

    async def head(self, object_id: ObjectId) -> RowHead | None:
        records = await self._pool.read(self._head, *key_of(object_id.storage_path.encode()))
        return _row_head(records[0]) if records else None

    async def put_inline(self, object_id: ObjectId, content: Inline, expires: UnixMicros | None) -> TombstoneRow | None:
        path = object_id.storage_path.encode()
        [held] = await self._pool.write_soon(
            self._put_inline,
            *key_of(path),
            halves(path)[1],
            self._ids.version(),
            content.metadata,
            expires,
            self._clock.now(),
            xxhash.xxh3_128_digest(content.payload),
            content.payload,
        )
        return _tombstone_row(held)

    async def delete_inline(self, object_id: ObjectId) -> TombstoneRow | None:
        key = key_of(object_id.storage_path.encode())
        held = await self._pool.write_soon(self._delete_inline, *key, self._ids.version(), self._clock.now())
        return _tombstone_row(held[0]) if held else None

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
        now = self._clock.now()
        if not_after is not None and now > not_after:
            return None
        path = object_id.storage_path.encode()
        version = self._ids.version()
        columns = (
            *key_of(path),
            version,
            *_columns(content),
            expires,
            now,
            *_payload(content),
            _NEVER if not_after is None else self._pool.latest(now),
        )
        if expected is None:
            written = await self._pool.write(self._insert, *columns, halves(path)[1])
        else:
            written = await self._pool.write(self._replace, *columns, expected, if_expired_by)
        return version if written else None

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        now = self._clock.now()
        if now > not_after:
            return False
        path = object_id.storage_path.encode()
        version, latest = self._ids.version(), self._pool.latest(now)
        if base is None:
            written = await self._pool.write(
                self._insert,
                *key_of(path),
                version,
                *_columns(content),
                expires,
                now,
                None,
                None,
                latest,
                halves(path)[1],
            )
        else:
            pointing = (version, content.metadata, content.revision, expires, now, latest)
            written = await self._pool.write(self._point, *key_of(path), *pointing, base.fenced)
        return bool(written)

    async def bring_inline(
        self, object_id: ObjectId, expected: Version, payload: bytes, *, not_after: UnixMicros
    ) -> bool:
        now = self._clock.now()
        if now > not_after:
            return False
        written = await self._pool.write(
            self._bring_inline,
            *key_of(object_id.storage_path.encode()),
            self._ids.version(),
            now,
            xxhash.xxh3_128_digest(payload),
            payload,
            self._pool.latest(now),
            expected,
        )
        return bool(written)

    async def fence(self, object_id: ObjectId) -> RowHead:
        path = object_id.storage_path.encode()
        key, rest = key_of(path), halves(path)[1]
        [fenced] = await self._pool.write(self._fence, *key, rest, self._ids.version(), self._clock.now())
        return _row_head(fenced)

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        key, now = key_of(object_id.storage_path.encode()), self._clock.now()
        looked = await self._pool.write(self._extend, *key, version, now, expires, self._pool.latest(now))
        return bool(looked and looked[0][0])

    async def scan(self, prefix: str, after: str | None, limit: int) -> Sequence[FoundRow]:
        begin = prefix.encode()
        end = begin[:-1] + bytes([begin[-1] + 1]) if begin else _PATH_END  # the byte is below 255 in UTF-8
        last_seen = None if after is None else after.encode()
        if last_seen is None or last_seen < begin:
            found, start = self._scan_from, begin
        else:
            found, start = self._scan_after, last_seen
        return await listed(self._pool, found, (*halves(start), *halves(end)), _found_row, limit)

    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        return await listed(self._pool, self._expired, (by,), _found_row, limit)

    async def remove_markers(self, before: UnixMicros, limit: int) -> int:
        [(removed,)] = await self._pool.write(self._remove_markers, before, limit)
        return cast("int", removed)

    async def identity(self) -> UUID | None:
        return await self._namespace.identity()

    async def adopt(self, identity: UUID) -> UUID:
        return await self._namespace.adopt(identity)

    async def check(self) -> None:
        await self._pool.read(self._check)

    async def close(self) -> None:
        await self._pool.close()


def _found_row(record: Record) -> FoundRow:
    first, rest, *columns = record
    path: bytes = first + rest
    try:
        return FoundRow(ObjectId.from_storage_path(path.decode(), AS_STORED), _row_head(columns))
    except (InvalidRequest, UnicodeDecodeError) as error:
        raise CorruptObject(f"a row of the high-volume store cannot be read: its path is {path!r}") from error


def _row_head(record: Iterable[Any]) -> RowHead:
    version, kind, metadata, revision, expires, fenced = record
    return RowHead(version, _head_content(kind, metadata, revision), expires, fenced)


def _head_content(kind: int, metadata: bytes | None, revision: UUID | None) -> HeadContent:
    """What a row holds, but for a payload. Raises `CorruptObject` for columns that were never written so."""
    if kind == _INLINE and metadata is not None:
        return InlineHead(metadata)
    if kind == _TOMBSTONE and metadata is not None and revision is not None:
        return Tombstone(metadata, revision)
    if kind == _GONE:
        return Gone()
    _corrupt_reads.inc()
    raise CorruptObject("a row of the high-volume store is damaged: its columns do not fit its kind")


def _tombstone_row(record: Record) -> TombstoneRow | None:
    """The tombstone that a write has met, if it has met one."""
    kind, version, metadata, revision, expires, _ = record
    if kind != _TOMBSTONE:
        return None
    content = _head_content(kind, metadata, revision)
    return TombstoneRow(version, content, expires) if isinstance(content, Tombstone) else None


def _columns(content: Content) -> tuple[int, bytes | None, UUID | None]:
    """``kind``, ``metadata`` and ``revision`` of a row with ``content``."""
    match content:
        case Inline(metadata):
            return _INLINE, metadata, None
        case Tombstone(metadata, revision):
            return _TOMBSTONE, metadata, revision
        case Gone():
            return _GONE, None, None
        case _:
            assert_never(content)


def _payload(content: Content) -> tuple[bytes | None, bytes | None]:
    """``checksum`` and ``payload`` of a row with ``content``."""
    if isinstance(content, Inline):
        return xxhash.xxh3_128_digest(content.payload), content.payload
    return None, None
