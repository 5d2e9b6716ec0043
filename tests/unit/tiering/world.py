"""A tiered store over in-memory backends, with a clock, faults and a back door: what the tiering tests run in."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tierstore.backends.high_volume.contract import Tombstone
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.contract import BlobStream
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats
from tierstore.build import Stores, build_tiering
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.errors import ObjectNotFound
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import FaultScript, FaultyChangeLog, FaultyHighVolume, FaultyLongTerm
from tierstore.testing.ids import SeededIds
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.metadata import Expiration, Manual, Metadata
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.objects import Tier
from tierstore.types.ranges import ByteRange
from tierstore.types.streams import Body

SMALL = b"s" * 64
LARGE = b"L" * 65


POINT, SWAP = "high_volume.point", "high_volume.compare_and_write"


def commit_point(payload: bytes | None) -> str:
    """The call with which a write of ``payload`` over a tombstone takes effect; None is a delete."""
    return POINT if payload is not None and len(payload) > len(SMALL) else SWAP


class BytesBody(Body):
    """A payload in chunks of ``chunk`` bytes, which raises ``error`` in place of its end if there is one."""

    def __init__(
        self, payload: bytes, *, announced: bool = True, chunk: int = 10, error: BaseException | None = None
    ) -> None:
        self.size = len(payload) if announced else None
        self._chunks = iter([payload[start : start + chunk] for start in range(0, len(payload), chunk)])
        self._error = error

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        if self._error is not None:
            raise self._error
        self.complete = True
        raise StopAsyncIteration


class World:
    """One store with everything in reach."""

    upload: UploadId
    """The upload that was begun last."""
    parts: Sequence[PartName]
    """Its parts."""

    def __init__(self, limits: Limits, repeats: Repeats = Repeats.NOT_FOUND) -> None:
        self.limits = limits
        self.clock = ManualClock()
        self.ids = SeededIds(7)
        self.script = FaultScript()
        self.raw_high_volume = MemoryHighVolume(MemoryRows(), clock=self.clock, ids=self.ids)
        self.disk = MemoryBlobs()
        self.raw_long_term = MemoryLongTerm(self.disk, clock=self.clock, limits=limits, repeats=repeats)
        self.raw_changelog = MemoryChangeLog(MemoryEntries(), clock=self.clock)
        self.high_volume = FaultyHighVolume(self.raw_high_volume, self.script)
        self.long_term = FaultyLongTerm(self.raw_long_term, self.script)
        self.changelog = FaultyChangeLog(self.raw_changelog, self.script)
        self.failures: list[tuple[str, BaseException]] = []
        self.cleanup = TaskOwner(limits.background_tasks_max, lambda name, error: self.failures.append((name, error)))
        stores = Stores(self.high_volume, self.long_term, self.changelog)
        tiering = build_tiering(stores, limits=limits, clock=self.clock, ids=self.ids, cleanup=self.cleanup)
        self.committer, self.settler, self.uploads = tiering.committer, tiering.settler, tiering.uploads
        self.resumable = tiering.resumable
        self.store, self.sweeper = tiering.store, tiering.sweeper

    async def put(self, key: str, payload: bytes, expiration: Expiration | None = None) -> Tier:
        """Store ``payload`` under ``key``."""
        metadata = Metadata(expiration=expiration or Manual())
        return await self.store.put(object_id(key), metadata, BytesBody(payload))

    async def begin_upload(self, key: str, payload: bytes, metadata: Metadata | None = None) -> UploadId:
        """Begin an upload of ``payload`` under ``key`` and send it in parts of up to 40 bytes."""
        self.upload = await self.uploads.initiate(object_id(key), metadata or Metadata())
        pieces = [payload[start : start + 40] for start in range(0, len(payload), 40)]
        self.parts = [
            PartName(number, (await self.uploads.upload_part(self.upload, number, BytesBody(piece), None)).etag)
            for number, piece in enumerate(pieces, start=1)
        ]
        return self.upload

    async def complete(self) -> None:
        """Complete the upload that was begun last."""
        await self.in_passing_time(self.uploads.complete(self.upload, self.parts))

    async def abort(self) -> None:
        """Abort the upload that was begun last."""
        await self.in_passing_time(self.uploads.abort(self.upload))

    async def in_passing_time(self, work: Coroutine[Any, Any, None]) -> None:
        """Await ``work`` while time goes on for those who wait for it."""
        task = asyncio.get_running_loop().create_task(work)
        try:
            while not task.done():
                for _ in range(50):
                    await asyncio.sleep(0)
                if not task.done():
                    self.clock.advance(self.limits.complete_poll_seconds)
            await task
        finally:
            task.cancel()

    async def get(self, key: str, byte_range: ByteRange | None = None) -> bytes | None:
        """The payload under ``key``, or None."""
        try:
            found = await self.store.get(object_id(key), byte_range)
        except ObjectNotFound:
            return None
        return await payload_of(found)

    async def delete(self, key: str) -> None:
        """Delete ``key``."""
        await self.store.delete(object_id(key))

    async def drain(self) -> None:
        """Let the cleanup that is under way end."""
        await self.cleanup.drain(5)

    async def sweep(self) -> None:
        """Let all entries become due, those of uploads too, and sweep until the second visits are over."""
        await self.drain()
        self.clock.advance(max(self.limits.entry_grace_seconds, self.limits.upload_retention_seconds) + 1)
        await self.sweeper.run_once()
        self.clock.advance(self.limits.new_entry_kept_seconds_min + 1)
        await self.sweeper.run_once()
        self.clock.advance(self.limits.sweep_lease_seconds + self.limits.sweep_second_visit_seconds + 1)
        await self.sweeper.run_once()

    async def blobs(self) -> list[Revision]:
        """All blobs there are, by the back door."""
        return [blob.revision for blob in await self.raw_long_term.list("", None, 1000)]

    async def pointed_to(self) -> list[Revision]:
        """All revisions that rows point to, by the back door."""
        return [
            Revision(found.object_id, found.row.content.revision)
            for found in await self.raw_high_volume.scan("", None, 1000)
            if isinstance(found.row.content, Tombstone)
        ]

    async def logged(self) -> int:
        """How many entries the change log has."""
        return (await self.raw_changelog.backlog()).entries

    async def check_no_dangling(self) -> None:
        """A tombstone points to an existing blob."""
        dangling = set(await self.pointed_to()) - set(await self.blobs())
        assert not dangling, f"dangling tombstones: {dangling}; calls: {self.script.trace}"

    async def check_settled(self) -> None:
        """Every blob is referenced, every reference has its blob, the log is empty."""
        await self.check_no_dangling()
        orphans = set(await self.blobs()) - set(await self.pointed_to())
        assert not orphans, f"orphans: {orphans}; calls: {self.script.trace}"
        known = {entry.revision for entry in await self.raw_changelog.list(None, 1000, uploads=True)}
        unknown = set(self.disk.uploads) - known
        assert not unknown, f"uploads that nobody will abort: {unknown}; calls: {self.script.trace}"
        assert await self.logged() == 0, f"calls: {self.script.trace}"


def object_id(key: str) -> ObjectId:
    """An id of the tests' tenant."""
    return ObjectId("tests", (Scope("org", "1"),), key)


async def payload_of(found: OpenObject) -> bytes:
    """Read an opened object to its end."""
    if isinstance(found.payload, bytes):
        return found.payload
    return await read_all(found.payload)


async def read_all(stream: BlobStream) -> bytes:
    """Read a stream to its end and close it."""
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


@asynccontextmanager
async def open_world(limits: Limits | None = None, repeats: Repeats = Repeats.NOT_FOUND) -> AsyncIterator[World]:
    """A world whose cleanup has been drained when it ends, without an unexpected failure."""
    world = World(limits or Limits.tiny(), repeats)
    yield world
    await world.drain()
