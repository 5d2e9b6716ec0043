"""The long-term store on a local filesystem: one file a blob, or one a part of its upload. POSIX only.

Guarantees, beyond the contract: file, file name and directories are synced before `put` returns; a blob becomes
visible by one atomic rename; no key of a user is part of a file name; a process that dies at any moment leaves
nothing but files that `remove_debris` of any other instance removes, and never takes from a living one, or that go with
the upload that they are of. The event loop never waits for the disk: everything blocking runs in a bounded pool of
threads. At most two chunks of a stream, and two batches of a write, are in memory.

Does not: keep copies, or repair. Needs a filesystem with atomic rename, fsync and flock: a local one, not a network
share. The files are described in `tierstore.backends.long_term.blob_file`, the directories in
`tierstore.backends.long_term.store_directory`, uploads in `tierstore.backends.long_term.upload_directory`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from tierstore import telemetry
from tierstore.backends.long_term.blob_file import BlobReader, BlobWriter, Header, make_durable, read_header
from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.backends.long_term.file_threads import FileThreads, Job, translate
from tierstore.backends.long_term.lateness import check_not_late
from tierstore.backends.long_term.part_file import PART_NONCE_BYTES, PartWriter
from tierstore.backends.long_term.store_directory import StoreDirectory, leaf_name
from tierstore.backends.long_term.upload_directory import Done, Held, UploadDirectory
from tierstore.backends.long_term.upload_line import UploadLine
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import CorruptObject, InvalidRequest, StartupError, TierstoreError, Unavailable
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.types.ids import AS_STORED, Revision
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.ranges import Span

log = structlog.get_logger(__name__)

T = TypeVar("T")

_BATCH_CHUNKS_MAX = 1024
"""Chunks that are written together, however short they are: as many as one gathering write takes."""
_LOCK_POLL_SECONDS = 0.01
_CHANGING = "others are changing the upload; try again"
_corrupt_reads = telemetry.corrupt_reads.labels("long_term")


class FilesystemLongTerm(LongTermBackend):
    """A long-term store in one directory, which any number of processes may have open."""

    def __init__(
        self, store: StoreDirectory, threads: FileThreads, limits: Limits, clock: Clock, ids: IdSource
    ) -> None:
        self._store = store
        self._threads = threads
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._lines: WeakValueDictionary[UUID, UploadLine] = WeakValueDictionary()
        """Of the uploads that an operation of this instance is changing."""
        self._streams: set[_FileBlobStream] = set()
        self._operations = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._closed = False
        self._close_lock = asyncio.Lock()

    @classmethod
    async def open(
        cls, root: Path, *, limits: Limits, clock: Clock, ids: IdSource, threads: int = 8, reserve_bytes: int = 0
    ) -> "FilesystemLongTerm":
        """Open the store in ``root``, made if it is missing (parents too, mode 0700), with ``threads`` threads.

        A put that would leave less than ``reserve_bytes`` of the disk free is refused with `StorageFull`, so that a
        database on the same disk, and deletes with it, can go on when the disk is full of blobs.
        Raises `StartupError` with a sentence for the operator if the directory cannot be used.
        """
        pool = FileThreads(threads, "long-term")
        try:
            store = await _hold(pool, root, ids.uuid(), limits, clock, reserve_bytes)
        except BaseException:
            pool.shutdown()
            raise
        return cls(store, pool, limits, clock, ids)

    async def put(
        self,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        not_after: UnixMicros | None = None,
    ) -> BlobInfo:
        with self._operation():
            writer = BlobWriter(self._store, revision, size)
            writing = _Writing(writer, self._threads, self._limits.stream_chunk_bytes, size)
            try:
                async for chunk in source:
                    await writing.add(chunk)
                rest = await writing.rest()
                stored = self._clock.now()
                written = await self._threads.run(writer.publish, rest, stored, self._in_time(not_after))
            except BaseException:
                await writing.discard()
                raise
            return BlobInfo(revision, written, stored)

    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        with self._operation():
            file = self._store.blob_file(revision.uuid)
            reader = BlobReader(file, revision, span, self._limits.stream_chunk_bytes)
            try:
                with _counted():
                    first = await self._threads.run(reader.open)
            except BaseException:
                await self._threads.complete(reader.close)
                raise
            if first is None:
                return None
            return _FileBlobStream(reader, first, self._threads, self._streams)

    async def head(self, revision: Revision) -> BlobInfo | None:
        with self._operation(), _counted():
            header = await self._threads.run(self._header, revision)
            if header is None:
                return None
            if header.path != revision.storage_path:
                raise CorruptObject(f"blob {revision.uuid}: the header names another object")
            return BlobInfo(revision, header.size, header.stored)

    async def delete(self, revision: Revision) -> None:
        with self._operation():
            if revision.is_upload:
                upload = self._upload(revision)
                await self._locked(upload, revision, lambda _: upload.delete())
            else:
                await self._threads.run(self._store.remove, self._store.blob_file(revision.uuid))

    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        """As the contract says, in the order of the leaf directories and then of the UUIDs.

        Opens every file up to the last one of the page, whatever its prefix: for operators' tools and tests. Files
        that are not blobs are passed over, damaged ones are logged as well.
        """
        with self._operation():
            begin = "" if after is None else leaf_name(after.uuid)
            page: list[BlobInfo] = []
            for leaf in await self._threads.run(self._store.leaves):
                if leaf >= begin and len(page) < limit:
                    last = after.uuid if after is not None and leaf == begin else None
                    page += await self._threads.run(self._scan, leaf, prefix, last, limit - len(page))
            return page

    async def initiate(self, revision: Revision, *, not_after: UnixMicros | None = None) -> str:
        with self._operation():
            upload = self._upload(revision)
            beginning = self._threads.start(upload.begin, self._clock.now(), self._in_time(not_after))
            try:
                await beginning.result()
            except asyncio.CancelledError:
                try:
                    await beginning.settle()
                finally:
                    # Nobody knows of it yet, so nobody holds it.
                    await self._threads.complete(upload.locked, partial(upload.abort, False))
                raise
            return ""

    def _in_time(self, not_after: UnixMicros | None) -> Callable[[], None]:
        """Raises `GivenUp` when ``not_after`` is over; called in the thread that makes something appear."""
        return partial(check_not_late, self._clock, not_after)

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        invariant(1 <= number <= self._limits.parts_max, "a part has a number from 1 to parts_max")
        with self._operation():
            revision = upload.revision
            directory = self._upload(revision)
            await self._threads.run(directory.require)
            writer = PartWriter(self._store, revision, number, size, self._ids.version()[-PART_NONCE_BYTES:])
            writing = _Writing(writer, self._threads, self._limits.stream_chunk_bytes, size)
            try:
                async for chunk in source:
                    await writing.add(chunk)
                rest = await writing.rest()
                part = await self._threads.run(writer.finish, rest, self._clock.now(), md5)
                await self._publish(directory, revision, writer)
            except BaseException:
                await writing.discard()
                raise
            # Not waited for: a cancellation during the wait would come too late to take the part back.
            self._threads.start(writer.discard)
            return part

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        with self._operation():
            return await self._threads.run(self._upload(upload.revision).parts, after, limit)

    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        with self._operation():
            revision = upload.revision
            work = partial(self._upload(revision).complete, parts, self._clock.now())
            await self._locked(self._upload(revision), revision, work)

    async def abort(self, upload: UploadId | Revision) -> None:
        with self._operation():
            known = isinstance(upload, UploadId)
            revision = upload.revision if isinstance(upload, UploadId) else upload
            directory = self._upload(revision)
            await self._locked(directory, revision, partial(directory.abort, known))

    async def remove_debris(self) -> int:
        with self._operation():
            return await self._threads.run(self._store.remove_debris)

    async def identity(self) -> UUID | None:
        with self._operation():
            return await self._threads.run(self._store.identity)

    async def adopt(self, identity: UUID) -> UUID:
        with self._operation():
            return await self._threads.complete(self._store.adopt, identity)

    async def check(self) -> None:
        with self._operation():
            await self._threads.run(self._store.check)

    async def close(self) -> None:
        self._closing = True
        await self._idle.wait()
        async with self._close_lock:
            if self._closed:
                return
            for stream in list(self._streams):
                await stream.aclose()
            self._closed = True
            try:
                await self._threads.complete(self._store.close)
            finally:
                self._threads.shutdown()

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """Keep `close` waiting for the operation within; refuse it once closing."""
        if self._closing:
            raise Unavailable("the blob store is closed")
        self._operations += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._operations -= 1
            if not self._operations:
                self._idle.set()

    def _upload(self, revision: Revision) -> UploadDirectory:
        return UploadDirectory(self._store, revision, self._limits)

    def _line(self, revision: Revision) -> UploadLine:
        return self._lines.setdefault(revision.uuid, UploadLine())

    async def _locked(self, upload: UploadDirectory, revision: Revision, work: Callable[[bool], T]) -> T:
        """The result of ``work``, done while the upload is locked; it is told whether there is one.

        Raises `Unavailable` if others, of this instance too, hold it for ``upload_lock_wait_seconds_max``: nothing was
        done.
        """
        seconds = self._limits.upload_lock_wait_seconds_max
        ends = self._clock.monotonic() + seconds
        line = self._line(revision)
        try:
            async with asyncio.timeout(seconds):
                await line.turn.acquire()
        except TimeoutError:
            raise Unavailable(_CHANGING) from None
        try:
            return await self._held(lambda: self._threads.run(upload.locked, work), ends)
        finally:
            line.turn.release()

    async def _held(self, attempt: Callable[[], Awaitable[Done[T] | Held]], ends: float) -> T:
        """The result of what ``attempt`` does, once no other process holds the upload.

        Raises `Unavailable` if one holds it until ``ends``, and at the first attempt after that: nothing was done.
        """
        while True:
            outcome = await attempt()
            if isinstance(outcome, Done):
                return outcome.result
            if self._clock.monotonic() >= ends:
                raise Unavailable(_CHANGING)
            await self._clock.sleep(_LOCK_POLL_SECONDS)

    async def _publish(self, upload: UploadDirectory, revision: Revision, writer: PartWriter) -> None:
        """Make a finished part one of the upload's, durably. If its caller is cancelled, take it back.

        Its turn in this instance is waited for without a bound of its own, because all of its bytes have come; a
        complete or an abort that is before it ends by itself, and parts are published together.
        """
        ends = self._clock.monotonic() + self._limits.upload_lock_wait_seconds_max
        line = self._line(revision)
        part = line.join(writer)
        try:
            async with line.turn:
                if not part.is_taken:
                    await self._held(lambda: self._threads.run(upload.locked, partial(upload.publish, line)), ends)
            if part.error is not None:
                raise translate(part.error) if isinstance(part.error, OSError) else part.error
            await line.make_durable(part, self._threads.run)
        except BaseException as error:
            if not line.leave(part) and isinstance(error, asyncio.CancelledError):
                await self._withdraw(upload, revision, writer)
            raise

    async def _withdraw(self, upload: UploadDirectory, revision: Revision, writer: PartWriter) -> None:
        """Take a part back, because its caller was cancelled, however often. Raises nothing of the store's.

        The caller re-raises the cancellation that it is handling. Later ones change nothing: this ends by itself.
        """
        ends = self._clock.monotonic() + self._limits.upload_lock_wait_seconds_max
        while True:
            attempt = self._threads.start(upload.locked, partial(upload.withdraw, writer))
            with suppress(asyncio.CancelledError):
                await attempt.end()
            try:
                if isinstance(await attempt.result(), Done):
                    return
                if self._clock.monotonic() >= ends:
                    raise Unavailable(_CHANGING)
            except TierstoreError as error:
                log.warning("cancelled part not withdrawn", blob=str(revision.uuid), error=str(error))
                return
            with suppress(asyncio.CancelledError):
                await self._clock.sleep(_LOCK_POLL_SECONDS)

    def _header(self, revision: Revision) -> Header | None:
        """The header of a blob, or None; the blob of an upload is durable by then. Blocking."""
        file = self._store.blob_file(revision.uuid)
        header = read_header(file)
        if header is not None and revision.is_upload:
            # Whoever has made it may still be at that, or have died or failed over it.
            make_durable(self._store, file)
        return header

    def _scan(self, leaf: str, prefix: str, after: UUID | None, limit: int) -> Sequence[BlobInfo]:
        """The blobs of one leaf directory whose paths have the prefix. Blocking."""
        found: list[BlobInfo] = []
        for uuid in self._store.uuids(leaf):
            if len(found) == limit:
                break
            if after is not None and uuid <= after:
                continue
            try:
                header = read_header(self._store.blob_file(uuid))
                if header is not None and header.path.startswith(prefix):
                    found.append(_blob_info(header))
            except (CorruptObject, InvalidRequest) as error:
                log.warning("damaged blob passed over by a listing", blob=str(uuid), error=str(error))
        return found


def _blob_info(header: Header) -> BlobInfo:
    return BlobInfo(Revision.from_storage_path(header.path, AS_STORED), header.size, header.stored)


async def _hold(
    pool: FileThreads, root: Path, instance: UUID, limits: Limits, clock: Clock, reserve_bytes: int
) -> StoreDirectory:
    """Open the directory, waiting for other processes that are starting on it too."""
    seconds = limits.directory_lock_wait_seconds_max
    deadline = clock.monotonic() + seconds
    while True:
        opening = pool.start(StoreDirectory.open, root, instance, reserve_bytes)
        try:
            store = await opening.result()
        except asyncio.CancelledError:
            try:
                await opening.end()
            finally:
                if (store := await opening.result()) is not None:
                    store.close()
            raise
        if store is not None:
            return store
        if clock.monotonic() >= deadline:
            raise StartupError(f"another process has held {root / 'lock'} for {seconds:.0f} seconds")
        await clock.sleep(_LOCK_POLL_SECONDS)


@contextmanager
def _counted() -> Iterator[None]:
    """Count a read that fails because the stored bytes are damaged."""
    try:
        yield
    except CorruptObject:
        _corrupt_reads.inc()
        raise


class _Writer(Protocol):
    """What a payload is written with."""

    def write(self, chunks: Sequence[bytes]) -> None:
        """Append the chunks. Blocking."""

    def discard(self) -> None:
        """Remove what is left of an unfinished file. Blocking; raises nothing."""


class _Writing:
    """A payload on its way: gathers chunks into batches, and writes one while the next is gathered."""

    def __init__(self, writer: _Writer, threads: FileThreads, batch_bytes_min: int, size: int | None) -> None:
        self._writer = writer
        self._threads = threads
        self._batch_bytes_min = batch_bytes_min
        self._size = size
        self._received = 0
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._job: Job[None] | None = None

    async def add(self, chunk: bytes) -> None:
        """Take a chunk; wait only if the batch before is still being written when this one is full."""
        self._batch.append(chunk)
        self._batch_bytes += len(chunk)
        self._received += len(chunk)
        if self._size is not None:
            invariant(self._received <= self._size, "a source yields no more bytes than it announced")
        if self._batch_bytes >= self._batch_bytes_min or len(self._batch) == _BATCH_CHUNKS_MAX:
            await self._written()
            self._job = self._threads.start(self._writer.write, self._batch)
            self._batch, self._batch_bytes = [], 0

    async def rest(self) -> Sequence[bytes]:
        """What is left to be written, once all before it has been."""
        if self._size is not None:
            invariant(self._received == self._size, "a source yields as many bytes as it announced")
        await self._written()
        return self._batch

    async def discard(self) -> None:
        """Leave nothing behind; waits for a batch that is being written."""
        try:
            if self._job is not None:
                await self._job.end()
        finally:
            await self._threads.complete(self._writer.discard)

    async def _written(self) -> None:
        if self._job is not None:
            await self._job.result()
            self._job = None


class _FileBlobStream(BlobStream):
    """A blob being read. Reads the next chunk while its consumer has the one before."""

    def __init__(
        self, reader: BlobReader, first: bytes, threads: FileThreads, open_streams: "set[_FileBlobStream]"
    ) -> None:
        self.size = reader.size
        self._reader = reader
        self._threads = threads
        self._open_streams = open_streams
        self._first: bytes | None = first
        self._next: Job[bytes] | None = None
        self._closed = False
        if not reader.exhausted:
            open_streams.add(self)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._closed:
            raise Unavailable("the stream was closed before its end")
        if self._first is not None:
            chunk, self._first = self._first, None
        elif self._next is not None:
            chunk = await self._next.result()
        else:
            chunk = b""
        if not chunk:
            raise StopAsyncIteration
        self._next = None
        if self._reader.exhausted:
            self._open_streams.discard(self)
        elif not self._closed:
            self._next = self._threads.start(self._read)
        return chunk

    async def aclose(self) -> None:
        self._closed = self._closed or self._next is not None or self._first is not None
        if self in self._open_streams:
            await self._threads.complete(self._reader.close)
            self._open_streams.discard(self)

    def _read(self) -> bytes:
        with _counted():
            return self._reader.next_chunk()
