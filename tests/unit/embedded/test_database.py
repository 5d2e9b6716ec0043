"""The embedded database: shared commits, failures kept apart, bounds, cancellation, closing."""

import asyncio
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.embedded.conftest import (
    SCHEMA,
    WAIT_SECONDS,
    Open,
    add,
    commits,
    counters,
    put,
    raw,
    until,
    writer_held,
)
from tierstore.clock import SystemClock
from tierstore.embedded.database import Connection, Database
from tierstore.errors import Broken, Busy, TierstoreError, Unavailable
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock


class Oops(Exception):
    """What a failing work of these tests raises."""


# reading and writing


async def test_write_then_read(open_database: Open) -> None:
    """A read that is called after a write has returned sees it, on whatever reader it runs."""
    database = await open_database(readers=3)
    for value in range(50):
        assert await database.write(put("it", value)) == value
        reads = await asyncio.gather(*(database.read(counters) for _ in range(4)))
        assert reads == [{"it": value}] * 4


async def test_reads_are_snapshots(open_database: Open) -> None:
    """All statements of one read see the same state, while writes go on; and no read goes back in time."""
    database = await open_database()

    def twice(connection: Connection) -> tuple[dict[str, int], dict[str, int]]:
        first = counters(connection)
        time.sleep(0.002)
        return first, counters(connection)

    async def read() -> None:
        last = 0
        while last < 50:
            first, again = await database.read(twice)
            assert first == again
            assert first.get("it", 0) >= last
            last = first.get("it", 0)

    async def write() -> None:
        for _ in range(50):
            await database.write(add("it"))

    await asyncio.wait_for(asyncio.gather(write(), read(), read(), read()), WAIT_SECONDS)


async def test_reads_cannot_write(open_database: Open) -> None:
    """A read that tries to write fails, and writes nothing."""
    database = await open_database()
    with pytest.raises(TierstoreError):
        await database.read(put("it"))
    assert await database.read(counters) == {}


async def test_other_instances_see_it_at_once(open_database: Open) -> None:
    """What one instance has written, another one reads."""
    one, two = await open_database(), await open_database()
    for value in range(20):
        await one.write(put("one", value))
        assert (await two.read(counters))["one"] == value
        await two.write(put("two", value))
        assert (await one.read(counters))["two"] == value


async def test_a_forgotten_cursor_does_not_freeze_reads(open_database: Open) -> None:
    """A read that leaves a cursor half-way, by returning or raising, does not make later reads see old states."""
    database = await open_database(readers=1)
    await asyncio.gather(*(database.write(put(name)) for name in "abc"))
    kept: list[object] = []

    def forget(connection: Connection) -> None:
        cursor = connection.execute("SELECT name FROM counters")
        cursor.fetchone()
        kept.append(cursor)

    def fail(connection: Connection) -> None:
        cursor = connection.execute("SELECT name FROM counters")
        cursor.fetchone()
        raise Oops

    await database.read(forget)
    await database.write(put("d"))
    assert "d" in await database.read(counters)
    with pytest.raises(Oops) as raised:
        await database.read(fail)
    kept.append(raised)
    await database.write(put("e"))
    assert "e" in await database.read(counters)


async def test_a_forgotten_cursor_does_not_stop_writes(open_database: Open) -> None:
    """A write that leaves a cursor half-way fails or succeeds by itself; the writes after it succeed."""
    database = await open_database()
    other = await open_database()
    await asyncio.gather(*(database.write(put(name)) for name in "abc"))
    kept: list[object] = []

    def forget(connection: Connection) -> None:
        cursor = connection.execute("SELECT name FROM counters")
        cursor.fetchone()
        kept.append(cursor)

    def forget_returning(connection: Connection) -> None:
        cursor = connection.execute("UPDATE counters SET value = 9 RETURNING name")
        cursor.fetchone()
        kept.append(cursor)

    await database.write(forget)
    await other.write(put("d"))
    await database.write(put("e"))
    with pytest.raises(Unavailable):
        await database.write(forget_returning)
    await other.write(put("f"))
    await database.write(put("g"))
    assert await database.read(counters) == dict.fromkeys("abcdefg", 1)


# group commit


async def test_waiting_writes_share_a_commit(open_database: Open) -> None:
    """All writes that wait are committed together, and each gets its own result, in order."""
    database = await open_database()
    before = commits()
    async with writer_held(database):
        writes = [asyncio.ensure_future(database.write(add("it"))) for _ in range(100)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*writes) == list(range(1, 101))
    assert commits() == (before[0] + 2, before[1] + 101)


@pytest.mark.parametrize(
    ("limits", "weight", "expected"),
    [
        (Limits(database_batch_max=4), 0, [4, 4, 2]),
        (Limits(database_batch_bytes_max=30), 10, [3, 3, 3, 1]),
        (Limits(database_batch_bytes_max=30), 14, [3, 3, 3, 1]),
        (Limits(database_batch_bytes_max=30), 1000, [1] * 10),
    ],
)
async def test_batches_are_bounded(open_database: Open, limits: Limits, weight: int, expected: list[int]) -> None:
    """A commit is shared by no more operations than its bound, and no more after the one that reaches its bytes."""
    database = await open_database(limits=limits)
    before = commits()
    in_batch: dict[int, int] = {}

    def count(connection: Connection) -> None:
        frames = commits()[0]  # grows after each commit
        in_batch[frames] = in_batch.get(frames, 0) + 1
        put("it")(connection)

    async with writer_held(database):
        writes = [asyncio.ensure_future(database.write(count, weight=weight)) for _ in range(10)]
        await asyncio.sleep(0)
    await asyncio.gather(*writes)
    assert list(in_batch.values()) == expected
    assert commits() == (before[0] + 1 + len(expected), before[1] + 11)


async def test_read_batches_are_bounded(open_database: Open) -> None:
    """No more reads than the bound share a snapshot: the first answers do not wait for all that was asked."""
    database = await open_database(readers=1, limits=Limits(database_read_batch_max=3))
    held = {number: (threading.Event(), threading.Event()) for number in (0, 4)}
    delivered: list[int] = []

    async def read(number: int) -> None:
        def work(_connection: Connection) -> None:
            if number in held:
                reached, released = held[number]
                reached.set()
                released.wait(WAIT_SECONDS)

        await database.read(work)
        delivered.append(number)

    reads = [asyncio.ensure_future(read(0))]
    await until(held[0][0])
    reads += [asyncio.ensure_future(read(number)) for number in range(1, 10)]
    await asyncio.sleep(0)
    held[0][1].set()
    await until(held[4][0])  # the first of its batch: those before it have been answered
    await asyncio.gather(*reads[:4])
    assert delivered == [0, 1, 2, 3]
    held[4][1].set()
    await asyncio.gather(*reads)
    assert delivered == list(range(10))


async def test_failures_are_kept_apart(open_database: Open) -> None:
    """Of writes that share a commit, each one that raises fails alone and leaves nothing; the others are done."""
    database = await open_database()

    def oops(connection: Connection) -> None:
        add("failed")(connection)
        raise Oops("mine")

    def wrong(connection: Connection) -> None:
        add("failed")(connection)
        connection.execute("SELECT nonsense")

    def stop(connection: Connection) -> None:
        add("failed")(connection)
        next(iter(()))

    def leave(connection: Connection) -> None:
        add("failed")(connection)
        raise SystemExit

    async with writer_held(database):
        works: list[Any] = [add("good"), oops, add("good"), wrong, stop, leave, add("good")]
        writes = [asyncio.ensure_future(database.write(work)) for work in works]
        await asyncio.sleep(0)
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [results[at] for at in (0, 2, 6)] == [1, 2, 3]
    assert [type(results[at]) for at in (1, 3, 4, 5)] == [Oops, Broken, Broken, Broken]
    assert await database.read(counters) == {"good": 3}
    assert await database.write(add("good")) == 4


async def test_failing_reads_are_kept_apart(open_database: Open) -> None:
    """Of reads that share a snapshot, each one that raises fails alone."""
    database = await open_database(readers=1)
    reached, released = threading.Event(), threading.Event()

    def hold(_connection: Connection) -> None:
        reached.set()
        released.wait(WAIT_SECONDS)

    def oops(_connection: Connection) -> None:
        raise Oops

    def wrong(connection: Connection) -> None:
        connection.execute("SELECT nonsense")

    def stop(_connection: Connection) -> None:
        next(iter(()))

    holding = asyncio.ensure_future(database.read(hold))
    await until(reached)
    works: list[Any] = [counters, oops, counters, wrong, stop, counters]
    reads = [asyncio.ensure_future(database.read(work)) for work in works]
    await asyncio.sleep(0)
    released.set()
    await holding
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(result) for result in results] == [dict, Oops, dict, Broken, Broken, dict]


# bounds


async def test_beyond_the_queue_is_busy(open_database: Open) -> None:
    """What does not fit into the queue is refused at once, reads and writes alike; when it drains, they are taken."""
    limits = Limits.tiny()
    database = await open_database(limits=limits)
    async with writer_held(database):
        writes = [asyncio.ensure_future(database.write(add("it"))) for _ in range(limits.database_queue_max - 1)]
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(Busy):
                await database.write(add("it"))
            with pytest.raises(Busy):
                await database.read(counters)
    await asyncio.gather(*writes)
    assert await database.write(add("it")) == limits.database_queue_max
    assert await database.read(counters) == {"it": limits.database_queue_max}


async def test_failed_and_cancelled_operations_leave_the_queue(open_database: Open) -> None:
    """An operation that failed, or whose caller went away, does not take a place in the queue for ever."""
    limits = Limits.tiny()
    database = await open_database(limits=limits)

    def oops(_connection: Connection) -> None:
        raise Oops

    for _ in range(3):
        writes = [asyncio.ensure_future(database.write(oops)) for _ in range(limits.database_queue_max)]
        await asyncio.sleep(0)
        for write in writes[::2]:
            write.cancel()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} == {Oops, asyncio.CancelledError}
        while True:  # the cancelled ones leave when they have run
            try:
                await database.write(add("it"))
                break
            except Busy:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("clock_stands_still", [False, True])
async def test_waiting_for_a_lock_is_bounded(open_database: Open, path: Path, clock_stands_still: bool) -> None:
    """While another process holds the write lock for too long, writes fail as unavailable, and reads work."""
    await open_database()
    database = await Database.open(
        path,
        SCHEMA,
        limits=Limits(database_lock_wait_seconds_max=0.05),
        clock=ManualClock() if clock_stands_still else SystemClock(),
    )
    try:
        other = Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        writes = [asyncio.ensure_future(database.write(add("it"))) for _ in range(20)]
        results = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), WAIT_SECONDS)
        assert {type(result) for result in results} == {Unavailable}
        assert await database.read(counters) == {}
        other.execute("ROLLBACK")
        assert await database.write(add("it")) == 1
        other.close()
    finally:
        await database.close()


async def test_a_write_waits_for_the_lock(open_database: Open, path: Path) -> None:
    """A write that meets another process's transaction waits for its end, and starts from what that has written."""
    database = await open_database()
    other = Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    put("it", 41)(other)
    write = asyncio.ensure_future(database.write(add("it")))
    await asyncio.sleep(0.05)
    assert not write.done()
    other.execute("COMMIT")
    assert await asyncio.wait_for(write, WAIT_SECONDS) == 42
    other.close()


def wal_bytes(path: Path) -> int:
    """Length of the write-ahead log."""
    wal = path.with_name(f"{path.name}-wal")
    return wal.stat().st_size if wal.exists() else 0


async def test_the_log_is_checkpointed(open_database: Open, path: Path) -> None:
    """The write-ahead log is copied into the file as it grows, and begun anew: it does not grow for ever."""
    limits = Limits(database_checkpoint_bytes=256 * 1024)
    database = await open_database(limits=limits)
    for number in range(100):
        await database.write(put("it", number, filling=40_000))
    assert wal_bytes(path) < 3 * limits.database_checkpoint_bytes
    assert await database.read(counters) == {"it": 99}


async def test_the_log_is_bounded_under_overlapping_reads(open_database: Open, path: Path) -> None:
    """Readers of which one is always reading do not keep the log from being begun anew for ever."""
    limits = Limits(database_checkpoint_bytes=64 * 1024)
    database = await open_database(limits=limits)
    done, seconds = threading.Event(), 0.004

    def overlap() -> None:
        """Begin each transaction before the other ends."""
        readers = [Connection(str(path)), Connection(str(path))]
        turn = 0
        while not done.is_set():
            readers[turn].execute("BEGIN")
            counters(readers[turn])
            done.wait(seconds / 2)
            if readers[1 - turn].in_transaction:
                readers[1 - turn].execute("COMMIT")
            turn = 1 - turn
            done.wait(seconds / 2)
        for reader in readers:
            reader.close(force=True)

    thread = threading.Thread(target=overlap)
    thread.start()
    try:
        for number in range(300):
            await database.write(put("it", number, filling=20_000))
    finally:
        done.set()
        thread.join()
    assert wal_bytes(path) < 300 * 20_000 / 2


# cancellation and closing


async def test_cancelling_a_waiter_disturbs_nobody(open_database: Open) -> None:
    """A write whose caller is cancelled while it waits is done all the same, and so are those beside it."""
    database = await open_database()
    async with writer_held(database):
        writes = [asyncio.ensure_future(database.write(add("it"))) for _ in range(9)]
        await asyncio.sleep(0)
        for write in writes[::2]:
            write.cancel()
        assert all(isinstance(result, asyncio.CancelledError) for result in await _results(writes[::2]))
    assert await _results(writes[1::2]) == [2, 4, 6, 8]
    assert await database.write(add("it")) == 10


async def _results(writes: Sequence["asyncio.Future[int]"]) -> list[int | BaseException]:
    return await asyncio.gather(*writes, return_exceptions=True)


async def test_close_drains(open_database: Open, path: Path) -> None:
    """Closing finishes what was accepted, refuses the rest, and leaves one file and no thread."""
    database = await open_database()
    async with writer_held(database):
        writes = [asyncio.ensure_future(database.write(add("it"))) for _ in range(50)]
        reads = [asyncio.ensure_future(database.read(counters)) for _ in range(50)]
        await asyncio.sleep(0)
        closing = [asyncio.ensure_future(database.close()) for _ in range(2)]
        await asyncio.sleep(0)
        for operation in (database.write(add("it")), database.read(counters)):
            with pytest.raises(Unavailable):
                await operation
    assert await asyncio.gather(*writes) == list(range(1, 51))
    assert all(read in ({}, {"it": 50}) for read in await asyncio.gather(*reads))
    await asyncio.gather(*closing)
    await database.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not [thread for thread in threading.enumerate() if SCHEMA.name in thread.name]
    assert raw(path, counters) == {"it": 50}


async def test_close_beside_another_process(open_database: Open, path: Path) -> None:
    """Closing does not wait for another process that is reading or writing; nothing is lost."""
    database = await open_database()
    await database.write(add("it"))
    reader, writer = Connection(str(path)), Connection(str(path))
    reader.execute("BEGIN")
    assert counters(reader) == {"it": 1}
    await database.write(add("it"))
    writer.execute("BEGIN IMMEDIATE")
    await asyncio.wait_for(database.close(), WAIT_SECONDS)
    reader.close(force=True)
    writer.close(force=True)
    assert raw(path, counters) == {"it": 2}


async def test_a_cancelled_close_goes_on(open_database: Open) -> None:
    """A close whose caller is cancelled goes on; closing again waits for its end."""
    database = await open_database()
    async with writer_held(database):
        closing = asyncio.ensure_future(database.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    await asyncio.wait_for(database.close(), WAIT_SECONDS)
    assert not [thread for thread in threading.enumerate() if SCHEMA.name in thread.name]


async def test_a_cancelled_open_leaves_nothing_open(path: Path) -> None:
    """Opening that is cancelled ends its threads."""
    opening = asyncio.ensure_future(Database.open(path, SCHEMA, limits=Limits(), clock=ManualClock()))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not [thread for thread in threading.enumerate() if SCHEMA.name in thread.name]


async def test_files_are_the_owners_alone(open_database: Open, path: Path) -> None:
    """The files, and the directories that had to be made, are for the owner alone."""
    database = await open_database()
    await database.write(add("it"))
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
