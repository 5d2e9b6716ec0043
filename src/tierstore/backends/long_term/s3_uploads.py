"""Uploads in parts, by the store's own means.

A part is its payload and a `tierstore.object_storage.trailer.Trailer`. Its ETag is the store's. The store makes the
blob of the parts; the trailers stay in it, and tell where the payload is (`tierstore.backends.long_term.s3_layouts`).

Most stores forget a part when another one takes its number. Some keep both, list both, and take either to complete: of
those `S3Uploads` finds out by trying, once. For them it keeps, beside the blob-to-be, which part has taken the place of
others (an object for each such number, with the ETag of the present one); elsewhere this costs nothing.

Guarantees: a completed blob has exactly the named parts; a part that was replaced is not completed with, but for one
that is replaced while the upload is being completed. What the store answers to a repeated complete or abort decides
nothing.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import structlog
import xxhash

from tierstore.backends.long_term.s3_answers import FROM_THE_FIRST, ListedPart, answered, unquoted
from tierstore.backends.long_term.s3_bucket import LISTED_MAX, S3Bucket
from tierstore.backends.long_term.s3_layouts import S3Layouts
from tierstore.clock import Clock
from tierstore.errors import (
    ChecksumMismatch,
    EntityTooSmall,
    InvalidPart,
    NoSuchUpload,
    ObjectTooLarge,
    Unavailable,
)
from tierstore.idsource import IdSource
from tierstore.limits import GIB, MIB, Limits
from tierstore.object_storage.layout import etag_of_parts
from tierstore.object_storage.names import Names
from tierstore.object_storage.payload import OutgoingPayload
from tierstore.object_storage.trailer import NONCE_BYTES, Trailer, trailer_bytes
from tierstore.object_storage.transport import until_whole
from tierstore.tasks import TaskOwner
from tierstore.types.ids import Revision
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId, check_part_order

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Sizes:
    """How much of a payload goes into a request."""

    buffer_bytes: int = 8 * MIB
    """What is kept in memory of a payload whose length is not known: a part that every store takes."""
    request_bytes_max: int = 5 * GIB
    """What a store takes as one part, or as one object that is not sent in parts."""
    streamed_part_bytes: int = GIB
    """Parts of a payload of known length that is beyond that; more where they would be too many."""


_UPLOAD_PAGES_MAX = 10_000
"""The same of uploads in progress: some stores look through all of a bucket's for those of one name."""
_SAME_NUMBER_MAX = 16
"""Parts that are looked at to see whether there are several with one number."""
_PAGES_MAX = 64
"""Pages of one listing: more than 10,000 parts make, be some of them there several times."""


class S3Uploads:
    """The uploads of one bucket."""

    def __init__(
        self,
        bucket: S3Bucket,
        names: Names,
        layouts: S3Layouts,
        tasks: TaskOwner,
        *,
        stall_seconds: float,
        sizes: S3Sizes,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._bucket = bucket
        self._names = names
        self._layouts = layouts
        self._tasks = tasks
        self._stall_seconds = stall_seconds
        self._sizes = sizes
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._keeps_replaced: bool | None = None
        self._trying: asyncio.Task[bool] | None = None

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        """As the contract says."""
        keeps = await self._keeps_replaced_parts()
        if size is None:
            chunks = await self._buffered(source)
            source, size = _given(chunks), sum(map(len, chunks))
        revision = upload.revision
        most = self._sizes.request_bytes_max - trailer_bytes(revision)
        if size > most:
            raise ObjectTooLarge(f"a part has at most {most} bytes here")
        checksum, digest = xxhash.xxh3_128(), hashlib.md5(usedforsecurity=False) if md5 is not None else None
        nonce = self._ids.version()[-NONCE_BYTES:]

        def tail() -> bytes:
            if digest is not None and digest.digest() != md5:
                raise ChecksumMismatch("the part does not have the MD5 that was announced")
            return Trailer(number, size, checksum.digest(), nonce).encode(revision)

        payload = OutgoingPayload(
            source,
            size,
            digests=(checksum,) if digest is None else (checksum, digest),
            tail_bytes=trailer_bytes(revision),
            tail=tail,
            stall_seconds=self._stall_seconds,
        )
        work = self._store_part(upload, number, size, payload, keeps=keeps)
        return await until_whole(self._tasks, "s3_part", payload, work)

    async def _store_part(
        self, upload: UploadId, number: int, size: int, payload: OutgoingPayload, *, keeps: bool
    ) -> Part:
        name = self._names.blob(upload.revision)
        answer = await self._bucket.send(self._bucket.part_url(name, upload.store_id, number), payload)
        part = Part(number, unquoted(answer.headers.get("ETag", "")), size, answered(answer, self._clock.now()))
        if keeps:
            page = await self._bucket.parts(name, upload.store_id, number - 1, _SAME_NUMBER_MAX)
            if any(other.number == number and other.etag != part.etag for other in page.parts()):
                replaced = self._names.replaced_part(upload.revision, number)
                await self._bucket.put(self._bucket.url(replaced), part.etag.encode("ascii"))
        return part

    async def _buffered(self, source: AsyncIterator[bytes]) -> Sequence[bytes]:
        """All of a source whose length is not known: a part's is told to the store before it is sent."""
        chunks, length = list[bytes](), 0
        async for chunk in source:
            chunks.append(chunk)
            length += len(chunk)
            if length > self._sizes.buffer_bytes:
                raise ObjectTooLarge(f"a part of unannounced length has at most {self._sizes.buffer_bytes} bytes here")
        return chunks

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        """As the contract says."""
        if not upload.store_id:
            upload = replace(upload, store_id=await self._store_id(upload.revision))
        found, truncated = await self._page(upload, after, limit)
        parts = [self._part(upload, part) for part in found[:limit]]
        return PartsPage(parts, truncated or len(found) > limit, upload.store_id)

    async def _store_id(self, revision: Revision) -> str:
        """The id of the upload of a revision that is in progress. Raises `NoSuchUpload`."""
        async for store_id in self._in_progress(self._names.blob(revision)):
            return store_id
        raise NoSuchUpload("the store has no such upload")

    async def _in_progress(self, name: str) -> AsyncIterator[str]:
        """The ids of all uploads of an object."""
        after = FROM_THE_FIRST
        for _ in range(_UPLOAD_PAGES_MAX):
            page = await self._bucket.uploads(name, after)
            for found in page.uploads():
                if found.name == name:
                    yield found.store_id
            after = page.uploads_after()
            if after == FROM_THE_FIRST:
                return
        raise Unavailable("the object store lists more uploads in progress than can be looked through")

    @staticmethod
    def _part(upload: UploadId, listed: ListedPart) -> Part:
        size = listed.stored_bytes - trailer_bytes(upload.revision)
        return Part(listed.number, listed.etag, size, listed.stored)

    async def _page(self, upload: UploadId, after: int, limit: int) -> tuple[Sequence[ListedPart], bool]:
        """The present parts of one page, and whether there are more. Raises `NoSuchUpload`."""
        keeps = await self._keeps_replaced_parts()
        name = self._names.blob(upload.revision)
        page = await self._bucket.parts(name, upload.store_id, after, LISTED_MAX if keeps else limit)
        listed = [part for part in page.parts() if part.number > after]
        if keeps and page.truncated and listed and listed[0].number != listed[-1].number:
            # There may be more of the last number, and the next page would begin behind it.
            listed = [part for part in listed if part.number != listed[-1].number]
        present = []
        for number, group in groupby(sorted(listed, key=_order), key=lambda part: part.number):
            same = list(group)
            present.append(same[-1] if len(same) == 1 else await self._present(upload, number, same))
        return present, page.truncated

    async def _present(self, upload: UploadId, number: int, same: Sequence[ListedPart]) -> ListedPart:
        """Of parts that the store lists under one number, the one that has taken the others' place."""
        etag = await self._bucket.content(self._names.replaced_part(upload.revision, number))
        return next((part for part in same if part.etag.encode("ascii") == etag), same[-1])

    async def complete(self, upload: UploadId, names: Sequence[PartName]) -> None:
        """As the contract says."""
        try:
            present = await self._all_parts(upload)
            sizes = self._checked(names, present)
        except NoSuchUpload:
            await self._check_made_of(upload, names)
            return
        except (InvalidPart, EntityTooSmall):
            # Parts may have gone because another call is completing the upload, or has just done it.
            if await self._bucket.end(self._names.blob(upload.revision), 1) is not None:
                await self._check_made_of(upload, names)
                return
            raise
        name, seconds = self._names.blob(upload.revision), self._limits.object_store_assembly_seconds_max
        try:
            etag, _ = await self._bucket.complete(name, upload.store_id, names, seconds)
        except NoSuchUpload:
            await self._check_made_of(upload, names)
            return
        if not await self._layouts.made(upload.revision, etag, sizes, names):
            await self._check_made_of(upload, names)
        await self.forget_replaced(upload.revision)

    async def _all_parts(self, upload: UploadId) -> dict[int, Part]:
        found: dict[int, Part] = {}
        after, truncated = 0, True
        for _ in range(_PAGES_MAX):
            page, truncated = await self._page(upload, after, LISTED_MAX)
            found |= {part.number: self._part(upload, part) for part in page}
            if not truncated or not page:
                return found
            after = page[-1].number
        raise Unavailable("the object store lists more parts than an upload can have")

    def _checked(self, names: Sequence[PartName], present: dict[int, Part]) -> Sequence[int]:
        """The sizes of the named parts; raises what keeps them from being completed."""
        check_part_order(names)
        sizes = []
        for name in names:
            part = present.get(name.number)
            if part is None or part.etag != unquoted(name.etag):
                raise InvalidPart(f"part {name.number} has not been uploaded, or has another ETag")
            sizes.append(part.size)
        if any(size < self._limits.part_bytes_min for size in sizes[:-1]):
            raise EntityTooSmall(f"all parts but the last have at least {self._limits.part_bytes_min} bytes")
        if sum(sizes) > self._limits.object_bytes_max:
            raise ObjectTooLarge(f"an object has at most {self._limits.object_bytes_max} bytes")
        return sizes

    async def _check_made_of(self, upload: UploadId, names: Sequence[PartName]) -> None:
        """Return if the upload's blob is made of these parts. Raises `InvalidPart` if it is of others, as far as the
        ETags tell, and `NoSuchUpload` if there is none, or nobody can tell.
        """
        revision = upload.revision
        found = await self._bucket.end(self._names.blob(revision), 1)
        if found is not None:
            etag = found[0].etag
            if etag == etag_of_parts([unquoted(each.etag) for each in names]):
                return
            known = await self._layouts.expected(revision)
            if known is not None and known.etag == etag and known.of_parts:
                raise InvalidPart("the upload was completed, with other parts")
        raise NoSuchUpload("the store has no such upload")

    async def abort(self, upload: UploadId | Revision) -> None:
        """As the contract says."""
        if isinstance(upload, UploadId):
            try:
                await self._bucket.abort(self._names.blob(upload.revision), upload.store_id)
            except NoSuchUpload:
                await self.forget_replaced(upload.revision)
                raise
            await self.forget_replaced(upload.revision)
            return
        name = self._names.blob(upload)
        async for store_id in self._in_progress(name):
            await self.end(name, store_id)
        await self.forget_replaced(upload)

    async def end(self, name: str, store_id: str) -> None:
        """Abort an upload; one that is not in progress is fine."""
        try:
            await self._bucket.abort(name, store_id)
        except NoSuchUpload:
            log.debug("upload had ended already")

    async def forget_replaced(self, revision: Revision) -> None:
        """Remove what says which parts of an upload, which is over, have taken the place of others."""
        if not await self._keeps_replaced_parts():
            return
        for _ in range(_PAGES_MAX):
            names, truncated = await self._bucket.names(self._names.replaced_parts(revision), "", LISTED_MAX)
            for name in names:
                await self._bucket.delete(name)
            if not truncated:
                return

    async def _keeps_replaced_parts(self) -> bool:
        """Whether the store keeps a part when another takes its number. Found out by trying, once."""
        if self._keeps_replaced is None:
            if self._trying is None or self._trying.done():
                self._trying = self._tasks.run("s3_try_parts", self._try_parts())
                self._tasks.disown(self._trying, Unavailable)  # who waits is told
            trying = self._trying  # once it has failed, another waiter may have begun another one
            await asyncio.wait([trying])  # which goes on if its caller does not: it clears up after itself
            self._keeps_replaced = trying.result()
        return self._keeps_replaced

    async def _try_parts(self) -> bool:
        name = self._names.probe(self._ids.uuid())
        store_id = await self._bucket.begin_upload(name)
        try:
            for content in (b"one", b"other"):
                await self._bucket.put(self._bucket.part_url(name, store_id, 1), content)
            page = await self._bucket.parts(name, store_id, 0, LISTED_MAX)
        finally:
            await self.end(name, store_id)
        return len(page.parts()) > 1


def _order(part: ListedPart) -> tuple[int, int, str]:
    return part.number, part.stored, part.etag


async def _given(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
