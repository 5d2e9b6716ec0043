"""Laws of `tierstore.http.connection`, on real sockets: heads that never end, or come too slowly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from tierstore.http.connection import BoundedConnection

HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"


class _TightConnection(BoundedConnection):
    head_bytes_max = 1000
    head_seconds_max = 0.15


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers when it has read the whole body, with its length; at ``/slow`` later than a head may take."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * _TightConnection.head_seconds_max)
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def _connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = Config(_app, interface="asgi3", http=_TightConnection, ws="none", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: _TightConnection(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            await asyncio.wait_for(_closed(writer), 5)


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except ConnectionError:
        return


@pytest.mark.parametrize("before", [b"", b"GET /", HEAD, HEAD + b"\r\n" + HEAD])
async def test_a_head_that_stops_is_given_up(before: bytes) -> None:
    """A connection that is silent before the end of a head gets 408 and is closed, whatever came before."""
    async with _connected() as (reader, writer):
        writer.write(before)
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.split(b"\r\n\r\n")[-2].splitlines()[0].endswith(b"HTTP/1.1 408 Request Timeout")


async def test_a_head_that_trickles_is_given_up() -> None:
    """Bytes that keep coming do not make the time for a head any longer."""
    async with _connected() as (reader, writer):
        writer.write(HEAD)
        answering = asyncio.create_task(reader.read(100))  # not to the end: there may be a reset, as we go on sending
        while not answering.done():
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.02)
        assert (await answering).startswith(b"HTTP/1.1 408")


async def test_a_head_that_never_ends_is_refused() -> None:
    """A head beyond the bound gets 431 and the connection is closed."""
    async with _connected() as (reader, writer):
        writer.write(HEAD)
        await asyncio.sleep(0.02)
        writer.write(b"x" * 1000)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 431")


async def test_a_slow_body_is_not_a_slow_head() -> None:
    """The bounds end with the head: a body may be larger and slower, and the connection be used again after a pause."""
    async with _connected() as (reader, writer):
        for _ in range(2):
            writer.write(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n")
            for _ in range(3):
                await asyncio.sleep(0.1)
                writer.write(b"x" * 1000)
            assert (await asyncio.wait_for(reader.readuntil(b"3000"), 5)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.2)


async def test_an_answer_under_way_is_not_mixed_with_another() -> None:
    """While a response is owed, a second head that stops closes the connection without a stray answer."""
    async with _connected() as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD)
        assert await asyncio.wait_for(reader.read(), 5) == b""
