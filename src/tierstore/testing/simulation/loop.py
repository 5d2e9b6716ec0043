"""An event loop on virtual time: when nothing can run, the clock jumps to the next timer.

Guarantees: hours pass in milliseconds; callbacks run in an order that depends on nothing but the program; a program
that waits for something that can never happen is told so (`Stuck`) instead of hanging. Does not: sockets, processes or
threads. It stands on `asyncio.BaseEventLoop`, whose documented parts for a loop of one's own it supplies.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar
from typing import Any, TypeVar, TypeVarTuple, Unpack

from tierstore.invariants import invariant

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CANCEL_ROUNDS_MAX = 100


class Stuck(Exception):
    """Every task waits, and no timer is set: nothing will ever happen again."""


class Machine:
    """Something that may stand still: no timer that is set on it fires meanwhile, not even one that runs out."""

    def __init__(self) -> None:
        self._running = asyncio.Event()
        self._running.set()
        self._due: list[_Timer] = []

    def pause(self) -> None:
        """Let nothing happen on it."""
        self._running.clear()

    def resume(self) -> None:
        """Let it go on, first with what has become due meanwhile."""
        due, self._due = self._due, []
        for timer in due:
            asyncio.get_running_loop().call_soon(timer.run)
        self._running.set()

    def forget(self) -> None:
        """Nobody waits for what has become due: its process is gone."""
        self._due.clear()

    async def wait_running(self) -> None:
        """Return at once unless it stands still."""
        await self._running.wait()

    def fire(self, timer: "_Timer") -> None:
        """A timer that was set on it has run out."""
        if self._running.is_set():
            timer.run()
        else:
            self._due.append(timer)


class _Timer:
    """What a timer of a machine is to do."""

    handle: asyncio.TimerHandle

    def __init__(self, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._callback = callback
        self._arguments = arguments

    def run(self) -> None:
        """Do it, unless the timer was cancelled after it had run out: what is due next to it may do that."""
        if not self.handle.cancelled():
            self._callback(*self._arguments)


machine_at_work: ContextVar[Machine | None] = ContextVar("machine_at_work", default=None)
"""The machine that a task, and all that it starts, runs on."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """A loop whose time begins at 0 and moves only when all that could run has run."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_now = 0.0
        self._selector = _Jump(self)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual_now

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        machine = machine_at_work.get()
        if machine is None:
            return super().call_at(when, callback, *args, context=context)
        timer = _Timer(callback, args)
        timer.handle = super().call_at(when, machine.fire, timer, context=context)
        return timer.handle

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
