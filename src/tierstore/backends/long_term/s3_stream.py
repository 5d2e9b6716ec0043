"""A blob in a bucket being read: the payload without its trailers, in chunks, and never to the end of damaged bytes.

Guarantees: a read of the whole payload compares each part with its trailer, and hands out the last chunk only when all
have been compared; a connection that ends early is `Unavailable`, and never looks like the end. About what the
connection reads ahead is in memory, and a chunk.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import xxhash

from tierstore import telemetry
from tierstore.backends.long_term.contract import BlobStream
from tierstore.errors import CorruptObject, Unavailable
from tierstore.object_storage.layout import Frame, Layout
from tierstore.object_storage.trailer import TRAILER_BYTES_MAX, Trailer
from tierstore.types.ids import Revision
from tierstore.types.ranges import Span

_corrupt_reads = telemetry.corrupt_reads.labels("long_term")
_CLOSED = "the stream was closed before its end"


def corrupt(revision: Revision, what: str) -> CorruptObject:
    """The error for a blob that is damaged, counted. ``what`` is wrong with it."""
    _corrupt_reads.inc()
    return CorruptObject(f"blob {revision.uuid}: {what}")


class Download(Protocol):
    """An answer whose body is being read."""

    async def read(self) -> bytes:
        """The next bytes, none at the end. Raises `Unavailable` if the connection ends before that."""
        ...

    async def drain(self, bytes_max: int) -> None:
        """Read what nobody wants, if it is little. Raises nothing."""
        ...

    def close(self) -> None:
        """Let go of the connection. Safe to repeat."""
        ...


class BucketBlobStream(BlobStream):
    """The bytes of ``span`` of a blob, or with None all of it, as they come in ``download``."""

    def __init__(
        self,
        revision: Revision,
        layout: Layout,
        span: Span | None,
        download: Download,
        *,
        chunk_bytes: int,
        ended: "Callable[[BucketBlobStream], None]",
    ) -> None:
        """``ended`` is called once, when the download is closed."""
        self.size = layout.size
        self.remaining_bytes = layout.stored_bytes if span is None else len(span)
        """Bytes that are still to come, or a few more."""
        self._revision = revision
        self._frames = layout.frames(span)
        self._verifies = span is None
        self._download = download
        self._chunk_bytes = chunk_bytes
        self._ended = ended
        self._free = max(layout.size - 1, 0) // chunk_bytes * chunk_bytes if span is None else len(span)
        """How many bytes more may be handed out before all have been compared."""
        self._frame: Frame | None = next(self._frames, None)
        self._payload_left = self._frame.payload_bytes if self._frame else 0
        self._checksum = xxhash.xxh3_128()
        self._trailer = b""
        self._last_number = 0
        self._ready: deque[bytes] = deque()
        self._held: list[bytes] = []
        self._is_open = True
        self._failed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._failed:
                raise Unavailable(_CLOSED)
            if not self._is_open:
                raise StopAsyncIteration
            await self._receive()
        return self._ready.popleft()

    async def aclose(self) -> None:
        if self._is_open or self._ready:
            self._fail()

    async def prefetch(self) -> None:
        """Read a short blob at once, so that its connection is free. Raises `CorruptObject` and `Unavailable`."""
        while self._is_open:
            await self._receive()

    async def _receive(self) -> None:
        """Take in what comes next; what may be handed out of it is ready then."""
        try:
            if self._frame is not None:
                piece = await self._download.read()
                if not piece:
                    raise corrupt(self._revision, "it is shorter than it was stored")
                self._take(piece)
            if self._frame is None:
                await self._download.drain(TRAILER_BYTES_MAX)
                self._finish()
        except BaseException:
            self._fail()  # a reader that goes on after a failure must not see an end
            raise

    def _take(self, piece: bytes) -> None:
        """Part what has come into payload and trailers."""
        position = 0
        while self._frame is not None and (position < len(piece) or not self._wanted):
            taken = piece[position : position + self._wanted] if position or self._wanted < len(piece) else piece
            position += len(taken)
            if self._payload_left:
                self._payload_left -= len(taken)
                self._take_payload(taken)
            else:
                self._trailer += taken
            if not self._wanted:
                self._end_frame(self._frame)

    @property
    def _wanted(self) -> int:
        """How many bytes there are to the end of the payload, or then of the trailer, of the present frame."""
        if self._payload_left:
            return self._payload_left
        return 0 if self._frame is None else self._frame.trailer_bytes - len(self._trailer)

    def _take_payload(self, taken: bytes) -> None:
        if self._verifies:
            self._checksum.update(taken)
        free = min(self._free, len(taken))
        self._free -= free
        if free:
            self._hand_out(taken[:free])
        if free < len(taken):
            self._held.append(taken[free:])

    def _end_frame(self, frame: Frame) -> None:
        """A part has come, or the trailer that is behind it is passed over."""
        if self._verifies:
            self._compare(frame)
            self._checksum.reset()
        self._trailer = b""
        self._frame = next(self._frames, None)
        self._payload_left = self._frame.payload_bytes if self._frame else 0

    def _compare(self, frame: Frame) -> None:
        try:
            trailer = Trailer.decode(self._trailer, self._revision)
        except CorruptObject:
            _corrupt_reads.inc()
            raise
        if trailer.size != frame.payload_bytes or (trailer.number > self._last_number) != self._revision.is_upload:
            raise corrupt(self._revision, "it is shorter or longer than it was stored, or its parts are not in order")
        if trailer.checksum != self._checksum.digest():
            raise corrupt(self._revision, "the payload does not match its checksum")
        self._last_number = trailer.number

    def _finish(self) -> None:
        """All has come: hand out what was held back."""
        if self._held:
            self._hand_out(b"".join(self._held))
            self._held.clear()
        self._close()

    def _hand_out(self, piece: bytes) -> None:
        if len(piece) <= self._chunk_bytes:
            self._ready.append(piece)
            return
        self._ready.extend(
            piece[start : start + self._chunk_bytes] for start in range(0, len(piece), self._chunk_bytes)
        )

    def _fail(self) -> None:
        self._failed = True
        self._ready.clear()
        self._held.clear()
        self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._download.close()
            self._ended(self)
