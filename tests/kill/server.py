"""The server under test over its lives: started on one directory, killed, paused, starved of disk, started again.

A *life* lasts from the start of a process group until every process of it has ended. Requests go through `requests`,
which is closed between lives: so what was sent in one life is answered, or broken off, before the next one begins, and
has no effect in it.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil

from tests.kill.history import Violation
from tests.kill.plan import Config
from tierstore.testing.process_faults import ProcessFault
from tierstore.testing.server import ServerFailed, ServerProcess

_END_SECONDS_MAX = 20.0
_BALLAST = "ballast"
_BLOCK_BYTES = 4096
_FILL_TRIES_MAX = 100


class LivingServer:
    """A server with its stores in ``directory``, and the harm that is done to it. Counts that harm in ``counts``.

    With ``faults``, each of its processes starts with these, so that it is one that has to be caught.
    """

    def __init__(
        self, directory: Path, workers: int, counts: Counter[str], faults: Sequence[ProcessFault] | None = None
    ) -> None:
        self._directory = directory
        self._workers = workers
        self._faults = faults
        self._counts = counts
        self._process: ServerProcess | None = None
        self._open = asyncio.Event()
        self._stopping = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._paused: dict[psutil.Process, asyncio.Task[None]] = {}
        self.ended_at = 0.0
        """When the last life had ended, on the monotonic clock."""
        self.log_texts: list[str] = []
        """Of the lives that have ended."""
        self.events: list[str] = []
        """What was done to it, with times."""

    @property
    def data(self) -> Path:
        """The directory of the stores."""
        return self._directory / "data"

    @property
    def url(self) -> str:
        """Where it listens now."""
        return self._now.url

    @property
    def _now(self) -> ServerProcess:
        assert self._process is not None
        return self._process

    @contextlib.asynccontextmanager
    async def requests(self) -> AsyncIterator[str]:
        """Wait until there is a server; its address is good for the time of this context."""
        await self._open.wait()
        self._under_way += 1
        self._idle.clear()
        try:
            yield self.url
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def nobody_listens(self) -> None:
        """A connection was refused: if that is because the server is stopping, its port is not asked again."""
        if self._stopping:
            self._open.clear()

    async def start(self, config: Config) -> None:
        """Begin a life. A disk that is full may keep it from beginning; then there is room first."""
        for _ in range(2):
            process = ServerProcess(self.data, workers=self._workers, faults=self._faults, config=config)
            try:
                await asyncio.to_thread(process.__enter__)
            except ServerFailed as failed:
                if not self._ballast.exists() or "Traceback" in str(failed):
                    raise Violation(f"the server does not start: {failed}") from failed
                self._note("a start on the full disk was refused")
                self.empty_disk()
                continue
            self._process = process
            self._note(f"a life began: {config}")
            self._open.set()
            return
        raise Violation("the server does not start, though there is room on its disk")

    async def kill(self) -> None:
        """End the life with SIGKILL for all processes at once."""
        self._note("the group was killed")
        self._counts["group_kills"] += 1
        self._open.clear()  # at once: its port may be given to somebody else
        workers = self._processes()
        await asyncio.to_thread(self._now.kill)
        await self._end_life(workers)

    async def stop(self) -> None:
        """End the life politely, with requests under way. Raises `Violation` if it does not end well."""
        self._note("it was asked to stop")
        await self.resume_all()
        workers = self._processes()
        self._stopping = True
        self._now.terminate()
        try:
            exit_code = await asyncio.to_thread(self._now.wait, _END_SECONDS_MAX)
        except ServerFailed as failed:
            raise Violation(str(failed)) from failed
        if exit_code != 0:
            raise Violation(f"the server ended with {exit_code} when it was asked to stop:\n{self._now.log_text}")
        await self._end_life(workers)

    async def _end_life(self, workers: list[psutil.Process]) -> None:
        self._open.clear()
        self._stopping = False
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, _END_SECONDS_MAX)
        if alive:
            raise Violation(f"processes outlive their server: {alive}")
        self._now.close()
        self.log_texts.append(self._now.log_text)
        self._process = None
        await self._idle.wait()
        await self.resume_all()
        self.ended_at = time.monotonic()

    def kill_worker(self, choice: int) -> None:
        """Kill one worker; the supervisor starts another."""
        workers = self._processes()
        if workers:
            worker = workers[choice % len(workers)]
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
            self._counts["worker_kills"] += 1
            self._note(f"worker {worker.pid} was killed")

    def pause_worker(self, choice: int, seconds: float) -> None:
        """Stop one worker where it stands, and let it go on after ``seconds``."""
        workers = self._processes()
        if workers:
            worker = workers[choice % len(workers)]
            if worker in self._paused:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.suspend()
            self._counts["pauses"] += 1
            self._note(f"worker {worker.pid} was paused for {seconds:.2f} s")
            self._paused[worker] = asyncio.get_running_loop().create_task(self._resume_later(worker, seconds))

    async def _resume_later(self, worker: psutil.Process, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._paused.pop(worker, None)
        self._resume(worker)

    def _resume(self, worker: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
            self._note(f"worker {worker.pid} went on")

    async def resume_all(self) -> None:
        """Let every paused worker go on now."""
        paused, self._paused = self._paused, {}
        for worker, task in paused.items():
            task.cancel()
            self._resume(worker)
        await asyncio.gather(*paused.values(), return_exceptions=True)

    def fill_disk(self, left_bytes: int) -> None:
        """Leave ``left_bytes`` of the disk, which must be a small one."""
        with self._ballast.open("ab") as ballast:
            for _ in range(_FILL_TRIES_MAX):
                size = self._free_bytes() - left_bytes
                if size < _BLOCK_BYTES:
                    break
                with contextlib.suppress(OSError):  # the server takes some of it meanwhile
                    os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), size)
        self._counts["full_disks"] += 1
        self._note(f"the disk was filled but for {left_bytes} bytes")

    def empty_disk(self) -> None:
        """Take the ballast away, if there is any."""
        if self._ballast.exists():
            self._ballast.unlink()
            self._note("the disk has room")

    def close(self) -> None:
        """Kill what runs of it."""
        if self._process is not None:
            self._process.close()
            self.log_texts.append(self._process.log_text)
            self._process = None

    def log_lines(self, *words: str) -> list[str]:
        """The lines of all lives that have one of the ``words``."""
        texts = [*self.log_texts, *([] if self._process is None else [self._process.log_text])]
        return [line for text in texts for line in text.splitlines() if any(word in line for word in words)]

    @property
    def _ballast(self) -> Path:
        return self._directory / _BALLAST

    def _free_bytes(self) -> int:
        space = os.statvfs(self._directory)
        return space.f_bavail * space.f_frsize

    def _processes(self) -> list[psutil.Process]:
        """The workers that live."""
        found = []
        for pid in self._now.worker_pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.ppid() == self._now.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _note(self, text: str) -> None:
        self.events.append(f"{time.monotonic():10.4f}  {text}")
