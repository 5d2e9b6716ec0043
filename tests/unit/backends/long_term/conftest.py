"""What the tests of the filesystem store share."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision, Scope

Open = Callable[..., Awaitable[FilesystemLongTerm]]


@pytest.fixture
def clock() -> ManualClock:
    """The clock of every store that `open_store` opens."""
    return ManualClock()


@pytest.fixture
def ids() -> SeededIds:
    """Where the tests' revisions come from."""
    return SeededIds(1)


@pytest.fixture
def revision(ids: SeededIds) -> Revision:
    """The revision that most tests write."""
    return Revision(ObjectId("photos", (Scope("org", "17"),), "a secret name"), ids.uuid())


@pytest.fixture
async def open_store(clock: ManualClock) -> AsyncIterator[Open]:
    """Opens stores that are closed when the test ends."""
    opened: list[FilesystemLongTerm] = []
    seeds = itertools.count(1_000)

    async def open_one(root: Path, limits: Limits | None = None, threads: int = 4) -> FilesystemLongTerm:
        store = await FilesystemLongTerm.open(
            root, limits=limits or Limits.tiny(), clock=clock, ids=SeededIds(next(seeds)), threads=threads
        )
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory of the test's store."""
    return tmp_path / "store"


@pytest.fixture
async def store(open_store: Open, root: Path) -> FilesystemLongTerm:
    """An open store in ``root``, with tiny limits."""
    return await open_store(root)
