"""The threads in which file operations run, so that the event loop never waits for a disk.

Guarantees: no more than ``threads`` operations at once, the rest wait in order; an operation that has begun is never
lost sight of, whoever is cancelled; its `OSError` comes out as an error of ours. Does not: interrupt an operation that
has begun, which nothing can.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from tierstore.errors import StorageFull, Unavailable

T = TypeVar("T")
P = ParamSpec("P")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, and a file longer than the filesystem or the process may have: waiting alone does not help."""


def translate(error: OSError) -> Unavailable:
    """What ``error`` means to a caller. Paths stay out of the text, which a client may see."""
    if error.errno in _FULL:
        return StorageFull("the blob store is out of space or of quota")
    reason = os.strerror(error.errno) if error.errno is not None else "unknown reason"
    return Unavailable(f"the blob store cannot be used now: {reason}")


class Job(Generic[T]):
    """An operation that was handed to the threads."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    async def result(self) -> T:
        """Wait for the operation's result, or raise its exception. May be called again, also after a cancellation.

        Cancellation ends the wait alone: the operation goes on, and `settle` waits for it.
        """
        if not self._future.done():
            await self._ended()
        return self._future.result()

    async def settle(self) -> None:
        """Wait until the operation has ended, however it does, and however often this is cancelled meanwhile.

        An operation that has not begun is taken back. The caller re-raises the cancellation that it is handling;
        one that arrives during this wait is delivered to it here, once the operation has ended.
        """
        self._future.cancel()
        await self.end()

    async def end(self) -> None:
        """Wait until the operation has ended, as `settle` does, but let it run first if it has not begun."""
        cancelled: asyncio.CancelledError | None = None
        while not self._future.done():
            try:
                await self._ended()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _ended(self) -> None:
        # A new waiter for every wait, because cancelling a task cancels the future that it awaits.
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_release, waiter)

        self._future.add_done_callback(wake)
        await waiter


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class FileThreads:
    """A bounded pool of threads for one backend."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    def start(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Job[T]:
        """Hand ``work`` to the threads and go on."""
        return Job(self._executor.submit(_translated, partial(work, *args, **kwargs)))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``work``. On cancellation it is taken back if it has not begun, and else waited for."""
        job = self.start(work, *args, **kwargs)
        try:
            return await job.result()
        except asyncio.CancelledError:
            await job.settle()
            raise

    async def complete(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``work``, which runs to its end even if the caller is cancelled. For cleaning up."""
        job = self.start(work, *args, **kwargs)
        await job.end()
        return await job.result()

    def shutdown(self) -> None:
        """End the threads. The caller has waited for every job, so this waits for nothing that takes time."""
        self._executor.shutdown(wait=True)


def _translated(work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise translate(error) from error
