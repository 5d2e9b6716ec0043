"""The directory of a filesystem store: where its files are, and who may remove what. Blocking; POSIX only.

::

    {root}/format                     the layout's version
    {root}/identity                   the UUID of the deployment that the store belongs to, made once
    {root}/lock                       held while an instance's directory is made, or taken from a dead instance
    {root}/blobs/{xyz}/{uuid}.blob    xyz: the last three hex digits of the revision's UUID
    {root}/blobs/{xyz}/{uuid}.parts/  an upload of that revision: in progress, or what its blob is made of
    {root}/tmp/{instance}/lock        held for as long as the instance lives, then by who removes what it left
    {root}/tmp/{instance}/{n}         a file that is being written, or an upload that is being made or removed

File names are made of UUIDs and counters alone, so no key of a user is ever part of one. The last digits are random
in every version of UUID that we draw (UUIDv7 begins with the time), and spread blobs evenly over 4,096 directories:
ten million blobs are 2,400 a directory, and a small store does not pay for tens of thousands of directories.

Guarantees: what crashed instances left in ``tmp`` can be told from what living ones need by their locks (``flock``),
which the kernel releases with the process, however it ends; no clock is asked. Does not: work on a filesystem without
``flock`` or atomic ``rename``, which are those that are not local. All of it is on one filesystem, so that a disk that
is not mounted takes the identity with the blobs.
"""

import errno
import fcntl
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import UUID

import structlog

from tierstore.embedded.directories import sync_directory, sync_name_of
from tierstore.errors import Broken, StartupError, StorageFull

log = structlog.get_logger(__name__)

_FORMAT = "tierstore long-term filesystem 1\n"
_SMALL_FILE_BYTES_MAX = 1024
_LEAF_DIGITS = 3
_LEAF = re.compile(r"[0-9a-f]{3}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BLOB_SUFFIX = ".blob"
_UPLOAD_SUFFIX = ".parts"
_PART = re.compile(r"([0-9]{5})\.part")
_COLLECTED_AT_ONCE_MAX = 64
"""Dead instances whose locks, and so descriptors, are held at the same time."""
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


class StoreDirectory:
    """One process's hold on a store's directory. Its methods may be called from several threads at once."""

    def __init__(self, root: Path, instance: UUID, lock: int, reserve_bytes: int) -> None:
        self._root = root
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
            sync_name_of(root)  # always, as below
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
        # Before the first directory: one without the format file would be taken for somebody else's.
        sync_directory(root)
        for name in ("blobs", "tmp"):
            (root / name).mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        # Always: a process that was killed may have made some of them and not synced them.
        sync_directory(root)
        if len({path.stat().st_dev for path in (root, root / "tmp", root / "blobs")}) > 1:
            raise StartupError(f"{root}, {root / 'tmp'} and {root / 'blobs'} must be on one filesystem")
        own = root / "tmp" / str(instance)
        own.mkdir(mode=_DIRECTORY_MODE)
        return cls(root, instance, _lock(own / "lock", make=True), reserve_bytes)

    def temporary_file(self) -> Path:
        """A path for a new file, which no other call and no other process is given."""
        return self._own / str(next(self._counter))

    def blob_file(self, uuid: UUID) -> Path:
        """Where the blob of the revision with ``uuid`` is, if it is."""
        return self._blobs / leaf_name(uuid) / f"{uuid}{_BLOB_SUFFIX}"

    def upload_directory(self, uuid: UUID) -> Path:
        """Where the parts of the upload with ``uuid`` are, if there is one."""
        return upload_beside(self.blob_file(uuid))

    def move(self, temporary: Path, blob_file: Path) -> None:
        """Give a whole, durable file or directory its final name, in place of the file that has it. Visible at once."""
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
        self.make_absence_durable(blob_file)

    def make_absence_durable(self, file: Path) -> None:
        """Make the absence of ``file`` survive a crash of the machine."""
        with suppress(FileNotFoundError):  # no directory: there never was such a file
            sync_directory(file.parent)

    def remove_directory(self, directory: Path) -> None:
        """Remove a directory with all that is in it: gone at once and durably, then also from the disk.

        Absent is fine, but then its absence is made durable too. What cannot be removed once it is gone is debris.
        """
        aside = self.temporary_file()
        try:
            directory.rename(aside)
        except FileNotFoundError:
            self.make_absence_durable(directory)
            return
        sync_directory(directory.parent)
        try:
            remove_tree(aside)
        except OSError as error:
            _log_left_behind(aside, error)

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

        Leaves the rest alone when another process starts or collects: it can be called again. What cannot be removed
        is logged, and passed over. The store is locked only while the dead instances' locks are taken, so that a
        process that starts does not wait while their files are removed.
        """
        # This instance's own directory is locked like that of any other that lives.
        found = [self._instances / name for name in sorted(_names(self._instances)) if _UUID.fullmatch(name)]
        removed = 0
        for start in range(0, len(found), _COLLECTED_AT_ONCE_MAX):
            with ExitStack() as held:
                try:
                    dead = self._take(found[start : start + _COLLECTED_AT_ONCE_MAX], held)
                except BlockingIOError:
                    return removed
                removed += sum(_remove_instance(directory) for directory in dead)
        return removed

    def _take(self, directories: Iterable[Path], held: ExitStack) -> list[Path]:
        """Take the locks of those of ``directories`` whose instances are dead, until ``held`` ends; return these.

        Raises `BlockingIOError` while another process starts or collects.
        """
        root_lock = _lock(self._root_lock, make=True)
        dead = []
        try:
            for directory in directories:
                try:
                    lock = _lock_of_the_dead(directory)
                except OSError as error:
                    _log_left_behind(directory, error)
                    continue
                if lock is not None:
                    held.callback(os.close, lock)
                    dead.append(directory)
        finally:
            os.close(root_lock)
        return dead

    def identity(self) -> UUID | None:
        """The identity that the store keeps. Raises `Broken` if its file holds something else."""
        file = self._root / "identity"
        try:
            with file.open(encoding="utf-8", errors="replace") as opened:
                text = opened.read(_SMALL_FILE_BYTES_MAX)
        except FileNotFoundError:
            return None
        if not _UUID.fullmatch(text.removesuffix("\n")):
            raise Broken(f"{file} is damaged: restore it from a backup")
        return UUID(text.removesuffix("\n"))

    def adopt(self, identity: UUID) -> UUID:
        """Keep ``identity`` unless the store has one; return the one that it has, which is durable then."""
        if self.identity() is None:
            temporary = self.temporary_file()
            try:
                _write_durably(temporary, f"{identity}\n")
                with suppress(FileExistsError):  # another process was faster
                    os.link(temporary, self._root / "identity")
            finally:
                temporary.unlink(missing_ok=True)
        sync_directory(self._root)
        return self.identity() or identity

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
        """Remove this instance's directory, or leave it to the next one that collects, and let go. Called once."""
        try:
            _remove_instance(self._own)
        finally:
            os.close(self._lock)


def leaf_name(uuid: UUID) -> str:
    """The name of the leaf directory of a blob."""
    return uuid.hex[-_LEAF_DIGITS:]


def upload_beside(blob_file: Path) -> Path:
    """Where the parts are of the upload that makes ``blob_file``."""
    return blob_file.with_suffix(_UPLOAD_SUFFIX)


def part_name(number: int) -> str:
    """The name of the file of a part, in the directory of its upload."""
    return f"{number:05d}.part"


def part_numbers(directory: Path) -> list[int]:
    """The numbers of the parts that an upload's directory has, in order. Foreign files are passed over."""
    return sorted(int(match[1]) for name in _names(directory) if (match := _PART.fullmatch(name)))


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
            found = opened.read(_SMALL_FILE_BYTES_MAX)
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
    _write_durably(temporary, text)
    temporary.rename(file)


def _write_durably(file: Path, text: str) -> None:
    """Write a file and sync what it holds, not its name."""
    with file.open("w", encoding="utf-8") as opened:
        file.chmod(_FILE_MODE)
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _names(directory: Path) -> Sequence[str]:
    """The names in ``directory``, all at once: reading on while some are removed may miss others."""
    try:
        return [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lock_of_the_dead(directory: Path) -> int | None:
    """The lock of an instance's directory if its process is dead; None if it lives, or the directory has gone.

    Only under the store's lock: then nobody is making a directory that has no lock yet.
    """
    try:
        return _lock(directory / "lock", make=False)
    except BlockingIOError:
        return None
    except FileNotFoundError:
        # Its maker died before it made the lock, or it is just being removed: either way there is no more in it.
        with suppress(FileNotFoundError):
            return _lock(directory / "lock", make=True)
        return None


def _remove_instance(directory: Path) -> int:
    """Remove the directory and what is in it, the lock last; return how many things that were, without the lock.

    Only while its lock is held. What cannot be removed is logged and left, the lock with it, for the next collector.
    """
    removed = 0
    try:
        for name in _names(directory):
            if name != "lock":
                removed += remove_tree(directory / name)
        with suppress(FileNotFoundError):
            (directory / "lock").unlink()
        directory.rmdir()
        removed += 1
    except OSError as error:
        # Once the lock's file is gone, another process may take the directory over for removal.
        if error.errno not in {errno.ENOENT, errno.ENOTEMPTY}:
            _log_left_behind(directory, error)
    return removed


def remove_tree(path: Path) -> int:
    """Remove a file, or a directory with all that is in it; return how many things were there. Absent is fine."""
    if path.is_dir() and not path.is_symlink():
        removed = sum(remove_tree(path / name) for name in _names(path))
        with suppress(FileNotFoundError):
            path.rmdir()
            removed += 1
        return removed
    try:
        path.unlink()
    except FileNotFoundError:
        return 0
    return 1


def _log_left_behind(directory: Path, error: OSError) -> None:
    log.warning("temporary directory not removed", directory=str(directory), error=str(error))


def _startup_sentence(root: Path, error: OSError) -> str:
    match error:
        case FileExistsError() | NotADirectoryError():
            return f"the blob directory {root} is not a directory: {error.filename} is in its way"
        case PermissionError():
            return f"the blob directory {root} is not writable: give this user read and write access to it"
        case _:
            return f"the blob directory {root} cannot be used: {error.strerror} ({error.filename})"
