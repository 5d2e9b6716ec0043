"""The SQLite high-volume store on a disk that small objects have filled."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tierstore.backends.high_volume.contract import Gone, Inline, Tombstone
from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.clock import SystemClock
from tierstore.errors import StorageFull
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.ids import SeededIds
from tierstore.testing.mounts import small_disk
from tierstore.types.ids import ObjectId

RESERVE = 2 * MIB
LIMITS = Limits(database_checkpoint_bytes=MIB, database_batch_bytes_max=MIB)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    with small_disk(tmp_path / "disk", "16m") as mounted:
        yield mounted.path


@pytest.fixture
async def store(disk: Path) -> AsyncIterator[SqliteHighVolume]:
    """A store on it that leaves a reserve."""
    store = await SqliteHighVolume.open(
        disk / "rows", limits=LIMITS, clock=SystemClock(), ids=SeededIds(1), reserve_bytes=RESERVE
    )
    yield store
    await store.close()


def named(number: int) -> ObjectId:
    """The object with a number."""
    return ObjectId("photos", (), f"{number}")


def free(disk: Path) -> int:
    """Bytes that are free on the disk."""
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize


async def fill(store: SqliteHighVolume, size: int, at_once: int = 1) -> list[ObjectId]:
    """Put objects of ``size`` bytes until there is no room; return those that were stored."""
    stored: list[ObjectId] = []
    for start in range(0, 100_000, at_once):
        content = Inline(b"", b"p" * size)
        puts = [store.put_inline(named(number), content, None) for number in range(start, start + at_once)]
        results = await asyncio.gather(*puts, return_exceptions=True)
        stored += [named(start + index) for index, result in enumerate(results) if result is None]
        if any(result is not None for result in results):
            assert {type(result) for result in results if result is not None} == {StorageFull}
            return stored
    raise AssertionError("the disk is never full")


@pytest.mark.parametrize(("size", "at_once"), [(3 * KIB, 16), (100 * KIB, 1), (100 * KIB, 8), (MIB, 1), (MIB, 8)])
async def test_a_disk_full_of_small_objects(store: SqliteHighVolume, disk: Path, size: int, at_once: int) -> None:
    """Small objects are refused before they use the reserve; all that makes room works, and then so do writes."""
    for _ in range(3):
        stored = await fill(store, size, at_once)
        assert len(stored) * size > 6 * MIB, "most of the disk can be used"
        assert free(disk) >= RESERVE // 2
        head = await store.head(stored[0])
        assert head is not None
        with pytest.raises(StorageFull):
            await store.compare_and_write(stored[0], head.version, Inline(b"", b"p" * MIB), None)
        assert await store.compare_and_write(stored[0], head.version, Tombstone(b"", UUID(int=1)), None) is not None
        pointed = await store.fence(stored[0])
        assert await store.compare_and_write(stored[0], pointed.version, Gone(), None) is not None
        for start in range(1, len(stored), 64):
            deletes = [store.delete_inline(each) for each in stored[start : start + 64]]
            assert set(await asyncio.gather(*deletes)) == {None}
        assert await store.remove_markers(1 << 62, 1_000_000) == len(stored)


async def test_on_a_disk_that_others_have_filled(store: SqliteHighVolume, disk: Path) -> None:
    """When others leave less than the reserve, writes are refused, deletes are not; with room again all works."""
    before = Inline(b"", b"before")
    assert await store.put_inline(named(0), before, None) is None
    (disk / "filler").write_bytes(bytes(free(disk) - RESERVE // 4))
    with pytest.raises(StorageFull):
        await store.put_inline(named(0), Inline(b"", b"after"), None)
    row = await store.read(named(0))
    assert row is not None
    assert row.content == before
    assert await store.delete_inline(named(0)) is None
    (disk / "filler").unlink()
    assert await store.put_inline(named(0), Inline(b"", b"after"), None) is None
