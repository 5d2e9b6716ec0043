"""Request bodies off an ASGI ``receive``."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive

from tierstore.clock import SystemClock
from tierstore.errors import ClientDisconnected, IncompleteBody, InvalidRequest, NotOffered, ObjectTooLarge
from tierstore.http.bodies import RequestBody, announced_size, announces_body
from tierstore.limits import Limits
from tierstore.testing.simulation.loop import run_on_virtual_time

LIMITS = replace(Limits.tiny(), client_stall_seconds_max=0.05)


def script(*chunks: bytes | None) -> Receive:
    """A server that hands out these chunks, the last one as the end of the body; None is the caller's departure."""
    messages: list[Message] = [
        {"type": "http.disconnect"}
        if chunk is None
        else {"type": "http.request", "body": chunk, "more_body": position < len(chunks) - 1}
        for position, chunk in enumerate(chunks)
    ]

    async def receive() -> Message:
        return messages.pop(0)

    return receive


async def read(body: RequestBody) -> bytes:
    """All of it."""
    return b"".join([chunk async for chunk in body])


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8), st.booleans())
async def test_a_whole_body_is_read_whole(chunks: list[bytes], announced: bool) -> None:
    """What was sent is what is read, in chunks that are not empty; the body then counts as complete."""
    sent = b"".join(chunks)
    body = RequestBody(script(*chunks), len(sent) if announced else None, LIMITS, SystemClock())
    assert body.complete == (announced and not sent)
    read_chunks = [chunk async for chunk in body]
    assert all(read_chunks)
    assert b"".join(read_chunks) == sent
    assert body.complete
    assert body.received == len(sent)
    assert [chunk async for chunk in body] == []


@pytest.mark.parametrize("chunks", [(b"ab", None), (None,), (b"a", b"b"), (b"abcd",)])
async def test_another_length_than_announced_is_incomplete(chunks: tuple[bytes | None, ...]) -> None:
    """Fewer or more bytes than announced, or a caller that went away before: never an ordinary end."""
    body = RequestBody(script(*chunks), 3, LIMITS, SystemClock())
    with pytest.raises(IncompleteBody):
        await read(body)
    assert not body.complete
    assert body.disconnected == (None in chunks)


async def test_departure_from_a_body_of_unknown_length() -> None:
    """Without an announced length, a caller that goes away has not ended the body."""
    body = RequestBody(script(b"abc", None), None, LIMITS, SystemClock())
    with pytest.raises(ClientDisconnected):
        await read(body)
    assert not body.complete
    assert body.disconnected


async def test_too_large_is_refused_before_reading() -> None:
    """An announced length beyond the bound is refused without a byte read; the bound itself is not."""
    RequestBody(script(), LIMITS.object_bytes_max, LIMITS, SystemClock())
    with pytest.raises(ObjectTooLarge):
        RequestBody(script(), LIMITS.object_bytes_max + 1, LIMITS, SystemClock())


async def test_growing_too_large_is_refused() -> None:
    """A body of unknown length may grow to the bound and no further."""
    most = b"x" * LIMITS.object_bytes_max
    assert await read(RequestBody(script(most, b""), None, LIMITS, SystemClock())) == most
    with pytest.raises(ObjectTooLarge):
        await read(RequestBody(script(most, b"x", b""), None, LIMITS, SystemClock()))


async def test_a_body_that_stalls_ends() -> None:
    """A caller that sends nothing for the bound has not sent its body."""

    async def receive() -> Message:

        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(IncompleteBody, match=r"for 0\.05 seconds"):
        await read(RequestBody(receive, None, LIMITS, SystemClock()))


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 0),
        ({b"content-length": b"0"}, 0),
        ({b"content-length": b"12"}, 12),
        ({b"transfer-encoding": b"chunked"}, None),
        ({b"transfer-encoding": b"Chunked "}, None),
        ({b"upgrade": b"h2c"}, 0),
    ],
)
def test_announced_sizes(fields: Mapping[bytes, bytes], size: int | None) -> None:
    """The length of a body is what its header fields say."""
    assert announced_size(fields) == size
    assert announces_body(fields) == (size != 0)


@pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1.0", b"0x1", b"1, 1", b" 1", b"\xb2", b"9" * 20])
def test_malformed_lengths_are_refused(length: bytes) -> None:
    """A length is decimal digits, and fewer than would count all bytes there are."""
    with pytest.raises(InvalidRequest):
        announced_size({b"content-length": length})


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip", b"", b"identity"])
def test_other_transfer_codings_are_not_offered(coding: bytes) -> None:
    """A body in a coding that is not undone here would be stored as something else."""
    with pytest.raises(NotOffered):
        announced_size({b"transfer-encoding": coding})


class _LoopClock(SystemClock):
    """The event loop's time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def test_a_body_that_trickles_ends() -> None:
    """A byte now and then does not keep a body under way: after a first grace, it has a rate to keep."""
    limits = replace(LIMITS, body_bytes_per_second_min=1000)

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    body = RequestBody(receive, None, limits, _LoopClock())
    with pytest.raises(IncompleteBody, match="less than 1000 bytes a second"):
        run_on_virtual_time(read(body))
    assert body.received == 6  # in 60 ms, of which 50 are the grace


async def test_a_slow_store_is_not_a_slow_client() -> None:
    """Only the time that the client is waited for counts against its rate."""
    limits = replace(LIMITS, body_bytes_per_second_min=10**6)
    body = RequestBody(script(b"a", b"b", b"c", b"d"), None, limits, SystemClock())
    chunks = []
    async for chunk in body:
        chunks.append(chunk)
        await asyncio.sleep(0.03)
    assert chunks == [b"a", b"b", b"c", b"d"]
