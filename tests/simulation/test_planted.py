"""The simulation notices when a rule of the protocol is taken away, and says it in few words."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from tierstore.backends.high_volume.contract import Content, FoundRow, Gone
from tierstore.backends.high_volume.memory import MemoryHighVolume
from tierstore.build import Stores
from tierstore.clock import UnixMicros
from tierstore.limits import Limits
from tierstore.service.batch import BatchRun, Insert, Operation, Outcome, Result, Stored
from tierstore.testing.planted import PLANTED
from tierstore.testing.simulation.__main__ import main
from tierstore.testing.simulation.campaign import run_seeds
from tierstore.testing.simulation.plan import make_plan
from tierstore.testing.simulation.shrink import shrink
from tierstore.testing.simulation.world import simulate
from tierstore.types.ids import ObjectId, Version
from tierstore.types.objects import Tier

SEEDS_MAX = 400
TOO_RARE = {"time"}
"""Rules whose absence shows so rarely under random faults that ``tests/crash_matrix`` has to find it."""


@pytest.mark.parametrize("rule", sorted(set(PLANTED) - TOO_RARE))
def test_a_planted_bug_is_found(rule: str) -> None:
    """Within a bounded number of seeds."""
    report = run_seeds(range(SEEDS_MAX), plant=PLANTED[rule], shrunk=False)
    assert report.failure is not None, f"not found in {report.seeds} seeds"


class _SaysSoOnly(MemoryHighVolume):
    """Extensions are acknowledged, and not done."""

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        row = await self.head(object_id)
        return row is not None and row.version == version and row.expires is not None


class _SettlesWhatWasExtended(MemoryHighVolume):
    """What has expired once is settled, whatever its deadline is by now."""

    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        rows = await self.scan("", None, limit)
        return [found for found in rows if found.row.expires is not None and not isinstance(found.row.content, Gone)]

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
        return await super().compare_and_write(object_id, expected, content, expires, not_after=not_after)


class _ExtendsTooFar(MemoryHighVolume):
    """An extension gives more than it is told to."""

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        return await super().extend(object_id, version, expires + 10**12)


@pytest.mark.parametrize("store", [_SaysSoOnly, _SettlesWhatWasExtended, _ExtendsTooFar])
def test_a_bug_of_extensions_is_found(store: type[MemoryHighVolume]) -> None:
    """An object vanishes before, lives beyond, or is told another deadline than one that it was given."""

    def plant(stores: Stores) -> Stores:
        right = stores.high_volume
        assert isinstance(right, MemoryHighVolume)
        return Stores(
            store(right._store_of_rows, clock=right._clock, ids=right._ids), stores.long_term, stores.changelog
        )

    plans = ((seed, make_plan(seed)) for seed in range(SEEDS_MAX))
    seeds = [seed for seed, plan in plans if plan.ttl and not plan.clocks_jump]
    report = run_seeds(seeds, plant=plant, shrunk=False)
    assert report.failure is not None, f"not found in {report.seeds} seeds"


class _AnswersTooEarly(BatchRun):
    """An insert is answered while it is still being stored."""

    async def _run(self, operation: Operation) -> None:
        if not isinstance(operation, Insert):
            await super()._run(operation)
            return
        self._objects.admit_operation()
        storing = self._tasks.run("storing", self._perform(operation))
        await asyncio.sleep(0)
        if storing.done():
            error = storing.exception()
            self._deliver_of(operation, error if isinstance(error, Exception) else storing.result())
            return
        size = operation.body.size
        inline = size is not None and size <= Limits.tiny().inline_bytes_max
        self._deliver_of(operation, Stored(Tier.HIGH_VOLUME if inline else Tier.LONG_TERM))
        with suppress(Exception):
            await storing


class _MixesAnswersUp(BatchRun):
    """What came of one operation is told of another one of its kind, if both wait for the writer."""

    def _deliver(self, outcome: Outcome) -> None:
        before = self._outcomes.pop() if self._outcomes else None
        if before is not None and before.kind is outcome.kind:
            before, outcome = replace(before, result=outcome.result), replace(outcome, result=before.result)
        if before is not None:
            super()._deliver(before)
        super()._deliver(outcome)


class _FailsTogether(BatchRun):
    """One operation's failure ends the batch as if it had come to its end."""

    def _deliver(self, outcome: Outcome) -> None:
        super()._deliver(outcome)
        if isinstance(outcome.result, Exception):
            self._waiting.clear()


class _TakesInMore(BatchRun):
    """For the body of another insert nobody waits."""

    async def hold(self) -> None:
        self._held += 1


class _OpensMore(BatchRun):
    """Objects are opened although those before them have not been read."""

    def _advance(self) -> None:
        self._opened = 0
        super()._advance()


class _LeavesOpen(BatchRun):
    """When a batch is given up, nobody closes what was opened for it."""

    async def aclose(self) -> None:
        waiting, self._outcomes = self._outcomes, deque()
        await super().aclose()
        self._outcomes = waiting


class _AsksNobody(BatchRun):
    """Operations run without being admitted."""

    async def _run(self, operation: Operation) -> None:
        result: Result
        try:
            result = await self._perform(operation)
        except Exception as error:  # noqa: BLE001  # because every failure is the outcome of its operation
            result = error
        self._deliver_of(operation, result)


@pytest.mark.parametrize(
    "batch_run",
    [_AnswersTooEarly, _MixesAnswersUp, _FailsTogether, _TakesInMore, _OpensMore, _LeavesOpen, _AsksNobody],
)
def test_a_bug_of_batches_is_found(batch_run: type[BatchRun]) -> None:
    """An answer is early, another's, or none; or a bound on what a batch has in memory or opened is not kept."""
    report = run_seeds(range(SEEDS_MAX), batch_run=batch_run, shrunk=False)
    assert report.failure is not None, f"not found in {report.seeds} seeds"


def test_a_failure_is_made_small() -> None:
    """What is left of the plan still fails, and is a handful of actions and events; its trace shows every call."""
    plant = PLANTED["record-old"]
    seed = next(seed for seed in range(SEEDS_MAX) if simulate(make_plan(seed), plant=plant).violation)
    plan = make_plan(seed)
    smaller = shrink(plan, lambda candidate: simulate(candidate, plant=plant).violation is not None)
    assert len(smaller.actions) + len(smaller.events) <= 6 < len(plan.actions)
    outcome = simulate(smaller, plant=plant, traced=True)
    assert outcome.violation is not None
    assert any("high_volume.point" in line for line in outcome.trace)


def test_the_command_tells_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A verdict; the seed, what is left of its plan, the calls and the histories; and a failing exit code."""
    assert main(["--seeds", "3"]) == 0
    told = capsys.readouterr().out
    assert "operations a minute of CPU" in told
    assert told.endswith("\nnothing found\n")
    assert main(["--seeds", "0"]) == 0
    assert capsys.readouterr().out.endswith("\nno seed was run\n")
    assert main(["--seeds", "100", "--without", "mark-done"]) == 1
    told = capsys.readouterr().out
    assert "\nsomething found, see below\n\n" in told
    assert "nothing found" not in told
    assert "found with seed" in told
    assert "what clients saw" in told
