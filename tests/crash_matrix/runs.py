"""Running combinations, and judging each of them.

A run is: the stores as they were before, the operation with its fault, what comes after, what was late, sweeps until
nothing is left to do. It is judged by what the watcher saw in every state, by what clients were told, and by what is
left at the end.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.crash_matrix.combinations import Combination, included
from tests.crash_matrix.faults import Arrival, Kind
from tests.crash_matrix.operations import Operation
from tests.crash_matrix.scene import LIMITS, Scene
from tierstore.backends.long_term.memory import Repeats
from tierstore.build import Stores
from tierstore.errors import Broken, TierstoreError
from tierstore.testing.simulation.loop import run_on_virtual_time

Without = Callable[[Stores], Stores]

_FAILURES_SHOWN_MAX = 8


class Failure(AssertionError):
    """Something that must always be true was not, in one combination."""


class Failures(AssertionError):
    """Something that must always be true was not, in these combinations."""

    def __init__(self, failures: Sequence[str], runs: int) -> None:
        shown = "\n".join(failures[:_FAILURES_SHOWN_MAX])
        super().__init__(f"{len(failures)} of {runs} combinations:\n{shown}")
        self.failures = failures


def as_they_are(stores: Stores) -> Stores:
    """All rules in force."""
    return stores


def run_all(operation: Operation, kind: Kind, without: Without = as_they_are) -> int:
    """Run all combinations of ``operation`` and ``kind``; return how many there were. Raises `Failures`."""
    with untraced():
        return run_on_virtual_time(_run_all(operation, kind, without))


@contextmanager
def untraced() -> Iterator[None]:
    """Measure no coverage: it makes a run four times as long, and the other tests cover the same lines."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


async def _run_all(operation: Operation, kind: Kind, without: Without) -> int:
    runs = 0
    failures: list[str] = []
    for repeats in stores_of(operation):
        scene = Scene(repeats, limits=operation.limits, without=without)
        await operation.prepare(scene)
        try:
            steps = await steps_of(scene, operation)
        except Failure as failure:
            failures.append(str(failure))
            continue
        for cases in included(operation, steps, kind):
            runs += len(cases)
            failures += await _run_step(scene, cases)
    if failures:
        raise Failures(failures, runs)
    return runs


def stores_of(operation: Operation) -> Sequence[Repeats]:
    """The kinds of long-term stores that make a difference to the operation."""
    return list(Repeats) if operation.completes else [Repeats.NOT_FOUND]


async def steps_of(scene: Scene, operation: Operation) -> list[str]:
    """The steps of the operation when nothing goes wrong; the scene is left as it was."""
    before = scene.save()
    error = await scene.perform(operation.start)
    _judge(scene)
    if error is not None and operation.given is None:
        raise Failure(f"{operation.name} fails by itself: {error!r}")
    steps = list(scene.process.script.trace)
    scene.restore(before)
    return steps


async def _run_step(scene: Scene, cases: Sequence[Combination]) -> list[str]:
    """Run combinations that differ in what comes after only; return what was wrong. The scene is left as it was."""
    before = scene.save()
    failures = []
    after = [case for case in cases if not case.aftermath.meanwhile]
    if after:
        failures += await _attempted(after[0], _perform(scene, after[0]))
        broken = scene.save()
        for case in after if not failures else ():
            failures += await _attempted(case, _finish(scene, case))
            scene.restore(broken)
        scene.restore(before)
    for case in cases:
        if case.aftermath.meanwhile:
            failures += await _attempted(case, _perform(scene, case)) or await _attempted(case, _finish(scene, case))
            scene.restore(before)
    return failures


async def _attempted(case: Combination, run: Coroutine[Any, Any, None]) -> list[str]:
    try:
        await run
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # because whatever it is, it is reported
        return [f"{case}: {error!r}"]
    return []


async def _perform(scene: Scene, case: Combination) -> None:
    """The operation with its fault, to the end of all that it has begun."""
    meanwhile: list[asyncio.Future[object]] = []

    def reached() -> None:
        if case.aftermath.meanwhile:
            meanwhile.append(asyncio.ensure_future(case.aftermath.follow(scene, case.operation)))

    scene.process.script.plan(case.step, case.kind.fault(scene, case.call), reached)
    error = await scene.perform(case.operation.start)
    for task in meanwhile:
        await task
    await scene.drain()
    if scene.process.script.missed:
        raise Failure("the step was not reached")
    if not _is_an_answer(error):
        raise Failure(f"answered by {error!r}")
    _judge(scene)


def _is_an_answer(error: BaseException | None) -> bool:
    """Whether an operation may end with ``error``."""
    match error:
        case None | asyncio.CancelledError():
            return True
        case BaseExceptionGroup():
            return all(_is_an_answer(each) for each in error.exceptions)
        case _:
            return isinstance(error, TierstoreError) and not isinstance(error, Broken)


async def _finish(scene: Scene, case: Combination) -> None:
    """What comes after, what is late, the sweeps, and the end."""
    arrival = case.kind.arrival
    if arrival is Arrival.AT_ONCE:
        await scene.arrive()
        _judge(scene)
    if not case.aftermath.meanwhile:
        await case.aftermath.follow(scene, case.operation)
        await scene.drain()
        _judge(scene)
    if arrival is Arrival.AFTER_WHAT_FOLLOWS:
        await scene.arrive()
    elif arrival is Arrival.AFTER_A_SWEEP:
        if not case.aftermath.sweeps:  # a second one would come after the deadline
            await scene.pass_time(LIMITS.entry_grace_seconds + 1)
            await scene.sweep()
        await scene.arrive()
    await scene.read(scene.other)
    await scene.settle()
    if arrival is Arrival.AFTER_ALL:
        await scene.settle_and_forget_markers()
        await scene.arrive()
        await scene.settle()
    scene.watch.check_settled()
    await scene.read(scene.other)
    await scene.drain()
    await scene.forget_outcomes()
    _judge(scene)


def _judge(scene: Scene) -> None:
    """Raise `Failure` if anything was wrong up to now."""
    if violations := scene.watch.violations + scene.ledger.violations():
        changes = [None if value is None else value.rstrip(b".").decode() for value in scene.watch.changes]
        raise Failure(f"{'; '.join(violations)} [the object was {changes}, trace {scene.process.script.trace}]")
