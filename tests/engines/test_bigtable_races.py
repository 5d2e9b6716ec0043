"""What comes between the calls of one operation on Bigtable: a table that lets a test act right before a conditional
mutation.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from google.cloud.bigtable.data import Mutation
from google.cloud.bigtable.data.row_filters import RowFilter
from structlog.testing import capture_logs

from tests.engines.bigtable_emulator import VARIABLE, BigtableEmulator
from tests.engines.bigtable_raw import RawCell, RawTable
from tests.engines.bigtable_stores import open_change_log, open_high_volume
from tierstore.backends.high_volume.bigtable import BigtableHighVolume
from tierstore.backends.high_volume.contract import Gone, Inline, Row, Tombstone, TombstoneRow
from tierstore.bigtable.table import BigtableTable
from tierstore.changelog.bigtable import BigtableChangeLog
from tierstore.clock import MICROS_PER_SECOND
from tierstore.errors import Busy, CorruptObject, Unavailable
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision

SECOND = MICROS_PER_SECOND
IT = ObjectId("photos", (), "it")
KEY = IT.storage_path.encode()
INLINE, OTHER = Inline(b"metadata", b"payload"), Inline(b"other", b"other payload")
TOMBSTONE = Tombstone(b"metadata", UUID(int=7))
ME, YOU = UUID(int=1), UUID(int=2)
FOREVER = 253_402_300_799_000_000

Act = Callable[[], Awaitable[object]]


class InterruptedTable(BigtableTable):
    """A table on which something else happens before each conditional mutation, as long as there is something."""

    def __init__(self, inner: BigtableTable, acts: list[Act | None], *, again: bool = False) -> None:
        super().__init__(inner._client, inner._table, Limits.tiny(), seconds_max=10.0)
        self._acts = acts
        self._again = again

    async def check_and_mutate(
        self,
        key: bytes,
        predicate: RowFilter,
        *,
        held: Sequence[Mutation] = (),
        not_held: Sequence[Mutation] = (),
        seconds_max: float | None = None,
    ) -> bool:
        if self._acts:
            act = self._acts.pop(0)
            if self._again:
                self._acts.append(act)
            if act is not None:
                await act()
        return await super().check_and_mutate(key, predicate, held=held, not_held=not_held, seconds_max=seconds_max)


@pytest.fixture
def clock() -> ManualClock:
    """Stands still until a test moves it."""
    return ManualClock()


@pytest.fixture
def rows(bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawTable]:
    """The back door to the table of `store`."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    raw = RawTable(bigtable_emulator.make_table("row", "payload", "index"))
    yield raw
    raw.close()


@pytest.fixture
async def store(rows: RawTable, clock: ManualClock) -> AsyncIterator[BigtableHighVolume]:
    """Who comes in between."""
    store = await open_high_volume(rows.name, clock, SeededIds(1))
    yield store
    await store.close()


@pytest.fixture
async def slow(rows: RawTable, clock: ManualClock) -> AsyncIterator[Callable[..., BigtableHighVolume]]:
    """Makes a store before whose conditional mutations something else happens."""
    inner = await open_high_volume(rows.name, clock, SeededIds(2))

    def made(*acts: Act | None, again: bool = False) -> BigtableHighVolume:
        return BigtableHighVolume(
            InterruptedTable(inner._table, list(acts), again=again), Limits.tiny(), clock, SeededIds(3)
        )

    yield made
    await inner.close()


Slow = Callable[..., BigtableHighVolume]


async def test_put_inline_begins_anew_when_the_row_has_gone(
    store: BigtableHighVolume, rows: RawTable, slow: Slow
) -> None:
    """Removed between its two mutations: it makes the row, once and whole."""
    await store.put_inline(IT, INLINE, None)

    async def remove() -> None:
        rows.remove(KEY)

    assert await slow(None, remove).put_inline(IT, OTHER, None) is None
    row = await store.read(IT)
    assert row is not None
    assert row.content == OTHER
    head = await store.head(IT)
    assert head is not None
    assert len(head.fenced) == 16


async def test_put_inline_meets_a_tombstone_that_comes_in_between(
    store: BigtableHighVolume, clock: ManualClock, slow: Slow
) -> None:
    """And writes nothing over it."""
    await store.put_inline(IT, INLINE, None)

    async def point() -> None:
        assert await store.point(IT, await store.head(IT), TOMBSTONE, None, not_after=clock.now())

    met = await slow(None, point).put_inline(IT, OTHER, None)
    head = await store.head(IT)
    assert head is not None
    assert met == TombstoneRow(head.version, TOMBSTONE, None)


@pytest.mark.parametrize("what", ["put_inline", "delete_inline"])
async def test_a_row_that_never_stands_still_is_unavailable_in_the_end(
    store: BigtableHighVolume, rows: RawTable, slow: Slow, what: str
) -> None:
    """Bounded, and nothing was written: it comes and goes right before each mutation."""

    async def come() -> None:
        await store.put_inline(IT, INLINE, None)

    async def go() -> None:
        rows.remove(KEY)

    if what == "put_inline":
        with pytest.raises(Unavailable):
            await slow(come, go, again=True).put_inline(IT, OTHER, None)
        return
    turning = slow(go, go, again=True)
    await come()
    assert await turning.delete_inline(IT) is None, "somebody else has removed it"


async def test_delete_inline_wins_against_an_overwrite(store: BigtableHighVolume, slow: Slow) -> None:
    """One that came after its look is deleted, too: it had come before."""
    await store.put_inline(IT, INLINE, None)

    async def overwrite() -> None:
        await store.put_inline(IT, OTHER, None)

    assert await slow(overwrite).delete_inline(IT) is None
    head = await store.head(IT)
    assert head is not None
    assert head.content == Gone()


async def test_delete_inline_meets_a_tombstone_that_comes_in_between(
    store: BigtableHighVolume, clock: ManualClock, slow: Slow
) -> None:
    """And leaves it."""
    await store.put_inline(IT, INLINE, None)

    async def point() -> None:
        await store.point(IT, await store.head(IT), TOMBSTONE, None, not_after=clock.now())

    met = await slow(point).delete_inline(IT)
    assert met is not None
    assert met.content == TOMBSTONE
    assert await store.read(IT) == Row(met.version, TOMBSTONE, None)


async def test_an_extension_while_fences_are_written_anew_as_one_is_kept_whole(
    store: BigtableHighVolume, rows: RawTable, clock: ManualClock, slow: Slow
) -> None:
    """An object that was extended loses no cell at its former deadline: neither its version nor its mark."""
    soon, later = clock.now() + SECOND, clock.now() + 30 * 86_400 * SECOND
    await store.put_inline(IT, INLINE, soon)
    for _ in range(63):
        await store.fence(IT)

    async def extend() -> None:
        head = await store.head(IT)
        assert head is not None
        assert await store.extend(IT, head.version, later)

    head = await slow(extend).fence(IT)
    assert await store.read(IT) == Row(head.version, INLINE, later)
    latest: dict[bytes, int] = {}
    for each in rows.cells(KEY):
        latest.setdefault(each.qualifier, each.timestamp)
    assert set(latest.values()) == {later}


@pytest.mark.parametrize("content", [INLINE, TOMBSTONE])
async def test_extend_and_others_in_between(
    store: BigtableHighVolume, clock: ManualClock, slow: Slow, content: Inline | Tombstone
) -> None:
    """A longer extension stands; a fence kills it; a shorter one is followed."""
    soon = clock.now() + SECOND
    version = await store.compare_and_write(IT, None, content, soon)
    assert version is not None

    async def extend(to: int) -> None:
        assert await store.extend(IT, version or b"", to)

    assert await slow(lambda: extend(soon + 1)).extend(IT, version, soon + 5)
    assert not await slow(lambda: extend(soon + 9)).extend(IT, version, soon + 7)
    assert await store.read(IT) == Row(version, content, soon + 9)
    assert not await slow(lambda: store.fence(IT)).extend(IT, version, soon + 11)
    row = await store.read(IT)
    assert row is not None
    assert row.expires == soon + 9


async def test_sealing_looks_again_when_an_extension_was_in_time(
    store: BigtableHighVolume, clock: ManualClock, slow: Slow
) -> None:
    """One that comes to pass right before the seal is seen, and not sealed: the deadline lies ahead again."""
    deadline = clock.now() + SECOND
    version = await store.compare_and_write(IT, None, TOMBSTONE, deadline)
    assert version is not None

    async def come_late() -> None:
        clock.set_now(deadline - 1)
        assert await store.extend(IT, version or b"", deadline + SECOND)
        clock.set_now(deadline)

    clock.set_now(deadline)
    assert await slow(come_late).extend(IT, version, deadline + 2 * SECOND)
    assert await store.read(IT) == Row(version, TOMBSTONE, deadline + 2 * SECOND)


async def test_bring_inline_follows_an_extension_in_between(
    store: BigtableHighVolume, clock: ManualClock, slow: Slow
) -> None:
    """The deadline that the tombstone has when it is replaced is the row's then."""
    soon = clock.now() + SECOND
    version = await store.compare_and_write(IT, None, TOMBSTONE, soon)
    assert version is not None

    async def extend() -> None:
        assert await store.extend(IT, version or b"", soon + 5)

    assert await slow(extend).bring_inline(IT, version, b"brought", not_after=clock.now())
    row = await store.read(IT)
    assert row is not None
    assert (row.content, row.expires) == (Inline(TOMBSTONE.metadata, b"brought"), soon + 5)


async def test_the_walk_removes_no_marker_that_has_come_to_life(
    store: BigtableHighVolume, clock: ManualClock, slow: Slow
) -> None:
    """Written over between its look and its removal: the row stays."""
    await store.fence(IT)

    async def revive() -> None:
        await store.put_inline(IT, INLINE, None)

    assert await slow(revive).remove_markers(clock.now(), 9) == 0
    row = await store.read(IT)
    assert row is not None
    assert row.content == INLINE


# names and damage


async def test_many_long_names_with_one_beginning_are_listed_in_order(store: BigtableHighVolume) -> None:
    """Whatever the size of a page: their row keys are in another order than their paths."""
    long = [ObjectId("photos", (), "k" * 4_050 + f"{number:02}") for number in range(25)]
    before, behind = ObjectId("photos", (), "k"), ObjectId("photos", (), "l")
    for each in (*long[::-1], behind, before):
        await store.fence(each)
    expected = [before, *long, behind]
    for limit in (1, 3, 26, 40):
        listed: list[ObjectId] = []
        while page := await store.scan("photos/", listed[-1].storage_path if listed else None, limit):
            listed += [found.object_id for found in page]
            assert len(page) <= limit
        assert listed == expected
    prefix = long[10].storage_path[:-1]
    assert [found.object_id for found in await store.scan(prefix, None, 99)] == long[10:20]


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        (b"no object", []),
        (b"photos/objects/\xff", []),
        (b"photos/objects/b", [RawCell("row", b"h", FOREVER, b"x")]),
        (b"photos/objects/b", [RawCell("row", b"h", FOREVER, b"t123")]),
        (b"photos/objects/b", [RawCell("row", b"d", FOREVER, b"123")]),
        (b"photos/objects/b", [RawCell("row", b"v", FOREVER, b"123")]),
    ],
)
async def test_unreadable_rows_are_passed_over(
    store: BigtableHighVolume, rows: RawTable, clock: ManualClock, key: bytes, damage: list[RawCell]
) -> None:
    """A row that cannot be read is logged, and keeps no other one from being listed, settled or walked over."""
    named = [ObjectId("photos", (), name) for name in "abc"]
    for each in named:
        assert await store.compare_and_write(each, None, TOMBSTONE, clock.now()) is not None
    [hint] = [name for name in rows.rows() if name.startswith(b"\x00d") and name.endswith(b"/b")]
    cells = rows.cells(b"photos/objects/b")
    rows.remove(hint)
    rows.remove(b"photos/objects/b")
    rows.put(key, *[cell for cell in cells if cell.qualifier not in {each.qualifier for each in damage}], *damage)
    rows.put(hint.removesuffix(b"photos/objects/b") + key, RawCell("index", b"w", 0, b""))
    left = [named[0], named[2]]
    for _ in range(2):
        with capture_logs() as logs:
            assert [found.object_id for found in await store.scan("", None, 9)] == left
        assert [line["log_level"] for line in logs] == ["error"]
        assert [found.object_id for found in await store.expired(clock.now(), 9)] == left
        assert await store.remove_markers(clock.now(), 9) == 0
    if damage:
        for call in (store.read(named[1]), store.head(named[1])):
            with pytest.raises(CorruptObject):
                await call


# the change log


@pytest.fixture
def entries(bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawTable]:
    """The back door to the table of `log`."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    raw = RawTable(bigtable_emulator.make_table("entry", "index"))
    yield raw
    raw.close()


@pytest.fixture
async def log(entries: RawTable, clock: ManualClock) -> AsyncIterator[BigtableChangeLog]:
    """A change log."""
    log = await open_change_log(entries.name, clock, SeededIds(1))
    yield log
    await log.close()


def revision(number: int) -> Revision:
    """A revision of the object."""
    return Revision(IT, UUID(int=number))


async def test_a_change_of_a_row_that_never_stands_still_is_unavailable_in_the_end(
    log: BigtableChangeLog, clock: ManualClock
) -> None:
    """Bounded, and nothing of it was done."""
    await log.begin_upload(revision(1), b"wanted", 0)

    async def change() -> None:
        assert await log.record_again(YOU, new=None, old=revision(2), not_before=5)

    slow = BigtableChangeLog(InterruptedTable(log._table, [change], again=True), Limits.tiny(), clock, SeededIds(2))
    with pytest.raises(Unavailable):
        await slow.mark_done(revision(1), 7)
    [held] = await log.find(revision(1))
    assert held.upload == b"wanted"


@pytest.mark.parametrize(("olds", "turn"), [(0, 0), (3, 0), (3, 1), (6, 0), (6, 1)])
async def test_the_last_entry_takes_its_row_with_it_unless_another_comes(
    log: BigtableChangeLog, entries: RawTable, clock: ManualClock, olds: int, turn: int
) -> None:
    """An entry that is recorded right before an empty row is removed stays, however many there were."""
    await log.record(ME, new=revision(1), old=None, not_before=5)
    for number in range(olds):
        await log.record(ME, new=None, old=revision(100 + number), not_before=5)

    async def record() -> None:
        await log.record(YOU, new=revision(2), old=None, not_before=5)

    acts: list[Act | None] = [None] * turn
    slow = BigtableChangeLog(InterruptedTable(log._table, [*acts, record]), Limits.tiny(), clock, SeededIds(2))
    await slow.forget(ME)
    assert [entry.owner for entry in await log.list(None, 99)] == [YOU]
    await log.forget(YOU)
    assert entries.rows() == {}


class CountingTable(BigtableTable):
    """A table that counts conditional mutations."""

    def __init__(self, inner: BigtableTable) -> None:
        super().__init__(inner._client, inner._table, Limits(), seconds_max=10.0)
        self.mutations = 0

    async def check_and_mutate(
        self,
        key: bytes,
        predicate: RowFilter,
        *,
        held: Sequence[Mutation] = (),
        not_held: Sequence[Mutation] = (),
        seconds_max: float | None = None,
    ) -> bool:
        self.mutations += 1
        return await super().check_and_mutate(key, predicate, held=held, not_held=not_held, seconds_max=seconds_max)


async def test_many_at_once_on_one_object_do_not_outdo_each_other(
    log: BigtableChangeLog, entries: RawTable, clock: ManualClock
) -> None:
    """Operations of one process take turns: what they cost grows as they do, and not as their square."""
    table = CountingTable(log._table)
    busy = BigtableChangeLog(table, Limits(), clock, SeededIds(4))

    async def operation(number: int) -> None:
        owner, new = UUID(int=1_000 + number), revision(1_000 + number)
        await busy.record(owner, new=new, old=revision(2_000 + number), not_before=0)
        assert await busy.record_again(owner, new=new, old=revision(3_000 + number), not_before=0)
        await busy.forget(owner)

    async with asyncio.TaskGroup() as tasks:
        for number in range(30):
            tasks.create_task(operation(number))
    assert table.mutations <= 30 * 4
    assert entries.rows() == {}


async def test_a_turn_that_does_not_come_is_busy(log: BigtableChangeLog, clock: ManualClock) -> None:
    """Behind one that stands still nobody waits for ever, and others' objects are not held up."""
    held, reached, ends = revision(1), asyncio.Event(), asyncio.Event()

    async def stand_still() -> None:
        reached.set()
        await ends.wait()

    limits = replace(Limits.tiny(), bigtable_turn_seconds_max=0.05)
    slow = BigtableChangeLog(InterruptedTable(log._table, [stand_still]), limits, clock, SeededIds(4))
    first = asyncio.ensure_future(slow.record(ME, new=held, old=None, not_before=0))
    await reached.wait()
    with pytest.raises(Busy):
        await slow.record(YOU, new=revision(2), old=None, not_before=0)
    await slow.record(YOU, new=Revision(ObjectId("photos", (), "other"), UUID(int=3)), old=None, not_before=0)
    ends.set()
    await first
    await slow.record(YOU, new=revision(2), old=None, not_before=0)
    assert len(await log.list(None, 9)) == 3


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        (b"no object", bytes(32), b"noo" + b"\x00" * 33),
        (b"photos/objects/\xff", bytes(32), b"noo" + b"\x00" * 33),
        (KEY, b"short", b"no" + b"\x00" * 34),
        (KEY, bytes(32), b"no"),
        (KEY, bytes(32), b"xx" + b"\x00" * 34),
    ],
)
async def test_unreadable_entries_are_passed_over(
    log: BigtableChangeLog, entries: RawTable, key: bytes, name: bytes, value: bytes
) -> None:
    """An entry that cannot be read is logged, and keeps no other from being listed."""
    await log.record(ME, new=revision(1), old=None, not_before=0)
    entries.put(key, RawCell("entry", name, 0, value))
    hint = b"\x00t" + (1 << 63).to_bytes(8) + bytes(16) + key
    entries.put(hint, RawCell("index", b"w", 0, b""))
    with capture_logs() as logs:
        assert [entry.owner for entry in await log.list(None, 9)] == [ME]
        assert [entry.owner for entry in await log.due(0, 9)] == [ME]
        assert (await log.backlog()).entries == 1
    names_an_owner = len(name) == 32  # without one, no index row can lead there
    assert [line["log_level"] for line in logs] == ["error"] * (3 if names_an_owner else 2)


async def test_an_unreadable_entry_keeps_nobody_from_forgetting(log: BigtableChangeLog, entries: RawTable) -> None:
    """And stays, with its row."""
    await log.record(ME, new=revision(1), old=None, not_before=0)
    entries.put(KEY, RawCell("entry", bytes(32), 0, b"xx"))
    [seen] = await log.list(None, 9)
    taken = await log.condemn(seen, 5)
    assert taken is not None
    assert await log.forget_settled(taken)
    assert [cell.value for cell in entries.cells(KEY) if cell.family == "entry"] == [b"xx"]
    await log.record(ME, new=revision(1), old=None, not_before=0)
    await log.forget(ME)
    assert [cell.value for cell in entries.cells(KEY) if cell.family == "entry"] == [b"xx"]


async def test_a_damaged_identity_is_no_identity(log: BigtableChangeLog, entries: RawTable) -> None:
    """Nothing is taken for it, and nothing is put in its place."""
    entries.put(b"\x00identity", RawCell("index", b"uuid", 0, b"short"))
    for call in (log.identity(), log.adopt(UUID(int=1))):
        with pytest.raises(CorruptObject):
            await call
