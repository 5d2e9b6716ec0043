"""The file that holds one blob: its format, writing it, reading it. Blocking; no threads of its own.

::

    offset  bytes  field (big-endian)
         0      8  magic "TIERBLOB"
         8      1  format version, 1
         9      1  kind: 1, the payload follows in this file
        10      2  zero
        12      4  bytes of the storage path
        16      8  bytes of the payload
        24      8  when it was stored, Unix microseconds
        32     16  xxh3-128 of the payload
        48      8  xxh3-64 of the 48 bytes before this field and of the storage path
        56      …  the revision's storage path, UTF-8
         …      …  payload, to the end of the file

Guarantees: a file under its final name is whole; what does not match its checksums, its length or the revision's name
is found out, the payload's on a read of all of it. Does not: repair.

The file is complete in itself: from the files alone, every blob's object and revision can be told.
"""

import errno
import itertools
import os
import struct
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import xxhash

from tierstore.backends.long_term.store_directory import StoreDirectory
from tierstore.clock import UnixMicros
from tierstore.errors import CorruptObject, Unavailable
from tierstore.invariants import invariant
from tierstore.types.ids import Revision
from tierstore.types.ranges import Span

log = structlog.get_logger(__name__)

_MAGIC = b"TIERBLOB"
_VERSION = 1
_KIND_PAYLOAD = 1
_FIXED = struct.Struct(">8sBBHIQQ16s")
_CHECKSUM_BYTES = 8
_PREFIX_BYTES = _FIXED.size + _CHECKSUM_BYTES
_HEADER_READ_BYTES = 4096
"""One page: holds the header of all but the longest keys."""
_PATH_BYTES_MAX = 64 * 1024
"""Far above the longest storage path that `tierstore.limits` allows; bounds what a damaged length makes us read."""
_BUFFERS_MAX = 1024
"""Buffers of one gathering write (``IOV_MAX`` on Linux, macOS and the BSDs)."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a blob's payload."""

    path: str
    """The revision's storage path."""
    size: int
    stored: UnixMicros
    checksum: bytes

    def encode(self) -> bytes:
        """The header's bytes. Their number depends on the path alone."""
        path = self.path.encode()
        invariant(len(path) <= _PATH_BYTES_MAX, "a storage path fits its header")
        fixed = _FIXED.pack(
            _MAGIC, _VERSION, _KIND_PAYLOAD, 0, len(path), self.size, max(self.stored, 0), self.checksum
        )
        return fixed + _header_checksum(fixed, path) + path

    @property
    def byte_count(self) -> int:
        """Bytes of the header, and so the offset of the payload."""
        return _PREFIX_BYTES + len(self.path.encode())


def header_bytes_wanted(head: bytes) -> int:
    """How many bytes the header has that begins with ``head``. Raises `CorruptObject` if no header begins so."""
    if len(head) < _PREFIX_BYTES:
        raise CorruptObject("the file is shorter than a header")
    magic, version, kind, _, path_bytes, *_ = _FIXED.unpack_from(head)
    if magic != _MAGIC:
        raise CorruptObject("the file does not begin like a blob")
    if (version, kind) != (_VERSION, _KIND_PAYLOAD):
        raise CorruptObject(f"the header has version {version} and kind {kind}, which this release does not read")
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
    *_, size, stored, checksum = _FIXED.unpack_from(raw)
    try:
        return Header(path.decode(), size, stored, checksum)
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
        fd = _open(file)
    except FileNotFoundError:
        return None
    try:
        return _read_header(fd, file)
    finally:
        os.close(fd)


def _open(file: Path) -> int:
    return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read_header(fd: int, file: Path) -> Header:
    try:
        raw = os.pread(fd, _HEADER_READ_BYTES, 0)
        missing = header_bytes_wanted(raw) - len(raw)
        if missing > 0:
            raw += os.pread(fd, missing, len(raw))
        header = parse_header(raw)
        if not header.path.endswith(f"/{file.stem}"):
            raise CorruptObject("the header is that of another blob")
        if os.fstat(fd).st_size != header.byte_count + header.size:
            raise CorruptObject("the file is longer or shorter than its header says")
    except CorruptObject as error:
        raise CorruptObject(f"blob {file.stem}: {error}") from None
    return header


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
        self._offset = _write_all(fd, chunks, self._offset)

    def publish(self, chunks: Sequence[bytes], stored: UnixMicros) -> int:
        """Append the last chunks and make the blob durable and visible; return the bytes of its payload.

        Raises `Unavailable` if it may have become visible without being durable.
        """
        self.write(chunks)
        fd = self._descriptor()
        header = Header(self._path, self._offset - self._payload_offset, stored, self._checksum.digest())
        # Last, so that a file without a header is known to be unfinished.
        _write_all(fd, [header.encode()], 0)
        os.fsync(fd)
        replaces = self._file.exists()
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
            if self._appeared is not None and self._is_ours(self._appeared):
                self._store.remove(self._file)
        except OSError as error:
            log.warning("unfinished blob not removed", file=str(self._file), error=str(error))

    def _descriptor(self) -> int:
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600)
        return self._fd

    def _is_ours(self, appeared: os.stat_result) -> bool:
        try:
            return os.path.samestat(appeared, self._file.lstat())
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _write_all(fd: int, chunks: Sequence[bytes], offset: int) -> int:
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


class BlobReader:
    """One blob, or a span of it, being read. A call waits for the one that is under way in another thread."""

    size: int
    """Bytes of the whole payload, known once open."""

    def __init__(self, file: Path, revision: Revision, span: Span | None, chunk_bytes: int) -> None:
        self._file = file
        self._path = revision.storage_path
        self._span = span
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._position = 0
        self._left = 0
        self._expected: bytes | None = None
        """The checksum that the bytes must have; None when only some of them are read."""
        self._checksum = xxhash.xxh3_128()

    def open(self) -> bytes | None:
        """Open the blob and return its first chunk (empty if nothing is to be read), or None if it is absent.

        Header and chunk are two reads, because a second call costs less than cutting one buffer in two.
        Raises `CorruptObject`, or `InvariantBroken` for a span outside the blob.
        """
        with self._lock:
            try:
                self._fd = _open(self._file)
            except FileNotFoundError:
                return None
            try:
                self._begin(self._fd)
                return self._read(self._fd)
            except BaseException:
                self._close()
                raise

    def next_chunk(self) -> bytes:
        """The next chunk; the last one only once everything is verified. Closes after the last, and on a failure."""
        with self._lock:
            if self._fd is None:
                raise Unavailable("the stream was closed before its end")
            try:
                return self._read(self._fd)
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
        if header.path != self._path:
            raise CorruptObject(f"blob {self._file.stem}: the header names another object")
        span = Span(0, header.size) if self._span is None else self._span
        if self._span is not None:
            invariant(0 <= span.start < span.stop <= header.size, "a span lies within the blob")
        self.size = header.size
        self._position = header.byte_count + span.start
        self._left = len(span)
        self._expected = header.checksum if len(span) == header.size else None

    def _read(self, fd: int) -> bytes:
        chunk = _read_exactly(fd, min(self._left, self._chunk_bytes), self._position)
        if chunk is None:
            raise CorruptObject(f"blob {self._file.stem}: the file ends within its payload")
        last = len(chunk) == self._left
        if self._expected is not None:
            self._checksum.update(chunk)
            if last and self._checksum.digest() != self._expected:
                raise CorruptObject(f"blob {self._file.stem}: the payload does not match its checksum")
        self._position += len(chunk)
        self._left -= len(chunk)
        if last:
            self._close()
        return chunk

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _read_exactly(fd: int, size: int, offset: int) -> bytes | None:
    """``size`` bytes from ``offset``, or None if the file ends before."""
    chunk = os.pread(fd, size, offset)
    while len(chunk) < size:
        more = os.pread(fd, size - len(chunk), offset + len(chunk))
        if not more:
            return None
        chunk += more
    return chunk
