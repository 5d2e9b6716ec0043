"""The file of an embedded database: its creation, its connections, its schema, and its errors in our words.

Guarantees: the file and its directories are for their owner alone, and durable once made; every connection syncs what
it commits; several processes may create and migrate one file at the same time; what goes wrong while it is opened is a
`StartupError` with a sentence for the operator, and later one of our errors. The driver's errors stop here.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import apsw

from tierstore.embedded.directories import sync_directory, sync_name_of
from tierstore.errors import Broken, OutcomeUnknown, StartupError, StorageFull, Unavailable
from tierstore.limits import MIB

Connection = apsw.Connection
"""What a work is given. Re-exported, so that a backend need not import the driver."""

PAGE_BYTES = 4096
_WAL_BYTES_KEPT = 64 * MIB
"""A longer WAL file is cut back to this when it is begun anew."""
_AMPLE_BYTES = 1024 * MIB
"""Free space beyond which nobody counts what the WAL still has to write: it is never so long."""
_CACHE_KIB = 4096
"""Page cache of one connection. Small, because the operating system's cache is behind it."""
_STATEMENTS_KEPT = 64
"""Prepared statements that one connection keeps."""

IN_THE_WAY = (apsw.BusyError, apsw.ProtocolError)
"""Another process holds a lock: a transaction, or the recovery of the WAL."""
_PASSING = (
    *IN_THE_WAY,
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
    (IN_THE_WAY, "another process keeps it locked"),
    ((apsw.CantOpenError, apsw.IOError), "its disk is full or failing, or its directory is not writable"),
)

_creation = threading.Lock()
"""Held while a database file is created: closing a descriptor drops every POSIX lock that this process has on the
file, so no other thread may have a connection to it yet."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database file holds."""

    application_id: int
    """Marks the file as this kind of file: a signed 32-bit number, other than 0."""
    name: str
    """What people and metrics call the database."""
    migrations: tuple[str, ...]
    """SQL scripts, only ever appended to; each runs in a transaction. ``PRAGMA user_version`` counts those applied."""


class DatabaseFile:
    """A database file: its creation, its connections, its schema."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.schema = schema
        self._path = path.absolute()
        self._path_text = str(self._path)

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
        sync_directory(self._path.parent)

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
            connection.pragma("page_size", PAGE_BYTES)
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

    def make_durable(self) -> None:
        """Sync what earlier processes have left, once a connection has read it. Safe to repeat, from any process.

        One that was killed between writing and syncing leaves transactions, and names, that are seen by the next one:
        it finds nothing to do when a client tries again, says so, and a crash of the machine would take it back.
        SQLite has no lock on the WAL's file, so none is dropped when the descriptor is closed.
        """
        with suppress(FileNotFoundError):
            _sync_file(Path(f"{self._path_text}-wal"))
        sync_directory(self._path.parent)
        sync_name_of(self._path.parent)

    def has_room(self, connection: Connection, size: int, reserve_bytes: int) -> bool:
        """Whether ``size`` more bytes leave the reserve free on the file's disk. Within a transaction.

        What they need is counted twice: pages are written to the WAL, and then to the file. So are the pages that the
        file is short of, because they are in the WAL or still to be committed: copying them must stay possible. Pages
        that are free within the file make it no longer; then half of the reserve is enough, for the WAL.
        """
        space = os.statvfs(self._path_text)
        free = space.f_bavail * space.f_frsize
        if free >= _AMPLE_BYTES + reserve_bytes + 2 * size:
            return True
        short = max(0, _count(connection, "PRAGMA page_count") * PAGE_BYTES - self._path.stat().st_size)
        spare = free - 2 * short
        if spare >= reserve_bytes + 2 * size:
            return True
        return spare >= reserve_bytes // 2 and _count(connection, "PRAGMA freelist_count") * PAGE_BYTES >= 2 * size

    def __str__(self) -> str:
        return f"the {self.schema.name} database {self._path}"

    @contextmanager
    def startup_errors(self) -> Iterator[None]:
        """Turn what goes wrong while opening into a `StartupError` with a sentence for the operator."""
        try:
            yield
        except (OSError, ValueError, apsw.Error) as error:
            raise StartupError(f"{self} cannot be opened: {_startup_reason(error)}") from error


def _count(connection: Connection, statement: str) -> int:
    return int(str(connection.execute(statement).get))


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
    sync_directory(path.parent)


def translated(error: BaseException, *, committing: bool) -> Exception:
    """The error of ours for what a transaction raised: while it ran, or when it was to be committed."""
    ours: Exception
    match error:
        case apsw.FullError():
            ours = StorageFull("the database's disk is full")
        case apsw.CorruptError() | apsw.NotADBError():
            ours = Broken(f"the database is damaged: {error}")
        case apsw.Error() if committing and not isinstance(error, IN_THE_WAY):
            ours = OutcomeUnknown("the database failed while it committed")
        case apsw.BusyError() | apsw.ProtocolError():
            ours = Unavailable("another process keeps the database locked")
        case _ if isinstance(error, _PASSING):
            ours = Unavailable("the database cannot be used now")
        case apsw.Error():
            ours = Broken(f"the database refused an operation: {type(error).__name__}: {error}")
        case Exception() if not isinstance(error, StopIteration):  # which a future cannot carry
            return error
        case _:
            ours = Broken(f"a database operation raised {error!r}")
    ours.__cause__ = error
    return ours


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
