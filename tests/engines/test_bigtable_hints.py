"""Index rows on Bigtable: what is due is found whatever is missing, stale or on its way."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from google.cloud.bigtable.data.row_filters import RowFilter

from tests.engines.bigtable_emulator import VARIABLE, BigtableEmulator
from tests.engines.bigtable_raw import RawCell, RawTable
from tests.engines.bigtable_stores import open_change_log, open_high_volume
from tierstore.backends.high_volume.bigtable import BigtableHighVolume
from tierstore.backends.high_volume.contract import Gone, Inline, Tombstone
from tierstore.bigtable.table import BigtableTable, Cells
from tierstore.changelog.bigtable import BigtableChangeLog
from tierstore.changelog.bigtable_entries import ALL
from tierstore.changelog.entries import Entry
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import Unavailable
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision

SECOND = MICROS_PER_SECOND
KEPT = round(Limits.tiny().new_entry_kept_seconds_min * SECOND)
INLINE = Inline(b"metadata", b"payload")
TOMBSTONE = Tombstone(b"metadata", UUID(int=7))
ME = UUID(int=1)


def object_named(key: str) -> ObjectId:
    """The object that a test calls ``key``."""
    return ObjectId("photos", (), key)


def revision(number: int, key: str = "it") -> Revision:
    """One of its revisions."""
    return Revision(object_named(key), UUID(int=number))


def instant(value: int) -> bytes:
    """As the stores write instants."""
    return (value + (1 << 63)).to_bytes(8)


@pytest.fixture
def clock() -> ManualClock:
    """Stands still until a test moves it."""
    return ManualClock()


@pytest.fixture(autouse=True)
def _emulator(bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)


@pytest.fixture
def rows(bigtable_emulator: BigtableEmulator) -> Iterator[RawTable]:
    """The back door to the table of `store`."""
    raw = RawTable(bigtable_emulator.make_table("row", "payload", "index"))
    yield raw
    raw.close()


@pytest.fixture
async def store(rows: RawTable, clock: ManualClock) -> AsyncIterator[BigtableHighVolume]:
    """A high-volume store."""
    store = await open_high_volume(rows.name, clock, SeededIds(1))
    yield store
    await store.close()


@pytest.fixture
def entries(bigtable_emulator: BigtableEmulator) -> Iterator[RawTable]:
    """The back door to the table of `log`."""
    raw = RawTable(bigtable_emulator.make_table("entry", "index"))
    yield raw
    raw.close()


@pytest.fixture
async def log(entries: RawTable, clock: ManualClock) -> AsyncIterator[BigtableChangeLog]:
    """A change log."""
    log = await open_change_log(entries.name, clock, SeededIds(1))
    yield log
    await log.close()


def index_rows(raw: RawTable) -> list[bytes]:
    """The keys of all index rows but the identity's."""
    return [key for key in raw.rows() if key[:1] == b"\x00"]


# deadlines of tombstones


async def expired(store: BigtableHighVolume, by: UnixMicros, limit: int = 100) -> list[str]:
    """The keys that are listed as expired."""
    return [found.object_id.key for found in await store.expired(by, limit)]


async def test_a_missing_hint_is_mended_by_the_walk(
    store: BigtableHighVolume, rows: RawTable, clock: ManualClock
) -> None:
    """A tombstone that no hint points to is found after `remove_markers` has come by, and not again and again."""
    assert await store.compare_and_write(object_named("it"), None, TOMBSTONE, clock.now()) is not None
    [hint] = index_rows(rows)
    rows.remove(hint)
    assert await expired(store, clock.now()) == []
    for _ in range(2):
        assert await store.remove_markers(0, 9) == 0
        assert await expired(store, clock.now()) == ["it"]
        assert index_rows(rows) == [hint]


async def test_the_hint_of_a_write_on_its_way_stays(
    store: BigtableHighVolume, rows: RawTable, clock: ManualClock
) -> None:
    """It is there before its row, and nothing removes it while the write may still come; later it goes."""
    it, version = object_named("it"), b"w" * 16
    name = b"\x00d" + instant(clock.now()) + version + it.storage_path.encode()
    rows.put(name, RawCell("index", b"w", 0, instant(clock.now())))
    clock.advance(Limits.tiny().operation_deadline_seconds)
    assert await expired(store, clock.now()) == []
    assert index_rows(rows) == [name]
    clock.advance(Limits.tiny().new_entry_kept_seconds_min)
    assert await expired(store, clock.now()) == []
    assert index_rows(rows) == []


async def test_hints_go_with_what_they_were_for(store: BigtableHighVolume, rows: RawTable, clock: ManualClock) -> None:
    """Settling what was listed leaves no index row at the next look, however short the time was."""
    for number in range(7):
        await store.compare_and_write(object_named(f"{number}"), None, TOMBSTONE, clock.now() + number)
    clock.advance(1)
    for found in await store.expired(clock.now(), 100):
        assert await store.compare_and_write(
            found.object_id, found.row.version, Gone(), None, if_expired_by=clock.now()
        )
    assert len(index_rows(rows)) == 7
    assert await expired(store, clock.now()) == []
    assert index_rows(rows) == []


async def test_a_hint_follows_an_extension(store: BigtableHighVolume, rows: RawTable, clock: ManualClock) -> None:
    """What was extended is listed at its new deadline and not before, and has one hint."""
    soon, later = clock.now() + SECOND, clock.now() + 5 * SECOND
    version = await store.compare_and_write(object_named("it"), None, TOMBSTONE, soon)
    assert version is not None
    assert await store.extend(object_named("it"), version, later)
    assert await expired(store, soon) == []
    assert len(index_rows(rows)) == 1
    assert await expired(store, later - 1) == []
    assert await expired(store, later) == ["it"]


async def test_a_fenced_tombstone_is_still_listed(store: BigtableHighVolume, clock: ManualClock) -> None:
    """A fence gives it a version that no hint has, and takes it from no listing, not even much later."""
    it = object_named("it")
    version = await store.compare_and_write(it, None, TOMBSTONE, clock.now())
    assert version is not None
    await store.fence(it)
    for _ in range(2):
        assert await expired(store, clock.now()) == ["it"]
        clock.advance(Limits.tiny().new_entry_kept_seconds_min)


async def test_pages_of_stale_hints_hide_nothing(rows: RawTable, clock: ManualClock) -> None:
    """However many hints are for nothing, what is due behind them is listed, earliest first, to the limit."""
    small = await open_high_volume(rows.name, clock, SeededIds(2), limits=with_pages_of(3))
    for number in range(20):
        it = object_named(f"{number:02}")
        version = await small.compare_and_write(it, None, TOMBSTONE, clock.now() + number)
        if number % 4:
            assert await small.compare_and_write(it, version, INLINE, None) is not None
    clock.advance(1)
    assert await expired(small, clock.now(), 3) == ["00", "04", "08"]
    assert await expired(small, clock.now()) == ["00", "04", "08", "12", "16"]
    await small.close()


def with_pages_of(rows: int) -> Limits:
    """Limits with pages of so many rows."""
    return replace(Limits.tiny(), bigtable_page_rows=rows, bigtable_walk_rows=rows)


async def test_the_walk_goes_on_where_it_was(rows: RawTable, clock: ManualClock) -> None:
    """A call looks at a few rows; all calls together remove every marker, and none twice."""
    small = await open_high_volume(rows.name, clock, SeededIds(2), limits=with_pages_of(3))
    for number in range(10):
        await small.fence(object_named(f"gone {number}"))
        await small.put_inline(object_named(f"here {number}"), INLINE, None)
    removed = [await small.remove_markers(clock.now(), 2) for _ in range(20)]
    assert sum(removed) == 10
    assert max(removed) <= 2
    assert {found.object_id.key for found in await small.scan("", None, 99)} == {f"here {n}" for n in range(10)}
    await small.close()


# entries of the change log


async def test_nothing_is_left_of_what_is_forgotten(
    log: BigtableChangeLog, entries: RawTable, clock: ManualClock
) -> None:
    """Once an operation has forgotten its entries, the table is as empty as before, index rows included."""
    await log.record(ME, new=revision(1), old=revision(2), not_before=clock.now() + 5)
    assert await log.record_again(ME, new=revision(1), old=revision(3), not_before=clock.now() + 3)
    await log.expedite(ME, clock.now())
    await log.forget(ME)
    assert entries.rows() == {}


async def test_nothing_is_left_of_what_a_sweeper_has_settled(
    log: BigtableChangeLog, entries: RawTable, clock: ManualClock
) -> None:
    """After its visits, and the looks that follow, the table is empty, though the owner never came back."""
    await log.record(ME, new=revision(1), old=None, not_before=clock.now())
    [seen] = await log.due(clock.now(), 9)
    taken = await log.condemn(seen, clock.now() + 30)
    assert taken is not None
    clock.advance(60)
    assert await log.due(clock.now(), 9) == [taken]
    assert await log.resume_later(taken, clock.now() + 60 * SECOND)
    assert await log.due(clock.now(), 9) == []
    clock.advance(60)
    [last] = await log.due(clock.now(), 9)
    again = await log.condemn(last, clock.now() + SECOND)
    assert again is not None
    assert await log.forget_settled(again)
    assert await log.due(clock.now(), 9) == []
    assert entries.rows() == {}


async def test_the_hint_of_an_entry_on_its_way_stays(
    log: BigtableChangeLog, entries: RawTable, clock: ManualClock
) -> None:
    """Nobody who looks in between takes it away: the entry is found as soon as it is there."""
    key = object_named("it").storage_path.encode()
    name = b"\x00t" + instant(clock.now()) + ME.bytes + key
    entries.put(name, RawCell("index", b"w", 0, instant(clock.now())))
    entries.put(b"\x00o" + ME.bytes, RawCell("index", name, 0, b""))
    for _ in range(2):
        assert await log.due(clock.now(), 9) == []
        assert name in entries.rows()
        clock.advance(Limits.tiny().operation_deadline_seconds / 2)
    clock.advance(Limits.tiny().new_entry_kept_seconds_min)
    assert await log.due(clock.now(), 9) == []
    assert entries.rows() == {}


async def test_entries_are_due_when_they_are_made_due_earlier(log: BigtableChangeLog, clock: ManualClock) -> None:
    """By `record`, `record_again`, `expedite`, `mark_done` and `claim`, which lower the time of what was due much
    later.
    """
    far = clock.now() + 1_000 * SECOND
    await log.record(ME, new=revision(1), old=revision(2), not_before=far)
    await log.begin_upload(revision(9), b"wanted", far)
    assert await log.due(far - 1, 9) == []
    await log.record(ME, new=revision(1), old=revision(2), not_before=far - 10)
    assert len(await log.due(far - 10, 9)) == 2
    assert await log.record_again(ME, new=revision(1), old=revision(3), not_before=far - 20)
    assert {entry.revision for entry in await log.due(far - 20, 9)} == {revision(1), revision(3)}
    await log.expedite(ME, far - 30)
    assert {entry.revision for entry in await log.due(far - 30, 9)} == {revision(1), revision(3)}
    await log.mark_done(revision(9), far - 40)
    assert [entry.revision for entry in await log.due(far - 40, 9)] == [revision(9)]


async def test_an_entry_without_hints_is_listed(log: BigtableChangeLog, entries: RawTable, clock: ManualClock) -> None:
    """`list`, `find`, `backlog` and `claim` do not need the index."""
    await log.record(ME, new=revision(1), old=revision(2), not_before=clock.now())
    for key in index_rows(entries):
        entries.remove(key)
    assert len(await log.list(None, 9)) == 2
    assert (await log.backlog()).entries == 2
    assert len(await log.find(revision(1))) == 1


async def test_pages_of_hints_hide_no_entry(entries: RawTable, clock: ManualClock) -> None:
    """However many were forgotten by others or moved, what is due is listed, earliest first, to the limit."""
    small = await open_change_log(entries.name, clock, SeededIds(3), limits=with_pages_of(3))
    kept: list[Entry] = []
    for number in range(20):
        owner = UUID(int=100 + number)
        await small.record(owner, new=revision(number, f"{number % 5}"), old=None, not_before=clock.now() + number)
        [entry] = await small.find(revision(number, f"{number % 5}"))
        if number % 3:
            assert await small.condemn(entry, clock.now() + 10 * SECOND) is not None
        else:
            kept.append(entry)
    assert list(await small.due(clock.now() + 30, 3)) == kept[:3]
    assert list(await small.due(clock.now() + 30, 99)) == kept
    assert len(await small.due(clock.now() + 10 * SECOND, 99)) == 20
    await small.close()


class RowsHaveAnEnd(BigtableTable):
    """A table that refuses to read much of one row, as the service does, with a bound that a test can reach."""

    def __init__(self, inner: BigtableTable, bytes_max: int) -> None:
        super().__init__(inner._client, inner._table, Limits.tiny(), seconds_max=10.0)
        self._bytes_max = bytes_max

    async def read_many(self, keys: Sequence[bytes], wanted: RowFilter) -> Mapping[bytes, Cells]:
        rows = await super().read_many(keys, wanted)
        for cells in rows.values():
            if sum(map(len, cells.values())) > self._bytes_max:
                raise Unavailable("the read returned more of a row than the service gives out")
        return rows


async def test_an_object_with_very_many_entries_keeps_nothing_from_the_sweeper(
    log: BigtableChangeLog, clock: ManualClock
) -> None:
    """Of its row only what is due is read: uploads that clients have begun, and left, stand in nobody's way."""
    for number in range(100, 140):
        await log.begin_upload(revision(number, "crowded"), bytes(1_000), clock.now() + 1_000 * SECOND)
    await log.begin_upload(revision(200, "crowded"), bytes(1_000), clock.now())
    await log.record(ME, new=revision(1, "crowded"), old=revision(2, "crowded"), not_before=clock.now())
    await log.record(UUID(int=3), new=revision(3), old=None, not_before=clock.now())
    bounded = BigtableChangeLog(RowsHaveAnEnd(log._table, 10_000), Limits.tiny(), clock, SeededIds(3))
    assert {entry.revision.uuid.int for entry in await bounded.due(clock.now(), 99)} == {1, 2, 3, 200}


async def test_pages_of_long_rows_are_short(log: BigtableChangeLog, clock: ManualClock) -> None:
    """Whoever looks through all entries holds few bytes of them at a time, and sees each once."""
    for number in range(30):
        await log.begin_upload(revision(number, f"{number % 10}"), bytes(1_000), clock.now())
    inner = log._table
    bounded = BigtableTable(
        inner._client, inner._table, replace(Limits.tiny(), bigtable_page_bytes=7_000), seconds_max=10.0
    )
    pages = [page async for page in bounded.pages(b"\x01", b"\xff", ALL, 500)]
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert len({key for page in pages for key, _ in page}) == 10
    assert [len(page) async for page in bounded.pages(b"\x01", b"\xff", ALL, 2)] == [2] * 5
    others = BigtableChangeLog(bounded, Limits.tiny(), clock, SeededIds(3))
    assert (await others.backlog()).uploads == 30
    assert len(await others.list(None, 99)) == 30


async def test_entries_of_very_many_owners_of_one_object_are_all_due(
    log: BigtableChangeLog, clock: ManualClock
) -> None:
    """More than one request can name: they are read one request after another."""
    owners = range(1_000, 1_150)
    for number in owners:
        await log.record(UUID(int=number), new=revision(number), old=None, not_before=clock.now() + number)
    found = await log.due(clock.now() + 10_000, 999)
    assert [entry.owner.int for entry in found] == list(owners)


async def test_a_change_of_an_entry_leaves_no_superseded_cell(
    log: BigtableChangeLog, entries: RawTable, clock: ManualClock
) -> None:
    """Every write takes the place of the one before, so that nothing waits for a collection, however often it
    changes.
    """
    await log.record(ME, new=revision(1), old=None, not_before=clock.now())
    for _ in range(5):
        [entry] = await log.find(revision(1))
        assert await log.condemn(entry, clock.now() + 5) is not None
    cells = entries.cells(object_named("it").storage_path.encode())
    assert sorted((cell.family, cell.timestamp) for cell in cells) == [("entry", 0), ("index", 0)]
