"""Servers under test over their lives: started on one pair of stores, killed, paused, starved of disk, started again.

A *life* lasts from the start of the servers until every process of all of them has ended. Requests go through
`requests`, which is closed between lives: so what was sent in one life is answered, or broken off, before the next one
begins, and has no effect in it. Of several servers one may be killed and started again within a life, like a worker.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import psutil

from tests.engines.deployment import EMBEDDED, Deployment
from tests.kill.history import Violation
from tests.kill.plan import Config
from tierstore.testing.process_faults import ProcessFault
from tierstore.testing.server import ServerFailed, ServerProcess

_END_SECONDS_MAX = 20.0
_START_SECONDS_MAX = 40.0
_START_PAUSE_SECONDS = 0.2
_RECOVER_SECONDS_MAX = 30.0
_LATE_SECONDS = 0.3
"""How long an engine may still be at what a server had sent it that was killed; milliseconds are what it takes."""
_BALLAST = "ballast"
_BLOCK_BYTES = 4096
_FILL_TRIES_MAX = 100


class _Member:
    """One server that runs, and the requests that are under way to it."""

    def __init__(self, process: ServerProcess, supervises: bool) -> None:
        self.process = process
        self._supervises = supervises
        self.idle = asyncio.Event()
        self.idle.set()
        self._under_way = 0

    @contextlib.contextmanager
    def request(self) -> Iterator[str]:
        """A request to it, which is under way for the time of this context."""
        self._under_way += 1
        self.idle.clear()
        try:
            yield self.process.url
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()

    def wait_ready(self) -> None:
        """Wait until it is ready again. Blocks. Raises `ServerFailed`."""
        is_ready = self.process.status
        self.process.wait_until(lambda: is_ready("/ready") == 200, "is ready again", _RECOVER_SECONDS_MAX)

    def processes(self) -> list[psutil.Process]:
        """Those that serve, and live."""
        found = []
        for pid in self.process.worker_pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                serves = process.ppid() == self.process.pid if self._supervises else pid == self.process.pid
                if serves and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


class LivingServers:
    """Servers on one ``deployment``, with what is embedded in ``directory``, and the harm that is done to them.

    Counts that harm in ``counts``. With ``faults``, each of their processes starts with these, so that it is one that
    has to be caught.
    """

    def __init__(
        self,
        directory: Path,
        counts: Counter[str],
        *,
        servers: int = 1,
        workers: int,
        faults: Sequence[ProcessFault] | None = None,
        deployment: Deployment = EMBEDDED,
    ) -> None:
        self.deployment = deployment
        self._directory = directory
        self._servers = servers
        self._workers = workers
        self._faults = faults
        self._counts = counts
        self._config: Config = {}
        self._members: list[_Member] = []
        self._begun: list[ServerProcess] = []
        self._turns = itertools.count()
        self._open = asyncio.Event()
        self._stopping = False
        self._returning: set[asyncio.Task[None]] = set()
        self._paused: dict[psutil.Process, asyncio.Task[None]] = {}
        self.ended_at = 0.0
        """When the last life had ended, on the monotonic clock."""
        self.log_texts: list[str] = []
        """Of the processes that have ended."""
        self.events: list[str] = []
        """What was done to them, with times."""

    @property
    def data(self) -> Path:
        """The directory of the embedded stores."""
        return self._directory / "data"

    @property
    def urls(self) -> list[str]:
        """Where they listen now."""
        return [member.process.url for member in self._members]

    @contextlib.asynccontextmanager
    async def requests(self) -> AsyncIterator[str]:
        """Wait until there is a server; its address is good for the time of this context. They take turns."""
        while not self._open.is_set():
            await self._open.wait()
        with self._members[next(self._turns) % len(self._members)].request() as url:
            yield url

    def nobody_listens(self) -> None:
        """A connection was refused: if that is because the servers are stopping, their ports are not asked again."""
        if self._stopping:
            self._open.clear()

    async def start(self, config: Config) -> None:
        """Begin a life."""
        self._config = config
        self.note(f"a life begins: {config}")
        self._members += await asyncio.gather(*[self._started() for _ in range(self._servers)])
        self._open.set()

    async def _started(self) -> _Member:
        """A server that serves. A full disk or an engine that is down may keep it from that for a while."""
        ends = time.monotonic() + _START_SECONDS_MAX
        while True:
            process = self.deployment.server(self.data, workers=self._workers, faults=self._faults, config=self._config)
            self._begun.append(process)
            try:
                await asyncio.to_thread(process.__enter__)
            except ServerFailed as failed:
                self._put_away(process)
                if "Traceback" in str(failed):
                    raise Violation(f"the server does not start: {failed}") from failed
                if time.monotonic() > ends:
                    raise Violation(f"the server does not start: {failed}") from failed
                if self._ballast.exists():
                    self.note("a start on the full disk was refused")
                    self.empty_disk()
                elif self.deployment.is_embedded:
                    raise Violation(
                        f"the server does not start, though there is room on its disk: {failed}"
                    ) from failed
                else:
                    self._counts["starts_refused"] += 1
                    self.note("a start was refused")
                await asyncio.sleep(_START_PAUSE_SECONDS)
                continue
            return _Member(process, self._workers > 1)

    async def kill(self) -> None:
        """End the life with SIGKILL for all processes at once."""
        self.note("the group was killed")
        self._counts["group_kills"] += 1
        self._open.clear()  # at once: its port may be given to somebody else
        workers = self._processes()
        await asyncio.gather(*[asyncio.to_thread(member.process.kill) for member in self._members])
        await self._end_life(workers)
        if not self.deployment.is_embedded:
            await asyncio.sleep(_LATE_SECONDS)
            self.ended_at = time.monotonic()

    async def stop(self) -> None:
        """End the life politely, with requests under way. Raises `Violation` if it does not end well."""
        self.note("it was asked to stop")
        await self.resume_all()
        workers = self._processes()
        self._stopping = True
        for member in self._members:
            member.process.terminate()
        for member in self._members:
            process = member.process
            try:
                exit_code = await asyncio.to_thread(process.wait, _END_SECONDS_MAX)
            except ServerFailed as failed:
                raise Violation(str(failed)) from failed
            if exit_code != 0:
                raise Violation(f"the server ended with {exit_code} when it was asked to stop:\n{process.log_text}")
        await self._end_life(workers)

    async def _end_life(self, workers: list[psutil.Process]) -> None:
        self._open.clear()
        self._stopping = False
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, _END_SECONDS_MAX)
        if alive:
            raise Violation(f"processes outlive their server: {alive}")
        members, self._members = self._members, []
        for member in members:
            self._put_away(member.process)
            await member.idle.wait()
        await self.resume_all()
        self.ended_at = time.monotonic()

    def _put_away(self, process: ServerProcess) -> None:
        process.close()
        self._begun.remove(process)
        self.log_texts.append(process.log_text)

    async def kill_server(self, choice: int, seconds: float) -> None:
        """Kill one of several servers, and start it again after ``seconds``; the others go on."""
        if len(self._members) < 2:
            return
        member = self._members.pop(choice % len(self._members))
        self.note(f"server {member.process.pid} was killed")
        self._counts["server_kills"] += 1
        await asyncio.to_thread(member.process.kill)
        self._put_away(member.process)
        await member.idle.wait()
        self._returning.add(asyncio.get_running_loop().create_task(self._return(seconds)))

    async def _return(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._members.append(await self._started())
        self.note("a killed server is back")

    async def recover(self) -> None:
        """Wait until every server is back, and ready, without any help. Raises `Violation`."""
        returning, self._returning = self._returning, set()
        await asyncio.gather(*returning)
        for member in self._members:
            try:
                await asyncio.to_thread(member.wait_ready)
            except ServerFailed as failed:
                raise Violation(f"a server has not recovered: {failed}") from failed

    def kill_worker(self, choice: int) -> None:
        """Kill one worker of a server with several; its supervisor starts another."""
        workers = self._processes()
        if workers:
            worker = workers[choice % len(workers)]
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
            self._counts["worker_kills"] += 1
            self.note(f"worker {worker.pid} was killed")

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
            self.note(f"worker {worker.pid} was paused for {seconds:.2f} s")
            self._paused[worker] = asyncio.get_running_loop().create_task(self._resume_later(worker, seconds))

    async def _resume_later(self, worker: psutil.Process, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._paused.pop(worker, None)
        self._resume(worker)

    def _resume(self, worker: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
            self.note(f"worker {worker.pid} went on")

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
        self.note(f"the disk was filled but for {left_bytes} bytes")

    def empty_disk(self) -> None:
        """Take the ballast away, if there is any."""
        if self._ballast.exists():
            self._ballast.unlink()
            self.note("the disk has room")

    def close(self) -> None:
        """Kill what runs of them."""
        for task in self._returning:
            task.cancel()
        self._members.clear()
        for process in list(self._begun):
            self._put_away(process)

    def log_lines(self, *words: str) -> list[str]:
        """The lines of all lives that have one of the ``words``."""
        texts = [*self.log_texts, *[member.process.log_text for member in self._members]]
        return [line for text in texts for line in text.splitlines() if any(word in line for word in words)]

    def note(self, text: str) -> None:
        """Keep what was done, with the time."""
        self.events.append(f"{time.monotonic():10.4f}  {text}")

    @property
    def _ballast(self) -> Path:
        return self._directory / _BALLAST

    def _free_bytes(self) -> int:
        space = os.statvfs(self._directory)
        return space.f_bavail * space.f_frsize

    def _processes(self) -> list[psutil.Process]:
        return [process for member in self._members for process in member.processes()]
