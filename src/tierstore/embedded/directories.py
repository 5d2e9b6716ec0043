"""Directories whose names must survive a loss of power.

fsync(2): syncing a file does not sync its directory entry; that takes a sync of the directory.
"""

import errno
import os
from pathlib import Path

_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS, errno.ENOTSUP})
"""What a directory above our own may answer to a sync: we may not read it, or its filesystem has nothing to sync."""


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_name_of(directory: Path) -> None:
    """Make the name of ``directory`` itself durable, where the one above it can be synced.

    It may belong to another user, or to another filesystem: a volume that is mounted into a read-only image has its
    name in that image.
    """
    try:
        sync_directory(directory.parent)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
