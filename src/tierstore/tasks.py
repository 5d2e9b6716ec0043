"""The one place that spawns tasks, and their one owner.

Guarantees: every task has an owner that knows it, and that tells when its bound is reached (who starts tasks looks); an
exception nobody awaits is logged and counted by the owner's ``report``; `drain` waits for what is under way, then
cancels what will not end, and ends itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_CANCELLED_SECONDS_MIN = 5.0
"""How long cancelled tasks get to end, at least."""


class TaskOwner:
    """Owns tasks on the running event loop. ``report`` receives the name and the exception of a failed task."""

    def __init__(self, tasks_max: int, report: Callable[[str, BaseException], None]) -> None:
        self._tasks_max = tasks_max
        self._report = report
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """In the order in which they were started, which is that in which they are cancelled: the same in every run."""

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def full(self) -> bool:
        """Whether the bound is reached. A caller that finds it so does the work itself, or refuses it."""
        return len(self._tasks) >= self._tasks_max

    def full_besides(self, idle: int) -> bool:
        """Whether the bound is reached by other tasks than ``idle`` of them."""
        return len(self._tasks) - idle >= self._tasks_max

    def run(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start ``work`` as a task; the caller awaits it, or calls `disown`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def spawn(self, name: str, work: Coroutine[Any, Any, object]) -> None:
        """Start ``work`` as a task nobody awaits; if it raises, the exception is reported."""
        self.disown(self.run(name, work))

    def disown(self, task: asyncio.Task[Any], *passed_over: type[BaseException]) -> None:
        """Nobody awaits ``task`` any more: if it raises, the exception is reported, unless it is one of these."""

        def report(ended: asyncio.Task[Any]) -> None:
            if ended.cancelled() or (error := ended.exception()) is None or isinstance(error, passed_over):
                return
            self._report(ended.get_name(), error)

        task.add_done_callback(report)

    async def drain(self, seconds: float) -> int:
        """Wait until no task is left, for at most ``seconds``; cancel the rest and return how many that were.

        A task that does not end when it is cancelled (a disk that hangs) is waited for as long again, then left.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        late = list(self._tasks)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=max(seconds, _CANCELLED_SECONDS_MIN))
        return len(late)


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[R]], *, at_once: int) -> list[R]:
    """Await ``work(item)`` for every item, at most ``at_once`` at the same time; return the results as they came.

    An exception out of ``work`` cancels the rest and is raised (in an `ExceptionGroup`).
    """
    results: list[R] = []
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            results.append(await work(item))  # noqa: PERF401  # because the workers share one list and one iterator

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return results
