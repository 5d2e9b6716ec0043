"""Fuzzer of the embedded database's rows: columns that hold other values than were written.

What is read is the object, or nothing, or there is an error that says that it is damaged: never other bytes or other
metadata, never an exception of another kind. SQLite keeps no checksums of its pages, so the rows have to look after
themselves; which of them there are, and until when, it is believed.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from hypothesis import strategies as st

from tests.fuzz.captured import captured_logs
from tests.fuzz.fuzzers import Fuzzer
from tierstore.backends.high_volume.contract import Gone, Inline, InlineHead, Tombstone
from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.errors import CorruptObject
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import Metadata
from tierstore.types.metadata_storage import decode_metadata, encode_metadata

_SMALL, _LARGE = ObjectId("testing", (), "small"), ObjectId("testing", (), "large")
_PAYLOAD = b"payload"
_REVISION = UUID(int=0x0123456789ABCDEF0123456789ABCDEF)
_METADATA = encode_metadata(Metadata(filename="name"), size=len(_PAYLOAD), time_created=1)


@dataclass(frozen=True)
class Overwrite:
    """A value in the place of another one; ``table`` is that of the rows or that of the payloads."""

    table: str
    column: str
    value: bytes | int | None
    of: str


_BLOBS = st.none() | st.binary(max_size=20) | st.sampled_from([
    b"", _METADATA, _METADATA[:-1], _METADATA + b"\x00", bytes(16), _REVISION.bytes, b"\xff" * 17,
])  # fmt: skip
_OVERWRITES = st.one_of(
    st.builds(
        Overwrite,
        st.just("rows"),
        st.sampled_from(["metadata", "revision"]),
        _BLOBS,
        st.sampled_from(["small", "large"]),
    ),
    st.builds(
        Overwrite,
        st.just("rows"),
        st.just("kind"),
        st.integers(-3, 5) | st.just(2**63 - 1),
        st.sampled_from(["small", "large"]),
    ),
    st.builds(
        Overwrite,
        st.just("rows"),
        st.just("path"),
        st.binary(max_size=20) | st.sampled_from([b"testing/objects/", b"\xff", b"testing/objects/other"]),
        st.sampled_from(["small", "large"]),
    ),
    st.builds(
        Overwrite,
        st.just("payloads"),
        st.sampled_from(["payload", "checksum"]),
        st.binary(max_size=20),
        st.just("small"),
    ),
)


def _law(overwrites: list[Overwrite]) -> None:
    with TemporaryDirectory(prefix="tierstore-fuzz-") as directory, captured_logs(), asyncio.Runner() as runner:
        runner.run(_overwrite_and_read(overwrites, Path(directory, "rows.sqlite3")))


async def _overwrite_and_read(overwrites: list[Overwrite], path: Path) -> None:
    clock = ManualClock()
    store = await SqliteHighVolume.open(path, limits=Limits(), clock=clock, ids=SeededIds(1), readers=1)
    try:
        await store.put_inline(_SMALL, Inline(_METADATA, _PAYLOAD), clock.now() + 1)
        await store.point(_LARGE, None, Tombstone(_METADATA, _REVISION), clock.now() + 1, not_after=clock.now())
        _inflict(overwrites, path)
        changed = {each.column for each in overwrites}
        for object_id in (_SMALL, _LARGE):
            with _clean():
                head = await store.head(object_id)
                if head is not None and not isinstance(head.content, Gone):
                    decode_metadata(head.content.metadata, head.expires)
                    assert head.content.metadata == _METADATA
                    assert (
                        isinstance(head.content, InlineHead)
                        or head.content.revision == _REVISION
                        or "revision" in changed
                    )
            with _clean():
                row = await store.read(object_id)
                if row is not None and isinstance(row.content, Inline):
                    assert row.content.payload == _PAYLOAD or {"payload", "checksum"} <= changed
        clock.advance(10)
        for found in [*await store.scan("", None, 10), *await store.expired(clock.now(), 10)]:
            assert found.object_id in {_SMALL, _LARGE} or "path" in changed
        with _clean():
            await store.delete_inline(_LARGE)
        with _clean():
            await store.fence(_LARGE)
        with _clean():
            await store.put_inline(_SMALL, Inline(_METADATA, b"new"), None)
    finally:
        await store.close()


@contextmanager
def _clean() -> Iterator[None]:
    try:
        yield
    except CorruptObject as error:
        if not str(error):
            raise AssertionError("an error that does not say why") from error


def _inflict(overwrites: list[Overwrite], path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for each in overwrites:
            row = f"(SELECT id FROM rows WHERE kind {'= 1' if each.of == 'large' else '!= 1'} LIMIT 1)"
            where = f"id = {row}" if each.table == "rows" else f"row = {row}"
            database.execute(f"UPDATE OR IGNORE {each.table} SET {each.column} = ? WHERE {where}", (each.value,))


FUZZERS = (Fuzzer("database rows", st.lists(_OVERWRITES, min_size=1, max_size=2), _law, 0.3),)
