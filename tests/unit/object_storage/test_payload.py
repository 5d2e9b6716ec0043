"""A payload is not whole to its store before all of it has come, and its last look has been taken."""

import asyncio
import hashlib

import pytest
from aiohttp.abc import AbstractStreamWriter

from tierstore.errors import InvariantBroken, Unavailable
from tierstore.object_storage.payload import PIECE_BYTES, OutgoingPayload, Sealed
from tierstore.testing.laws.long_term import Boom, Source, cut, payload


class Wire(AbstractStreamWriter):
    """What has left, piece by piece. May take no more after some pieces."""

    def __init__(self, takes: int = 1_000_000) -> None:
        self.pieces: list[bytes] = []
        self._takes = takes

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if len(self.pieces) == self._takes:
            await asyncio.Event().wait()
        self.pieces.append(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        raise AssertionError(chunk)

    async def drain(self) -> None:
        raise AssertionError

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise AssertionError(encoding, strategy)

    def enable_chunking(self) -> None:
        raise AssertionError

    async def write_headers(self, status_line: str, headers: object) -> None:
        raise AssertionError(status_line, headers)


def outgoing(source: Source, size: int | None, *, head: bytes = b"", tail: bytes = b"") -> OutgoingPayload:
    """A payload with what is before and behind it."""
    return OutgoingPayload(
        source, size, head=head, digests=(), tail_bytes=len(tail), tail=lambda: tail, stall_seconds=0.1
    )


@pytest.mark.parametrize("tail", [b"", b"the tail"])
@pytest.mark.parametrize("chunk_bytes", [1_000, PIECE_BYTES, 3 * PIECE_BYTES])
@pytest.mark.parametrize("known_size", [True, False])
async def test_the_end_waits_for_the_source(tail: bytes, chunk_bytes: int, known_size: bool) -> None:
    """While the source has not ended, something is held back that the request is not whole without."""
    content = payload(6 * PIECE_BYTES)
    source = Source(cut(content, chunk_bytes), pause_at=len(cut(content, chunk_bytes)))
    sent, wire = outgoing(source, len(content) if known_size else None, head=b"head", tail=tail), Wire()
    assert sent.size == (4 + len(content) + len(tail) if known_size else None)
    writing = asyncio.create_task(sent.write(wire))
    await source.reached.wait()
    await asyncio.sleep(0)
    assert len(b"".join(wire.pieces)) < 4 + len(content)
    assert not sent.is_whole
    source.release.set()
    await writing
    assert b"".join(wire.pieces) == b"head" + content + tail
    assert (sent.is_whole, sent.bytes_taken, sent.error) == (True, len(content), None)


async def test_bytes_are_sent_together_and_hashed() -> None:
    """Thousands of single bytes make few pieces, and every digest sees all of them."""
    content, digest = payload(5_000), hashlib.sha256()
    sent = OutgoingPayload(
        Source(cut(content, 1)), None, digests=(digest,), tail_bytes=1, tail=lambda: b"!", stall_seconds=1
    )
    wire = Wire()
    await sent.write(wire)
    assert wire.pieces == [content + b"!"]
    assert digest.digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("source", "size", "error"),
    [
        (Source([b"abc"]), 4, InvariantBroken),
        (Source([b"abc"]), 2, InvariantBroken),
        (Source([b"abc", b"def"], fail_at=1), 6, Boom),
        (Source([b"abc", b"def"], fail_at=2), None, Boom),
    ],
)
@pytest.mark.parametrize("tail", [b"", b"the tail"])
async def test_what_goes_wrong_before_the_end_keeps_it_back(
    source: Source, size: int | None, error: type[Exception], tail: bytes
) -> None:
    """The request is not whole, and the error is the one that was raised."""
    source.taken = 0
    sent, wire = outgoing(source, size, tail=tail), Wire()
    with pytest.raises(error) as raised:
        await sent.write(wire)
    assert sent.error is raised.value
    assert not sent.is_whole
    assert len(b"".join(wire.pieces)) < 3


async def test_a_tail_that_refuses_keeps_the_end_back() -> None:
    """Its error is the payload's, and with no tail to send, the last bytes have not left either."""

    def refuse() -> bytes:
        raise Boom

    sent, wire = OutgoingPayload(Source([b"abc"]), 3, digests=(), tail_bytes=0, tail=refuse, stall_seconds=1), Wire()
    with pytest.raises(Boom):
        await sent.write(wire)
    assert (wire.pieces, sent.is_whole, type(sent.error)) == ([], False, Boom)


async def test_a_cancelled_payload_does_not_become_whole() -> None:
    """Once cancelled, the end does not leave any more; once it has left, it is too late to cancel."""
    sent, wire = outgoing(Source([b"abc"]), 3), Wire()
    assert sent.cancel()
    with pytest.raises(Sealed):
        await sent.write(wire)
    assert wire.pieces == []
    whole = outgoing(Source([b"abc"]), 3)
    await whole.write(wire)
    assert not whole.cancel()


async def test_a_store_that_takes_no_more_is_not_waited_for() -> None:
    """A piece that is not accepted in time ends the payload."""
    sent = outgoing(Source(cut(payload(4 * PIECE_BYTES), PIECE_BYTES)), 4 * PIECE_BYTES)
    with pytest.raises(Unavailable):
        await sent.write(Wire(takes=1))
    assert not sent.is_whole


async def test_a_payload_is_sent_once() -> None:
    """A second attempt finds a source that has been read from, and fails."""
    sent = outgoing(Source([b"abc"]), 3)
    await sent.write(Wire())
    with pytest.raises(Unavailable):
        await sent.write(Wire())


async def test_a_payload_without_bytes_is_read_to_its_end_before_it_is_sent() -> None:
    """It is whole then; one that has bytes after all is a broken invariant."""
    empty = outgoing(Source([]), 0)
    await empty.drain()
    assert empty.is_whole
    with pytest.raises(InvariantBroken):
        await outgoing(Source([b"x"]), 0).drain()
