"""The stores on PostgreSQL obey their laws, on a real server; and what is PostgreSQL's own."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
import xxhash
from structlog.testing import capture_logs

from tests.conformance.test_changelog import THIRD, Call, answer
from tests.engines.postgres import Postgres
from tierstore.backends.high_volume.contract import Content, Gone, Inline, Tombstone
from tierstore.backends.high_volume.postgres import PostgresHighVolume
from tierstore.changelog.entries import Committed, Entry, Role, State
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.changelog.postgres import PostgresChangeLog
from tierstore.clock import SystemClock, UnixMicros
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.changelog import NEW, OLD, UPLOAD, ChangeLogLaws, in_order, listed, owner, revision
from tierstore.testing.laws.high_volume import HighVolumeLaws, RawRow, scan_all
from tierstore.types.ids import ObjectId, Revision

Raw: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
KEY = "first = $1 AND digest = $2"


def key(object_id: ObjectId) -> tuple[bytes, bytes]:
    """What the row of an object is found by."""
    path = object_id.storage_path.encode()
    return path[:1000], hashlib.sha256(path).digest() if len(path) > 1000 else b""


class StandstillClock(SystemClock):
    """The clock of a process that stands still for a while after its next look."""

    standstill_seconds = 0.0

    def now(self) -> UnixMicros:
        looked = super().now()
        seconds, self.standstill_seconds = self.standstill_seconds, 0.0
        time.sleep(seconds)
        return looked


async def emptied(raw: Raw, schema: str, table: str) -> None:
    """Make a store as new, if it was made before: quicker than to make another one for each law."""
    if await raw.fetchval("SELECT to_regclass($1)", f"{schema}.{table}") is not None:
        await raw.execute(f"TRUNCATE {schema}.{table}; UPDATE {schema}.stores SET identity = NULL")


class TestPostgresHighVolume(HighVolumeLaws):
    """The rows in a table, and a back door that reads and writes it on a connection of its own."""

    @pytest.fixture(autouse=True)
    async def _store(self, postgres: Postgres) -> AsyncIterator[None]:
        self.clock = ManualClock()
        self.url, self.schema = postgres.url, "high_volume_laws"
        self.opened = 0
        self.raw: Raw = await asyncpg.connect(self.url)
        await emptied(self.raw, self.schema, "rows")
        yield
        await self.raw.close()

    async def open(self) -> PostgresHighVolume:
        self.opened += 1
        return await PostgresHighVolume.open(
            self.url,
            schema=self.schema,
            connections_max=4,
            limits=Limits.tiny(),
            clock=self.clock,
            ids=SeededIds(self.opened),
        )

    async def stored(self, object_id: ObjectId) -> RawRow | None:
        statement = f"SELECT * FROM {self.schema}.rows WHERE {KEY}"
        row: Any = await self.raw.fetchrow(statement, *key(object_id))
        if row is None:
            return None
        assert row["first"] + row["rest"] == object_id.storage_path.encode()
        assert (row["payload"] is not None) == (row["kind"] == 0), (
            "a payload without its row, or a row without its payload"
        )
        assert row["removable"] == (row["changed"] if row["kind"] == 2 else None)
        content: Content = Gone()
        if row["kind"] == 0:
            content = Inline(row["metadata"], row["payload"])
        elif row["kind"] == 1:
            content = Tombstone(row["metadata"], row["revision"])
        return RawRow(row["version"], content, row["expires"], row["changed"])

    async def plant(self, object_id: ObjectId, row: RawRow) -> None:
        content = row.content
        kind = [Inline, Tombstone, Gone].index(type(content))
        path = object_id.storage_path.encode()
        columns = {
            "first": key(object_id)[0],
            "digest": key(object_id)[1],
            "rest": path[1000:],
            "version": row.version,
            "fenced": b"",
            "kind": kind,
            "metadata": None if isinstance(content, Gone) else content.metadata,
            "revision": content.revision if isinstance(content, Tombstone) else None,
            "expires": row.expires,
            "changed": row.changed,
            "removable": row.changed if kind == 2 else None,
            "checksum": xxhash.xxh3_128_digest(content.payload) if isinstance(content, Inline) else None,
            "payload": content.payload if isinstance(content, Inline) else None,
        }
        places = ", ".join(f"${number}" for number in range(1, 1 + len(columns)))
        await self.raw.execute(
            f"INSERT INTO {self.schema}.rows ({', '.join(columns)}) VALUES ({places})", *columns.values()
        )

    async def damage(self, object_id: ObjectId, payload: bytes) -> None:
        statement = f"UPDATE {self.schema}.rows SET payload = $3 WHERE {KEY}"
        await self.raw.execute(statement, *key(object_id), payload)

    async def test_rows_outlive_a_lowered_limit(self, store: PostgresHighVolume) -> None:
        """A row whose key is longer than keys may be now is still listed."""
        long = ObjectId("photos", (), "k" * 10_000)
        await self.plant(long, RawRow(b"v" * 16, Gone()))
        assert [row.object_id for row in await store.scan("", None, 9)] == [long]

    async def test_long_names_are_apart_and_in_order(self, store: PostgresHighVolume) -> None:
        """Names that differ only behind what an index can take have rows of their own, listed in the order of bytes."""
        prefix = "photos/objects/"
        for length in (999, 1000, 1001, 5000):
            stem = "s" * (length - len(prefix))
            for end in ("", "\x00", "b", "a", "\U0010ffff", "b" * 40, hashlib.sha256(b"x").hexdigest()):
                await store.put_inline(ObjectId("photos", (), stem + end), Inline(b"", end.encode()), None)
        found = await scan_all(store, "", 3)
        paths = [row.object_id.storage_path.encode() for row in found]
        assert paths == sorted(set(paths))
        assert len(paths) == 4 * 7
        for row in found:
            assert await store.head(row.object_id) == row.row

    @pytest.mark.parametrize(
        "damage", ["first = '\\xff'", "first = 'no object'", "kind = 1, payload = NULL, revision = NULL", "kind = 7"]
    )
    async def test_unreadable_rows_are_passed_over(self, store: PostgresHighVolume, damage: str) -> None:
        """A row that cannot be read is logged and keeps no other one from being listed, wherever it stands."""
        named = [ObjectId("photos", (), each) for each in "abcd"]
        for number, object_id in enumerate(named):
            await self.plant(object_id, RawRow(b"v" * 16, Inline(b"", b""), expires=number))
        await self.raw.execute(f"UPDATE {self.schema}.rows SET {damage} WHERE {KEY}", *key(named[1]))
        left = [named[0], *named[2:]]
        with capture_logs() as logs:
            assert [found.object_id for found in await store.expired(9, 3)] == left
            assert [found.object_id for found in await store.expired(9, 1)] == left[:1]
        assert [line["log_level"] for line in logs] == ["error"]
        assert [found.object_id for found in await store.scan("", None, 3)] == left
        paths = [object_id.storage_path for object_id in left]
        assert [found.object_id for found in await store.scan("", paths[0], 1)] == left[1:2]

    async def test_every_statement_goes_through_an_index(self, store: PostgresHighVolume) -> None:
        """None reads the whole table, and a page of a listing sorts no more than what an index leaves open."""
        await self.raw.execute(
            f"INSERT INTO {self.schema}.rows"
            " (first, digest, version, fenced, kind, changed, expires, removable, metadata)"
            " SELECT convert_to('photos/objects/' || n, 'UTF8'), '', 'v', 'v', n % 3, n, n,"
            " CASE n % 3 WHEN 2 THEN n END, '' FROM generate_series(1, 20000) AS n"
        )
        await self.raw.execute(f"ANALYZE {self.schema}.rows")
        name, end, late = b"photos/objects/7", b"photos0", 1e11
        plans = {
            statement: await self.raw.fetch(f"EXPLAIN {getattr(store, statement)}", *arguments)
            for statement, arguments in {
                "_read": (name, b""),
                "_head": (name, b""),
                "_delete_inline": (name, b"", b"w", 5, late),
                "_replace": (name, b"", b"w", 1, b"", UUID(int=1), None, 5, None, None, late, b"v", None),
                "_point": (name, b"", b"w", b"", UUID(int=1), None, 5, late, b"v"),
                "_bring_inline": (name, b"", b"w", 5, b"", b"", late, b"v"),
                "_extend": (name, b"", b"v", 5, 9, late),
                "_scan_from": (name, b"", end, b"", 10, 0),
                "_scan_after": (name, b"", end, b"", 10, 0),
                "_expired": (50, 10, 0),
                "_remove_markers": (50, 10),
            }.items()
        }
        for statement, plan in plans.items():
            lines = [str(line[0]) for line in plan]
            assert not [line for line in lines if "Seq Scan" in line], (statement, lines)
            assert any("Index" in line for line in lines), (statement, lines)
            assert not [line for line in lines if "Sort  (" in line.replace("Incremental Sort", "")], (statement, lines)
        assert "rows_by_deadline" in str(plans["_expired"])
        assert "rows_by_removal" in str(plans["_remove_markers"])

    async def test_moving_a_deadline_writes_no_payload(self, store: PostgresHighVolume) -> None:
        """`extend`, `fence` and reading the head of a large row touch the row, not the payload."""
        one = ObjectId("photos", (), "large")
        now = self.clock.now()
        await store.put_inline(one, Inline(b"", b"p" * 1_000_000), now + 1)
        head = await store.head(one)
        assert head is not None
        before = await self.raw.fetchval("SELECT pg_current_wal_insert_lsn()")
        assert await store.extend(one, head.version, now + 2)
        await store.fence(one)
        written = await self.raw.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before)
        assert written < 100_000
        before = await self.raw.fetchval("SELECT pg_current_wal_insert_lsn()")
        await store.put_inline(one, Inline(b"", b"q" * 1_000_000), now + 3)
        assert await self.raw.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before) > 1_000_000

    # Time

    async def test_a_deadline_that_was_found_passed_does_not_move(
        self, store: PostgresHighVolume, second: PostgresHighVolume
    ) -> None:
        """Once a call of `extend` has found the deadline passed, no other one moves it, whatever its clock says."""
        now = self.clock.now()
        object_id = ObjectId("photos", (), "k")
        await store.put_inline(object_id, Inline(b"", b""), now + 10)
        version = (await self.now_stored(object_id)).version
        self.clock.set_now(now + 10)
        assert not await store.extend(object_id, version, now + 10)
        self.clock.set_now(now)  # as of a server whose clock is behind, or whose call was long on its way
        assert not await second.extend(object_id, version, now + 99)
        fenced = await second.fence(object_id)
        assert not await second.extend(object_id, fenced.version, now + 99)
        await store.put_inline(object_id, Inline(b"", b""), now + 10)
        assert await second.extend(object_id, (await self.now_stored(object_id)).version, now + 99)

    async def test_an_extension_under_way_is_waited_for(self, store: PostgresHighVolume) -> None:
        """A call after the deadline answers when what looked at the clock before it has been committed."""
        now = self.clock.now()
        object_id = ObjectId("photos", (), "k")
        await store.put_inline(object_id, Inline(b"", b""), now + 10)
        version = (await self.now_stored(object_id)).version
        async with self.raw.transaction():
            await self.raw.execute(f"UPDATE {self.schema}.rows SET expires = $3 WHERE {KEY}", *key(object_id), now + 99)
            self.clock.set_now(now + 10)
            looking = asyncio.ensure_future(store.extend(object_id, version, now + 10))
            done, _ = await asyncio.wait([looking], timeout=0.1)
            assert not done
        assert not await looking
        assert (await self.now_stored(object_id)).expires == now + 99
        assert await store.extend(object_id, version, now + 200)

    async def test_who_stood_still_after_looking_writes_nothing(self) -> None:
        """The time that a statement may take begins with the look at the clock, and not when it is sent."""
        clock, limits = StandstillClock(), replace(Limits.tiny(), postgres_lateness_seconds_max=0.2)
        store = await PostgresHighVolume.open(
            self.url, schema=self.schema, limits=limits, clock=clock, ids=SeededIds(98)
        )
        old, new = ObjectId("photos", (), "old"), ObjectId("photos", (), "new")
        tombstone, ends = Tombstone(b"", UUID(int=1)), clock.now() + 60_000_000
        try:
            await store.put_inline(old, Inline(b"", b""), ends)
            before = await store.head(old)
            assert before is not None

            async def late(written: Awaitable[object]) -> object:
                clock.standstill_seconds = 0.3
                return await written

            assert await late(store.compare_and_write(old, before.version, Gone(), None, not_after=ends)) is None
            assert not await late(store.point(old, before, tombstone, None, not_after=ends))
            assert not await late(store.point(new, None, tombstone, None, not_after=ends))
            assert not await late(store.extend(old, before.version, 2 * ends))
            assert await store.point(old, before, tombstone, ends, not_after=ends)
            pointed = await store.head(old)
            assert pointed is not None
            assert not await late(store.bring_inline(old, pointed.version, b"", not_after=ends))
            kept = await self.now_stored(old)
            assert (kept.version, kept.content, kept.expires) == (pointed.version, tombstone, ends)
        finally:
            await store.close()

    async def test_what_is_late_writes_nothing(self) -> None:
        """A conditional write that waits for too long by the server's clock does nothing, also one that inserts."""
        limits = replace(Limits.tiny(), postgres_lateness_seconds_max=0.2)
        store = await PostgresHighVolume.open(
            self.url, schema=self.schema, limits=limits, clock=self.clock, ids=SeededIds(99)
        )
        now = self.clock.now()
        old, new = ObjectId("photos", (), "old"), ObjectId("photos", (), "new")
        tombstone = Tombstone(b"", UUID(int=1))
        try:
            await store.put_inline(old, Inline(b"", b""), now + 1000)
            before = await store.head(old)
            assert before is not None
            holder = self.raw.transaction()
            await holder.start()
            await self.raw.execute(f"SELECT 1 FROM {self.schema}.rows WHERE {KEY} FOR UPDATE", *key(old))
            await self.plant(new, RawRow(b"v" * 16, Gone()))
            late = [
                asyncio.ensure_future(call)
                for call in (
                    store.compare_and_write(old, before.version, Gone(), None, not_after=now),
                    store.point(old, before, tombstone, None, not_after=now),
                    store.extend(old, before.version, now + 2000),
                    store.compare_and_write(new, None, Gone(), None, not_after=now),
                    store.point(new, None, tombstone, None, not_after=now),
                )
            ]
            in_time = asyncio.ensure_future(store.compare_and_write(old, before.version, Inline(b"", b"x"), None))
            await asyncio.sleep(0.3)
            await holder.rollback()
            assert await asyncio.gather(*late) == [None, False, False, None, False]
            assert await in_time is not None
            assert await self.stored(new) is None
            assert (await self.now_stored(old)).content == Inline(b"", b"x")
        finally:
            await store.close()


class TestPostgresChangeLog(ChangeLogLaws):
    """The entries in a table, and a back door that reads and writes it on a connection of its own."""

    @pytest.fixture(autouse=True)
    async def _store(self, postgres: Postgres) -> AsyncIterator[None]:
        self.clock = ManualClock()
        self.url, self.schema = postgres.url, "change_log_laws"
        self.raw: Raw = await asyncpg.connect(self.url)
        await emptied(self.raw, self.schema, "entries")
        yield
        await self.raw.close()

    async def open(self) -> PostgresChangeLog:
        return await PostgresChangeLog.open(
            self.url, schema=self.schema, connections_max=4, limits=Limits.tiny(), clock=self.clock
        )

    async def stored(self) -> Sequence[Entry]:
        rows = await self.raw.fetch(f"SELECT * FROM {self.schema}.entries")
        assert [row["digest"] for row in rows] == [hashlib.sha256(row["revision"]).digest() for row in rows]
        return [
            Entry(
                revision=Revision.from_storage_path(row["revision"].decode()),
                owner=UUID(int=row["owner"].int),
                role=Role(row["role"]),
                state=State(row["state"]),
                epoch=row["epoch"],
                sweeps=row["sweeps"],
                recorded=row["recorded"],
                not_before=row["not_before"],
                upload=row["upload"],
            )
            for row in rows
        ]

    async def plant(self, entries: Sequence[Entry]) -> None:
        columns = "digest, revision, owner, role, state, epoch, sweeps, recorded, not_before, upload"
        await self.raw.executemany(
            f"INSERT INTO {self.schema}.entries ({columns}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            [
                (
                    hashlib.sha256(entry.revision.storage_path.encode()).digest(),
                    entry.revision.storage_path.encode(),
                    entry.owner,
                    entry.role.value,
                    entry.state.value,
                    entry.epoch,
                    entry.sweeps,
                    entry.recorded,
                    entry.not_before,
                    entry.upload,
                )
                for entry in entries
            ],
        )

    async def test_entries_outlive_a_lowered_limit(self, log: PostgresChangeLog) -> None:
        """An entry whose key is longer than keys may be now is still found, listed and settled."""
        long = self.entry(revision("k" * 10_000))
        await self.plant([long])
        assert list(await log.due(2_000, 10)) == list(await log.find(long.revision)) == [long]
        taken = await log.condemn(long, 99)
        assert taken is not None
        assert await log.forget_settled(taken)

    @pytest.mark.parametrize("uploads", [False, True])
    @pytest.mark.parametrize("name", [b"no revision", b"\xff\xfe", b"photos/objects/k/not-a-uuid", b""])
    async def test_a_listing_passes_over_a_name_that_is_no_revision(
        self, log: PostgresChangeLog, name: bytes, *, uploads: bool
    ) -> None:
        """A damaged name is logged and hides no other entry, before it or after, in any listing."""
        entries = [
            replace(self.entry(revision("k", number), recorded=number), upload=b"wanted" if uploads else None)
            for number in (1, 3)
        ]
        await self.plant(entries)
        for damaged, recorded in ((name, 2), (name + b"/", 0)):
            await self.raw.execute(
                f"INSERT INTO {self.schema}.entries VALUES ($1, 0, 0, 0, $2, 'new', 'open', $3, $4, $5)",
                *(recorded, UUID(int=0), hashlib.sha256(damaged).digest(), damaged, entries[0].upload),
            )
        with capture_logs() as logs:
            assert list(await log.list(None, 10, uploads=uploads)) == entries
        assert [line["log_level"] for line in logs] == ["error"] * 2
        assert await listed(log, 1, uploads=uploads) == entries
        assert in_order(await log.due(2_000, 2)) == in_order(entries)

    async def test_no_statement_reads_the_whole_log(self, log: PostgresChangeLog) -> None:
        """Every statement goes through an index: a long backlog does not slow writers down."""
        await self.raw.execute(
            f"INSERT INTO {self.schema}.entries SELECT n, n, 0, 0, gen_random_uuid(), 'new',"
            " (ARRAY['open', 'condemned', 'done'])[1 + n % 3 * (n % 2)], sha256(n::text::bytea), n::text::bytea,"
            " CASE n % 2 WHEN 1 THEN ''::bytea END FROM generate_series(1, 20000) AS n"
        )
        await self.raw.execute(f"VACUUM ANALYZE {self.schema}.entries")
        digest, mine = b"d" * 32, UUID(int=1)
        seen = (digest, mine, "open", 1)
        statements: dict[str, tuple[object, ...]] = {
            "_advance": (digest, mine, b"", b"", 5),
            "_mark_done": (digest, mine, 5),
            "_forget": (mine,),
            "_expedite": (mine, 5),
            "_condemn": (*seen, 5),
            "_resume_later": (*seen, 5),
            "_forget_settled": seen,
            "_due": (100, 10, 0),
            "_find": (digest,),
            "_list": (100, b"", mine, False, 10, 0),
            "_backlog": (),
        }
        for name, arguments in statements.items():
            plan = [str(line[0]) for line in await self.raw.fetch(f"EXPLAIN {getattr(log, name)}", *arguments)]
            assert not [line for line in plan if "Seq Scan" in line], (name, plan)

    async def test_claims_and_records_of_the_same_revision_take_turns(
        self, log: PostgresChangeLog, second: PostgresChangeLog
    ) -> None:
        """A claim that begins while its revision is being recorded as old waits, and is told that it was committed."""
        await log.begin_upload(UPLOAD, b"wanted", 0)
        async with self.raw.transaction():
            recording = f"SELECT {self.schema}.record_1($1, NULL, NULL, $2, $3, 1, 2)"
            path = UPLOAD.storage_path.encode()
            await self.raw.execute(recording, owner(7), hashlib.sha256(path).digest(), path)
            claiming = asyncio.ensure_future(second.claim(UPLOAD, owner(8), old=None, not_before=3))
            done, _ = await asyncio.wait([claiming], timeout=0.1)
            assert not done
        assert await claiming == Committed()

    async def test_a_deadlock_is_tried_again(self) -> None:
        """Of two that wait for each other the server ends one; if it is ours, nothing happened, and it is repeated."""
        log = await PostgresChangeLog.open(
            f"{self.url}?deadlock_timeout=50ms", schema=self.schema, limits=Limits.tiny(), clock=self.clock
        )
        touch = f"UPDATE {self.schema}.entries SET not_before = not_before WHERE epoch = $1"
        try:
            await self.plant([self.entry(revision("k", number), epoch=number) for number in (1, 2)])
            await self.raw.execute("SET deadlock_timeout = '20s'")  # so that ours is the one that notices
            async with self.raw.transaction():
                await self.raw.execute(touch, 2)
                forgetting = asyncio.ensure_future(log.forget(owner(1)))
                await asyncio.sleep(0.02)
                await self.raw.execute(touch, 1)  # which ours has by now, and does not let go of while it waits
                assert not forgetting.done()
            await forgetting
            assert await self.stored() == []
        finally:
            await log.close()

    @pytest.mark.parametrize("seed", range(12))
    async def test_any_calls_do_what_the_dict_does(self, log: PostgresChangeLog, seed: int) -> None:
        """Any sequence of calls gives the same answers and the same entries as in memory."""
        random = Random(seed)
        entries = MemoryEntries()
        model = MemoryChangeLog(entries, clock=self.clock)
        seen: list[Entry] = []
        for _ in range(50):
            self.clock.advance(1)
            call = Call(
                method=random.choice(METHODS),
                owner=random.choice([owner(1), owner(2), THIRD.uuid]),
                new=random.choice([None, NEW, OLD, THIRD]),
                old=random.choice([None, NEW, OLD, THIRD]),
                at=random.randrange(5),
                pick=random.randrange(4),
            )
            assert await answer(log, call, seen) == await answer(model, call, seen), call
            stored = in_order(entries.by_key.values())
            assert in_order(await self.stored()) == stored, call
            assert in_order(await log.due(2, 100)) == in_order(await model.due(2, 100))
            for uploads in (False, True):
                assert await listed(log, 2, uploads=uploads) == await listed(model, 3, uploads=uploads)
            assert await log.backlog() == await model.backlog()
            seen += [entry for entry in stored if entry not in seen]


METHODS = (
    *("record", "record", "record_again", "record_again", "forget", "expedite", "condemn", "condemn"),
    *("resume_later", "forget_settled", "begin_upload", "begin_upload", "claim", "claim", "claim", "mark_done"),
)
