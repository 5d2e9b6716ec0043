"""The threads of an embedded database: one writer that shares commits, readers that share snapshots.

Each serves a queue of operations (a future, a work, its weight) with a connection of its own, replaces that connection
when it is in doubt, and hands the outcomes of a batch over together. Blocking; never on the event loop.

An error that nobody foresaw ends a batch, not the thread: its operations fail, the error is logged, the connection is
replaced.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import apsw
import structlog
from prometheus_client import Histogram

from tierstore.clock import Clock
from tierstore.embedded.database_file import IN_THE_WAY, PAGE_BYTES, Connection, DatabaseFile, translated
from tierstore.errors import Broken, OutcomeUnknown, StorageFull
from tierstore.limits import Limits

log = structlog.get_logger(__name__)

T = TypeVar("T")

_LOCK_POLL_SECONDS = 0.0005
_WAL_CHECKPOINTS_MAX = 8
"""Checkpoints after which a WAL that readers kept from being begun anew, by always overlapping, waits for a gap."""
_CHECKPOINT_WAIT_SECONDS = 0.1

Work = Callable[[Connection], Any]
Operation = tuple["asyncio.Future[Any]", Work, int]
Outcome = tuple["asyncio.Future[Any]", Any, Exception | None]
Accepted = SimpleQueue[Operation | None]
"""Operations in the order of their calls; None is the last one."""


class Deadline:
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
            except IN_THE_WAY:
                if not self.wait():
                    raise


@dataclass(frozen=True, slots=True)
class Shared:
    """What writer and readers have in common."""

    file: DatabaseFile
    clock: Clock
    limits: Limits
    deliver: Callable[[list[Outcome]], None]


class Session(ABC):
    """A connection of one thread, replaced when it is in doubt, and the queue that the thread serves."""

    def __init__(self, shared: Shared, accepted: Accepted) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._deliver = shared.deliver
        self._connection: Connection | None = None
        self._committing = False
        """Whether some operation in hand may have been committed."""
        self.accepted = accepted
        self.in_hand: list[Operation] = []
        """Operations that were taken from the queue and have no outcome yet."""

    def run(self) -> None:
        """Serve the queue until its end. Raises only when not even the failure of a batch can be told."""
        more = True
        while more:
            more = self._next_batch()
            if self.in_hand:
                self._serve(self.in_hand)
                self.in_hand = []

    @abstractmethod
    def _next_batch(self) -> bool:
        """Wait for operations, and take some of them in hand. Returns whether there will be more."""

    @abstractmethod
    def _outcomes(self, batch: list[Operation]) -> list[Outcome]:
        """Run the operations of a batch."""

    @abstractmethod
    def _look_after(self) -> None:
        """Do what can be done when the outcomes of a batch have been delivered."""

    def _serve(self, batch: list[Operation]) -> None:
        self._committing = False
        try:
            self._deliver(self._outcomes(batch))
        except BaseException as error:  # noqa: BLE001  # because the next batch may fare better
            self._note("a batch of operations failed", error)
            self._deliver([(future, None, self.failure()) for future, _, _ in batch])
        try:
            self._look_after()
        except BaseException as error:  # noqa: BLE001  # because everybody has had their answer
            self._note("a checkpoint failed", error)

    def failure(self) -> Exception:
        """What an operation in hand fails with when nothing better is known."""
        text = "the database failed in a way that was not foreseen"
        return OutcomeUnknown(text) if self._committing else Broken(text)

    def _note(self, event: str, error: BaseException) -> None:
        """Log what was not foreseen, if that can be done, and have the next operation begin with a new connection."""
        with suppress(Exception):
            log.error(event, database=self._shared.file.schema.name, exc_info=error)
        with suppress(Exception):
            self.disconnect()

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

    def _deadline(self) -> Deadline:
        return Deadline(self._shared.clock, self._limits.database_lock_wait_seconds_max)

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


class Writer(Session):
    """Runs writes, as many as wait, in one transaction."""

    def __init__(self, shared: Shared, accepted: Accepted, batch_operations: Histogram) -> None:
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
        super().run()
        self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def _next_batch(self) -> bool:
        batch = self.in_hand
        weight = 0
        operation = self.accepted.get()
        while operation is not None:
            batch.append(operation)
            weight += operation[2]
            full = len(batch) >= self._limits.database_batch_max or weight >= self._limits.database_batch_bytes_max
            if full or self.accepted.empty():  # nobody else takes from this queue
                return True
            operation = self.accepted.get()
        return False

    def _outcomes(self, batch: list[Operation]) -> list[Outcome]:
        return self._commit(batch, self._deadline())

    def _look_after(self) -> None:
        self._checkpoint_if_due()

    def _commit(self, batch: list[Operation], deadline: Deadline, *, room_made: bool = False) -> list[Outcome]:
        """Run the batch in one transaction. If that fails before the commit, run each operation in its own."""
        committing = False
        try:
            connection = deadline.patiently(self._begin)
            outcomes: list[Outcome] = [(future, work(connection), None) for future, work, _ in batch]
            committing = self._committing = True
            connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001  # because each caller gets its own error, whatever it is
            failure = translated(error, committing=committing)
            # A work that found too little room gets what the WAL takes; on a full disk, the WAL keeps what it has.
            mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if failure is error else apsw.SQLITE_CHECKPOINT_PASSIVE
            self._end_transaction("ROLLBACK")
        else:
            self._end_transaction("ROLLBACK")
            self._batch_operations.observe(len(batch))
            return outcomes
        if committing and isinstance(failure, OutcomeUnknown):  # running it again could do it twice
            return [(future, None, OutcomeUnknown(str(failure))) for future, _, _ in batch]
        full = isinstance(failure, StorageFull)
        if full and not room_made:  # a checkpoint lets the WAL be overwritten from its beginning
            self._checkpoint(mode)
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
        due_pages = self._limits.database_checkpoint_bytes // PAGE_BYTES
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
            Deadline(self._shared.clock, seconds).patiently(lambda: connection.wal_checkpoint(mode=mode))
        except apsw.Error:
            return  # a reader, another process, or a full disk; trouble that lasts shows in the writes themselves


class Reader(Session):
    """Runs reads: a few at a time share one snapshot, which is newer than all their calls."""

    def __init__(self, shared: Shared, accepted: Accepted, readers: int) -> None:
        super().__init__(shared, accepted)
        self._readers = readers

    def connect(self) -> Connection:
        if self._connection is None:
            super().connect().pragma("query_only", True)
        return super().connect()

    def _next_batch(self) -> bool:
        operation = self.accepted.get()
        if operation is None:
            return False
        self.in_hand.append(operation)
        share = self.accepted.qsize() // self._readers  # the other readers get theirs
        try:
            for _ in range(min(share, self._limits.database_read_batch_max - 1)):
                operation = self.accepted.get_nowait()
                if operation is None:
                    return False
                self.in_hand.append(operation)
        except Empty:  # another reader was faster
            return True
        return True

    def _outcomes(self, batch: list[Operation]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for future, work, _ in batch:
            try:
                outcomes.append((future, self._read(work), None))
            except BaseException as error:  # noqa: BLE001  # because each caller gets its own error, whatever it is
                outcomes.append((future, None, translated(error, committing=False)))
                self._end_transaction("ROLLBACK")
        self._end_transaction("COMMIT")
        return outcomes

    def _look_after(self) -> None:
        """Nothing is left to do: the snapshot ended before its outcomes were delivered."""

    def _read(self, work: Work) -> Any:
        try:
            return self._read_once(work)
        except IN_THE_WAY:
            self._end_transaction("ROLLBACK")
        return self._deadline().patiently(lambda: self._read_once(work))

    def _read_once(self, work: Work) -> Any:
        connection = self.connect()
        if not connection.in_transaction:
            connection.execute("BEGIN")
        return work(connection)
