"""An extension against the instant of the expiry: every order of the steps of all who take part, and the real store.

Who takes part: a client that extends; readers; a sweeper; and the clock, whose step is that the deadline comes. What
must be true in each order is what an object shows that has one deadline at a time: if the extension is acknowledged,
the deadline never came, and nobody saw it absent; otherwise it came, and whoever looks from then on sees nothing.

A store looks at its clock before it commits. So an extension that was in time may become visible only after the old
deadline: that is a step of its own here (`_Committing`), in which the store's write lock is held, as SQLite holds it.
On SQLite itself it is made to happen, by a clock that stands still in the store's writer.
"""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest

from tests.unit.tiering.world import LARGE, SMALL, BytesBody, object_id, payload_of
from tierstore.backends.high_volume.contract import Content, HighVolumeBackend
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm
from tierstore.build import Stores, Tiering, build_tiering
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import ObjectNotFound
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import FaultScript, FaultyHighVolume
from tierstore.testing.ids import SeededIds
from tierstore.tiering.tiered import TieredStore
from tierstore.types.expiry import AtInstant
from tierstore.types.ids import ObjectId, Version
from tierstore.types.metadata import Metadata, TimeToLive

T = TypeVar("T")

OBJECT = object_id("k")
_SECONDS = 100
_EXTENDED_SECONDS = 1_000
_QUIET_TURNS = 12
"""Turns of the loop after which whoever has not come to a step waits for somebody else."""
_RUNS_MAX = 10_000


class Schedule:
    """One order of steps: whose turn it is, wherever more than one could go on."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = choices
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self.taken: list[int] = []
        self.widths: list[int] = []
        self.steps: list[str] = []

    async def step(self, name: str) -> None:
        """Wait for the turn of ``name``."""
        self._waiting[name] = asyncio.get_running_loop().create_future()
        await self._waiting[name]

    async def run(self, parties: Sequence[asyncio.Task[None]], *, threads: bool) -> None:
        """Give turns until all have come to their end. With ``threads``, nobody ever waits for somebody else."""
        while not all(party.done() for party in parties):
            if threads:
                while len(self._waiting) < sum(not party.done() for party in parties):
                    await asyncio.sleep(0)
            else:
                for _ in range(_QUIET_TURNS):
                    await asyncio.sleep(0)
            options = sorted(self._waiting)
            if not options:
                assert all(party.done() for party in parties), "they wait for each other"
                break
            choice = self._choices[len(self.taken)] if len(self.taken) < len(self._choices) else 0
            self.taken.append(choice)
            self.widths.append(len(options))
            self.steps.append(options[choice])
            self._waiting.pop(options[choice]).set_result(None)
        for party in parties:
            party.result()

    def following(self) -> list[int] | None:
        """The choices of the next order, depth first; None after the last one."""
        for position in reversed(range(len(self.taken))):
            if self.taken[position] + 1 < self.widths[position]:
                return [*self.taken[:position], self.taken[position] + 1]
        return None


class _Script(FaultScript):
    """Every call to the high-volume store is a step of the one whose script it is."""

    def __init__(self, name: str, schedule: Schedule) -> None:
        super().__init__()
        self._name = name
        self._schedule = schedule

    async def around(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        await self._schedule.step(self._name)
        return await effect()


class _Committing(MemoryHighVolume):
    """Between an extension's look at the clock and its effect there is a step, and no other write."""

    def __init__(self, rows: MemoryRows, *, clock: ManualClock, ids: SeededIds) -> None:
        super().__init__(rows, clock=clock, ids=ids)
        self._lock = asyncio.Lock()
        self.schedule: Schedule | None = None

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        async with self._lock:
            stored = self._rows.get(object_id)
            if stored is None or stored.version != version or stored.expires is None:
                return False
            if not self._clock.now() < stored.expires < expires:
                return False
            if self.schedule is not None:
                await self.schedule.step("commit")
            self._rows[object_id] = replace(stored, expires=expires)
            return True

    async def compare_and_write(
        self,
        object_id: ObjectId,
        expected: Version | None,
        content: Content,
        expires: UnixMicros | None,
        *,
        if_expired_by: UnixMicros | None = None,
        not_after: UnixMicros | None = None,
    ) -> Version | None:
        async with self._lock:
            return await super().compare_and_write(
                object_id, expected, content, expires, if_expired_by=if_expired_by, not_after=not_after
            )


@dataclass
class Seen:
    """What those who took part were told."""

    extended: bool | None = None
    reads: list[bool] = field(default_factory=list)
    """Of one reader after the other: whether it found the object."""


class Race:
    """The stores, and a process for each that takes part."""

    def __init__(self, high_volume: HighVolumeBackend, clock: ManualClock, limits: Limits, key: str = "k") -> None:
        self.object_id = object_id(key)
        self.high_volume = high_volume
        self.clock = clock
        self.limits = limits
        self.long_term = MemoryLongTerm(MemoryBlobs(), clock=clock, limits=limits)
        self.changelog = MemoryChangeLog(MemoryEntries(), clock=clock)
        self.cleanups: list[TaskOwner] = []
        self._ids = 10

    def process(self, high_volume: HighVolumeBackend) -> Tiering:
        """One more process, on ``high_volume``."""
        self._ids += 1
        self.cleanups.append(TaskOwner(self.limits.background_tasks_max, lambda *_: None))
        stores = Stores(high_volume, self.long_term, self.changelog)
        return build_tiering(
            stores, limits=self.limits, clock=self.clock, ids=SeededIds(self._ids), cleanup=self.cleanups[-1]
        )

    async def in_order(self, schedule: Schedule, payload: bytes, others: Sequence[str], *, threads: bool) -> Seen:
        """Race an extension with ``others`` in the order of ``schedule``; return what was seen."""
        await self.process(self.high_volume).store.put(
            self.object_id, Metadata(expiration=TimeToLive(_SECONDS)), BytesBody(payload)
        )
        deadline = self.clock.now() + _SECONDS * MICROS_PER_SECOND
        self.clock.set_now(deadline - 1)
        seen = Seen()

        def scripted(name: str) -> Tiering:
            return self.process(FaultyHighVolume(self.high_volume, _Script(name, schedule)))

        async def extend() -> None:
            target = AtInstant(deadline + _EXTENDED_SECONDS * MICROS_PER_SECOND)
            seen.extended = False
            with suppress(ObjectNotFound):
                await scripted("extend").store.extend_expiry(self.object_id, target, lambda _: None)
                seen.extended = True

        async def read(times: int = 1) -> None:
            store = scripted("read").store
            for _ in range(times):
                seen.reads.append(False)
                with suppress(ObjectNotFound):
                    seen.reads[-1] = await payload_of(await store.get(self.object_id, None)) == payload

        async def tick() -> None:
            await schedule.step("tick")
            self.clock.set_now(deadline)

        async def sweep() -> None:
            await scripted("sweep").sweeper.run_once()

        parties = {"read": read, "read twice": lambda: read(2), "sweep": sweep}
        taking_part = [extend(), tick(), *(parties[other]() for other in others)]
        await schedule.run([asyncio.ensure_future(party) for party in taking_part], threads=threads)
        await self._check_the_end(seen, schedule, payload)
        return seen

    async def _check_the_end(self, seen: Seen, schedule: Schedule, payload: bytes) -> None:
        for cleanup in self.cleanups:
            await cleanup.drain(5)
        store = self.process(self.high_volume).store
        there = False
        with suppress(ObjectNotFound):
            there = await payload_of(await store.get(self.object_id, None)) == payload
        assert there is seen.extended, (schedule.steps, seen)
        blobs = await self.long_term.list("", None, 9)
        assert len(blobs) == 1 or not there or payload is SMALL


def _wrong(seen: Seen) -> bool:
    """Whether no object with one deadline at a time can have shown this."""
    return not all(seen.reads) if seen.extended else seen.reads == [False, True]


@dataclass
class Explored:
    """What came of all orders."""

    runs: int = 0
    extended: int = 0
    wrong: list[tuple[list[str], Seen]] = field(default_factory=list)


async def _explore(
    begin: Callable[[], Awaitable[Race]], payload: bytes, others: Sequence[str], *, threads: bool = False
) -> Explored:
    explored = Explored()
    choices: list[int] | None = []
    while choices is not None:
        assert explored.runs < _RUNS_MAX
        schedule = Schedule(choices)
        race = await begin()
        if isinstance(race.high_volume, _Committing):
            race.high_volume.schedule = schedule
        seen = await race.in_order(schedule, payload, others, threads=threads)
        explored.runs += 1
        explored.extended += bool(seen.extended)
        if _wrong(seen):
            explored.wrong.append((schedule.steps, seen))
        choices = schedule.following()
    return explored


def _in_memory(kind: type[MemoryHighVolume], limits: Limits) -> Callable[[], Awaitable[Race]]:
    async def begin() -> Race:
        clock = ManualClock()
        return Race(kind(MemoryRows(), clock=clock, ids=SeededIds(1)), clock, limits)

    return begin


IN_MEMORY = pytest.mark.parametrize("kind", [MemoryHighVolume, _Committing], ids=["at once", "commits"])


@IN_MEMORY
@pytest.mark.parametrize(
    ("payload", "others"),
    [(SMALL, ["read twice"]), (LARGE, ["read twice"]), (LARGE, ["sweep", "read"])],
    ids=["small, read twice", "large, read twice", "large, swept and read"],
)
async def test_no_order_of_steps_shows_what_one_deadline_cannot(
    kind: type[MemoryHighVolume], payload: bytes, others: Sequence[str]
) -> None:
    """Acknowledged: nobody saw it absent. Not found: from then on nobody sees it. And both happen."""
    explored = await _explore(_in_memory(kind, Limits.tiny()), payload, others)
    assert explored.wrong == []
    assert 0 < explored.extended < explored.runs


async def test_the_orders_show_what_happens_without_a_second_look() -> None:
    """If reads did not let extensions under way end, an object would vanish and come back: the orders find that."""
    limits = replace(Limits.tiny(), extension_settled_seconds=0.0)
    explored = await _explore(_in_memory(_Committing, limits), SMALL, ["read twice"])
    assert any(seen.extended and seen.reads == [False, True] for _, seen in explored.wrong)


async def test_no_order_on_sqlite(tmp_path: Path) -> None:
    """The same on the real store, whose calls are steps."""
    clock = ManualClock()
    store = await SqliteHighVolume.open(tmp_path / "hv.db", limits=Limits.tiny(), clock=clock, ids=SeededIds(1))
    numbers = itertools.count()

    async def begin() -> Race:
        return Race(store, clock, Limits.tiny(), key=f"k{next(numbers)}")

    try:
        explored = await _explore(begin, SMALL, ["read twice"], threads=True)
    finally:
        await store.close()
    assert explored.wrong == []
    assert 0 < explored.extended < explored.runs


class _StandingStill(ManualClock):
    """Stands still, for the thread that looks at it, when it is told to."""

    def __init__(self, now: UnixMicros) -> None:
        super().__init__(now)
        self.looked = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def now(self) -> UnixMicros:
        shown = super().now()
        if not self.go_on.is_set():
            self.looked.set()
            self.go_on.wait(10)
        return shown


@pytest.mark.parametrize("settled", [True, False], ids=["second look", "none"])
async def test_a_commit_of_another_process_that_takes_longer_than_the_time_that_is_left(
    tmp_path: Path, settled: bool
) -> None:
    """A reader that finds the deadline passed waits for the write that may have moved it; or would be wrong."""
    limits = Limits.tiny() if settled else replace(Limits.tiny(), extension_settled_seconds=0.0)
    clock = ManualClock()
    slow = _StandingStill(clock.now())
    async with AsyncExitStack() as closing:
        stores = []
        for number, its in enumerate((slow, clock)):
            opened = await SqliteHighVolume.open(tmp_path / "hv.db", limits=limits, clock=its, ids=SeededIds(number))
            closing.push_async_callback(opened.close)
            stores.append(opened)
        mine = Race(stores[1], clock, limits)
        store = mine.process(stores[1]).store
        await store.put(OBJECT, Metadata(expiration=TimeToLive(_SECONDS)), BytesBody(SMALL))
        deadline = clock.now() + _SECONDS * MICROS_PER_SECOND
        row = await stores[0].head(OBJECT)
        assert row is not None
        slow.set_now(deadline - 1)
        slow.go_on.clear()
        extending = asyncio.ensure_future(stores[0].extend(OBJECT, row.version, deadline + MICROS_PER_SECOND))
        closing.callback(slow.go_on.set)
        assert await asyncio.to_thread(slow.looked.wait, 10)
        clock.set_now(deadline)
        reading = asyncio.ensure_future(_found(store))
        done, _ = await asyncio.wait([reading], timeout=0.3)
        assert bool(done) is not settled, "it waits for the writer"
        slow.go_on.set()
        assert await extending
        assert await reading is settled
        assert await _found(store)


async def _found(store: TieredStore) -> bool:
    try:
        await store.head(OBJECT)
    except ObjectNotFound:
        return False
    return True
