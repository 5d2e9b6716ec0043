"""Bodies that break off, downloads nobody reads, and stored bytes that are damaged."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest

from tests.http.harness import LIMITS, ROOT, Response, Running, eventually, head, running
from tierstore.errors import CorruptObject, Unavailable
from tierstore.testing.faults import Answer, FailBefore, Fault, Pause

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHUNK = LIMITS.stream_chunk_bytes
LARGE = random.Random(3).randbytes(8 * CHUNK)
VERY_LARGE = random.Random(4).randbytes(LIMITS.object_bytes_max)
"""More than the sockets' buffers hold, so that a client that does not read stops the server."""


@pytest.mark.parametrize("size", [0, 1, LIMITS.inline_bytes_max, LIMITS.inline_bytes_max + 1, 300_000])
async def test_bodies_of_unknown_length(server: Running, size: int) -> None:
    """A chunked body is stored whole, in either tier."""
    payload = LARGE[:size]

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 10_000):
            yield payload[start : start + 10_000]

    async with aiohttp.ClientSession() as session:
        async with session.put(f"{server.url}{ROOT}/chunked/{size}", data=chunks()) as put:
            assert put.status == 200
        async with session.get(f"{server.url}{ROOT}/chunked/{size}") as got:
            assert await got.read() == payload


async def test_a_chunked_body_that_grows_too_large(server: Running) -> None:
    """A body of unknown length is refused where it passes the bound, and nothing is stored."""
    async with server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/grown", [("transfer-encoding", "chunked")]))
        await connection.send(b"%x\r\n%s\r\n" % (len(VERY_LARGE), VERY_LARGE))
        await connection.send(b"1\r\nx\r\n")
        refused = await connection.response()
        assert (refused.status, refused.headers["connection"]) == (413, "close")
    assert (await server.request("GET", f"{ROOT}/grown")).status == 404


@pytest.mark.parametrize("size", [10, LIMITS.inline_bytes_max + 1, 300_000])
@pytest.mark.parametrize("framing", ["announced", "chunked"])
@pytest.mark.parametrize("ending", ["abort", "half-close"])
async def test_a_cut_off_body_stores_nothing(server: Running, size: int, framing: str, ending: str) -> None:
    """A body that ends early changes nothing: what was there before stays, and no work is left over."""
    target = f"{ROOT}/cut-off/{size}/{framing}/{ending}"
    await server.request("PUT", target, (), b"before")
    async with server.connect() as connection:
        if framing == "announced":
            await connection.send(head("PUT", target, [("content-length", str(size))]) + LARGE[: size - 1])
        else:
            await connection.send(head("PUT", target, [("transfer-encoding", "chunked")]))
            await connection.send(b"%x\r\n%s\r\n" % (size, LARGE[:size]))
        await eventually("the body arrives", lambda: len(server.mutations) == 1)
        if ending == "abort":
            connection.abort()
        else:
            connection.writer.write_eof()
        await eventually("the mutation ends", lambda: len(server.mutations) == 0)
    assert (await server.request("GET", target)).body == b"before"


async def test_a_body_that_stalls_is_refused() -> None:
    """A client that stops sending is refused after the bound, and its connection closed."""
    async with running(replace(LIMITS, client_stall_seconds_max=0.1)) as server, server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/stalled", [("content-length", "10")]) + b"12345")
        refused = await connection.response()
        assert refused.status == 400
        assert "no byte of the body came" in refused.detail


def large_head(response: Response) -> tuple[int, str]:
    """What a download says before its payload."""
    return response.status, response.headers["content-length"]


async def test_a_download_is_whole(server: Running) -> None:
    """A streamed object arrives whole, and the connection goes on."""
    await server.request("PUT", f"{ROOT}/whole", (), LARGE)
    async with server.connect() as connection:
        for _ in range(2):
            got = await connection.request("GET", f"{ROOT}/whole")
            assert got.whole
            assert got.body == LARGE


async def test_a_client_gone_before_its_download_ends_it(server: Running) -> None:
    """When the client goes away, the stream is closed and no more of it is read."""
    await server.request("PUT", f"{ROOT}/gone", (), VERY_LARGE)
    before = server.script.trace.count("long_term.stream")
    async with server.connect() as connection:
        await connection.send(head("GET", f"{ROOT}/gone"))
        status, _ = await connection.response_head()
        assert status == 200
        connection.abort()
    await eventually("the request ends", lambda: server.long_term.open_streams == 0)
    assert server.script.trace.count("long_term.stream") - before < len(VERY_LARGE) // CHUNK


async def test_a_client_gone_while_the_store_is_slow(server: Running) -> None:
    """A client that goes away while the next chunk is awaited ends the download at that chunk."""
    await server.request("PUT", f"{ROOT}/slow", (), LARGE)
    pause = Pause()
    server.script.at("long_term.stream", None, None, pause)
    before = server.script.trace.count("long_term.stream")
    async with server.connect() as connection:
        await connection.send(head("GET", f"{ROOT}/slow"))
        await connection.response_head()
        await pause.reached.wait()
        connection.abort()
        await asyncio.sleep(0.05)
        pause.release.set()
    await eventually("the request ends", lambda: server.long_term.open_streams == 0)
    assert server.script.trace.count("long_term.stream") - before <= 4


async def test_a_client_that_stops_reading_is_let_go() -> None:
    """A client that takes nothing for the bound does not hold its stream any longer."""
    async with running(replace(LIMITS, client_stall_seconds_max=0.2)) as server:
        await server.request("PUT", f"{ROOT}/unread", (), VERY_LARGE)
        async with server.connect() as connection:
            await connection.send(head("GET", f"{ROOT}/unread"))
            await connection.response_head()
            await eventually("the stream is closed", lambda: server.long_term.open_streams == 0)
            assert (await server.request("GET", "/health")).status == 200


@pytest.mark.parametrize("error", [CorruptObject("bit flipped"), Unavailable("away"), RuntimeError("unexpected")])
@pytest.mark.parametrize("at_chunk", [1, 7])
async def test_a_download_that_fails_is_visibly_cut_off(server: Running, error: Exception, at_chunk: int) -> None:
    """When a stored object turns out damaged half-way, the client gets fewer bytes than announced, and no more."""
    target = f"{ROOT}/damaged"
    await server.request("PUT", target, (), LARGE)
    server.script.at("long_term.stream", *[None] * at_chunk, FailBefore(error))
    async with server.connect() as connection:
        cut = await connection.request("GET", target)
        assert large_head(cut) == (200, str(len(LARGE)))
        assert not cut.whole
        assert LARGE.startswith(cut.body)
        assert await connection.closed_by_server()
    assert server.long_term.open_streams == 0
    server.script.at("long_term.stream", *[None] * at_chunk, FailBefore(error))
    async with aiohttp.ClientSession() as session, session.get(server.url + target) as got:
        with pytest.raises(aiohttp.ClientPayloadError):
            await got.read()
    assert (await server.request("GET", target)).body == LARGE


async def test_a_small_damaged_blob_is_a_clean_error(server: Running) -> None:
    """Damage found with the first chunk is a 500, with the connection in order and nothing of the payload sent."""
    target = f"{ROOT}/small-damaged"
    await server.request("PUT", target, (), LARGE[: LIMITS.inline_bytes_max + 1])
    server.script.at("long_term.stream", FailBefore(CorruptObject("bit flipped")))
    async with server.connect() as connection:
        refused = await connection.request("GET", target)
        assert refused.status == 500
        assert "bit flipped" not in refused.detail
        assert "content-disposition" not in refused.headers
        assert (await connection.request("GET", target)).body == LARGE[: LIMITS.inline_bytes_max + 1]
    assert server.long_term.open_streams == 0


@pytest.mark.parametrize("second", [FailBefore(StopAsyncIteration()), Answer(LARGE)], ids=["short", "long"])
async def test_a_blob_of_another_length_is_never_passed_off_as_whole(server: Running, second: Fault) -> None:
    """A stream that ends early or goes on too long, against its promise, ends in a response that is cut off."""
    target = f"{ROOT}/wrong-length"
    await server.request("PUT", target, (), LARGE)
    server.script.at("long_term.stream", None, second)
    cut = await server.request("GET", target)
    assert large_head(cut) == (200, str(len(LARGE)))
    assert cut.body == LARGE[:CHUNK]


async def test_a_write_outlives_its_caller(server: Running) -> None:
    """Once the body has arrived, the object is stored even if nobody waits for the answer."""
    pause = Pause()
    server.script.at("high_volume.put_inline", pause)
    async with server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/orphaned", (), b"payload") + b"payload")
        await pause.reached.wait()
        connection.abort()
    await asyncio.sleep(0.02)
    pause.release.set()
    await eventually("the write ends", lambda: len(server.mutations) == 0)
    assert (await server.request("GET", f"{ROOT}/orphaned")).body == b"payload"
