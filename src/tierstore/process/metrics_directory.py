"""The directory in which the processes of one server share their metrics.

Guarantees: ``PROMETHEUS_MULTIPROC_DIR`` is set before the metrics are first imported, here or in a worker, which
inherits it. What a server leaves that was killed with -9 is removed by the next one to start.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tierstore.errors import StartupError
from tierstore.invariants import invariant

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

_METRICS_PREFIX = "tierstore-metrics-"
_METRICS_ATTEMPTS_MAX = 16


@contextlib.contextmanager
def metrics_directory() -> Iterator[None]:
    """Make a directory in which the processes of this server share their metrics; remove it at the end.

    It is locked while this process lives, so that what a killed one has left can be told and removed by the next.
    """
    invariant("prometheus_client" not in sys.modules, "the metrics directory is set before the metrics are imported")
    try:
        _remove_abandoned_directories()
        directory, lock = _make_locked_directory()
    except OSError as error:
        raise StartupError(f"no temporary directory for the metrics: {error}; set TMPDIR to a writable one") from error
    os.environ[VARIABLE] = directory
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


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


def remove_metrics_directory() -> None:
    """Remove it now, for a process that ends without unwinding."""
    shutil.rmtree(os.environ[VARIABLE], ignore_errors=True)
