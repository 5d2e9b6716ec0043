"""A database to test with, and what can be seen of it from outside."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prometheus_client import REGISTRY

from tierstore.clock import SystemClock
from tierstore.embedded.database import Connection, Database, Schema
from tierstore.errors import StorageFull
from tierstore.limits import KIB, Limits

T = TypeVar("T")

SCHEMA = Schema(
    application_id=0x74657374,
    name="counters",
    migrations=("CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL, filling BLOB)",),
)
WAIT_SECONDS = 20.0
"""No test waits longer for something that must happen."""

Open = Callable[..., Coroutine[Any, Any, Database]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is: in a directory that has to be made."""
    return tmp_path / "made" / "also made" / "counters.sqlite"


@pytest.fixture
async def open_database(path: Path) -> AsyncIterator[Open]:
    """Opens databases, and closes them when the test ends."""
    opened: list[Database] = []

    async def open_one(
        at: Path = path, schema: Schema = SCHEMA, limits: Limits | None = None, readers: int = 2
    ) -> Database:
        database = await Database.open(at, schema, limits=limits or Limits(), clock=SystemClock(), readers=readers)
        opened.append(database)
        return database

    yield open_one
    for database in opened:
        await database.close()


def put(name: str, value: int = 1, filling: int = 0) -> Callable[[Connection], int]:
    """A work that stores one row with ``filling`` bytes, and returns its value."""

    def work(connection: Connection) -> int:
        connection.execute(
            "INSERT OR REPLACE INTO counters (name, value, filling) VALUES (?, ?, zeroblob(?))", (name, value, filling)
        ).fetchall()
        return value

    return work


async def fill(database: Database) -> dict[str, int]:
    """Write rows of 200 KiB until the disk is full; return what was stored."""
    stored: dict[str, int] = {}
    for number in range(100):
        try:
            await database.write(put(f"{number}", number, filling=200 * KIB))
        except StorageFull:
            break
        stored[f"{number}"] = number
    assert 0 < len(stored) < 100
    return stored


def add(name: str) -> Callable[[Connection], int]:
    """A work that reads a counter, and writes one more."""

    def work(connection: Connection) -> int:
        value = counters(connection).get(name, 0) + 1
        return put(name, value)(connection)

    return work


def counters(connection: Connection) -> dict[str, int]:
    """A work that returns all rows."""
    return {str(name): int(str(value)) for name, value in connection.execute("SELECT name, value FROM counters")}


def raw(path: Path, work: Callable[[Connection], T]) -> T:
    """Do ``work`` on a connection of the test's own."""
    with closing(Connection(str(path))) as connection:
        connection.set_busy_timeout(int(WAIT_SECONDS * 1000))
        return work(connection)


def commits() -> tuple[int, int]:
    """How many commits there were so far, and how many operations shared them."""
    values = [
        REGISTRY.get_sample_value(f"tierstore_database_batch_operations_{kind}", {"database": SCHEMA.name}) or 0.0
        for kind in ("count", "sum")
    ]
    return int(values[0]), int(values[1])


async def until(happened: threading.Event) -> None:
    """Wait for what another thread does."""
    assert await asyncio.get_running_loop().run_in_executor(None, happened.wait, WAIT_SECONDS)


@asynccontextmanager
async def writer_held(database: Database) -> AsyncIterator[None]:
    """The writer is in a transaction meanwhile, so that everything written waits, and then shares commits."""
    reached, released = threading.Event(), threading.Event()

    def hold(_connection: Connection) -> None:
        reached.set()
        released.wait(WAIT_SECONDS)

    holding = asyncio.ensure_future(database.write(hold))
    await until(reached)
    try:
        yield
    finally:
        released.set()
        await holding
