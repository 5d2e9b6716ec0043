"""What real Bigtable does and its emulator hides: it collects late, one cell before another, and nothing may show it.

A back door plants what would be there: superseded cells, rows of which a part is left, index rows that are missing or
stale.
"""

from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from tests.engines.bigtable_emulator import INSTANCE, NEVER_SECONDS, PROJECT, VARIABLE, BigtableEmulator
from tests.engines.bigtable_raw import RawCell, RawTable
from tests.engines.bigtable_stores import TIMEOUT_SECONDS, open_high_volume
from tierstore.backends.high_volume.bigtable import BigtableHighVolume
from tierstore.backends.high_volume.bigtable_rows import can_move, has_version, moved_deadline
from tierstore.backends.high_volume.contract import Gone, Inline, InlineHead, Row, RowHead, Tombstone, TombstoneRow
from tierstore.bigtable.connection import Family, Place, open_table
from tierstore.bigtable.predicates import all_of
from tierstore.clock import MICROS_PER_SECOND, SystemClock
from tierstore.errors import CorruptObject
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId

SECOND = MICROS_PER_SECOND
DAY = 86_400 * SECOND
IT = ObjectId("photos", (), "it")
KEY = IT.storage_path.encode()
INLINE, OTHER_INLINE = Inline(b"metadata", b"payload"), Inline(b"other", b"other payload")
TOMBSTONE = Tombstone(b"metadata", UUID(int=7))
FOREVER = 253_402_300_799_000_000


@pytest.fixture
def clock() -> ManualClock:
    """Stands still until a test moves it."""
    return ManualClock()


@pytest.fixture
def raw(bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawTable]:
    """The back door to the table of this test, in which nothing is ever collected."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    raw = RawTable(bigtable_emulator.make_table("index", kept_seconds={"row": NEVER_SECONDS, "payload": NEVER_SECONDS}))
    yield raw
    raw.close()


@pytest.fixture
async def store(raw: RawTable, clock: ManualClock) -> AsyncIterator[BigtableHighVolume]:
    """The store in it."""
    store = await open_high_volume(raw.name, clock, SeededIds(1))
    yield store
    await store.close()


def supersede(raw: RawTable, key: bytes, older: list[RawCell]) -> None:
    """Put cells behind those of a row, as if they had been superseded and not been collected yet."""
    kept = raw.cells(key)
    for cell in older:
        assert any(
            (cell.family, cell.qualifier) == (each.family, each.qualifier) and cell.timestamp < each.timestamp
            for each in kept
        ), "what is superseded stands behind something"
    raw.put(key, *older)


# superseded cells


async def test_a_superseded_tombstone_is_no_tombstone(store: BigtableHighVolume, raw: RawTable) -> None:
    """Blind writes do not meet it, and listings, reads and comparisons see what is there now."""
    await store.put_inline(IT, INLINE, None)
    older = [
        RawCell("row", b"h", 1_000, b"t" + bytes(16) + b"old"),
        RawCell("row", b"v", 1_000, b"o" * 24),
        RawCell("row", b"f", 1_000, b"o" * 16),
        RawCell("payload", b"p", 1_000, b"old payload"),
        RawCell("payload", b"s", 1_000, bytes(16)),
    ]
    supersede(raw, KEY, older)
    row = await store.read(IT)
    assert row is not None
    assert row.content == INLINE
    assert await store.compare_and_write(IT, b"o" * 16, OTHER_INLINE, None) is None
    assert not await store.point(IT, RowHead(b"o" * 16, Gone(), None, b"o" * 16), TOMBSTONE, None, not_after=FOREVER)
    assert [found.row for found in await store.scan("", None, 9)] == [await store.head(IT)]
    assert await store.put_inline(IT, OTHER_INLINE, None) is None
    assert await store.delete_inline(IT) is None
    head = await store.head(IT)
    assert head is not None
    assert head.content == Gone()


async def test_a_superseded_inline_row_is_no_inline_row(store: BigtableHighVolume, raw: RawTable) -> None:
    """A tombstone that stands before it is met, extended and fenced as the tombstone that it is."""
    soon = store_now(store) + SECOND
    version = await store.compare_and_write(IT, None, TOMBSTONE, soon)
    assert version is not None
    supersede(raw, KEY, [RawCell("row", b"h", 1_000, b"iold"), RawCell("row", b"d", 1_000, bytes(8))])
    met = TombstoneRow(version, TOMBSTONE, soon)
    assert await store.put_inline(IT, INLINE, None) == met
    assert await store.delete_inline(IT) == met
    assert await store.compare_and_write(IT, version, Gone(), None, if_expired_by=soon - 1) is None
    assert await store.extend(IT, version, soon + SECOND)
    assert await store.read(IT) == Row(version, TOMBSTONE, soon + SECOND)
    assert (await store.fence(IT)).content == TOMBSTONE


def store_now(store: BigtableHighVolume) -> int:
    """The store's time."""
    return store._clock.now()  # because it is the test's clock


async def test_appends_go_on_from_the_latest_cell(store: BigtableHighVolume, raw: RawTable) -> None:
    """However many fences there were, with the older cells still there, the row's version is the last one's."""
    await store.put_inline(IT, INLINE, None)
    versions = [(await store.fence(IT)).version for _ in range(5)]
    assert len([cell for cell in raw.cells(KEY) if cell.qualifier == b"v"]) >= 1
    row = await store.read(IT)
    assert row == Row(versions[-1], INLINE, None)
    for version in versions[:-1]:
        assert await store.compare_and_write(IT, version, Gone(), None) is None
    assert await store.compare_and_write(IT, versions[-1], Gone(), None) is not None


# how long cells are kept


def kept_until(raw: RawTable, key: bytes = KEY) -> set[int]:
    """The timestamps of the latest cells of a row that hold something: garbage collection counts from them."""
    latest: dict[tuple[str, bytes], RawCell] = {}
    for cell in raw.cells(key):
        latest.setdefault((cell.family, cell.qualifier), cell)
    return {cell.timestamp for cell in latest.values() if cell.value}


@pytest.mark.parametrize("expires", [None, 5])
async def test_what_must_stay_has_a_time_that_never_comes(
    store: BigtableHighVolume, raw: RawTable, clock: ManualClock, expires: int | None
) -> None:
    """Every cell of a tombstone, expired or not, and of an inline row without deadline, whatever it was before."""
    await store.put_inline(IT, INLINE, clock.now() + SECOND)
    await store.put_inline(IT, INLINE, None)
    latest = {(cell.qualifier): cell.timestamp for cell in reversed(raw.cells(KEY))}
    assert {name: at for name, at in latest.items() if name != b"f"} == dict.fromkeys([b"v", b"h", b"p", b"s"], FOREVER)
    base = await store.head(IT)
    assert await store.point(IT, base, TOMBSTONE, expires, not_after=clock.now())
    assert kept_until(raw) == {FOREVER}
    head = await store.fence(IT)
    assert kept_until(raw) == {FOREVER}
    assert await store.compare_and_write(IT, head.version, TOMBSTONE, clock.now() + SECOND) is not None
    met = await store.delete_inline(IT)
    assert met is not None
    assert await store.extend(IT, met.version, clock.now() + 2 * SECOND)
    assert kept_until(raw) == {FOREVER}


async def test_what_expires_is_kept_from_its_deadline_on(
    store: BigtableHighVolume, raw: RawTable, clock: ManualClock
) -> None:
    """Every cell of an inline row with a deadline, also after it was extended or fenced; in whole milliseconds."""
    deadline = clock.now() + 3_600 * SECOND + 1
    await store.put_inline(IT, INLINE, deadline)
    assert kept_until(raw) == {deadline + 999}
    head = await store.head(IT)
    assert head is not None
    assert await store.extend(IT, head.version, deadline + DAY)
    assert kept_until(raw) == {deadline + DAY + 999}
    assert await store.read(IT) == Row(head.version, INLINE, deadline + DAY)
    await store.fence(IT)
    assert min(kept_until(raw)) >= deadline + DAY
    late = ObjectId("photos", (), "late")
    await store.put_inline(late, INLINE, 5)
    assert kept_until(raw, late.storage_path.encode()) == {clock.now()}


async def test_a_marker_is_kept_from_its_writing_on(
    store: BigtableHighVolume, raw: RawTable, clock: ManualClock
) -> None:
    """Every cell of it, so that nothing stays of a row that was deleted; a fence lets it be kept from then on."""
    await store.put_inline(IT, INLINE, None)
    clock.advance(10)
    await store.delete_inline(IT)
    assert kept_until(raw) == {clock.now()}
    await store.fence(IT)
    assert min(kept_until(raw)) >= clock.now()


async def test_native_collection_takes_what_may_go_and_nothing_else(
    bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rules of a second: expired inline rows and markers vanish; tombstones and what is extended stay, whole."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    clock = SystemClock()
    name = bigtable_emulator.make_table("index", kept_seconds={"row": 1, "payload": 1})
    place = Place(project=PROJECT, instance=INSTANCE, table=name, app_profile="default")
    families = (Family("row", 1.0), Family("payload", 1.0), Family("index"))
    table = await open_table(place, families, timeout_seconds=TIMEOUT_SECONDS, limits=Limits.tiny())
    store = BigtableHighVolume(table, Limits.tiny(), clock, SystemIds())
    raw = RawTable(name)
    keys = ("expires", "stays", "points", "extended", "deleted", "fenced")
    expires, stays, points, extended, deleted, fenced = (ObjectId("photos", (), key) for key in keys)
    soon = clock.now() + SECOND // 2
    await store.put_inline(expires, INLINE, soon)
    await store.put_inline(stays, INLINE, None)
    await store.compare_and_write(points, None, TOMBSTONE, soon)
    await store.put_inline(extended, INLINE, soon)
    head = await store.head(extended)
    assert head is not None
    assert await store.extend(extended, head.version, clock.now() + 3_600 * SECOND)
    await store.put_inline(deleted, INLINE, None)
    await store.delete_inline(deleted)
    await store.put_inline(fenced, INLINE, None)
    await store.fence(fenced)
    for _ in range(200):
        if not raw.cells(expires.storage_path.encode()) and not raw.cells(deleted.storage_path.encode()):
            break
        await clock.sleep(0.05)
    assert await store.read(expires) is None
    assert await store.read(deleted) is None
    for object_id, content in ((stays, INLINE), (points, TOMBSTONE), (extended, INLINE), (fenced, INLINE)):
        row = await store.read(object_id)
        assert row is not None
        assert row.content == content
    assert [found.object_id for found in await store.expired(clock.now(), 9)] == [points]
    raw.close()
    await store.close()


# rows that are collected in part


async def test_what_is_left_of_a_row_is_no_row(store: BigtableHighVolume, raw: RawTable, clock: ManualClock) -> None:
    """Once its version has been collected, everything takes it for absent, listings pass over it, and writes replace
    it.
    """

    async def leave() -> None:
        await store.put_inline(IT, INLINE, clock.now())
        raw.collect(KEY, ("row", b"v"))

    await leave()
    assert await store.read(IT) is None
    assert await store.head(IT) is None
    assert await store.delete_inline(IT) is None
    assert not await store.extend(IT, b"v" * 16, FOREVER)
    with capture_logs() as logs:
        assert await store.scan("", None, 9) == []
    assert logs == []
    assert await store.put_inline(IT, OTHER_INLINE, None) is None
    row = await store.read(IT)
    assert row is not None
    assert row.content == OTHER_INLINE
    raw.remove(KEY)
    await leave()
    version = await store.compare_and_write(IT, None, TOMBSTONE, None)
    assert await store.read(IT) == Row(version or b"", TOMBSTONE, None)
    assert {cell.family for cell in raw.cells(KEY)} == {"row"}, "the payload that was left is gone"


async def test_a_row_whose_content_was_collected_first_is_gone_and_can_be_written(
    store: BigtableHighVolume, raw: RawTable, clock: ManualClock
) -> None:
    """Its version may have been written later than the rest, by many fences, and so is collected later."""
    await store.fence(IT)
    raw.collect(KEY, ("row", b"h"), ("row", b"d"))
    head = await store.head(IT)
    assert head is not None
    assert head.content == Gone()
    assert await store.put_inline(IT, OTHER_INLINE, None) is None
    row = await store.read(IT)
    assert row is not None
    assert row.content == OTHER_INLINE
    await store.delete_inline(IT)
    raw.collect(KEY, ("row", b"h"))
    clock.advance(1)
    assert await store.remove_markers(clock.now(), 9) == 1
    assert raw.cells(KEY) == []


async def test_a_fence_brings_nothing_back_of_what_is_left_of_a_row(
    store: BigtableHighVolume, raw: RawTable, clock: ManualClock
) -> None:
    """With version and deadline collected and the rest still there, it makes a gone row, as where there was none."""
    await store.put_inline(IT, INLINE, clock.now() + SECOND)
    raw.collect(KEY, ("row", b"v"), ("row", b"d"))
    head = await store.fence(IT)
    assert (head.content, head.expires) == (Gone(), None)
    assert await store.read(IT) == Row(head.version, Gone(), None)
    assert {cell.family for cell in raw.cells(KEY)} == {"row"}


async def test_the_walk_takes_away_what_is_left_of_rows(
    store: BigtableHighVolume, raw: RawTable, clock: ManualClock
) -> None:
    """`remove_markers` does not count them, and leaves nothing of them."""
    await store.put_inline(IT, INLINE, clock.now())
    raw.collect(KEY, ("row", b"v"), ("payload", b"p"))
    assert await store.remove_markers(0, 9) == 0
    assert raw.cells(KEY) == []


async def test_a_collected_payload_is_gone(store: BigtableHighVolume, raw: RawTable, clock: ManualClock) -> None:
    """Of a row that expired long ago: it reads as gone, and can be written over. Of any other row it is damage."""
    await store.put_inline(IT, INLINE, clock.now() + SECOND)
    raw.collect(KEY, ("payload", b"p"), ("payload", b"s"))
    with pytest.raises(CorruptObject):
        await store.read(IT)
    clock.set_now(clock.now() + 3 * DAY)
    row = await store.read(IT)
    assert row is not None
    assert row.content == Gone()
    head = await store.head(IT)
    assert head is not None
    assert (head.content, head.version) == (InlineHead(b"metadata"), row.version)
    assert await store.compare_and_write(IT, row.version, OTHER_INLINE, None) is not None


@pytest.mark.parametrize("between", [None, "put_inline", "fence"])
async def test_a_row_whose_mark_was_collected_is_compared_by_version(
    store: BigtableHighVolume, raw: RawTable, clock: ManualClock, between: str | None
) -> None:
    """`point` from it is written if nothing else was since, and a conflict otherwise: never past a fence."""
    await store.put_inline(IT, INLINE, None)
    raw.collect(KEY, ("row", b"f"))
    base = await store.head(IT)
    assert base is not None
    assert base.fenced == b""
    if between == "put_inline":
        await store.put_inline(IT, OTHER_INLINE, None)
    elif between == "fence":
        await store.fence(IT)
    assert await store.point(IT, base, TOMBSTONE, None, not_after=clock.now()) is (between is None)
    # Who has lost has a mark to start from, so that small writes do not keep it from its end.
    base = await store.head(IT)
    await store.put_inline(IT, OTHER_INLINE, None)
    assert await store.point(IT, base, TOMBSTONE, None, not_after=clock.now())


# deadlines that have passed


@pytest.mark.parametrize("content", [INLINE, TOMBSTONE])
@pytest.mark.parametrize("asked", [0, DAY], ids=["as a reader asks", "further"])
async def test_an_extension_on_its_way_is_dead_once_another_has_found_the_deadline_passed(
    store: BigtableHighVolume, clock: ManualClock, content: Inline | Tombstone, asked: int
) -> None:
    """The very mutation of an extension that was in time does nothing after a later call has returned."""
    deadline = clock.now() + SECOND
    version = await store.compare_and_write(IT, None, content, deadline)
    assert version is not None
    same = has_version(version)
    assert same is not None
    late = all_of([same, can_move(clock.now(), deadline + DAY)])
    table = store._table  # because only a message that is late is wanted
    clock.set_now(deadline)
    assert not await store.extend(IT, version, deadline + asked)
    assert not await table.check_and_mutate(KEY, late, held=moved_deadline(deadline + DAY))
    assert not await store.extend(IT, version, deadline + DAY)
    assert await store.read(IT) == Row(version, content, deadline)
    assert await store.compare_and_write(IT, version, Gone(), None, if_expired_by=deadline - 1) is None
    assert await store.compare_and_write(IT, version, Gone(), None, if_expired_by=deadline) is not None


async def test_without_that_look_it_comes_to_pass(store: BigtableHighVolume, clock: ManualClock) -> None:
    """It is the look that kills it: the mutation is a good one, and is applied when it arrives after the deadline."""
    deadline = clock.now() + SECOND
    version = await store.compare_and_write(IT, None, TOMBSTONE, deadline)
    assert version is not None
    same = has_version(version)
    assert same is not None
    late = all_of([same, can_move(clock.now(), deadline + DAY)])
    clock.set_now(deadline)
    assert await store._table.check_and_mutate(KEY, late, held=moved_deadline(deadline + DAY))
    assert await store.read(IT) == Row(version, TOMBSTONE, deadline + DAY)


# values of any bytes


@pytest.mark.parametrize("sample", [bytes(range(start, start + 16)) for start in range(0, 256, 16)], ids=bytes.hex)
async def test_any_bytes_are_a_version(store: BigtableHighVolume, raw: RawTable, sample: bytes) -> None:
    """Patterns match a version byte by byte: line ends, NUL, what is not UTF-8, and what patterns are written with."""
    cells = [
        RawCell("row", b"v", FOREVER, sample + sample[:8]),
        RawCell("row", b"f", FOREVER, sample),
        RawCell("row", b"h", FOREVER, b"g"),
    ]
    raw.put(KEY, *cells)
    for place in range(16):
        other = bytearray(sample)
        other[place] ^= 0x20
        assert await store.compare_and_write(IT, bytes(other), INLINE, None) is None
    assert await store.compare_and_write(IT, sample[1:] + sample[:1], INLINE, None) is None
    assert await store.compare_and_write(IT, sample, INLINE, None) is not None


async def test_fences_do_not_let_a_row_grow(store: BigtableHighVolume, raw: RawTable) -> None:
    """However often a row is fenced, its latest cells stay below 4 KiB, and the last fence is the one that counts."""
    await store.put_inline(IT, INLINE, None)
    head = await store.fence(IT)
    for _ in range(150):
        head = await store.fence(IT)
    latest: dict[bytes, bytes] = {}
    for cell in raw.cells(KEY):
        latest.setdefault(cell.qualifier, cell.value)
    assert sum(map(len, latest.values())) < 4_096
    assert await store.read(IT) == Row(head.version, INLINE, None)
    assert await store.compare_and_write(IT, head.version, TOMBSTONE, None) is not None


async def test_a_fenced_absence_of_a_long_name_is_listed_by_it(store: BigtableHighVolume) -> None:
    """The row that a fence makes keeps the path that its key cannot."""
    long = ObjectId("photos", (), "k" * 4_096)
    head = await store.fence(long)
    assert [(found.object_id, found.row) for found in await store.scan("", None, 9)] == [(long, head)]
    assert await store.remove_markers(store_now(store), 9) == 1
    assert await store.scan("", None, 9) == []
