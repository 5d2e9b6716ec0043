"""The threads of the filesystem store."""

import asyncio
import errno
import threading
from collections.abc import Iterator

import pytest

from tierstore.backends.long_term.file_threads import FileThreads, translate
from tierstore.errors import StorageFull, Unavailable


class Gate:
    """Work that waits until it is let through, and says that it has begun and ended."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.through = threading.Event()
        self.ended = False

    def pass_through(self) -> str:
        """Wait at the gate."""
        self.begun.set()
        assert self.through.wait(10)
        self.ended = True
        return "passed"

    async def wait_begun(self) -> None:
        """Until a thread is at the gate."""
        while not self.begun.is_set():
            await asyncio.sleep(0.001)


@pytest.fixture
def threads() -> Iterator[FileThreads]:
    """Two threads."""
    threads = FileThreads(2, "test")
    yield threads
    threads.shutdown()


def refuse(number: int) -> None:
    """Fail as a file operation does."""
    raise OSError(number, "of the system", "/a/secret/path")


async def test_results_and_exceptions(threads: FileThreads) -> None:
    """What the work returns or raises is what its caller gets, as often as it asks."""
    assert await threads.run(divmod, 7, 2) == (3, 1)
    job = threads.start(divmod, 1, 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await job.result()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_full(threads: FileThreads, number: int) -> None:
    """No space, no quota and a file too long mean that the storage is full."""
    with pytest.raises(StorageFull):
        await threads.run(refuse, number)


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT, errno.EMFILE, errno.ESTALE, errno.ENOTDIR]
)
async def test_other_failures(threads: FileThreads, number: int) -> None:
    """Every other failure of a file operation may pass; no path is in the text that a client may see."""
    with pytest.raises(Unavailable) as raised:
        await threads.run(refuse, number)
    assert not isinstance(raised.value, StorageFull)
    assert "secret" not in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)


def test_a_failure_without_a_number() -> None:
    """An `OSError` that says nothing is still translated."""
    assert type(translate(OSError())) is Unavailable


async def test_cancelled_run_waits_for_its_thread(threads: FileThreads) -> None:
    """A cancelled caller goes on only when what its thread does has ended, however often it is cancelled."""
    gate = Gate()
    running = asyncio.create_task(threads.run(gate.pass_through))
    await gate.wait_begun()
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0.005)
        assert not running.done()
    gate.through.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gate.ended


async def test_cancelled_run_takes_back_what_has_not_begun(threads: FileThreads) -> None:
    """Work that waits for a thread when its caller is cancelled never runs, and its caller does not wait."""
    gates = [Gate(), Gate()]
    running = [asyncio.create_task(threads.run(gate.pass_through)) for gate in gates]
    for gate in gates:
        await gate.wait_begun()
    late = Gate()
    waiting = asyncio.create_task(threads.run(late.pass_through))
    await asyncio.sleep(0.005)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for gate in gates:
        gate.through.set()
    assert await asyncio.gather(*running) == ["passed", "passed"]
    await threads.run(int)
    assert not late.begun.is_set()


async def test_completed_work_runs_though_its_caller_is_cancelled(threads: FileThreads) -> None:
    """Cleaning up is done even if it has not begun when its caller is cancelled, and before the caller goes on."""
    gates = [Gate(), Gate()]
    running = [asyncio.create_task(threads.run(gate.pass_through)) for gate in gates]
    for gate in gates:
        await gate.wait_begun()
    cleanup = Gate()
    cleanup.through.set()
    cleaning = asyncio.create_task(threads.complete(cleanup.pass_through))
    await asyncio.sleep(0.005)
    cleaning.cancel()
    await asyncio.sleep(0.005)
    assert not cleaning.done()
    for gate in gates:
        gate.through.set()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    assert cleanup.ended
    await asyncio.gather(*running)


async def test_a_wait_can_be_given_up_and_taken_up(threads: FileThreads) -> None:
    """Cancelling who waits for a result loses neither the work nor its result."""
    gate = Gate()
    job = threads.start(gate.pass_through)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(job.result(), 0.01)
    gate.through.set()
    assert await job.result() == "passed"


async def test_threads_are_bounded(threads: FileThreads) -> None:
    """No more work runs at once than there are threads."""
    lock = threading.Lock()
    now, most = 0, 0
    both = threading.Barrier(2)

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        both.wait(10)
        with lock:
            now -= 1

    await asyncio.gather(*(threads.run(work) for _ in range(20)))
    assert most == 2


def test_a_loop_that_is_gone_does_not_matter(threads: FileThreads, caplog: pytest.LogCaptureFixture) -> None:
    """Work that ends after its event loop was closed ends quietly."""
    gate = Gate()

    async def start_and_leave() -> None:
        job = threads.start(gate.pass_through)
        await gate.wait_begun()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job.result(), 0.01)

    asyncio.run(start_and_leave())
    gate.through.set()
    threads.shutdown()
    assert gate.ended
    assert caplog.records == []
