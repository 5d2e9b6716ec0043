"""What can go wrong in a step."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from tests.crash_matrix.scene import BODY, LIMITS, READS, Scene
from tierstore.errors import OutcomeUnknown, Unavailable
from tierstore.testing.faults import ArriveLate, Crash, Effect, FailBefore, Fault, Interpose, LoseReply


class Arrival(Enum):
    """When an effect arrives that its caller does not wait for any more."""

    NEVER = auto()
    AT_ONCE = auto()
    """As soon as the operation has ended."""
    AFTER_WHAT_FOLLOWS = auto()
    AFTER_A_SWEEP = auto()
    """When a sweeper has been there once, and before the operation's deadline."""
    AFTER_ALL = auto()
    """When everything has been settled, and the markers of deletes removed: long after the operation's deadline."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    name: str
    fault: Callable[[Scene, str], Fault]
    """The fault, in a step of this name."""
    of_effects: bool = False
    """Whether it makes a difference only where a step has an effect."""
    of_uploads: bool = False
    """Whether it needs an upload in progress that the operation is about."""
    arrival: Arrival = Arrival.NEVER
    dies: bool = False
    """Whether the process is gone afterwards."""


def _fails(scene: Scene, call: str) -> Fault:
    return FailBefore(scene.torn() if call == BODY else Unavailable("scripted"))


def _unknown(_scene: Scene, _call: str) -> Fault:
    return FailBefore(OutcomeUnknown("scripted"))


def _reply_lost(_scene: Scene, _call: str) -> Fault:
    return LoseReply(OutcomeUnknown("scripted"))


def _late(_scene: Scene, _call: str) -> Fault:
    return ArriveLate(OutcomeUnknown("scripted"))


def _crash(effect: Effect) -> Callable[[Scene, str], Fault]:
    return lambda _scene, _call: Crash(effect)


def _delayed(scene: Scene, _call: str) -> Fault:
    return Interpose(lambda: scene.pass_time(LIMITS.operation_deadline_seconds + 1))


def _paused(scene: Scene, _call: str) -> Fault:
    return Interpose(lambda: paused(scene.settle_and_forget_markers()))


def _paused_then_dies(scene: Scene, _call: str) -> Fault:
    return Crash(Effect.DONE, before=lambda: paused(scene.settle_and_forget_markers()))


async def paused(meanwhile: Awaitable[None]) -> None:
    """Stand still until ``meanwhile`` is over: even a timer of this process that has run out does nothing before."""
    task = asyncio.ensure_future(meanwhile)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
    await task


async def _small(scene: Scene) -> None:
    await scene.put(scene.other, scene.small())


async def _large(scene: Scene) -> None:
    await scene.put(scene.other, scene.large())


async def _delete(scene: Scene) -> None:
    await scene.delete(scene.other)


async def _upload(scene: Scene) -> None:
    await scene.complete(scene.other, await scene.begin_upload(scene.other))


async def _attempt(scene: Scene) -> None:
    await scene.complete(scene.other, scene.upload)


async def _abort(scene: Scene) -> None:
    await scene.abort(scene.other, scene.upload)


def _by(action: Callable[[Scene], Awaitable[object]]) -> Callable[[Scene, str], Fault]:
    """The action is done by another process, cleanup and all, right before the step has its effect."""
    return lambda scene, _call: Interpose(lambda: scene.overtake(action))


_ARRIVALS = {
    "late, at once": Arrival.AT_ONCE,
    "late, after what follows": Arrival.AFTER_WHAT_FOLLOWS,
    "late, after a sweep": Arrival.AFTER_A_SWEEP,
    "late, after all is settled": Arrival.AFTER_ALL,
}

KINDS = (
    Kind("fails", _fails),
    Kind("outcome unknown, not done", _unknown, of_effects=True),
    Kind("reply lost", _reply_lost, of_effects=True),
    *(Kind(f"arrives {when}", _late, of_effects=True, arrival=arrival) for when, arrival in _ARRIVALS.items()),
    Kind("delayed past the deadline", _delayed),
    Kind("process paused", _paused),
    Kind("process paused, dies after it", _paused_then_dies, of_effects=True, dies=True),
    Kind("caller cancelled", lambda scene, _: Interpose(scene.cancel_caller)),
    Kind(
        "caller cancelled after it", lambda scene, _: Interpose(scene.cancel_caller, after_effect=True), of_effects=True
    ),
    Kind("process dies", _crash(Effect.NEVER), dies=True),
    Kind("process dies after it", _crash(Effect.DONE), of_effects=True, dies=True),
    *(
        Kind(f"process dies, arrives {when}", _crash(Effect.LATE), of_effects=True, arrival=arrival, dies=True)
        for when, arrival in _ARRIVALS.items()
    ),
    Kind("overtaken by a small write", _by(_small)),
    Kind("overtaken by a large write", _by(_large)),
    Kind("overtaken by another upload", _by(_upload)),
    Kind("overtaken by a delete", _by(_delete)),
    Kind("overtaken by a sweeper", _by(Scene.settle_now)),
    Kind("overtaken by another attempt", _by(_attempt), of_uploads=True),
    Kind("overtaken by an abort", _by(_abort), of_uploads=True),
)

BY_NAME = {kind.name: kind for kind in KINDS}


def has_effect(call: str) -> bool:
    """Whether a step changes something in a store."""
    return call not in READS
