"""The real stores on one directory, as one process opens them: what the workload writes to and the judge reads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tierstore.build import Stores, Tiering, build_tiering, open_stores
from tierstore.clock import UnixMicros
from tierstore.config import Config, Data, FilesystemLongTerm, SqliteHighVolume
from tierstore.limits import KIB, Limits
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Scope
from tierstore.types.streams import Body

LIMITS = replace(
    Limits.tiny(),
    inline_bytes_max=KIB,
    stream_chunk_bytes=2 * KIB,
    parts_listed_max=8,
    database_batch_bytes_max=16 * KIB,
    upload_retention_seconds=1e6,
    outcome_retention_seconds=1e6,
    identity_wait_seconds_max=0.2,
)
"""Small enough for checkpoints and second batches; and uploads last longer than any run."""

_DRAIN_SECONDS = 20.0


class LeapingClock(ManualClock):
    """Whoever sleeps wakes at once, and it is later then."""

    async def sleep(self, seconds: float) -> None:
        self.advance(max(seconds, 0))
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Opened:
    """Open stores and the layer above them."""

    stores: Stores
    tiering: Tiering
    cleanup: TaskOwner
    clock: LeapingClock
    failures: list[tuple[str, BaseException]]
    """What was not to be seen: cleanup that failed."""

    async def drain(self) -> None:
        """Let the cleanup that is under way end."""
        await self.cleanup.drain(_DRAIN_SECONDS)

    async def sweep(self, seconds: float) -> None:
        """Sweep when so much time has passed."""
        await self.drain()
        self.clock.advance(seconds)
        await self.tiering.sweeper.run_once()


@asynccontextmanager
async def opened(directory: Path, now: UnixMicros, seed: int) -> AsyncIterator[Opened]:
    """Open the stores in ``directory``, as a process does that starts at ``now``; close them in the end."""
    clock, ids, failures = LeapingClock(now), SeededIds(seed), list[tuple[str, BaseException]]()
    config = Config(
        data=Data(str(directory)),
        high_volume=SqliteHighVolume(readers=1, reserve=0),
        long_term=FilesystemLongTerm(threads=3, reserve=0),
    )
    async with open_stores(config, LIMITS, clock, ids) as stores:
        cleanup = TaskOwner(LIMITS.background_tasks_max, lambda name, error: failures.append((name, error)))
        tiering = build_tiering(stores, limits=LIMITS, clock=clock, ids=ids, cleanup=cleanup)
        try:
            yield Opened(stores, tiering, cleanup, clock, failures)
        finally:
            await cleanup.drain(_DRAIN_SECONDS)


def object_id(key: str) -> ObjectId:
    """An id of the tests' tenant."""
    return ObjectId("tests", (Scope("org", "1"),), key)


class Payload(Body):
    """A payload in chunks of odd sizes, with its size announced."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._chunks = iter([content[start : start + 1500] for start in range(0, len(content), 1500)])

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        self.complete = True
        raise StopAsyncIteration
