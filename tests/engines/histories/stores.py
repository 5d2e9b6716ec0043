"""The stores that histories are replayed at: each opened empty, with a namespace of its own.

Limits are those of the history. SeaweedFS wants 5 MiB of each part but the last, so most uploads in several parts are
not completed there (`tests.engines.histories.replay.Report`); the server of `tests.engines.gcs_xml` wants what the
limits of the history say.
"""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.engines.bigtable_emulator import INSTANCE, NEVER_SECONDS, PROJECT, BigtableEmulator
from tests.engines.gcs_xml import StrictGcs
from tests.engines.histories.coverage import STORES
from tests.engines.histories.notation import History
from tests.engines.histories.replay import Backend, Open, Opened, Store
from tests.engines.postgres import Postgres
from tests.engines.seaweedfs import SeaweedFs
from tierstore.backends.high_volume.bigtable import BigtableHighVolume
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.high_volume.postgres import PostgresHighVolume
from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.backends.long_term.gcs import GcsLongTerm
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats
from tierstore.backends.long_term.s3 import S3LongTerm
from tierstore.changelog.bigtable import BigtableChangeLog
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.changelog.postgres import PostgresChangeLog
from tierstore.changelog.sqlite import SqliteChangeLog
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds

__all__ = ["Opened", "Store"]

HIGH_VOLUME, LONG_TERM, CHANGELOG = STORES


def limits_of(history: History) -> Limits:
    """Those that its answers depend on."""
    return replace(Limits.tiny(), **history.limits)


@asynccontextmanager
async def closing(backend: Backend) -> AsyncIterator[Backend]:
    """An open store, until the context ends."""
    try:
        yield backend
    finally:
        await backend.close()


def memory_high_volume(_: History, clock: ManualClock) -> Opened:
    """Rows in memory."""
    return closing(MemoryHighVolume(MemoryRows(), clock=clock, ids=SeededIds(1)))


def memory_long_term(history: History, clock: ManualClock) -> Opened:
    """Blobs in memory."""
    repeats = Repeats.SUCCEED if history.repeats_succeed else Repeats.NOT_FOUND
    return closing(MemoryLongTerm(MemoryBlobs(), limits=limits_of(history), clock=clock, repeats=repeats))


def memory_changelog(_: History, clock: ManualClock) -> Opened:
    """Entries in memory."""
    return closing(MemoryChangeLog(MemoryEntries(), clock=clock))


def sqlite_high_volume(folder: Path) -> Open:
    """Rows in SQLite files below ``folder``."""
    number = itertools.count()

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        path = folder / f"{next(number)}.sqlite"
        backend = await SqliteHighVolume.open(path, limits=limits_of(history), clock=clock, ids=SeededIds(1))
        async with closing(backend):
            yield backend

    return open_one


def sqlite_changelog(folder: Path) -> Open:
    """Entries in SQLite files below ``folder``."""
    number = itertools.count()

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        path = folder / f"{next(number)}.sqlite"
        async with closing(await SqliteChangeLog.open(path, limits=limits_of(history), clock=clock)) as backend:
            yield backend

    return open_one


def filesystem_long_term(folder: Path) -> Open:
    """Blobs in directories below ``folder``."""
    number = itertools.count()

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        path = folder / str(next(number))
        backend = await FilesystemLongTerm.open(
            path, limits=limits_of(history), clock=clock, ids=SeededIds(1), threads=2
        )
        async with closing(backend):
            yield backend

    return open_one


def postgres_high_volume(server: Postgres) -> Open:
    """Rows in PostgreSQL, in schemas of their own."""

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        backend = await PostgresHighVolume.open(
            server.url,
            schema=server.new_schema(),
            connections_max=1,
            limits=limits_of(history),
            clock=clock,
            ids=SeededIds(1),
        )
        async with closing(backend):
            yield backend

    return open_one


def postgres_changelog(server: Postgres) -> Open:
    """Entries in PostgreSQL, in schemas of their own."""

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        backend = await PostgresChangeLog.open(
            server.url, schema=server.new_schema(), connections_max=1, limits=limits_of(history), clock=clock
        )
        async with closing(backend):
            yield backend

    return open_one


def bigtable_high_volume(emulator: BigtableEmulator) -> Open:
    """Rows in Bigtable, in tables of their own. Where Google's clients find the emulator, the environment says."""

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        kept_seconds = {"row": NEVER_SECONDS, "payload": NEVER_SECONDS}
        backend = await BigtableHighVolume.open(
            project=PROJECT,
            instance=INSTANCE,
            table=emulator.make_table("index", kept_seconds=kept_seconds),
            app_profile="default",
            timeout_seconds=_TIMEOUT_SECONDS,
            limits=limits_of(history),
            clock=clock,
            ids=SeededIds(1),
        )
        async with closing(backend):
            yield backend

    return open_one


def bigtable_changelog(emulator: BigtableEmulator) -> Open:
    """Entries in Bigtable, likewise."""

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        backend = await BigtableChangeLog.open(
            project=PROJECT,
            instance=INSTANCE,
            table=emulator.make_table("entry", "index"),
            app_profile="default",
            timeout_seconds=_TIMEOUT_SECONDS,
            limits=limits_of(history),
            clock=clock,
            ids=SeededIds(1),
        )
        async with closing(backend):
            yield backend

    return open_one


def s3_long_term(server: SeaweedFs) -> Open:
    """Blobs in SeaweedFS, under prefixes of their own. Credentials are in the environment."""

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        backend = await S3LongTerm.open(
            bucket=server.bucket,
            endpoint=server.url,
            prefix=server.new_prefix(),
            connections_max=4,
            limits=limits_of(history),
            clock=clock,
            ids=SeededIds(1),
        )
        async with closing(backend):
            yield backend

    return open_one


def gcs_long_term(server: StrictGcs, bucket: str) -> Open:
    """Blobs in a bucket of Google Cloud Storage, under prefixes of their own. Likewise."""
    number = itertools.count()

    @asynccontextmanager
    async def open_one(history: History, clock: ManualClock) -> AsyncIterator[Backend]:
        backend = await GcsLongTerm.open(
            bucket=bucket,
            endpoint=server.address,
            prefix=f"history-{next(number)}",
            connections_max=4,
            limits=limits_of(history),
            clock=clock,
            ids=SeededIds(1),
        )
        async with closing(backend):
            yield backend

    return open_one


_TIMEOUT_SECONDS = 10.0
