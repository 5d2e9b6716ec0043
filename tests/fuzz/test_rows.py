"""Damaged rows of the embedded database are found out, or what is read of them is right."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.fuzz.rows import FUZZERS
from tierstore.backends.high_volume.contract import Inline, Tombstone
from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.errors import CorruptObject
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId

EXAMPLES = 80


def test_rows() -> None:
    """Whatever columns hold, what is read is what was written, or an error says that it is not."""
    for fuzzer in FUZZERS:
        assert fuzzer.run(EXAMPLES, seed=0) > 0


@pytest.mark.parametrize(
    "damage", ["metadata = NULL", "revision = NULL", "revision = x'00'", "kind = 7", "kind = 0, metadata = NULL"]
)
async def test_columns_that_do_not_fit(damage: str, tmp_path: Path) -> None:
    """A row whose columns were never written so is corrupt, and neither absent nor a fault of another kind."""
    ids, clock, path = SeededIds(1), ManualClock(), tmp_path / "rows.sqlite3"
    object_id = ObjectId("testing", (), "k")
    store = await SqliteHighVolume.open(path, limits=Limits(), clock=clock, ids=ids)
    try:
        await store.point(object_id, None, Tombstone(b"metadata", ids.uuid()), None, not_after=clock.now())
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(f"UPDATE rows SET {damage}")
        for look in (store.read(object_id), store.head(object_id), store.fence(object_id)):
            with pytest.raises(CorruptObject, match="do not fit its kind"):
                await look
        if "kind" not in damage:
            for write in (store.put_inline(object_id, Inline(b"", b""), None), store.delete_inline(object_id)):
                with pytest.raises(CorruptObject, match="do not fit its kind"):
                    await write
        assert await store.scan("", None, 10) == []
    finally:
        await store.close()
