"""The long-term store in a bucket of any store that speaks S3, with signatures of version 4.

A blob is one object: its payload, and at the end a trailer with length and checksum; that of an upload is its parts,
each with its trailer (`tierstore.object_storage.trailer`). So whatever the store takes for whole without its end is not
taken for a blob, and a full read verifies what any store gives back, whether or not it has checksums of its own. Names
are in `tierstore.object_storage.names`, uploads in `tierstore.backends.long_term.s3_uploads`.

Guarantees, beyond the contract: payloads of known length are streamed, and at most 8 MiB of others
are in memory; the end of a payload is sent only after the source has ended well and the time has not come
(``not_after``), so until then the store can make nothing of it. A cancellation that comes later waits for the store's
answer.

Does not: keep the store from applying late what it has been sent in time. That is what entries of the change log are
kept for (docs/decisions/0015). Needs a store that reads what it has written, and that heeds ``If-None-Match: *``, the
latter only when the store is new. What it calls durable is the store's own word.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from urllib.parse import urlsplit
from uuid import UUID

import structlog
import xxhash

from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.backends.long_term.lateness import check_not_late
from tierstore.backends.long_term.s3_answers import FROM_THE_FIRST, answered, sentence_of
from tierstore.backends.long_term.s3_bucket import S3Bucket, Stored, bucket_address
from tierstore.backends.long_term.s3_credentials import S3Credentials
from tierstore.backends.long_term.s3_layouts import S3Layouts, is_of
from tierstore.backends.long_term.s3_puts import PutByParts
from tierstore.backends.long_term.s3_stream import BucketBlobStream, corrupt
from tierstore.backends.long_term.s3_uploads import S3Sizes, S3Uploads
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import CorruptObject, InvalidRequest, NotOffered, StartupError, Unavailable
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import MIB, Limits
from tierstore.object_storage.layout import KnownLayout, Layout
from tierstore.object_storage.names import Names
from tierstore.object_storage.payload import OutgoingPayload
from tierstore.object_storage.trailer import TRAILER_BYTES_MAX, Trailer, kept_path, trailer_bytes
from tierstore.object_storage.transport import Download, Transport, report_failure, trusting, until_whole
from tierstore.tasks import TaskOwner, for_each
from tierstore.types.ids import AS_STORED, UPLOAD_UUID_VERSION, Revision
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId
from tierstore.types.ranges import Span

log = structlog.get_logger(__name__)

_SIZES = S3Sizes()
_PREFETCHED_BYTES_MAX = 64 * 1024
"""Blobs up to this are read at once, so that who opens them and does not read on holds no connection."""
_AWS_PART_BYTES_MIN = 5 * MIB
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
_IDENTITY_BEGINS = "tierstore "
_HEADS_AT_ONCE = 16
_TASKS_MAX = 1 << 20
"""No bound of its own: each call has at most one task, and calls are bounded by the service."""


class S3LongTerm(LongTermBackend):
    """One instance on a bucket."""

    def __init__(
        self,
        bucket: S3Bucket,
        transport: Transport,
        credentials: S3Credentials,
        tasks: TaskOwner,
        names: Names,
        *,
        sizes: S3Sizes,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._bucket = bucket
        self._transport = transport
        self._credentials = credentials
        self._tasks = tasks
        self._names = names
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._sizes = sizes
        self._layouts = S3Layouts(bucket, names, limits)
        self._uploads = S3Uploads(
            bucket,
            names,
            self._layouts,
            tasks,
            stall_seconds=transport.timeout_seconds,
            sizes=sizes,
            limits=limits,
            clock=clock,
            ids=ids,
        )
        self._streams: set[BucketBlobStream] = set()
        self._operations = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._closed = asyncio.Lock()
        self._debris_after = FROM_THE_FIRST

    @classmethod
    async def open(
        cls,
        *,
        bucket: str,
        endpoint: str = "",
        region: str = "us-east-1",
        prefix: str = "tierstore",
        path_style: bool = True,
        ca: str = "",
        profile: str = "",
        connections_max: int = 256,
        timeout_seconds: float = 30.0,
        sizes: S3Sizes = _SIZES,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> "S3LongTerm":
        """Find the credentials and look at the bucket. Raises `StartupError` with a sentence for the operator."""
        _check_part_sizes(limits, sizes.buffer_bytes, at_aws=not endpoint)
        names = Names(prefix)
        if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
            raise StartupError(
                f"the endpoint {endpoint} of the long-term store does not begin with http:// or https://"
            )
        tls = trusting(ca)
        tasks = TaskOwner(_TASKS_MAX, report_failure)
        credentials = await S3Credentials.open(
            profile=profile, region=region, tasks=tasks, clock=clock, timeout_seconds=timeout_seconds
        )
        transport = Transport(
            credentials,
            tls=tls,
            connections_max=connections_max,
            timeout_seconds=timeout_seconds,
            limits=limits,
            clock=clock,
            ids=ids,
        )
        address = bucket_address(endpoint, region, bucket, path_style=path_style)
        opened = cls(
            S3Bucket(transport, address),
            transport,
            credentials,
            tasks,
            names,
            sizes=sizes,
            limits=limits,
            clock=clock,
            ids=ids,
        )
        try:
            await opened._look_at_bucket(bucket, endpoint or address)
        except BaseException:
            await opened.close()
            raise
        return opened

    async def _look_at_bucket(self, bucket: str, address: str) -> None:
        try:
            answer = await self._bucket.look()
        except Unavailable as error:
            raise StartupError(f"the object store at {address} cannot be used: {error}") from error
        if not answer.is_success:
            raise StartupError(f"the bucket {bucket} at {address} cannot be used: {sentence_of(answer)}")

    # Blobs

    async def put(
        self,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        not_after: UnixMicros | None = None,
    ) -> BlobInfo:
        with self._operation():
            if size is not None and size + trailer_bytes(revision) <= self._sizes.request_bytes_max:
                return await self._put_at_once(revision, source, size, not_after)
            by_parts = PutByParts(
                self._bucket, self._uploads, self._names.blob(revision), revision, source, size,
                stall_seconds=self._transport.timeout_seconds, sizes=self._sizes, limits=self._limits,
                clock=self._clock, not_after=not_after,
            )  # fmt: skip
            short = await by_parts.short()
            if short is not None:
                return await self._put_at_once(revision, short.source, short.size, not_after)
            answer = await until_whole(self._tasks, "s3_put_by_parts", by_parts, by_parts.run())
            return BlobInfo(revision, by_parts.size, answered(answer, self._clock.now()))

    async def _put_at_once(
        self, revision: Revision, source: AsyncIterator[bytes], size: int, not_after: UnixMicros | None
    ) -> BlobInfo:
        checksum = xxhash.xxh3_128()

        def tail() -> bytes:
            check_not_late(self._clock, not_after)
            return Trailer(0, size, checksum.digest()).encode(revision)

        payload = OutgoingPayload(
            source,
            size,
            digests=(checksum,),
            tail_bytes=trailer_bytes(revision),
            tail=tail,
            stall_seconds=self._transport.timeout_seconds,
        )
        sending = self._bucket.send(self._bucket.url(self._names.blob(revision)), payload)
        answer = await until_whole(self._tasks, "s3_put", payload, sending)
        return BlobInfo(revision, size, answered(answer, self._clock.now()))

    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        if span is not None:
            invariant(0 <= span.start < span.stop, "a span lies within the blob")
        with self._operation():
            stream = await (self._read_parts if revision.is_upload else self._read)(revision, span)
            if stream is None:
                return None
            try:
                if stream.remaining_bytes <= _PREFETCHED_BYTES_MAX:
                    await stream.prefetch()
            except BaseException:
                await stream.aclose()
                raise
            return stream

    async def _read(self, revision: Revision, span: Span | None) -> BucketBlobStream | None:
        """A blob that is in one piece: where its bytes are is known, and how many there are comes with them."""
        end = trailer_bytes(revision)
        wanted = span
        if span is not None and span.start == 0:  # if this is all of it, its trailer is wanted too
            wanted = Span(0, span.stop + end)
        found = await self._bucket.read(self._names.blob(revision), wanted)
        if found is None:
            return None
        stored, download = found
        try:
            if stored.stored_bytes < end:
                raise corrupt(revision, "it is shorter than anything that is stored")
            layout = Layout(revision, [stored.stored_bytes - end])
            if span is not None:
                invariant(span.stop <= layout.size, "a span lies within the blob")
            return self._stream(revision, layout, span, download)
        except BaseException:
            if download is not None:
                download.close()
            raise

    async def _read_parts(self, revision: Revision, span: Span | None) -> BucketBlobStream | None:
        """A blob that an upload has made."""
        name = self._names.blob(revision)
        known = await self._layouts.expected(revision)
        if known is not None and span is not None and span.stop > known.layout.size:
            known = None  # it is not that of the blob, in which the span lies
        for _ in range(2):
            if known is None:
                known = await self._found_out(revision)
            if known is None:
                return None
            if span is not None:
                invariant(span.stop <= known.layout.size, "a span lies within the blob")
            wanted = None if span is None or len(span) == known.layout.size else span
            found = await self._bucket.read(name, None if wanted is None else known.layout.stored_span(wanted))
            if found is None:
                self._layouts.drop(revision)
                return None
            stored, download = found
            if is_of(known, stored):
                return self._stream(revision, known.layout, wanted, download)
            if download is not None:
                download.close()
            self._layouts.drop(revision)
            known = None
        raise Unavailable("the blob has changed while it was looked at; try again")

    async def _found_out(self, revision: Revision) -> KnownLayout | None:
        found = await self._bucket.end(self._names.blob(revision), trailer_bytes(revision))
        return None if found is None else await self._layouts.found_out(revision, *found)

    def _stream(
        self, revision: Revision, layout: Layout, span: Span | None, download: Download | None
    ) -> BucketBlobStream:
        if download is None:
            raise corrupt(revision, "it is shorter than it was stored")
        is_all = span is None or len(span) == layout.size
        stream = BucketBlobStream(
            revision,
            layout,
            None if is_all else span,
            download,
            chunk_bytes=self._limits.stream_chunk_bytes,
            ended=self._streams.discard,
        )
        self._streams.add(stream)
        return stream

    async def head(self, revision: Revision) -> BlobInfo | None:
        with self._operation():
            found = await self._bucket.end(self._names.blob(revision), trailer_bytes(revision))
            if found is not None:
                return await self._known(revision, *found, keep=True)
            if revision.is_upload:  # what a call that was slower than a delete may have left beside it
                await self._layouts.forget(revision)
            return None

    async def _known(self, revision: Revision, stored: Stored, end: bytes, *, keep: bool) -> BlobInfo:
        """What is known of a blob whose last bytes are ``end``. Raises `CorruptObject`."""
        trailer = Trailer.decode(end, revision)
        if revision.is_upload:
            size = (await self._layouts.certain(revision, stored, end, keep=keep)).layout.size
        else:
            size = stored.stored_bytes - trailer_bytes(revision)
            if trailer.size != size or trailer.number:
                raise corrupt(revision, "it is shorter or longer than it was stored")
        return BlobInfo(revision, size, stored.stored)

    async def delete(self, revision: Revision) -> None:
        with self._operation():
            await self._bucket.delete(self._names.blob(revision))
            if revision.is_upload:  # after it, so that a reader never finds a blob without them
                await self._layouts.forget(revision)
                await self._uploads.forget_replaced(revision)

    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        """As the contract says, in the order of the names in the bucket."""
        with self._operation():
            last = "" if after is None else self._names.blob(after)
            found: list[BlobInfo] = []
            truncated = True
            while truncated and len(found) < limit:
                names, truncated = await self._bucket.names(self._names.listing(prefix), last, 2 * limit)
                blobs = [name for name in names if self._names.is_blob(name)]
                looked_at = blobs[: limit - len(found)]
                known = await self._all_listed(looked_at, prefix)
                found += [info for info in known if info is not None]
                if not names:
                    break
                last = names[-1]
                if len(looked_at) < len(blobs):
                    last, truncated = looked_at[-1], True
            return found

    async def _all_listed(self, names: Sequence[str], prefix: str) -> Sequence[BlobInfo | None]:
        async def look(place: int) -> tuple[int, BlobInfo | None]:
            return place, await self._listed(names[place], prefix)

        try:
            known = await for_each(range(len(names)), look, at_once=_HEADS_AT_ONCE)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [info for _, info in sorted(known, key=itemgetter(0))]

    async def _listed(self, name: str, prefix: str) -> BlobInfo | None:
        """What a listing says of the blob with this name; None if it is not meant, has gone, or cannot be read."""
        try:
            revision = self._names.revision(name)
            if revision is not None and not revision.storage_path.startswith(prefix):
                return None
            found = await self._bucket.end(name, TRAILER_BYTES_MAX if revision is None else trailer_bytes(revision))
            if found is None:
                return None
            stored, end = found
            if revision is None:
                revision = self._revision_in(name, end)
                if not revision.storage_path.startswith(prefix):
                    return None
            return await self._known(revision, stored, end[-trailer_bytes(revision) :], keep=False)
        except CorruptObject as error:
            log.warning("damaged blob passed over by a listing", error=str(error))
            return None

    def _revision_in(self, name: str, end: bytes) -> Revision:
        """The revision that a blob says it is of. Raises `CorruptObject` if that is not what its name says."""
        try:
            revision = Revision.from_storage_path(kept_path(end) or "", AS_STORED)
        except InvalidRequest as error:
            raise CorruptObject(f"{name} does not say whose blob it is") from error
        if self._names.blob(revision) != name:
            raise CorruptObject(f"{name} says that it is another blob")
        return revision

    # Uploads

    async def initiate(self, revision: Revision, *, not_after: UnixMicros | None = None) -> str:
        with self._operation():
            check_not_late(self._clock, not_after)
            return await self._bucket.begin_upload(self._names.blob(revision))

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        invariant(1 <= number <= self._limits.parts_max, "a part has a number from 1 to parts_max")
        with self._operation():
            return await self._uploads.upload_part(upload, number, source, size, md5)

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        with self._operation():
            return await self._uploads.list_parts(upload, after, limit)

    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        with self._operation():
            await self._uploads.complete(upload, parts)

    async def abort(self, upload: UploadId | Revision) -> None:
        with self._operation():
            await self._uploads.abort(upload)

    async def remove_debris(self) -> int:
        """As the contract says: one page of the uploads in progress at a time, and the next one at the next call."""
        with self._operation():
            after, self._debris_after = self._debris_after, FROM_THE_FIRST
            page = await self._bucket.uploads(self._names.root, after)
            removed = 0
            for found in page.uploads():
                if not found.name.startswith((self._names.blobs, self._names.probes)):
                    continue  # another store's, whose prefix begins with ours
                uuid = self._names.uuid(found.name)
                # Those that clients have begun are in the change log; the others are of puts, which end in time.
                if uuid is not None and uuid.version != UPLOAD_UUID_VERSION and self._is_over(found.begun):
                    await self._uploads.end(found.name, found.store_id)
                    removed += 1
            self._debris_after = page.uploads_after()
            return removed

    def _is_over(self, begun: UnixMicros) -> bool:
        """Whether who has begun a put then must have given up."""
        seconds = self._limits.new_entry_kept_seconds_min
        return self._clock.now() > begun + int(seconds * MICROS_PER_SECOND)

    # The store

    async def identity(self) -> UUID | None:
        with self._operation():
            return await self._identity()

    async def _identity(self) -> UUID | None:
        content = await self._bucket.content(self._names.identity)
        if content is None:
            return None
        try:
            return UUID(content.decode().removeprefix(_IDENTITY_BEGINS).removesuffix("\n"))
        except ValueError as error:
            raise CorruptObject("the identity of the long-term store is damaged") from error

    async def adopt(self, identity: UUID) -> UUID:
        with self._operation():
            if (kept := await self._identity()) is not None:
                return kept
            await self._try_conditions()
            if await self._bucket.create(self._names.identity, f"{_IDENTITY_BEGINS}{identity}\n".encode()):
                return identity
            if (kept := await self._identity()) is None:
                raise Unavailable("the object store has an identity, and does not give it; try again")
            return kept

    async def _try_conditions(self) -> None:
        """Raise `NotOffered` if the store ignores the condition that only a new object may be made."""
        name = self._names.probe(self._ids.uuid())
        try:
            await self._bucket.create(name, b"one")
            heeded = not await self._bucket.create(name, b"other")
        finally:
            await self._bucket.delete(name)
        if not heeded:
            raise NotOffered(
                "the object store ignores If-None-Match, so that two servers that start at once on a new store could "
                "take it for two: use a release of it that heeds the condition"
            )

    async def check(self) -> None:
        with self._operation():
            await self._bucket.check()

    async def close(self) -> None:
        self._closing = True
        await self._idle.wait()
        async with self._closed:
            for stream in list(self._streams):
                await stream.aclose()
            await self._tasks.drain(self._transport.timeout_seconds)
            await self._transport.close()
            self._credentials.close()

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


def _check_part_sizes(limits: Limits, buffer_bytes: int, *, at_aws: bool) -> None:
    """Raise `StartupError` if parts would be taken that nothing can be made of, or asked for that must be buffered."""
    if at_aws and limits.part_bytes_min < _AWS_PART_BYTES_MIN:
        raise StartupError(f"uploads.part_min must be at least {_AWS_PART_BYTES_MIN} with a long-term store at AWS")
    longest = math.ceil(limits.object_bytes_max / max(limits.parts_max // 2, 1))
    if not limits.part_bytes_min and longest > buffer_bytes:
        raise StartupError(
            "uploads.part_min must not be 0 with a long-term store in S3, which wants to know how long each part is: "
            f"set what the store takes as the smallest part but the last, such as {5 * MIB}, or 1 if it takes any"
        )
