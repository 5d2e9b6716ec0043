"""The long-term store in memory."""

import pytest

from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm
from tierstore.errors import Unavailable
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.laws.long_term import Source, read
from tierstore.types.ids import Revision


async def test_closed_store_refuses(clock: ManualClock, revision: Revision) -> None:
    """A closed instance refuses what is asked of it; the blobs stay, for others."""
    blobs = MemoryBlobs()
    store = MemoryLongTerm(blobs, limits=Limits.tiny(), clock=clock)
    await store.put(revision, Source([b"content"]), None)
    await store.close()
    with pytest.raises(Unavailable):
        await store.head(revision)
    assert await read(MemoryLongTerm(blobs, limits=Limits.tiny(), clock=clock), revision) == b"content"
