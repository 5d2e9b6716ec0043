"""Every change log keeps the laws; the SQLite one also against kill -9, other processes and the model of a dict."""

import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tierstore.changelog import sqlite as sqlite_changelog
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Backlog, Entry, Role, State
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.changelog.sqlite import SqliteChangeLog
from tierstore.embedded.database import Database
from tierstore.embedded.identity import keep_identity
from tierstore.errors import TierstoreError
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.laws.changelog import NEW, OLD, ChangeLogLaws, in_order, listed, owner, revision, revision_of
from tierstore.types.ids import Revision


def raw_connection(path: Path) -> apsw.Connection:
    """A connection beside the log's own. Of the same SQLite library: two in one process break each other's locks."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(5_000)
    return connection


def stored_entries(path: Path) -> list[Entry]:
    """What the file holds, read without the code under test."""
    with closing(raw_connection(path)) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(
            "SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before, upload FROM entries"
        ).fetchall()
    return [
        Entry(
            revision=Revision.from_storage_path(name.decode()),
            owner=UUID(bytes=owned_by),
            role=Role(role),
            state=State(state),
            epoch=epoch,
            sweeps=sweeps,
            recorded=recorded,
            not_before=not_before,
            upload=upload,
        )
        for name, owned_by, role, state, epoch, sweeps, recorded, not_before, upload in rows
    ]


def stored_row(entry: Entry) -> tuple[bytes | str | int | None, ...]:
    """The entry as its columns hold it."""
    return (
        entry.revision.storage_path.encode(),
        entry.owner.bytes,
        entry.role.value,
        entry.state.value,
        entry.epoch,
        entry.sweeps,
        entry.recorded,
        entry.not_before,
        entry.upload,
    )


def plant_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Write entries to the file without the code under test."""
    with closing(raw_connection(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO entries (revision, owner, role, state, epoch, sweeps, recorded, not_before, upload)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [stored_row(entry) for entry in entries],
        )


class TestMemoryChangeLog(ChangeLogLaws):
    """The change log in a dict."""

    @pytest.fixture(autouse=True)
    def _store(self) -> None:
        self.clock = ManualClock()
        self.entries = MemoryEntries()

    async def open(self) -> ChangeLog:
        return MemoryChangeLog(self.entries, clock=self.clock)

    async def stored(self) -> Sequence[Entry]:
        return list(self.entries.by_key.values())

    async def plant(self, entries: Sequence[Entry]) -> None:
        self.entries.by_key.update({(entry.revision, entry.owner): entry for entry in entries})


class TestSqliteChangeLog(ChangeLogLaws):
    """The change log in a SQLite file."""

    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> None:
        self.clock = ManualClock()
        self.path = tmp_path / "changelog.sqlite"

    async def open(self) -> ChangeLog:
        return await SqliteChangeLog.open(self.path, limits=Limits.tiny(), clock=self.clock)

    async def stored(self) -> Sequence[Entry]:
        return stored_entries(self.path)

    async def plant(self, entries: Sequence[Entry]) -> None:
        plant_entries(self.path, entries)

    async def test_entries_outlive_a_lowered_limit(self, log: ChangeLog) -> None:
        """An entry whose key is longer than keys may be now is still found, listed and settled."""
        long = self.entry(revision_of("k" * 10_000))
        with closing(raw_connection(self.path)) as connection:
            connection.execute(
                "INSERT INTO entries (revision, owner, role, state, epoch, sweeps, recorded, not_before)"
                " VALUES (?, ?, 'new', 'open', 0, 0, 1000, 2000)",
                (long.revision.storage_path.encode(), long.owner.bytes),
            )
        assert list(await log.due(2_000, 10)) == [long]
        taken = await log.condemn(long, 99)
        assert taken is not None
        assert await log.forget_settled(taken)

    def plant_named(self, names: Sequence[bytes], not_before: int) -> None:
        """Back door: put open entries with these names into the store."""
        with closing(raw_connection(self.path)) as connection, connection:
            connection.executemany(
                "INSERT INTO entries (revision, owner, role, state, epoch, sweeps, recorded, not_before)"
                " VALUES (?, ?, 'new', 'open', 0, 0, 1000, ?)",
                [(name, bytes(16), not_before) for name in names],
            )

    @pytest.mark.parametrize("name", [b"no revision", b"\xff\xfe", b"photos/objects/k/not-a-uuid", b""])
    async def test_a_name_that_is_no_revision_is_passed_over(self, log: ChangeLog, name: bytes) -> None:
        """An entry with a damaged name is logged and keeps no other one from being listed, wherever it stands."""
        entries = [self.entry(revision("k", number), not_before=number) for number in (1, 3)]
        await self.plant(entries)
        self.plant_named([name], 2)
        self.plant_named([name + b"/"], 0)
        for limit, unreadable in ((10, 2), (2, 2), (1, 1)):
            with capture_logs() as logs:
                assert list(await log.due(2_000, limit)) == entries[:limit]
            assert [line["log_level"] for line in logs] == ["error"] * unreadable

    async def test_many_unreadable_entries_hide_none(self, log: ChangeLog) -> None:
        """However many entries before it cannot be read, a readable one is listed; the lines about them are bounded."""
        self.plant_named([b"no revision %d" % number for number in range(1_000)], 1)
        await self.plant([self.entry(not_before=2)])
        with capture_logs() as logs:
            assert list(await log.due(2_000, 4)) == [self.entry(not_before=2)]
        assert len(logs) == 17
        assert logs[-1]["count"] == 1_000 - 16

    @pytest.mark.parametrize("uploads", [False, True])
    @pytest.mark.parametrize("name", [b"no revision", b"\xff\xfe", b"photos/objects/k/not-a-uuid", b""])
    async def test_a_listing_passes_over_a_name_that_is_no_revision(
        self, log: ChangeLog, name: bytes, *, uploads: bool
    ) -> None:
        """In a paged listing too, a damaged name is logged and hides no other entry, before it or after."""
        entries = [
            replace(self.entry(revision("k", number), recorded=number), upload=b"wanted" if uploads else None)
            for number in (1, 3)
        ]
        await self.plant(entries)
        with closing(raw_connection(self.path)) as connection, connection:
            connection.executemany(
                "INSERT INTO entries (revision, owner, role, state, epoch, sweeps, recorded, not_before, upload)"
                " VALUES (?, ?, 'new', 'open', 0, 0, ?, 0, ?)",
                [(name, bytes(16), 2, entries[0].upload), (name + b"/", bytes(16), 0, entries[0].upload)],
            )
        with capture_logs() as logs:
            assert list(await log.list(None, 10, uploads=uploads)) == entries
        assert [line["log_level"] for line in logs] == ["error"] * 2
        assert await listed(log, 1, uploads=uploads) == entries

    async def test_a_file_of_a_former_release_keeps_its_entries(self) -> None:
        """A log from before uploads comes with all that it held, in any role and state, and takes uploads then."""
        former = [
            self.entry(revision("former", at), owner(at), role=role, state=state, epoch=at, sweeps=2 * at, recorded=at)
            for at, (role, state) in enumerate(product(Role, [State.OPEN, State.CONDEMNED]))
        ]
        schema = replace(
            sqlite_changelog._SCHEMA,
            migrations=sqlite_changelog._SCHEMA.migrations[:2],  # what the former release had
        )
        database = await Database.open(self.path, schema, limits=Limits.tiny(), clock=self.clock)
        await keep_identity(database, owner(9))
        await database.close()
        with closing(raw_connection(self.path)) as connection, connection:
            assert connection.pragma("user_version") == 2
            connection.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [stored_row(entry)[:8] for entry in former]
            )
        log = await self.open()
        try:
            assert in_order(await self.stored()) == in_order(former)
            assert await listed(log, 3) == former
            assert await log.identity() == owner(9)
            assert await log.backlog() == Backlog(entries=4, oldest=0, uploads=0, outcomes=0)
            [seen] = await log.find(former[0].revision)
            assert await log.condemn(seen, 99) == replace(seen, state=State.CONDEMNED, epoch=1, not_before=99)
            await log.begin_upload(NEW, b"wanted", 5)
            await log.mark_done(NEW, 6)
            assert [entry.state for entry in await log.find(NEW)] == [State.DONE]
        finally:
            await log.close()

    @pytest.mark.parametrize(
        "statement",
        [
            "_DUE",
            "_FIND",
            "_FORGET",
            "_EXPEDITE",
            "_CONDEMN",
            "_RESUME_LATER",
            "_FORGET_SETTLED",
            "_KEEP_NEW",
            "_FORGET_OTHER_OLD",
            "_DEFER_ALL",
            "_BACKLOG",
            "_IS_OLD",
            "_OWN",
            "_CLAIM",
            "_MARK_DONE",
            "_LIST",
            "_LIST_UPLOADS",
        ],
    )
    async def test_no_statement_reads_the_whole_log(self, log: ChangeLog, statement: str) -> None:
        """Every statement goes through an index, and none sorts: a long backlog does not slow writers down."""
        sql = getattr(sqlite_changelog, statement)
        with closing(raw_connection(self.path)) as connection:
            bindings = [None] * sql.count("?")
            plan = [str(row[3]) for row in connection.execute("EXPLAIN QUERY PLAN " + sql, bindings)]
        scans = [line for line in plan if line.startswith("SCAN entries")]
        assert any("SEARCH entries USING" in line for line in plan)
        assert not any("TEMP B-TREE" in line for line in plan)
        assert scans == []
        assert statement != "_LIST_UPLOADS" or "entries_of_uploads_not_done" in plan[0]


# Other processes

_OPENED = """
import asyncio, sys
from pathlib import Path
from typing import Any
from uuid import UUID
from tierstore.changelog.sqlite import SqliteChangeLog
from tierstore.clock import SystemClock
from tierstore.limits import Limits
from tierstore.types.ids import Revision

async def main():
    log = await SqliteChangeLog.open(Path(sys.argv[1]), limits=Limits(), clock=SystemClock())
    print("open", flush=True)
    sys.stdin.readline()
    await work(log)
    await log.close()

"""
_RECORDING = (
    _OPENED
    + """
async def work(log):
    async def record_on(lane):
        number = lane
        while True:
            name = f"photos/objects/k/{UUID(int=number)}"
            await log.record(UUID(int=number), new=Revision.from_storage_path(name), old=None, not_before=number)
            print(number, flush=True)
            number += 16
    await asyncio.gather(*(record_on(lane) for lane in range(16)))

asyncio.run(main())
"""
)
_CONDEMNING = (
    _OPENED
    + """
async def work(log):
    won = await asyncio.gather(*(log.condemn(entry, 20_000) for entry in await log.due(10_000, 1_000)))
    for entry in won:
        if entry is not None:
            print(entry.owner.int, entry.epoch, flush=True)

asyncio.run(main())
"""
)


class Child:
    """A Python process that has the log at ``path`` open."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    @classmethod
    async def start(cls, script: str, path: Path) -> "Child":
        """Run ``script`` until it has opened the log."""
        child = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-W", "error", "-c", script, str(path)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )
        assert await child.stdout.readline() == b"open\n"
        return child

    def go(self) -> None:
        """Let it work."""
        self.stdin.write(b"go\n")

    async def ended(self) -> tuple[int, list[str]]:
        """Its exit code, and what else it printed, when it is over."""
        rest = await self.stdout.read()
        code = await self.process.wait()
        self.stdin.close()
        return code, rest.decode().splitlines()


async def test_entries_survive_kill_9(tmp_path: Path) -> None:
    """A process that is killed in the middle of many records leaves every one that had returned, whole."""
    path = tmp_path / "changelog.sqlite"
    child = await Child.start(_RECORDING, path)
    child.go()
    acknowledged = [int(await child.stdout.readline()) for _ in range(200)]
    child.process.send_signal(signal.SIGKILL)
    code, rest = await child.ended()
    assert code == -signal.SIGKILL
    acknowledged += [int(line) for line in rest]

    log = await SqliteChangeLog.open(path, limits=Limits(), clock=ManualClock())
    try:
        left = {entry.owner.int: entry for entry in await log.due(1 << 62, 1 << 30)}
    finally:
        await log.close()
    assert left.keys() >= set(acknowledged)
    for number, entry in left.items():
        assert entry.revision.uuid.int == number
        assert (entry.role, entry.state, entry.epoch, entry.not_before) == (Role.NEW, State.OPEN, 0, number)


async def test_processes_share_out_the_entries(tmp_path: Path) -> None:
    """Of sweepers in several processes that condemn all there is at the same time, one gets each entry."""
    path = tmp_path / "changelog.sqlite"
    log = await SqliteChangeLog.open(path, limits=Limits(), clock=ManualClock())
    try:
        await asyncio.gather(*(log.record(owner(n), new=revision("k", n), old=None, not_before=n) for n in range(150)))
        children = await asyncio.gather(*(Child.start(_CONDEMNING, path) for _ in range(3)))
        for child in children:
            child.go()
        ended = await asyncio.gather(*(child.ended() for child in children))
        assert [code for code, _ in ended] == [0, 0, 0]
        won = [line for _, lines in ended for line in lines]
        assert sorted(won) == sorted(f"{number} 1" for number in range(150))
        assert {entry.state for entry in await log.due(20_000, 1_000)} == {State.CONDEMNED}
    finally:
        await log.close()


# The model of a dict


@dataclass(frozen=True)
class Call:
    """One call of a change log; of the entries seen so far, the ``pick``-th from the end is its argument."""

    method: str
    owner: UUID
    new: Revision | None
    old: Revision | None
    at: int
    pick: int


THIRD = revision("third", 3)
_REVISIONS = st.sampled_from([None, NEW, OLD, THIRD])
_CALLS = st.builds(
    Call,
    method=st.sampled_from(
        [
            *("record", "record_again", "forget", "expedite", "condemn", "condemn", "resume_later", "forget_settled"),
            *("begin_upload", "begin_upload", "claim", "claim", "mark_done"),
        ]
    ),
    owner=st.sampled_from([owner(1), owner(2), THIRD.uuid]),
    new=_REVISIONS,
    old=_REVISIONS,
    at=st.integers(0, 4),
    pick=st.integers(0, 3),
)


async def answer(log: ChangeLog, call: Call, seen: Sequence[Entry]) -> object:
    """What the call returns, or the kind of error it raises."""
    outcome: object = None
    try:
        match call.method:
            case "record":
                await log.record(call.owner, new=call.new, old=call.old, not_before=call.at)
            case "record_again":
                outcome = await log.record_again(call.owner, new=call.new, old=call.old, not_before=call.at)
            case "begin_upload":
                await log.begin_upload(call.new or THIRD, b"wanted at %d" % call.at, call.at)
            case "claim":
                outcome = await log.claim(call.new or THIRD, call.owner, old=call.old, not_before=call.at)
            case "mark_done":
                await log.mark_done(call.new or THIRD, call.at)
            case "forget":
                await log.forget(call.owner)
            case "expedite":
                await log.expedite(call.owner, call.at)
            case _:
                if seen:
                    outcome = await answer_to_sweeper(log, call, seen[-1 - call.pick % len(seen)])
    except TierstoreError as error:
        return type(error)
    return outcome


async def answer_to_sweeper(log: ChangeLog, call: Call, entry: Entry) -> Entry | bool | None:
    """What a call about an entry returns."""
    match call.method:
        case "condemn":
            return await log.condemn(entry, call.at)
        case "resume_later":
            return await log.resume_later(entry, call.at)
        case _:
            return await log.forget_settled(entry)


def backlog_of(stored: Sequence[Entry]) -> Backlog:
    """What `ChangeLog.backlog` is to tell of these entries."""
    own = [entry.state for entry in stored if entry.upload is not None]
    times = [entry.recorded for entry in stored if entry.upload is None]
    return Backlog(
        entries=len(times) + own.count(State.CONDEMNED),
        oldest=min(times, default=None),
        uploads=own.count(State.OPEN),
        outcomes=own.count(State.DONE),
    )


async def compare(path: Path, calls: Sequence[Call]) -> None:
    """Make the calls on both logs; answers and contents are the same after each."""
    clock, entries = ManualClock(), MemoryEntries()
    model = MemoryChangeLog(entries, clock=clock)
    log = await SqliteChangeLog.open(path, limits=Limits(), clock=clock)
    seen: list[Entry] = []
    try:
        for call in calls:
            clock.advance(1)
            assert await answer(log, call, seen) == await answer(model, call, seen)
            stored = in_order(entries.by_key.values())
            assert in_order(stored_entries(path)) == stored
            assert in_order(await log.due(2, 100)) == in_order(await model.due(2, 100))
            for uploads in (False, True):
                assert await listed(log, 2, uploads=uploads) == await listed(model, 3, uploads=uploads)
            assert await log.backlog() == await model.backlog() == backlog_of(stored)
            seen += [entry for entry in stored if entry not in seen]
    finally:
        await log.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(_CALLS, min_size=4, max_size=14))
def test_sqlite_does_what_the_dict_does(calls: list[Call]) -> None:
    """Any sequence of calls gives the same answers and the same entries in both change logs."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder) / "changelog.sqlite", calls))
