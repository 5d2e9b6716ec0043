"""The real application on a loopback socket, for many short examples: the server stays, the stores are new for each.

Guarantees: everything runs on one event loop in the calling thread, and only while a call is under way, so an example
repeats exactly; time is a clock that stands still until it is moved; background work has ended before a call returns.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn
import uvloop

from tests.fuzz.captured import captured_logs
from tests.http.harness import CLIENT_SECONDS_MAX, Connection
from tierstore.admission.authentication import Access
from tierstore.admission.buckets import BucketTable
from tierstore.admission.controls import Controls
from tierstore.admission.gate import Gate
from tierstore.admission.keys import KeyDirectory
from tierstore.admission.rate_limits import RateLimiter
from tierstore.admission.rules import Rules
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm, Repeats
from tierstore.build import Stores, Tiering, build_service, build_tiering, open_stores
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.config import Config, Data, FilesystemLongTerm, SqliteHighVolume
from tierstore.http.app import HttpSettings, Served, create_app
from tierstore.http.connection import bounded
from tierstore.limits import Limits
from tierstore.service.service import ObjectService
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds

T = TypeVar("T")

START_MICROS = 1_700_000_000_000_000
_SETTLING_SECONDS_MAX = 10.0


class _GateToTheCurrent(Gate):
    """A gate that admits to the service of the current example."""

    def serve(self, service: ObjectService) -> None:
        """Admit to this service from now on."""
        self._service = service


@dataclass
class Deployment:
    """The stores and the service of one example."""

    stores: Stores
    tiering: Tiering
    service: ObjectService
    mutations: TaskOwner
    cleanup: TaskOwner
    blobs: MemoryBlobs | None
    """What stands for the disk, if the stores are in memory."""

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        for owner in (self.mutations, self.cleanup):
            assert await owner.drain(_SETTLING_SECONDS_MAX) == 0, "background work does not end"


class FuzzedServer:
    """A server within ``limits``; a context manager. `deploy` gives it stores.

    ``service`` is another one than the real one only to see that what is wrong with it is found.
    """

    def __init__(self, limits: Limits, *, enforce: bool = False, service: type[ObjectService] = ObjectService) -> None:
        self.limits = limits
        self._service_class = service
        self.clock = ManualClock(START_MICROS)
        self.failures: list[str] = []
        """What went wrong behind the answers."""
        self._ids = SeededIds(0)
        self._access = Access(enforce=enforce, keys=KeyDirectory())
        self._deployments = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.logs = self._stack.enter_context(captured_logs())
        runner = self._stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        self.loop = runner.get_loop()
        self.loop.set_exception_handler(lambda _, context: self.failures.append(f"the event loop: {context!r}"))
        listener = self._stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        self.port: int = listener.getsockname()[1]
        settings = HttpSettings(
            limits=self.limits, clock=self.clock, ids=self._ids, max_requests=64, draining=lambda: False
        )
        self.config = uvicorn.Config(
            create_app(self._open_served, settings),
            http=bounded(self.limits, self.clock),
            ws="none", lifespan="on", log_config=None, server_header=False, proxy_headers=False, access_log=False,
            timeout_graceful_shutdown=1, timeout_keep_alive=60, reset_contextvars=True,
        )  # fmt: skip
        self._server = uvicorn.Server(self.config)
        self._serving = self.loop.create_task(self._server.serve(sockets=[listener]))
        self._stack.callback(self._stop)
        self.run(self._started())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
        """Let the event loop run until ``work`` is done."""
        return self.loop.run_until_complete(asyncio.wait_for(work, 3 * CLIENT_SECONDS_MAX))

    def deploy(self, repeats: Repeats = Repeats.NOT_FOUND, directory: Path | None = None) -> AsyncExitStack:
        """New stores from now on, in memory or embedded below ``directory``; close what is returned at the end."""
        stack = AsyncExitStack()
        self._deployments += 1
        self.clock.set_now(START_MICROS)
        self.deployment = self.run(stack.enter_async_context(self._deployed(repeats, directory)))
        self._gate.serve(self.deployment.service)
        return stack

    async def connect(self) -> Connection:
        """A client's connection."""
        return Connection(*await asyncio.open_connection("127.0.0.1", self.port))

    @property
    def connections(self) -> int:
        """How many connections the server holds."""
        return len(self._server.server_state.connections)

    @property
    def tasks(self) -> int:
        """How many requests it is answering."""
        return len(self._server.server_state.tasks)

    def check_nothing_failed(self) -> None:
        """Fail if anything was logged, or raised where nobody looks, that is a fault of ours. Forgets the rest."""
        problems = self.failures + self.logs.grave
        self.failures.clear()
        self.logs.clear()
        assert not problems, "faults behind the answers:\n" + "\n".join(problems)

    @asynccontextmanager
    async def _open_served(self) -> AsyncIterator[Served]:
        async with self._deployed(Repeats.NOT_FOUND, None) as deployment:  # of the internal routes
            self._gate = _GateToTheCurrent(
                deployment.service,
                self._access,
                Controls(Rules(), RateLimiter(BucketTable.private(), self.clock)),
                clock=self.clock,
                limits=self.limits,
            )
            yield Served(deployment.service, self._gate)

    @asynccontextmanager
    async def _deployed(self, repeats: Repeats, directory: Path | None) -> AsyncIterator[Deployment]:
        ids = SeededIds(self._deployments)
        async with AsyncExitStack() as stack:
            blobs = None
            if directory is None:
                blobs = MemoryBlobs()
                stores = Stores(
                    MemoryHighVolume(MemoryRows(), clock=self.clock, ids=ids),
                    MemoryLongTerm(blobs, limits=self.limits, clock=self.clock, repeats=repeats),
                    MemoryChangeLog(MemoryEntries(), clock=self.clock),
                )
                for store in (stores.high_volume, stores.long_term, stores.changelog):
                    stack.push_async_callback(store.close)
            else:
                config = Config(
                    data=Data(path=str(directory)),
                    high_volume=SqliteHighVolume(readers=1, reserve=0),
                    long_term=FilesystemLongTerm(threads=2, reserve=0),
                )
                stores = await stack.enter_async_context(open_stores(config, self.limits, self.clock, ids))
            mutations, cleanup = TaskOwner(64, self._report), TaskOwner(64, self._report)
            tiering = build_tiering(stores, limits=self.limits, clock=self.clock, ids=ids, cleanup=cleanup)
            service = self._service(tiering, stores, ids, mutations)
            deployment = Deployment(stores, tiering, service, mutations, cleanup, blobs)
            yield deployment
            await deployment.settle()

    def _service(self, tiering: Tiering, stores: Stores, ids: SeededIds, mutations: TaskOwner) -> ObjectService:
        if self._service_class is ObjectService:
            return build_service(tiering, stores, limits=self.limits, ids=ids, mutations=mutations)
        every = (stores.high_volume, stores.long_term, stores.changelog)
        return self._service_class(
            tiering.store, tiering.uploads, tiering.resumable, *every, limits=self.limits, ids=ids, mutations=mutations
        )

    def _report(self, name: str, error: BaseException) -> None:
        self.failures.append(f"{name}: {error!r}")

    async def _started(self) -> None:
        while not self._server.started:
            assert not self._serving.done()
            await asyncio.sleep(0.001)

    def _stop(self) -> None:
        self._server.should_exit = True
        self.run(self._serving)
