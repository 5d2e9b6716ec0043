"""An event loop on virtual time: when nothing can run, the clock jumps to the next timer.

Guarantees: hours pass in milliseconds; callbacks run in an order that depends on nothing but the program; a program
that waits for something that can never happen is told so (`Stuck`) instead of hanging. Does not: sockets, processes or
threads. It stands on `asyncio.BaseEventLoop`, whose documented parts for a loop of one's own it supplies.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tierstore.invariants import invariant

T = TypeVar("T")

_CANCEL_ROUNDS_MAX = 100


class Stuck(Exception):
    """Every task waits, and no timer is set: nothing will ever happen again."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """A loop whose time begins at 0 and moves only when all that could run has run."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_now = 0.0
        self._selector = _Jump(self)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual_now

    def jump(self, seconds: float) -> None:
        """Let time pass at once. Timers that are due then run next."""
        self._virtual_now += seconds

    def _process_events(self, event_list: Sequence[object]) -> None:
        invariant(not event_list, "a loop on virtual time has no events from outside")


class _Jump:
    """What stands for the selector: waiting is jumping."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        """Let ``timeout`` seconds pass. Called by the loop when it has nothing to run."""
        if timeout is None:
            raise Stuck("nothing will ever happen again: all tasks wait, and no timer is set")
        if timeout > 0:
            self._loop.jump(timeout)
        return []


def run_on_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end on a loop of its own; what it has left behind is cancelled."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        for _ in range(_CANCEL_ROUNDS_MAX):  # what is cancelled may start something that cleans up after it
            if not (left := asyncio.all_tasks(loop)):
                break
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
