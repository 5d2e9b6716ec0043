"""Faults between the stores and Bigtable: the right kind of error, nothing twice, and recovery by itself.

A proxy stands before the emulator. What a fault hits is on its way at that moment; so a test looks with a client of its
own at what has become of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any
from uuid import UUID

import pytest

from tests.engines.bigtable_emulator import INSTANCE, PROJECT, VARIABLE, BigtableEmulator
from tests.engines.bigtable_raw import RawTable
from tests.engines.bigtable_stores import open_change_log, open_high_volume
from tests.engines.engine import HOST, engine_or_skip
from tierstore.backends.high_volume.bigtable import BigtableHighVolume
from tierstore.backends.high_volume.contract import Inline, Tombstone
from tierstore.bigtable.connection import Family, Place, open_table
from tierstore.changelog.bigtable import BigtableChangeLog
from tierstore.clock import MICROS_PER_SECOND, SystemClock
from tierstore.errors import Busy, OutcomeUnknown, StartupError, Unavailable
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.testing.tcp_proxy import TcpProxy
from tierstore.types.ids import ObjectId, Revision

IT = ObjectId("photos", (), "it")
KEY = IT.storage_path.encode()
INLINE = Inline(b"metadata", b"payload")
TOMBSTONE = Tombstone(b"metadata", UUID(int=7))
R1 = Revision(IT, UUID(int=1))
ME = UUID(int=100)
TIMEOUT_SECONDS = 2.0


@pytest.fixture
async def proxy(bigtable_emulator: BigtableEmulator) -> AsyncIterator[TcpProxy]:
    """What the stores take for Bigtable."""
    async with TcpProxy(HOST, bigtable_emulator.port) as proxy:
        yield proxy


@pytest.fixture
def rows(bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawTable]:
    """The back door to the table of `store`, past the proxy."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    raw = RawTable(bigtable_emulator.make_table("row", "payload", "index"))
    yield raw
    raw.close()


@pytest.fixture
async def store(rows: RawTable, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BigtableHighVolume]:
    """A high-volume store behind the proxy, with an object in it."""
    monkeypatch.setenv(VARIABLE, f"{HOST}:{proxy.port}")
    store = await open_high_volume(rows.name, SystemClock(), SystemIds(), timeout_seconds=TIMEOUT_SECONDS)
    await store.put_inline(IT, INLINE, None)
    yield store
    proxy.resume()
    await store.close()


@pytest.fixture
async def log(
    bigtable_emulator: BigtableEmulator, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BigtableChangeLog]:
    """A change log behind the proxy."""
    monkeypatch.setenv(VARIABLE, f"{HOST}:{proxy.port}")
    table = bigtable_emulator.make_table("entry", "index")
    log = await open_change_log(table, SystemClock(), SystemIds(), timeout_seconds=TIMEOUT_SECONDS)
    yield log
    proxy.resume()
    await log.close()


async def recovered(store: BigtableHighVolume) -> None:
    """Wait until the store takes writes again, all by itself."""
    for _ in range(200):
        try:
            await store.put_inline(ObjectId("photos", (), "recovered"), INLINE, None)
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return
    pytest.fail("it has not recovered")


def versions_written(raw: RawTable) -> int:
    """How many versions the row has got by appends."""
    [latest, *_] = [cell for cell in raw.cells(KEY) if cell.qualifier == b"v"]
    return len(latest.value) // 24


async def answer_lost(proxy: TcpProxy, call: Coroutine[Any, Any, object], arrived: Callable[[], bool]) -> None:
    """Make ``call``, and cut its connection when it has ``arrived`` and before it is answered: the outcome is
    unknown.
    """
    proxy.hold_answers()
    calling = asyncio.ensure_future(call)
    for _ in range(200):
        await asyncio.sleep(0.01)
        if arrived():
            break
    assert not calling.done()
    proxy.cut()
    proxy.resume()
    with pytest.raises(OutcomeUnknown):
        await calling


async def test_an_append_is_not_sent_again(store: BigtableHighVolume, rows: RawTable, proxy: TcpProxy) -> None:
    """The library repeats none whose answer was lost: the row was fenced once, and whoever asks again fences it
    anew.
    """
    await answer_lost(proxy, store.fence(IT), lambda: versions_written(rows) == 2)
    await recovered(store)
    assert versions_written(rows) == 2
    await store.fence(IT)
    assert versions_written(rows) == 3


async def test_a_conditional_mutation_is_not_sent_again(
    store: BigtableHighVolume, rows: RawTable, proxy: TcpProxy
) -> None:
    """A second one would find the version gone, and call that a conflict, while the first has been done."""
    head = await store.head(IT)
    assert head is not None

    def points() -> bool:
        return any(cell.value.startswith(b"t") for cell in rows.cells(KEY) if cell.qualifier == b"h")

    await answer_lost(proxy, store.compare_and_write(IT, head.version, TOMBSTONE, None), points)
    await recovered(store)
    row = await store.read(IT)
    assert row is not None
    assert row.content == TOMBSTONE


async def test_a_cut_in_the_midst_of_many_writes_loses_no_acknowledged_one(
    store: BigtableHighVolume, rows: RawTable, proxy: TcpProxy
) -> None:
    """Each is acknowledged and there, or failed as unknown, or as one that was not sent; and all goes on by itself."""

    async def put(number: int) -> str:
        try:
            await store.put_inline(ObjectId("photos", (), f"{number}"), INLINE, None)
        except OutcomeUnknown:
            return "unknown"
        except Unavailable:
            return "not done"
        return "done"

    puts = [asyncio.ensure_future(put(number)) for number in range(60)]
    await asyncio.sleep(0.02)
    proxy.cut()
    outcomes = await asyncio.gather(*puts)
    await recovered(store)
    stored = rows.rows()
    for number, outcome in enumerate(outcomes):
        there = ObjectId("photos", (), f"{number}").storage_path.encode() in stored
        assert there or outcome != "done"
        assert not (there and outcome == "not done")


async def test_half_open_connections_have_an_end(store: BigtableHighVolume, proxy: TcpProxy) -> None:
    """Where nobody answers, reads are unavailable and writes unknown, once the call's time is over; then it
    recovers.
    """
    proxy.hold()
    started = asyncio.get_running_loop().time()
    results = await asyncio.gather(
        store.read(IT),
        store.head(IT),
        store.check(),
        store.scan("", None, 9),
        store.fence(IT),
        store.put_inline(IT, INLINE, None),
        return_exceptions=True,
    )
    assert asyncio.get_running_loop().time() - started < TIMEOUT_SECONDS + 2
    assert [type(result) for result in results] == [Unavailable] * 4 + [OutcomeUnknown] * 2
    proxy.resume()
    await recovered(store)


async def test_not_after_bounds_the_call(store: BigtableHighVolume, proxy: TcpProxy) -> None:
    """A mutation with little time left is given up at its end, and not when calls end: nobody waits for it to arrive
    late.
    """
    base = await store.head(IT)
    proxy.hold()
    started = asyncio.get_running_loop().time()
    with pytest.raises(OutcomeUnknown):
        await store.point(IT, base, TOMBSTONE, None, not_after=SystemClock().now() + MICROS_PER_SECOND // 10)
    assert asyncio.get_running_loop().time() - started < TIMEOUT_SECONDS


async def test_an_engine_that_is_down_is_unavailable(
    store: BigtableHighVolume, log: BigtableChangeLog, proxy: TcpProxy
) -> None:
    """Nothing that was never sent is called unknown; when it is back, all goes on without a restart."""
    proxy.refuse()
    first = await asyncio.gather(*every_call(store, log), return_exceptions=True)  # some may find a connection's end
    assert all(isinstance(failure, Unavailable) for failure in first)
    then = await asyncio.gather(*every_call(store, log), return_exceptions=True)
    assert [type(failure) for failure in then] == [Unavailable] * len(then)
    proxy.resume()
    await recovered(store)
    row = await store.read(IT)
    assert row is not None
    assert row.content == INLINE


def every_call(store: BigtableHighVolume, log: BigtableChangeLog) -> list[Coroutine[Any, Any, object]]:
    """Reads and writes of both."""
    return [
        store.read(IT),
        store.check(),
        store.put_inline(IT, INLINE, None),
        store.fence(IT),
        log.find(R1),
        log.check(),
        log.record(ME, new=R1, old=None, not_before=0),
    ]


async def test_entries_survive_lost_answers(log: BigtableChangeLog, proxy: TcpProxy) -> None:
    """A record whose answer was lost may be repeated; both entries are there, once."""
    proxy.lose_answers()
    with pytest.raises(Unavailable):
        await log.record(ME, new=R1, old=None, not_before=0)
    proxy.resume()
    for _ in range(200):
        try:
            await log.record(ME, new=R1, old=None, not_before=0)
            break
        except Unavailable:
            await asyncio.sleep(0.05)
    assert [entry.owner for entry in await log.find(R1)] == [ME]
    assert len(await log.due(0, 9)) == 1


async def test_more_calls_than_may_be_are_refused_at_once(rows: RawTable, store: BigtableHighVolume) -> None:
    """Beyond the bound: `Busy`, and nothing was done; what is under way is not disturbed."""
    bound = Limits.tiny().bigtable_calls_max
    ids = [ObjectId("photos", (), f"{number}") for number in range(bound + 20)]
    results = await asyncio.gather(*(store.put_inline(each, INLINE, None) for each in ids), return_exceptions=True)
    refused = [each for each, result in zip(ids, results, strict=True) if isinstance(result, Busy)]
    assert len(refused) == 20
    assert results.count(None) == bound
    stored = rows.rows()
    assert not any(each.storage_path.encode() in stored for each in refused)


async def test_a_table_that_was_removed_is_unavailable(
    bigtable_emulator: BigtableEmulator, store: BigtableHighVolume
) -> None:
    """Of everything that is asked of it; a server stays up."""
    with bigtable_emulator.admin() as admin:
        path = f"projects/{PROJECT}/instances/{INSTANCE}/tables/"
        admin.delete_table(name=path + store._table._table.table_id)  # because it is the one of this test
    for call in (store.read(IT), store.put_inline(IT, INLINE, None), store.fence(IT), store.check()):
        with pytest.raises(Unavailable) as caught:
            await call
        assert type(caught.value) is Unavailable, "it was refused, so nothing has happened"


# opening


async def test_a_missing_table_is_made_once(
    bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of processes that start at once, one makes it, and all open it."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    name = bigtable_emulator.new_table()
    stores = await asyncio.gather(*(open_high_volume(name, SystemClock(), SystemIds()) for _ in range(4)))
    assert await stores[0].put_inline(IT, INLINE, None) is None
    for store in stores:
        assert await store.read(IT) is not None
        await store.close()


async def test_a_table_that_would_lose_objects_is_refused(
    bigtable_emulator: BigtableEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that collects too soon, and one that is not ours, stop the start with a sentence that says so."""
    monkeypatch.setenv(VARIABLE, bigtable_emulator.address)
    short = bigtable_emulator.make_table("index", kept_seconds={"row": 86_400, "payload": 10 * 86_400})
    with pytest.raises(StartupError, match=r"would lose objects.*row removes cells 86400 s"):
        await open_high_volume(short, SystemClock(), SystemIds())
    log = bigtable_emulator.make_table("index", kept_seconds={"entry": 10 * 86_400})
    with pytest.raises(StartupError, match=r"would lose objects.*never by age"):
        await open_change_log(log, SystemClock(), SystemIds())
    with pytest.raises(StartupError, match="has no column family row"):
        await open_high_volume(bigtable_emulator.make_table("other"), SystemClock(), SystemIds())


async def test_an_engine_that_cannot_be_reached_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sentence that names the table."""
    async with TcpProxy(HOST, 1) as proxy:
        proxy.refuse()
        monkeypatch.setenv(VARIABLE, f"{HOST}:{proxy.port}")
        place = Place(project=PROJECT, instance=INSTANCE, table="objects", app_profile="default")
        with pytest.raises(StartupError, match="table objects of the Bigtable instance"):
            await open_table(place, [Family("row")], timeout_seconds=0.5, limits=Limits.tiny())


async def test_no_credentials_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an emulator the default credentials are looked for; a file that is none is named, without what is in
    it.
    """
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/credentials.json")
    with pytest.raises(StartupError, match="no usable Google credentials"):
        await open_high_volume("objects", SystemClock(), SystemIds())


async def test_closing_under_load_finishes_what_was_accepted(
    rows: RawTable, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations of several calls, too: each is done when `close` has returned."""
    monkeypatch.setenv(VARIABLE, f"{HOST}:{proxy.port}")
    store = await open_high_volume(rows.name, SystemClock(), SystemIds())
    ids = [ObjectId("photos", (), f"{number}") for number in range(20)]
    for each in ids:
        await store.put_inline(each, INLINE, None)
    proxy.delay_seconds = 0.01
    deletes = [asyncio.ensure_future(store.delete_inline(each)) for each in ids]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*deletes) == [None] * 20
    assert all(
        any(cell.qualifier == b"h" and cell.value == b"g" for cell in rows.cells(each.storage_path.encode()))
        for each in ids
    )


async def test_an_engine_that_was_restarted_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the client that was there before, with what it holds then: the emulator forgets, so the table is made anew."""
    with engine_or_skip(BigtableEmulator) as emulator:
        monkeypatch.setenv(VARIABLE, emulator.address)
        name = emulator.new_table()
        store = await open_high_volume(name, SystemClock(), SystemIds(), timeout_seconds=TIMEOUT_SECONDS)
        await store.put_inline(IT, INLINE, None)
        await asyncio.to_thread(emulator.stop)
        with pytest.raises(Unavailable):
            await store.read(IT)
        with pytest.raises(Unavailable):
            await store.put_inline(IT, INLINE, None)
        await asyncio.to_thread(emulator.start)
        again = await open_high_volume(name, SystemClock(), SystemIds())
        await recovered(store)
        assert await again.read(ObjectId("photos", (), "recovered")) is not None
        await again.close()
        await store.close()
