"""One simulated run: stores that survive, servers that do not, clients, trouble, then a calm where all must end well.

First safety: anything may go wrong, and nothing may be wrong in any state or answer. Then liveness: the faults stop,
and every upload gets its answer, everything that was left is cleaned up, and every object can be read.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from random import Random
from typing import Any

import structlog

from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats
from tierstore.build import Stores
from tierstore.changelog.entries import State
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.clock import UnixMicros
from tierstore.errors import Broken, ClientMistake, TierstoreError, Unavailable
from tierstore.service.batch import BatchRun
from tierstore.testing.ids import SeededIds
from tierstore.testing.planted import Plant
from tierstore.testing.simulation.calls import Begun, Session
from tierstore.testing.simulation.clients import Clients
from tierstore.testing.simulation.history import History, Verdict
from tierstore.testing.simulation.judge import Judge, Violation
from tierstore.testing.simulation.loop import Machine, Stuck, machine_at_work, run_on_virtual_time
from tierstore.testing.simulation.plan import Action, Event, Faults, Kind, Plan, Trouble
from tierstore.testing.simulation.servers import STREAMS, MachineClock, Server, ServerGone, StoreClock, dice
from tierstore.testing.traces import Kind as TraceKind
from tierstore.testing.traces import Record, Recorder, recorded
from tierstore.types.ids import ObjectId, Revision

_TRACED_MAX = 20_000
_CHANGES = frozenset(
    {
        *("high_volume.put_inline", "high_volume.delete_inline", "high_volume.compare_and_write", "high_volume.point"),
        *("high_volume.fence", "high_volume.remove_markers", "high_volume.bring_inline"),
        *("long_term.put", "long_term.complete", "long_term.delete"),
        *("changelog.forget", "changelog.forget_settled", "changelog.record_again", "changelog.claim"),
    }
)
"""Calls after which the stores may be in a state that must not be. All others add an entry or change one."""
_CALM_ATTEMPTS_MAX = 50
"""How often, without faults, an upload is completed or an object read until there must have been an answer."""


_LEFT_ALONE = 0.3
"""How many sessions, of all, nobody goes on with when the faults have stopped."""


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    counts: Counter[str]
    violation: str | None = None
    trace: list[str] = field(default_factory=list)
    """What the servers did, if it was asked for."""
    histories: str = ""
    records: Sequence[Record] = ()
    """What happened, for a machine (`tierstore.testing.traces`), if that was asked for."""


def simulate(
    plan: Plan,
    *,
    plant: Plant | None = None,
    batch_run: type[BatchRun] = BatchRun,
    traced: bool = False,
    recording: bool = False,
) -> Outcome:
    """Run ``plan``; the same plan gives the same outcome. ``batch_run`` is what runs batches: for planted bugs."""
    counts: Counter[str] = Counter()
    trace: list[str] = []
    recorder = Recorder() if recording else None
    records = () if recorder is None else recorder.records
    world: World | None = None

    async def run() -> None:
        nonlocal world
        world = World(plan, counts, trace if traced else None, plant, batch_run, recorder)
        await world.run()

    with _errors_only(counts) as unexpected:
        try:
            run_on_virtual_time(run())
        except (Violation, ExceptionGroup, TierstoreError, Stuck) as error:
            histories = "" if world is None else world.histories()
            return Outcome(counts, _first(error), trace, histories, records)
    if unexpected:
        return Outcome(counts, f"unexpected: {unexpected[0]}", trace, records=records)
    return Outcome(counts, None, trace, records=records)


def _first(error: BaseException) -> str:
    """The innermost reason."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


@contextmanager
def _errors_only(counts: Counter[str]) -> Iterator[list[str]]:
    """Keep log lines from being written; collect the exceptions logged that are no store's temporary failure."""
    unexpected: list[str] = []

    def look(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        error = sys.exc_info()[1] if line.get("exc_info") is True else line.get("exc_info")
        counts["errors logged"] += 1
        if isinstance(error, BaseException) and not _is_temporary(error):
            unexpected.append(f"{line.get('event')}: {error!r}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[look],
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        cache_logger_on_first_use=False,
    )
    try:
        yield unexpected
    finally:
        structlog.configure(**before)


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_temporary(one) for one in error.exceptions)
    return isinstance(error, Unavailable)


class World:
    """Everything in one run."""

    def __init__(
        self,
        plan: Plan,
        counts: Counter[str],
        trace: list[str] | None,
        plant: Plant | None,
        batch_run: type[BatchRun],
        recorder: Recorder | None,
    ) -> None:
        self.plan = plan
        self.batch_run = batch_run
        self.recorder = recorder
        self.counts = counts
        self.faults = plan.faults
        self.history = History()
        self.uploads: dict[int, Begun] = {}
        self.sessions: dict[int, Session] = {}
        self.sizes: dict[str, int] = {}
        self._trace = trace
        self._random = Random(plan.seed ^ 0x5EED)
        self._clock = StoreClock()
        rows, blobs, self._entries = MemoryRows(), MemoryBlobs(), MemoryEntries()
        self.judge = Judge(rows, blobs, self._entries)
        repeats = Repeats.SUCCEED if plan.repeats_succeed else Repeats.NOT_FOUND
        right = Stores(
            MemoryHighVolume(rows, clock=self._clock, ids=SeededIds(plan.seed)),
            MemoryLongTerm(blobs, limits=plan.limits, clock=self._clock, repeats=repeats),
            MemoryChangeLog(self._entries, clock=self._clock),
        )
        stores = right if plant is None else plant(right)
        self.stores = stores if recorder is None else recorded(stores, recorder, self._clock)
        self._clients = Clients(self)
        self._machines = [Machine() for _ in range(plan.servers)]
        self._clocks = [MachineClock(1 + self._random.uniform(-plan.drift, plan.drift)) for _ in range(plan.servers)]
        self._servers: list[Server] = [self._start(number) for number in range(plan.servers)]
        self._late: set[asyncio.Task[None]] = set()
        self._calm_writes = 0
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _start(self, number: int) -> Server:
        machine, clock = self._machines[number], self._clocks[number]
        server = Server(self, number, machine, clock, self._random.getrandbits(62))
        dice.set(Random(self._random.getrandbits(62)))
        server.sweep_every(self.plan.sweep_period)
        return server

    # What servers and clients see of it

    def server(self, random: Random) -> Server:
        return random.choice(self._servers)

    def earliest_clock(self) -> UnixMicros:
        return min(clock.now() for clock in self._clocks)

    def latest_clock(self) -> UnixMicros:
        return max(clock.now() for clock in self._clocks)

    def operation(
        self, kind: TraceKind, server: int, object_id: ObjectId | None = None, upload: Revision | None = None
    ) -> AbstractContextManager[object]:
        if self.recorder is None:
            return nullcontext()
        return self.recorder.operation(kind, f"server {server}", object_id, upload)

    def look(self, server: int, call: str, outcome: str) -> None:
        self.counts["effects"] += 1
        if self._trace is not None and len(self._trace) < _TRACED_MAX:
            task = asyncio.current_task()
            name = task.get_name() if task is not None else ""
            self._trace.append(f"{self._clock.monotonic():10.3f} server {server} {name}: {call} {outcome}")
        if call not in _CHANGES:
            return
        try:
            self.judge.look()
        except Violation as violation:
            self._fail(violation)

    def arrive_later(self, server: int, call: str, effect: Callable[[], Awaitable[object]], seconds: float) -> None:
        async def arrive() -> None:
            await asyncio.sleep(seconds)
            try:
                await effect()
            except TierstoreError as error:
                if isinstance(error, Broken):
                    self._fail(Violation(f"{call}, which came late, failed: {error!r}"))
            except Exception:
                if call not in STREAMS:  # which end as their bodies do, that are read by who has gone on
                    raise
            self.look(server, call, "(late)")

        on_its_way = copy_context()
        on_its_way.run(machine_at_work.set, None)  # it has left the machine, and arrives whatever becomes of that
        task = asyncio.get_running_loop().create_task(arrive(), name="late", context=on_its_way)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def report(self, name: str, error: BaseException) -> None:
        self.counts["background failures"] += 1
        if not _is_temporary(error) and not isinstance(error, ClientMistake):  # whose client has gone
            self._fail(Violation(f"{name} failed: {error!r}"))

    def _fail(self, violation: Violation) -> None:
        if not self._failed.done():
            self._failed.set_exception(violation)

    # The run

    async def run(self) -> None:
        """Raise `Violation`, or what else went wrong, or return."""
        running = asyncio.get_running_loop().create_task(self._run())
        await asyncio.wait({running, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            running.cancel()
            await asyncio.wait({running})
            self._failed.result()
        self._failed.cancel()
        running.result()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for action in self.plan.actions:
                group.create_task(self._act(action), name=f"action {action.number}")
            for event in self.plan.events:
                group.create_task(self._befall(event), name=f"event {event.number}")
        await self._calm_down()
        await self._end_uploads()
        await self._end_sessions()
        keys = {key: None for action in self.plan.actions for key in (action.key, *action.keys)}
        for key in keys:
            await self._read_in_the_calm(key)
        for key in keys:
            await self._write_in_the_calm(key)
        if any(action.kind is Kind.BATCH for action in self.plan.actions):
            await self._batch_in_the_calm(list(keys))
        await self._clean_up()
        for key in self.history.by_key:
            await self._read_in_the_calm(key)
            self._judge_history(key)
        await self._forget_outcomes()

    async def _act(self, action: Action) -> None:
        await asyncio.sleep(action.at)
        await self._clients.act(action)

    async def _befall(self, event: Event) -> None:
        await asyncio.sleep(event.at)
        self.counts[event.trouble.value] += 1
        number, random = event.server % len(self._servers), Random(event.seed)
        dice.set(random)
        match event.trouble:
            case Trouble.CRASH:
                await self._crash([number], event.seconds)
            case Trouble.CRASH_ALL:
                await self._crash(list(range(len(self._servers))), event.seconds)
            case Trouble.PAUSE:
                machine = self._machines[number]
                machine.pause()
                try:
                    await asyncio.sleep(event.seconds)
                finally:
                    machine.resume()
            case Trouble.JUMP:
                self._clocks[number].jump(event.seconds)
            case Trouble.SETTLE:
                await self._settle_at_once(self._servers[number], random)
            case Trouble.SWEEP:
                with suppress(ServerGone):
                    await self._servers[number].request("sweep", self._sweep_amid(self._servers[number]))

    async def _crash(self, numbers: list[int], seconds: float) -> None:
        dead = [self._servers[number] for number in numbers]
        await asyncio.gather(*[server.kill() for server in dead])
        await asyncio.sleep(seconds)
        for server in dead:
            if self._servers[server.number] is server:
                self._servers[server.number] = self._start(server.number)

    async def _settle_at_once(self, server: Server, random: Random) -> None:
        """What an operator might do at the worst moment. What only time may settle, their commands leave alone."""
        for entry in list(self._entries.by_key.values()):
            if entry.state is not State.DONE and not entry.sweeps and random.random() < 0.5:
                with suppress(Unavailable, ServerGone), self.operation(TraceKind.SWEEP, server.number):
                    await server.request("settle", server.tiering.settler.settle(entry))

    async def _sweep(self, server: Server) -> None:
        with self.operation(TraceKind.SWEEP, server.number):
            await server.tiering.sweeper.run_once()

    async def _sweep_amid(self, server: Server) -> None:
        """A sweep in which stores may fail, for a while."""
        try:
            await self._sweep(server)
        except ExceptionGroup as failures:
            if not _is_temporary(failures):
                raise

    # The calm

    async def _calm_down(self) -> None:
        self.faults = Faults()
        for machine in self._machines:
            machine.resume()
        for number, server in enumerate(self._servers):
            if server.dead:
                self._servers[number] = self._start(number)
        while self._late:
            await asyncio.wait(set(self._late))
        for server in self._servers:
            await server.calm()

    async def _end_uploads(self) -> None:
        """Every upload that could be completed gets a final answer when its client goes on trying."""
        for begun in self.uploads.values():
            random = Random(begun.value)
            dice.set(random)
            for _ in range(_CALM_ATTEMPTS_MAX):
                if await self._clients.complete_once(begun, random):
                    break
                await self._sweep_after(self.plan.limits.sweep_lease_seconds + 1 + self._skew())
            else:
                raise Violation(f"upload {begun.value} gets no final answer, however often its client tries")
        for server in self._servers:
            await server.calm()

    async def _end_sessions(self) -> None:
        """Likewise for sessions; some have no client any more, and end with their retention."""
        for session in self.sessions.values():
            random = Random(session.value)
            dice.set(random)
            if random.random() < _LEFT_ALONE:
                continue
            for _ in range(_CALM_ATTEMPTS_MAX):
                if await self._clients.sessions.end_once(session, random):
                    break
                await self._sweep_after(self.plan.limits.sweep_lease_seconds + 1 + self._skew())
            else:
                raise Violation(f"session {session.value} is never complete, however often its client tries")
        for server in self._servers:
            await server.calm()

    async def _read_in_the_calm(self, key: str) -> None:
        random = Random(key)
        dice.set(random)
        for _ in range(_CALM_ATTEMPTS_MAX):
            if await self._clients.read(key, random):
                return
        raise Violation(f"{key!r} cannot be read, though nothing is wrong any more")

    async def _write_in_the_calm(self, key: str) -> None:
        """Every kind of write is acknowledged when its client goes on trying."""
        random = Random(key)
        dice.set(random)
        for kind in (Kind.PUT_SMALL, Kind.PUT_LARGE, Kind.DELETE, random.choice([Kind.PUT_SMALL, Kind.PUT_LARGE])):
            self._calm_writes += 1
            for attempt in range(_CALM_ATTEMPTS_MAX):
                if await self._clients.write_once(kind, key, f"calm {self._calm_writes}.{attempt}", random):
                    break
            else:
                raise Violation(f"{kind.value} of {key!r} is never acknowledged, though nothing is wrong any more")
            await self._read_in_the_calm(key)

    async def _batch_in_the_calm(self, keys: Sequence[str]) -> None:
        """Every insert of a batch is acknowledged when its client goes on trying."""
        random = Random(len(keys))
        dice.set(random)
        if not await self._clients.batches.insert_all("calm batch", keys, random, batches_max=_CALM_ATTEMPTS_MAX):
            raise Violation(f"a batch on {keys} is never acknowledged, though nothing is wrong any more")
        for key in keys:
            await self._read_in_the_calm(key)

    async def _sweep_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds * (1 + 2 * self.plan.drift))
        server = self._random.choice(self._servers)
        dice.set(Random(self._random.getrandbits(62)))
        await self._sweep(server)
        await server.calm()

    async def _clean_up(self) -> None:
        """Sweep until all that was left must have been cleaned up."""
        limits = self.plan.limits
        skew = self._skew()
        await self._sweep_after(max(limits.entry_grace_seconds, limits.upload_retention_seconds) + skew)
        for _ in range(3):
            await self._sweep_after(limits.sweep_lease_seconds + 1)
        await self._sweep_after(limits.new_entry_kept_seconds_min + skew)
        for _ in range(3):
            await self._sweep_after(limits.sweep_lease_seconds + limits.sweep_second_visit_seconds + 1)
        self.judge.settled()

    def _skew(self) -> float:
        """By how much a time that one server has set may lie in another's future."""
        return self.plan.limits.operation_deadline_seconds if self.plan.clocks_jump else 0.0

    async def _forget_outcomes(self) -> None:
        skew = self._skew()
        await self._sweep_after(self.plan.limits.outcome_retention_seconds + skew)
        await self._sweep_after(self.plan.limits.marker_retention_seconds + skew)
        self.judge.forgotten()

    def _judge_history(self, key: str) -> None:
        verdict = self.history.judge(key)
        self.counts[f"histories {verdict.value}"] += 1
        if verdict is Verdict.WRONG:
            raise Violation(f"no order of the operations explains what was read of {key!r}")

    def histories(self) -> str:
        """What clients saw."""
        return "\n".join(
            f"{key!r}: " + ", ".join(map(str, operations)) for key, operations in self.history.by_key.items()
        )
