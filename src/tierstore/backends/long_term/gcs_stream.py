"""A blob of Google Cloud Storage being read: in chunks, and never to the end of bytes that are not the blob's.

Guarantees: a read of the whole payload is compared with the CRC-32C that the service keeps, and with its length, before
the last chunk is handed out; a connection that ends early is `Unavailable`, and never looks like the end.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable

from tierstore import telemetry
from tierstore.backends.long_term.contract import BlobStream
from tierstore.backends.long_term.gcs_checksum import Crc32c
from tierstore.errors import CorruptObject, Unavailable
from tierstore.object_storage.transport import Download
from tierstore.types.ids import Revision
from tierstore.types.ranges import Span

_corrupt_reads = telemetry.corrupt_reads.labels("long_term")


def corrupt(revision: Revision, what: str) -> CorruptObject:
    """The error for a blob that is damaged, counted. ``what`` is wrong with it."""
    _corrupt_reads.inc()
    return CorruptObject(f"blob {revision.uuid}: {what}")


class GcsBlobStream(BlobStream):
    """The bytes of ``span`` of a blob of ``size`` bytes, as they come in ``download``."""

    def __init__(
        self,
        download: Download,
        revision: Revision,
        span: Span,
        size: int,
        crc32c: bytes | None,
        chunk_bytes: int,
        ended: "Callable[[GcsBlobStream], None]",
    ) -> None:
        """``crc32c`` is that of the whole blob, if the whole of it is read. ``ended`` is called once, at the end."""
        self.size = size
        self._download = download
        self._revision = revision
        self._left = span.stop - span.start
        self._crc32c = crc32c
        self._checksum = Crc32c()
        self._chunk_bytes = chunk_bytes
        self._held_from = max(self._left - 1, 0) // chunk_bytes * chunk_bytes if crc32c is not None else self._left
        """How many bytes may be handed out before all have come."""
        self._received = 0
        self._ready: deque[bytes] = deque()
        self._held: list[bytes] = []
        self._ended = ended
        self._is_open = True
        self._closed_early = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._closed_early:
                raise Unavailable("the stream was closed before its end")
            if not self._is_open:
                raise StopAsyncIteration
            await self._receive()
        return self._ready.popleft()

    async def aclose(self) -> None:
        if self._is_open or self._ready:
            self._closed_early = True
            self._ready.clear()
        self._end()

    async def _receive(self) -> None:
        """Take in what comes next; what may be handed out of it is ready then."""
        try:
            piece = await self._download.read()
            if piece:
                self._take(piece)
            if not piece or self._received == self._left:
                self._finish()
        except BaseException:
            # A reader that goes on after a failure must not see an end: nothing more comes.
            self._closed_early = True
            self._ready.clear()
            self._end()
            raise

    def _take(self, piece: bytes) -> None:
        self._received += len(piece)
        if self._received > self._left:
            raise corrupt(self._revision, "more bytes come than it has")
        if self._crc32c is not None:
            self._checksum.update(piece)
        free = max(0, self._held_from - (self._received - len(piece)))
        if free >= len(piece):
            self._release(piece)
            return
        if free:
            self._release(piece[:free])
        self._held.append(piece[free:])

    def _finish(self) -> None:
        """All has come: hand out what was held back, if it is what was stored."""
        if self._received < self._left:
            raise corrupt(self._revision, "it is shorter than it was stored")
        if self._crc32c is not None and self._checksum.digest() != self._crc32c:
            raise corrupt(self._revision, "the payload does not match its checksum")
        if self._held:
            self._release(b"".join(self._held))
            self._held.clear()
        self._end()

    def _release(self, piece: bytes) -> None:
        if len(piece) <= self._chunk_bytes:
            self._ready.append(piece)
            return
        self._ready.extend(
            piece[start : start + self._chunk_bytes] for start in range(0, len(piece), self._chunk_bytes)
        )

    def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            self._download.close()
            self._ended(self)
