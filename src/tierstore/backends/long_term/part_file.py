"""The file that holds one part of an upload: its format, writing it, reading its header. Blocking.

::

    offset  bytes  field (big-endian)
         0      8  magic "TIERPART"
         8      1  format version, 1
         9      3  zero
        12      4  number of the part
        16     16  UUID of the revision
        32      8  bytes of the payload
        40      8  when it was stored, Unix microseconds
        48     16  xxh3-128 of the payload
        64     16  MD5 of the payload
        80      8  nonce, another one for every part that is stored
        88      8  xxh3-64 of the 88 bytes before this field
        96      …  payload, to the end of the file

The ETag of a part is its MD5 and its nonce, in hexadecimal digits, with a hyphen between: two parts never have the
same, not even with equal content, so that an ETag names what was stored by one request.

Guarantees: a file under its final name is whole; a header that does not match its checksum, its file's length or its
file's name is found out. Of any number of parts with one number that are published one over the other, in any number of
processes, any may be withdrawn in any order: what is left is the last of those that stay, or the part before them all.
Does not: verify the payload, which `tierstore.backends.long_term.blob_file` does.

Until it is clear that a part stays, it keeps the one that it has replaced, by a link in the directory of the upload::

    {nnnnn}.{nonce}.before    what the part with that number and nonce has replaced

So a withdrawn part that is not in place any more finds the one that would put it back, and hands its own down to that.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog
import xxhash

from tierstore.backends.long_term.file_access import create, is_same_file, open_to_read, write_all
from tierstore.backends.long_term.store_directory import StoreDirectory, part_name
from tierstore.clock import UnixMicros
from tierstore.embedded.directories import sync_directory
from tierstore.errors import ChecksumMismatch, CorruptObject, NoSuchUpload, Unavailable
from tierstore.types.ids import Revision
from tierstore.types.multipart import Part

log = structlog.get_logger(__name__)

_MAGIC = b"TIERPART"
_VERSION = 1
_FIXED = struct.Struct(">8sB3xI16sQQ16s16s8s")
_CHECKSUM_BYTES = 8
PART_HEADER_BYTES = _FIXED.size + _CHECKSUM_BYTES
PART_NONCE_BYTES = 8
_BEFORE_SUFFIX = ".before"


@dataclass(frozen=True, slots=True)
class PartHeader:
    """What stands before a part's payload."""

    number: int
    uuid: UUID
    """That of the revision."""
    size: int
    stored: UnixMicros
    checksum: bytes
    md5: bytes
    nonce: bytes

    def encode(self) -> bytes:
        """The header's bytes, always as many."""
        fixed = _FIXED.pack(
            _MAGIC, _VERSION, self.number, self.uuid.bytes, self.size, max(self.stored, 0), self.checksum, self.md5,
            self.nonce,
        )  # fmt: skip
        return fixed + xxhash.xxh3_64_digest(fixed)

    @property
    def etag(self) -> str:
        """What names the part as it was stored by one request."""
        return f"{self.md5.hex()}-{self.nonce.hex()}"

    @property
    def part(self) -> Part:
        """What is known of the part."""
        return Part(self.number, self.etag, self.size, self.stored)


def parse_part_header(raw: bytes) -> PartHeader:
    """The header that ``raw`` begins with. Raises `CorruptObject` if it is cut short or damaged."""
    if len(raw) < PART_HEADER_BYTES:
        raise CorruptObject("the file is shorter than a part's header")
    if raw[_FIXED.size : PART_HEADER_BYTES] != xxhash.xxh3_64_digest(raw[: _FIXED.size]):
        raise CorruptObject("the part's header does not match its checksum")
    magic, version, number, uuid, *rest = _FIXED.unpack_from(raw)
    if magic != _MAGIC:
        raise CorruptObject("the file does not begin like a part")
    if version != _VERSION:
        raise CorruptObject(f"the part's header has version {version}, which this release does not read")
    return PartHeader(number, UUID(bytes=uuid), *rest)


def open_part(file: Path, uuid: UUID, number: int) -> tuple[int, PartHeader]:
    """A descriptor of part ``number`` of the upload with ``uuid``, and its verified header.

    Raises `FileNotFoundError` if there is none, and `CorruptObject` for a damaged header, that of another part, or a
    file that is longer or shorter than its header says.
    """
    fd = open_to_read(file)
    try:
        header = parse_part_header(os.pread(fd, PART_HEADER_BYTES, 0))
        if (header.uuid, header.number) != (uuid, number):
            raise CorruptObject("the header is that of another part")
        if os.fstat(fd).st_size != PART_HEADER_BYTES + header.size:
            raise CorruptObject("the part's file is longer or shorter than its header says")
    except BaseException as error:
        os.close(fd)
        if isinstance(error, CorruptObject):
            raise CorruptObject(f"blob {uuid}, part {number}: {error}") from None
        raise
    return fd, header


def read_part_header(file: Path, uuid: UUID, number: int) -> PartHeader:
    """The verified header of a part; raises as `open_part`."""
    fd, header = open_part(file, uuid, number)
    os.close(fd)
    return header


def remove_links_to_replaced_parts(directory: Path) -> None:
    """Remove what keeps replaced parts from an upload whose parts nobody can withdraw any more."""
    for link in directory.glob(f"*{_BEFORE_SUFFIX}"):
        link.unlink(missing_ok=True)


class PartWriter:
    """One part on its way into an upload: a temporary file that is finished, then published whole, or discarded.

    Used by one thread at a time. Nothing is on disk before the first `write` or `finish`. `discard` must follow,
    whatever becomes of it. `publish` and `withdraw` run while the upload is locked; `make_durable` need not, and makes
    durable whatever has been published of the upload before.
    """

    def __init__(self, store: StoreDirectory, revision: Revision, number: int, size: int | None, nonce: bytes) -> None:
        self._store = store
        self._uuid = revision.uuid
        self._number = number
        self._size = size
        self._nonce = nonce
        self._file = store.upload_directory(revision.uuid) / part_name(number)
        self._temporary = store.temporary_file()
        self._before = self._file.with_name(f"{self._file.stem}.{nonce.hex()}{_BEFORE_SUFFIX}")
        """Another name of the part that this one replaces, until it is clear that this one stays."""
        self._offset = PART_HEADER_BYTES
        self._checksum = xxhash.xxh3_128()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._fd: int | None = None
        self._published: os.stat_result | None = None

    def write(self, chunks: Sequence[bytes]) -> None:
        """Append the chunks to the payload. Raises `StorageFull` before the disk is full, where there is a reserve."""
        left = 0 if self._size is None else self._size - (self._offset - PART_HEADER_BYTES)
        self._store.check_room(max(left, sum(map(len, chunks))))
        fd = self._descriptor()
        for chunk in chunks:
            self._checksum.update(chunk)
            self._md5.update(chunk)
        self._offset = write_all(fd, chunks, self._offset)

    def finish(self, chunks: Sequence[bytes], stored: UnixMicros, md5: bytes | None) -> Part:
        """Append the last chunks and make the file whole and durable, not its name; return what it will be.

        Raises `ChecksumMismatch` if the payload has another digest than ``md5``.
        """
        self.write(chunks)
        digest = self._md5.digest()
        if md5 is not None and md5 != digest:
            raise ChecksumMismatch("the part does not have the MD5 digest that was announced")
        size = self._offset - PART_HEADER_BYTES
        header = PartHeader(self._number, self._uuid, size, stored, self._checksum.digest(), digest, self._nonce)
        fd = self._descriptor()
        # Last, so that a file without a header is known to be unfinished.
        write_all(fd, [header.encode()], 0)
        os.fsync(fd)
        return header.part

    def publish(self) -> None:
        """Make the part one of the upload, in place of the one before; not durably yet."""
        status = os.fstat(self._descriptor())
        with suppress(FileNotFoundError):
            os.link(self._file, self._before)
        self._temporary.rename(self._file)
        self._published = status

    def make_durable(self) -> None:
        """Make it last that the part has been published.

        Raises `NoSuchUpload` if the upload, and the part with it, has gone meanwhile, and `Unavailable` if the part may
        be one of the upload's without being durable.
        """
        try:
            sync_directory(self._file.parent)
        except FileNotFoundError:
            raise NoSuchUpload("the upload was aborted while the part was being stored") from None
        except OSError as error:
            # Not translated: out of space promises that nothing was stored, and this came too late for that.
            raise Unavailable("the blob store could not make a part durable") from error

    def withdraw(self) -> None:
        """Take the part back, if it was published, and put the one before in its place.

        If another part has come in its place, and may be withdrawn too, that one gets the part before to put back.
        """
        if self._published is None:
            return
        in_place = is_same_file(self._published, self._file)
        holder = self._file if in_place else self._replaced_by(self._published)
        if holder is None:  # what has come in its place stays
            return
        try:
            self._before.rename(holder)
        except FileNotFoundError:
            holder.unlink(missing_ok=True)
        if in_place:
            sync_directory(self._file.parent)

    def _replaced_by(self, status: os.stat_result) -> Path | None:
        """The link by which the part that has replaced this one keeps it; None if that part stays."""
        links = self._file.parent.glob(f"{self._file.stem}.*{_BEFORE_SUFFIX}")
        return next((link for link in links if is_same_file(status, link)), None)

    def discard(self) -> None:
        """Remove the temporary files. Raises nothing: what cannot be removed is logged, and is left as debris."""
        try:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)
            self._temporary.unlink(missing_ok=True)
            self._before.unlink(missing_ok=True)
        except OSError as error:
            log.warning("temporary files of a part not removed", file=str(self._file), error=str(error))

    def _descriptor(self) -> int:
        if self._fd is None:
            self._fd = create(self._temporary)
        return self._fd
