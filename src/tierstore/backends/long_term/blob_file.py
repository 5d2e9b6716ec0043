"""The file that holds one blob: its format, writing it, reading it. Blocking; no threads of its own.

::

    offset  bytes  field (big-endian)
         0      8  magic "TIERBLOB"
         8      1  format version, 1
         9      1  kind: 1, the payload follows in this file; 2, a table follows of the parts that hold it
        10      2  number of the parts; zero for kind 1
        12      4  bytes of the storage path
        16      8  bytes of the payload
        24      8  when it was stored, Unix microseconds
        32     16  xxh3-128 of what follows the header: the payload, or the table
        48      8  xxh3-64 of the 48 bytes before this field and of the storage path
        56      …  the revision's storage path, UTF-8
         …      …  payload, or table, to the end of the file

A record of the table, one for each part in the order of the payload::

         0      4  number of the part, above that of the record before
         4      8  bytes of its payload
        12     16  xxh3-128 of its payload
        28      8  its nonce

The parts are in the directory of the upload (`tierstore.backends.long_term.upload_directory`), in files of their own
(`tierstore.backends.long_term.part_file`), so that no byte of them is copied to make a blob of them.

Guarantees: a file under its final name is whole; what does not match its checksums, its length or the revision's name
is found out, the payload's on a read of all of it, and that of a part on a read of all of that part. Does not: repair.

The files are complete in themselves: from them alone, every blob's object and revision can be told.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import xxhash

from tierstore.backends.long_term.file_access import (
    create,
    is_same_file,
    open_to_read,
    read_exactly,
    write_all,
    write_new,
)
from tierstore.backends.long_term.part_file import PART_HEADER_BYTES, PartHeader, open_part
from tierstore.backends.long_term.store_directory import StoreDirectory, part_name, upload_beside
from tierstore.clock import UnixMicros
from tierstore.errors import CorruptObject, Unavailable
from tierstore.invariants import invariant
from tierstore.types.ids import Revision
from tierstore.types.ranges import Span

log = structlog.get_logger(__name__)

_MAGIC = b"TIERBLOB"
_VERSION = 1
_KIND_PAYLOAD = 1
_KIND_MANIFEST = 2
_FIXED = struct.Struct(">8sBBHIQQ16s")
_CHECKSUM_BYTES = 8
_PREFIX_BYTES = _FIXED.size + _CHECKSUM_BYTES
_HEADER_READ_BYTES = 4096
"""One page: holds the header of all but the longest keys."""
_PATH_BYTES_MAX = 64 * 1024
"""Far above the longest storage path that `tierstore.limits` allows; bounds what a damaged length makes us read."""
_RECORD = struct.Struct(">IQ16s8s")
_PARTS_MAX = (1 << 16) - 1
"""What the header's field holds."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a blob's payload."""

    path: str
    """The revision's storage path."""
    size: int
    stored: UnixMicros
    checksum: bytes
    """Of what follows in the file."""
    parts: int = 0
    """How many parts hold the payload; 0 if it follows the header."""

    def encode(self) -> bytes:
        """The header's bytes. Their number depends on the path alone."""
        path = self.path.encode()
        invariant(len(path) <= _PATH_BYTES_MAX, "a storage path fits its header")
        invariant(0 <= self.parts <= _PARTS_MAX, "the number of parts fits its field")
        kind = _KIND_MANIFEST if self.parts else _KIND_PAYLOAD
        fixed = _FIXED.pack(
            _MAGIC, _VERSION, kind, self.parts, len(path), self.size, max(self.stored, 0), self.checksum
        )
        return fixed + _header_checksum(fixed, path) + path

    @property
    def byte_count(self) -> int:
        """Bytes of the header, and so the offset of the payload."""
        return _PREFIX_BYTES + len(self.path.encode())

    @property
    def table_bytes(self) -> int:
        """Bytes of the table of parts; 0 if there is none."""
        return self.parts * _RECORD.size

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that the header begins."""
        return self.byte_count + (self.table_bytes if self.parts else self.size)


def header_bytes_wanted(head: bytes) -> int:
    """How many bytes the header has that begins with ``head``. Raises `CorruptObject` if no header begins so."""
    if len(head) < _PREFIX_BYTES:
        raise CorruptObject("the file is shorter than a header")
    magic, version, kind, parts, path_bytes, *_ = _FIXED.unpack_from(head)
    if magic != _MAGIC:
        raise CorruptObject("the file does not begin like a blob")
    if version != _VERSION or kind != (_KIND_MANIFEST if parts else _KIND_PAYLOAD):
        raise CorruptObject(
            f"the header has version {version}, kind {kind} and {parts} parts, which this release does not read"
        )
    if path_bytes > _PATH_BYTES_MAX:
        raise CorruptObject("the header's path length is damaged")
    return int(_PREFIX_BYTES + path_bytes)


def parse_header(raw: bytes) -> Header:
    """The header that ``raw`` begins with. Raises `CorruptObject` if it is cut short or damaged."""
    end = header_bytes_wanted(raw)
    if len(raw) < end:
        raise CorruptObject("the file ends within its header")
    path = raw[_PREFIX_BYTES:end]
    if raw[_FIXED.size : _PREFIX_BYTES] != _header_checksum(raw[: _FIXED.size], path):
        raise CorruptObject("the header does not match its checksum")
    _, _, _, parts, _, size, stored, checksum = _FIXED.unpack_from(raw)
    try:
        return Header(path.decode(), size, stored, checksum, parts)
    except UnicodeDecodeError:
        raise CorruptObject("the header's path is not UTF-8") from None


def _header_checksum(fixed: bytes, path: bytes) -> bytes:
    return xxhash.xxh3_64_digest(fixed + path)


def read_header(file: Path) -> Header | None:
    """The verified header of the blob in ``file``, or None if there is none.

    Raises `CorruptObject` for a damaged header, one of another blob than the file's name says, or a file that is
    longer or shorter than its header says.
    """
    try:
        fd = open_to_read(file)
    except FileNotFoundError:
        return None
    try:
        return _read_header(fd, file)
    finally:
        os.close(fd)


def _read_header(fd: int, file: Path) -> Header:
    try:
        raw = os.pread(fd, _HEADER_READ_BYTES, 0)
        missing = header_bytes_wanted(raw) - len(raw)
        if missing > 0:
            raw += os.pread(fd, missing, len(raw))
        header = parse_header(raw)
        if not header.path.endswith(f"/{file.stem}"):
            raise CorruptObject("the header is that of another blob")
        if os.fstat(fd).st_size != header.file_bytes:
            raise CorruptObject("the file is longer or shorter than its header says")
    except CorruptObject as error:
        raise CorruptObject(f"blob {file.stem}: {error}") from None
    return header


def _read_table(fd: int, header: Header, file: Path) -> bytes:
    """The verified table of the parts."""
    table = read_exactly(fd, header.table_bytes, header.byte_count)
    if table is None or xxhash.xxh3_128_digest(table) != header.checksum:
        raise CorruptObject(f"blob {file.stem}: the table of parts does not match its checksum")
    if sum(size for _, size, _, _ in _RECORD.iter_unpack(table)) != header.size:
        raise CorruptObject(f"blob {file.stem}: the parts are not as long as the blob")
    return table


def read_manifest(file: Path, revision: Revision) -> Sequence[tuple[int, bytes]] | None:
    """Numbers and nonces of the parts that the blob in ``file`` is made of; None if it is another object's.

    Raises `CorruptObject` as `read_header`, and for a damaged table.
    """
    fd = open_to_read(file)
    try:
        header = _read_header(fd, file)
        if header.path != revision.storage_path:
            return None
        return [(number, nonce) for number, _, _, nonce in _RECORD.iter_unpack(_read_table(fd, header, file))]
    finally:
        os.close(fd)


class BlobWriter:
    """One blob on its way into a store: a temporary file that is published whole, or discarded.

    Used by one thread at a time. Nothing is on disk before the first `write` or `publish`. `discard` must follow any
    failure, and may follow anything.
    """

    def __init__(self, store: StoreDirectory, revision: Revision, size: int | None = None) -> None:
        self._store = store
        self._size = size
        self._path = revision.storage_path
        self._file = store.blob_file(revision.uuid)
        self._temporary = store.temporary_file()
        self._payload_offset = Header(self._path, 0, 0, bytes(16)).byte_count
        self._offset = self._payload_offset
        self._checksum = xxhash.xxh3_128()
        self._fd: int | None = None
        self._appeared: os.stat_result | None = None
        """The file, once it has a final name where there was no blob before."""

    def write(self, chunks: Sequence[bytes]) -> None:
        """Append the chunks to the payload. Raises `StorageFull` before the disk is full, where there is a reserve."""
        left = 0 if self._size is None else self._size - (self._offset - self._payload_offset)
        self._store.check_room(max(left, sum(map(len, chunks))))
        fd = self._descriptor()
        for chunk in chunks:
            self._checksum.update(chunk)
        self._offset = write_all(fd, chunks, self._offset)

    def publish(self, chunks: Sequence[bytes], stored: UnixMicros, in_time: Callable[[], None] = lambda: None) -> int:
        """Append the last chunks and make the blob durable and visible; return the bytes of its payload.

        ``in_time`` is called last of all before, and what it raises ends it. Raises `Unavailable` if it may have become
        visible without being durable.
        """
        self.write(chunks)
        fd = self._descriptor()
        header = Header(self._path, self._offset - self._payload_offset, stored, self._checksum.digest())
        # Last, so that a file without a header is known to be unfinished.
        write_all(fd, [header.encode()], 0)
        os.fsync(fd)
        replaces = self._file.exists()
        in_time()
        self._store.move(self._temporary, self._file)
        if not replaces:
            self._appeared = os.fstat(fd)
        try:
            self._store.make_durable(self._file)
        except OSError as error:
            # Not translated: out of space promises that nothing became visible, and this came too late for that.
            raise Unavailable("the blob store could not make a blob durable") from error
        self._close()
        return header.size

    def discard(self) -> None:
        """Remove what is left of the blob, also when it has been published (unless it replaced an equal one).

        Raises nothing: what cannot be removed is logged, and is left to `StoreDirectory.remove_debris` or the sweeper.
        """
        try:
            self._close()
            self._temporary.unlink(missing_ok=True)
            if self._appeared is not None and is_same_file(self._appeared, self._file):
                self._store.remove(self._file)
        except OSError as error:
            log.warning("unfinished blob not removed", file=str(self._file), error=str(error))

    def _descriptor(self) -> int:
        if self._fd is None:
            self._fd = create(self._temporary)
        return self._fd

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def write_manifest(store: StoreDirectory, revision: Revision, parts: Sequence[PartHeader], stored: UnixMicros) -> None:
    """Make the blob that ``parts``, which are durable, hold one after the other; durable and visible on return.

    Takes from the reserve of the disk, if it must: it is small, and what it makes use of is there already. Only while
    the upload is locked. Raises `Unavailable` if it may have become visible without being durable; after any
    other error it has not.
    """
    table = b"".join(_RECORD.pack(part.number, part.size, part.checksum, part.nonce) for part in parts)
    size = sum(part.size for part in parts)
    header = Header(revision.storage_path, size, stored, xxhash.xxh3_128_digest(table), len(parts))
    file = store.blob_file(revision.uuid)
    temporary = store.temporary_file()
    try:
        write_new(temporary, [header.encode(), table])
        store.move(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    make_durable(store, file)


def make_durable(store: StoreDirectory, file: Path) -> None:
    """Make the name of a blob's file, which is visible, durable. Raises `Unavailable` if that fails."""
    try:
        store.make_durable(file)
    except OSError as error:
        # Not translated: out of space promises that nothing became visible, and this came too late for that.
        raise Unavailable("the blob store could not make a blob durable") from error


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The bytes that are read of one part."""

    number: int
    size: int
    """Of the whole part."""
    checksum: bytes
    nonce: bytes
    start: int
    stop: int


def _stretches(table: bytes, span: Span | None) -> Iterator[_Stretch]:
    """What is read of the parts for ``span``; None means all of all of them, the empty ones too."""
    begin = 0
    for number, size, checksum, nonce in _RECORD.iter_unpack(table):
        start, stop = (0, size) if span is None else (max(span.start - begin, 0), min(span.stop - begin, size))
        if span is None or start < stop:
            yield _Stretch(number, size, checksum, nonce, start, stop)
        begin += size


class BlobReader:
    """One blob, or a span of it, being read. A call waits for the one that is under way in another thread.

    Holds one file open at a time: the blob's, or that of one part.
    """

    size: int
    """Bytes of the whole payload, known once open."""

    def __init__(self, file: Path, revision: Revision, span: Span | None, chunk_bytes: int) -> None:
        self._file = file
        self._parts = upload_beside(file)
        self._revision = revision
        self._span = span
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._left = 0
        """Bytes of the payload that are still to be returned."""
        self._position = 0
        """Where in the open file the next of them is."""
        self._here = 0
        """How many of them are in the open file."""
        self._expected: bytes | None = None
        """The checksum that the bytes of the open file must have; None when only some of them are read."""
        self._checksum = xxhash.xxh3_128()
        self._stretches: Iterator[_Stretch] = iter(())
        """What follows in other files."""

    def open(self) -> bytes | None:
        """Open the blob and return its first chunk (empty if nothing is to be read), or None if it is absent.

        It is absent as well if it is deleted before there is a chunk, so that a reader finds what has replaced it.
        Header and chunk are two reads, because a second call costs less than cutting one buffer in two.
        Raises `CorruptObject`, or `InvariantBroken` for a span outside the blob.
        """
        with self._lock:
            try:
                self._fd = open_to_read(self._file)
            except FileNotFoundError:
                return None
            try:
                self._begin(self._fd)
                return self._read()
            except Unavailable:  # the parts went away, and the blob before them
                self._close()
                return None
            except BaseException:
                self._close()
                raise

    def next_chunk(self) -> bytes:
        """The next chunk; the last one only once everything is verified. Closes after the last, and on a failure."""
        with self._lock:
            if self._fd is None:
                raise Unavailable("the stream was closed before its end")
            try:
                return self._read()
            except BaseException:
                self._close()
                raise

    @property
    def exhausted(self) -> bool:
        """Whether the last chunk has been returned."""
        return not self._left

    def close(self) -> None:
        """Close the file. Safe to repeat."""
        with self._lock:
            self._close()

    def _begin(self, fd: int) -> None:
        header = _read_header(fd, self._file)
        if header.path != self._revision.storage_path:
            raise CorruptObject(f"blob {self._file.stem}: the header names another object")
        span = Span(0, header.size) if self._span is None else self._span
        if self._span is not None:
            invariant(0 <= span.start < span.stop <= header.size, "a span lies within the blob")
        self.size = header.size
        self._left = len(span)
        whole = len(span) == header.size
        if header.parts:
            self._stretches = _stretches(_read_table(fd, header, self._file), None if whole else span)
        else:
            self._position = header.byte_count + span.start
            self._here = len(span)
            self._expected = header.checksum if whole else None

    def _read(self) -> bytes:
        if not self._here:
            self._next_file()
        size = min(self._here, self._chunk_bytes)
        chunk = b"" if self._fd is None else read_exactly(self._fd, size, self._position)
        if chunk is None:
            raise CorruptObject(f"blob {self._file.stem}: the file ends within its payload")
        self._position += size
        self._here -= size
        if self._expected is not None:
            self._checksum.update(chunk)
            if not self._here:
                self._verify(self._expected)
        if size == self._left:
            # Empty parts may follow, and nothing is whole before they are found to be there.
            self._next_file()
            self._close()
        self._left -= size
        return chunk

    def _verify(self, expected: bytes) -> None:
        if self._checksum.digest() != expected:
            raise CorruptObject(f"blob {self._file.stem}: the payload does not match its checksum")
        self._checksum.reset()

    def _next_file(self) -> None:
        """Open the next part that has bytes to be read, if there is one; check the empty ones before it."""
        for stretch in self._stretches:
            self._close()
            self._fd = self._open_part(stretch)
            whole = stretch.stop - stretch.start == stretch.size
            self._expected = stretch.checksum if whole else None
            self._position = PART_HEADER_BYTES + stretch.start
            self._here = stretch.stop - stretch.start
            if self._here:
                return

    def _open_part(self, stretch: _Stretch) -> int:
        uuid = self._revision.uuid
        try:
            fd, header = open_part(self._parts / part_name(stretch.number), uuid, stretch.number)
        except FileNotFoundError:
            # A delete takes the blob's file away before the parts.
            if self._file.exists():
                raise CorruptObject(f"blob {uuid}: part {stretch.number} is missing") from None
            raise Unavailable("the blob was deleted while it was being read") from None
        if (header.size, header.checksum, header.nonce) != (stretch.size, stretch.checksum, stretch.nonce):
            os.close(fd)
            raise CorruptObject(f"blob {uuid}: part {stretch.number} is another than the blob is made of")
        return fd

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
