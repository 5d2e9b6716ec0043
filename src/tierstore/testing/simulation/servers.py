"""The servers of a simulated run: each a process with its own clocks, over stores that it reaches by a bad network.

Guarantees: what a dead server had in memory is gone, and nothing it does afterwards has an effect; what it had sent may
still arrive. A paused server does nothing, and then goes on as if nothing had been.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from random import Random
from typing import Any, Protocol, TypeVar

from tierstore.build import Stores, build_service, build_tiering
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import Busy, OutcomeUnknown, TierstoreError, Unavailable
from tierstore.tasks import TaskOwner
from tierstore.testing.faults import FaultScript, FaultyChangeLog, FaultyHighVolume, FaultyLongTerm
from tierstore.testing.ids import SeededIds
from tierstore.testing.simulation.loop import Machine, machine_at_work
from tierstore.testing.simulation.plan import Faults, Plan
from tierstore.testing.traces import Kind as TraceKind
from tierstore.testing.traces import Recorder, acting
from tierstore.types.ids import ObjectId, Revision

T = TypeVar("T")

START = 1_700_000_000 * MICROS_PER_SECOND
"""When every run begins."""

dice: ContextVar[Random] = ContextVar("dice")
"""What decides the fate of the calls of the operation under way; its tasks off the path inherit it."""

_READS = frozenset(
    {
        *("high_volume.read", "high_volume.head", "high_volume.scan", "high_volume.expired"),
        *("long_term.get", "long_term.head", "long_term.list", "long_term.list_parts"),
        *("changelog.due", "changelog.find", "changelog.list", "changelog.backlog"),
    }
)
STREAMS = frozenset({"long_term.put", "long_term.upload_part"})
"""Calls that carry a body: cut off, they store nothing."""
_CHUNKS = frozenset({"long_term.stream", "long_term.aclose"})
_LATE_IN_LONG_TERM_MAX = 40.0
"""Seconds that a long-term store may take to finish what it seemed to have failed: less than between two visits of a
sweeper (`Limits.tiny`)."""

_LATE_IN_DEADLINES = (0.1, 2.0, 8.0)
"""How late a call may reach one of the other stores, in operation deadlines: also when its time is long over."""


class ServerGone(Exception):
    """The server does not answer: it is dead, or died meanwhile."""


class StoreClock(Clock):
    """The true time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> UnixMicros:
        return START + int(self._loop.time() * MICROS_PER_SECOND)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MachineClock(Clock):
    """The clocks of one machine, which run a little fast or slow, and of which one jumps."""

    def __init__(self, rate: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._rate = rate
        self._offset = 0.0

    def now(self) -> UnixMicros:
        return START + int((self._loop.time() * self._rate + self._offset) * MICROS_PER_SECOND)

    def monotonic(self) -> float:
        return self._loop.time() * self._rate

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._rate)

    def jump(self, seconds: float) -> None:
        """Set the wall clock: from now on it is off by ``seconds``."""
        self._offset = seconds


class Surroundings(Protocol):
    """What a server is in: the stores, and whoever watches them."""

    plan: Plan
    stores: Stores
    counts: Counter[str]
    faults: Faults
    """Those of the plan, until the calm."""
    recorder: Recorder | None

    def operation(
        self, kind: TraceKind, server: int, object_id: ObjectId | None = None, upload: Revision | None = None
    ) -> AbstractContextManager[object]:
        """What is called in the body is one operation, if it is recorded."""

    def look(self, server: int, call: str, outcome: str) -> None:
        """A call has had its effect."""

    def arrive_later(self, server: int, call: str, effect: Callable[[], Awaitable[object]], seconds: float) -> None:
        """Let a call have its effect later, whatever becomes of the server."""

    def report(self, name: str, error: BaseException) -> None:
        """Work that nobody waits for has failed."""


class Network(FaultScript):
    """Between one server and the stores: latencies, and the faults of the plan."""

    def __init__(self, around: Surroundings, number: int) -> None:
        super().__init__()
        self._around = around
        self._number = number
        self.cut = False
        """Whether the server is dead."""

    async def around(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        if self.cut:
            raise asyncio.CancelledError
        random = dice.get()
        if call in _CHUNKS:
            return await self._chunk(random, effect)
        fault = self._draw(random)
        delay = self._around.plan.latency * random.expovariate(1.0)
        if fault == "slow":
            delay = random.choice(
                [100 * delay, self._around.plan.limits.operation_deadline_seconds * random.random() * 2]
            )
        ticket = random.getrandbits(64)
        if random.random() < 0.5 or fault in {"fail", "slow"}:
            await self._send(ticket, call, effect, delay)
            delay = 0.0
        result = await self._arrive(random, fault, call, effect)
        if delay:
            await asyncio.sleep(delay)
        return result

    def _draw(self, random: Random) -> str:
        faults, drawn = self._around.faults, random.random()
        for name in ("fail", "lose", "late", "slow"):
            probability: float = getattr(faults, name)
            if drawn < probability:
                self._around.counts[f"call {name}"] += 1
                return name
            drawn -= probability
        return ""

    async def _send(self, ticket: int, call: str, effect: Callable[[], Awaitable[object]], delay: float) -> None:
        """Wait until the call has reached the store. If the server dies or gives up meanwhile, it may still do so.

        Tasks of one operation that are cancelled at once are so in any order, and must not share dice then: they have
        drawn a ``ticket`` beforehand.
        """
        try:
            await asyncio.sleep(delay)
        except asyncio.CancelledError:
            random = Random(ticket)
            if call not in _READS and call not in STREAMS and random.random() < 0.5:
                self._around.counts["message of the dead or cancelled"] += 1
                self._around.arrive_later(self._number, call, effect, self._lateness(random, call))
            raise

    async def _arrive(self, random: Random, fault: str, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        if self.cut:
            raise asyncio.CancelledError
        match fault:
            case "fail":
                raise random.choice([Unavailable, Unavailable, Busy])("simulated")
            case "late" if call not in _READS:
                self._around.arrive_later(self._number, call, effect, self._lateness(random, call))
                raise _lost(random, call)
        try:
            result = await effect()
        except TierstoreError as error:
            self._around.look(self._number, call, repr(error))
            raise
        self._around.look(self._number, call, "" if call in _READS else _short(result))
        if fault == "lose":
            raise _lost(random, call)
        return result

    async def _chunk(self, random: Random, effect: Callable[[], Awaitable[T]]) -> T:
        if random.random() < self._around.faults.tear:
            self._around.counts["read torn"] += 1
            raise Unavailable("simulated")
        return await effect()

    def _lateness(self, random: Random, call: str) -> float:
        if call.startswith("long_term."):
            longest = _LATE_IN_LONG_TERM_MAX
        else:
            longest = self._around.plan.limits.operation_deadline_seconds * random.choice(_LATE_IN_DEADLINES)
        return longest * random.random() * random.random()


def _lost(random: Random, call: str) -> TierstoreError:
    if call in _READS or (call.startswith("long_term.") and random.random() < 0.5):
        return Unavailable("simulated")
    return OutcomeUnknown("simulated")


def _short(result: object) -> str:
    return "" if result is None else type(result).__name__ if not isinstance(result, bool) else str(result)


class Server:
    """One process. When it dies, another one is made with the same number and the same machine."""

    def __init__(self, around: Surroundings, number: int, machine: Machine, clock: MachineClock, seed: int) -> None:
        plan, stores = around.plan, around.stores
        self.number = number
        self.clock = clock
        self._around = around
        self._machine = machine
        self._network = Network(around, number)
        ids = SeededIds(seed)
        mine = Stores(
            FaultyHighVolume(stores.high_volume, self._network),
            FaultyLongTerm(stores.long_term, self._network),
            FaultyChangeLog(stores.changelog, self._network),
        )
        self.mutations = TaskOwner(plan.limits.mutations_max, around.report)
        self.cleanup = TaskOwner(plan.limits.background_tasks_max, around.report)
        self.watchers = TaskOwner(plan.limits.mutations_max, around.report)
        """Owns the tasks of requests that do several things at once."""
        self._requests = TaskOwner(plan.limits.mutations_max, around.report)
        self._periodic = TaskOwner(1, around.report)
        if around.recorder is not None:
            mine = acting(mine, around.recorder)
        self.tiering = build_tiering(mine, limits=plan.limits, clock=clock, ids=ids, cleanup=self.cleanup)
        self.service = build_service(self.tiering, mine, limits=plan.limits, ids=ids, mutations=self.mutations)
        self.changelog = mine.changelog

    @property
    def dead(self) -> bool:
        """Whether it has been killed."""
        return self._network.cut

    def sweep_every(self, period_seconds: float) -> None:
        """Start the sweeper, whose dice are drawn from the current ones."""
        with self._around.operation(TraceKind.SWEEP, self.number), self._at_work():
            self._periodic.spawn("sweeper", self.tiering.sweeper.run(period_seconds))

    async def request(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work`` as a request; raises `ServerGone` when the process dies. Cancelling it is a disconnect."""
        if self._network.cut:
            work.close()
            raise ServerGone
        with self._at_work():
            task = self._requests.run(name, self._arrive(work))
            task.add_done_callback(lambda _: work.close())  # if it was cancelled before its first step
        try:
            return await task
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if self.dead and this is not None and not this.cancelling():
                raise ServerGone from None
            raise

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Tasks that are begun in the body run on the server's machine."""
        token = machine_at_work.set(self._machine)
        try:
            yield
        finally:
            machine_at_work.reset(token)

    async def _arrive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``, as soon as the machine takes requests."""
        try:
            await self._machine.wait_running()
        except BaseException:
            work.close()
            raise
        return await work

    async def kill(self) -> None:
        """End it as ``kill -9`` does: at once."""
        self._network.cut = True
        self._machine.forget()
        for owner in (self._requests, self.watchers, self.mutations, self._periodic, self.cleanup):
            await owner.drain(0)

    async def calm(self) -> None:
        """Let what is under way end, and sweep no more."""
        await self._periodic.drain(0)
        for owner in (self._requests, self.watchers, self.mutations, self.cleanup):
            await owner.drain(1e6)
