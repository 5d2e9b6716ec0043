"""Puts that S3 does not take at once: of a length that is not known, or beyond what one request may have.

They are sent in parts, by an upload of the store's that nobody else knows of. What comes of it is a blob like any other
that is put: the payload, and one trailer at its end.

Guarantees: the blob appears when all of it is there and the source has ended well, or never; of a payload of known
length no more than a few chunks are in memory, of another one ``buffer_bytes``. What a process that dies leaves is
removed by `tierstore.backends.long_term.s3.S3LongTerm.remove_debris`.
"""

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass

import xxhash

from tierstore.backends.long_term.lateness import check_not_late
from tierstore.backends.long_term.s3_answers import unquoted
from tierstore.backends.long_term.s3_bucket import S3Bucket
from tierstore.backends.long_term.s3_uploads import S3Sizes, S3Uploads
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import ClientMistake, ObjectTooLarge, StorageFull, Unavailable
from tierstore.limits import Limits
from tierstore.object_storage.payload import OutgoingPayload, Sealed
from tierstore.object_storage.trailer import Trailer, trailer_bytes
from tierstore.object_storage.transport import Answer
from tierstore.types.ids import Revision
from tierstore.types.multipart import PartName

PARTS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Short:
    """A payload that was found to be short enough to be sent at once."""

    source: AsyncIterator[bytes]
    size: int


class PutByParts:
    """One such put. `short` is called first, then perhaps `run`."""

    def __init__(
        self,
        bucket: S3Bucket,
        uploads: S3Uploads,
        name: str,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        stall_seconds: float,
        sizes: S3Sizes,
        limits: Limits,
        clock: Clock,
        not_after: UnixMicros | None,
    ) -> None:
        self._bucket = bucket
        self._uploads = uploads
        self._name = name
        self._revision = revision
        self._reader = _Reader(source)
        self._announced = size
        self._stall_seconds = stall_seconds
        self._sizes = sizes
        self._limits = limits
        self._clock = clock
        self._not_after = not_after
        self._checksum = xxhash.xxh3_128()
        self._first = b""
        self._is_cancelled = False
        self._is_whole = False
        self.size = 0
        """Bytes of the payload that have come."""

    def cancel(self) -> bool:
        """Keep the blob from appearing; False if it is too late for that."""
        self._is_cancelled = not self._is_whole
        return self._is_cancelled

    async def short(self) -> Short | None:
        """The payload, if its length is not known and it has ended before a part was full."""
        if self._announced is not None:
            return None
        self._first = await self._reader.block(self._sizes.buffer_bytes)
        if len(self._first) == self._sizes.buffer_bytes:
            return None
        return Short(_once(self._first), len(self._first))

    async def run(self) -> Answer:
        """Send all of it; what the store has answered at the end. Raises what the source raises, and `Unavailable`."""
        store_id = await self._bucket.begin_upload(self._name)
        try:
            parts = await (self._blocks(store_id) if self._announced is None else self._streamed(store_id))
            check_not_late(self._clock, self._not_after)
            if self._is_cancelled:
                raise Sealed
        except BaseException:
            with suppress(Unavailable):  # then it is debris
                await self._uploads.end(self._name, store_id)
            raise
        self._is_whole = True
        try:
            _, answer = await self._bucket.complete(
                self._name, store_id, parts, self._limits.object_store_assembly_seconds_max, until=self._not_after
            )
        except (ClientMistake, StorageFull) as error:
            # Nobody but us has named parts; and of what was asked for before, without an answer, a blob may come yet.
            raise Unavailable("the object store has not put the parts together; try again") from error
        return answer

    async def _blocks(self, store_id: str) -> list[PartName]:
        """Send a payload of unknown length, a full buffer at a time."""
        parts, block = list[PartName](), self._first
        while True:
            is_last = len(block) < self._sizes.buffer_bytes
            self._checksum.update(block)
            self.size += len(block)
            number = len(parts) + 1
            if number > PARTS_MAX or self.size > self._limits.object_bytes_max:
                most = min(PARTS_MAX * self._sizes.buffer_bytes, self._limits.object_bytes_max)
                raise ObjectTooLarge(f"an object whose length is not announced has at most {most} bytes here")
            content = block + self._trailer() if is_last else block
            answer = await self._bucket.put(self._bucket.part_url(self._name, store_id, number), content)
            parts.append(PartName(number, unquoted(answer.headers.get("ETag", ""))))
            if is_last:
                return parts
            del content, block
            block = await self._reader.block(self._sizes.buffer_bytes)

    async def _streamed(self, store_id: str) -> list[PartName]:
        """Send a payload of known length, as it comes."""
        parts = list[PartName]()
        for size, is_last in self._part_sizes():
            payload = OutgoingPayload(
                self._reader.rest() if is_last else self._reader.next(size),
                size,
                digests=(self._checksum,),
                tail_bytes=trailer_bytes(self._revision) if is_last else 0,
                tail=self._trailer if is_last else bytes,
                stall_seconds=self._stall_seconds,
            )
            number = len(parts) + 1
            answer = await self._bucket.send(self._bucket.part_url(self._name, store_id, number), payload)
            parts.append(PartName(number, unquoted(answer.headers.get("ETag", ""))))
            self.size += size
        return parts

    def _part_sizes(self) -> Iterator[tuple[int, bool]]:
        left = self._announced or 0
        most = self._sizes.request_bytes_max - trailer_bytes(self._revision)
        size = min(most, max(self._sizes.streamed_part_bytes, math.ceil(left / PARTS_MAX)))
        while left > size:
            yield size, False
            left -= size
        yield left, True

    def _trailer(self) -> bytes:
        size = self.size if self._announced is None else self._announced
        return Trailer(0, size, self._checksum.digest()).encode(self._revision)


class _Reader:
    """Reads a source, and keeps what is left of a chunk."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._rest = b""

    async def block(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end."""
        chunks = [chunk async for chunk in self.next(size)]
        return b"".join(chunks)

    async def next(self, size: int) -> AsyncIterator[bytes]:
        """The next ``size`` bytes, in chunks; fewer at the end."""
        while size:
            chunk = self._rest or await anext(self._source, b"")
            if not chunk:
                return
            self._rest = chunk[size:]
            chunk = chunk[:size] if self._rest else chunk
            size -= len(chunk)
            yield chunk

    async def rest(self) -> AsyncIterator[bytes]:
        """All that is left, in chunks."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
        async for chunk in self._source:
            yield chunk


async def _once(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content
