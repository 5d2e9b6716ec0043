"""Where a server keeps its metrics and the use of its limits: one process in its memory, several in a shared directory.

In the directory every process counts in files of its own, which it maps into memory, and whichever is scraped adds all
of them up.

Guarantees: the choice is made before the metrics are first imported, here or in a worker, which inherits it. The files
have all their blocks before they are mapped: a process that writes into a hole of a mapped file on a full disk is
killed (SIGBUS), so the disk is asked at the start, where it can still say no. What a server leaves that was killed with
-9 is removed by the next one to start.

Does not: help where blocks that a file has are not overwritten in place (btrfs, ZFS); there ``TMPDIR`` has to be on
another filesystem, or on a disk that does not fill up.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tierstore.admission.buckets import BucketTable
from tierstore.errors import StartupError
from tierstore.idsource import SystemIds
from tierstore.invariants import invariant
from tierstore.limits import KIB

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_VARIABLES: Final = (VARIABLE, VARIABLE.lower())
"""The metrics library takes either."""

_METRICS_PREFIX = "tierstore-metrics-"
_METRICS_ATTEMPTS_MAX = 16

_FILE_BYTES_BY_KIND: Final = {"counter": 512 * KIB, "histogram": 512 * KIB, "gauge_livesum": 64 * KIB}
"""Much more than our metrics fill, whatever their labels. The library would enlarge a full file, but with a hole."""
_LIVE_KINDS: Final = ("gauge_livesum",)
"""What they count ends with their process."""
_BUCKETS_NAME = "rate-limits"
_USED_BYTES = struct.Struct("i")
"""How a file of the library begins: how many of its bytes are in use, these included; 0 in a new one."""


@contextlib.contextmanager
def metrics_in_memory() -> Iterator[None]:
    """Let this process, the only one of its server, keep its metrics in its memory, whatever its environment says."""
    invariant("prometheus_client" not in sys.modules, "where metrics are kept is chosen before they are imported")
    for variable in _VARIABLES:
        os.environ.pop(variable, None)
    with contextlib.suppress(OSError):  # without a directory for temporary files there is nothing to remove
        _remove_abandoned_directories()
    yield


@contextlib.contextmanager
def metrics_directory() -> Iterator[None]:
    """Make a directory in which the processes of this server share their metrics; remove it at the end.

    It is locked while this process lives, so that what a killed one has left can be told and removed by the next.
    Every worker has to call `allocate_metrics`; it is done for this process. Raises `StartupError`.
    """
    try:
        _remove_abandoned_directories()
        directory, lock = _make_locked_directory()
    except OSError as error:
        raise StartupError(f"no temporary directory for the metrics: {error}; set TMPDIR to a writable one") from error
    os.environ[VARIABLE] = directory
    try:
        allocate_metrics()
        _allocate_buckets(Path(directory))
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def allocate_metrics() -> None:
    """Make the files that this process counts in, with all their blocks. To be called before metrics are imported.

    Raises `StartupError` when there is no room for them.
    """
    invariant("prometheus_client" not in sys.modules, "the files of the metrics are made before they are used")
    directory = Path(os.environ[VARIABLE])
    for kind, size in _FILE_BYTES_BY_KIND.items():
        try:
            _allocate(_metrics_file(directory, kind, os.getpid()), size)
        except OSError as error:
            raise StartupError(
                f"no room for the metrics in {directory.parent}: {error.strerror}; "
                "make room, or set TMPDIR to a directory elsewhere"
            ) from error


def _allocate_buckets(directory: Path) -> None:
    try:
        BucketTable.create(directory / _BUCKETS_NAME, SystemIds().version())
    except OSError as error:
        raise StartupError(
            f"no room for the use of the limits in {directory.parent}: {error.strerror}; "
            "make room, or set TMPDIR to a directory elsewhere"
        ) from error


def open_buckets(note_apart: Callable[[], None]) -> BucketTable:
    """The token buckets of this server: those that its processes share, or, of a single one, in its memory.

    ``note_apart`` as for `BucketTable.shared`. To be closed. Raises `StartupError`.
    """
    if VARIABLE not in os.environ:
        return BucketTable.private(SystemIds().version())
    file = Path(os.environ[VARIABLE], _BUCKETS_NAME)
    try:
        return BucketTable.shared(file, note_apart)
    except (OSError, ValueError) as error:
        raise StartupError(f"the use of the limits, {file}, cannot be shared: {error}") from error


def retire_metrics(pid: int) -> None:
    """Keep what a process that has ended has counted, in as many bytes as it takes, and forget what it was doing."""
    directory = Path(os.environ[VARIABLE])
    for kind in _FILE_BYTES_BY_KIND:
        file = _metrics_file(directory, kind, pid)
        with contextlib.suppress(OSError):  # it was never made, or stays as large as it is
            with file.open("rb") as opened:
                (used,) = _USED_BYTES.unpack(opened.read(_USED_BYTES.size))
            if used == 0 or kind in _LIVE_KINDS:
                file.unlink()
            else:
                os.truncate(file, used)


def _metrics_file(directory: Path, kind: str, pid: int) -> Path:
    """The name is the library's."""
    return directory / f"{kind}_{pid}.db"


def _allocate(file: Path, size: int) -> None:
    # A scrape reads all files, and cannot read an empty one: a new one gets its name when it is ready. One that is
    # there was left by a process that had the same id, and its counts go on.
    growing = file if file.exists() else file.with_suffix(".new")
    descriptor = os.open(growing, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        if growing != file:
            growing.unlink()
        raise
    finally:
        os.close(descriptor)
    growing.rename(file)


def _make_locked_directory() -> tuple[str, int]:
    for _ in range(_METRICS_ATTEMPTS_MAX):
        directory = tempfile.mkdtemp(prefix=_METRICS_PREFIX)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another process took it for abandoned
            lock = _locked(Path(directory))
            if Path(directory).exists():
                return directory, lock
            os.close(lock)
    raise FileNotFoundError(errno.ENOENT, "other processes keep removing it")


def _remove_abandoned_directories() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_METRICS_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or another user's
            lock = _locked(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)


def _locked(directory: Path) -> int:
    """A descriptor of ``directory`` that holds its lock. Raises `OSError` if another process does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
