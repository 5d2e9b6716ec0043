"""Storms to record: several instances on stores in memory, every kind of operation, faults, crashes and jumps in time.

Drawn from a seed, which repeats it. A storm judges nothing: what it is for is its trace.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from tests.unit.tiering.world import LARGE, SMALL, BytesBody, object_id, payload_of
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats
from tierstore.build import Stores, build_tiering
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.errors import OutcomeUnknown, TierstoreError, Unavailable
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import (
    ArriveLate,
    Crash,
    Effect,
    FailBefore,
    Fault,
    FaultScript,
    FaultyChangeLog,
    FaultyHighVolume,
    FaultyLongTerm,
    LoseReply,
)
from tierstore.testing.ids import SeededIds
from tierstore.testing.traces import Kind, Record, Recorder, acting, bound, look, recorded
from tierstore.types.expiry import AfterCreation, AfterNow
from tierstore.types.metadata import Expiration, Manual, Metadata, TimeToIdle, TimeToLive
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.resumable import SessionId, Stored

T = TypeVar("T")
Plant = Callable[[Stores], Stores]
"""Puts wrong stores into the place of right ones."""

LIMITS = replace(Limits.tiny(), background_tasks_max=64)
_READS = frozenset(
    {
        *("high_volume.read", "high_volume.head", "high_volume.scan", "high_volume.expired", "long_term.get"),
        *("long_term.head", "long_term.list", "long_term.list_parts", "changelog.due", "changelog.find"),
        *("changelog.list", "long_term.stream", "long_term.aclose"),
    }
)
_STREAMS = frozenset({"long_term.put", "long_term.upload_part"})
"""Calls whose body dies with its process."""


class Faults(FaultScript):
    """Faults drawn from ``random`` at any call, with ``probability``; what comes late counts as its caller's."""

    def __init__(self, random: Random, probability: float) -> None:
        super().__init__()
        self._random = random
        self.probability = probability

    async def around(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        if not self._crashed and self._random.random() < self.probability:
            self.at(call, self._draw(call))
        return await super().around(call, bound(effect))

    def _draw(self, call: str) -> Fault:
        faults: list[Fault] = [
            FailBefore(Unavailable("drawn")),
            LoseReply(OutcomeUnknown("drawn")),
            Crash(self._random.choice([Effect.NEVER, Effect.DONE])),
        ]
        if call not in _READS:
            faults.append(ArriveLate(OutcomeUnknown("drawn")))
        if call not in _READS | _STREAMS:
            faults.append(Crash(Effect.LATE))
        return self._random.choice(faults)


class Instance:
    """One process."""

    def __init__(self, storm: "Storm", number: int) -> None:
        self.name = f"instance {number}"
        self.script = Faults(storm.random, storm.probability)
        self.cleanup = TaskOwner(LIMITS.background_tasks_max, lambda _name, _error: None)
        faulty = Stores(
            FaultyHighVolume(storm.stores.high_volume, self.script),
            FaultyLongTerm(storm.stores.long_term, self.script),
            FaultyChangeLog(storm.stores.changelog, self.script),
        )
        self.stores = acting(storm.plant(faulty), storm.recorder)
        ids = SeededIds(storm.random.getrandbits(64))
        self.tiering = build_tiering(self.stores, limits=LIMITS, clock=storm.clock, ids=ids, cleanup=self.cleanup)


def as_it_is(stores: Stores) -> Stores:
    """Plants nothing."""
    return stores


class Storm:
    """One seed's storm. ``plant`` is put between each instance and its faults, ``plant_inside`` around raw stores."""

    def __init__(
        self,
        seed: int,
        *,
        plant: Plant = as_it_is,
        plant_inside: Plant = as_it_is,
        probability: float | None = None,
    ) -> None:
        self.random = Random(seed)
        self.clock = ManualClock()
        self.recorder = Recorder()
        self.plant = plant
        repeats = self.random.choice(list(Repeats))
        raw = Stores(
            MemoryHighVolume(MemoryRows(), clock=self.clock, ids=SeededIds(seed)),
            MemoryLongTerm(MemoryBlobs(), clock=self.clock, limits=LIMITS, repeats=repeats),
            MemoryChangeLog(MemoryEntries(), clock=self.clock),
        )
        self.stores = recorded(plant_inside(raw), self.recorder, self.clock)
        drawn = self.random.choice([0.0, 0.01, 0.03, 0.1])
        self.probability = drawn if probability is None else probability
        self._pauses = self.random.choice([(0, 1, 3, 6), (0, 10, 20, 50), (0, 10, 50, 200, 600)])
        self._jumps = self.random.choice([0.03, 0.1])
        self._keys = self.random.choice([("k",), ("k", "l")])
        self._instances = [Instance(self, number) for number in range(self.random.randint(2, 3))]
        self._uploads: list[tuple[UploadId, Sequence[PartName]]] = []
        self._sessions: list[SessionId] = []

    async def run(self, actors: int = 30) -> Sequence[Record]:
        """Let it pass; return its trace."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._begin_upload("k")) for _ in range(self.random.randint(1, 2))]
        tasks += [loop.create_task(self._act()) for _ in range(actors)]
        while not all(task.done() for task in tasks):
            await self._let_time_pass()
        for task in tasks:
            task.result()
        for instance in self._instances:
            instance.script.probability = 0
            instance.script.restart()
        await self._in_passing_time(self._calm_down())
        return self.recorder.records

    async def _let_time_pass(self) -> None:
        for _ in range(self.random.randint(1, 30)):
            await asyncio.sleep(0)
        instance = self.random.choice(self._instances)
        instance.script.restart()
        if self.random.random() < 0.2:
            await instance.script.arrive()
        if self.random.random() < self._jumps:
            self.clock.advance(self._jump())
        self.clock.advance(LIMITS.complete_poll_seconds)

    def _jump(self) -> float:
        limits = LIMITS
        return 1 + self.random.choice(
            [
                *(limits.entry_grace_seconds, limits.sweep_lease_seconds, limits.operation_deadline_seconds),
                *(limits.upload_retention_seconds, limits.marker_retention_seconds),
            ]
        )

    async def _calm_down(self) -> None:
        """All that is late arrives, all that was left is swept, and the judge looks."""
        await look(self.stores, self.recorder)
        for instance in self._instances:
            await instance.cleanup.drain(5)
            await instance.script.arrive()
        await look(self.stores, self.recorder)
        instance = self._instances[0]
        for seconds in (
            LIMITS.upload_retention_seconds + LIMITS.entry_grace_seconds,
            LIMITS.new_entry_kept_seconds_min,
            LIMITS.sweep_lease_seconds + LIMITS.sweep_second_visit_seconds,
            LIMITS.marker_retention_seconds,
        ):
            self.clock.advance(seconds + 1)
            await self._sweep(instance)
        await look(self.stores, self.recorder)

    async def _in_passing_time(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        while not task.done():
            for _ in range(50):
                await asyncio.sleep(0)
            self.clock.advance(LIMITS.complete_poll_seconds)
        task.result()

    # What clients, sweepers and operators do

    async def _act(self) -> None:
        for _ in range(self.random.choice(self._pauses)):
            await asyncio.sleep(0)
        instance, key = self.random.choice(self._instances), self.random.choice(self._keys)
        acts: Sequence[tuple[Callable[[Instance, str], Coroutine[Any, Any, None]], int]] = (
            (self._put, 8),
            (self._delete, 3),
            (self._read, 2),
            (self._keep_alive, 2),
            (self._extend, 2),
            (lambda _, key: self._begin_upload(key), 3),
            (self._begin_session, 3),
            (self._resume, 4),
            (self._complete, 10),
            (self._parts, 2),
            (self._abort, 1),
            (lambda instance, _: self._sweep(instance), 3),
            (self._settle, 2),
        )
        act = self.random.choices([act for act, _ in acts], [weight for _, weight in acts])[0]
        with suppress(TierstoreError, asyncio.CancelledError):
            await act(instance, key)

    async def _put(self, instance: Instance, key: str) -> None:
        payload = self.random.choice([SMALL, LARGE, LARGE])
        expirations: Sequence[Expiration] = (Manual(), Manual(), Manual(), TimeToLive(1), TimeToIdle(2))
        await self._store(instance, key, payload, self.random.choice(expirations))

    async def _store(self, instance: Instance, key: str, payload: bytes, expiration: Expiration) -> None:
        with self.recorder.operation(Kind.PUT, instance.name, object_id(key)):
            await instance.tiering.store.put(object_id(key), Metadata(expiration=expiration), BytesBody(payload))

    async def _delete(self, instance: Instance, key: str) -> None:
        with self.recorder.operation(Kind.DELETE, instance.name, object_id(key)):
            await instance.tiering.store.delete(object_id(key))

    async def _read(self, instance: Instance, key: str) -> None:
        with self.recorder.operation(Kind.READ, instance.name, object_id(key)):
            await payload_of(await instance.tiering.store.get(object_id(key), None))

    async def _keep_alive(self, instance: Instance, key: str) -> None:
        """Store an object that lives for as long as it is read, and read it when it has become stale."""
        await self._store(instance, key, self.random.choice([SMALL, LARGE]), TimeToIdle(2))
        stale = self.clock.monotonic() + 1
        while self.clock.monotonic() < stale:
            await asyncio.sleep(0)
        await self._read(instance, key)

    async def _extend(self, instance: Instance, key: str) -> None:
        target = self.random.choice((AfterNow(1), AfterNow(2), AfterCreation(3)))
        with self.recorder.operation(Kind.EXTEND, instance.name, object_id(key)):
            await instance.tiering.store.extend_expiry(object_id(key), target, lambda _: None)

    async def _begin_upload(self, key: str) -> None:
        instance = self.random.choice(self._instances)
        with suppress(TierstoreError, asyncio.CancelledError):
            with self.recorder.operation(Kind.INITIATE, instance.name, object_id(key)):
                upload = await instance.tiering.uploads.initiate(object_id(key), Metadata())
            with self.recorder.operation(Kind.PARTS, instance.name, object_id(key)):
                part = await instance.tiering.uploads.upload_part(upload, 1, BytesBody(LARGE), None)
            self._uploads.append((upload, [PartName(1, part.etag)]))

    async def _begin_session(self, instance: Instance, key: str) -> None:
        """Begin a resumable upload, to go on with; or store some of it, and what it is completed with is small."""
        with self.recorder.operation(Kind.INITIATE, instance.name, object_id(key)):
            session = await instance.tiering.resumable.create(object_id(key), Metadata(), len(LARGE))
        if self.random.random() < 0.5:
            self._sessions.append(session)
            return
        with self.recorder.operation(Kind.PARTS, instance.name, object_id(key)):
            await instance.tiering.resumable.append(session, 0, BytesBody(SMALL[:40]))
            page = await instance.tiering.uploads.list_parts(session.upload, 0, 10)
        self._uploads.append((session.upload, [PartName(part.number, part.etag) for part in page.parts]))

    async def _resume(self, instance: Instance, _key: str) -> None:
        """Go on with a resumable upload."""
        if not self._sessions:
            return
        session = self.random.choice(self._sessions)
        upload, resumable = session.upload, instance.tiering.resumable
        with self.recorder.operation(Kind.RESUME, instance.name, upload.revision.object_id, upload.revision):
            advance = await resumable.query(session)
            if isinstance(advance, Stored):
                end = self.random.choice([advance.offset + 16, len(LARGE)])
                advance = await resumable.append(session, advance.offset, BytesBody(LARGE[advance.offset : end]))
            if isinstance(advance, Stored):
                raise Unavailable("it is not complete yet, and that is no answer")

    async def _complete(self, instance: Instance, _key: str) -> None:
        if not self._uploads:
            return
        upload, parts = self.random.choice(self._uploads)
        if self.random.random() < 0.05:
            parts = [PartName(2, "not there")]
        for _ in range(self.random.choice([1, 1, 2, 3])):
            with suppress(TierstoreError, asyncio.CancelledError):
                object_of = upload.revision.object_id
                with self.recorder.operation(Kind.COMPLETE, instance.name, object_of, upload.revision):
                    await instance.tiering.uploads.complete(upload, parts)
            instance = self.random.choice(self._instances)

    async def _parts(self, instance: Instance, _key: str) -> None:
        if self._uploads:
            upload, _ = self.random.choice(self._uploads)
            with self.recorder.operation(Kind.PARTS, instance.name, upload.revision.object_id):
                if self.random.random() < 0.5:
                    await instance.tiering.uploads.list_parts(upload, 0, 10)
                else:
                    await instance.tiering.uploads.upload_part(upload, 2, BytesBody(SMALL), None)

    async def _abort(self, instance: Instance, _key: str) -> None:
        if self._uploads:
            upload, _ = self.random.choice(self._uploads)
            with self.recorder.operation(Kind.ABORT, instance.name, upload.revision.object_id, upload.revision):
                await instance.tiering.uploads.abort(upload)

    async def _sweep(self, instance: Instance) -> None:
        with self.recorder.operation(Kind.SWEEP, instance.name), suppress(ExceptionGroup):
            await instance.tiering.sweeper.run_once()

    async def _settle(self, instance: Instance, _key: str) -> None:
        """What an operator might do at the worst moment."""
        with self.recorder.operation(Kind.SWEEP, instance.name):
            for entry in await instance.stores.changelog.list(None, 100):
                if not entry.owner_is_upload or self.random.random() < 0.3:
                    await instance.tiering.settler.settle(entry)
