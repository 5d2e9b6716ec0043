"""The line of one upload: what becomes of parts that were to be published together when something breaks."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tierstore.backends.long_term.part_file import PartWriter
from tierstore.backends.long_term.store_directory import StoreDirectory
from tierstore.backends.long_term.upload_line import UploadLine
from tierstore.errors import Unavailable
from tierstore.types.ids import ObjectId, Revision


async def test_a_part_that_was_not_published_is_never_durable(tmp_path: Path) -> None:
    """What was taken and has not got its name has an error, also when that of another one was none of the disk's."""
    store = StoreDirectory.open(tmp_path / "store", UUID(int=7))
    assert store is not None
    revision = Revision(ObjectId("uploaded", (), "k"), UUID(int=1))
    store.upload_directory(revision.uuid).mkdir(parents=True)
    writers = [PartWriter(store, revision, number, 1, bytes([number] * 8)) for number in (1, 2, 3)]
    for writer in writers:
        writer.finish([b"x"], 0, None)
    writers[1]._temporary = None  # type: ignore[assignment]  # because only a mistake of ours raises anything else
    line = UploadLine()
    parts = [line.join(writer) for writer in writers]
    with pytest.raises(AttributeError):
        line.publish()
    assert [part.error is None for part in parts] == [True, False, False]
    assert all(isinstance(part.error, Unavailable) for part in parts[1:])
    assert not any(line.leave(part) for part in parts)
    syncs = []

    async def in_thread(work: Callable[[], None]) -> None:
        syncs.append(work)
        work()

    await line.make_durable(parts[0], in_thread)
    await line.make_durable(parts[0], in_thread)
    assert len(syncs) == 1
    for writer in (writers[0], writers[2]):
        writer.discard()
    store.close()
