"""Storms on one key, drawn from a seed: attempts, other writers, aborts, sweepers and faults; the invariants judge."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import TypeVar

import pytest

from tests.unit.tiering.world import LARGE, SMALL, BytesBody, World, object_id
from tierstore.backends.high_volume.contract import HighVolumeBackend, RowHead, Tombstone
from tierstore.backends.long_term.memory import Repeats
from tierstore.build import Stores, build_tiering
from tierstore.changelog.entries import State
from tierstore.clock import UnixMicros
from tierstore.errors import NoSuchUpload, OutcomeUnknown, TierstoreError, Unavailable
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
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
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import Metadata
from tierstore.types.multipart import PartName

T = TypeVar("T")

UPLOADED, OTHER_UPLOADED = b"u" * 100, b"v" * 90
SEEDS_PER_TEST, TESTS = 25, 12
LIMITS = replace(Limits.tiny(), outcome_retention_seconds=1e6)
MAY_ARRIVE_LATE = {"high_volume.point", "high_volume.compare_and_write"}


class RandomFaults(FaultScript):
    """Faults drawn from ``random`` at any call, with ``probability``."""

    def __init__(self, random: Random, probability: float) -> None:
        super().__init__()
        self._random = random
        self.probability = probability

    async def around(self, call: str, effect: Callable[[], Awaitable[T]]) -> T:
        if not self._crashed and self._random.random() < self.probability:
            self.at(call, self._draw(call))
        return await super().around(call, effect)

    def _draw(self, call: str) -> Fault:
        faults: list[Fault] = [
            FailBefore(Unavailable("drawn")),
            LoseReply(OutcomeUnknown("drawn")),
            Crash(self._random.choice([Effect.NEVER, Effect.DONE])),
        ]
        if call in MAY_ARRIVE_LATE:
            faults += [ArriveLate(OutcomeUnknown("drawn")), Crash(Effect.LATE)]
        return self._random.choice(faults)


class Watched(FaultyHighVolume):
    """Counts how often the row was pointed to each revision, whatever became of the reply."""

    def __init__(self, inner: HighVolumeBackend) -> None:
        super().__init__(inner, FaultScript())
        self.commits: Counter[object] = Counter()

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        pointed = await super().point(object_id, base, content, expires, not_after=not_after)
        self.commits[content.revision] += pointed
        return pointed


class Instance:
    """One process on the stores of ``world``."""

    def __init__(self, world: World, high_volume: HighVolumeBackend, random: Random, probability: float) -> None:
        self.script = RandomFaults(random, probability)
        self.cleanup = TaskOwner(world.limits.background_tasks_max, lambda _name, _error: None)
        stores = Stores(
            FaultyHighVolume(high_volume, self.script),
            FaultyLongTerm(world.raw_long_term, self.script),
            FaultyChangeLog(world.raw_changelog, self.script),
        )
        self.changelog = stores.changelog
        ids = SeededIds(random.getrandbits(64))
        tiering = build_tiering(stores, limits=world.limits, clock=world.clock, ids=ids, cleanup=self.cleanup)
        self.committer, self.settler, self.uploads = tiering.committer, tiering.settler, tiering.uploads


class Storm:
    """One seed's storm."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.world = World(LIMITS, self.random.choice(list(Repeats)))
        self.watched = Watched(self.world.raw_high_volume)
        probability = self.random.choice([0.0, 0.03, 0.1])
        self.instances = [
            Instance(self.world, self.watched, self.random, probability) for _ in range(self.random.randint(2, 3))
        ]
        self.answers: list[str] = []
        self.acknowledged: list[object] = []

    async def run(self) -> None:
        """The storm, the calm after it, and the judgement."""
        world = self.world
        if self.random.random() < 0.7:
            await world.put("k", self.random.choice([SMALL, LARGE]))
            await world.drain()
        await world.begin_upload("k", UPLOADED)
        actors = [self._attempt() for _ in range(self.random.randint(2, 8))]
        actors += [self._other_client() for _ in range(self.random.randint(0, 5))]
        actors += [self._settle() for _ in range(self.random.randint(0, 3))]
        actors += [self._abort() for _ in range(self.random.choice([0, 0, 1, 2]))]
        tasks = [asyncio.get_running_loop().create_task(actor) for actor in actors]
        await self._let_time_pass(tasks)
        for task in tasks:
            task.result()
        for instance in self.instances:
            instance.script.probability = 0
            instance.script.restart()
            await instance.cleanup.drain(5)
        await world.check_no_dangling()
        for instance in self.instances:
            await instance.script.arrive()
        await world.check_no_dangling()
        await self._complete_in_the_calm()
        await self._judge()

    async def _let_time_pass(self, tasks: list[asyncio.Task[None]]) -> None:
        jumps = 2
        while not all(task.done() for task in tasks):
            for _ in range(self.random.randint(1, 30)):
                await asyncio.sleep(0)
            instance = self.random.choice(self.instances)
            instance.script.restart()
            if self.random.random() < 0.2:
                await instance.script.arrive()
            if jumps and self.random.random() < 0.02:
                jumps -= 1
                self.world.clock.advance(self.world.limits.entry_grace_seconds + 1)
                await self.world.sweeper.run_once()
            self.world.clock.advance(self.world.limits.complete_poll_seconds)

    async def _dawdle(self) -> Instance:
        for _ in range(self.random.choice([0, 3, 10, 30])):
            await asyncio.sleep(0)
        return self.random.choice(self.instances)

    async def _attempt(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            instance = await self._dawdle()
            try:
                await instance.uploads.complete(self.world.upload, self.world.parts)
                self.answers.append("success")
            except NoSuchUpload:
                self.answers.append("no such upload")
            except (Unavailable, asyncio.CancelledError):
                self.answers.append("try again")

    async def _complete_in_the_calm(self) -> None:
        for _ in range(3):
            try:
                await self.world.in_passing_time(
                    self.instances[0].uploads.complete(self.world.upload, self.world.parts)
                )
                self.answers.append("success")
            except NoSuchUpload:
                self.answers.append("no such upload")
            except Unavailable:
                self.world.clock.advance(self.world.limits.sweep_lease_seconds + 1)
                await self.world.sweeper.run_once()
        await self.instances[0].cleanup.drain(5)

    async def _other_client(self) -> None:
        instance = await self._dawdle()
        what = self.random.choice(["small", "large", "delete", "upload"])
        try:
            match what:
                case "small":
                    await instance.committer.put_inline(object_id("k"), Metadata(), SMALL)
                case "large":
                    await instance.committer.put_blob(object_id("k"), Metadata(), BytesBody(LARGE))
                case "delete":
                    await instance.committer.delete(object_id("k"))
                case _:
                    upload = await instance.uploads.initiate(object_id("k"), Metadata())
                    part = await instance.uploads.upload_part(upload, 1, BytesBody(OTHER_UPLOADED), None)
                    await instance.uploads.complete(upload, [PartName(1, part.etag)])
                    self.acknowledged.append(upload.revision.uuid)
        except (TierstoreError, asyncio.CancelledError):
            return

    async def _settle(self) -> None:
        instance = await self._dawdle()
        try:
            for entry in await instance.changelog.list(None, 100):
                if entry.state is State.DONE:  # settling it would forget an outcome before its time
                    continue
                if not entry.owner_is_upload or self.random.random() < 0.3:
                    await instance.settler.settle(entry)
        except (TierstoreError, asyncio.CancelledError):
            return

    async def _abort(self) -> None:
        instance = await self._dawdle()
        try:
            await instance.uploads.abort(self.world.upload)
        except (TierstoreError, asyncio.CancelledError):
            return

    async def _judge(self) -> None:
        world = self.world
        commits = self.watched.commits
        assert max(commits.values(), default=0) <= 1, f"a revision was committed twice: {commits}"
        committed = commits[world.upload.revision.uuid] == 1
        assert "success" not in self.answers or committed, f"success without a commit: {self.answers}"
        assert "no such upload" not in self.answers or not committed, f"failed, but committed: {self.answers}"
        assert all(commits[revision] == 1 for revision in self.acknowledged), "an acknowledged upload was lost"
        assert self.answers[-1] in {"success", "no such upload"}, f"no end: {self.answers}"
        seen = await world.get("k")
        assert seen in {None, SMALL, LARGE, UPLOADED, OTHER_UPLOADED}
        await world.sweep()
        await world.sweep()
        await world.check_settled()
        assert await world.get("k") == seen, "a sweep changed the object"


@pytest.mark.parametrize("first", [number * SEEDS_PER_TEST for number in range(TESTS)])
async def test_in_a_storm_what_is_always_true_stays_true(first: int) -> None:
    """Committed at most once, answered truthfully, nothing dangling, nothing orphaned; the seed repeats it."""
    for seed in range(first, first + SEEDS_PER_TEST):
        try:
            await Storm(seed).run()
        except (AssertionError, TierstoreError, asyncio.CancelledError, ExceptionGroup) as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
