"""The filesystem store on a disk that is full, or read-only."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.backends.long_term.conftest import Open
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.clock import SystemClock
from tierstore.errors import StartupError, StorageFull, Unavailable
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import Source, cut, listed, payload, read
from tierstore.testing.mounts import SmallDisk, small_disk
from tierstore.types.ids import Revision

LIMITS = Limits(stream_chunk_bytes=64 * KIB)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 4 MiB and 64 files."""
    with small_disk(tmp_path / "disk", "4m,nr_inodes=64") as mounted:
        yield mounted


@pytest.fixture
def disk(small: SmallDisk) -> Path:
    """Where that disk is mounted."""
    return small.path


def temporary_files(root: Path) -> list[Path]:
    """The files of writes that have not ended."""
    return [file for file in (root / "tmp").rglob("*") if file.is_file() and file.name != "lock"]


async def test_full(open_store: Open, disk: Path, ids: SeededIds, revision: Revision) -> None:
    """A put that does not fit leaves nothing; the rest goes on; it works again once there is space."""
    store = await open_store(disk / "store", LIMITS)
    whole = payload(MIB)
    await store.put(revision, Source([whole]), None)
    used = os.statvfs(disk).f_bavail
    for content in ([payload(8 * MIB)], cut(payload(8 * MIB), 50_000)):
        refused = Revision(revision.object_id, ids.uuid())
        with pytest.raises(StorageFull):
            await store.put(refused, Source(content), None)
        assert await store.head(refused) is None
        assert temporary_files(disk) == []
        assert os.statvfs(disk).f_bavail == used
    await store.check()
    assert await read(store, revision) == whole
    await store.put(Revision(revision.object_id, ids.uuid()), Source(cut(payload(2 * MIB), 50_000)), None)
    assert len(await listed(store)) == 2


async def test_full_for_others(open_store: Open, disk: Path, ids: SeededIds, revision: Revision) -> None:
    """On a disk that others have filled, puts are refused, reads go on (so the store is ready), deletes make room."""
    store = await open_store(disk / "store", LIMITS)
    await store.put(revision, Source([payload(MIB)]), None)
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(8 * MIB))
    await store.check()
    later = Revision(revision.object_id, ids.uuid())
    with pytest.raises(StorageFull):
        await store.put(later, Source([payload(1_000)]), None)
    assert await read(store, revision) == payload(MIB)
    await store.delete(revision)
    await store.put(later, Source([payload(1_000)]), None)
    assert await read(store, later) == payload(1_000)
    assert temporary_files(disk / "store") == []


async def test_the_reserve_stays_free(disk: Path, ids: SeededIds, revision: Revision) -> None:
    """Puts are refused before they use the reserve, whether or not their length is announced."""
    clock = SystemClock()
    store = await FilesystemLongTerm.open(disk / "store", limits=LIMITS, clock=clock, ids=ids, reserve_bytes=2 * MIB)
    try:
        await store.put(revision, Source([payload(MIB)]), MIB)
        for size in (2 * MIB, None):
            refused = Revision(revision.object_id, ids.uuid())
            with pytest.raises(StorageFull):
                await store.put(refused, Source(cut(payload(2 * MIB), 50_000)), size)
            assert await store.head(refused) is None
        assert temporary_files(disk) == []
        space = os.statvfs(disk)
        assert space.f_bavail * space.f_frsize >= 2 * MIB
        await store.delete(revision)
        await store.put(Revision(revision.object_id, ids.uuid()), Source([payload(MIB)]), None)
    finally:
        await store.close()


async def test_no_more_files(open_store: Open, disk: Path, ids: SeededIds, revision: Revision) -> None:
    """A disk that takes no more files is full too, whichever file or directory is the one too many."""
    store = await open_store(disk / "store", LIMITS)
    written: list[Revision] = []

    async def put_until_full() -> None:
        while len(written) < 100:
            await store.put(refused := Revision(revision.object_id, ids.uuid()), Source([b"content"]), None)
            written.append(refused)

    with pytest.raises(StorageFull):
        await put_until_full()
    assert len(written) > 10
    assert temporary_files(disk) == []
    assert set(await listed(store)) == set(written)


async def test_full_for_many_at_once(open_store: Open, disk: Path, ids: SeededIds, revision: Revision) -> None:
    """Of many puts that do not all fit, each is whole or nothing."""
    store = await open_store(disk / "store", LIMITS)
    revisions = [Revision(revision.object_id, ids.uuid()) for _ in range(8)]
    content = payload(MIB)
    outcomes = await asyncio.gather(
        *(store.put(revision, Source(cut(content, 60_000)), None) for revision in revisions), return_exceptions=True
    )
    whole = {put for put, outcome in zip(revisions, outcomes, strict=True) if not isinstance(outcome, BaseException)}
    assert {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)} == {StorageFull}
    assert set(await listed(store)) == whole
    for put in whole:
        assert await read(store, put) == content
    assert temporary_files(disk) == []


async def test_read_only(open_store: Open, disk: Path, small: SmallDisk, ids: SeededIds, revision: Revision) -> None:
    """On a disk that becomes read-only, writes are unavailable and reads go on; later it works again."""
    store = await open_store(disk / "store", LIMITS)
    await store.put(revision, Source([b"content"]), None)
    later = Revision(revision.object_id, ids.uuid())
    small.remount("ro")
    try:
        with pytest.raises(Unavailable) as raised:
            await store.put(later, Source([b"more"]), None)
        assert not isinstance(raised.value, StorageFull)
        with pytest.raises(Unavailable):
            await store.delete(revision)
        await store.check()
        assert await read(store, revision) == b"content"
        assert await listed(store) == [revision]
        assert await store.head(later) is None
    finally:
        small.remount("rw")
    await store.put(later, Source([b"more"]), None)
    assert temporary_files(disk) == []


async def test_read_only_in_the_middle_of_a_put(
    open_store: Open, disk: Path, small: SmallDisk, revision: Revision
) -> None:
    """A disk that becomes read-only under a put fails it, and the store can still be closed."""
    store = await open_store(disk / "store", LIMITS)
    source = Source([b"content"], pause_at=1)
    put = asyncio.create_task(store.put(revision, source, None))
    await source.reached.wait()
    small.remount("ro")
    try:
        source.release.set()
        with pytest.raises(Unavailable):
            await put
        await store.close()
    finally:
        small.remount("rw")
    again = await open_store(disk / "store", LIMITS)
    assert await again.remove_debris() == 1
    assert await again.head(revision) is None


async def test_on_two_disks(open_store: Open, disk: Path, root: Path) -> None:
    """Temporary files on another disk than the blobs, which no rename could move, stop the start."""
    root.mkdir()
    (root / "tmp").symlink_to(disk)
    with pytest.raises(StartupError, match="must be on one filesystem"):
        await open_store(root)


async def test_read_only_from_the_start(open_store: Open, disk: Path, small: SmallDisk) -> None:
    """A store on a read-only disk does not start, and says why."""
    await (await open_store(disk / "store", LIMITS)).close()
    small.remount("ro")
    try:
        with pytest.raises(StartupError, match="Read-only file system"):
            await open_store(disk / "store", LIMITS)
    finally:
        small.remount("rw")
