"""The embedded SQLite engine: one file, one writer that shares commits, a few readers, all off the event loop.

Guarantees:

- `Database.write` returns after its transaction has been committed and synced (WAL, ``synchronous=FULL``). What a
  committed write stored is seen by every `Database.read` that is called afterwards, from any process. What an earlier
  process had written and not synced when it was killed is synced before `Database.open` returns.
- Writes that wait at the same time share one transaction and one sync (group commit). They still fail alone: when one
  raises, or the disk is full, the shared transaction is rolled back and each is run in its own.
- Several processes may have the file open, also while it is created or migrated. A writer waits its turn by polling
  every half millisecond (SQLite's own busy timeout backs off, and is unfair), for a bounded time.
- Queues and batches are bounded by `Limits`; what does not fit is refused as `Busy`, and nothing is done for it.
- Errors of SQLite are translated here, and nowhere else. An error that nobody foresaw fails the operations that share
  a transaction with it, and no others; should a thread end all the same, everything that waits fails, and all that
  comes later is refused as `Unavailable`, so that a check fails.

A *work* is a function of a connection, run in another thread. It depends on nothing that its own run changes (it may
be run twice, the first time without effect), it does not begin or end transactions, and its result holds no cursor.

It does not spread one file over machines (SQLite needs shared memory), and it does not shrink the file.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import structlog

from tierstore import telemetry
from tierstore.clock import Clock
from tierstore.embedded.database_file import Connection, DatabaseFile, Schema
from tierstore.embedded.sessions import Accepted, Deadline, Outcome, Reader, Session, Shared, Writer
from tierstore.errors import Busy, StorageFull, Unavailable
from tierstore.limits import Limits

__all__ = ["Connection", "Database", "Schema"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Database:
    """An open database file. Used from the event loop that opened it."""

    def __init__(self, file: "DatabaseFile", limits: Limits, clock: Clock, readers: int) -> None:
        self._file = file
        self._limits = limits
        self._clock = clock
        self._readers = readers
        self._name = file.schema.name
        self._queue_max = limits.database_queue_max
        self._loop = asyncio.get_running_loop()
        self._writes: Accepted = SimpleQueue()
        self._reads: Accepted = SimpleQueue()
        self._waiting = 0
        self._closed = False
        self._failed = False
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._batch_operations = telemetry.database_batch_operations.labels(self._name)
        self._thread = threading.Thread(target=self._run, name=f"{self._name} writer", daemon=True)

    @classmethod
    async def open(cls, path: Path, schema: Schema, *, limits: Limits, clock: Clock, readers: int = 2) -> "Database":
        """Open ``path``, create and migrate it as needed, and start ``readers`` (1 or more) reading threads.

        Missing directories are made, for the owner alone. Raises `StartupError` with a sentence for the operator:
        not writable, no space, a directory, a foreign file, a file of a newer release, locked for too long.
        """
        database = cls(DatabaseFile(path, schema), limits, clock, readers)
        database._thread.start()
        try:
            await database._opened
        except BaseException:
            await database.close()
            raise
        return database

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a reading connection, in one snapshot that is newer than this call; return its result.

        Raises what ``work`` raises, `Busy`, `Unavailable` or `Broken`. Safe to repeat.
        """
        return await self._accept(self._reads, work, 0)

    async def write(self, work: Callable[[Connection], T], *, weight: int = 0) -> T:
        """Run ``work`` in a transaction; return its result when that has been committed and synced.

        ``weight`` is about how many bytes it writes; a shared transaction takes no more works when their weights
        reach its bound. Raises what ``work`` raises, `Busy`, `StorageFull`, `Unavailable` or `Broken`, and then
        nothing was stored; or `OutcomeUnknown`. Cancelling the caller does not take back what was accepted.
        """
        return await self._accept(self._writes, work, weight)

    def check_room(self, connection: Connection, size: int, reserve_bytes: int) -> None:
        """Raise `StorageFull` unless ``size`` more bytes leave the reserve free. For a work that writes.

        Others may be faster: no promise.
        """
        if reserve_bytes and not self._file.has_room(connection, size, reserve_bytes):
            raise StorageFull("the database's disk is full")

    async def close(self) -> None:
        """Refuse new works, finish the accepted ones, checkpoint unless another process is in the way, let go.

        Safe to repeat, also at the same time.
        """
        if not self._closed:
            self._closed = True
            for _ in range(self._readers):
                self._reads.put(None)
            self._writes.put(None)
        await self._ended.wait()
        self._thread.join()  # does not block: signalling that it has ended was the last thing it did

    async def _accept(self, accepted: Accepted, work: Callable[[Connection], T], weight: int) -> T:
        if self._closed:
            raise Unavailable(f"the {self._name} database is closed")
        if self._failed:
            raise self._out_of_service()
        if self._waiting >= self._queue_max:
            raise Busy(f"too many operations are waiting for the {self._name} database")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting += 1
        accepted.put((future, work, weight))
        return await future

    def _deliver(self, outcomes: list[Outcome]) -> None:
        self._waiting -= len(outcomes)
        for future, value, error in outcomes:
            if future.done():  # its caller was cancelled
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _report_opened(self, error: Exception | None) -> None:
        if error is not None:
            self._closed = True
        if self._opened.done():
            return
        if error is None:
            self._opened.set_result(None)
        else:
            self._opened.set_exception(error)

    def _run(self) -> None:
        """The writer's thread: it opens everything, starts the readers, and is the last to end."""
        shared = Shared(self._file, self._clock, self._limits, self._post_outcomes)
        writer = Writer(shared, self._writes, self._batch_operations)
        readers = [Reader(shared, self._reads, self._readers) for _ in range(self._readers)]
        threads: list[threading.Thread] = []
        try:
            self._open_sessions(writer, readers)
            for reader in readers:
                thread = threading.Thread(target=self._serve, args=(reader,), name=f"{self._name} reader", daemon=True)
                thread.start()
                threads.append(thread)
        except Exception as error:  # noqa: BLE001  # because whoever opens the database gets it
            self._post(self._report_opened, error)
            for _ in threads:
                self._reads.put(None)
        else:
            self._post(self._report_opened, None)
            self._serve(writer)
        for thread in threads:
            thread.join()
        for session in (*readers, writer):
            with suppress(Exception):  # whatever a connection says at its end, whoever closes is waiting
                session.disconnect()
        self._post(self._ended.set)

    def _serve(self, session: Session) -> None:
        """A session's thread. When it cannot go on, nothing waits for it in vain; the database is out of service."""
        try:
            session.run()
        except BaseException:
            self._post(self._fail, session)
            with suppress(Exception):
                log.exception("a thread of the database ended", database=self._name)

    def _fail(self, session: Session) -> None:
        """Refuse what comes from now on, and fail what the session had in hand or would have taken."""
        self._failed = True
        failed: list[Outcome] = [(future, None, session.failure()) for future, _, _ in session.in_hand]
        for _ in range(session.accepted.qsize()):
            with suppress(Empty):  # another reader was faster
                operation = session.accepted.get_nowait()
                if operation is None:
                    session.accepted.put(None)  # other readers need it
                else:
                    failed.append((operation[0], None, self._out_of_service()))
        self._deliver(failed)

    def _out_of_service(self) -> Unavailable:
        return Unavailable(f"the {self._name} database has failed, and works again after a restart")

    def _open_sessions(self, writer: Writer, readers: list[Reader]) -> None:
        deadline = Deadline(self._clock, self._limits.database_lock_wait_seconds_max)
        with self._file.startup_errors():
            self._file.create()
            connection = deadline.patiently(writer.connect)
            deadline.patiently(lambda: self._file.migrate(connection))
            self._file.make_durable()
            for reader in readers:
                deadline.patiently(reader.connect)

    def _post_outcomes(self, outcomes: list[Outcome]) -> None:
        self._post(self._deliver, outcomes)

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return  # the loop was closed before the database: nobody is left to be told
