"""The directory that holds one upload: how it begins, gets its parts, becomes a blob, and goes. Blocking.

::

    {uuid}.parts/upload         that there is an upload, and of which revision
    {uuid}.parts/{nnnnn}.part   a part (`tierstore.backends.long_term.part_file`); nnnnn: its number, five digits
    {uuid}.parts/{nnnnn}.{nonce}.before    what a part has replaced that may still be taken back

The file ``upload``::

    offset  bytes  field (big-endian)
         0      8  magic "TIERUPLD"
         8      1  format version, 1
         9      3  zero
        12      4  bytes of the storage path
        16      8  when the upload began, Unix microseconds
        24      8  xxh3-64 of the 24 bytes before this field and of the storage path
        32      …  the revision's storage path, UTF-8

An upload is in progress while its directory is there and its blob's file is not. It is made whole elsewhere and renamed
to its place. It is completed by the rename of one file, the blob's, which names the parts: none of their bytes is
copied, and from then on none of them is replaced. It is aborted by the rename of its directory out of its place.

Guarantees: who changes an upload, by a part too, holds a lock (``flock``) on its directory, alone; a lock counts only
if the directory is still in its place once it is held. For parts it is held for as long as their renames take: the
sync comes after it. The kernel releases it with the process, however that ends, and each of those renames leaves a
whole state before it and after it; what is left of the parts that a blob has no use for, when the process dies between
the rename and their removal, goes when somebody completes the upload again, and what it kept of parts that it had
replaced goes with the end of the upload. A deleted blob is gone before its parts are, so a delete that was cut short
between leaves what looks like an upload in progress: deleting or aborting again removes it. Does not: wait for a lock;
the caller tries again.
"""

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog
import xxhash

from tierstore.backends.long_term.blob_file import make_durable, read_manifest, write_manifest
from tierstore.backends.long_term.file_access import is_same_file, write_new
from tierstore.backends.long_term.part_file import (
    PartHeader,
    PartWriter,
    read_part_header,
    remove_links_to_replaced_parts,
)
from tierstore.backends.long_term.store_directory import (
    StoreDirectory,
    part_name,
    part_numbers,
    remove_tree,
)
from tierstore.backends.long_term.upload_line import UploadLine
from tierstore.clock import UnixMicros
from tierstore.embedded.directories import sync_directory
from tierstore.errors import CorruptObject, EntityTooSmall, InvalidPart, NoSuchUpload, ObjectTooLarge, Unavailable
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.types.ids import Revision
from tierstore.types.multipart import PartName, PartsPage, check_part_order

log = structlog.get_logger(__name__)

T = TypeVar("T")

_MAGIC = b"TIERUPLD"
_VERSION = 1
_FIXED = struct.Struct(">8sB3xIQ")
_CHECKSUM_BYTES = 8
_PREFIX_BYTES = _FIXED.size + _CHECKSUM_BYTES
_UPLOAD_NAME = "upload"
_UPLOAD_BYTES_MAX = 128 * 1024
"""Far above what the longest storage path needs; bounds what is read of a damaged file."""
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What was done under the lock, and what came of it."""

    result: T


class Held:
    """Another one holds the upload; nothing was done."""


class UploadDirectory:
    """The upload of one revision in a store. Methods may be called from several threads at once."""

    def __init__(self, store: StoreDirectory, revision: Revision, limits: Limits) -> None:
        self._store = store
        self._revision = revision
        self._limits = limits
        self._directory = store.upload_directory(revision.uuid)
        self._blob = store.blob_file(revision.uuid)

    def locked(self, work: Callable[[bool], T]) -> Done[T] | Held:
        """Do ``work`` while nobody else changes the upload, unless it is now; tell it whether there is one.

        Where there is none, ``work`` is done without a lock: an upload begins once, and then nothing of it is left.
        """
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return Done(work(False))
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Held()
            # It may have been moved away between the two calls.
            return Done(work(is_same_file(os.fstat(fd), self._directory)))
        finally:
            os.close(fd)

    def begin(self, stored: UnixMicros, in_time: Callable[[], None] = lambda: None) -> None:
        """Make the upload, durably. Raises `Unavailable` if there may be one without being durable.

        ``in_time`` is called last of all before there is one, and what it raises ends it.
        """
        temporary = self._store.temporary_file()
        path = self._revision.storage_path.encode()
        fixed = _FIXED.pack(_MAGIC, _VERSION, len(path), max(stored, 0))
        try:
            self._store.check_room(_PREFIX_BYTES + len(path))
            temporary.mkdir(mode=_DIRECTORY_MODE)
            write_new(temporary / _UPLOAD_NAME, [fixed, xxhash.xxh3_64_digest(fixed + path), path])
            sync_directory(temporary)
            in_time()
            self._store.move(temporary, self._directory)
        except BaseException:
            _remove_logged(temporary)
            raise
        try:
            self._store.make_durable(self._directory)
        except OSError as error:
            # Not translated: out of space promises that nothing was stored, and this came too late for that.
            raise Unavailable("the blob store could not make an upload durable") from error

    def require(self) -> None:
        """Raise `NoSuchUpload` unless the upload is in progress, and `CorruptObject` if that cannot be told."""
        if not self._is_ours() or self._blob.exists():
            raise NoSuchUpload("there is no such upload: it was completed or aborted, or never begun")

    def publish(self, line: UploadLine, found: bool) -> None:
        """Make all finished parts in ``line`` the upload's, not durably yet. Under the lock. Raises `NoSuchUpload`."""
        if not found or self._blob.exists():
            raise NoSuchUpload("the upload was completed or aborted while the part was being stored")
        line.publish()

    def withdraw(self, writer: PartWriter, found: bool) -> None:
        """Take a part back that was published, or is about to be, if the upload is in progress. Under the lock."""
        if found and not self._blob.exists():
            writer.withdraw()

    def parts(self, after: int, limit: int) -> PartsPage:
        """Some of the parts, as the contract's ``list_parts``. Damaged ones are logged and passed over."""
        found: list[PartHeader] = []
        truncated = False
        for number in part_numbers(self._directory):
            if number <= after:
                continue
            if len(found) == limit:
                truncated = True
                break
            header = self._part(number)
            if header is not None:
                found.append(header)
        # Last: parts that went away meanwhile went with the upload.
        self.require()
        return PartsPage([header.part for header in found], truncated)

    def complete(self, parts: Sequence[PartName], stored: UnixMicros, found: bool) -> None:
        """Make the blob of the named parts, as the contract's ``complete``. Under the lock."""
        invariant(bool(parts), "an upload is completed with a part or more")
        if self._blob.exists():
            self._complete_again(parts)
            return
        if not found:
            raise NoSuchUpload("there is no such upload: it was aborted, or never begun")
        self.require()
        headers = self._checked(parts)
        # A part may have been published by a process that died before it was durable.
        sync_directory(self._directory)
        write_manifest(self._store, self._revision, headers, stored)
        self._remove_others({header.number for header in headers})

    def _complete_again(self, parts: Sequence[PartName]) -> None:
        """See that the blob is durable, that it is made of the named parts, and that there are no others.

        Whoever made it may have died before that was so.
        """
        manifest = read_manifest(self._blob, self._revision)
        if manifest is None:
            raise NoSuchUpload("there is no such upload of this object")
        make_durable(self._store, self._blob)
        self._remove_others({number for number, _ in manifest})
        check_part_order(parts)
        if [name.number for name in parts] != [number for number, _ in manifest] or not all(
            self._is_in_blob(name, nonce) for name, (_, nonce) in zip(parts, manifest, strict=True)
        ):
            raise InvalidPart("the upload has been assembled of other parts, and can be completed with those alone")

    def _is_in_blob(self, name: PartName, nonce: bytes) -> bool:
        """Whether the part of the blob that has this number and nonce has the ETag too. Raises `CorruptObject`."""
        if not name.etag.endswith(nonce.hex()):
            return False
        try:
            header = read_part_header(self._directory / part_name(name.number), self._revision.uuid, name.number)
        except FileNotFoundError:
            raise CorruptObject(f"blob {self._revision.uuid}: part {name.number} is missing") from None
        return header.etag == name.etag

    def abort(self, known: bool, found: bool) -> None:
        """End the upload unless it was completed, or is another object's. Under the lock.

        If ``known`` by its id, raises `NoSuchUpload` for one that is not in progress.
        """
        completed = self._blob.exists()
        in_progress = found and not completed and self._is_ours_or_damaged()
        # Where there is none, what another call has removed may not be durably gone.
        if in_progress or not (found or completed):
            self._store.remove_directory(self._directory)
        if known and not in_progress:
            raise NoSuchUpload("there is no such upload: it was completed or aborted, or never begun")

    def delete(self) -> None:
        """Remove the blob, then the parts, durably; absent is fine. Under the lock."""
        self._blob.unlink(missing_ok=True)
        # Before the parts are moved: after a crash of the machine there must be no blob that misses them.
        self._store.make_absence_durable(self._blob)
        self._store.remove_directory(self._directory)

    def _checked(self, parts: Sequence[PartName]) -> list[PartHeader]:
        """The headers of the named parts. Raises the client's mistakes."""
        check_part_order(parts)
        headers = [self._named(name) for name in parts]
        smallest = self._limits.part_bytes_min
        for header in headers[:-1]:
            if header.size < smallest:
                raise EntityTooSmall(
                    f"part {header.number} has {header.size} bytes; each but the last has {smallest} or more"
                )
        if sum(header.size for header in headers) > self._limits.object_bytes_max:
            raise ObjectTooLarge(f"an object has at most {self._limits.object_bytes_max} bytes")
        return headers

    def _named(self, name: PartName) -> PartHeader:
        header = self._part(name.number)
        if header is None:
            raise InvalidPart(f"part {name.number} has not been uploaded")
        if header.etag != name.etag:
            raise InvalidPart(f"part {name.number} has another ETag")
        return header

    def _part(self, number: int) -> PartHeader | None:
        """What is known of a part; None if it is absent, or damaged, so that it must be uploaded again."""
        try:
            return read_part_header(self._directory / part_name(number), self._revision.uuid, number)
        except FileNotFoundError:
            return None
        except CorruptObject as error:
            log.warning("damaged part passed over", error=str(error))
            return None

    def _remove_others(self, kept: set[int]) -> None:
        """Remove the parts that are not in the blob. What fails is left: it goes when the blob is deleted."""
        try:
            for number in part_numbers(self._directory):
                if number not in kept:
                    (self._directory / part_name(number)).unlink(missing_ok=True)
            remove_links_to_replaced_parts(self._directory)
        except OSError as error:
            log.warning("parts that are not in the blob not removed", blob=str(self._revision.uuid), error=str(error))

    def _is_ours(self) -> bool:
        """Whether there is an upload of the revision. Raises `CorruptObject` if its file is damaged or missing."""
        try:
            with (self._directory / _UPLOAD_NAME).open("rb") as opened:
                raw = opened.read(_UPLOAD_BYTES_MAX)
        except FileNotFoundError:
            if self._directory.exists():
                raise CorruptObject(f"upload {self._revision.uuid}: the file of the upload is missing") from None
            return False
        return _storage_path(raw, self._directory) == self._revision.storage_path.encode()

    def _is_ours_or_damaged(self) -> bool:
        """Whether the upload may be aborted: a damaged one can never be completed."""
        try:
            return self._is_ours()
        except CorruptObject as error:
            log.warning("damaged upload is aborted", error=str(error))
            return True


def _storage_path(raw: bytes, directory: Path) -> bytes:
    """The storage path in the file of an upload. Raises `CorruptObject` if it is cut short or damaged."""
    fixed, checksum, path = raw[: _FIXED.size], raw[_FIXED.size : _PREFIX_BYTES], raw[_PREFIX_BYTES:]
    if xxhash.xxh3_64_digest(fixed + path) != checksum:
        raise CorruptObject(f"upload {directory.stem}: its file does not match its checksum")
    magic, version, path_bytes, _ = _FIXED.unpack(fixed)
    if (magic, version, path_bytes) != (_MAGIC, _VERSION, len(path)):
        raise CorruptObject(f"upload {directory.stem}: its file is of no format that this release reads")
    return path


def _remove_logged(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError as error:
        log.warning("unfinished upload not removed", directory=str(path), error=str(error))
