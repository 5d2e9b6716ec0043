"""The TCP proxy does to connections what it says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tierstore.testing.tcp_proxy import TcpProxy

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers what it is sent; its port, and what it was sent."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1 << 20):
                received.append(chunk)
                writer.write(chunk)
                await writer.drain()
        except OSError:
            received.append(b"reset")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], received
    finally:
        server.close()


async def connected(proxy: TcpProxy) -> Ends:
    """A connection through the proxy that has passed something."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await said(reader, writer, b"hello") == b"hello"
    return reader, writer


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bytes:
    """What is answered."""
    writer.write(text)
    async with asyncio.timeout(5):
        return await reader.readexactly(len(text))


async def test_what_passes_is_the_same() -> None:
    """In both directions, and to the end, also more than fits into a buffer."""
    async with echo() as (port, _), TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await connected(proxy)
        content = bytes(range(256)) * 20_000
        assert await said(reader, writer, content) == content
        assert (proxy.accepted, proxy.connections) == (1, 1)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_cut_ends_connections_and_takes_new_ones() -> None:
    """With a reset, at once, also one whose bytes are held."""
    async with echo() as (port, _), TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await connected(proxy)
        proxy.hold()
        writer.write(b"held")
        await asyncio.sleep(0.02)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
        proxy.resume()
        (await connected(proxy))[1].close()


async def test_hold_keeps_bytes_until_resume() -> None:
    """Nothing is answered, nothing is lost; or only answers are held."""
    async with echo() as (port, received), TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await connected(proxy)
        for hold, passes in ((proxy.hold, False), (proxy.hold_answers, True)):
            hold()
            before = len(received)
            writer.write(b"waits")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.read(1)
            assert (len(received) > before) == passes
            proxy.resume()
            assert await reader.readexactly(5) == b"waits"
        writer.close()


async def test_lost_answers() -> None:
    """The request arrives, and its connection is reset in place of the answer."""
    async with echo() as (port, received), TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await connected(proxy)
        proxy.lose_answers()
        writer.write(b"done")
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        assert b"done" in received
        writer.close()
        proxy.resume()
        (await connected(proxy))[1].close()


async def test_refuse_and_delay() -> None:
    """New connections are reset until resume; each chunk is late."""
    async with echo() as (port, _), TcpProxy("127.0.0.1", port) as proxy:
        proxy.refuse()
        with pytest.raises(OSError):  # noqa: PT011  # because a reset shows when one connects, or when one reads
            await connected(proxy)
        proxy.resume()
        reader, writer = await connected(proxy)
        proxy.delay_seconds = 0.05
        begun = asyncio.get_running_loop().time()
        await said(reader, writer, b"late")
        assert asyncio.get_running_loop().time() - begun >= 0.1
        writer.close()
