"""Every high-volume backend obeys its laws; and what is SQLite's own."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import xxhash
from structlog.testing import capture_logs

from tierstore.backends.high_volume import sqlite
from tierstore.backends.high_volume.contract import Content, Gone, HighVolumeBackend, Inline, Tombstone
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows, StoredRow
from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.embedded.database import Connection
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.high_volume import HighVolumeLaws, RawRow
from tierstore.types.ids import ObjectId

T = TypeVar("T")


COLUMNS = "path, version, kind, metadata, revision, expires, changed"


class TestMemoryHighVolume(HighVolumeLaws):
    """The rows in a dict."""

    @pytest.fixture(autouse=True)
    def _store(self) -> None:
        self.clock = ManualClock()
        self.rows = MemoryRows()
        self.opened = 0

    async def open(self) -> HighVolumeBackend:
        self.opened += 1
        return MemoryHighVolume(self.rows, clock=self.clock, ids=SeededIds(self.opened))

    async def stored(self, object_id: ObjectId) -> RawRow | None:
        row = self.rows.by_id.get(object_id)
        return None if row is None else RawRow(row.version, row.content, row.expires, row.changed)

    async def plant(self, object_id: ObjectId, row: RawRow) -> None:
        self._put(object_id, row, row.content)

    async def damage(self, object_id: ObjectId, payload: bytes) -> None:
        row = await self.now_stored(object_id)
        assert isinstance(row.content, Inline)
        self._put(object_id, RawRow(row.version, Inline(row.content.metadata, payload)), row.content)

    def _put(self, object_id: ObjectId, row: RawRow, sealed: Content) -> None:
        checksum = xxhash.xxh3_128_digest(sealed.payload) if isinstance(sealed, Inline) else b""
        self.rows.by_id[object_id] = StoredRow(row.version, row.content, row.expires, row.changed, checksum)


class TestSqliteHighVolume(HighVolumeLaws):
    """The rows in a SQLite file, and a back door that reads and writes its tables."""

    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> None:
        self.clock = ManualClock()
        self.path = tmp_path / "high_volume.sqlite"
        self.opened = 0

    async def open(self) -> SqliteHighVolume:
        self.opened += 1
        return await SqliteHighVolume.open(
            self.path, limits=Limits.tiny(), clock=self.clock, ids=SeededIds(self.opened)
        )

    def raw(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` on a connection of its own."""
        with closing(Connection(str(self.path))) as connection:
            connection.set_busy_timeout(5_000)
            connection.pragma("synchronous", "OFF")  # no test turns the power off
            return work(connection)

    async def stored(self, object_id: ObjectId) -> RawRow | None:
        path = object_id.storage_path.encode()

        def work(connection: Connection) -> RawRow | None:
            row: Any = connection.execute(f"SELECT id, {COLUMNS} FROM rows WHERE path = ?", (path,)).fetchone()
            if row is None:
                return None
            number, _, version, kind, metadata, revision, expires, changed = row
            payloads: Any = connection.execute("SELECT payload FROM payloads WHERE row = ?", (number,)).fetchall()
            assert len(payloads) == (kind == 0), "a payload without its row, or a row without its payload"
            content: Content = Gone()
            if kind == 0:
                content = Inline(metadata, *payloads[0])
            elif kind == 1:
                content = Tombstone(metadata, UUID(bytes=revision))
            return RawRow(version, content, expires, changed)

        return self.raw(work)

    async def plant(self, object_id: ObjectId, row: RawRow) -> None:
        content = row.content
        kind = [Inline, Tombstone, Gone].index(type(content))
        metadata = None if isinstance(content, Gone) else content.metadata
        revision = content.revision.bytes if isinstance(content, Tombstone) else None
        path = object_id.storage_path.encode()

        def work(connection: Connection) -> None:
            number = connection.execute(
                f"INSERT INTO rows ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (path, row.version, kind, metadata, revision, row.expires, row.changed),
            ).get
            if isinstance(content, Inline):
                checksum = xxhash.xxh3_128_digest(content.payload)
                connection.execute("INSERT INTO payloads VALUES (?, ?, ?)", (number, checksum, content.payload))

        self.raw(work)

    async def damage(self, object_id: ObjectId, payload: bytes) -> None:
        path = object_id.storage_path.encode()
        statement = "UPDATE payloads SET payload = ? WHERE row = (SELECT id FROM rows WHERE path = ?)"
        self.raw(lambda connection: connection.execute(statement, (payload, path)).fetchall())

    async def test_rows_outlive_a_lowered_limit(self, store: HighVolumeBackend) -> None:
        """A row whose key is longer than keys may be now is still listed."""
        long = ObjectId("photos", (), "k" * 10_000)
        await self.plant(long, RawRow(b"v" * 16, Gone()))
        assert [row.object_id for row in await store.scan("", None, 9)] == [long]

    @pytest.mark.parametrize(
        "damage", ["path = x'FF'", "path = CAST('no object' AS BLOB)", "kind = 1, revision = x'01'"]
    )
    async def test_unreadable_rows_are_passed_over(self, store: HighVolumeBackend, damage: str) -> None:
        """A row that cannot be read is logged and keeps no other one from being listed, wherever it stands."""
        named = [ObjectId("photos", (), key) for key in "abcd"]
        for number, object_id in enumerate(named):
            await self.plant(object_id, RawRow(b"v" * 16, Inline(b"", b""), expires=number))
        path = named[1].storage_path.encode()
        self.raw(lambda connection: connection.execute(f"UPDATE rows SET {damage} WHERE path = ?", (path,)).fetchall())
        left = [named[0], *named[2:]]
        with capture_logs() as logs:
            assert [found.object_id for found in await store.expired(9, 3)] == left
            assert [found.object_id for found in await store.expired(9, 1)] == left[:1]
        assert [line["log_level"] for line in logs] == ["error"]
        assert [found.object_id for found in await store.scan("", None, 3)] == left
        paths = [object_id.storage_path for object_id in left]
        assert [found.object_id for found in await store.scan("", paths[0], 1)] == left[1:2]

    async def test_deadlines_and_markers_are_found_by_index(self, store: HighVolumeBackend) -> None:
        """Finding what is expired, or gone for long, never reads the whole table; a page of a scan sorts nothing."""
        await store.check()
        plans = self.raw(
            lambda connection: {
                name: " ".join(step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings))
                for name, statement, bindings in (
                    ("expired", sqlite._EXPIRED, (1,)),
                    ("remove_markers", sqlite._REMOVE_MARKERS, (1, 1)),
                    ("scan", sqlite._SCAN_FROM, (b"a", b"b")),
                    ("scan after", sqlite._SCAN_AFTER, (b"a", b"b")),
                    ("head", sqlite._HEAD, (b"a",)),
                )
            }
        )
        for plan in plans.values():
            assert "SCAN" not in plan
            assert "TEMP B-TREE" not in plan
        assert "rows_by_deadline" in plans["expired"]
        assert "rows_by_removal" in plans["remove_markers"]

    async def test_moving_a_deadline_writes_no_payload(self, store: SqliteHighVolume) -> None:
        """`extend` and `fence` of a large row append a few pages to the WAL, not the payload."""
        one = ObjectId("photos", (), "large")
        now = self.clock.now()
        await store.put_inline(one, Inline(b"", b"p" * 1_000_000), now + 1)
        wal = self.path.with_name(f"{self.path.name}-wal")
        before = wal.stat().st_size
        head = await store.head(one)
        assert head is not None
        assert await store.extend(one, head.version, now + 2)
        await store.fence(one)
        assert wal.stat().st_size - before < 100_000

    async def test_no_payload_is_left_behind(self, store: HighVolumeBackend) -> None:
        """A payload goes with its row's content: by delete, by tombstone, by overwriting."""
        one, two, three = (ObjectId("photos", (), key) for key in "abc")
        for object_id in (one, two, three):
            await store.put_inline(object_id, Inline(b"", b"first"), None)
        await store.delete_inline(one)
        version = (await self.now_stored(two)).version
        assert await store.compare_and_write(two, version, Tombstone(b"", UUID(int=1)), None) is not None
        await store.put_inline(three, Inline(b"", b"second"), None)
        payloads = self.raw(lambda connection: connection.execute("SELECT payload FROM payloads").fetchall())
        assert payloads == [(b"second",)]
