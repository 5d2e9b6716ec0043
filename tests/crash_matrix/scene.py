"""The scene of a run: the production code in a few processes over watched stores in memory, on virtual time.

The first process is the one that things go wrong in. The other one is as healthy as a process can be: it sweeps, writes
and reads when a run wants somebody else to, and takes over when the first has died. What a run has done to the stores
can be undone (`Scene.restore`), so that many runs share their beginning.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TypeVar

from tests.crash_matrix.ledger import Asked, Ledger
from tests.crash_matrix.watch import Saved, Watch
from tests.unit.tiering.world import BytesBody, object_id, payload_of
from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.high_volume.memory import MemoryHighVolume
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.backends.long_term.memory import MemoryLongTerm, Repeats
from tierstore.build import Stores, build_tiering
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Entry, State
from tierstore.changelog.memory import MemoryChangeLog
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import (
    ClientDisconnected,
    NoSuchUpload,
    ObjectNotFound,
    OffsetMismatch,
    TierstoreError,
    Unavailable,
)
from tierstore.limits import KIB, Limits
from tierstore.tasks import TaskOwner
from tierstore.testing.faults import Fault, FaultScript, FaultyChangeLog, FaultyHighVolume, FaultyLongTerm
from tierstore.testing.ids import SeededIds
from tierstore.types.expiry import AfterCreation
from tierstore.types.metadata import MANUAL, Expiration, Metadata
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.resumable import Completed, SessionId
from tierstore.types.streams import Body

T = TypeVar("T")

OBJECT = object_id("k")
LIMITS = replace(Limits.tiny(), outcome_retention_seconds=1_000_000.0, stream_chunk_bytes=KIB)
"""Outcomes are remembered for longer than anything else takes, so that no answer is excused by their end."""
BODY = "body"
"""The step in which a process takes the next piece of a body."""
READS = frozenset(
    {
        *("high_volume.read", "high_volume.head", "high_volume.expired"),
        *("long_term.get", "long_term.stream", "long_term.aclose", "long_term.head"),
        *("long_term.list_parts", "changelog.due", "changelog.find"),
        *("long_term.remove_debris", BODY),
    }
)
"""Steps without an effect on a store (a store in memory has no debris)."""

_START = 1_700_000_000 * MICROS_PER_SECOND
_SETTLING_ROUNDS_MAX = 12
_RESUMED_MAX = 4
"""How often a client of a resumable upload goes on in one attempt."""
_ALL = 1e9
"""Seconds for whatever is under way to end."""
_OPERATION = "operation"


class SceneClock(Clock):
    """The loop's time, which can be taken back between two runs. All processes share it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._back = 0.0

    def now(self) -> UnixMicros:
        return _START + round((self._loop.time() - self._back) * MICROS_PER_SECOND)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def set_back(self, now: UnixMicros) -> None:
        """Let the wall clock show ``now`` again."""
        self._back += (self.now() - now) / MICROS_PER_SECOND


class Script(FaultScript):
    """What goes wrong in one process: at most one fault, by the number of its step; and what was scripted beforehand.

    A step may suffer both: the planned fault is around the other one. After every effect the stores are looked at.
    """

    def __init__(self, look: Callable[[str], None]) -> None:
        super().__init__()
        self._look = look
        self._planned: tuple[int, Fault, Callable[[], object]] | None = None

    def plan(self, step: int, fault: Fault, reached: Callable[[], object] = lambda: None) -> None:
        """Let ``fault`` happen in ``step`` (from 0), and call ``reached`` when it has come so far."""
        self._planned = (step, fault, reached)

    @property
    def missed(self) -> bool:
        """Whether the planned fault has not happened."""
        return self._planned is not None

    @property
    def crashed(self) -> bool:
        """Whether the process is gone."""
        return self._crashed

    async def around(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        if self._crashed:
            raise asyncio.CancelledError
        step = len(self.trace)
        self.trace.append(call)
        given = self._faults[call].popleft() if self._faults.get(call) else None
        work = effect if call in READS else partial(self._watched, call, effect)
        if given is not None:
            work = partial(self._suffer, given, work)
        planned = None
        if self._planned is not None and step == self._planned[0]:
            (_, planned, reached), self._planned = self._planned, None
            reached()
        return await self._suffer(planned, work)

    async def _watched(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        try:
            return await effect()
        finally:
            self._look(call)

    def begin_anew(self, late: Sequence[Callable[[], Awaitable[object]]] = ()) -> None:
        """Forget everything, and let ``late`` be what has yet to arrive."""
        self.trace.clear()
        self._faults.clear()
        self._planned = None
        self._crashed = False
        self._late = list(late)

    def save_late(self) -> Sequence[Callable[[], Awaitable[object]]]:
        """What has yet to arrive."""
        return tuple(self._late)


class ScriptedBody(Body):
    """A body of two pieces, each of which, and its end, is a step of the process that reads it."""

    def __init__(self, payload: bytes, script: Script, *, announced: bool) -> None:
        self.size = len(payload) if announced else None
        half = len(payload) // 2
        self._pieces = (payload[:half], payload[half:])
        self._script = script
        self.position = 0
        self.arrived = False
        """Whether the store has got it all, and reads it without its process."""

    async def __anext__(self) -> bytes:
        # When the process has died in the call that stores the body, the store has got all of it.
        by_store = self.arrived or self._script.crashed
        return await self._next() if by_store else await self._script.around(BODY, self._next)

    async def _next(self) -> bytes:
        if self.position == len(self._pieces):
            self.complete = True
            raise StopAsyncIteration
        self.position += 1
        return self._pieces[self.position - 1]


@dataclass(frozen=True)
class Upload:
    """An upload with all its parts."""

    id: UploadId
    parts: Sequence[PartName]
    """None for a resumable one, whose parts the server makes."""
    payload: bytes


@dataclass(frozen=True)
class Moment:
    """What the stores were, and what clients knew, at some moment."""

    stores: Saved
    now: UnixMicros
    asked: int
    late: Sequence[Callable[[], Awaitable[object]]]
    body: ScriptedBody | None
    body_position: int
    crashed: bool


class Process:
    """One process on the stores of a scene."""

    def __init__(self, scene: "Scene", seed: int, limits: Limits = LIMITS) -> None:
        self.script = Script(scene.watch.look)
        self.cleanup = TaskOwner(limits.background_tasks_max, scene.report)
        stores = Stores(
            FaultyHighVolume(scene.high_volume, self.script),
            FaultyLongTerm(scene.long_term, self.script),
            FaultyChangeLog(scene.changelog, self.script),
        )
        tiering = build_tiering(stores, limits=limits, clock=scene.clock, ids=SeededIds(seed), cleanup=self.cleanup)
        self.store, self.uploads, self.resumable = tiering.store, tiering.uploads, tiering.resumable
        self.settler, self.sweeper = tiering.settler, tiering.sweeper

    async def drain(self) -> None:
        """Let the work off the callers' paths end."""
        await self.cleanup.drain(_ALL)


class Scene:
    """The stores, the processes on them, and their clients, who write down what they are told."""

    upload: Upload
    """The upload that a run is about."""

    def __init__(
        self,
        repeats: Repeats = Repeats.NOT_FOUND,
        *,
        limits: Limits = LIMITS,
        without: Callable[[Stores], Stores] = lambda stores: stores,
    ) -> None:
        self.clock = SceneClock()
        self.watch = Watch(self.clock)
        self.ledger = Ledger(self.watch)
        stores = without(
            Stores(
                MemoryHighVolume(self.watch.rows, clock=self.clock, ids=SeededIds(1)),
                MemoryLongTerm(self.watch.blobs, clock=self.clock, limits=limits, repeats=repeats),
                MemoryChangeLog(self.watch.entries, clock=self.clock),
            )
        )
        self.high_volume: HighVolumeBackend = stores.high_volume
        self.long_term: LongTermBackend = stores.long_term
        self.changelog: ChangeLog = stores.changelog
        self.process = Process(self, 2, limits)
        self.other = Process(self, 3)
        self.doomed = Process(self, 4)
        """For what has happened, and gone wrong, before the run."""
        self.body: ScriptedBody | None = None
        """The body that the run's process reads, or was the last to read."""
        self._numbers = count(1)
        self._dead = False

    # Time

    async def drain(self) -> None:
        """Let all work off the callers' paths end."""
        await self.process.drain()
        await self.other.drain()
        await self.doomed.drain()

    async def pass_time(self, seconds: float) -> None:
        """Let time go on."""
        await self.clock.sleep(seconds)

    async def pass_until(self, instant: UnixMicros) -> None:
        """Let time go on until ``instant`` has passed."""
        await self.pass_time(max(0, instant - self.clock.now()) / MICROS_PER_SECOND + 0.001)

    def save(self) -> Moment:
        """How everything is now; nothing may be under way."""
        return Moment(
            stores=self.watch.save(),
            now=self.clock.now(),
            asked=len(self.ledger.asked),
            late=self.process.script.save_late(),
            body=self.body,
            body_position=0 if self.body is None else self.body.position,
            crashed=self.process.script.crashed,
        )

    def restore(self, moment: Moment) -> None:
        """Make everything as it was; nothing may be under way."""
        self.watch.restore(moment.stores)
        self.clock.set_back(moment.now)
        del self.ledger.asked[moment.asked :]
        self.ledger.wrong.clear()
        for process in (self.process, self.other, self.doomed):
            process.script.begin_anew()
        self.process.script.begin_anew(moment.late)
        self.body = moment.body
        if self.body is not None:
            self.body.position = moment.body_position
        self._dead = moment.crashed

    @property
    def client_process(self) -> Process:
        """The process that answers clients after the run's fault."""
        return self.other if self._dead else self.process

    def bury(self) -> None:
        """If the process has died, the other one takes over."""
        self._dead = self.process.script.crashed

    # What clients do

    def small(self) -> bytes:
        """A payload for the high-volume store, unlike any before."""
        return f"small {next(self._numbers)}".encode().ljust(20, b".")

    def large(self) -> bytes:
        """A payload for the long-term store, unlike any before."""
        return f"large {next(self._numbers)}".encode().ljust(100, b".")

    async def put(
        self,
        process: Process,
        payload: bytes,
        *,
        expiration: Expiration = MANUAL,
        announced: bool = True,
    ) -> None:
        """Write the object. In the run's process, every piece of the body is a step."""
        body: Body = BytesBody(payload, chunk=KIB)
        if process is self.process:
            body = self.body = ScriptedBody(payload, process.script, announced=announced)
        asked = self.ledger.ask("write", payload)
        await self._answered(asked, process.store.put(OBJECT, Metadata(expiration=expiration), body))

    async def delete(self, process: Process) -> None:
        """Delete the object."""
        await self._answered(self.ledger.ask("write", None), process.store.delete(OBJECT))

    async def extend(self, process: Process, seconds: int) -> None:
        """Let the object live until ``seconds`` after its creation."""
        asked = self.ledger.ask_extension(self.watch.created() + seconds * MICROS_PER_SECOND)
        try:
            await process.store.extend_expiry(OBJECT, AfterCreation(seconds), lambda _: None)
        except BaseException as error:
            self.ledger.answer_extension(asked, error)
            raise
        self.ledger.answer_extension(asked, None)

    async def initiate(self, process: Process) -> None:
        """Begin an upload that gets no parts."""
        await process.uploads.initiate(OBJECT, Metadata())

    async def begin_upload(self, process: Process, expiration: Expiration = MANUAL) -> Upload:
        """Begin an upload, and send its two parts."""
        payload = f"upload {next(self._numbers)}".encode().ljust(70, b".")
        upload = await process.uploads.initiate(OBJECT, Metadata(expiration=expiration))
        parts = [
            PartName(number, (await process.uploads.upload_part(upload, number, BytesBody(piece), None)).etag)
            for number, piece in enumerate((payload[:40], payload[40:]), start=1)
        ]
        return Upload(upload, parts, payload)

    async def upload_part(self, process: Process) -> None:
        """Send the second part of the run's upload once more."""
        piece = self.upload.payload[40:]
        body: Body = BytesBody(piece)
        if process is self.process:
            body = self.body = ScriptedBody(piece, process.script, announced=True)
        await process.uploads.upload_part(self.upload.id, 2, body, None)

    async def complete(self, process: Process, upload: Upload) -> None:
        """Attempt to complete an upload; a resumable one by sending what is left of it."""
        if not upload.parts:
            await self.resume(process, upload)
            return
        asked = self.ledger.ask("complete", upload.payload)
        await self._answered(asked, process.uploads.complete(upload.id, upload.parts))

    async def begin_session(self, process: Process, size: int) -> Upload:
        """Begin a resumable upload of ``size`` bytes, and send none of them."""
        payload = f"session {next(self._numbers)}".encode().ljust(size, b".")
        session = await process.resumable.create(OBJECT, Metadata(), size)
        return Upload(session.upload, (), payload)

    async def resume(self, process: Process, upload: Upload) -> None:
        """Send what is left of a resumable upload, as a client does that asks for the offset first."""
        asked = self.ledger.ask("complete", upload.payload)
        await self._answered(asked, self._resumed(process, SessionId(upload.id), upload.payload))

    async def _resumed(self, process: Process, session: SessionId, payload: bytes) -> None:
        for _ in range(_RESUMED_MAX):
            advance = await process.resumable.query(session)
            if isinstance(advance, Completed):
                return
            rest = payload[advance.offset :]
            body: Body = BytesBody(rest, chunk=KIB)
            if process is self.process:
                body = self.body = ScriptedBody(rest, process.script, announced=True)
            with suppress(OffsetMismatch):  # somebody else was faster
                await process.resumable.append(session, advance.offset, body)
        raise Unavailable("others are always faster")

    async def cancel_session(self, process: Process, upload: Upload) -> None:
        """Cancel a resumable upload."""
        asked = self.ledger.ask("abort", upload.payload)
        await self._answered(asked, process.resumable.cancel(SessionId(upload.id)))

    async def abort(self, process: Process, upload: Upload) -> None:
        """Abort an upload."""
        await self._answered(self.ledger.ask("abort", upload.payload), process.uploads.abort(upload.id))

    async def _answered(self, asked: Asked, work: Awaitable[object]) -> None:
        try:
            await work
        except BaseException as error:
            self.ledger.answer(asked, error)
            raise
        self.ledger.answer(asked, None)

    async def read(self, process: Process) -> bytes | None:
        """Read the object; what is returned must have been visible."""
        before, begun = self.watch.visible(), len(self.watch.changes)
        seen = None
        try:
            seen = await payload_of(await process.store.get(OBJECT, None))
        except ObjectNotFound:
            seen = None
        self.ledger.check_read(seen, before, begun)
        return seen

    # What others do

    async def sweep(self) -> None:
        """One run of the other process's sweeper, in which nothing may fail."""
        results = await self.other.sweeper.run_once()
        if results["error"]:
            self.ledger.wrong.append("a healthy sweeper failed")

    async def overtake(self, action: Callable[["Scene"], Awaitable[object]]) -> None:
        """Let somebody else do something now, cleanup and all; that may fail if a sweeper is at it meanwhile."""
        with suppress(NoSuchUpload, Unavailable):
            await action(self)
        await self.other.drain()

    async def settle_now(self) -> None:
        """The other process settles what is in the log, as if all of it were due.

        Only second visits have to wait for their time (it is what makes forgetting safe).
        """
        for entry in list(self.watch.entries.by_key.values()):
            if entry.state is not State.DONE and (not entry.sweeps or entry.not_before <= self.clock.now()):
                await self.other.settler.settle(entry)

    async def condemn_upload(self) -> None:
        """The other process begins to settle the run's upload, if it is in the log yet, and gets no further."""
        if entry := self.own_entry():
            await self.changelog.condemn(entry, self.clock.now() + int(LIMITS.sweep_lease_seconds * MICROS_PER_SECOND))

    async def settle(self) -> None:
        """Let time pass and the other process sweep, until nothing is left to be done."""
        for _ in range(_SETTLING_ROUNDS_MAX):
            due = [entry.not_before for entry in self.watch.unsettled()]
            due += [
                row.expires
                for row in self.watch.rows.by_id.values()
                if row.expires is not None and row.expires <= self.clock.now()
            ]
            if not due:
                return
            await self.pass_until(max(due))
            await self.sweep()

    async def settle_and_forget_markers(self) -> None:
        """Likewise, and then until the markers that deletes and fences have left are removed."""
        await self.pass_time(max(LIMITS.operation_deadline_seconds, LIMITS.upload_retention_seconds) + 1)
        await self.sweep()
        await self.settle()
        await self.pass_time(LIMITS.marker_retention_seconds + 1)
        await self.sweep()

    async def forget_outcomes(self) -> None:
        """Let the outcomes that are remembered come to their end."""
        if self.watch.entries.by_key:
            await self.pass_time(LIMITS.outcome_retention_seconds + 1)
            await self.sweep()
            if self.watch.entries.by_key:
                self.watch.violations.append("after the end of all outcomes: something is in the log")

    async def arrive(self) -> None:
        """Let everything that is late arrive."""
        if self.body is not None:
            self.body.arrived = True
        if not await self.process.script.arrive():
            self.ledger.wrong.append("nothing was late")

    def report(self, name: str, error: BaseException) -> None:
        """Work off the path has failed: with an error of the stores, or something is broken."""
        if not isinstance(error, TierstoreError):
            self.ledger.wrong.append(f"{name} failed with {error!r}")

    # The run's operation

    async def perform(self, act: Callable[["Scene", Process], Awaitable[object]]) -> BaseException | None:
        """Do what a run is about in its process; return what it raised, once all its work has ended."""
        error = await self.end_of(act(self, self.process))
        await self.drain()
        self.bury()
        return error

    async def end_of(self, work: Awaitable[object]) -> BaseException | None:
        """Run ``work`` as the operation to its end; return what it raised."""
        self.operation = asyncio.get_running_loop().create_task(_awaited(work), name=_OPERATION)
        await asyncio.wait({self.operation})
        return asyncio.CancelledError() if self.operation.cancelled() else self.operation.exception()

    async def cancel_caller(self) -> None:
        """Cancel the operation as if its caller had gone; in work off its path, that work, as at a shutdown.

        Does not return: the cancellation ends it.
        """
        task = asyncio.current_task()
        off_path = task is not None and not task.get_name().startswith((_OPERATION, "Task-"))
        (task if task is not None and off_path else self.operation).cancel()
        await asyncio.Event().wait()

    def torn(self) -> BaseException:
        """How a body ends before its end."""
        return ClientDisconnected("the client has gone")

    def own_entry(self) -> Entry | None:
        """The own entry of the run's upload."""
        return self.watch.own_entry(self.upload.id.revision)


async def _awaited(work: Awaitable[T]) -> T:
    return await work
