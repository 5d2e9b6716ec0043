"""Reading and writing whole ranges of files. Blocking; no threads of its own.

Guarantees: what returns has read or written all that it was asked to, however few bytes the kernel took at a time; no
symbolic link is followed, and no descriptor reaches a child process.
"""

import errno
import itertools
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

_BUFFERS_MAX = 1024
"""Buffers of one gathering write (``IOV_MAX`` on Linux, macOS and the BSDs)."""
_FILE_MODE = 0o600


def open_to_read(file: Path) -> int:
    """A descriptor of a file that exists."""
    return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def create(file: Path) -> int:
    """A descriptor of a new file, to write."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)


def write_new(file: Path, content: Sequence[bytes]) -> None:
    """Write a new file and sync what it holds, not its name."""
    fd = create(file)
    try:
        write_all(fd, content, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, chunks: Sequence[bytes], offset: int) -> int:
    """Write all of ``chunks`` at ``offset``, however few bytes a call takes; return the offset behind them."""
    left: deque[bytes | memoryview] = deque(chunks)
    while left:
        written = os.pwritev(fd, list(itertools.islice(left, _BUFFERS_MAX)), offset)
        if written == 0 and any(left):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = memoryview(left[0])[written:]
    return offset


def read_exactly(fd: int, size: int, offset: int) -> bytes | None:
    """``size`` bytes from ``offset``, or None if the file ends before."""
    chunk = os.pread(fd, size, offset)
    while len(chunk) < size:
        more = os.pread(fd, size - len(chunk), offset + len(chunk))
        if not more:
            return None
        chunk += more
    return chunk


def is_same_file(status: os.stat_result, path: Path) -> bool:
    """Whether ``path`` names the file or directory that has ``status``."""
    try:
        return os.path.samestat(status, path.lstat())
    except FileNotFoundError:
        return False
