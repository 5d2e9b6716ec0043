"""Request bodies off an ASGI ``receive``.

Guarantees: a `RequestBody` ends normally only when the body is whole: as many bytes as announced, or the end of a
chunked body; it never hands out more than its bound; it waits a bounded time for the next bytes, and for all
of them no longer than their number allows. Nothing is read, and so a client that sent ``Expect: 100-continue`` is not
told to go on, before the first chunk is asked for.
"""

import asyncio
from collections.abc import Callable, Mapping

from starlette.types import Receive

from tierstore.clock import Clock
from tierstore.errors import ClientDisconnected, IncompleteBody, InvalidRequest, NotOffered, ObjectTooLarge
from tierstore.limits import Limits
from tierstore.types.streams import Body

_LENGTH_DIGITS_MAX = 19
_CHUNKS_KEPT = 3
"""Of a body that is streamed into a store: two batches, and the chunk that is being added to one."""


def announces_body(fields: Mapping[bytes, bytes]) -> bool:
    """Whether a request with these header fields has a body that is not empty (RFC 9112, section 6)."""
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"


def announced_size(fields: Mapping[bytes, bytes]) -> int | None:
    """The body's length in bytes by these header fields; None when it is sent in chunks.

    Raises `InvalidRequest` for a malformed length, and `NotOffered` for a transfer coding other than chunked (RFC 9112,
    section 6.1).
    """
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if coding.strip().lower() != b"chunked":
            raise NotOffered("the only transfer coding is chunked")
        return None
    length = fields.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
        raise InvalidRequest("content-length is a number of bytes")
    return int(length)


class RequestBody(Body):
    """The body of one request, of ``size`` announced bytes, or of unknown length (None).

    It is ``what`` (for people), of at most ``bytes_max`` bytes, or of what an object may have. ``keep`` is told how
    much of it its reader may have in memory: at most ``kept_bytes_max``, or what a store keeps that reads it. Building
    it reads nothing. Raises `ObjectTooLarge` at once when the announced length is beyond ``bytes_max``.
    """

    def __init__(
        self,
        receive: Receive,
        size: int | None,
        limits: Limits,
        clock: Clock,
        *,
        what: str = "an object",
        bytes_max: int | None = None,
        kept_bytes_max: int | None = None,
        keep: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._what = what
        self._bytes_max = limits.object_bytes_max if bytes_max is None else bytes_max
        if size is not None and size > self._bytes_max:
            raise self._too_large()
        self._receive = receive
        self._limits = limits
        self._clock = clock
        self._keep = keep
        self._kept_max = max(limits.inline_bytes_max, _CHUNKS_KEPT * limits.stream_chunk_bytes)
        if self._bytes_max <= limits.complete_body_bytes_max:  # a document, which is kept whole
            self._kept_max = self._bytes_max
        if kept_bytes_max is not None:
            self._kept_max = kept_bytes_max
        self.size = size
        self.received = 0
        """Bytes read so far."""
        self.disconnected = False
        """Whether the caller went away before the body was whole."""
        self.complete = size == 0
        self._seconds_waited = 0.0

    async def __anext__(self) -> bytes:
        while not self.complete:
            chunk = await self._next()
            if chunk:
                return chunk
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        asked = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._limits.client_stall_seconds_max):
                message = await self._receive()
        except TimeoutError:
            seconds = self._limits.client_stall_seconds_max
            raise IncompleteBody(f"no byte of the body came for {seconds:g} seconds") from None
        self._seconds_waited += self._clock.monotonic() - asked
        if message["type"] == "http.disconnect":
            self.disconnected = True
            if self.size is None:
                raise ClientDisconnected("the caller went away before the body had ended")
            raise self._incomplete(self.size)
        chunk: bytes = message.get("body", b"")
        self.received += len(chunk)
        if self.received > self._bytes_max:
            raise self._too_large()
        self._keep(min(self.received, self._kept_max))
        self._check_rate()
        if not message.get("more_body", False):
            if self.size is not None and self.received != self.size:
                raise self._incomplete(self.size)
            self.complete = True
        return chunk

    def _check_rate(self) -> None:
        """Raise `IncompleteBody` for a client that keeps a request under way with a byte now and then.

        Only waiting counts, and not what the store takes.
        """
        rate = self._limits.body_bytes_per_second_min
        if self.received < rate * (self._seconds_waited - self._limits.client_stall_seconds_max):
            raise IncompleteBody(f"the body comes at less than {rate} bytes a second")

    def _incomplete(self, size: int) -> IncompleteBody:
        return IncompleteBody(f"the body ended after {self.received} of {size} announced bytes")

    def _too_large(self) -> ObjectTooLarge:
        return ObjectTooLarge(f"{self._what} has at most {self._bytes_max} bytes")
