"""The directory of a filesystem store: where its files are, and who may remove what. Blocking; POSIX only.

::

    {root}/format                     the layout's version
    {root}/lock                       held while an instance's directory is made or collected
    {root}/blobs/{xyz}/{uuid}.blob    xyz: the last three hex digits of the revision's UUID
    {root}/tmp/{instance}/lock        held for as long as the instance lives
    {root}/tmp/{instance}/{n}         a blob that is being written

File names are made of UUIDs and counters alone, so no key of a user is ever part of one. The last digits are random
in every version of UUID that we draw (UUIDv7 begins with the time), and spread blobs evenly over 4,096 directories:
ten million blobs are 2,400 a directory, and a small store does not pay for tens of thousands of directories.

Guarantees: what crashed instances left in ``tmp`` can be told from what living ones need by their locks (``flock``),
which the kernel releases with the process, however it ends; no clock is asked. Does not: work on a filesystem without
``flock`` or atomic ``rename``, which are those that are not local.
"""

import fcntl
import itertools
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import structlog

from tierstore.errors import StartupError, StorageFull

log = structlog.get_logger(__name__)

_FORMAT = "tierstore long-term filesystem 1\n"
_FORMAT_BYTES_MAX = 1024
_LEAF_DIGITS = 3
_LEAF = re.compile(r"[0-9a-f]{3}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BLOB_SUFFIX = ".blob"
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


class StoreDirectory:
    """One process's hold on a store's directory. Its methods may be called from several threads at once."""

    def __init__(self, root: Path, instance: UUID, lock: int, reserve_bytes: int) -> None:
        self._blobs = root / "blobs"
        self._root_lock = root / "lock"
        self._instances = root / "tmp"
        self._own = self._instances / str(instance)
        self._lock = lock
        self._reserve_bytes = reserve_bytes
        self._counter = itertools.count()
        self._durable_leaves: set[str] = set()
        """Leaf directories that this process has seen to be durable; at most 4,096."""

    @classmethod
    def open(cls, root: Path, instance: UUID, reserve_bytes: int = 0) -> "StoreDirectory | None":
        """Make the directory, or find it made, and hold it as ``instance``; None while another process has its lock.

        Blobs leave ``reserve_bytes`` of their disk free.

        Raises `StartupError` for a path that cannot be a store, or is one of another version.
        """
        try:
            _make_durable_directory(root)
            try:
                root_lock = _lock(root / "lock", make=True)
            except BlockingIOError:
                return None
            try:
                return cls._open_locked(root, instance, reserve_bytes)
            finally:
                os.close(root_lock)
        except OSError as error:
            raise StartupError(_startup_sentence(root, error)) from error

    @classmethod
    def _open_locked(cls, root: Path, instance: UUID, reserve_bytes: int) -> "StoreDirectory":
        _check_format(root)
        for name in ("blobs", "tmp"):
            (root / name).mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        # Always: a process that was killed may have made some of them and not synced them.
        sync_directory(root)
        if (root / "tmp").stat().st_dev != (root / "blobs").stat().st_dev:
            raise StartupError(f"{root / 'tmp'} and {root / 'blobs'} must be on one filesystem")
        own = root / "tmp" / str(instance)
        own.mkdir(mode=_DIRECTORY_MODE)
        return cls(root, instance, _lock(own / "lock", make=True), reserve_bytes)

    def temporary_file(self) -> Path:
        """A path for a new file, which no other call and no other process is given."""
        return self._own / str(next(self._counter))

    def blob_file(self, uuid: UUID) -> Path:
        """Where the blob of the revision with ``uuid`` is, if it is."""
        return self._blobs / leaf_name(uuid) / f"{uuid}{_BLOB_SUFFIX}"

    def move(self, temporary: Path, blob_file: Path) -> None:
        """Give a whole, durable file its final name, in place of the file that has it. Visible at once."""
        try:
            temporary.rename(blob_file)
        except FileNotFoundError:
            leaf = blob_file.parent
            self._durable_leaves.discard(leaf.name)
            leaf.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
            temporary.rename(blob_file)

    def make_durable(self, blob_file: Path) -> None:
        """Make the name of ``blob_file``, or its absence, survive a crash of the machine."""
        leaf = blob_file.parent
        sync_directory(leaf)
        # Another process may have made the directory and not yet synced it, so that it exists proves nothing.
        if leaf.name not in self._durable_leaves:
            sync_directory(self._blobs)
            self._durable_leaves.add(leaf.name)

    def remove(self, blob_file: Path) -> None:
        """Remove the file durably. Absent is fine, but then its absence is made durable too."""
        blob_file.unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # no directory: there never was such a blob
            sync_directory(blob_file.parent)

    def leaves(self) -> list[str]:
        """The names of the leaf directories, in order."""
        return sorted(name for name in _names(self._blobs) if _LEAF.fullmatch(name))

    def uuids(self, leaf: str) -> list[UUID]:
        """The UUIDs of the blobs in a leaf directory, in order. Foreign files are passed over."""
        found = []
        for name in _names(self._blobs / leaf):
            stem = name.removesuffix(_BLOB_SUFFIX)
            if stem != name and _UUID.fullmatch(stem) and stem.endswith(leaf):
                found.append(stem)
        return [UUID(stem) for stem in sorted(found)]

    def remove_debris(self) -> int:
        """Remove the directories of instances that are dead; return how many files and directories that were.

        Removes nothing while another process starts or collects: it can be called again.
        """
        try:
            root_lock = _lock(self._root_lock, make=True)
        except BlockingIOError:
            return 0
        try:
            # This instance's own directory is locked like that of any other that lives.
            return sum(_collect(self._instances / name) for name in _names(self._instances) if _UUID.fullmatch(name))
        finally:
            os.close(root_lock)

    def check_room(self, size: int) -> None:
        """Raise `StorageFull` unless ``size`` more bytes leave the reserve free. Others may be faster: no promise."""
        if not self._reserve_bytes:
            return
        space = os.statvfs(self._own)
        if space.f_bavail * space.f_frsize < size + self._reserve_bytes:
            raise StorageFull("the blob store is out of space")

    def check(self) -> None:
        """Raise unless the directories answer. Writes nothing: a full store, or a read-only one, still serves reads."""
        os.statvfs(self._own)
        self._blobs.stat()

    def close(self) -> None:
        """Remove this instance's directory and let go of its lock. Called once."""
        try:
            _remove_instance(self._own)
        except OSError as error:
            # The next instance that collects debris will try again.
            log.warning("temporary directory not removed", directory=str(self._own), error=str(error))
        finally:
            os.close(self._lock)


def leaf_name(uuid: UUID) -> str:
    """The name of the leaf directory of a blob."""
    return uuid.hex[-_LEAF_DIGITS:]


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable (fsync(2): syncing a file does not sync its directory entry)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_durable_directory(directory: Path) -> None:
    """Make ``directory``, and the ones above it that are missing. Nothing is done to one that exists."""
    if directory.is_dir():
        return
    _make_durable_directory(directory.parent)
    # Two processes may start on one new directory at once: whoever finds it made still syncs the name.
    directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    sync_directory(directory.parent)


def _lock(file: Path, *, make: bool) -> int:
    """Lock ``file`` and return the descriptor that holds the lock. Raises `BlockingIOError` if it is taken.

    Opened for reading, so that the operator can remount the filesystem read-only under us.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    fd = os.open(file, flags, _FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_format(root: Path) -> None:
    """Write the format file of a new store; raise `StartupError` for that of another format."""
    file = root / "format"
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            found = opened.read(_FORMAT_BYTES_MAX)
    except FileNotFoundError:
        if (root / "blobs").exists():
            raise StartupError(
                f"{root} holds blobs but no format file: restore {file} from a backup, or use another directory"
            ) from None
        _write_whole(file, _FORMAT)
        return
    if found != _FORMAT:
        raise StartupError(
            f"{file} says {found.strip()!r}, and this release only reads {_FORMAT.strip()!r}: "
            "use the release that wrote it, or another directory"
        )


def _write_whole(file: Path, text: str) -> None:
    """Write a file that is there whole or not at all. Only under the store's lock: the temporary name is fixed."""
    temporary = file.with_name(f"{file.name}.new")
    with temporary.open("w", encoding="utf-8") as opened:
        temporary.chmod(_FILE_MODE)
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.rename(file)


def _names(directory: Path) -> Sequence[str]:
    """The names in ``directory``, all at once: reading on while some are removed may miss others."""
    try:
        return [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _collect(directory: Path) -> int:
    """Remove an instance's directory if its process is dead; return what was removed. Only under the store's lock."""
    try:
        lock = _lock(directory / "lock", make=False)
    except BlockingIOError:
        return 0
    except FileNotFoundError:
        # Its maker died before it made the lock (none is making one now, we hold the store's), or is just closing.
        return _remove_instance(directory)
    try:
        return _remove_instance(directory)
    finally:
        os.close(lock)


def _remove_instance(directory: Path) -> int:
    """Remove the directory and its files; return how many, without the lock and without what is gone already."""
    removed = 0
    for name in _names(directory):
        with suppress(FileNotFoundError):
            (directory / name).unlink()
            removed += name != "lock"
    with suppress(FileNotFoundError):
        directory.rmdir()
        removed += 1
    return removed


def _startup_sentence(root: Path, error: OSError) -> str:
    match error:
        case FileExistsError() | NotADirectoryError():
            return f"the blob directory {root} is not a directory: {error.filename} is in its way"
        case PermissionError():
            return f"the blob directory {root} is not writable: give this user read and write access to it"
        case _:
            return f"the blob directory {root} cannot be used: {error.strerror} ({error.filename})"
