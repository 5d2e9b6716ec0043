"""The embedded SQLite engine: one file, one writer that shares commits, a few readers, all off the event loop.

Guarantees:

- `Database.write` returns after its transaction has been committed and synced (WAL, ``synchronous=FULL``). What a
  committed write stored is seen by every `Database.read` that is called afterwards, from any process.
- Writes that wait at the same time share one transaction and one sync (group commit). They still fail alone: when one
  raises, or the disk is full, the shared transaction is rolled back and each is run in its own.
- Several processes may have the file open, also while it is created or migrated. A writer waits its turn by polling
  every half millisecond (SQLite's own busy timeout backs off, and is unfair), for a bounded time.
- Queues and batches are bounded by `Limits`; what does not fit is refused as `Busy`, and nothing is done for it.
- Errors of SQLite are translated here, and nowhere else.

A *work* is a function of a connection, run in another thread. It depends on nothing that its own run changes (it may
be run twice, the first time without effect), it does not begin or end transactions, and its result holds no cursor.

It does not spread one file over machines (SQLite needs shared memory), and it does not shrink the file.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import apsw
from prometheus_client import Histogram

from tierstore import telemetry
from tierstore.clock import Clock
from tierstore.errors import Broken, Busy, OutcomeUnknown, StartupError, StorageFull, Unavailable
from tierstore.limits import MIB, Limits

T = TypeVar("T")

Connection = apsw.Connection
"""What a work is given. Re-exported, so that a backend need not import the driver."""

_LOCK_POLL_SECONDS = 0.0005
_PAGE_BYTES = 4096
_WAL_CHECKPOINTS_MAX = 8
"""Checkpoints after which a WAL that readers kept from being begun anew, by always overlapping, waits for a gap."""
_CHECKPOINT_WAIT_SECONDS = 0.1
_WAL_BYTES_KEPT = 64 * MIB
"""A longer WAL file is cut back to this when it is begun anew."""
_CACHE_KIB = 4096
"""Page cache of one connection. Small, because the operating system's cache is behind it."""
_STATEMENTS_KEPT = 64
"""Prepared statements that one connection keeps."""

_IN_THE_WAY = (apsw.BusyError, apsw.ProtocolError)
"""Another process holds a lock: a transaction, or the recovery of the WAL."""
_PASSING = (
    *_IN_THE_WAY,
    apsw.LockedError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.NoMemError,
)

_NOT_WRITABLE = "it is not writable (check its owner and mode, and whether its filesystem is mounted read-only)"
_UNDER_A_FILE = "a part of its path is a file, not a directory"
_STARTUP_REASONS = {
    errno.EACCES: _NOT_WRITABLE,
    errno.EPERM: _NOT_WRITABLE,
    errno.EROFS: "its filesystem is mounted read-only",
    errno.ENOSPC: "there is no space left on its disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOTDIR: _UNDER_A_FILE,
    errno.EEXIST: _UNDER_A_FILE,
    errno.EISDIR: "it is a directory",
}
_STARTUP_REASONS_OF_SQLITE = (
    (apsw.FullError, _STARTUP_REASONS[errno.ENOSPC]),
    ((apsw.ReadOnlyError, apsw.PermissionsError), _NOT_WRITABLE),
    (apsw.NotADBError, "the file is not a database"),
    (apsw.CorruptError, "the file is damaged"),
    (_IN_THE_WAY, "another process keeps it locked"),
    ((apsw.CantOpenError, apsw.IOError), "its disk is full or failing, or its directory is not writable"),
)

_creation = threading.Lock()
"""Held while a database file is created: closing a descriptor drops every POSIX lock that this process has on the
file, so no other thread may have a connection to it yet."""

_Work = Callable[[Connection], Any]
_Operation = tuple["asyncio.Future[Any]", _Work, int]
_Outcome = tuple["asyncio.Future[Any]", Any, Exception | None]
_Accepted = SimpleQueue[_Operation | None]
"""Operations in the order of their calls; None is the last one."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database file holds."""

    application_id: int
    """Marks the file as this kind of file: a signed 32-bit number, other than 0."""
    name: str
    """What people and metrics call the database."""
    migrations: tuple[str, ...]
    """SQL scripts, only ever appended to; each runs in a transaction. ``PRAGMA user_version`` counts those applied."""


class Database:
    """An open database file. Used from the event loop that opened it."""

    def __init__(self, file: "_File", limits: Limits, clock: Clock, readers: int) -> None:
        self._file = file
        self._limits = limits
        self._clock = clock
        self._readers = readers
        self._name = file.schema.name
        self._queue_max = limits.database_queue_max
        self._loop = asyncio.get_running_loop()
        self._writes: _Accepted = SimpleQueue()
        self._reads: _Accepted = SimpleQueue()
        self._waiting = 0
        self._closed = False
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
        database = cls(_File(path, schema), limits, clock, readers)
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

    async def _accept(self, accepted: _Accepted, work: Callable[[Connection], T], weight: int) -> T:
        if self._closed:
            raise Unavailable(f"the {self._name} database is closed")
        if self._waiting >= self._queue_max:
            raise Busy(f"too many operations are waiting for the {self._name} database")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting += 1
        accepted.put((future, work, weight))
        return await future

    def _deliver(self, outcomes: list[_Outcome]) -> None:
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
        shared = _Shared(self._file, self._clock, self._limits, self._post_outcomes)
        writer = _Writer(shared, self._writes, self._batch_operations)
        readers = [_Reader(shared, self._reads, self._readers) for _ in range(self._readers)]
        threads: list[threading.Thread] = []
        try:
            self._open_sessions(writer, readers)
            for reader in readers:
                thread = threading.Thread(target=reader.run, name=f"{self._name} reader", daemon=True)
                thread.start()
                threads.append(thread)
        except Exception as error:  # noqa: BLE001  # because whoever opens the database gets it
            self._post(self._report_opened, error)
            for _ in threads:
                self._reads.put(None)
        else:
            self._post(self._report_opened, None)
            writer.run()
        for thread in threads:
            thread.join()
        for session in (*readers, writer):
            session.disconnect()
        self._post(self._ended.set)

    def _open_sessions(self, writer: "_Writer", readers: list["_Reader"]) -> None:
        deadline = _Deadline(self._clock, self._limits.database_lock_wait_seconds_max)
        with self._file.startup_errors():
            self._file.create()
            connection = deadline.patiently(writer.connect)
            deadline.patiently(lambda: self._file.migrate(connection))
            for reader in readers:
                deadline.patiently(reader.connect)

    def _post_outcomes(self, outcomes: list[_Outcome]) -> None:
        self._post(self._deliver, outcomes)

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return  # the loop was closed before the database: nobody is left to be told


class _Deadline:
    """How long to wait for other processes. Counts the polls too, so that a clock that stands still has an end."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds
        self._polls = int(seconds / _LOCK_POLL_SECONDS)

    def wait(self) -> bool:
        """Wait for one poll and return True, or return False at once when the time is over."""
        if self._polls <= 0 or self._clock.monotonic() >= self._end:
            return False
        self._polls -= 1
        threading.Event().wait(_LOCK_POLL_SECONDS)
        return True

    def patiently(self, action: Callable[[], T]) -> T:
        """Return what ``action`` returns, repeating it while another process is in its way."""
        while True:
            try:
                return action()
            except _IN_THE_WAY:
                if not self.wait():
                    raise


@dataclass(frozen=True, slots=True)
class _Shared:
    """What writer and readers have in common."""

    file: "_File"
    clock: Clock
    limits: Limits
    deliver: Callable[[list[_Outcome]], None]


class _Session:
    """A connection of one thread, replaced when it is in doubt, and the queue that the thread serves."""

    def __init__(self, shared: _Shared, accepted: _Accepted) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._deliver = shared.deliver
        self._accepted = accepted
        self._connection: Connection | None = None

    def connect(self) -> Connection:
        """The connection, opened if there is none."""
        if self._connection is None:
            self._connection = self._shared.file.connect()
        return self._connection

    def disconnect(self) -> None:
        """Close the connection and every cursor on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(force=True)

    def _deadline(self) -> _Deadline:
        return _Deadline(self._shared.clock, self._limits.database_lock_wait_seconds_max)

    def _end_transaction(self, statement: str) -> None:
        """Leave no transaction behind: one that a forgotten cursor keeps open would freeze what later works see."""
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute(statement)
            ended = connection.txn_state() == apsw.SQLITE_TXN_NONE
        except apsw.Error:
            ended = False
        if not ended:
            self.disconnect()


class _Writer(_Session):
    """Runs writes, as many as wait, in one transaction."""

    def __init__(self, shared: _Shared, accepted: _Accepted, batch_operations: Histogram) -> None:
        super().__init__(shared, accepted)
        self._batch_operations = batch_operations
        self._wal_pages = 0
        self._wal_pages_checkpointed = 0

    def connect(self) -> Connection:
        if self._connection is None:
            super().connect().set_wal_hook(self._note_wal_pages)
        return super().connect()

    def run(self) -> None:
        """Serve the queue until its end, then checkpoint, if nobody is in the way."""
        more = True
        while more:
            batch, more = self._next_batch()
            if batch:
                self._deliver(self._commit(batch, self._deadline()))
                self._checkpoint_if_due()
        self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def _next_batch(self) -> tuple[list[_Operation], bool]:
        batch: list[_Operation] = []
        weight = 0
        operation = self._accepted.get()
        while operation is not None:
            batch.append(operation)
            weight += operation[2]
            full = len(batch) >= self._limits.database_batch_max or weight >= self._limits.database_batch_bytes_max
            if full or self._accepted.empty():  # nobody else takes from this queue
                return batch, True
            operation = self._accepted.get()
        return batch, False

    def _commit(self, batch: list[_Operation], deadline: _Deadline, *, room_made: bool = False) -> list[_Outcome]:
        """Run the batch in one transaction. If that fails before the commit, run each operation in its own."""
        committing = False
        try:
            connection = deadline.patiently(self._begin)
            outcomes: list[_Outcome] = [(future, work(connection), None) for future, work, _ in batch]
            committing = True
            connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001  # because each caller gets its own error, whatever it is
            failure = _translated(error, committing=committing)
            self._end_transaction("ROLLBACK")
        else:
            self._end_transaction("ROLLBACK")
            self._batch_operations.observe(len(batch))
            return outcomes
        if committing and isinstance(failure, OutcomeUnknown):  # running it again could do it twice
            return [(future, None, OutcomeUnknown(str(failure))) for future, _, _ in batch]
        full = isinstance(failure, StorageFull)
        if full and not room_made:  # a checkpoint lets the WAL be overwritten from its beginning
            self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
        elif len(batch) == 1:
            return [(batch[0][0], None, failure)]
        return [outcome for each in batch for outcome in self._commit([each], deadline, room_made=room_made or full)]

    def _begin(self) -> Connection:
        connection = self.connect()
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def _note_wal_pages(self, _connection: Connection, _name: str, pages: int) -> int:
        if pages < self._wal_pages:  # it was begun anew
            self._wal_pages_checkpointed = 0
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint_if_due(self) -> None:
        due_pages = self._limits.database_checkpoint_bytes // _PAGE_BYTES
        if self._wal_pages - self._wal_pages_checkpointed < due_pages:
            return
        self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
        if self._wal_pages >= _WAL_CHECKPOINTS_MAX * due_pages:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_RESTART)
        self._wal_pages_checkpointed = self._wal_pages

    def _checkpoint(self, mode: int) -> None:
        """Copy the WAL into the file, as far as can be: what cannot be copied now is copied later, and is safe."""
        seconds = 0.0 if mode == apsw.SQLITE_CHECKPOINT_PASSIVE else _CHECKPOINT_WAIT_SECONDS
        try:
            connection = self.connect()
            _Deadline(self._shared.clock, seconds).patiently(lambda: connection.wal_checkpoint(mode=mode))
        except apsw.Error:
            return  # a reader, another process, or a full disk; trouble that lasts shows in the writes themselves


class _Reader(_Session):
    """Runs reads: a few at a time share one snapshot, which is newer than all their calls."""

    def __init__(self, shared: _Shared, accepted: _Accepted, readers: int) -> None:
        super().__init__(shared, accepted)
        self._readers = readers

    def connect(self) -> Connection:
        if self._connection is None:
            super().connect().pragma("query_only", True)
        return super().connect()

    def run(self) -> None:
        """Serve the queue until its end."""
        more = True
        while more:
            batch, more = self._next_batch()
            if batch:
                self._deliver(self._answer(batch))

    def _next_batch(self) -> tuple[list[_Operation], bool]:
        operation = self._accepted.get()
        if operation is None:
            return [], False
        batch = [operation]
        try:
            for _ in range(self._accepted.qsize() // self._readers):  # the other readers get their share
                operation = self._accepted.get_nowait()
                if operation is None:
                    return batch, False
                batch.append(operation)
        except Empty:  # another reader was faster
            return batch, True
        return batch, True

    def _answer(self, batch: list[_Operation]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        for future, work, _ in batch:
            try:
                outcomes.append((future, self._read(work), None))
            except BaseException as error:  # noqa: BLE001  # because each caller gets its own error, whatever it is
                outcomes.append((future, None, _translated(error, committing=False)))
                self._end_transaction("ROLLBACK")
        self._end_transaction("COMMIT")
        return outcomes

    def _read(self, work: _Work) -> Any:
        try:
            return self._read_once(work)
        except _IN_THE_WAY:
            self._end_transaction("ROLLBACK")
        return self._deadline().patiently(lambda: self._read_once(work))

    def _read_once(self, work: _Work) -> Any:
        connection = self.connect()
        if not connection.in_transaction:
            connection.execute("BEGIN")
        return work(connection)


class _File:
    """A database file: its creation, its connections, its schema."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.schema = schema
        self._path = path.absolute()

    def create(self) -> None:
        """Make the file, readable and writable for the owner alone, and its directories, unless they are there."""
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _make_directory(self._path.parent)
        with _creation:
            try:
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                if os.statvfs(self._path).f_flag & os.ST_RDONLY:  # SQLite would say less
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS)) from None
                return
        _sync_directory(self._path.parent)

    def connect(self) -> Connection:
        """A new connection. May be used in any one thread at a time."""
        connection = apsw.Connection(
            str(self._path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=_STATEMENTS_KEPT
        )
        try:
            connection.set_busy_timeout(0)
            connection.wal_autocheckpoint(0)  # the writer checkpoints when its callers have their answers
            connection.pragma("synchronous", "FULL")
            connection.pragma("journal_size_limit", _WAL_BYTES_KEPT)
            connection.pragma("page_size", _PAGE_BYTES)
            connection.pragma("cache_size", -_CACHE_KIB)
        except BaseException:
            connection.close(force=True)
            raise
        return connection

    def migrate(self, connection: Connection) -> None:
        """Check that the file is ours, then bring it to this release's schema. Safe to repeat, from any process."""
        if connection.readonly("main"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        with connection:
            applied = self._migrations_applied(connection)
        if connection.pragma("journal_mode", "WAL") != "wal":
            raise StartupError(
                f"{self} cannot be opened: its filesystem does not offer shared memory, which SQLite needs"
            )
        for _ in range(applied, len(self.schema.migrations)):
            self._apply_next_migration(connection)

    def _apply_next_migration(self, connection: Connection) -> None:
        """Apply one migration, unless another process was faster and has applied the last."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            applied = self._migrations_applied(connection)
            if applied < len(self.schema.migrations):
                for _ in connection.execute(self.schema.migrations[applied]):
                    continue
                connection.pragma("application_id", self.schema.application_id)
                connection.pragma("user_version", applied + 1)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _migrations_applied(self, connection: Connection) -> int:
        application_id = connection.pragma("application_id")
        applied = connection.pragma("user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if application_id != self.schema.application_id and (application_id, applied, tables) != (0, 0, 0):
            raise StartupError(f"{self} cannot be opened: the file is something else (application id {application_id})")
        if applied > len(self.schema.migrations):
            raise StartupError(
                f"{self} cannot be opened: a newer release has written it "
                f"(schema {applied}, this release knows {len(self.schema.migrations)})"
            )
        return int(applied)

    def __str__(self) -> str:
        return f"the {self.schema.name} database {self._path}"

    @contextmanager
    def startup_errors(self) -> Iterator[None]:
        """Turn what goes wrong while opening into a `StartupError` with a sentence for the operator."""
        try:
            yield
        except (OSError, ValueError, apsw.Error) as error:
            raise StartupError(f"{self} cannot be opened: {_startup_reason(error)}") from error


def _startup_reason(error: OSError | ValueError | apsw.Error) -> str:
    if isinstance(error, OSError):
        return _STARTUP_REASONS.get(error.errno or 0, str(error))
    for kinds, reason in _STARTUP_REASONS_OF_SQLITE:
        if isinstance(error, kinds):
            return reason
    return str(error)


def _make_directory(path: Path) -> None:
    """Make ``path`` and its missing parents, for the owner alone, durably."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(0o700, exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: BaseException, *, committing: bool) -> Exception:
    """The error of ours for what a transaction raised: while it ran, or when it was to be committed."""
    ours: Exception
    match error:
        case apsw.FullError():
            ours = StorageFull("the database's disk is full")
        case apsw.CorruptError() | apsw.NotADBError():
            ours = Broken(f"the database is damaged: {error}")
        case apsw.Error() if committing and not isinstance(error, _IN_THE_WAY):
            ours = OutcomeUnknown(f"the database failed while it committed: {error}")
        case apsw.BusyError() | apsw.ProtocolError():
            ours = Unavailable("another process keeps the database locked")
        case _ if isinstance(error, _PASSING):
            ours = Unavailable(f"the database cannot be used now: {error}")
        case apsw.Error():
            ours = Broken(f"the database refused an operation: {type(error).__name__}: {error}")
        case Exception() if not isinstance(error, StopIteration):  # which a future cannot carry
            return error
        case _:
            ours = Broken(f"a database operation raised {error!r}")
    ours.__cause__ = error
    return ours
