"""A payload on its way to a store over HTTP: counted, hashed, and not whole before all of it has come.

Guarantees: the last bytes leave only after the source has ended, with as many bytes as it announced, and after
``tail`` has had its look; so whatever goes wrong before (the source fails, its caller is cancelled, its time is
over), the store has not seen the end of the request, and keeps nothing. What went wrong is in ``error``, as it was
raised. About two chunks of the source are in memory, or `PIECE_BYTES` if they are short.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from tierstore.errors import Unavailable
from tierstore.invariants import invariant

PIECE_BYTES = 64 * 1024
"""Chunks shorter than this are sent together, so that a source of single bytes does not make a packet of each."""


class Digest(Protocol):
    """What is computed of the bytes that pass."""

    def update(self, chunk: bytes, /) -> None:
        """Take in the next bytes."""
        ...

    def digest(self) -> bytes:
        """The digest of all bytes so far."""
        ...


class Sealed(Exception):
    """The payload was cancelled, and must not become whole any more."""


class OutgoingPayload(Payload):
    """``head``, what ``source`` yields, ``size`` bytes, and what ``tail`` then makes of them. Sent once."""

    _autoclose = True

    def __init__(
        self,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        head: bytes = b"",
        digests: tuple[Digest, ...],
        tail_bytes: int,
        tail: Callable[[], bytes],
        stall_seconds: float,
    ) -> None:
        """With None for ``size``, the source may yield as many bytes as it likes, and the request has no length.

        ``tail`` is called when the source has ended, and raises what is to keep the payload from becoming whole.
        ``stall_seconds`` is how long the store may take to accept a piece.
        """
        super().__init__(source, content_type="application/octet-stream")
        self._size = None if size is None else len(head) + size + tail_bytes
        self._source = source
        self._announced = size
        self._head = head
        self._digests = digests
        self._has_tail = tail_bytes > 0
        self._tail = tail
        self._stall_seconds = stall_seconds
        self._is_cancelled = False
        self.bytes_taken = 0
        """Bytes that the source has yielded."""
        self.is_begun = False
        """Whether the source has been asked for anything."""
        self.is_whole = False
        """Whether the last bytes may be on their way: from then on, only the store's answer says what has happened."""
        self.error: Exception | None = None
        """What the source, or ``tail``, has raised."""

    def cancel(self) -> bool:
        """Keep the payload from becoming whole; False if it is too late for that."""
        self._is_cancelled = not self.is_whole
        return self._is_cancelled

    async def drain(self) -> None:
        """Read a source that yields nothing to its end, for a request that is whole with its head."""
        async for _ in self._pieces():
            invariant(False, "a payload without bytes is sent without them")

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002  # because aiohttp asks so
        raise TypeError("a payload that is streamed is not text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        if self.is_begun:  # aiohttp repeats requests on connections that had been idle
            raise Unavailable("the connection to the object store was lost")
        self._consumed = True
        async for piece in self._pieces():
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await writer.write(piece)
            except TimeoutError:
                raise Unavailable("the object store takes no more bytes") from None

    async def write_with_length(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None,  # noqa: ARG002  # because it is the size that was announced
    ) -> None:
        await self.write(writer)

    async def _pieces(self) -> AsyncIterator[bytes]:
        held: list[bytes] = [self._head] if self._head else []
        held_bytes = 0
        self.is_begun = True
        try:
            async for chunk in self._source:
                if held_bytes >= PIECE_BYTES:
                    yield b"".join(held) if len(held) > 1 else held[0]
                    held, held_bytes = [], 0
                self._take(chunk)
                held.append(chunk)
                held_bytes += len(chunk)
            invariant(self._announced in {None, self.bytes_taken}, "a source yields as many bytes as it announced")
            if held_bytes >= PIECE_BYTES and self._has_tail:  # no copy for the sake of a few bytes
                yield b"".join(held) if len(held) > 1 else held[0]
                held = []
            if tail := self._tail():
                held.append(tail)
            if self._is_cancelled:
                raise Sealed
        except Exception as error:
            self.error = error
            raise
        self.is_whole = True
        if held:
            yield b"".join(held) if len(held) > 1 else held[0]

    def _take(self, chunk: bytes) -> None:
        self.bytes_taken += len(chunk)
        if self._announced is not None:
            invariant(self.bytes_taken <= self._announced, "a source yields no more bytes than it announced")
        for digest in self._digests:
            digest.update(chunk)
