"""The embedded database when the disk is full, failing or damaged, when processes die, and when it cannot be opened."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.unit.embedded.conftest import (
    SCHEMA,
    WAIT_SECONDS,
    Open,
    add,
    commits,
    counters,
    fill,
    put,
    raw,
    until,
    writer_held,
)
from tierstore.clock import SystemClock
from tierstore.embedded.database import Connection, Database, Schema
from tierstore.errors import Broken, OutcomeUnknown, StartupError, StorageFull, TierstoreError, Unavailable
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.mounts import SmallDisk, small_disk

# full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 4 MiB."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        yield disk


async def test_a_full_disk_refuses_and_recovers(open_database: Open, disk: SmallDisk) -> None:
    """On a full disk a write is `StorageFull` and stores nothing, reads go on, and with space again all works."""
    database = await open_database(disk.path / "full.sqlite")
    stored = await fill(database)
    assert await database.read(counters) == stored
    with pytest.raises(StorageFull):
        await database.write(put("large", filling=8 * MIB))
    assert await database.read(counters) == stored
    disk.remount("size=32m")
    await database.write(put("later", 1, filling=200 * KIB))
    assert await database.read(counters) == stored | {"later": 1}
    await database.close()
    assert raw(disk.path / "full.sqlite", counters) == stored | {"later": 1}


async def test_a_small_write_fits_where_a_large_one_does_not(open_database: Open, disk: SmallDisk) -> None:
    """Of writes that share a commit and together do not fit, those that fit alone succeed."""
    database = await open_database(disk.path / "full.sqlite")
    async with writer_held(database):
        works = [put("small"), put("large", filling=8 * MIB), put("also small")]
        writes = [asyncio.ensure_future(database.write(work)) for work in works]
        await asyncio.sleep(0)
    small, large, also_small = await asyncio.gather(*writes, return_exceptions=True)
    assert (small, also_small) == (1, 1)
    assert isinstance(large, StorageFull)
    assert await database.read(counters) == {"small": 1, "also small": 1}


async def test_overwriting_needs_no_more_disk(open_database: Open, disk: SmallDisk) -> None:
    """When the log alone has filled the disk, a checkpoint makes room: rewriting the same rows goes on for ever."""
    database = await open_database(disk.path / "full.sqlite")
    for _ in range(2):
        await database.write(put("it", filling=700 * KIB))
    await database.close()
    database = await open_database(disk.path / "full.sqlite")
    for number in range(40):
        await database.write(put("it", number, filling=700 * KIB))
    assert await database.read(counters) == {"it": 39}


async def test_a_full_disk_cannot_be_begun_on(disk: SmallDisk, open_database: Open) -> None:
    """Opening a new database on a full disk says that there is no space; with space it can be opened."""
    ballast = disk.path / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(8 * MIB))
    with pytest.raises(StartupError, match="there is no space left on its disk"):
        await open_database(disk.path / "full.sqlite")
    ballast.unlink()
    database = await open_database(disk.path / "full.sqlite")
    assert await database.write(add("it")) == 1


# read-only and unusable places


async def test_a_read_only_disk(open_database: Open, disk: SmallDisk) -> None:
    """On a read-only filesystem neither a new database nor an existing one can be opened, and the text says why."""
    path = disk.path / "counters.sqlite"
    database = await open_database(path)
    await database.write(add("it"))
    await database.close()
    disk.remount("ro")
    for at in (path, disk.path / "new.sqlite", disk.path / "new" / "new.sqlite"):
        with pytest.raises(StartupError, match=f"{at}.* mounted read-only"):
            await open_database(at)
    disk.remount("rw")
    assert await (await open_database(path)).read(counters) == {"it": 1}


async def test_places_that_cannot_be(open_database: Open, tmp_path: Path) -> None:
    """A directory in place of the file, or a file in place of a directory: refused with a sentence."""
    with pytest.raises(StartupError, match="is a directory"):
        await open_database(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StartupError, match="a part of its path is a file"):
        await open_database(tmp_path / "file" / "x.sqlite")
    with pytest.raises(StartupError, match="a part of its path is a file"):
        await open_database(tmp_path / "file" / "more" / "x.sqlite")
    with pytest.raises(StartupError):
        await open_database(tmp_path / "a\x00b" / "x.sqlite")
    assert (tmp_path / "file").read_text() == "kept"


# foreign, damaged and failing files


async def test_foreign_files_are_refused_untouched(open_database: Open, tmp_path: Path) -> None:
    """A file that is something else is refused, and not a byte of it changes."""
    text, database, ours = tmp_path / "text", tmp_path / "database", tmp_path / "ours"
    text.write_bytes(b"Dear diary, " * 1000)
    raw(database, lambda connection: connection.execute("CREATE TABLE theirs (a)").fetchall())
    other = replace(SCHEMA, application_id=SCHEMA.application_id + 1)
    await (await open_database(ours, other)).close()
    for file, reason in ((text, "not a database"), (database, "something else"), (ours, "something else")):
        before = hashlib.sha256(file.read_bytes()).digest()
        with pytest.raises(StartupError, match=f"{file}.* {reason}"):
            await open_database(file)
        assert hashlib.sha256(file.read_bytes()).digest() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["database", "ours", "text"]


async def test_an_empty_file_becomes_a_database(open_database: Open, path: Path) -> None:
    """An empty file, as a crash between creating and filling leaves it, is taken as a new one."""
    path.parent.mkdir(parents=True)
    path.touch()
    assert await (await open_database()).write(add("it")) == 1


async def test_damage_is_broken(open_database: Open, path: Path) -> None:
    """Operations that meet a damaged page fail as `Broken`, and no others."""
    database = await open_database()
    await asyncio.gather(*(database.write(put(f"{number}", filling=3 * KIB)) for number in range(200)))
    await database.close()
    with path.open("r+b") as file:
        for page in range(20, 60):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    database = await open_database()
    with pytest.raises(Broken):
        await database.read(counters)
    with pytest.raises(Broken):
        await database.write(lambda connection: connection.execute("UPDATE counters SET value = 7").fetchall())
    assert await database.read(lambda connection: connection.execute("SELECT 1").get) == 1


class FaultyDisk(apsw.VFS):
    """Every file that is opened meanwhile is on a disk whose write-ahead log fails to be written or synced."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.synced = 0
        super().__init__("faulty", "unix", makedefault=True)

    def xOpen(self, name: "str | apsw.URIFilename | None", flags: list[int]) -> apsw.VFSFile:  # noqa: N802  # because the base class names it
        return FaultyFile(self, name, flags)


class FaultyFile(apsw.VFSFile):
    """A file on a `FaultyDisk`."""

    def __init__(self, disk: FaultyDisk, name: "str | apsw.URIFilename | None", flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk
        self._is_log = bool(flags[0] & apsw.SQLITE_OPEN_WAL)

    def xSync(self, flags: int) -> None:  # noqa: N802  # because the base class names it
        if self._is_log:
            self._disk.synced += 1
            if "sync" in self._disk.failing:
                raise apsw.IOError("the log cannot be synced")
        super().xSync(flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  # because the base class names it
        if self._is_log and "write" in self._disk.failing:
            raise apsw.IOError("the log cannot be written")
        super().xWrite(data, offset)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802  # because the base class names it
        if "read" in self._disk.failing:
            raise apsw.IOError("nothing can be read")
        return super().xRead(amount, offset)


@pytest.fixture
def faulty_disk() -> Iterator[FaultyDisk]:
    """A disk that fails when told to."""
    disk = FaultyDisk()
    yield disk
    disk.unregister()


async def test_every_commit_is_synced(open_database: Open, faulty_disk: FaultyDisk) -> None:
    """Each commit syncs the log before its writes return."""
    database = await open_database()
    for _ in range(5):
        before = faulty_disk.synced, commits()[0]
        await asyncio.gather(*(database.write(add("it")) for _ in range(20)))
        assert faulty_disk.synced - before[0] >= commits()[0] - before[1] > 0


@pytest.mark.parametrize("fault", ["write", "sync"])
async def test_a_failing_commit_is_unknown(open_database: Open, faulty_disk: FaultyDisk, fault: str) -> None:
    """When the disk fails during the commit, all that share it get `OutcomeUnknown`; nothing is run a second time."""
    database = await open_database()
    runs: list[str] = []

    def noted(name: str) -> Callable[[Connection], int]:
        def work(connection: Connection) -> int:
            runs.append(name)
            return put(name)(connection)

        return work

    async with writer_held(database):
        writes = [asyncio.ensure_future(database.write(noted(name))) for name in "abc"]
        await asyncio.sleep(0)
        faulty_disk.failing.add(fault)
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result) for result in results] == [OutcomeUnknown] * 3
    assert len({id(result) for result in results}) == 3
    assert runs == ["a", "b", "c"]
    faulty_disk.failing.clear()
    await database.write(put("d"))
    assert (await database.read(counters))["d"] == 1


async def test_a_failing_read_is_unavailable(open_database: Open, faulty_disk: FaultyDisk, path: Path) -> None:
    """When the disk fails while a work runs, that is `Unavailable`, and nothing was stored."""
    await (await open_database()).write(put("it", 1, filling=MIB))
    database = await Database.open(path, SCHEMA, limits=Limits(), clock=SystemClock())
    try:
        faulty_disk.failing.add("read")
        for operation in (database.read(counters), database.write(add("it"))):
            with pytest.raises(Unavailable) as raised:
                await operation
            assert not isinstance(raised.value, OutcomeUnknown)
        faulty_disk.failing.clear()
        assert await database.read(counters) == {"it": 1}
        assert await database.write(add("it")) == 2
    finally:
        await database.close()


# what nobody foresaw


class Unspeakable(BaseException):
    """Cannot even be told."""

    def __repr__(self) -> str:
        raise MemoryError


def unspeakable(_connection: Connection) -> None:
    """A work that raises what nobody foresaw."""
    raise Unspeakable


class FaultyClock(SystemClock):
    """Fails when told to, in whatever thread asks."""

    failures = 0

    def monotonic(self) -> float:
        if self.failures:
            self.failures -= 1
            raise MemoryError("no time")
        return super().monotonic()


async def test_threads_survive_what_nobody_foresaw(open_database: Open) -> None:
    """An unforeseen error fails its batch as `Broken`, is logged, leaves nothing behind, and the next batch runs."""
    database = await open_database(readers=1)
    for number in range(3):
        with capture_logs() as logs:
            async with writer_held(database):
                works = [put(f"lost {number}"), unspeakable]
                writes = [asyncio.ensure_future(database.write(work)) for work in works]
                await asyncio.sleep(0)
            results = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), WAIT_SECONDS)
            assert [type(result) for result in results] == [Broken, Broken]
            with pytest.raises(Broken):
                await asyncio.wait_for(database.read(unspeakable), WAIT_SECONDS)
        assert [line["log_level"] for line in logs] == ["error", "error"]
        assert await database.write(add("it")) == number + 1
        assert await database.read(counters) == {"it": number + 1}


async def test_a_writer_without_a_clock(path: Path) -> None:
    """A writer that cannot begin fails what it had in hand, and goes on with the next."""
    clock = FaultyClock()
    database = await Database.open(path, SCHEMA, limits=Limits(), clock=clock)
    try:
        clock.failures = 1
        with pytest.raises(Broken):
            await asyncio.wait_for(database.write(add("it")), WAIT_SECONDS)
        assert await database.write(add("it")) == 1
    finally:
        await database.close()


async def test_outcomes_that_cannot_be_delivered(open_database: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the outcomes of a committed batch are lost on their way, its callers learn that the outcome is unknown."""
    database = await open_database()
    loop = asyncio.get_running_loop()
    failures = [MemoryError()]
    post = loop.call_soon_threadsafe

    def fail_once(*arguments: Any, **options: Any) -> asyncio.Handle:
        if failures and threading.current_thread().name.endswith(" writer"):
            raise failures.pop()
        return post(*arguments, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", fail_once)
    with pytest.raises(OutcomeUnknown):
        await asyncio.wait_for(database.write(add("it")), WAIT_SECONDS)
    assert await database.write(add("it")) == 2


@pytest.mark.parametrize("kind", ["writer", "reader"])
async def test_a_thread_that_ends(open_database: Open, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """When a thread cannot go on, what waits fails, later calls are refused (so a check fails), and closing ends."""
    database = await open_database(readers=1)
    loop = asyncio.get_running_loop()
    failures = [MemoryError(), MemoryError()]
    reached, released = threading.Event(), threading.Event()
    post = loop.call_soon_threadsafe

    def fail_twice(*arguments: Any, **options: Any) -> asyncio.Handle:
        if failures and threading.current_thread().name.endswith(f" {kind}"):
            raise failures.pop()
        return post(*arguments, **options)

    def hold(_connection: Connection) -> None:
        reached.set()
        released.wait(WAIT_SECONDS)

    monkeypatch.setattr(loop, "call_soon_threadsafe", fail_twice)
    operation = database.write if kind == "writer" else database.read
    held = asyncio.ensure_future(operation(hold))
    await until(reached)
    waiting = [asyncio.ensure_future(operation(counters)) for _ in range(5)]
    await asyncio.sleep(0)
    released.set()
    results = await asyncio.wait_for(asyncio.gather(held, *waiting, return_exceptions=True), WAIT_SECONDS)
    assert [type(result) for result in results] == [OutcomeUnknown if kind == "writer" else Broken] + [Unavailable] * 5
    for refused in (database.read(counters), database.write(add("it"))):
        with pytest.raises(Unavailable, match="restart"):
            await refused
    await asyncio.wait_for(asyncio.gather(database.close(), database.close()), WAIT_SECONDS)


# migrations

TWO = replace(SCHEMA, migrations=(*SCHEMA.migrations, "ALTER TABLE counters ADD COLUMN note TEXT DEFAULT 'none'"))
THREE = replace(TWO, migrations=(*TWO.migrations, "UPDATE counters SET value = value + 100; CREATE TABLE more (a)"))


def shape(path: Path) -> tuple[int, int, Sequence[object]]:
    """The application id, the number of migrations, and the tables."""
    return raw(
        path,
        lambda connection: (
            connection.pragma("application_id"),
            connection.pragma("user_version"),
            [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")],
        ),
    )


async def test_migrations_bring_old_files_forward(open_database: Open, path: Path) -> None:
    """A file of an older release gets exactly the migrations it lacks, in order, and keeps its rows."""
    database = await open_database()
    await database.write(put("it", 1))
    await database.close()
    assert shape(path) == (SCHEMA.application_id, 1, ["counters"])
    for schema in (TWO, THREE, THREE):
        await (await open_database(path, schema)).close()
    assert shape(path) == (SCHEMA.application_id, 3, ["counters", "more"])
    assert await (await open_database(path, THREE)).read(counters) == {"it": 101}


async def test_newer_files_are_refused_untouched(open_database: Open, path: Path) -> None:
    """A file that a newer release has written is refused, and stays as it is."""
    await (await open_database(path, THREE)).close()
    before = path.read_bytes()
    with pytest.raises(StartupError, match=r"newer release .*schema 3, this release knows 1"):
        await open_database(path, SCHEMA)
    assert path.read_bytes() == before


async def test_a_failing_migration_leaves_the_step_before(open_database: Open, path: Path) -> None:
    """A migration that fails half-way is undone, and opening fails; those before it stay."""
    await (await open_database()).write(put("it", 1))
    wrong = "UPDATE counters SET value = 7; CREATE TABLE half (a); SELECT nonsense"
    with pytest.raises(StartupError, match="nonsense"):
        await open_database(path, replace(TWO, migrations=(*TWO.migrations, wrong)))
    assert shape(path) == (SCHEMA.application_id, 2, ["counters"])
    assert await (await open_database(path, TWO)).read(counters) == {"it": 1}


@pytest.mark.parametrize("schema", [SCHEMA, THREE])
async def test_many_open_at_once(open_database: Open, path: Path, schema: Schema) -> None:
    """Of many that open a new file at once, each finds it whole, and each migration is applied once."""
    for _ in range(3):
        databases = await asyncio.gather(*(open_database(path, schema, readers=1) for _ in range(8)))
        await asyncio.gather(*(database.write(add("it")) for database in databases))
        assert await databases[0].read(counters) == {"it": 8}
        await asyncio.gather(*(database.close() for database in databases))
        assert shape(path)[1] == len(schema.migrations)
        path.unlink()


# several processes

COUNT = """
import asyncio, sys
from pathlib import Path
from tests.unit.embedded.conftest import SCHEMA, add
from tierstore.clock import SystemClock
from tierstore.embedded.database import Database
from tierstore.limits import Limits

async def main():
    path, tasks, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    database = await Database.open(path, SCHEMA, limits=Limits(), clock=SystemClock())
    async def count():
        for _ in range(rounds):
            await database.write(add("it"))
    await asyncio.gather(*(count() for _ in range(tasks)))
    await database.close()

asyncio.run(main())
"""
WRITE = """
import asyncio, sys
from pathlib import Path
from tests.unit.embedded.conftest import SCHEMA, put
from tierstore.clock import SystemClock
from tierstore.embedded.database import Database
from tierstore.limits import Limits

async def main():
    limits = Limits(database_checkpoint_bytes=256 * 1024)
    database = await Database.open(Path(sys.argv[1]), SCHEMA, limits=limits, clock=SystemClock())
    async def write(task):
        for number in range(100_000):
            name = f"{sys.argv[2]}-{task}-{number}"
            await database.write(put(name, number, filling=1024))
            sys.stdout.write(name + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(write(task) for task in range(16)))

asyncio.run(main())
"""


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run a script in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


async def test_processes_lose_no_count(open_database: Open, path: Path) -> None:
    """Three processes that open a new file and count in it, many at a time, lose no count."""
    processes = [start(COUNT, str(path), "8", "20") for _ in range(2)]
    database = await open_database()

    async def count() -> None:
        for _ in range(20):
            await database.write(add("it"))

    await asyncio.gather(*(count() for _ in range(8)))
    for process in processes:
        await asyncio.get_running_loop().run_in_executor(None, process.communicate, None, WAIT_SECONDS)
        assert process.returncode == 0
    assert await database.read(counters) == {"it": 3 * 8 * 20}


async def test_killed_processes_lose_nothing(open_database: Open, path: Path) -> None:
    """Every write that a process acknowledged before it was killed is there, and the file is whole."""
    acknowledged: set[str] = set()
    for life in range(3):
        with start(WRITE, str(path), str(life)) as process:
            assert process.stdout is not None
            acknowledged.update(process.stdout.readline().strip() for _ in range(150 + 100 * life))
            process.send_signal(signal.SIGKILL)
            *rest, _torn = process.stdout.read().split("\n")
            acknowledged.update(rest)
        database = await open_database()
        assert acknowledged <= set(await database.read(counters))
        assert await database.read(lambda connection: connection.execute("PRAGMA integrity_check").get) == "ok"
        await database.close()


async def test_a_loop_that_ends_first_is_no_error(path: Path) -> None:
    """A database that was not closed before its event loop does not keep the process from ending, or complain."""
    script = COUNT.replace("    await database.close()\n", "")
    process = start(script, str(path), "2", "2")
    await asyncio.get_running_loop().run_in_executor(None, process.communicate, None, WAIT_SECONDS)
    assert process.returncode == 0
    assert raw(path, counters) == {"it": 4}


async def test_errors_keep_their_cause(open_database: Open) -> None:
    """The driver's own error is kept with ours, for the log."""
    database = await open_database()
    with pytest.raises(TierstoreError) as raised:
        await database.read(lambda connection: connection.execute("SELECT nonsense").get)
    assert isinstance(raised.value.__cause__, apsw.Error)
