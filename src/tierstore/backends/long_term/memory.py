"""A long-term store in a dict, for tests and the simulator.

Keeps every law of the contract but durability: what it holds lives as long as its `MemoryBlobs`, which several
instances may share as several processes share a disk, and which outlives them. No deployment can be configured to use
it. It suspends (``clock.sleep(0)``) wherever a real store would, so that whatever can happen meanwhile does.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from uuid import UUID

import xxhash

from tierstore import telemetry
from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.backends.long_term.lateness import check_not_late
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import (
    ChecksumMismatch,
    CorruptObject,
    EntityTooSmall,
    InvalidPart,
    NoSuchUpload,
    ObjectTooLarge,
    Unavailable,
)
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.types.ids import Revision
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId, check_part_order
from tierstore.types.ranges import Span

_corrupt_reads = telemetry.corrupt_reads.labels("long_term")


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What stands for a file: the payload, and what was known of it when it was stored."""

    payload: bytes
    size: int
    checksum: bytes
    stored: UnixMicros


class Repeats(Enum):
    """What a store answers to `complete` and `abort` of an upload that is not in progress."""

    SUCCEED = "success"
    NOT_FOUND = "not found"


@dataclass(slots=True)
class StoredPart:
    """A part of an upload in progress."""

    part: Part
    payload: bytes


@dataclass(slots=True)
class MemoryUpload:
    """An upload in progress."""

    revision: Revision
    """Of what, as the upload itself says."""
    store_id: str
    parts: dict[int, StoredPart] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryBlobs:
    """What stands for the disk."""

    by_revision: dict[Revision, StoredBlob] = field(default_factory=dict)
    unfinished: set[object] = field(default_factory=set)
    """Writes that have begun and not ended."""
    uploads: dict[Revision, MemoryUpload] = field(default_factory=dict)
    """Uploads in progress."""
    uploads_begun: int = 0
    identity: UUID | None = None


class MemoryLongTerm(LongTermBackend):
    """One instance on ``blobs``."""

    def __init__(
        self, blobs: MemoryBlobs, *, limits: Limits, clock: Clock, repeats: Repeats = Repeats.NOT_FOUND
    ) -> None:
        self._blobs = blobs
        self._repeats = repeats
        self._limits = limits
        self._clock = clock
        self._closed = False

    async def put(
        self,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        not_after: UnixMicros | None = None,
    ) -> BlobInfo:
        await self._arrive()
        payload = await self._read(source, size)
        check_not_late(self._clock, not_after)
        return self._publish(revision, payload)

    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        await self._arrive()
        blob = self._blobs.by_revision.get(revision)
        if blob is None:
            return None
        _verify_size(revision, blob)
        if span is not None:
            invariant(0 <= span.start < span.stop <= blob.size, "a span lies within the blob")
        selected = Span(0, blob.size) if span is None else span
        return _MemoryBlobStream(revision, blob, selected, self._limits, self._clock)

    async def head(self, revision: Revision) -> BlobInfo | None:
        await self._arrive()
        blob = self._blobs.by_revision.get(revision)
        if blob is None:
            return None
        _verify_size(revision, blob)
        return BlobInfo(revision, blob.size, blob.stored)

    async def delete(self, revision: Revision) -> None:
        await self._arrive()
        self._blobs.by_revision.pop(revision, None)

    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        """As the contract says, in the order of the storage paths. Damaged blobs are passed over."""
        await self._arrive()
        last = "" if after is None else after.storage_path
        page: list[BlobInfo] = []
        for revision, blob in sorted(self._blobs.by_revision.items(), key=lambda item: item[0].storage_path):
            path = revision.storage_path
            if len(page) < limit and path > last and path.startswith(prefix) and len(blob.payload) == blob.size:
                page.append(BlobInfo(revision, blob.size, blob.stored))
        return page

    async def initiate(self, revision: Revision, *, not_after: UnixMicros | None = None) -> str:
        await self._arrive()
        check_not_late(self._clock, not_after)
        self._blobs.uploads_begun += 1
        store_id = f"upload-{self._blobs.uploads_begun}"
        self._blobs.uploads[revision] = MemoryUpload(revision, store_id)
        return store_id

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        await self._arrive()
        self._in_progress(upload)
        payload = await self._read(source, size)
        digest = hashlib.md5(payload, usedforsecurity=False)
        if md5 not in {None, digest.digest()}:
            raise ChecksumMismatch("the part does not have the MD5 that was announced")
        part = Part(number, digest.hexdigest(), len(payload), self._clock.now())
        self._in_progress(upload).parts[number] = StoredPart(part, payload)
        return part

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        await self._arrive()
        known = self._blobs.uploads.get(upload.revision)
        store_id = upload.store_id or ("" if known is None else known.store_id)
        parts = self._in_progress(replace(upload, store_id=store_id)).parts
        found = [parts[number].part for number in sorted(parts) if number > after]
        return PartsPage(found[:limit], len(found) > limit, store_id)

    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        await self._arrive()
        await self._clock.sleep(0)
        try:
            stored = self._in_progress(upload).parts
        except NoSuchUpload:
            if self._repeats is Repeats.SUCCEED:
                return
            raise
        payload = self._assembled(parts, stored)
        del self._blobs.uploads[upload.revision]
        self._publish(upload.revision, payload)
        await self._clock.sleep(0)

    async def abort(self, upload: UploadId | Revision) -> None:
        await self._arrive()
        if isinstance(upload, Revision):
            self._blobs.uploads.pop(upload, None)
            return
        try:
            self._known(upload)
        except NoSuchUpload:
            if self._repeats is Repeats.SUCCEED:
                return
            raise
        del self._blobs.uploads[upload.revision]

    async def remove_debris(self) -> int:
        # A write that dies takes all it had with it: its bytes were in its own frame.
        await self._arrive()
        return 0

    async def identity(self) -> UUID | None:
        await self._arrive()
        return self._blobs.identity

    async def adopt(self, identity: UUID) -> UUID:
        await self._arrive()
        self._blobs.identity = self._blobs.identity or identity
        return self._blobs.identity

    async def check(self) -> None:
        await self._arrive()

    async def close(self) -> None:
        self._closed = True

    def _in_progress(self, upload: UploadId) -> MemoryUpload:
        """The upload; raises `NoSuchUpload`, and `CorruptObject` for one that is damaged."""
        found = self._known(upload)
        if found.revision != upload.revision:
            raise CorruptObject(f"upload {upload.revision.uuid}: it says that it is another's")
        return found

    def _known(self, upload: UploadId) -> MemoryUpload:
        """The upload, damaged or not; raises `NoSuchUpload`."""
        found = self._blobs.uploads.get(upload.revision)
        if found is None or found.store_id != upload.store_id:
            raise NoSuchUpload("the store has no such upload")
        return found

    def _assembled(self, parts: Sequence[PartName], stored: dict[int, StoredPart]) -> bytes:
        """What completing with ``parts`` makes, or the error that says why it cannot."""
        check_part_order(parts)
        payloads = []
        for name in parts:
            found = stored.get(name.number)
            if found is None or found.part.etag != name.etag:
                raise InvalidPart(f"part {name.number} has not been uploaded, or has another ETag")
            payloads.append(found.payload)
        if any(len(payload) < self._limits.part_bytes_min for payload in payloads[:-1]):
            raise EntityTooSmall(f"all parts but the last have at least {self._limits.part_bytes_min} bytes")
        if sum(map(len, payloads)) > self._limits.object_bytes_max:
            raise ObjectTooLarge(f"an object has at most {self._limits.object_bytes_max} bytes")
        return b"".join(payloads)

    async def _read(self, source: AsyncIterator[bytes], size: int | None) -> bytes:
        """All of ``source``, which must be ``size`` bytes if that is known."""
        unfinished = object()
        self._blobs.unfinished.add(unfinished)
        try:
            payload = bytearray()
            async for chunk in source:
                payload += chunk
                invariant(size is None or len(payload) <= size, "a source yields no more bytes than it announced")
                await self._clock.sleep(0)
            invariant(size in {None, len(payload)}, "a source yields as many bytes as it announced")
            await self._clock.sleep(0)
        finally:
            self._blobs.unfinished.discard(unfinished)
        return bytes(payload)

    def _publish(self, revision: Revision, payload: bytes) -> BlobInfo:
        blob = StoredBlob(payload, len(payload), xxhash.xxh3_128_digest(payload), self._clock.now())
        self._blobs.by_revision[revision] = blob
        return BlobInfo(revision, blob.size, blob.stored)

    async def _arrive(self) -> None:
        if self._closed:
            raise Unavailable("the blob store is closed")
        await self._clock.sleep(0)


def _verify_size(revision: Revision, blob: StoredBlob) -> None:
    if len(blob.payload) != blob.size:
        _corrupt_reads.inc()
        raise CorruptObject(f"blob {revision.uuid}: it is longer or shorter than it was stored")


class _MemoryBlobStream(BlobStream):
    """A blob being read. Holds the bytes, so that a delete does not tear it."""

    def __init__(self, revision: Revision, blob: StoredBlob, span: Span, limits: Limits, clock: Clock) -> None:
        self.size = blob.size
        self._revision = revision
        self._blob = blob
        self._position = span.start
        self._stop = span.stop
        self._verified = len(span) == blob.size
        self._chunk_bytes = limits.stream_chunk_bytes
        self._clock = clock
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await self._clock.sleep(0)
        if self._closed:
            raise Unavailable("the stream was closed before its end")
        end = min(self._position + self._chunk_bytes, self._stop)
        if self._verified and end == self._stop and xxhash.xxh3_128_digest(self._blob.payload) != self._blob.checksum:
            _corrupt_reads.inc()
            raise CorruptObject(f"blob {self._revision.uuid}: the payload does not match its checksum")
        if self._position == end:
            raise StopAsyncIteration
        chunk = self._blob.payload[self._position : end]
        self._position = end
        return chunk

    async def aclose(self) -> None:
        self._closed = self._position < self._stop
