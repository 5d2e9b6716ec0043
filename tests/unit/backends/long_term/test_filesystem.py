"""The filesystem store: what it does beyond the laws of every long-term store."""

import asyncio
import fcntl
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.backends.long_term.conftest import Open
from tierstore.backends.long_term.contract import BlobStream
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.clock import SystemClock
from tierstore.errors import CorruptObject, InvariantBroken, StartupError, TierstoreError, Unavailable
from tierstore.idsource import SystemIds
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import Boom, Source, cut, opened, payload, read
from tierstore.types.ids import Revision
from tierstore.types.ranges import Span


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


def blob_file(root: Path, revision: Revision) -> Path:
    """Where a blob's file is."""
    return root / "blobs" / str(revision.uuid)[-3:] / f"{revision.uuid}.blob"


async def started_put(store: FilesystemLongTerm, revision: Revision, source: Source) -> asyncio.Task[object]:
    """A put that waits in its source."""
    put = asyncio.create_task(store.put(revision, source, None))
    await source.reached.wait()
    return put


async def test_no_name_of_a_user_in_a_file_name(store: FilesystemLongTerm, root: Path, ids: SeededIds) -> None:
    """Files are named by UUIDs and counters: nothing of a usecase, scope or key is in any path, at any time."""
    sources = [Source([b"x" * 20, b"x"], pause_at=1) for _ in HOSTILE_IDS]
    puts = [
        asyncio.create_task(store.put(Revision(named, ids.uuid()), source, None))
        for named, source in zip(HOSTILE_IDS, sources, strict=True)
    ]
    for source in sources:
        await source.reached.wait()
        source.release.set()
    during = {str(path.relative_to(root)) for path in root.rglob("*")}
    await asyncio.gather(*puts)
    after = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert len(after) > len(HOSTILE_IDS)
    for name in during | after:
        assert set(name) <= set("0123456789abcdef-/.") | set("blobs tmp lock format .blob")


async def test_a_blob_of_another_object(store: FilesystemLongTerm, revision: Revision) -> None:
    """A UUID that two objects share, which cannot be, shows neither the other's blob."""
    await store.put(revision, Source([b"content"]), None)
    other = Revision(HOSTILE_IDS[0], revision.uuid)
    with pytest.raises(CorruptObject):
        await store.head(other)
    with pytest.raises(CorruptObject):
        await store.get(other)


async def test_stored_is_the_time_of_publishing(
    store: FilesystemLongTerm, clock: ManualClock, revision: Revision
) -> None:
    """A blob's time is that of the moment when it became whole, by the store's clock."""
    source = Source([b"x" * 20, b"y"], pause_at=1)
    put = await started_put(store, revision, source)
    clock.advance(60)
    published = clock.now()
    source.release.set()
    await put
    clock.advance(60)
    known = await store.head(revision)
    assert known is not None
    assert known.stored == published


# Durability


async def test_synced_in_order(open_store: Open, root: Path, revision: Revision) -> None:
    """The file is synced before it has its name, and every directory with a new name before put returns."""
    calls: list[str] = []

    def record(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        if called.__name__ in {"pwritev", "rename", "mkdir", "unlink"}:
            calls.append(called.__name__)
        if called.__name__ == "fsync":
            synced = frame.f_locals.get("directory")
            calls.append(f"fsync {'file' if synced is None else synced.name}")

    # The store's threads begin with its first operations, and so under the profile.
    threading.setprofile(record)
    try:
        store = await open_store(root)
        calls.clear()
        await store.put(revision, Source([b"content"]), None)
        leaf = str(revision.uuid)[-3:]
        named = calls.index("mkdir")
        assert calls[:named] == ["pwritev", "pwritev", "fsync file", "rename"], "the leaf directory is missing"
        assert calls[named:] == ["mkdir", "rename", f"fsync {leaf}", "fsync blobs"]
        calls.clear()
        await store.put(revision, Source([b"content"]), None)
        assert calls == ["pwritev", "pwritev", "fsync file", "rename", f"fsync {leaf}"]
        calls.clear()
        await store.delete(revision)
        assert calls == ["unlink", f"fsync {leaf}"]
        calls.clear()
        await store.delete(revision)
        assert calls == ["unlink", f"fsync {leaf}"], "another's unlink may not be durable yet"
        blob_file(root, revision).parent.rmdir()
        calls.clear()
        await store.put(revision, Source([b"content"]), None)
        assert calls[-2:] == [f"fsync {leaf}", "fsync blobs"], "the leaf directory is a new one"
    finally:
        threading.setprofile(None)


# Descriptors and memory


async def test_descriptors_are_given_back(store: FilesystemLongTerm, root: Path, ids: SeededIds) -> None:
    """However operations end, no file stays open."""
    revisions = [Revision(named, ids.uuid()) for named in HOSTILE_IDS[:6]]
    whole, damaged, cancelled, failed, mismatched, early = revisions
    content = payload(10 * 16)
    for revision in (whole, damaged, early):
        await store.put(revision, Source(cut(content, 16)), None)
    before = open_descriptors()
    file = blob_file(root, damaged)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for _ in range(5):
        put = await started_put(store, cancelled, Source(cut(content, 16), pause_at=7))
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        with pytest.raises(Boom):
            await store.put(failed, Source(cut(content, 16), fail_at=5), None)
        with pytest.raises(InvariantBroken):
            await store.put(mismatched, Source(cut(content, 16)), 17)
        with pytest.raises(CorruptObject):
            await read(store, damaged)
        with pytest.raises(InvariantBroken):
            await store.get(whole, Span(5, 1_000))
        assert await store.get(failed) is None
        stream = await opened(store, early)
        await anext(aiter(stream))
        await stream.aclose()
        assert await read(store, whole) == content
        assert len(await store.list("", None, 10)) == 3
        await store.check()
        await store.remove_debris()
    assert open_descriptors() == before


async def test_a_stream_holds_its_file_until_it_ends(store: FilesystemLongTerm, revision: Revision) -> None:
    """An open stream holds one descriptor; one that was read to its end or has failed holds none, unclosed too."""
    await store.put(revision, Source([payload(40)]), None)
    before = open_descriptors()
    stream = await opened(store, revision)
    assert open_descriptors() == before + 1
    assert b"".join([chunk async for chunk in stream]) == payload(40)
    assert open_descriptors() == before


async def test_cancelled_gets_leak_nothing(store: FilesystemLongTerm, revision: Revision) -> None:
    """A get cancelled at any moment gives its file back."""
    await store.put(revision, Source([payload(100)]), None)
    before = open_descriptors()
    for moment in range(30):
        getting = asyncio.create_task(store.get(revision))
        await asyncio.sleep(moment / 50_000)
        getting.cancel()
        try:
            stream = await getting
        except asyncio.CancelledError:
            continue
        assert stream is not None
        await stream.aclose()
    assert open_descriptors() == before


class Generated:
    """A source that makes its chunks as they are asked for."""

    def __init__(self, chunks: int, size: int) -> None:
        self._left = chunks
        self._size = size

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return bytes(self._size)


async def test_memory_is_bounded(open_store: Open, root: Path, revision: Revision) -> None:
    """Writing and reading a blob holds a few chunks in memory, whatever the blob's size."""
    store = await open_store(root, Limits(stream_chunk_bytes=64 * KIB))
    tracemalloc.start()
    try:
        await store.put(revision, Generated(512, 32 * KIB), 16 * MIB)
        size = 0
        async for chunk in await opened(store, revision):
            size += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 16 * MIB
    assert peak < 8 * 64 * KIB


async def test_a_source_is_read_while_a_batch_is_written(open_store: Open, root: Path, revision: Revision) -> None:
    """The source goes on while the batch before is written, and waits when two are in memory."""
    store = await open_store(root, threads=1)
    stop = threading.Event()
    source = Source([b"x" * 16] * 9)
    occupied = store._threads.start(stop.wait, 10)
    put = asyncio.create_task(store.put(revision, source, None))
    for _ in range(20):
        await asyncio.sleep(0)
    assert source.taken == 2
    stop.set()
    await occupied.result()
    await put
    assert source.taken == 9


# Damage while a stream is open


async def test_damaged_while_it_is_read(store: FilesystemLongTerm, root: Path, revision: Revision) -> None:
    """Bytes that are damaged after a stream was opened are found out before its end."""
    await store.put(revision, Source([payload(100)]), None)
    chunks = aiter(await opened(store, revision))
    await anext(chunks)
    file = blob_file(root, revision)
    with file.open("r+b") as raw:
        raw.seek(-1, os.SEEK_END)
        raw.write(bytes([payload(100)[-1] ^ 1]))
    delivered = 16
    with pytest.raises(CorruptObject):
        delivered += await rest(chunks)
    assert delivered < 100
    with pytest.raises(CorruptObject):
        await anext(chunks)


async def test_shortened_while_it_is_read(store: FilesystemLongTerm, root: Path, revision: Revision) -> None:
    """A file that is cut off under a stream is never a short end, of a span neither."""
    for span in (None, Span(1, 100)):
        await store.put(revision, Source([payload(100)]), None)
        chunks = aiter(await opened(store, revision, span))
        await anext(chunks)
        os.truncate(blob_file(root, revision), blob_file(root, revision).stat().st_size - 1)
        with pytest.raises(CorruptObject):
            await rest(chunks)


async def rest(chunks: AsyncIterator[bytes]) -> int:
    """How many bytes the iterator still yields."""
    return sum([len(chunk) async for chunk in chunks])


async def test_a_read_given_up_can_be_taken_up(store: FilesystemLongTerm, revision: Revision) -> None:
    """A chunk that its reader did not wait for is not lost: the next reader gets it."""
    await store.put(revision, Source([payload(100)]), None)
    chunks = aiter(await opened(store, revision))
    received = [await anext(chunks)]
    for _ in range(3):
        reading = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        reading.cancel()
        try:
            received.append(await reading)
        except asyncio.CancelledError:
            continue
    received += [chunk async for chunk in chunks]
    assert b"".join(received) == payload(100)


# Listings


async def test_listing_logs_what_is_damaged(store: FilesystemLongTerm, root: Path, ids: SeededIds) -> None:
    """A damaged blob is missing from a listing, and the log says so; what vanishes meanwhile is nothing."""
    revisions = [Revision(named, ids.uuid()) for named in HOSTILE_IDS[:3]]
    for revision in revisions:
        await store.put(revision, Source([b"content"]), None)
    blob_file(root, revisions[1]).write_bytes(b"TIERBLOB")
    with capture_logs() as logs:
        page = await store.list("", None, 10)
    assert {blob.revision for blob in page} == {revisions[0], revisions[2]}
    assert [(entry["log_level"], entry["blob"]) for entry in logs] == [("warning", str(revisions[1].uuid))]


async def test_listing_outlives_a_lowered_limit(open_store: Open, root: Path, revision: Revision) -> None:
    """A blob whose name is longer than names may be now is still listed."""
    store = await open_store(root, Limits(key_bytes_max=1, scopes_max=0, scope_bytes_max=1))
    await store.put(revision, Source([b"content"]), None)
    assert [blob.revision for blob in await store.list("", None, 10)] == [revision]


# Opening and closing


async def test_opened_by_many_at_once(root: Path, revision: Revision) -> None:
    """Processes that start on one new directory at the same time all get it."""
    stores = await asyncio.gather(
        *(FilesystemLongTerm.open(root, limits=Limits(), clock=SystemClock(), ids=SystemIds()) for _ in range(8))
    )
    await stores[0].put(revision, Source([b"content"]), None)
    assert [await read(store, revision) for store in stores] == [b"content"] * 8
    await asyncio.gather(*(store.close() for store in stores))
    assert list((root / "tmp").iterdir()) == []


async def test_waiting_for_another_start_is_bounded(open_store: Open, root: Path) -> None:
    """A process that never ends its start stops others, with a sentence, and does not hang them."""
    root.mkdir()
    with (root / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        limits = Limits(directory_lock_wait_seconds_max=0.05)
        with pytest.raises(StartupError, match="another process has held"):
            await FilesystemLongTerm.open(root, limits=limits, clock=SystemClock(), ids=SystemIds())
    await (await open_store(root)).check()


async def test_cancelled_start_holds_nothing(root: Path) -> None:
    """A start that is cancelled at any moment leaves no lock, no thread and no directory."""
    before = open_descriptors()
    for moment in range(20):
        starting = asyncio.create_task(
            FilesystemLongTerm.open(root, limits=Limits(), clock=SystemClock(), ids=SystemIds())
        )
        await asyncio.sleep(moment / 5_000)
        starting.cancel()
        try:
            store = await starting
        except asyncio.CancelledError:
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("long-term")]
        else:
            await store.close()
    assert open_descriptors() == before
    assert list((root / "tmp").iterdir()) == []


async def test_failed_start_ends_its_threads(root: Path) -> None:
    """A start that fails leaves no thread behind."""
    root.write_text("")
    with pytest.raises(StartupError):
        await FilesystemLongTerm.open(root, limits=Limits(), clock=SystemClock(), ids=SystemIds())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("long-term")]


async def test_closed_with_open_streams(store: FilesystemLongTerm, revision: Revision) -> None:
    """Streams that are open when the store is closed are closed with it, and fail their readers."""
    await store.put(revision, Source([payload(100)]), None)
    before = open_descriptors()
    streams: list[BlobStream] = [await opened(store, revision) for _ in range(3)]
    await anext(aiter(streams[0]))
    await store.close()
    assert open_descriptors() < before
    for stream in streams:
        with pytest.raises(Unavailable):
            await anext(aiter(stream))
        await stream.aclose()


async def test_closed_while_a_stream_is_read(store: FilesystemLongTerm, revision: Revision) -> None:
    """A reader under way when the store is closed gets an error or all of it, never a short end."""
    content = payload(5_000)
    await store.put(revision, Source([content]), None)

    async def reading() -> bytes | None:
        try:
            return await read(store, revision)
        except TierstoreError:
            return None

    readers = [asyncio.create_task(reading()) for _ in range(8)]
    await asyncio.sleep(0.003)
    await store.close()
    assert set(await asyncio.gather(*readers)) <= {None, content}


async def test_closed_store_refuses(store: FilesystemLongTerm, revision: Revision, root: Path) -> None:
    """A closed store refuses every operation, and nothing of it is left but its blobs."""
    await store.close()
    for refused in (
        store.put(revision, Source([b"x"]), None),
        store.get(revision),
        store.head(revision),
        store.delete(revision),
        store.list("", None, 1),
        store.remove_debris(),
        store.check(),
    ):
        with pytest.raises(Unavailable):
            await refused
    assert sorted(path.name for path in root.rglob("*")) == ["blobs", "format", "lock", "tmp"]


async def test_cancelled_close_can_be_repeated(store: FilesystemLongTerm, revision: Revision) -> None:
    """A close that is given up while it waits for a put is taken up again by the next one."""
    source = Source([b"x" * 20], pause_at=1)
    put = await started_put(store, revision, source)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.close(), 0.01)
    source.release.set()
    await put
    await store.close()


async def test_temporary_directory_is_gone(store: FilesystemLongTerm, root: Path, revision: Revision) -> None:
    """When the directory of temporary files is removed under a store, writes fail cleanly and reads go on."""
    await store.put(revision, Source([b"content"]), None)
    (own,) = (root / "tmp").iterdir()
    (own / "lock").unlink()
    own.rmdir()
    with pytest.raises(Unavailable):
        await store.put(Revision(revision.object_id, SeededIds(50).uuid()), Source([b"content"]), None)
    with pytest.raises(Unavailable):
        await store.check()
    assert await read(store, revision) == b"content"
